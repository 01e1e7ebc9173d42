"""Lets the reference of a preference loss follow the policy."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_rlhf.errors import ConfigError
from lit_rlhf.ranges import require

_KEY = "reference_sync"


@runtime_checkable
class HasReference(Protocol):
    """A module that trains a policy and may hold a frozen reference of the same architecture."""

    policy: nn.Module | None
    reference: nn.Module | None


class ReferenceSync(Callback):
    """Moves the reference towards the policy every so many optimizer steps.

    `reference = (1 - mix) * reference + mix * policy`, weight by weight. Source: Gorbatovski et al.
    2024 (TR-DPO): the soft update; `mix` 1 is the hard one. The reference travels with the
    checkpoint, so that a resumed run goes on with it.

    Args:
        every_n_steps: optimizer steps between two moves, at least 1; 512 as in TRL.
        mix: share of the policy, in (0, 1]; 0.6 as in TRL.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, every_n_steps: int = 512, mix: float = 0.6) -> None:
        require("ReferenceSync.every_n_steps", every_n_steps, least=1)
        require("ReferenceSync.mix", mix, above=0, most=1)
        self.every_n_steps = every_n_steps
        self.mix = mix
        self._last_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run in which there is no reference to move.

        Raises:
            ConfigError: the module holds no reference of its own, or it is sharded.
        """
        if getattr(pl_module, "device_mesh", None) is not None:
            raise ConfigError(
                "callbacks: ReferenceSync cannot save a reference that is sharded over processes; "
                "use trainer.strategy ddp"
            )
        self._models(pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Move the reference, if as many steps are done."""
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        policy, reference = self._models(pl_module)
        weights = dict(policy.named_parameters())
        for name, weight in reference.named_parameters():
            # In float32, since a frozen reference may be stored in bf16.
            weight.copy_(torch.lerp(weight.float(), weights[name].float(), self.mix))

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last move."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._last_step = state_dict["last_step"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the reference as it is."""
        checkpoint[_KEY] = self._models(pl_module)[1].state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the reference back."""
        if _KEY in checkpoint:
            self._models(pl_module)[1].load_state_dict(checkpoint[_KEY])

    def _models(self, pl_module: LightningModule) -> tuple[nn.Module, nn.Module]:
        policy = reference = None
        if isinstance(pl_module, HasReference):
            policy, reference = pl_module.policy, pl_module.reference
        if policy is None or reference is None:
            raise ConfigError(
                "callbacks: ReferenceSync moves the reference, so the run must hold one: in the "
                "phase dpo, by a loss that reads it, with model.reference_logprobs on_the_fly and "
                "without model.lora"
            )
        return policy, reference
