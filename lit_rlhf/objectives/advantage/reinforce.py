"""REINFORCE++: rewards to come, whitened over the batch in place of a critic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.objectives.advantage.estimator import (
    AdvantageEstimator,
    Advantages,
    RewardedTokens,
    spread,
)
from lit_rlhf.objectives.advantage.groups import GroupEstimator, Groups
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class ReinforcePlusPlus(AdvantageEstimator):
    """All rewards that follow a token; the batch's mean is the baseline, by whitening.

    `advantages[t] = token_rewards[t] + gamma * advantages[t + 1]`, where `t + 1` is the next token
    that counts; `model.whiten_advantages` makes it REINFORCE++, and without it this is REINFORCE.

    Source: Hu 2025 (REINFORCE++), the KL penalty a token being part of the rewards.

    Peers: verl and OpenRLHF, the same; verl whitens with Bessel's correction.

    Attributes:
        gamma: discount a token, in [0, 1].
        k: samples of each prompt.

    Raises:
        ConfigError: if a value is out of its range.
    """

    gamma: float = 1.0
    k: int = 1

    requires_values = False

    def __post_init__(self) -> None:
        require("model.advantage.gamma", self.gamma, least=0, most=1)
        require("model.advantage.k", self.k, least=1)

    @property
    def samples_per_prompt(self) -> int:
        """`k` responses a prompt."""
        return self.k

    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Add up the rewards from each token on, see the class."""
        return Advantages(rewards_to_come(tokens, self.gamma), None)


@dataclass(frozen=True)
class ReinforcePlusPlusBaseline(GroupEstimator):
    """The distance from the mean of the prompt's responses; the scale is the batch's.

    With `R[i]` the sum of the rewards of response `i`:

    `advantages[i, :] = R[i] - mean(R of the group)`; `model.whiten_advantages` scales them.

    Source: Hu 2025 (REINFORCE++), "with baseline".

    Peers: verl, the same. Undivided advantages are those of `GRPO` with `scale` "none".

    Attributes:
        k: samples of each prompt, >= 2.

    Raises:
        ConfigError: if `k` is below 2.
    """

    k: int = 8

    def estimate(self, tokens: RewardedTokens) -> Advantages:
        """Compare each response with the mean of its group, see the class."""
        return spread(Groups.of(tokens).centered, tokens)


def rewards_to_come(tokens: RewardedTokens, gamma: float = 1.0) -> Tensor:
    """Sum up the rewards from each token on, discounted a token that counts: `[B, T]`."""
    rewards = tokens.token_rewards
    total = torch.zeros_like(tokens.totals)  # [B]
    columns = []
    for t in reversed(range(rewards.shape[1])):
        total = torch.where(tokens.response_mask[:, t], rewards[:, t] + gamma * total, total)
        columns.append(total)
    return torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(rewards)
