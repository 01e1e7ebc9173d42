"""The trunk of Llama and its relatives, rewritten for decoding on a CPU.

With one token a row a step is made of small products, and transformers' layer spends as long
around them as in them. Here the projections that read the same input are one product, weights are
cast to the computing type and laid out for it once, and what is left is a dozen calls a layer. The
arithmetic is transformers' own (residual stream in the type of the embeddings, norms and rotations
in float32, products in the autocast type); the plain path stays `trunk(...)` itself, and
`tests/cpu/test_decoding.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    LlamaModel,
    MistralModel,
    PreTrainedModel,
    Qwen2Model,
    Qwen3Model,
)

from lit_rlhf.cpu.attention import decode_attention
from lit_rlhf.models.kv_cache import RowCache

# Their layers differ in biases, the norms of queries and keys, and sliding windows alone.
_FUSED = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
# oneDNN chooses a layout by the number of rows; any number may be multiplied with it.
_USUAL_ROWS = 64


class _Norm(NamedTuple):
    """Root mean square norm with its weight. Source: Zhang & Sennrich 2019."""

    weight: Tensor
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(hidden.dtype) * self.weight


class _Layer(NamedTuple):
    """One layer's weights: `linear(x)` for what was several layers reading `x`."""

    norm: _Norm
    qkv: Callable[[Tensor], Tensor]
    query_norm: _Norm | None
    key_norm: _Norm | None
    output: Callable[[Tensor], Tensor]
    mlp_norm: _Norm
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class FusedTrunk:
    """A frozen snapshot of a trunk's weights that extends cached sequences.

    Args:
        trunk: one that `can_fuse` accepts, adapters in place; they are merged into the snapshot.
        dtype: of the products.
    """

    def __init__(self, trunk: PreTrainedModel, dtype: torch.dtype) -> None:
        config = trunk.config
        layers: Any = trunk.layers
        self._embed: Any = trunk.embed_tokens
        self._rotary: Any = trunk.rotary_emb
        self._dtype = dtype
        attention = layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._scaling: float = attention.scaling
        self._activation: Any = layers[0].mlp.act_fn
        self._layers = [_snapshot(layer, dtype) for layer in layers]
        self._norm = _norm(trunk.norm)

    def __call__(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: RowCache
    ) -> Tensor:
        """Extend the cached sequences.

        Args:
            input_ids: `[B, S]`.
            position_ids: `[B, S]`.
            attention_mask: `[B, cached + S]` bool, True at real tokens.
            cache: written to, not advanced.

        Returns:
            `[B, H]` the hidden state of each row's last token, behind the last norm.
        """
        batch, length = input_ids.shape
        with torch.autocast(input_ids.device.type, enabled=False):
            # Padding is seen by attention alone; everything else runs over real tokens.
            places = attention_mask[:, -length:].flatten().nonzero().squeeze(-1)  # [N]
            hidden = self._embed(input_ids.flatten()[places])  # [N, H]
            cos, signed_sin = self._rotation(hidden, position_ids.flatten()[places])
            layout = _Layout(batch, length, places, _visible(attention_mask, length))
            for index, layer in enumerate(self._layers):
                states = layer.qkv(layer.norm(hidden).to(self._dtype)).float()
                query, key, value = self._split(layer, states, cos, signed_sin)
                key, value = cache.update(layout.pad(key), layout.pad(value), index)
                attended = self._attend(layout, query, key, value).to(self._dtype)
                hidden += layer.output(attended)
                gate, up = layer.gate_up(layer.mlp_norm(hidden).to(self._dtype)).chunk(2, -1)
                hidden += layer.down(self._activation(gate).mul_(up))
            ends = attention_mask[:, -length:].sum(1).cumsum(0)  # a row's tokens are together
            return self._norm(hidden[ends - 1])

    def _rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        # rotate_half(x) * sin is x rolled by half a head, times sin with its first half negated.
        cos, sin = self._rotary(hidden[None], position_ids=positions[None])  # [1, N, D]
        half = self._head_dim // 2
        signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return cos[0, :, None].float(), signed_sin[0, :, None].float()

    def _split(
        self, layer: _Layer, states: Tensor, cos: Tensor, signed_sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cut `[N, (heads + 2 kv_heads) D]` into heads `[N, heads, D]`; rotate queries and keys."""
        heads, kv_heads, width = self._num_heads, self._num_kv_heads, self._head_dim
        by_head = states.view(-1, heads + 2 * kv_heads, width)
        to_rotate, value = by_head.split([heads + kv_heads, kv_heads], 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = to_rotate.split([heads, kv_heads], 1)
            to_rotate = torch.cat([layer.query_norm(query), layer.key_norm(key)], 1)
        rotated = (to_rotate * cos).addcmul_(to_rotate.roll(width // 2, -1), signed_sin)
        query, key = rotated.split([heads, kv_heads], 1)
        return query, key, value

    def _attend(self, layout: _Layout, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with `[N, heads, D]` over `[B, kv_heads, cached + S, D]`: `[N, heads * D]`."""
        query = layout.pad(query)
        if layout.length == 1:
            attended = decode_attention(query, key, value, layout.may_see, self._scaling)
        else:
            query, key, value = (states.to(self._dtype) for states in (query, key, value))
            attended = functional.scaled_dot_product_attention(
                query, key, value, layout.may_see, scale=self._scaling, enable_gqa=True
            ).transpose(1, 2)
        return attended.reshape(layout.batch * layout.length, -1)[layout.places]


class _Layout(NamedTuple):
    """Where the real tokens are among the padded rows.

    Attributes:
        batch: `B`.
        length: `S`.
        places: `[N]` int64, into the flattened `[B * S]`.
        may_see: `[B, 1, S, cached + S]` bool, the keys of each query.
    """

    batch: int
    length: int
    places: Tensor
    may_see: Tensor

    def pad(self, states: Tensor) -> Tensor:
        """Turn `[N, heads, D]` into `[B, heads, S, D]`, zero at padding."""
        if len(self.places) < self.batch * self.length:
            padded = states.new_zeros(self.batch * self.length, *states.shape[1:])
            padded[self.places] = states
            states = padded
        return states.view(self.batch, self.length, *states.shape[1:]).transpose(1, 2)


def can_fuse(trunk: nn.Module, num_tokens: int) -> bool:
    """Tell whether `FusedTrunk` reproduces a trunk.

    Args:
        trunk: a transformers base model, adapters in place.
        num_tokens: of the longest sequence; one beyond a sliding window needs transformers' masks.
    """
    # A sharded model's class is one of its own, and not among these.
    if type(trunk) not in _FUSED or next(trunk.parameters()).device.type != "cpu":
        return False
    window = getattr(trunk.config, "sliding_window", None)
    is_within = window is None or num_tokens <= window
    return is_within and all(_is_plain(module) for module in trunk.modules())


def _is_plain(module: Any) -> bool:  # noqa: ANN401 - peft's classes are modules by mixing in
    """Only linear layers may be adapted, and by LoRA alone."""
    if isinstance(module, BaseTunerLayer):
        return isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear)
    return True


def packed_linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return `x -> x W^T + b` in `dtype`, with the weight laid out for it once.

    oneDNN multiplies in blocks and would rearrange a plain weight at every call.
    """
    cast = weight.detach().to(dtype)
    cast_bias = None if bias is None else bias.detach().to(dtype)
    if not _can_pack(dtype):
        return lambda inputs: functional.linear(inputs, cast, cast_bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(cast, _USUAL_ROWS)
    return lambda inputs: torch.ops.mkldnn._linear_pointwise(
        inputs, packed, cast_bias, "none", [], ""
    )


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # bf16 needs instructions that many CPUs lack.
    is_bf16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or is_bf16


def _snapshot(layer: Any, dtype: torch.dtype) -> _Layer:  # noqa: ANN401 - one of four classes
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        norm=_norm(layer.input_layernorm),
        qkv=_merged([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
        query_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        output=_merged([attention.o_proj], dtype),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_merged([mlp.gate_proj, mlp.up_proj], dtype),
        down=_merged([mlp.down_proj], dtype),
    )


def _norm(module: Any) -> _Norm:  # noqa: ANN401 - one of four classes
    return _Norm(module.weight, module.variance_epsilon)


def _merged(layers: list[Any], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Put linear layers that read the same input on top of each other."""
    weights = [effective_weight(layer) for layer in layers]
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat(biases)
    return packed_linear(torch.cat([weight.to(dtype) for weight in weights]), bias, dtype)


def effective_weight(layer: Any) -> Tensor:  # noqa: ANN401 - linear, adapted or not
    """Return a linear layer's weight, `[out, in]`, with the adapters that are switched on."""
    total: Tensor = layer.weight  # of an adapted layer: of the one below
    if isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged:
        for adapter in layer.active_adapters:
            total = total + layer.get_delta_weight(adapter)  # type: ignore[attr-defined]  # peft's own linear layers all have it
    return total


def _visible(readable: Tensor, num_new: int) -> Tensor:
    """Let each new token see the real ones up to itself.

    Args:
        readable: `[B, cached + S]` bool.
        num_new: `S`.

    Returns:
        `[B, 1, S, cached + S]` bool.
    """
    if num_new == 1:
        return readable[:, None, None]
    columns = torch.arange(readable.shape[1], device=readable.device)
    queries = columns[-num_new:, None]  # [S, 1]
    # Padding sees itself, or its softmax would be over nothing.
    return ((readable[:, None] & (columns <= queries)) | (columns == queries))[:, None]
