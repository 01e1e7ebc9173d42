"""PPO's clipped losses, element by element; the caller averages over tokens and ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape
from lit_rlhf.ranges import require

# Keeps exp() finite in float32 for a token that one policy all but forbids; far outside any
# clip range. The bound of OpenRLHF and verl.
_MAX_LOG_RATIO = 20.0


class ClippedLoss(NamedTuple):
    """A loss for each element, and where the clipping took effect.

    Attributes:
        losses: float32 (float64 for float64), to be minimised.
        is_clipped: bool, True where the clipped branch is the larger one.
    """

    losses: Tensor
    is_clipped: Tensor


def clipped_policy_loss(
    logprobs: Float[Tensor, "*tokens"],
    old_logprobs: Float[Tensor, "*tokens"],
    advantages: Float[Tensor, "*tokens"],
    *,
    clip_range: float = 0.2,
) -> ClippedLoss:
    """Compute PPO's clipped surrogate loss.

    `ratio = exp(logprobs - old_logprobs)`, its exponent cut to [-20, 20];
    `loss = max(-advantages * ratio,
    -advantages * clip(ratio, 1 - clip_range, 1 + clip_range))`.
    Source: Schulman et al. 2017, eq. 7 (negated).

    Args:
        logprobs: under the policy that is trained.
        old_logprobs: under the policy that sampled.
        advantages: constants; whiten them before if wanted.
        clip_range: how far the ratio may help, > 0; 0.2 by the paper.

    Returns:
        Losses and clip marks of the same shape. Values at padding are to be masked out.

    Raises:
        ConfigError: if `clip_range` is not positive.
        ValueError: if the shapes differ.
    """
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    require("clip_range", clip_range, above=0)
    advantages = at_least_float32(advantages)
    log_ratio = at_least_float32(logprobs) - at_least_float32(old_logprobs)
    ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return ClippedLoss(torch.maximum(plain, clipped), clipped > plain)


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
