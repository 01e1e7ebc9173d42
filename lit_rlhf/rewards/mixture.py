"""Several rewards that ask for different things, added up by weight and logged by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.group_scores import standardize_by_group
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.ranges import require
from lit_rlhf.rewards.combined import CombinedReward
from lit_rlhf.rewards.learned import share_among
from lit_rlhf.rewards.source import RewardSource, group_ids_of


@dataclass(frozen=True)
class RewardMixture(CombinedReward):
    """Score responses by the weighted sum of several rewards.

    `sum_k weights[k] * scores[k]`. For rewards of the same thing see `EnsembleReward`.

    The details are the parts by their names, before weights and normalisation: they are in the
    table of samples and are logged (`train/ppo/reward_NAME`).

    A response that a part cannot score (NaN) cannot be scored by the mixture either, unless
    `requires_all` is false.

    Attributes:
        parts: the rewards by name, one or more.
        weights: by the same names; 1 for a part without one. A negative weight is a cost.
        normalize: give each part's scores of a prompt's samples mean 0 and deviation 1 before they
            are added, so that a part with large numbers does not drown the others. Source: Liu et
            al. 2026 (GDPO). Where no prompt has several samples, as at validation, the parts are
            added as they are.
        requires_all: false: a part that cannot score a response adds nothing to it, and only a
            response that no part can score is left out: for data of several tasks, each with a
            part of its own.

    Raises:
        ConfigError: there is no part, or a weight of none, or one that is not finite.
    """

    parts: dict[str, RewardSource]
    weights: dict[str, float] | None = None
    normalize: bool = False
    requires_all: bool = True

    def __post_init__(self) -> None:
        """Check names and weights."""
        if not self.parts:
            raise ConfigError("RewardMixture.parts is empty; name one reward or more")
        for name, weight in (self.weights or {}).items():
            if name not in self.parts:
                raise ConfigError(
                    f"RewardMixture.weights.{name}: there is no such part; there are: "
                    f"{', '.join(self.parts)}"
                )
            require(f"RewardMixture.weights.{name}", weight)
        share_among(self.parts.values())

    @property
    def sources(self) -> dict[str, RewardSource]:
        """The parts."""
        return self.parts

    @property
    def compares_samples(self) -> bool:
        """Where it normalises, or a part compares."""
        return self.normalize or super().compares_samples

    @property
    def details(self) -> tuple[str, ...]:
        """The parts' names, and their own details as `NAME_DETAIL`."""
        own = [f"{name}_{one}" for name, part in self.parts.items() for one in part.details]
        return (*self.parts, *own)

    def score_in_detail(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score each response and say what each part gives it, see `RewardSource`."""
        scores: dict[str, Tensor] = {}
        details: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            given, own = part.score_in_detail(prompts, responses, batch)
            scores[name] = given.float()
            details |= {f"{name}_{detail}": values.float() for detail, values in own.items()}
        ids = group_ids_of(prompts, batch)
        return self._mix(scores, ids), scores | details

    def _mix(self, scores: Mapping[str, Tensor], group_ids: Tensor) -> Tensor:
        device = next(iter(scores.values())).device
        # Of texts alone, a function's scores are on the CPU and a reward model's may not be.
        columns = {name: each.to(device) for name, each in scores.items()}
        if self.normalize and len(group_ids.unique()) < len(group_ids):
            ids = group_ids.to(device)
            columns = {name: standardize_by_group(each, ids) for name, each in columns.items()}
        weights = self.weights or {}
        weighted = [weights.get(name, 1.0) * each for name, each in columns.items()]
        terms = torch.stack(weighted)  # [K, B]
        if self.requires_all:
            return terms.sum(0)
        is_unscored = torch.isnan(terms)
        may_abstain = torch.tensor([part.abstains for part in self.parts.values()], device=device)
        total = terms.masked_fill(is_unscored & may_abstain[:, None], 0.0).sum(0)
        return total.masked_fill(is_unscored.all(0), torch.nan)
