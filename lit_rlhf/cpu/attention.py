"""Attention on CPUs: batched products instead of a kernel made for long rows.

With one query a row (decoding), `scaled_dot_product_attention` spends most of its time on setting
up, with short rows (training, scoring) on all but arithmetic, see `cpu.short_attention`. In both
the query heads that share a key-value head are stacked, so that keys are never expanded.
Everything else is transformers' own sdpa path.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rlhf.cpu.short_attention import is_faster, short_attention

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
    # Only CPU gains: on a GPU the fused kernels are faster for short rows, too.
    has_bool_mask = attention_mask is None or (
        attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    )
    is_plain = dropout == 0 and kwargs.get("position_bias") is None and kwargs.get("cache") is None
    if query.device.type == "cpu" and has_bool_mask and is_plain:
        num_queries, num_keys = query.shape[2], key.shape[2]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if num_queries == 1 and not query.requires_grad:
            return decode_attention(query, key, value, attention_mask, scale), None
        if is_faster(query, key):
            mask = attention_mask
            if mask is None and num_queries == num_keys and _is_causal(module, kwargs):
                mask = _causal_mask(num_queries)
            if mask is not None:
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
