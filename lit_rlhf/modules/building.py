"""Turning a source (hub name or folder) into the model of a phase."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import LoRAConfig, apply_lora
from lit_rlhf.models.freezing import freeze, freeze_unread
from lit_rlhf.models.handover import load_causal_lm, load_reward_model, load_trunk
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.scalar_head import ScalarModel


def build_policy(
    source: str,
    lora: LoRAConfig | None,
    *,
    frozen_dtype: torch.dtype | None,
    packing_width: int | None,
    value_head: bool = False,
) -> PolicyModel:
    """Load a policy that trains: all of its weights, or adapters on frozen ones.

    Weights are as their file has them until `PhaseModule.prepare`, which may spread them first.
    """
    model = _load_trained(load_causal_lm, source, lora, frozen_dtype)
    return PolicyModel(model, value_head=value_head, packing_width=packing_width).train()


def build_reference(
    source: str, *, frozen_dtype: torch.dtype | None, packing_width: int | None
) -> PolicyModel:
    """Load a frozen copy of a policy."""
    model = load_frozen(load_causal_lm, source, frozen_dtype)
    return PolicyModel(model, packing_width=packing_width).eval()


def build_reward_model(
    source: str,
    lora: LoRAConfig | None,
    *,
    frozen_dtype: torch.dtype | None,
    packing_width: int | None,
) -> ScalarModel:
    """Put a fresh scalar head on the trunk of a policy."""
    trunk = _load_trained(load_trunk, source, lora, frozen_dtype)
    return ScalarModel(trunk, packing_width=packing_width).train()


def build_critic(source: str | None, packing_width: int | None) -> ScalarModel:
    """Load a critic of its own from a reward model: trunk, head, and the normaliser folded in.

    Source: Stiennon et al. 2020, appendix G.1: the value function starts from the reward model.

    Raises:
        ConfigError: no reward model is named.
    """
    if source is None:
        raise ConfigError("critic: separate needs critic_source, the reward model to start from")
    reward_model = load_reward_model(source)
    freeze_unread(reward_model.backbone)
    critic = ScalarModel(reward_model.backbone, packing_width=packing_width, bias=True).train()
    with torch.no_grad():
        critic.head.linear.weight.copy_(reward_model.head.linear.weight / reward_model.deviation)
        bias = reward_model.head.linear.bias
        raw_bias = 0.0 if bias is None else bias
        critic.head.linear.bias.copy_((raw_bias - reward_model.mean) / reward_model.deviation)
    return critic


def load_frozen(
    load: Callable[..., PreTrainedModel], source: str, dtype: torch.dtype | None
) -> PreTrainedModel:
    """Load a model that stays as it is, on the CPU and in 16 bits where that loses nothing.

    Lightning makes the GPU torch's default device while models are built. A model in float32 may
    not fit there that does once it is frozen.
    """
    device = torch.empty(0).device
    with torch.device("cpu"):
        model = load(source, keeps_halves=dtype is not None)
        freeze(model, dtype)
    moved: nn.Module = model
    moved.to(device)
    return model


def _load_trained(
    load: Callable[..., PreTrainedModel],
    source: str,
    lora: LoRAConfig | None,
    frozen_dtype: torch.dtype | None,
) -> nn.Module:
    """Load what trains: all weights that texts reach, or adapters on frozen ones."""
    model: nn.Module = (
        load(source, keeps_halves=True)
        if lora is None
        else apply_lora(load_frozen(load, source, frozen_dtype), lora)
    )
    freeze_unread(model)
    return model
