"""What a model computes with: each layer's weight, adapters added, and whether any has changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


def effective_weight(layer: Any) -> Tensor:  # noqa: ANN401 - linear, adapted or not
    """Return a linear layer's weight, `[out, in]`, with the adapters that are switched on."""
    total: Tensor = layer.weight  # of an adapted layer: of the one below
    if isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged:
        for adapter in layer.active_adapters:
            total = total + layer.get_delta_weight(adapter)  # type: ignore[attr-defined]  # peft's own linear layers all have it
    return total


class _OptimizerSteps:
    """Counts the steps of all optimizers of this process."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._add_one)

    def _add_one(self, *_: object) -> None:
        self.count += 1


_OPTIMIZER_STEPS = _OptimizerSteps()


def weight_versions(model: nn.Module) -> Iterator[object]:
    """Yield what changes whenever a weight may have, or an adapter is switched.

    torch counts the writes to each tensor, all but those of fused optimizers.
    """
    yield _OPTIMIZER_STEPS.count
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            yield parameter.data_ptr(), parameter._version
        if isinstance(module, BaseTunerLayer):
            yield module.disable_adapters, tuple(module.active_adapters), module.merged
