"""A loss, an estimator and a reward as a user would write them, outside of the package."""

from collections import Counter
from dataclasses import dataclass

import torch

from lit_rlhf.objectives import AdvantageEstimator, Advantages, PreferenceLoss, PreferenceOutput
from lit_rlhf.rewards import RewardSource

CALLS = Counter()


@dataclass(frozen=True)
class Difference(PreferenceLoss):
    """`scale * (policy_rejected - policy_chosen)`, without a reference."""

    scale: float = 1.0

    @property
    def requires_reference(self):
        return False

    def __call__(
        self, policy_chosen, policy_rejected, reference_chosen, reference_rejected, probability
    ):
        CALLS["Difference"] += 1
        losses = self.scale * (policy_rejected - policy_chosen)
        return PreferenceOutput(losses, policy_chosen.detach(), policy_rejected.detach())


@dataclass(frozen=True)
class Total(AdvantageEstimator):
    """`scale` times the sum of a response's rewards, at each of its tokens."""

    scale: float = 1.0

    @property
    def requires_values(self):
        return False

    @property
    def samples_per_prompt(self):
        return 1

    def __call__(self, token_rewards, values, response_mask, group_ids):
        CALLS["Total"] += 1
        assert values is None
        totals = token_rewards.sum(1, keepdim=True)
        return Advantages(self.scale * totals * response_mask, None)


@dataclass(frozen=True)
class CountLetter(RewardSource):
    """How often a response has a letter."""

    letter: str

    def __call__(self, prompts, responses, batch):
        CALLS["CountLetter"] += 1
        return torch.tensor([float(response.count(self.letter)) for response in responses])
