"""The one place that gives a model the paths made for CPUs; a GPU never imports them."""

from __future__ import annotations

import torch
from torch import nn

# Of this process, since reward models and judges are loaded far from the module that trains.
_SWITCH = {"is_on": True}


def switch_cpu_paths(is_on: bool) -> None:
    """Choose whether models that load from now on in this process take the paths for CPUs."""
    _SWITCH["is_on"] = is_on


def take_cpu_paths(
    model: nn.Module, device: torch.device, *, will_be_sharded: bool = False
) -> None:
    """Give a model on a CPU its faster layers and attention, in place, unless switched off.

    Weights, names and results stay as they are, but for rounding. See `lit_rlhf.cpu`.

    Args:
        model: with transformers models in it, adapters in place, not sharded yet.
        device: where it will compute.
        will_be_sharded: leave packed decoding out, whose copies would be stale: gathered weights
            hide that they have changed.
    """
    if _SWITCH["is_on"] and device.type == "cpu":
        from lit_rlhf.cpu import install  # noqa: PLC0415 - a GPU does without

        install(model, packs_for_decoding=not will_be_sharded)
