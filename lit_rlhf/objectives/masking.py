"""Moments and whitening over the entries that a mask marks as counting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape

# Guards the division where all counted values are equal (variance zero); the constant of
# OpenAI's 2019 code (lm-human-preferences), so that whitened values agree with it.
_VARIANCE_FLOOR = 1e-8


class Moments(NamedTuple):
    """The sums that give mean and variance, in a form that adds up over ranks.

    Attributes:
        count: scalar, how many entries count.
        total: scalar, their sum.
        total_of_squares: scalar, the sum of their squares.
    """

    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls here
    total: Tensor
    total_of_squares: Tensor

    @property
    def mean(self) -> Float[Tensor, ""]:
        """`total / count`; 0 if nothing counts."""
        return self.total / self.count.clamp(min=1)

    @property
    def variance(self) -> Float[Tensor, ""]:
        """Biased variance `total_of_squares / count - mean^2`, at least 0."""
        mean_of_squares = self.total_of_squares / self.count.clamp(min=1)
        # Rounding can push the difference of two nearly equal numbers below zero.
        return (mean_of_squares - self.mean.square()).clamp(min=0.0)


def masked_moments(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Moments:
    """Collect count, sum and sum of squares where the mask is True.

    Global statistics: sum each field over all ranks before reading `mean` and `variance`.

    Args:
        values: any shape; treated as constants.
        mask: same shape, True where an entry counts.

    Returns:
        Three float64 scalars (float32 on MPS, which has no float64): the variance is a
        difference of two sums, and float32 would lose it where the mean is large.

    Raises:
        ValueError: if the shapes differ.
    """
    require_same_shape(values=values, mask=mask)
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    counted = values.detach().to(dtype).masked_fill(~mask, 0.0)
    return Moments(mask.sum().to(dtype), counted.sum(), counted.square().sum())


def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], moments: Moments
) -> Float[Tensor, "*shape"]:
    """Scale the values to zero mean and unit variance.

    `(values - mean) * rsqrt(variance + 1e-8)`. Source: OpenAI's lm-human-preferences (2019), whose
    variance is biased as ours; TRL and verl use Bessel's correction. Unlike theirs the moments may
    span all ranks.

    Args:
        values: any shape.
        mask: same shape, True where an entry counts.
        moments: of the same values over all ranks, see `masked_moments`.

    Returns:
        Same shape, float32 (float64 for float64), zero where the mask is False.

    Raises:
        ValueError: if the shapes differ.
    """
    require_same_shape(values=values, mask=mask)
    values = at_least_float32(values)
    mean = moments.mean.to(values.dtype)
    scale = torch.rsqrt(moments.variance + _VARIANCE_FLOOR).to(values.dtype)
    return ((values - mean) * scale).masked_fill(~mask, 0.0)
