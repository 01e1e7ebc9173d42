"""Several rewards as one: where they disagree, nobody should be optimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.ranges import require
from lit_rlhf.rewards.combined import CombinedReward
from lit_rlhf.rewards.learned import share_among
from lit_rlhf.rewards.source import RewardSource

Combination = Literal["mean", "minimum", "mean_minus_deviation"]


@dataclass(frozen=True)
class EnsembleReward(CombinedReward):
    """Score responses by several rewards, best reward models of other raters, texts and seeds.

    `mean`; `minimum` (worst-case optimisation); `mean_minus_deviation`, the mean over the members
    minus `penalty` times their deviation (uncertainty-weighted optimisation; the paper subtracts
    the variance, here the deviation keeps the unit of the scores). Source: Coste et al., Reward
    Model Ensembles Help Mitigate Overoptimization, 2023, section 3.2.

    The members' scores should be on one scale: reward models with a normaliser are. Members that
    are adapters on the same weights hold these once.

    The detail `disagreement` is the deviation over the members (divided by their number), one a
    response: it is in the table of samples and is logged.

    Attributes:
        members: the rewards, 2 or more.
        combine: how they become one score.
        penalty: lambda of `mean_minus_deviation`, at least 0; refused with the others.

    Raises:
        ConfigError: fewer than two members, or a penalty out of range.
    """

    members: list[RewardSource]
    combine: Combination = "mean"
    penalty: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings; let adapters share the weights of the first of them."""
        if len(self.members) < 2:
            raise ConfigError(
                f"EnsembleReward.members has {len(self.members)}; an ensemble has 2 or more"
            )
        require("EnsembleReward.penalty", self.penalty, least=0)
        if self.combine != "mean_minus_deviation" and self.penalty != EnsembleReward.penalty:
            raise ConfigError(
                f"EnsembleReward.penalty={self.penalty} has no effect with combine {self.combine}: "
                "leave it out, or set combine to mean_minus_deviation"
            )
        share_among(self.members)

    @property
    def sources(self) -> dict[str, RewardSource]:
        """The members by their number."""
        return {str(number): member for number, member in enumerate(self.members)}

    @property
    def details(self) -> tuple[str, ...]:
        """`disagreement`."""
        return ("disagreement",)

    def score_in_detail(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score each response and say how far the members are apart, see `RewardSource`."""
        members = [member(prompts, responses, batch).float() for member in self.members]
        # Of texts alone, a function's scores are on the CPU and a reward model's may not be.
        scores = torch.stack([each.to(members[0].device) for each in members])  # [K, B]
        mean, deviation = scores.mean(0), scores.std(0, correction=0)
        combined = {
            "mean": mean,
            "minimum": scores.amin(0),
            "mean_minus_deviation": mean - self.penalty * deviation,
        }[self.combine]
        return combined, {"disagreement": deviation}
