"""Metrics as a CSV file that a resumed run continues: one curve, no step twice, none missing."""

from __future__ import annotations

import csv
import errno
import io
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch import Tensor

from lit_rlhf.errors import ConfigError

Row = dict[str, Any]


class ResumableCSVLogger(CSVLogger):
    """Lightning's `CSVLogger`, whose file survives kills, full disks and resuming.

    A new run replaces the file of an earlier one with its first row. A resumed run keeps the rows
    that its checkpoint knows of and goes on behind them: `LastCheckpoint` tells how many. A row is
    written whole or not at all; one that cannot be written is kept and tried again with the next.

    Args:
        save_dir: a local folder.
        name: the run's folder in it.
        version: a folder below that; "" for none.

    Raises:
        ConfigError: `save_dir` is not local.
    """

    def __init__(self, save_dir: str, name: str = "", version: int | str | None = "") -> None:
        if "://" in save_dir:
            raise ConfigError(
                f"trainer.logger: ResumableCSVLogger writes to local folders, not to {save_dir}; "
                "use lightning.pytorch.loggers.CSVLogger there"
            )
        super().__init__(save_dir, name=name, version=version)

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """The writer, made at first use."""
        if self._experiment is None:
            self._experiment = MetricsFile(self.log_dir)
        assert isinstance(self._experiment, MetricsFile)
        return self._experiment


class MetricsFile(ExperimentWriter):
    """The file `metrics.csv` of a run.

    Args:
        log_dir: its folder, which is made.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self._num_saved = 0  # rows of the file that belong to this run
        self._is_ours = False  # the file holds these rows and no others

    @property
    def num_rows(self) -> int:
        """Rows logged so far, those of the run that is resumed included."""
        return self._num_saved + len(self.metrics)

    def resume(self, num_rows: int | None = None, next_row: Row | None = None) -> None:
        """Go on behind rows that stand in the file.

        Args:
            num_rows: as many as the checkpoint knows of; None for all.
            next_row: logged with the checkpoint, and perhaps not written before the kill.
        """
        names, rows = self._read()
        self.metrics_keys = names
        self._num_saved = len(rows) if num_rows is None else min(num_rows, len(rows))
        self.metrics = [] if next_row is None else [next_row]

    def save(self) -> None:
        """Write what was logged since the last time.

        Raises:
            OSError: it could not be written; the file is as it was, and the rows are kept.
        """
        if not self.metrics:
            return
        has_new_names = bool(self._record_new_keys())
        if has_new_names or not self._is_ours:
            self._rewrite()
        else:
            self._append()
        self._num_saved += len(self.metrics)
        self._is_ours = True
        self.metrics = []

    def sync(self) -> None:
        """Bring the file to the disk, so that it is no older than the checkpoint that follows."""
        if self._path.exists():
            handle = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _rewrite(self) -> None:
        """Replace the file by one with all columns."""
        rows: list[Row] = [*self._read()[1][: self._num_saved], *self.metrics]
        partial = self._path.with_name(f"{self._path.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self._path)

    def _append(self) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, fieldnames=self.metrics_keys).writerows(self.metrics)
        append_whole(self._path, text.getvalue())

    def _read(self) -> tuple[list[str], list[Row]]:
        """Return the columns and the whole rows of the file; a torn last line is no row."""
        if not self._path.exists():
            return [], []
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1].splitlines()
        reader = csv.DictReader(whole)
        rows: list[Row] = list(reader)
        return list(reader.fieldnames or []), rows

    def _check_log_dir_exists(self) -> None:
        """Keep the file of an earlier run until this one has something to write."""


def append_whole(path: Path, text: str) -> None:
    """Append a text, or nothing: no half row stays, to which the next would be glued.

    Raises:
        OSError: the disk is full, or the file cannot be written to.
    """
    content = text.encode()
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        num_written = file.write(content)
        if num_written == len(content):
            return
        os.ftruncate(file.fileno(), size)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def plain_row(metrics: dict[str, Any], epoch: int, step: int) -> Row:
    """Return a row as Lightning would log it, in plain numbers.

    Args:
        metrics: numbers and tensors of one element.
        epoch: the current one.
        step: batches trained on before.
    """
    numbers = {
        name: value.item() if isinstance(value, Tensor) else value
        for name, value in metrics.items()
    }
    return {"epoch": epoch, **numbers, "step": step}
