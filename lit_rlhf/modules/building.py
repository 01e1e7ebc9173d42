"""Turning a source (hub name or folder) into the model of a phase."""

from __future__ import annotations

import torch
from torch import nn

from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import LoRAConfig, apply_lora, freeze
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
    """Load a policy that trains: all of its weights, or adapters on frozen ones."""
    model: nn.Module = load_causal_lm(source)
    if lora is not None:
        model = apply_lora(freeze(model, frozen_dtype), lora)  # type: ignore[arg-type]  # same model
    return PolicyModel(model, value_head=value_head, packing_width=packing_width).train()


def build_reference(
    source: str, *, frozen_dtype: torch.dtype | None, packing_width: int | None
) -> PolicyModel:
    """Load a frozen copy of a policy."""
    model = freeze(load_causal_lm(source), frozen_dtype)
    return PolicyModel(model, packing_width=packing_width).eval()


def build_reward_model(
    source: str,
    lora: LoRAConfig | None,
    *,
    frozen_dtype: torch.dtype | None,
    packing_width: int | None,
) -> ScalarModel:
    """Put a fresh scalar head on the trunk of a policy."""
    trunk: nn.Module = load_trunk(source)
    if lora is not None:
        trunk = apply_lora(freeze(trunk, frozen_dtype), lora)  # type: ignore[arg-type]  # same model
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
    critic = ScalarModel(reward_model.backbone, packing_width=packing_width, bias=True).train()
    with torch.no_grad():
        critic.head.linear.weight.copy_(reward_model.head.linear.weight / reward_model.deviation)
        bias = reward_model.head.linear.bias
        raw_bias = 0.0 if bias is None else bias
        critic.head.linear.bias.copy_((raw_bias - reward_model.mean) / reward_model.deviation)
    return critic
