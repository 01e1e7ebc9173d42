"""AdamW and its learning-rate schedule, as every phase configures them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lit_rlhf.errors import ConfigError


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
    """

    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = 0.05

    def __post_init__(self) -> None:
        """Refuse rates and shares outside their ranges, by name."""
        if not self.learning_rate > 0:
            raise ConfigError(f"optimizer.learning_rate must be > 0, got {self.learning_rate}")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(
                f"optimizer.warmup_fraction must be in [0, 1), got {self.warmup_fraction}"
            )

    def build(self, parameters: Iterable[nn.Parameter], num_steps: int) -> tuple[AdamW, LambdaLR]:
        """Make the optimizer and its schedule.

        Args:
            parameters: those without `requires_grad` are left out.
            num_steps: scheduler steps of the whole run.

        Returns:
            The optimizer (fused where torch has it) and a scheduler to be stepped `num_steps`
            times.
        """
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        matrices = [parameter for parameter in trainable if parameter.ndim > 1]
        others = [parameter for parameter in trainable if parameter.ndim <= 1]
        optimizer = AdamW(
            [
                {"params": matrices, "weight_decay": self.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=True,
        )
        # Fused AdamW can undo a gradient scaler's scaling by itself, and Lightning then refuses to
        # clip. Without the offer the scaler undoes it before the step (bf16 has none at all).
        optimizer._step_supports_amp_scaling = False
        return optimizer, LambdaLR(optimizer, lambda step: self.rate_factor(step, num_steps))

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
