"""Advantages without a critic: several responses to one prompt are each other's baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.advantages import AdvantageEstimator, Advantages
from lit_rlhf.objectives.precision import at_least_float32, require_same_shape

# Guards the division by the deviation of a group whose responses score the same. Source: TRL.
_SMALLEST_DEVIATION = 1e-4


class _GroupEstimator(AdvantageEstimator):
    """What the estimators without critic share: `k` samples a prompt, one advantage a response."""

    k: int
    requires_values = False  # the other samples are the baseline

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ConfigError(
                f"advantage.k is {self.k}; {type(self).__name__} compares samples of one prompt "
                "and needs 2 or more"
            )

    @property
    def samples_per_prompt(self) -> int:
        """`k` responses a prompt."""
        return self.k


@dataclass(frozen=True)
class RLOO(_GroupEstimator):
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

    def __call__(
        self,
        token_rewards: Float[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None,
        response_mask: Bool[Tensor, "B T"],
        group_ids: Int[Tensor, " B"],
    ) -> Advantages:
        """Compare each response with the others of its group; `values` is not used.

        A response without tokens is in no baseline; one that is left alone by this has the
        advantage 0.

        Raises:
            ConfigError: if a group has a single member, so that nothing is left to compare.
        """
        groups = _totals_by_group(token_rewards, response_mask, group_ids)
        baselines = (groups.sums - groups.totals) / (groups.sizes - 1).clamp(min=1)
        advantages = (groups.totals - baselines) * (groups.sizes > 1)
        return _one_a_response(advantages, response_mask)


@dataclass(frozen=True)
class GRPO(_GroupEstimator):
    """Group-relative advantages: the distance from the group's mean, in its deviations.

    With `R[i]` the sum of the rewards of response `i`,
    `advantages[i, :] = (R[i] - mean(R of the group)) / (std(R of the group) + 1e-4)`.
    Source: Shao et al. 2024 (DeepSeekMath), section 4.1; deviation with Bessel's correction and
    the 1e-4 as in TRL. Without the division: Liu et al. 2025 ("Dr. GRPO").

    The KL penalty is part of the rewards here, as for all our estimators, not a further term
    of the loss.

    Attributes:
        k: samples of each prompt, >= 2.
        scale: divide by the group's deviation. A prompt whose responses hardly differ then counts
            as much as one whose responses differ a lot.

    Raises:
        ConfigError: if `k` is below 2.
    """

    k: int = 8
    scale: bool = True

    def __call__(
        self,
        token_rewards: Float[Tensor, "B T"],
        values: Float[Tensor, "B T"] | None,
        response_mask: Bool[Tensor, "B T"],
        group_ids: Int[Tensor, " B"],
    ) -> Advantages:
        """Compare each response with the mean of its group; `values` is not used.

        A response without tokens is in no baseline; one that is left alone by this has the
        advantage 0.

        Raises:
            ConfigError: if a group has a single member, so that nothing is left to compare.
        """
        groups = _totals_by_group(token_rewards, response_mask, group_ids)
        advantages = groups.totals - groups.sums / groups.sizes.clamp(min=1)
        if self.scale:
            squares = groups.sum_of_group(advantages.square() * response_mask.any(dim=1))
            degrees = (groups.sizes - 1).clamp(min=1)
            advantages /= (squares / degrees).sqrt() + _SMALLEST_DEVIATION
        return _one_a_response(advantages, response_mask)


class _GroupTotals(NamedTuple):
    """Of each response `[B]`: its total reward, and its group's sum and number of members.

    Members are the responses that have tokens.
    """

    totals: Tensor
    sizes: Tensor
    sums: Tensor
    group: Tensor  # its number, counted from 0
    num_groups: int

    def sum_of_group(self, values: Tensor) -> Tensor:
        """Return for each response the sum of `values` over its group: `[B]`."""
        return values.new_zeros(self.num_groups).index_add(0, self.group, values)[self.group]


def _totals_by_group(token_rewards: Tensor, response_mask: Tensor, ids: Tensor) -> _GroupTotals:
    require_same_shape(token_rewards=token_rewards, response_mask=response_mask)
    if ids.shape != token_rewards.shape[:1]:
        raise ValueError(
            f"group_ids must have one entry a row of token_rewards "
            f"{list(token_rewards.shape)}, got {list(ids.shape)}"
        )
    rewards = at_least_float32(token_rewards.detach()).masked_fill(~response_mask, 0.0)
    totals = rewards.sum(dim=1)  # [B, T] -> [B]
    _, group, sizes = torch.unique(ids, return_inverse=True, return_counts=True)
    if bool((sizes < 2).any()):
        raise ConfigError(
            f"2 or more samples of every prompt are needed, but {int((sizes < 2).sum())} of "
            f"{len(sizes)} groups have one: keep the samples of a prompt in one batch"
        )
    groups = _GroupTotals(totals, sizes, totals, group, len(sizes))
    members = groups.sum_of_group(response_mask.any(dim=1).to(totals.dtype))
    return groups._replace(sums=groups.sum_of_group(totals), sizes=members)


def _one_a_response(advantages: Tensor, response_mask: Tensor) -> Advantages:
    # [B] -> [B, T]
    spread = advantages[:, None].expand(response_mask.shape)
    return Advantages(spread.masked_fill(~response_mask, 0.0), None)
