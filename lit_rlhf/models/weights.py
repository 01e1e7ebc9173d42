"""What a model computes with: its weights with adapters added, their changes and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import without_adapter_wrapper


def effective_weight(layer: Any) -> Tensor:  # noqa: ANN401 - linear, adapted or not
    """Return a linear layer's weight, `[out, in]`, with the adapters that are switched on."""
    total: Tensor = layer.weight  # of an adapted layer: of the one below
    if isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged:
        for adapter in layer.active_adapters:
            total = total + layer.get_delta_weight(adapter)  # type: ignore[attr-defined]  # peft's own linear layers all have it
    return total


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


class _Changes:
    """Counts the steps of all optimizers of this process, and whatever else is told here."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self.add_one)

    def add_one(self, *_: object) -> None:
        self.count += 1


_CHANGES = _Changes()


def note_changed_weights() -> None:
    """Say that weights were changed by something that `weight_versions` cannot see."""
    _CHANGES.add_one()


def weight_versions(model: nn.Module) -> Iterator[object]:
    """Yield what changes whenever a weight may have, or an adapter is switched.

    torch counts the writes to each tensor, all but those of fused optimizers. The whole weights of
    a sharded model are other tensors each time that they are gathered: there steps count alone, and
    what `note_changed_weights` was told.
    """
    yield _CHANGES.count
    is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    for module in model.modules():
        for parameter in () if is_sharded else module.parameters(recurse=False):
            yield parameter.data_ptr(), parameter._version
        if isinstance(module, BaseTunerLayer):
            yield module.disable_adapters, tuple(module.active_adapters), module.merged


def spread_again(module: nn.Module) -> None:
    """Give back what a forward has gathered of sharded models; the next forward gathers it again.

    Not between a forward and its backward.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def weights_digest(weights: Mapping[str, Tensor], config: PretrainedConfig) -> str:
    """Return a digest of a model: names, types, shapes and bytes of its weights, and its settings.

    Args:
        weights: name -> tensor, not sharded.
        config: of the architecture; where it was loaded from does not count.
    """
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        digests = pool.map(_tensor_digest, weights.values())
        parts = dict(zip(weights, digests, strict=True))
    settings = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    text = json.dumps([sorted(parts.items()), settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    digest.update(content.numpy().data)
    return digest.hexdigest()
