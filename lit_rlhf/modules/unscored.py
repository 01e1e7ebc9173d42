"""Responses that a reward cannot score: left out of baseline, loss and means, and counted.

A reward says so by NaN, see `RewardSource.abstains`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.objectives import MissingEOS
from lit_rlhf.ranks import sum_over_ranks
from lit_rlhf.rewards import RewardSource


def mark_unscored(rollout: RolloutBatch) -> RolloutBatch:
    """Mark the responses whose score is NaN; call it on all processes.

    Where no response of any process has a score, the NaNs stay, and the iteration is skipped like
    one with broken numbers.
    """
    is_scored = ~torch.isnan(rollout.scores)
    num_scored = (is_scored & rollout.samples.response_mask.any(1)).sum()  # without stand-ins
    if sum_over_ranks(num_scored.float()) == 0:
        return rollout
    scores = rollout.scores.masked_fill(~is_scored, 0.0)
    return rollout._replace(scores=scores, is_scored=is_scored)


def without_unscored(rollout: RolloutBatch, missing_eos: MissingEOS) -> RolloutBatch:
    """Return the rollout in which no token of a response counts that has no score.

    A cut response whose score the missing-EOS rule replaces needs none; one that it filters has
    none.
    """
    samples, given = rollout.samples, rollout.scores
    if rollout.is_scored is not None:
        given = given.masked_fill(~rollout.is_scored, torch.nan)
    counts = ~torch.isnan(missing_eos.apply(given, samples.finished))
    return rollout._replace(samples=samples.only(counts))


def abstaining_columns(sources: Mapping[str, RewardSource]) -> list[str]:
    """Return the columns in which NaN means "cannot be scored": scores, and details of scores."""
    return [
        column
        for name, source in sources.items()
        if source.abstains
        for column in (name, *(f"{name}_{detail}" for detail in source.details))
    ]


def scored_columns(
    columns: Mapping[str, Tensor], abstaining: Iterable[str], counts: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return columns to take means of, and the weights of those that have values missing.

    Args:
        columns: `[B]` values by name.
        abstaining: names of columns in which NaN means "cannot be scored".
        counts: `[B]`, zero at stand-ins.

    Returns:
        The columns, with `NAME_unscored` for each abstaining one (0 or 1), and `[B]` weights by
        name.
    """
    scored, weights = dict(columns), {}
    for name in abstaining:
        is_unscored = torch.isnan(columns[name])
        scored[name] = columns[name].masked_fill(is_unscored, 0.0)
        scored[f"{name}_unscored"] = is_unscored.float()
        weights[name] = counts * ~is_unscored
    return scored, weights
