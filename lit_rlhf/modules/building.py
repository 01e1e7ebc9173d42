"""Turning a source (hub name or folder) into the model of a phase, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import LoRAConfig, apply_lora
from lit_rlhf.models.fast_paths import switch_cpu_paths, take_fast_paths
from lit_rlhf.models.freezing import freeze, freeze_unread, hold_in_bf16, hold_in_float32
from lit_rlhf.models.handover import (
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    load_trunk,
    require_fitting_tokenizer,
)
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.activation_checkpointing import checkpoint_activations
from lit_rlhf.modules.sharding import shard

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule


# Methods beside `forward` that compute with a model's weights.
_FORWARD_METHODS = ("next_logits", "token_values")


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
    source: str, *, frozen_dtype: torch.dtype | None, packing_width: int | None = DEFAULT_WIDTH
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


def prepare(module: PhaseModule, model: PolicyModel | ScalarModel) -> None:
    """Store and run a model as the memory options say; spread it where that is the strategy.

    Args:
        module: has the options.
        model: which is trained, or computes beside it; changed in place.

    Raises:
        ConfigError: weights in bf16 with another precision of the computation; or a precision
            that rounds all weights, and the losses with them, or is finer than float32.
        CheckpointError: the tokenizer has tokens that the model does not know.
    """
    require_fitting_tokenizer(module.tokenizer, model.transformers_config, module.source)
    if module.precision in ("bf16-true", "16-true"):
        raise ConfigError(
            f"trainer.precision {module.precision} computes losses and log-probabilities in 16 "
            "bits, and most updates round to nothing: take bf16-mixed, and "
            "model.optimizer.weights bf16 if memory is short"
        )
    if module.precision == "64-true":
        raise ConfigError(
            "trainer.precision 64-true: weights that train, scores and samples are float32; "
            "take 32-true"
        )
    will_be_sharded = module.device_mesh is not None
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    in_float32 = bool(names) and not any("lora_" in name for name in names)
    if module.optimizer.weights == "bf16":
        _hold_in_bf16(module, model)
        in_float32 = False
    elif in_float32 and not will_be_sharded:
        hold_in_float32(model)
    switch_cpu_paths(module.cpu_paths)
    take_fast_paths(model, module.root_device, will_be_sharded=will_be_sharded)
    if module.activation_checkpointing and names:
        checkpoint_activations(model)
    if will_be_sharded:
        methods = [name for name in _FORWARD_METHODS if hasattr(model, name)]
        shard(
            model,
            module.root_device,
            forward_methods=methods,
            layer_dtype=module.frozen_dtype,
            in_float32=in_float32,
        )


def _hold_in_bf16(module: PhaseModule, model: PolicyModel | ScalarModel) -> None:
    if module.precision != "bf16-mixed":
        raise ConfigError(
            "model.optimizer.weights bf16 needs trainer.precision bf16-mixed, which computes "
            f"what must be float32 in float32; got {module.precision}"
        )
    hold_in_bf16(model.model if isinstance(model, PolicyModel) else model.backbone)


def tokenizer_beside(data: object, source: str, option: str) -> PreTrainedTokenizerBase:
    """Return the data module's tokenizer where it is the model's, or was given; else load it.

    Args:
        data: the Trainer's data module, of any kind, or None.
        source: of the model's tokenizer; "" where the model says nothing of it.
        option: that names the model, for messages.

    Raises:
        ConfigError: there is none, or the data have another one's token ids.
        CheckpointError: it cannot be loaded.
    """
    ours = data if isinstance(data, TextDataModule) else None
    if ours is not None and ours.shares_tokenizer(source):
        return ours.tokenizer
    if not source:
        raise ConfigError(
            f"{option}: the model says nothing of its tokenizer; give one to the data module, or "
            "set the module's `tokenizer`"
        )
    tokenizer = load_tokenizer(source)
    if ours is not None and ours.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"data.tokenizer {ours.tokenizer_source} writes other token ids than that of {option}, "
            f"{source}: give both the same"
        )
    return tokenizer


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
