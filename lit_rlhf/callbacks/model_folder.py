"""Leaves what was trained as Hugging Face folders: `model/`, and `best/` of the best validation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_rlhf.callbacks.averaged_weights import AveragedWeights
from lit_rlhf.callbacks.of_trainer import callbacks_of
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models.handover import BEST_FOLDER, MODEL_FOLDER

Mode = Literal["max", "min"]
OF_PHASE = "auto"


@runtime_checkable
class SavesModel(Protocol):
    """A module that writes its model as a folder, see `PhaseModule`."""

    source: str
    lora: Any

    @property
    def origins(self) -> dict[str, str]:
        """The models that the run starts from."""

    @property
    def best_metric(self) -> str | None:
        """The metric by which the phase itself would keep a best model."""

    def save_pretrained(
        self, folder: str | Path, *, merge: bool = False, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write the model; called on all processes."""

    def load_saved(self, folder: str | Path) -> None:
        """Put back the weights of such a folder; called on all processes."""


class ModelFolder(Callback):
    """Writes the model at the end of training, and the best one by a validation metric.

    `model/` in the run's folder, beside `checkpoints/`, holds the weights that the run ends with:
    averaged ones where `AveragedWeights` has put them in place. `best/` is replaced at each
    validation of the training run whose metric is better than all before. The next phase,
    transformers, vLLM and TRL read both as they are.

    Every phase has one: on the command line the group `save_model`, in Python by itself.
    `--trainer.enable_checkpointing false` and `fast_dev_run` leave nothing.

    Args:
        monitor: name of the validation metric for `best/`; "auto" for the phase's own (PPO's
            `val/ppo/validation` where there is a judge `validation`, none in the other phases);
            null for none.
        mode: whether the metric's "max" or "min" is best.
        merge: write LoRA adapters merged into the model under them, rather than as peft does.

    Attributes:
        best_score: of `best/`, None before the first.

    Raises:
        ConfigError: `mode` is neither.
    """

    def __init__(
        self, monitor: str | None = OF_PHASE, mode: Mode = "max", merge: bool = False
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"save_model.mode is {mode!r}; expected max or min")
        self.monitor = monitor
        self.mode: Mode = mode
        self.merge = merge
        self.best_score: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run whose best weights would not be those that are validated.

        Raises:
            ConfigError: they would not.
        """
        is_averaged = bool(callbacks_of(trainer, AveragedWeights))
        if stage == "fit" and is_averaged and self.metric(pl_module):
            raise ConfigError(
                "save_model.monitor: with AveragedWeights the averaged weights are validated, and "
                "best/ would hold others; set save_model.monitor to null"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that would replace the model that it starts from.

        Raises:
            ConfigError: it would.
        """
        if not isinstance(pl_module, SavesModel):
            return
        folders = [self.folder(trainer, name).resolve() for name in (MODEL_FOLDER, BEST_FOLDER)]
        for role, source in pl_module.origins.items():
            if Path(source).expanduser().resolve() in folders:
                raise ConfigError(
                    f"{role}: {source} is in the folder of this run, which would replace it; "
                    "give the run another name (--trainer.logger.init_args.name), or copy the "
                    "folder elsewhere and start from the copy"
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `best/` where the metric is better than before.

        Raises:
            ConfigError: there is no such metric.
        """
        metric = self.metric(pl_module)
        if metric is None or trainer.state.fn != TrainerFn.FITTING or _is_dry(trainer):
            return
        if metric not in trainer.callback_metrics:
            known = ", ".join(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise ConfigError(f"save_model.monitor: no metric {metric}; there are: {known}")
        if trainer.sanity_checking:  # the model that the run starts from
            return
        score: float = trainer.strategy.broadcast(float(trainer.callback_metrics[metric]))
        if not self._is_better(score):
            return
        facts = {"step": trainer.global_step, metric: score}
        try:
            self._save(trainer, pl_module, BEST_FOLDER, facts)
        except CheckpointError as error:  # training goes on with the older one
            warnings.warn(str(error), stacklevel=2)
        else:
            self.best_score = score

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `model/`.

        Raises:
            CheckpointError: it could not be written; the run's own state is saved.
        """
        if _is_dry(trainer):
            return
        try:
            self._save(trainer, pl_module, MODEL_FOLDER, {"step": trainer.global_step})
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Training is complete: make room, and the same command with "
                "--ckpt_path last writes the model"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved score."""
        self.best_score = state_dict["best_score"]

    def metric(self, module: LightningModule) -> str | None:
        """Return the metric by which `best/` is kept; None for no `best/`."""
        if self.monitor != OF_PHASE:
            return self.monitor
        return module.best_metric if isinstance(module, SavesModel) else None

    @staticmethod
    def folder(trainer: Trainer, name: str) -> Path:
        """Return a folder of the run, once it has begun; call it on all processes."""
        log_dir = trainer.log_dir
        for callback in trainer.checkpoint_callbacks:
            path = getattr(callback, "dirpath", None)
            # A logger may keep the logs of all runs in one folder (Weights & Biases).
            if path is not None and Path(path).name == "checkpoints":
                return Path(path).with_name(name)
        return Path(log_dir or trainer.default_root_dir) / name

    def _is_better(self, score: float) -> bool:
        if math.isnan(score):
            return False
        if self.best_score is None:
            return True
        return score > self.best_score if self.mode == "max" else score < self.best_score

    def _save(
        self, trainer: Trainer, module: LightningModule, name: str, facts: Mapping[str, Any]
    ) -> None:
        if isinstance(module, SavesModel):
            module.save_pretrained(self.folder(trainer, name), merge=self.merge, facts=facts)


def _is_dry(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning sets it
