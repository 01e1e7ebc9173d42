"""Attention that knows where sequences begin: no mask, and no work for what a mask would hide.

Packed rows under a mask cost as much as if every token saw every other one. torch's kernel for
sequences of different lengths (FlashAttention with `varlen`) computes each by itself. A response
that shares its prompt with others is a sequence whose queries are its own tokens and whose keys
are those of the prompt, too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_rlhf.objectives.precision import product_dtype

# Begins like the one whose masks it takes, see `models.backbone`.
ATTENTION_NAME = "sdpa_sequences"
_HALVES = (torch.bfloat16, torch.float16)
_KERNEL_DEVICES = ("cuda",)


class Sequences(NamedTuple):
    """Which tokens of one long row belong together: `S` sequences over `N` tokens.

    Attributes:
        query_starts: `[S + 1]` int32, where the queries of each sequence begin, and `N`.
        key_starts: `[S + 1]` int32, likewise for its keys, whose last ones are its queries' own.
        keys: `[K]` int64, the tokens that are keys, sequence by sequence; None where they are the
            queries in their order.
        longest_query: tokens of the longest sequence's queries.
        longest_key: likewise for keys.
    """

    query_starts: Tensor
    key_starts: Tensor
    keys: Tensor | None
    longest_query: int
    longest_key: int


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences,
    *,
    scaling: float,
    window: int | None = None,
) -> Tensor:
    """Attend causally inside of each sequence: the last query sees the last key.

    Args:
        query: `[N, heads, D]`.
        key: `[N, kv_heads, D]`; `heads` is a multiple of `kv_heads`.
        value: like `key`.
        sequences: of the `N` tokens.
        scaling: the factor on the query-key products.
        window: keys that a query sees, itself included; None for all.

    Returns:
        `[N, heads, D]` in the type of the products.
    """
    dtype = product_dtype(query)
    query, key, value = (one.to(dtype) for one in (query, key, value))
    if sequences.keys is not None:
        key, value = key[sequences.keys], value[sequences.keys]
    if query.device.type not in _KERNEL_DEVICES or dtype not in _HALVES:
        return _one_by_one(query, key, value, sequences, scaling, window)
    output = varlen_attn(
        query,
        key,
        value,
        sequences.query_starts,
        sequences.key_starts,
        sequences.longest_query,
        sequences.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend without the kernel, slowly: what it is compared with, on any device in any type."""
    starts = zip(sequences.query_starts.tolist(), sequences.key_starts.tolist(), strict=True)
    outputs = []
    for (first, first_key), (end, end_key) in pairwise(starts):
        places = torch.arange(first_key, end_key, device=query.device)
        own = places[first - end :, None]  # the queries' own keys are the last ones
        is_seen = places <= own
        if window is not None:
            is_seen &= places > own - window
        output = nn.functional.scaled_dot_product_attention(
            query[None, first:end].transpose(1, 2),
            key[None, first_key:end_key].transpose(1, 2),
            value[None, first_key:end_key].transpose(1, 2),
            attn_mask=is_seen,
            scale=scaling,
            enable_gqa=True,
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sequences: Sequences | None = None,
    **kwargs: Any,  # whatever else transformers hands to an attention function
) -> tuple[Tensor, None]:
    if sequences is None:
        options = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    output = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        sequences,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
    )
    return output[None], None


def kernel_works(device: torch.device, num_heads: int, num_kv_heads: int, width: int) -> bool:
    """Try torch's kernel on a GPU: whether it is there for such heads, and right, both ways.

    Args:
        device: a GPU.
        num_heads: of queries.
        num_kv_heads: of keys and values.
        width: `D`.
    """
    draw = torch.Generator().manual_seed(0)
    heads = (num_heads, num_kv_heads, num_kv_heads)
    plain = [torch.randn(12, count, width, generator=draw) for count in heads]
    try:
        found = _attend_both_ways([one.to(device, torch.bfloat16) for one in plain])
    except (RuntimeError, ValueError):  # no kernel for this GPU, or for these heads
        return False
    pairs = zip(found, _attend_both_ways(plain), strict=True)
    return all((ours.cpu().float() - exact).norm() < 0.05 * exact.norm() for ours, exact in pairs)


def _attend_both_ways(inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return what two sequences attend to, and the gradients of query, key and value."""
    query, key, value = (one.detach().requires_grad_() for one in inputs)
    starts = torch.tensor([0, 4, 12], dtype=torch.int32, device=query.device)
    output = attend(query, key, value, Sequences(starts, starts, None, 8, 8), scaling=0.1)
    gradients = torch.autograd.grad(output.float().square().sum(), (query, key, value))
    return output.detach(), *gradients


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
