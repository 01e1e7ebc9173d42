"""Precision and shape guards that every objective starts with, and the type of products."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return half-precision values as float32, and all others unchanged.

    Sums over hundreds of tokens in bfloat16 lose whole tokens to rounding, so every objective
    accumulates in float32, or in float64 where it is given float64.

    Args:
        values: any shape, any floating type.

    Returns:
        The same values in float32 or float64.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def product_dtype(inputs: Tensor) -> torch.dtype:
    """Return the type in which a linear layer multiplies here: that of autocast, or its own.

    Args:
        inputs: any tensor that the layer reads; autocast changes float32 alone.
    """
    device_type = inputs.device.type
    if inputs.dtype == torch.float32 and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return inputs.dtype


def require_same_shape(**tensors: Tensor | None) -> None:
    """Refuse tensors that would broadcast against each other instead of matching.

    A `[B, 1]` beside a `[B]` silently becomes `[B, B]`, which trains and means nothing.

    Args:
        **tensors: tensors by the name that the message shall use; None entries are skipped.

    Raises:
        ValueError: if two shapes differ; the message names all of them.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"shapes must be equal, got {listed}")
