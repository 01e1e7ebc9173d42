"""The one place that gives a model the paths made for GPUs; a CPU never takes them."""

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


def take_gpu_paths(model: PolicyModel | ScalarModel, device: torch.device) -> None:
    """Let packed rows compute without masks on a GPU, in place, where that is measured to be right.

    Weights, names and results stay as they are, but for rounding. Elsewhere the mask stays, and
    the log says so.

    Args:
        model: adapters in place, not sharded yet.
        device: where it will compute.
    """
    if device.type != "cuda" or model.packing_width is None:
        return
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
