"""Metrics as a CSV file that a resumed run continues: one curve, no step twice, none missing."""

from __future__ import annotations

import csv
import errno
import io
import os
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lit_rlhf.errors import ConfigError
from lit_rlhf.whole_files import sync, write_text_whole

Row = dict[str, Any]


class ResumableCSVLogger(CSVLogger):
    """Lightning's `CSVLogger`, whose file survives kills, full disks and resuming.

    A new run replaces the file of an earlier one with its first row. A resumed run keeps the rows
    that its checkpoint knows of and goes on behind them: `LastCheckpoint` tells how many. Rows
    that cannot be written are reported, kept, and tried again with the next.

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
        self._file: MetricsFile | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """The writer, made at first use."""
        if self._file is None:
            self._file = MetricsFile(self.log_dir)
        return self._file

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left, if anything was logged here."""
        if self._file is not None:
            self.save()


class MetricsFile(ExperimentWriter):
    """The file `metrics.csv` of a run.

    Args:
        log_dir: its folder, which is made.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, log_dir: str) -> None:
        # Not by Lightning's constructor, which deletes the file of an earlier run at once.
        self.log_dir = log_dir
        self.hparams = {}
        self.metrics = []
        self.metrics_keys = []
        self.metrics_file_path = str(Path(log_dir) / self.NAME_METRICS_FILE)
        self._num_saved = 0  # rows of the file that belong to this run
        self._is_ours = False  # the file holds these rows and no others
        try:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{log_dir}: metrics cannot be written there ({error.strerror}); choose another "
                "folder (trainer.logger's save_dir)"
            ) from error

    @property
    def num_rows(self) -> int:
        """Rows logged so far, those of the run that is resumed included."""
        return self._num_saved + len(self.metrics)

    def resume(self, num_rows: int | None = None) -> None:
        """Go on behind rows of the file: as many as the checkpoint knows of, or all (None)."""
        self.metrics_keys, rows = self._read()
        self._num_saved = len(rows[:num_rows])

    def save(self) -> None:
        """Write what was logged since the last time, all or nothing; report where it cannot be."""
        if not self.metrics:
            return
        names = sorted({*self.metrics_keys, *(name for row in self.metrics for name in row)})
        path = Path(self.metrics_file_path)
        try:
            if self._is_ours and names == self.metrics_keys:
                append_whole(path, _as_csv(names, self.metrics))
            else:
                rows = [*self._read()[1][: self._num_saved], *self.metrics]
                write_text_whole(path, _as_csv(names, rows, with_header=True))
        except OSError as error:
            warnings.warn(
                f"{path} cannot be written ({error.strerror}): training goes on, the rows are kept "
                "and tried again with the next",
                stacklevel=1,  # told once, whoever saves
            )
            return
        self.metrics_keys = names
        self._num_saved += len(self.metrics)
        self._is_ours = True
        self.metrics = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the settings as `hparams.yaml` beside the metrics."""
        super().log_hparams(params)
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        try:
            save_hparams_to_yaml(path, self.hparams)
        except OSError as error:
            warnings.warn(f"{path} cannot be written ({error.strerror})", stacklevel=1)

    def sync(self) -> None:
        """Bring the file to the disk, so that it is not older than the checkpoint that follows."""
        if self._is_ours:
            sync(Path(self.metrics_file_path))

    def _read(self) -> tuple[list[str], list[Row]]:
        """Return the columns and the whole rows of the file; a torn last line is not a row."""
        path = Path(self.metrics_file_path)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows: list[Row] = list(reader)
        return list(reader.fieldnames or []), rows


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


def _as_csv(names: list[str], rows: list[Row], *, with_header: bool = False) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    if with_header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
