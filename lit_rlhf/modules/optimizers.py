"""AdamW and its learning-rate schedule, as every phase configures them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_rlhf.errors import ConfigError
from lit_rlhf.extras import require_extra
from lit_rlhf.modules.bf16_adamw import BF16AdamW
from lit_rlhf.ranges import require

States = Literal["float32", "bf16", "8bit"]
Weights = Literal["float32", "bf16"]
_STATES, _WEIGHTS = get_args(States), get_args(Weights)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and decay.

    Attributes:
        learning_rate: at its peak.
        weight_decay: decoupled, on matrices only.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root; 1e-5 is lm-human-preference-details' choice for PPO.
        schedule: what follows the warm-up: "linear" or "cosine" to zero, or "constant".
        warmup_fraction: share of all steps in which the rate rises linearly from zero.
        states: how the moments are stored: "float32", "bf16" (rounded at random) or "8bit"
            (torchao's).
        weights: how the trained weights, and their gradients, are stored: "float32", or "bf16"
            (rounded at random). Scalar heads and adapters stay float32.
        rounding_seed: of the random rounding.
    """

    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = 0.05
    states: States = "float32"
    weights: Weights = "float32"
    rounding_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse rates and shares outside their ranges, by name."""
        require("model.optimizer.learning_rate", self.learning_rate, above=0)
        require("model.optimizer.weight_decay", self.weight_decay, least=0)
        require("model.optimizer.beta1", self.beta1, least=0, below=1)
        require("model.optimizer.beta2", self.beta2, least=0, below=1)
        require("model.optimizer.eps", self.eps, above=0)
        require("model.optimizer.warmup_fraction", self.warmup_fraction, least=0, below=1)
        for name, choices in (("states", _STATES), ("weights", _WEIGHTS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"optimizer.{name} must be one of {', '.join(choices)}, "
                    f"got {getattr(self, name)!r}"
                )

    def build(
        self, parameters: Iterable[nn.Parameter], num_steps: int, *, has_scaler: bool = False
    ) -> tuple[Optimizer, LambdaLR]:
        """Make the optimizer and its schedule.

        Args:
            parameters: those without `requires_grad` are left out.
            num_steps: scheduler steps of the whole run.
            has_scaler: the run scales its gradients (16-mixed). Fused AdamW would undo that by
                itself, in the step, and Lightning refuses to clip what is still scaled.

        Returns:
            The optimizer and a scheduler to be stepped `num_steps` times.

        Raises:
            ConfigError: 8-bit states without torchao, or of sharded weights.
        """
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        matrices = [parameter for parameter in trainable if parameter.ndim > 1]
        others = [parameter for parameter in trainable if parameter.ndim <= 1]
        optimizer = self._build_optimizer(
            [
                {"params": matrices, "weight_decay": self.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            fused=not has_scaler,
        )
        return optimizer, LambdaLR(optimizer, lambda step: self.rate_factor(step, num_steps))

    def _build_optimizer(self, groups: list[dict[str, Any]], *, fused: bool) -> Optimizer:
        """Choose the class: torch's own wherever nothing is rounded."""
        betas = (self.beta1, self.beta2)
        rounded: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "betas": betas,
            "eps": self.eps,
            "seed": self.rounding_seed,
        }
        if self.states == "8bit":
            return _eight_bit(groups, **rounded)
        dtypes = {parameter.dtype for group in groups for parameter in group["params"]}
        if self.states == "bf16" or torch.bfloat16 in dtypes:
            moment_dtype = torch.bfloat16 if self.states == "bf16" else torch.float32
            return BF16AdamW(groups, moment_dtype=moment_dtype, **rounded)
        return AdamW(groups, lr=self.learning_rate, betas=betas, eps=self.eps, fused=fused)

    def rate_factor(self, step: int, num_steps: int) -> float:
        """Return the share of the peak rate at a step: 1 at the end of warm-up, 0 at the end."""
        num_warmup = math.ceil(self.warmup_fraction * num_steps)
        if step < num_warmup:
            return (step + 1) / (num_warmup + 1)
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
        if self.schedule == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress))


def _eight_bit(groups: list[dict[str, Any]], **numbers: Any) -> Optimizer:
    require_extra("torchao", "optimizer.states 8bit")
    from lit_rlhf.modules.eight_bit_adamw import EightBitAdamW  # noqa: PLC0415 - optional

    if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
        raise ConfigError(
            "optimizer.states 8bit cannot be spread by trainer.strategy fsdp2: choose bf16, or "
            "another strategy"
        )
    optimizer: Optimizer = EightBitAdamW(groups, **numbers)
    return optimizer
