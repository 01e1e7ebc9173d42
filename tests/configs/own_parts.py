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

    @property
    def takes_soft_labels(self):
        return True

    def compare(self, pairs):
        CALLS["Difference"] += 1
        assert pairs.reference_chosen is None
        losses = self.scale * (2 * pairs.probability - 1)
        losses = losses * (pairs.policy_rejected - pairs.policy_chosen)
        return PreferenceOutput(
            losses, pairs.policy_chosen.detach(), pairs.policy_rejected.detach()
        )


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

    def estimate(self, tokens):
        CALLS["Total"] += 1
        assert tokens.values is None
        return Advantages(self.scale * tokens.totals[:, None] * tokens.response_mask, None)


@dataclass(frozen=True)
class CountLetter(RewardSource):
    """How often a response has a letter."""

    letter: str

    def __call__(self, prompts, responses, batch):
        CALLS["CountLetter"] += 1
        return torch.tensor([float(response.count(self.letter)) for response in responses])
