"""Scores of several rewards on one scale: each against the other samples of the same prompt."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32

# Guards the division by the deviation of a group whose responses score the same. Source: TRL.
_SMALLEST_DEVIATION = 1e-4


def standardize_by_group(
    scores: Float[Tensor, " B"], group_ids: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Give the scores of each prompt's samples mean 0 and deviation 1.

    `(scores[i] - mean(scores of the group)) / (std(scores of the group) + 1e-4)`, the deviation
    with Bessel's correction. NaN, a sample that has no score, stays NaN and is in neither mean nor
    deviation. A sample alone becomes 0: there is nothing that it is better than.
    Source: Liu et al. 2026 (GDPO), which does so with each reward before they are added up; the
    1e-4 as in TRL (`normalize_then_sum`).

    Args:
        scores: by one reward.
        group_ids: equal for samples of the same prompt.

    Returns:
        In float32 (float64 for float64), without gradient.
    """
    scores = at_least_float32(scores.detach())
    _, group = torch.unique(group_ids, return_inverse=True)
    is_scored = ~torch.isnan(scores)

    def sum_of_group(values: Tensor) -> Tensor:
        return values.new_zeros(len(values)).index_add(0, group, values)[group]

    counts = sum_of_group(is_scored.to(scores.dtype))
    means = sum_of_group(scores.masked_fill(~is_scored, 0.0)) / counts.clamp(min=1)
    distances = scores - means
    squares = sum_of_group(distances.square().masked_fill(~is_scored, 0.0))
    return distances / ((squares / (counts - 1).clamp(min=1)).sqrt() + _SMALLEST_DEVIATION)
