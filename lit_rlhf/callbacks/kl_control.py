"""Steers the KL penalty of PPO: owns the coefficient, and hands it to the module."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import KLPenalty
from lit_rlhf.objectives.kl_control import AdaptiveKL, FixedKL, KLController

_DEFAULT = AdaptiveKL()


@runtime_checkable
class HasKLPenalty(Protocol):
    """A module whose rewards or loss are charged `kl_coef` times the KL, if a KL at all."""

    kl_penalty: KLPenalty | None
    kl_coef: float


class KLControl(Callback):
    """Raises the KL coefficient when the KL drifts above its target, and lowers it below.

    The proportional controller of Ziegler et al. 2019 with the defaults of OpenAI's code, see
    `AdaptiveKL`. It sets the module's `kl_coef` before training and after every batch of rollouts,
    and does nothing for a module whose `kl_penalty` is None.

    The module's `training_step` returns a mapping with `kl` (nats a response, averaged over the
    responses of all ranks) and `num_episodes` (responses over all ranks). Every rank computes the
    same coefficient from them. `train/ppo/kl_coef` is the coefficient that the batch was penalised
    with, so that it belongs to the KL of the same batch.

    Args:
        target: nats a response; null for a coefficient that stays as it is.
        coefficient: the first one, score per nat; with `target` null the only one.
        horizon: responses over which a full error changes the coefficient by its own size.
        controller: one by `class_path`, such as your own, in place of these three numbers.

    Raises:
        ConfigError: a number is out of its range, or would have no effect.
    """

    def __init__(
        self,
        target: float | None = _DEFAULT.target,
        coefficient: float = _DEFAULT.initial,
        horizon: float = _DEFAULT.horizon,
        controller: KLController | None = None,
    ) -> None:
        defaults = (_DEFAULT.initial, _DEFAULT.target, _DEFAULT.horizon)
        if controller is not None and (coefficient, target, horizon) != defaults:
            raise ConfigError(
                "kl: target, coefficient and horizon have no effect beside kl.controller, which "
                "has its own: leave them out"
            )
        if target is None and horizon != _DEFAULT.horizon:
            raise ConfigError(
                f"kl.horizon={horizon} has no effect with kl.target null, where the coefficient "
                "stays as it is: leave it out, or set a target"
            )
        if controller is None and target is None:
            controller = FixedKL(coefficient)
        self.controller = controller or AdaptiveKL(coefficient, cast("float", target), horizon)
        self.state = self.controller.initial_state()
        self._target_factor = 1.0  # of all tightenings

    def check_target(self) -> None:
        """Refuse a controller that has no target.

        Raises:
            ConfigError: it is not `AdaptiveKL`.
        """
        if not isinstance(self.controller, AdaptiveKL):
            raise ConfigError(
                f"kl: {type(self.controller).__name__} has no KL target to tighten; set kl.target "
                "to a number, or choose another monitor.action"
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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the coefficient to the module.

        Raises:
            ConfigError: the module has no KL penalty to control, or none with these settings.
        """
        if not isinstance(pl_module, HasKLPenalty):
            raise ConfigError(
                f"callbacks: KLControl sets `kl_coef`, but {type(pl_module).__name__} has none; "
                "use it with PPOModule only, and remove it from this phase's configuration"
            )
        if not pl_module.kl_penalty and self.controller != _DEFAULT:
            raise ConfigError(
                "kl: its settings have no effect with model.kl_penalty null, which charges no KL: "
                "leave them out, or model.kl_penalty as it is"
            )
        self._apply(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply a restored state: sharded strategies load checkpoints after `on_fit_start`."""
        self._apply(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, *_: object
    ) -> None:
        """Update the coefficient from the KL of the batch that has just been trained on.

        Raises:
            ConfigError: if `training_step` did not return the KL and the number of episodes.
        """
        if not cast("HasKLPenalty", pl_module).kl_penalty:
            return
        if not isinstance(outputs, Mapping) or not {"kl", "num_episodes"} <= outputs.keys():
            raise ConfigError(
                f"callbacks: KLControl needs `kl` and `num_episodes` from the mapping that "
                f"{type(pl_module).__name__}.training_step returns"
            )
        pl_module.log("train/ppo/kl_coef", self.state.coefficient)
        kl, num_episodes = float(outputs["kl"]), int(outputs["num_episodes"])
        if math.isfinite(kl):  # else the iteration was skipped, and the policy has not moved
            self.state = self._tightened.update(self.state, kl, num_episodes)
            self._apply(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the controller's state in plain types, as checkpoints need them."""
        return {
            **self.state._asdict(),
            "coefficient": float(self.state.coefficient),
            "target_factor": self._target_factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        saved = {name: state_dict[name] for name in self.state._fields if name in state_dict}
        self.state = self.state._replace(**saved)
        self._target_factor = state_dict["target_factor"]

    @property
    def _tightened(self) -> KLController:
        if self._target_factor == 1.0 or not isinstance(self.controller, AdaptiveKL):
            return self.controller
        target = self.controller.target * self._target_factor
        return dataclasses.replace(self.controller, target=target)

    def _apply(self, pl_module: LightningModule) -> None:
        cast("HasKLPenalty", pl_module).kl_coef = self.state.coefficient
