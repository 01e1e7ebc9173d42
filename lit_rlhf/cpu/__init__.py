"""Layers and attention made for CPUs; results are those of the plain path, but for rounding."""

from __future__ import annotations

from types import MethodType

from torch import nn
from transformers import PreTrainedModel

from lit_rlhf.cpu.attention import ATTENTION_NAME
from lit_rlhf.cpu.decoding import PackedLayers
from lit_rlhf.cpu.lora import is_plain_lora, lora_forward
from lit_rlhf.models.backbone import attention_of

__all__ = ["install"]


def install(model: nn.Module, *, packs_for_decoding: bool = True) -> None:
    """Give a model the attention of short rows, LoRA in fewer passes, and packed decoding."""
    packed = PackedLayers()
    bases: set[nn.Module] = set()  # an adapted layer computes with them itself
    for module in list(model.modules()):
        if isinstance(module, PreTrainedModel) and attention_of(module) == "sdpa":
            module.set_attn_implementation(ATTENTION_NAME)
        is_adapted = is_plain_lora(module)
        if is_adapted:
            bases.update(module.modules())
            module.forward = MethodType(lora_forward, module)
        is_linear = type(module) is nn.Linear and module not in bases
        if packs_for_decoding and (is_adapted or is_linear):
            packed.decode(module)
