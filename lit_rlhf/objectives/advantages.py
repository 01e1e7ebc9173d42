"""From rewards a token to advantages: how much better each token was than expected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape
from lit_rlhf.ranges import require


class Advantages(NamedTuple):
    """What a policy update and a critic learn from; constants, zero where masked.

    Attributes:
        advantages: `[B, T]`, not whitened.
        returns: `[B, T]`, the critic's targets, or None from an estimator without critic.
    """

    advantages: Tensor
    returns: Tensor | None


class AdvantageEstimator(ABC):
    """Turns the rewards of a rollout into advantages."""

    @property
    @abstractmethod
    def requires_values(self) -> bool:
        """Whether a critic is needed; without one no critic is built."""

    @property
    @abstractmethod
    def samples_per_prompt(self) -> int:
        """How many responses the rollout draws for each prompt."""

    @abstractmethod
    def __call__(
        self,
        token_rewards: Float[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None,
        response_mask: Bool[Tensor, "B T"],
        group_ids: Int[Tensor, " B"],
    ) -> Advantages:
        """Estimate the advantage of every response token.

        Args:
            token_rewards: score and KL penalty, see `token_rewards`.
            values: the critic's estimate before each token, None without a critic.
            response_mask: True at response tokens.
            group_ids: equal for samples of the same prompt.

        Returns:
            Advantages and returns in float32 (float64 for float64), without gradient.
        """


@dataclass(frozen=True)
class GAE(AdvantageEstimator):
    """Generalised advantage estimation, by a critic.

    `delta[t] = token_rewards[t] + gamma * values[t + 1] - values[t]`
    `advantages[t] = delta[t] + gamma * gae_lambda * advantages[t + 1]`
    `returns = advantages + values`
    where `t + 1` means the next token that counts, and both are 0 behind the last one.
    Source: Schulman et al. 2016, eq. 16; skipping masked tokens as in verl.

    Attributes:
        gamma: discount a token, in [0, 1]; 1 as OpenAI's 2019 code.
        gae_lambda: 0 gives the one-step error, 1 Monte-Carlo returns minus values; 0.95 as
            OpenAI's 2019 code.

    Raises:
        ConfigError: if a value is outside [0, 1].
    """

    gamma: float = 1.0
    gae_lambda: float = 0.95

    requires_values = True
    samples_per_prompt = 1

    def __post_init__(self) -> None:
        require("model.advantage.gamma", self.gamma, least=0, most=1)
        require("model.advantage.gae_lambda", self.gae_lambda, least=0, most=1)

    def __call__(
        self,
        token_rewards: Float[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None,
        response_mask: Bool[Tensor, "B T"],
        group_ids: Int[Tensor, " B"],
    ) -> Advantages:
        """Run the recursion from the last token to the first; `group_ids` is not used."""
        if values is None:
            raise ValueError("GAE needs the critic's values, got None")
        require_same_shape(token_rewards=token_rewards, values=values, response_mask=response_mask)
        rewards = at_least_float32(token_rewards.detach())
        values = at_least_float32(values.detach())
        next_value = next_advantage = rewards.new_zeros(rewards.shape[0])  # [B]
        columns = []
        for t in reversed(range(rewards.shape[1])):
            counts = response_mask[:, t]
            delta = rewards[:, t] + self.gamma * next_value - values[:, t]
            advantage = delta + self.gamma * self.gae_lambda * next_advantage
            columns.append(advantage.masked_fill(~counts, 0.0))
            next_value = torch.where(counts, values[:, t], next_value)
            next_advantage = torch.where(counts, advantage, next_advantage)
        advantages = torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(rewards)
        return Advantages(advantages, (advantages + values).masked_fill(~response_mask, 0.0))
