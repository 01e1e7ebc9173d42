"""What PPO says of held-out samples."""

from dataclasses import dataclass

import torch

from lit_rlhf.modules.ppo_metrics import score_columns
from lit_rlhf.rewards import RewardSource
from tests.rewards.samples import sample_batch


@dataclass
class Told(RewardSource):
    """Notes when it is asked and when it may rest."""

    name: str
    heard: list[str]

    def __call__(self, prompts, responses, batch=None):
        self.heard.append(f"{self.name} is asked")
        return torch.ones(len(responses))

    def rest(self):
        self.heard.append(f"{self.name} rests")


def test_a_judge_rests_before_the_next_is_asked_and_the_reward_stays():
    heard = []
    sources = {name: Told(name, heard) for name in ("reward", "first", "second")}
    columns = score_columns(sources, sample_batch(["a", "b"], ["c", "d"]))
    assert list(columns) == list(sources)
    assert heard[0] == "reward is asked"
    assert heard[1:] == ["first is asked", "first rests", "second is asked", "second rests"]
