"""A policy's weights for other engines: as in a Hugging Face folder, adapters merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import without_adapter_wrapper
from lit_rlhf.models.weights import effective_weight


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Collect the weights under the names that checkpoints of the architecture use.

    Adapters that are switched on are added to the weights below them; the model stays as it is.
    A tied output is there under its own name, too: an engine that lays its matrices out
    again may not know that two of them are one. Sharded weights must be gathered.

    Args:
        model: a transformers causal language model, or a peft model around one.

    Returns:
        Name to tensor. A weight without an adapter is the model's own, not a copy.

    Raises:
        ConfigError: an adapter is not LoRA.
    """
    inner = without_adapter_wrapper(model)
    weights: dict[str, Tensor] = {}
    adapted: dict[str, Any] = {  # peft's layers and modules, both in one
        name: module for name, module in inner.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        owner = next((other for other in adapted if name.startswith(f"{other}.")), None)
        if owner is None:
            weights[name] = parameter.detach()
    # Autocast would round the product of the two adapter matrices.
    with torch.autocast(inner.device.type, enabled=False):
        for name, layer in adapted.items():
            if not isinstance(layer, LoraLayer):
                raise ConfigError(f"{name}: only LoRA adapters can be merged, not {type(layer)}")
            weights[f"{name}.weight"] = effective_weight(layer).detach()
            bias = getattr(layer.get_base_layer(), "bias", None)
            if bias is not None:
                weights[f"{name}.bias"] = bias.detach()
    return dict(revert_weight_conversion(inner, weights))


def write_weights(weights: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write weights as one safetensors file, complete or not at all.

    Args:
        weights: of `merged_weights`.
        folder: where `model.safetensors` is replaced.
        dtype: of the numbers in the file.
    """
    seen: set[int] = set()
    copies = {}
    for name, weight in weights.items():
        copy = weight.to(device="cpu", dtype=dtype).contiguous()
        # The file has no way to say that two names share their numbers.
        copies[name] = copy.clone() if copy.data_ptr() in seen else copy
        seen.add(copies[name].data_ptr())
    partial = folder / "model.safetensors.partial"
    save_file(copies, partial, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")
