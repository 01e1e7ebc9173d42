"""A policy's weights as they are now, laid out for decoding, and taken again when they change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

from lit_rlhf.cpu.decoding import FusedTrunk, can_fuse, packed_linear
from lit_rlhf.models.backbone import Vocabulary
from lit_rlhf.objectives.precision import product_dtype


class Snapshot(NamedTuple):
    """A policy's weights as they were when it was taken, ready to decode.

    Attributes:
        trunk: extends sequences.
        projection: hidden states in `dtype` to products with the vocabulary.
        dtype: of all products.
        versions: of the weights, see `weight_versions`.
    """

    trunk: FusedTrunk
    projection: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    versions: tuple[object, ...]

    def project(self, hidden: Tensor) -> Tensor:
        """Multiply `[B, H]` with the vocabulary matrix: `[B, V]` in `dtype`."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.projection(hidden.to(self.dtype))


def take_snapshot(
    trunk: nn.Module, vocabulary: Vocabulary, num_tokens: int, last: Snapshot | None
) -> Snapshot | None:
    """Return a snapshot of the weights as they are now: the last one, or a new one.

    Args:
        trunk: a transformers base model, adapters in place.
        vocabulary: the output projection.
        num_tokens: of the longest sequence; one beyond a sliding window needs transformers' masks.
        last: an earlier snapshot of the same model.

    Returns:
        None where the architecture is not one that is fused, or the weights are not on the CPU.
    """
    if not can_fuse(trunk, num_tokens):
        return None
    assert isinstance(trunk, PreTrainedModel)
    dtype = product_dtype(vocabulary.weight)
    versions = (dtype, *weight_versions(trunk), *weight_versions(vocabulary.weight))
    if last is not None and last.versions == versions:
        return last
    projection = packed_linear(vocabulary.weight, vocabulary.bias, dtype)
    return Snapshot(FusedTrunk(trunk, dtype), projection, dtype, versions)


class _OptimizerSteps:
    """Counts the steps of all optimizers of this process."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._add_one)

    def _add_one(self, *_: object) -> None:
        self.count += 1


_OPTIMIZER_STEPS = _OptimizerSteps()


def weight_versions(model: nn.Module | Tensor) -> Iterator[object]:
    """Yield what changes whenever a weight may have, or an adapter is switched.

    torch counts the writes to each tensor, all but those of fused optimizers.
    """
    yield _OPTIMIZER_STEPS.count
    if isinstance(model, Tensor):
        yield model.data_ptr(), model._version
        return
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter.data_ptr(), parameter._version
        if isinstance(module, BaseTunerLayer):
            yield module.disable_adapters, tuple(module.active_adapters), module.merged
