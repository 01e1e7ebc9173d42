"""What the estimators have in common that compare several responses to one prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.advantage.estimator import AdvantageEstimator, RewardedTokens


class GroupEstimator(AdvantageEstimator):
    """Draws `k` samples a prompt, of which the others are the baseline in place of a critic."""

    k: int
    requires_values = False
    compares_samples = True

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


class Groups(NamedTuple):
    """Of each response `[B]`: its total reward, and its group's sum and number of members.

    Members are the responses that have tokens.
    """

    totals: Tensor
    sizes: Tensor
    sums: Tensor
    group: Tensor  # its number, counted from 0
    num_groups: int

    @classmethod
    def of(cls, tokens: RewardedTokens) -> Groups:
        """Add the rewards of each response up, and the responses of each group.

        Raises:
            ConfigError: if a group has a single member, so that nothing is left to compare.
        """
        totals = tokens.totals
        _, group, sizes = torch.unique(tokens.group_ids, return_inverse=True, return_counts=True)
        if bool((sizes < 2).any()):
            raise ConfigError(
                f"2 or more samples of every prompt are needed, but {int((sizes < 2).sum())} of "
                f"{len(sizes)} groups have one: keep the samples of a prompt in one batch"
            )
        groups = cls(totals, sizes, totals, group, len(sizes))
        members = groups.sum_of_group(tokens.counts.to(totals.dtype))
        return groups._replace(sums=groups.sum_of_group(totals), sizes=members)

    def sum_of_group(self, values: Tensor) -> Tensor:
        """Return for each response the sum of `values` over its group: `[B]`."""
        return values.new_zeros(self.num_groups).index_add(0, self.group, values)[self.group]

    @property
    def centered(self) -> Tensor:
        """Each response's distance from the mean of its group: `[B]`."""
        return self.totals - self.sums / self.sizes.clamp(min=1)
