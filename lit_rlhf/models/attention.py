"""Attention for decoding: two batched products instead of a kernel made for long queries.

With one query a row, `scaled_dot_product_attention` spends most of its time on setting up; the
query heads that share a key-value head are stacked, so that the cache is never expanded.
Everything else (training, scoring, prefill) is transformers' own sdpa path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "lit_rlhf_sdpa"


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float
) -> Tensor:
    """Attend with one query per row over the whole cache, in float32.

    Args:
        query: `[B, heads, 1, D]`.
        key: `[B, kv_heads, S, D]`; `heads` is a multiple of `kv_heads`.
        value: `[B, kv_heads, S, D]`.
        attention_mask: `[B, 1, 1, S]` bool, True where the cache may be read, or None for all.
        scaling: the factor on the query-key products.

    Returns:
        `[B, 1, heads, D]` in the type of `query`.
    """
    batch, heads, _, width = query.shape
    kv_heads = key.shape[1]
    # bf16 products this small are slower than float32 ones on a CPU (decision 0007).
    with torch.autocast(query.device.type, enabled=False):
        grouped = query.float().reshape(batch, kv_heads, heads // kv_heads, width) * scaling
        scores = grouped @ key.float().mT  # [B, kv_heads, group, S]
        if attention_mask is not None:
            scores = scores.masked_fill_(~attention_mask, float("-inf"))
        attended = scores.softmax(-1) @ value.float()
    return attended.reshape(batch, 1, heads, width).to(query.dtype)


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
    # Only CPU gains: on a GPU the fused kernels are faster for one query, too.
    is_decoding = query.shape[2] == 1 and query.device.type == "cpu" and not query.requires_grad
    has_bool_mask = attention_mask is None or (
        attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    )
    if is_decoding and has_bool_mask and kwargs.get("position_bias") is None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return decode_attention(query, key, value, attention_mask, scale), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
