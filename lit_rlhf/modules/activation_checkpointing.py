"""Recompute the activations of each layer in the backward pass instead of keeping them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lit_rlhf.models.backbone import transformer_layers


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the input of each transformer layer for the backward pass, in place.

    Source: Chen et al. 2016, arXiv 1604.06174. Each layer runs a second time during the backward:
    a third more products, and the memory of one layer's activations instead of all. Results are
    the same to the last bit.

    `forward` is replaced, not the module: hooks of `fully_shard` are outside of what is
    repeated, and names and classes stay. transformers' own option also acts without gradients,
    where it takes the cache away from a policy that samples in training mode.

    Args:
        model: any module with a transformers model inside, adapters included; not sharded yet.

    Raises:
        ConfigError: if no stack of layers is found.
    """
    for layer in transformer_layers(model):
        layer.forward = functools.partial(_run, layer.forward)


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any layer's
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Not reentrant: with frozen embeddings (LoRA) the input has no gradient. The random state is
    # not kept, as nothing is drawn: every dropout rate is zero.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
