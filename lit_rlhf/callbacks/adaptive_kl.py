"""Steers the KL penalty of PPO: owns the controller's state and sets the module's coefficient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.kl_control import AdaptiveKL, KLController, KLState


@runtime_checkable
class HasKLCoefficient(Protocol):
    """A module whose rewards are penalised by `kl_coef` times the KL to the reference."""

    kl_coef: float | None


class AdaptiveKLCallback(Callback):
    """Sets `kl_coef` at the start and after every batch of rollouts, as the controller says.

    The module's `training_step` returns a mapping with `kl` (nats a response, averaged over the
    responses of all ranks) and `num_episodes` (responses over all ranks); every rank computes the
    same coefficient from them. Logged as `train/ppo/kl_coef`: the coefficient that the batch was
    penalised with, so that it stands beside the KL of the same batch.

    Args:
        controller: `AdaptiveKL` (proportional, Ziegler et al. 2019) or `FixedKL`, in YAML by
            `class_path`.
    """

    def __init__(self, controller: KLController = AdaptiveKL()) -> None:
        self.controller = controller
        self.state = controller.initial_state()
        self._target_factor = 1.0  # of all tightenings

    def check_target(self) -> None:
        """Refuse a controller that has no target.

        Raises:
            ConfigError: it is not `AdaptiveKL`.
        """
        if not isinstance(self.controller, AdaptiveKL):
            raise ConfigError(
                f"callbacks: {type(self.controller).__name__} has no KL target to tighten; give "
                "AdaptiveKLCallback the controller AdaptiveKL"
            )

    def tighten(self, factor: float) -> None:
        """Multiply the target by a factor from now on, also after a resume.

        Args:
            factor: in (0, 1).

        Raises:
            ConfigError: the controller has no target.
        """
        self.check_target()
        self._target_factor *= factor

    @property
    def _tightened(self) -> KLController:
        if self._target_factor == 1.0 or not isinstance(self.controller, AdaptiveKL):
            return self.controller
        target = self.controller.target * self._target_factor
        return dataclasses.replace(self.controller, target=target)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module without a KL penalty; hand the coefficient to one that has it.

        Raises:
            ConfigError: if the module has no `kl_coef`.
        """
        if not isinstance(pl_module, HasKLCoefficient):
            raise ConfigError(
                f"callbacks: AdaptiveKLCallback sets `kl_coef`, but {type(pl_module).__name__} has "
                "none; use it with PPOModule only, and remove it from this phase's configuration"
            )
        if pl_module.kl_coef is None:
            raise ConfigError(
                "model.kl_coef null: there is no KL penalty for AdaptiveKLCallback to control; "
                "remove the callback, or set model.kl_coef to a number"
            )
        self._apply(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply a restored state: sharded strategies load checkpoints after `on_fit_start`."""
        self._apply(pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,  # a mapping, as the class says; Lightning allows tensors and None, too
        batch: object,
        batch_idx: int,
    ) -> None:
        """Update the coefficient from the KL of the batch that has just been trained on.

        Raises:
            ConfigError: if `training_step` did not return the KL and the number of episodes.
        """
        if not isinstance(outputs, Mapping) or not {"kl", "num_episodes"} <= outputs.keys():
            raise ConfigError(
                f"callbacks: AdaptiveKLCallback needs `kl` and `num_episodes` from the mapping "
                f"that {type(pl_module).__name__}.training_step returns"
            )
        pl_module.log("train/ppo/kl_coef", self.state.coefficient)
        kl, num_episodes = float(outputs["kl"]), int(outputs["num_episodes"])
        if math.isfinite(kl):  # else the iteration was skipped, and the policy has not moved
            self.state = self._tightened.update(self.state, kl, num_episodes)
            self._apply(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state in plain types, as checkpoints need them."""
        return {
            "coefficient": float(self.state.coefficient),
            "num_updates": self.state.num_updates,
            "target_factor": self._target_factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.state = KLState(state_dict["coefficient"], state_dict["num_updates"])
        # Checkpoints of older versions have none: nothing tightened them.
        self._target_factor = state_dict.get("target_factor", 1.0)

    def _apply(self, pl_module: LightningModule) -> None:
        cast("HasKLCoefficient", pl_module).kl_coef = self.state.coefficient
