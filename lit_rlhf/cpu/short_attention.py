"""Attention over short rows on a CPU: batched products, with their own backward.

torch's fused kernel for CPUs works row by row and head by head in blocks made for long rows; on
rows of some dozen tokens in bf16 most of its time goes elsewhere, above all in the backward. Here
query heads that share a key-value head are stacked, so that keys are never repeated, and each of
the six products of forward and backward is one call for all rows. The `[B, heads, L, L]`
probabilities are kept, which only short rows can afford.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_rlhf.objectives.precision import at_least_float32, product_dtype

# For wider rows, and for float32, the fused kernel is as fast (`python -m benchmarks.attention`).
LONGEST = 160


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Tell whether `short_attention` is faster than the fused kernel of a CPU.

    Args:
        query: `[B, heads, L, D]`.
        key: `[B, kv_heads, S, D]`.
    """
    is_short = max(query.shape[2], key.shape[2]) <= LONGEST
    return is_short and product_dtype(query) == torch.bfloat16


def short_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float
) -> Tensor:
    """Attend, and keep the probabilities for the backward.

    `softmax(scaling * q k^T) v` as Vaswani et al. 2017, equation 1; the softmax in float32, the
    products in the type of an active autocast or of the inputs. In bf16 the scores are rounded
    once, where the fused kernel keeps them in float32: outputs err by 0.3 % instead of 0.2.

    Args:
        query: `[B, heads, L, D]`.
        key: `[B, kv_heads, S, D]`; `heads` is a multiple of `kv_heads`.
        value: `[B, kv_heads, S, E]`.
        attention_mask: bool, `[B, 1, L, S]` or what broadcasts to it, True where a query may see a
            key. A query that sees none gets the mean of all values.
        scaling: the factor on the query-key products.

    Returns:
        `[B, L, heads, E]` in the type of the products.
    """
    output: Tensor = _ShortAttention.apply(query, key, value, attention_mask, scaling)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return output.transpose(1, 2)


class _ShortAttention(torch.autograd.Function):
    """`[B, heads, L, E]`; inside, rows and key-value heads are one batch of products."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch has no type for it
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float,
    ) -> Tensor:
        batch, heads, length, width = query.shape
        kv_heads, num_keys = key.shape[1:3]
        dtype = product_dtype(query)
        with torch.autocast(query.device.type, enabled=False):
            queries = query.to(dtype).reshape(batch * kv_heads, -1, width)  # heads of a group
            keys = key.to(dtype).reshape(batch * kv_heads, num_keys, width)
            values = value.to(dtype).reshape(batch * kv_heads, num_keys, value.shape[-1])
            scores = at_least_float32(queries @ keys.mT).view(batch, heads, length, num_keys)
            lowest = torch.finfo(scores.dtype).min  # exp gives 0, and no NaN where all is hidden
            scores.mul_(scaling).masked_fill_(~attention_mask, lowest)
            probabilities = scores.softmax(-1).to(dtype).view(batch * kv_heads, -1, num_keys)
            output = probabilities @ values
        ctx.save_for_backward(queries, keys, values, probabilities)
        ctx.scaling, ctx.shapes = scaling, (query.shape, key.shape, value.shape)
        ctx.dtypes = (query.dtype, key.dtype, value.dtype)
        return output.view(batch, heads, length, value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        queries, keys, values, probabilities = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            grad_output = grad.to(queries.dtype).reshape(*queries.shape[:2], values.shape[-1])
            grad_values = probabilities.mT @ grad_output
            grad_probabilities = at_least_float32(grad_output @ values.mT)
            # With p = softmax(z): dz = p * (dp - sum(dp * p)).
            grad_scores = torch._softmax_backward_data(
                grad_probabilities,
                at_least_float32(probabilities),
                -1,
                grad_probabilities.dtype,
            )
            grad_scores = grad_scores.mul_(ctx.scaling).to(queries.dtype)
            grads = (grad_scores @ keys, grad_scores.mT @ queries, grad_values)
        shaped = (
            one.to(dtype).view(shape)
            for one, dtype, shape in zip(grads, ctx.dtypes, ctx.shapes, strict=True)
        )
        return *shaped, None, None
