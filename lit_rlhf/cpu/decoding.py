"""Linear layers while a CPU decodes: weights merged, cast and laid out once, not at every token.

A step of decoding multiplies one token a row, so that reading weights is most of the work. Autocast
would cast every weight at every step, and oneDNN rearrange it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_rlhf.cpu.lora import has_one_weight, is_plain_lora
from lit_rlhf.models.weights import effective_weight, weight_versions
from lit_rlhf.objectives.precision import product_dtype

# oneDNN chooses a layout by the number of rows; any number may be multiplied with it.
_USUAL_ROWS = 64


class _Packed(NamedTuple):
    """A layer's product with its weights as they were: those of `versions`."""

    versions: tuple[object, ...]
    multiply: Callable[[Tensor], Tensor]


class PackedLayers:
    """Copies of a model's linear layers for decoding, made at the first step that needs them.

    A changed weight or a switched adapter makes a new copy of its layer. The next forward that
    keeps gradients frees them all.
    """

    def __init__(self) -> None:
        self.copies: dict[nn.Module, _Packed] = {}

    def decode(self, layer: nn.Module) -> None:
        """Let a linear layer, adapted or not, decode with its copy."""
        layer.forward = partial(self._forward, layer, layer.forward)

    def _forward(
        self,
        layer: nn.Module,
        plain: Callable[..., Tensor],
        inputs: Tensor,
        *args: Any,  # whatever else peft hands to a layer
        **kwargs: Any,
    ) -> Tensor:
        if torch.is_grad_enabled():
            self.copies.clear()  # the weights are about to change
        elif _is_step(inputs) and has_one_weight(layer) and not (args or kwargs):
            dtype = product_dtype(inputs)
            # A float32 weight as it is decodes as fast as a copy, which would cost memory.
            if is_plain_lora(layer) or layer.weight.dtype != dtype:
                return self._packed(layer, dtype)(inputs)
        return plain(inputs, *args, **kwargs)

    def _packed(self, layer: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        versions = (dtype, *weight_versions(layer))
        packed = self.copies.get(layer)
        if packed is None or packed.versions != versions:
            packed = _Packed(versions, _packed_product(layer, dtype))
            self.copies[layer] = packed
        return packed.multiply

    def __deepcopy__(self, memo: dict[int, object]) -> PackedLayers:
        return PackedLayers()  # a copied model makes its own


def _is_step(inputs: Tensor) -> bool:
    """Tell a step of decoding, `[B, 1, in]`, from prompts and scoring."""
    return inputs.dim() == 3 and inputs.shape[1] == 1


def _packed_product(layer: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:  # noqa: ANN401 - linear, adapted or not
    """Return `x -> x W^T + b` in `dtype`, with the weight laid out for it once."""
    weight = effective_weight(layer).detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    if not _can_pack(dtype):
        return lambda inputs: functional.linear(inputs.to(dtype), weight, bias)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, _USUAL_ROWS)
    return lambda inputs: torch.ops.mkldnn._linear_pointwise(
        inputs.to(dtype), laid_out, bias, "none", [], ""
    )


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # oneDNN packs bf16 for these instructions alone, which many CPUs lack.
    has_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return dtype == torch.bfloat16 and has_avx512
