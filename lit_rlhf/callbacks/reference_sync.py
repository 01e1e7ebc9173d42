"""Lets the reference of a preference loss follow the policy."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_rlhf.errors import ConfigError
from lit_rlhf.models.weights import spread_again
from lit_rlhf.ranges import require


@runtime_checkable
class HasReference(Protocol):
    """A module that trains a policy and may hold a frozen reference of the same architecture.

    Attributes:
        policy: the model that trains.
        reference: the one that does not, if it is held.
        reference_moves: it follows the policy, so that its weights belong to the checkpoint.
    """

    policy: nn.Module | None
    reference: nn.Module | None
    reference_moves: bool


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
        """Refuse a run in which there is no reference to move; let checkpoints keep it.

        Raises:
            ConfigError: the module holds no reference of its own.
        """
        self._models(pl_module)
        assert isinstance(pl_module, HasReference)
        pl_module.reference_moves = True

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Move the reference, if as many steps are done."""
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        policy, reference = self._models(pl_module)
        spread_again(pl_module)  # each process moves its share
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
