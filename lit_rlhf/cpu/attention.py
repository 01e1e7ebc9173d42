"""Attention over short rows on a CPU: batched products, with their own backward.

torch's fused kernel for CPUs works row by row and head by head in blocks made for long rows; on
rows of some dozen tokens in bf16 most of its time goes elsewhere, above all in the backward. Here
query heads that share a key-value head are stacked, so that keys are never repeated, and each of
the six products of forward and backward is one call for all rows. The `[B, heads, L, L]`
probabilities are kept, which only short rows can afford. Everything else is transformers' own sdpa
path.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rlhf.objectives.precision import at_least_float32, product_dtype

# Begins like the one whose masks it takes, see `models.backbone`.
ATTENTION_NAME = "sdpa_short_rows"
# For wider rows, and for float32, the fused kernel is as fast (`python -m benchmarks.attention`).
LONGEST = 160


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Tell whether `short_attention` is faster than the fused kernel.

    Args:
        query: `[B, heads, L, D]`.
        key: `[B, kv_heads, S, D]`.
    """
    is_short = max(query.shape[2], key.shape[2]) <= LONGEST
    return is_short and query.device.type == "cpu" and product_dtype(query) == torch.bfloat16


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
        ctx.save_for_backward(queries, keys, values, probabilities, output)
        ctx.scaling, ctx.shapes = scaling, (query.shape, key.shape, value.shape)
        ctx.dtypes = (query.dtype, key.dtype, value.dtype)
        return output.view(batch, heads, length, value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        queries, keys, values, probabilities, output = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            grad_output = grad.to(queries.dtype).reshape(output.shape)
            grad_values = probabilities.mT @ grad_output
            # With p = softmax(z): dz = p * (dp - sum(dp * p)); of o = p v the sum is sum(do * o).
            # Source: Dao et al. 2022 (FlashAttention), appendix B.
            sums = (at_least_float32(grad_output) * output).sum(-1, keepdim=True)
            grad_scores = at_least_float32(grad_output @ values.mT).sub_(sums).mul_(probabilities)
            grad_scores = grad_scores.mul_(ctx.scaling).to(queries.dtype)
            grads = (grad_scores @ keys, grad_scores.mT @ queries, grad_values)
        shaped = (
            one.to(dtype).view(shape)
            for one, dtype, shape in zip(grads, ctx.dtypes, ctx.shapes, strict=True)
        )
        return *shaped, None, None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,  # whatever else transformers hands to an attention function
) -> tuple[Tensor, None]:
    has_bool_mask = attention_mask is None or (
        attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    )
    is_plain = dropout == 0 and kwargs.get("position_bias") is None and kwargs.get("cache") is None
    if has_bool_mask and is_plain and is_faster(query, key):
        mask = attention_mask
        if mask is None and query.shape[2] == key.shape[2] and _is_causal(module, kwargs):
            mask = _causal_mask(query.shape[2])
        if mask is not None:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            return short_attention(query, key, value, mask, scale), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    asked = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


@lru_cache(maxsize=64)  # of short rows alone: 25 KB at most each
def _causal_mask(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
