"""The one place that gives a model the paths made for its device."""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_rlhf.models.backbone import attention_of, trunk_of, without_adapter_wrapper
from lit_rlhf.models.paths import packs_by_sequence
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.models.sequence_attention import ATTENTION_NAME, kernel_works
from lit_rlhf.ranks import rank

_log = logging.getLogger(__name__)

# Of this process, since reward models and judges are loaded far from the module that trains.
_FOR_CPUS = {"is_on": True}


def switch_cpu_paths(is_on: bool) -> None:
    """Choose whether models that load from now on in this process take the paths for CPUs."""
    _FOR_CPUS["is_on"] = is_on


def take_fast_paths(
    model: PolicyModel | ScalarModel, device: torch.device, *, will_be_sharded: bool = False
) -> None:
    """Give a model what is made for its device, in place.

    On a CPU faster layers and attention, unless switched off, see `lit_rlhf.cpu`. On a GPU packed
    rows without masks, where that is measured to be right; else the log says so. Weights, names
    and results stay as they are, but for rounding.

    Args:
        model: adapters in place, not sharded yet.
        device: where it will compute.
        will_be_sharded: leave packed decoding on CPUs out, whose copies would be stale: gathered
            weights hide that they have changed.
    """
    if device.type == "cpu" and _FOR_CPUS["is_on"]:
        from lit_rlhf.cpu import install  # noqa: PLC0415 - a GPU does without

        install(model, packs_for_decoding=not will_be_sharded)
    elif device.type == "cuda" and model.packing_width is not None:
        _leave_masks(model, device)


def _leave_masks(model: PolicyModel | ScalarModel, device: torch.device) -> None:
    inner = without_adapter_wrapper(
        model.model if isinstance(model, PolicyModel) else model.backbone
    )
    if attention_of(inner) != "sdpa":
        return
    _set_attention(inner, ATTENTION_NAME)
    if _has_kernel(inner, device) and packs_by_sequence(trunk_of(inner)):
        return
    _set_attention(inner, "sdpa")
    if rank() == 0:
        _log.warning("%s: packed rows are computed under masks, more slowly", type(inner).__name__)


def _has_kernel(model: PreTrainedModel, device: torch.device) -> bool:
    config = model.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", None)
    if num_heads is None:
        return False
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return kernel_works(device, num_heads, num_kv_heads, width)


def _set_attention(model: nn.Module, name: str) -> None:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation(name)
