"""The state that a killed run goes on from: `last.ckpt`, from which `--ckpt_path last` resumes.

Exactness rests on *when* it is saved: as the next batch begins. By then the batch before has
logged its row and was validated, so nothing of it is missing. Only the loops and the loader have
moved on to the next batch; their place is noted where Lightning itself knows how to resume from,
at the end of a batch or of an epoch.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from filelock import BaseFileLock, FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.callbacks.csv_logger import MetricsFile, ResumableCSVLogger
from lit_rlhf.errors import ConfigError, Preempted, RewardError
from lit_rlhf.ranges import require
from lit_rlhf.ranks import any_rank

_LOCK = ".lock"  # in the folder of checkpoints, while a run writes there
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_AGAIN_S = 2.0  # a second Ctrl+C so long after the first is meant; launchers repeat it at once


class SignalWatch:
    """Notes the first signal that asks the process to end.

    Lightning's own handler of SIGTERM talks to the other ranks from within the signal, where they
    may be in the middle of something else; this one talks to nobody.

    Attributes:
        received: the signal, None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str:
        """The signal's name; where only another rank received it, what it most likely is."""
        return (self.received or signal.SIGTERM).name

    @property
    def status(self) -> int:
        """The exit status of a process that the signal ended."""
        return 128 + (self.received or signal.SIGTERM)

    def install(self) -> None:
        """Listen, in the main thread; a signal that somebody ignores or handles is left alone.

        Those are SIGHUP under `nohup` and SIGUSR1 under Slurm's requeueing. SIGTERM is taken from
        Lightning.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        for number in _SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) in defaults:
                self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give the signals back to who had them."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
            os.write(2, f"lit-rlhf: {self.name}: this batch is finished and saved\n".encode())
        elif number == self.received == signal.SIGINT and now - self._received_at > _AGAIN_S:
            raise KeyboardInterrupt


@runtime_checkable
class WritesBehind(Protocol):
    """A strategy whose checkpoints are written while training goes on."""

    def finish_writing(self) -> None:
        """Wait until the newest is written."""


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` from time to time, at the end of the run, and when asked to end.

    On SIGTERM (and SIGINT, SIGHUP, SIGUSR1) the batch is finished and saved, and the process ends
    with 128 plus the signal's number: 143 for SIGTERM.

    Every phase of the command line has one, set by `--last_checkpoint`.

    Args:
        every_n_minutes: save this long after the last time, null for never.
        every_n_batches: save after so many training batches, null for never.
        dirpath: the folder, null for `checkpoints` in the run's folder.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        every_n_minutes: float | None = 10.0,
        every_n_batches: int | None = None,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(dirpath, save_top_k=0)  # nothing by Lightning's own rules
        require("last_checkpoint.every_n_minutes", every_n_minutes, above=0, is_optional=True)
        require("last_checkpoint.every_n_batches", every_n_batches, least=1, is_optional=True)
        self.every_n_minutes = every_n_minutes
        self.every_n_batches = every_n_batches
        self._watch = SignalWatch()
        self._lock: BaseFileLock | None = None
        self._file: MetricsFile | None = None
        self._num_rows: int | None = None  # logged before the checkpoint that is resumed
        self._place: dict[str, Any] | None = None  # of loops and data, behind the last batch
        self._is_saving = False
        self._num_batches = 0
        self._saved_at = time.monotonic()

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints; the settings may change between a run's parts."""
        return type(self).__name__

    @property
    def path(self) -> Path:
        """Where the newest state is saved."""
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and see that it can be written to.

        Raises:
            ConfigError: it cannot.
        """
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        loggers = [one for one in trainer.loggers if isinstance(one, ResumableCSVLogger)]
        self._file = loggers[0].experiment if loggers else None
        if stage == "fit":
            _refuse_unwritable(self.path.parent)
            self._lock_folder()
        elif self._file is not None:
            self._file.resume()  # what is measured goes behind what was trained

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the log behind the checkpoint's rows; listen to signals from now on."""
        self._saved_at = time.monotonic()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._watch.install()
        if trainer.ckpt_path is None and self.path.exists():
            rank_zero_info(
                f"{self.path} is of an earlier run and will be replaced; to go on with that run: "
                "--ckpt_path last"
            )
        if self._file is not None and self._num_rows is not None:
            self._file.resume(self._num_rows)

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows were logged so far."""
        return {"num_rows": 0 if self._file is None else self._file.num_rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the number of rows for when training starts."""
        self._num_rows = state_dict["num_rows"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Save what the batch before left, if this is due; end, if that was asked for.

        Raises:
            Preempted: a signal asked the run to end, and the state is saved.
        """
        # Gradients that wait for the next batch are in no checkpoint.
        is_accumulating = batch_idx % trainer.accumulate_grad_batches != 0
        # Of a run that counts steps, Lightning would end the last epoch a second time.
        is_between_epochs = batch_idx == 0 and trainer.max_steps != -1
        if self._place is None or is_accumulating or is_between_epochs:
            return
        if not any_rank(self._watch.received is not None or self._is_time(), pl_module.device):
            return
        self._save(trainer)
        if any_rank(self._watch.received is not None, pl_module.device):
            raise Preempted(
                f"{self._watch.name}: saved {self.path} at step {trainer.global_step}; go on with "
                "the same command and --ckpt_path last",
                self._watch.status if trainer.is_global_zero else 0,
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Note the place behind this batch."""
        self._num_batches += 1
        self._note_place(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the place between two epochs."""
        self._note_place(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run."""
        if self._place is not None:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the place behind the last batch into our checkpoint."""
        if self._is_saving and self._place is not None:
            checkpoint["loops"]["fit_loop"] = self._place["fit_loop"]
            checkpoint.update(self._place["data"])

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what a reward that failed left as it was; give the signals back.

        A reward is asked before weights move, so the state is still that behind the last batch. A
        validation that it broke off is not repeated.
        """
        if isinstance(exception, RewardError) and self._place is not None:
            self._save(trainer)
            rank_zero_info(
                f"saved {self.path} at step {trainer.global_step}: mend the reward, and go on with "
                "the same command and --ckpt_path last"
            )
        self._release(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back, and the folder free."""
        self._release(trainer)

    def _release(self, trainer: Trainer) -> None:
        try:
            if isinstance(trainer.strategy, WritesBehind):
                trainer.strategy.finish_writing()
        finally:
            self._watch.restore()
            self._unlock_folder()

    def _lock_folder(self) -> None:
        """Keep the run's folder to this run until it ends, or its process does.

        Raises:
            ConfigError: another run has it.
        """
        self._unlock_folder()  # of an earlier `fit` that was broken off
        lock = FileLock(self.path.parent / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"{self.path.parent.parent}: another run is writing there: wait until it ends, or "
                "give this one another folder (--trainer.logger.init_args.name)"
            ) from error
        self._lock = lock

    def _unlock_folder(self) -> None:
        if self._lock is not None:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock = None

    def _note_place(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        state = None if data is None else data.state_dict()
        self._place = copy.deepcopy(
            {
                "fit_loop": trainer.fit_loop.state_dict(),
                "data": {type(data).__qualname__: state} if state else {},
            }
        )

    def _is_time(self) -> bool:
        minutes, batches = self.every_n_minutes, self.every_n_batches
        if batches is not None and self._num_batches >= batches:
            return True
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _save(self, trainer: Trainer) -> None:
        if self._file is not None:
            self._file.save()
            self._file.sync()
        self._is_saving = True
        trainer.save_checkpoint(self.path)
        self._is_saving = False
        self._saved_at = time.monotonic()
        self._num_batches = 0


def go_on_where_it_ended(trainer: Trainer) -> Path | None:
    """Find the newest `last.ckpt` of the run, and let this part write where that one did.

    Lightning looks in this part's own folder alone. Its loggers begin `version_1` behind
    `version_0`, and Weights & Biases a run with another id, so that it would find nothing and
    begin again.

    Returns:
        The checkpoint, or None where Lightning finds the right one by itself, or there is none.
    """
    callbacks = trainer.checkpoint_callbacks
    callback = next((one for one in callbacks if isinstance(one, LastCheckpoint)), None)
    if callback is None or callback.dirpath is not None or not trainer.loggers:
        return None
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name)
    name = f"{callback.CHECKPOINT_NAME_LAST}.ckpt"
    if (folder / version / "checkpoints" / name).exists():
        return None
    found = sorted(folder.glob(f"*/checkpoints/{name}"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    callback.dirpath = str(found[-1].parent)
    rank_zero_info(
        f"going on from {found[-1]}, where this part saves, too; its metrics are in a new "
        f"{'run' if logger.version is None else version} of {type(logger).__name__}"
    )
    return found[-1]


def _refuse_unwritable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.partial"
        probe.write_bytes(b"?")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder}: checkpoints cannot be written there ({error.strerror}); make room or "
            "choose another folder (trainer.logger's save_dir, or last_checkpoint.dirpath)"
        ) from error
