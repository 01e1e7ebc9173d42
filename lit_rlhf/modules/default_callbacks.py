"""The callbacks that every run has, from the command line and from Python alike."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)

from lit_rlhf.callbacks.averaged_weights import AveragedWeights
from lit_rlhf.callbacks.last_checkpoint import LastCheckpoint
from lit_rlhf.callbacks.model_folder import ModelFolder
from lit_rlhf.callbacks.of_trainer import callbacks_of
from lit_rlhf.callbacks.self_checks import SelfChecks
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.weights import note_changed_weights

# Callbacks of Lightning that would do something else than they promise, and what to do instead.
_REFUSED: dict[type[Callback], str] = {
    BaseFinetuning: "freezes layers before the model is loaded, and adds some to an optimizer "
    "whose schedule does not know them; take model.lora, or set requires_grad in the "
    "configure_model of a subclass",
    ModelPruning: "prunes before the model is loaded, and would leave masks in the model folder; "
    "prune the folder that the run leaves",
    GradientAccumulationScheduler: "changes the number of optimizer steps in an epoch, which the "
    "learning rate's schedule counts before; take trainer.accumulate_grad_batches, in ppo "
    "data.batch_size and model.update",
    StochasticWeightAveraging: "copies the module before its model is loaded, and would average "
    "nothing; take AveragedWeights of lit_rlhf.callbacks, whose average is SWA's",
    BatchSizeFinder: "changes data.batch_size, which is the number of examples in an optimizer "
    "step and changes what is learned; to fit into memory take trainer.accumulate_grad_batches, "
    "in ppo model.update.micro_batch_size, and data.eval_batch_tokens for validation",
    WeightAveraging: "averages a run's counters and may round frozen weights; take AveragedWeights "
    "of lit_rlhf.callbacks (exponential with decay: 0.999), or derive yours from it",
}
# Likewise, where a batch has not one loss: in ppo.
_REFUSED_WITHOUT_LOSS: dict[type[Callback], str] = {
    SpikeDetection: "reads the loss of a batch, and an iteration of ppo has several; self_checks "
    "watches the gradient's norm",
}


def missing_callbacks(trainer: Trainer, *, has_loss: bool = True) -> list[Callback]:
    """Return the callbacks of every run that a Trainer lacks, see `PhaseModule`.

    Args:
        trainer: of the run.
        has_loss: a batch has one loss, by which the Trainer takes a step.

    Raises:
        ConfigError: a callback would do something else than it promises.
    """
    refusals = _REFUSED if has_loss else _REFUSED | _REFUSED_WITHOUT_LOSS
    for refused, why in refusals.items():
        for callback in callbacks_of(trainer, refused):
            if not isinstance(callback, AveragedWeights):
                raise ConfigError(f"callbacks: {type(callback).__name__} {why}")
    for checkpoint in callbacks_of(trainer, ModelCheckpoint):
        _refuse_folders_of_metrics(checkpoint)
    for stopping in callbacks_of(trainer, EarlyStopping):
        _look_after_each_validation(stopping, trainer)
    if trainer.checkpoint_callback is None:  # it keeps nothing
        return []
    kinds = (SelfChecks, ModelFolder, LastCheckpoint)
    missing = [kind for kind in kinds if not callbacks_of(trainer, kind)]
    # Lightning would put `LastCheckpoint` in its place.
    if any(map(_is_set_by_user, callbacks_of(trainer, ModelCheckpoint))):
        missing = [kind for kind in missing if kind is not LastCheckpoint]
    return [kind() for kind in missing]


def tell_of_averages(trainer: Trainer) -> None:
    """Tell what samples that an average may have taken the place of the weights, or left it.

    Lightning writes it where torch does not count; packed weights and vLLM's would be stale.
    """
    if callbacks_of(trainer, AveragedWeights):
        note_changed_weights()


def refuse_unreachable_validation(trainer: Trainer) -> None:
    """Refuse an interval between validations that no epoch reaches, in the words of its data.

    Raises:
        ConfigError: there is none, or it is longer than an epoch.
    """
    interval = _interval(trainer)
    if interval == 0:
        raise ConfigError(
            "trainer.val_check_interval 0 is no interval: give a number of batches, or a share of "
            "an epoch such as 0.5; --trainer.limit_val_batches 0 switches validation off"
        )
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer
    counts_in_epoch = trainer.check_val_every_n_epoch is not None
    if not isinstance(data, TextDataModule) or not isinstance(interval, int) or not counts_in_epoch:
        return
    num_batches = len(data.train_dataloader())
    if interval > num_batches and trainer.limit_val_batches != 0:
        raise ConfigError(
            f"trainer.val_check_interval {interval} is more than the {num_batches} batches of an "
            "epoch (in ppo: iterations), so that nothing would be validated: give a smaller one, "
            "or set trainer.check_val_every_n_epoch to null to count on over epochs"
        )


def steps_by_time(trainer: Trainer, schedule: str) -> int:
    """Return the steps that the warm-up of a run is a share of whose end is a time: an epoch's.

    Raises:
        ConfigError: the run has no end, or its schedule leads to one that nobody knows.
    """
    if not callbacks_of(trainer, Timer):
        raise ConfigError(
            "trainer: max_epochs -1 has no end, but the learning rate's schedule needs one; "
            "set trainer.max_epochs or trainer.max_steps"
        )
    if schedule != "constant":
        raise ConfigError(
            "trainer.max_time alone says when the run ends, not after how many steps, to which "
            f"model.optimizer.schedule {schedule} leads: set it to constant, or set "
            "trainer.max_epochs or trainer.max_steps, too (what comes first ends the run)"
        )
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer
    num_batches = len(data.train_dataloader()) if isinstance(data, TextDataModule) else 1
    return max(1, num_batches // trainer.accumulate_grad_batches)


def _refuse_folders_of_metrics(callback: ModelCheckpoint) -> None:
    """Refuse a file name that the names of its metrics would make folders of."""
    metrics = re.findall(r"\{([^}:]*/[^}:]*)", callback.filename or "")
    if metrics and callback.auto_insert_metric_name:
        short = metrics[0].rpartition("/")[2]
        raise ConfigError(
            f"callbacks: ModelCheckpoint.filename would make folders of the name {metrics[0]}: set "
            f"auto_insert_metric_name to false, and write {short}={{{metrics[0]}}}"
        )


def _look_after_each_validation(callback: EarlyStopping, trainer: Trainer) -> None:
    """Let a callback stop within an epoch that is validated after every batch.

    Lightning takes the 1 of "every batch" for the 1.0 of "once an epoch", and would look at the end
    of the epoch alone: of PPO's only one, at the end of the run.
    """
    interval = _interval(trainer)
    if isinstance(interval, int) and interval == 1:
        # Let it decide now, as for a share of an epoch; what it was told stays.
        shares = SimpleNamespace(val_check_interval=0.5, check_val_every_n_epoch=1)
        EarlyStopping.setup(callback, cast("Trainer", shares), trainer.lightning_module, "fit")


def _interval(trainer: Trainer) -> int | float | None:
    """Return what `val_check_interval` counts in batches, or None where it is a time."""
    return getattr(trainer, "val_check_interval", None)


def _is_set_by_user(callback: Callback) -> bool:
    """Tell whether this is a ModelCheckpoint that is not the one of every Trainer."""
    if type(callback) is not ModelCheckpoint:
        return False
    settings = (callback.dirpath, callback.filename, callback.save_last, callback.save_top_k)
    return settings != (None, None, None, 1) or callback.state_key != ModelCheckpoint().state_key
