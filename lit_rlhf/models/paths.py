"""Which shortcuts a model takes, measured on three short rows when it is first wrapped.

Packed rows, logits from the vocabulary matrix alone, and our cache of keys and values each rest on
habits that most architectures share and some do not: positions that restart, nothing but a scale
behind the matrix, no state besides keys and values. A wrong guess would train on wrong numbers in
silence. So each shortcut is compared with the model's plain forward, one row at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import (
    HeadForm,
    attention_of,
    head_forms,
    transformer_layers,
    without_adapter_wrapper,
)
from lit_rlhf.models.devices import avoid_cudnn_attention
from lit_rlhf.models.probe import Probe, TrunkProbe
from lit_rlhf.ranks import rank

_log = logging.getLogger(__name__)

# How responses are decoded: by our cache; by transformers with rows padded to one length, with
# rows of one length at a time, or without a cache.
Decoding = Literal["own", "padded", "by_length", "uncached"]
_FALLBACKS: tuple[Decoding, ...] = ("padded", "by_length", "uncached")


class Paths(NamedTuple):
    """What was measured of a causal language model, or of one without its vocabulary.

    Attributes:
        packs: packed rows give what each row alone does.
        width: `H` of the last hidden state.
        head: what follows the vocabulary matrix, or None where only the model itself knows; plain
            where there is no vocabulary.
        decoding: how responses are decoded, likewise.
    """

    packs: bool
    width: int
    head: HeadForm | None
    decoding: Decoding


_paths: dict[object, Paths] = {}
_sequences: dict[object, bool] = {}


def paths_of(model: nn.Module) -> Paths:
    """Measure a causal language model, or remember one of the same configuration.

    Args:
        model: a transformers causal language model, or a peft model around one.

    Raises:
        ConfigError: it is not a causal language model: its plain forward fails, has no logits, or
            reads the tokens behind each one.
    """
    return _known(model, Probe)


def trunk_paths_of(trunk: nn.Module) -> Paths:
    """Measure a transformer without its vocabulary, see `paths_of`."""
    return _known(trunk, TrunkProbe)


def _known(model: nn.Module, kind: type[TrunkProbe]) -> Paths:
    avoid_cudnn_attention()
    inner = without_adapter_wrapper(model)
    if (key := (kind, _key(inner))) not in _paths:
        with _as_measured(inner):
            probe = kind(inner)
            _require_causal(probe, inner)
            if not probe.is_finite():  # nothing can be told; the guards of a run report it
                return Paths(False, probe.width, head_forms(inner.config)[0], "own")
            _paths[key] = paths = _measure(probe)
        _tell(inner, paths)
    return _paths[key]


def packs_by_sequence(trunk: nn.Module) -> bool:
    """Tell whether rows under attention that knows sequences are what each is alone.

    Args:
        trunk: with that attention (`sequence_attention`), on any device: in float32 each sequence
            is computed by itself, which shows whether the architecture hands on what it needs.
    """
    inner = without_adapter_wrapper(trunk)
    if (key := _key(inner)) not in _sequences:
        with _as_measured(inner):
            _sequences[key] = _holds(TrunkProbe(inner).packs_by_sequence)
    return _sequences[key]


def _measure(probe: TrunkProbe) -> Paths:
    if not isinstance(probe, Probe):
        return Paths(_holds(probe.packs), probe.width, HeadForm(), "own")
    head = probe.head()
    decoding: Decoding = "own"
    if head is None or not _holds(probe.decodes):
        holding = (path for path in _FALLBACKS if _holds(partial(probe.generates, path)))
        decoding = next(holding, "uncached")
    return Paths(_holds(probe.packs), probe.width, head, decoding)


def _require_causal(probe: TrunkProbe, model: PreTrainedModel) -> None:
    name = type(model).__name__
    try:
        is_causal = not probe.is_finite() or probe.is_causal()
    except Exception as error:  # whatever an architecture's code raises
        raise ConfigError(
            f"{name} cannot be used: it is not a causal language model that reads tokens alone "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    if not is_causal:
        raise ConfigError(
            f"{name} cannot be used: its tokens see those behind them, so that it is not a causal "
            "language model (an encoder's configuration needs is_decoder: true)"
        )


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except Exception as error:  # an architecture that cannot take the shortcut, each in its own way
        _log.debug("not taken: %s", error)
        return False


def _tell(model: PreTrainedModel, paths: Paths) -> None:
    slower = {
        "padded rows instead of packed ones": not paths.packs,
        "its own logits, all of them": paths.head is None,
        "decoding by transformers' own cache": paths.decoding in {"padded", "by_length"},
        "decoding without a cache": paths.decoding == "uncached",
    }
    if any(slower.values()) and rank() == 0:
        listed = ", ".join(name for name, is_taken in slower.items() if is_taken)
        _log.warning("%s runs more slowly: %s", type(model).__name__, listed)


def _key(model: PreTrainedModel) -> object:
    config = model.config
    device = next(model.parameters()).device.type
    return type(model), attention_of(model), device, config.to_json_string(use_diff=False)


@contextmanager
def _as_measured(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate in float32, without autocast or gradients; leave the model as it was.

    In bf16 a leak between rows could pass for rounding.
    """
    training = [module for module in model.modules() if module.training]
    device_type = next(model.parameters()).device.type
    model.eval()
    try:
        with (
            torch.inference_mode(mode=False),
            torch.no_grad(),
            torch.autocast(device_type, enabled=False),
            torch.random.fork_rng(enabled=device_type == "cpu"),
            _in_float32(model),
        ):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Let the weights be float32, those of a layer only while it computes: they are most of all."""
    layers = list(transformer_layers(model))
    inside = {id(tensor) for layer in layers for tensor in _tensors(layer)}
    kept = _cast_to_float32(tensor for tensor in _tensors(model) if id(tensor) not in inside)
    kept_of_layers: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def enter(layer: nn.Module, _: object) -> None:
        kept_of_layers[layer] = _cast_to_float32(_tensors(layer))

    def leave(layer: nn.Module, *_: object) -> None:
        _put_back(kept_of_layers.pop(layer, []))

    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _put_back(kept)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _cast_to_float32(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Cast those of 16 bits in place; return them with what they held."""
    halves = [one for one in tensors if one.dtype in {torch.bfloat16, torch.float16}]
    kept = [(tensor, tensor.data) for tensor in halves]
    for tensor in halves:
        tensor.data = tensor.data.float()
    return kept


def _put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, data in kept:
        tensor.data = data
