"""From rewards a token to advantages: how much better each token was than expected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.precision import at_least_float32, require_same_shape


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

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"advantage.{name} is {getattr(self, name)}; expected a number in [0, 1]"
                )

    @property
    def requires_values(self) -> bool:
        """True: the critic's values are the baseline."""
        return True

    @property
    def samples_per_prompt(self) -> int:
        """One response a prompt is enough."""
        return 1

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


@dataclass(frozen=True)
class RLOO(AdvantageEstimator):
    """REINFORCE with the mean of the other samples of the same prompt as baseline.

    With `R[i]` the sum of the rewards of response `i` and `G` responses in its group,
    `advantages[i, :] = R[i] - (sum(R of the group) - R[i]) / (G - 1)`.
    Source: Kool et al. 2019; Ahmadian et al. 2024 ("Back to Basics").

    Attributes:
        k: samples of each prompt, >= 2.

    Raises:
        ConfigError: if `k` is below 2.
    """

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ConfigError(
                f"advantage.k is {self.k}; RLOO compares samples of one prompt and needs 2 or more"
            )

    @property
    def requires_values(self) -> bool:
        """False: the other samples are the baseline."""
        return False

    @property
    def samples_per_prompt(self) -> int:
        """`k` responses a prompt."""
        return self.k

    def __call__(
        self,
        token_rewards: Float[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None,
        response_mask: Bool[Tensor, "B T"],
        group_ids: Int[Tensor, " B"],
    ) -> Advantages:
        """Compare each response with its group; `values` is not used.

        A response without tokens is a member of its group with reward 0.

        Raises:
            ConfigError: if a group has a single member, so that nothing is left to compare.
        """
        require_same_shape(token_rewards=token_rewards, response_mask=response_mask)
        if group_ids.shape != token_rewards.shape[:1]:
            raise ValueError(
                f"group_ids must have one entry a row of token_rewards "
                f"{list(token_rewards.shape)}, got {list(group_ids.shape)}"
            )
        rewards = at_least_float32(token_rewards.detach()).masked_fill(~response_mask, 0.0)
        totals = rewards.sum(dim=1)  # [B, T] -> [B]
        _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
        if bool((sizes < 2).any()):
            raise ConfigError(
                f"RLOO needs 2 or more samples of every prompt, but {int((sizes < 2).sum())} of "
                f"{len(sizes)} groups have one: keep the samples of a prompt in one batch"
            )
        group_totals = totals.new_zeros(len(sizes)).index_add(0, group, totals)
        baselines = (group_totals[group] - totals) / (sizes[group] - 1)
        advantages = (totals - baselines)[:, None].expand_as(rewards)
        return Advantages(advantages.masked_fill(~response_mask, 0.0), None)
