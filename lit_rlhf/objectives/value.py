"""The critic's loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lit_rlhf.objectives.policy.loss import ClippedLoss
from lit_rlhf.objectives.precision import at_least_float32, require_same_shape
from lit_rlhf.ranges import require


def clipped_value_loss(
    values: Float[Tensor, "*tokens"],
    old_values: Float[Tensor, "*tokens"],
    returns: Float[Tensor, "*tokens"],
    *,
    clip_range: float | None = 0.2,
) -> ClippedLoss:
    """Compute the critic's squared error, clipped around its old estimate.

    `clipped_values = clip(values, old_values - clip_range, old_values + clip_range)`;
    `loss = max((values - returns)^2, (clipped_values - returns)^2) / 2`.
    Source: OpenAI's lm-human-preferences (2019), including the half.

    Args:
        values: the critic's estimates, trained.
        old_values: its estimates at sampling time.
        returns: the targets, constants.
        clip_range: how far an estimate may help to move, > 0, in the unit of the reward;
            None for the plain squared error.

    Returns:
        Losses and clip marks of the same shape. Values at padding are to be masked out.

    Raises:
        ConfigError: if `clip_range` is not positive.
        ValueError: if the shapes differ.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns)
    values, returns = at_least_float32(values), at_least_float32(returns)
    plain = 0.5 * (values - returns).square()
    if clip_range is None:
        return ClippedLoss(plain, torch.zeros_like(plain, dtype=torch.bool))
    require("clip_range", clip_range, above=0)
    old_values = at_least_float32(old_values)
    near_old = values.clamp(old_values - clip_range, old_values + clip_range)
    clipped = 0.5 * (near_old - returns).square()
    return ClippedLoss(torch.maximum(plain, clipped), clipped > plain)
