"""What callbacks ask a Trainer, some of it of Lightning's own parts: all in one place."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker

from lit_rlhf.callbacks.csv_logger import MetricsFile, ResumableCSVLogger, Row, plain_row
from lit_rlhf.errors import ConfigError


def metrics_files(trainer: Trainer) -> list[MetricsFile]:
    """Return the files of metrics that a resumed run continues."""
    loggers = [one for one in trainer.loggers if isinstance(one, ResumableCSVLogger)]
    return [one.experiment for one in loggers if isinstance(one.experiment, MetricsFile)]


def next_row(trainer: Trainer) -> Row | None:
    """Return what Lightning logs right after the hook `on_train_batch_end`; None elsewhere."""
    loop = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress.current
    assert isinstance(progress, _ProcessedTracker)
    connector = trainer._logger_connector
    if progress.completed == progress.processed or not connector.should_update_logs:
        return None
    metrics = connector.metrics["log"]
    return (
        plain_row(metrics, trainer.current_epoch, loop._batches_that_stepped) if metrics else None
    )


def is_run_done(trainer: Trainer) -> bool:
    """Tell, at the end of an epoch, whether it was the last."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    has_seen_all_epochs = epochs not in {None, -1} and trainer.current_epoch + 1 >= int(epochs or 0)
    return has_seen_all_epochs or 0 <= steps <= trainer.global_step or trainer.should_stop


def any_rank(trainer: Trainer, claim: bool) -> bool:
    """Return whether a claim holds on any process, the same on all; call it on all of them."""
    return bool(trainer.strategy.reduce_boolean_decision(claim, all=False))


def refuse_unwritable(folder: Path) -> None:
    """See that files can be written to a folder, which is made.

    Raises:
        ConfigError: they cannot.
    """
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
