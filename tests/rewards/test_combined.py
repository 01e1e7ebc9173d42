"""Rewards made of others hand on what the others are told."""

from dataclasses import dataclass, field

import pytest
import torch

from lit_rlhf.rewards import EnsembleReward, RewardMixture, RewardSource


@dataclass
class Told(RewardSource):
    """Keeps what it is told."""

    heard: list = field(default_factory=list)

    def __call__(self, prompts, responses, batch=None):
        return torch.zeros(len(responses))

    def rest(self):
        self.heard.append("rest")

    def share_trunk(self, policy):
        self.heard.append(policy)


@pytest.mark.parametrize(
    "combine",
    [lambda *two: EnsembleReward([*two]), lambda one, two: RewardMixture({"a": one, "b": two})],
    ids=["ensemble", "mixture"],
)
def test_every_source_rests_and_is_offered_the_trunk(combine):
    sources, policy = (Told(), Told()), torch.nn.Linear(1, 1)
    reward = combine(*sources)
    reward.share_trunk(policy)
    reward.rest()
    assert [source.heard for source in sources] == [[policy, "rest"]] * 2
