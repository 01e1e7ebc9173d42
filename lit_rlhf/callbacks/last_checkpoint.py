"""The state that a killed run goes on from: `last.ckpt`, from which `--ckpt_path last` resumes.

Exactness rests on *when* it is saved. Lightning logs a batch's metrics, and validates, after the
hook in which checkpoints are commonly written: what had not happened yet would be missing from the
resumed run. So a state is saved after a batch together with the row that is about to be logged;
after the validation, where one is due; after the last batch of an epoch at the epoch's end, when
all other checkpoints of that epoch are written.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lit_rlhf.callbacks.preemption import SigtermWatch
from lit_rlhf.callbacks.run_state import (
    any_rank,
    is_run_done,
    metrics_files,
    next_row,
    refuse_unwritable,
)
from lit_rlhf.checkpoints import LAST_NAME, link_checkpoint
from lit_rlhf.errors import ConfigError, Preempted

_VALIDATION_PROGRESS = "epoch_loop.val_loop.batch_progress"


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` from time to time, at the end of the run, and on SIGTERM.

    The one before it is kept as `last-previous.ckpt`, and `AtomicCheckpointIO` falls back on it.

    On SIGTERM the batch is finished and saved; a rollout or a validation that is under way on one
    process is left, and the state before it is saved. The process ends with `Preempted.STATUS`.

    Every phase of the command line has one, set by `--last_checkpoint`. In Python, put it behind
    all other callbacks.

    Args:
        every_n_minutes: save this long after the last time, null for never.
        every_n_batches: save after so many training batches, null for never.
        dirpath: the folder, null for `checkpoints` in the run's folder.
        grace_s: seconds after SIGTERM until the process ends, saved or not.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        every_n_minutes: float | None = 10.0,
        every_n_batches: int | None = None,
        dirpath: str | None = None,
        grace_s: float = 25.0,
    ) -> None:
        super().__init__(dirpath, save_top_k=0)  # nothing by Lightning's own rules
        for name, value in [
            ("every_n_minutes", every_n_minutes),
            ("every_n_batches", every_n_batches),
            ("grace_s", grace_s),
        ]:
            if value is not None and value <= 0:
                raise ConfigError(f"last_checkpoint.{name} is {value}; expected more than 0")
        self.every_n_minutes = every_n_minutes
        self.every_n_batches = every_n_batches
        self._watch = SigtermWatch(grace_s, self._leave_at_once, self._last_words)
        self._trainer: Trainer | None = None
        self._resumed: dict[str, Any] = {}
        # Of the last state that was consistent: what has moved on since, apart from the weights.
        self._held: dict[str, Any] | None = None
        self._weights_are_held = False  # no optimizer has stepped since
        self._saves_held = False
        self._is_validating = False
        self._is_due = False
        self._num_batches = 0
        self._saved_at = time.monotonic()
        self._batch_ended_at = 0.0

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints; the settings may change between a run's parts."""
        return type(self).__name__

    @property
    def path(self) -> Path:
        """Where the newest state is saved."""
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{LAST_NAME}.ckpt"

    # Before and after ----------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and see that it can be written to.

        Raises:
            ConfigError: it cannot.
        """
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if stage != "fit":
            for file in metrics_files(trainer):
                file.resume()  # what is measured goes behind what was trained
            return
        refuse_unwritable(self.path.parent)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the log behind the checkpoint's rows; listen to SIGTERM from now on."""
        self._saved_at = time.monotonic()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._watch.install()
        if trainer.ckpt_path is None and self.path.exists():
            rank_zero_info(
                f"{self.path} is of an earlier run and will be replaced; to go on with that run: "
                "--ckpt_path last"
            )
        if trainer.is_global_zero and self._resumed:
            for file in metrics_files(trainer):
                file.resume(self._resumed["num_rows"], self._resumed["next_row"])

    def state_dict(self) -> dict[str, Any]:
        """Return the rows logged so far, and the one that comes next."""
        assert self._trainer is not None
        files = metrics_files(self._trainer)
        return {
            "num_rows": files[0].num_rows if files else 0,
            "next_row": next_row(self._trainer),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the rows for when training starts."""
        self._resumed = state_dict

    # When a state is consistent ------------------------------------------------------------

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """The weights are about to leave the last consistent state."""
        self._weights_are_held = False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Save, unless a validation or the epoch's end comes first."""
        self._num_batches += 1
        self._batch_ended_at = time.time()
        fit_loop = trainer.fit_loop
        if pl_module.automatic_optimization and fit_loop._should_accumulate():
            return  # gradients that wait for the next batch are in no checkpoint
        epoch_loop = fit_loop.epoch_loop
        fetcher = fit_loop._data_fetcher
        assert fetcher is not None
        if epoch_loop._is_training_done or epoch_loop._should_check_val_fx(fetcher):
            return
        self._save_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A state from here on has the whole validation before it."""
        self._is_validating = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self._is_validating:
            # Of a resumed run: the batch that `on_save_checkpoint` says was begun is no more.
            total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
            assert isinstance(total, _ProcessedTracker)
            total.ready = total.started = total.processed

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave on SIGTERM: the resumed run validates from the beginning."""
        if self._is_validating and any_rank(trainer, self._watch.has_fired):
            self._save_and_leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if this was due after the batch, unless the epoch ends."""
        is_fitting, self._is_validating = self._is_validating, False
        if is_fitting and not trainer.fit_loop.epoch_loop._is_training_done:
            self._save_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the run, or if this is due; all other checkpoints are written."""
        is_done = is_run_done(trainer)
        self._is_due |= is_done
        self._save_if_asked(trainer, may_leave=not is_done)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save a validation as begun and not ended, or put back what moved on with a rollout."""
        if self._saves_held and self._held is not None:
            checkpoint.update(copy.deepcopy(self._held["state"]))
            checkpoint["callbacks"][self.state_key] = self._held["own"]
        elif self._is_validating:
            progress = checkpoint["loops"]["fit_loop"][_VALIDATION_PROGRESS]
            num_ended = progress["total"]["completed"] - progress["current"]["completed"]
            for name in ("total", "current"):
                ended = num_ended if name == "total" else 0
                begun = ended + (1 if name == "total" else 0)
                progress[name].update(ready=begun, started=begun, processed=ended, completed=ended)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save the state before the rollout that SIGTERM interrupted; errors save nothing."""
        self._watch.stand_down()
        if not isinstance(exception, Preempted) or not self._saves_held:
            return
        if self._held is None:
            exception.message = f"{exception.message}; {self._last_words()}"
            return
        self._save(trainer)
        exception.message = self._farewell(trainer)

    # Saving --------------------------------------------------------------------------------

    def _save_if_asked(self, trainer: Trainer, *, may_leave: bool = True) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        has_fired = any_rank(trainer, self._watch.has_fired)
        if has_fired and may_leave:
            self._save_and_leave(trainer)
        if any_rank(trainer, self._is_due or self._is_time()):
            self._save(trainer)
        self._hold(trainer)

    def _is_time(self) -> bool:
        minutes, batches = self.every_n_minutes, self.every_n_batches
        if batches is not None and self._num_batches >= batches:
            return True
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _save(self, trainer: Trainer) -> None:
        for file in metrics_files(trainer) if trainer.is_global_zero else []:
            file.sync()
        if not self._link(trainer):
            trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()
        self._num_batches = 0
        self._is_due = False

    def _link(self, trainer: Trainer) -> bool:
        """Take over what another callback has written since this batch, if it is the same state."""
        progress = trainer.fit_loop.epoch_progress.current
        assert isinstance(progress, _ProcessedTracker)
        if trainer.training and progress.processed == progress.started:
            written = [
                Path(other._last_checkpoint_saved)
                for other in trainer.checkpoint_callbacks
                if isinstance(other, ModelCheckpoint)
                and other is not self
                and not other.save_weights_only
                and other._last_global_step_saved == trainer.global_step
            ]
            is_linked = trainer.is_global_zero and any(map(self._try_link, written))
            return any_rank(trainer, is_linked)
        return False

    def _try_link(self, written: Path) -> bool:
        try:
            # After a write that failed, an older content stands there.
            if not written.is_file() or written.stat().st_mtime < self._batch_ended_at:
                return False
            link_checkpoint(written, self.path)
        except OSError:
            return False  # no hard links here, or no room: then it is written, or reported
        return True

    # SIGTERM -------------------------------------------------------------------------------

    def _hold(self, trainer: Trainer) -> None:
        """Remember this state, apart from the weights, which stay until an optimizer steps."""
        connector = trainer._checkpoint_connector
        data = trainer.datamodule  # type: ignore[attr-defined]
        state: dict[str, Any] = {"loops": copy.deepcopy(connector._get_loops_state_dict())}
        if data is not None and (data_state := data.state_dict()):
            state[type(data).__qualname__] = copy.deepcopy(data_state)
        self._held = {"state": state, "own": self.state_dict()}
        self._weights_are_held = True

    def _leave_at_once(self) -> None:
        trainer = self._trainer
        # Other ranks are elsewhere: with several, the batch is finished.
        if trainer is None or trainer.world_size > 1 or self._is_validating:
            return
        if self._weights_are_held or self._held is None:
            self._saves_held = True
            raise Preempted("SIGTERM")

    def _save_and_leave(self, trainer: Trainer) -> None:
        self._watch.stand_down()
        self._save(trainer)
        raise Preempted(self._farewell(trainer), Preempted.STATUS if trainer.is_global_zero else 0)

    def _farewell(self, trainer: Trainer) -> str:
        return (
            f"SIGTERM: saved {self.path} at step {trainer.global_step}; go on with the same "
            "command and --ckpt_path last"
        )

    def _last_words(self) -> str:
        if self.path.exists():
            age = time.time() - self.path.stat().st_mtime
            return (
                f"SIGTERM: the batch did not end in time. What was trained in the last {age:.0f} s "
                f"is not saved; {self.path} is: go on with the same command and --ckpt_path last"
            )
        return "SIGTERM: ended before there was anything to save"
