"""One trunk for several roles: frozen weights that are equal are held once.

With LoRA the policy, its critic and its reference share one trunk by construction. A reward
model that was trained as an adapter on the same weights shares it, too, once its own copy of
them is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def share_frozen(model: nn.Module, donor: nn.Module) -> int:
    """Let frozen parameters of `model` be those of `donor` wherever the two are equal.

    Parameters are told by their contents, not by their names: wrappers name the same matrix
    differently. What trains on either side is left alone.

    Args:
        model: changed in place.
        donor: where the kept copies are.

    Returns:
        Bytes that `model` no longer holds for itself.
    """
    offered: dict[tuple[object, ...], list[nn.Parameter]] = {}
    for theirs in donor.parameters():
        if not theirs.requires_grad:
            offered.setdefault(_likeness(theirs), []).append(theirs)
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        # A list: the loop replaces what it goes through.
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                continue
            if parameter not in replaced:
                twins = offered.get(_likeness(parameter), [])
                twin = next((twin for twin in twins if torch.equal(twin, parameter)), parameter)
                replaced[parameter] = twin
            setattr(module, name, replaced[parameter])
    return sum(old.nbytes for old, new in replaced.items() if old is not new)


def _likeness(tensor: Tensor) -> tuple[object, ...]:
    """Return what equal tensors have in common, so that few must be compared whole."""
    first = tuple(tensor.detach().flatten()[:4].tolist())
    return tensor.shape, tensor.dtype, tensor.device, first
