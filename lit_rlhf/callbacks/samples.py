"""Shows what the policy writes: a table of validation samples with their scores."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lit_rlhf.callbacks.csv_logger import append_whole
from lit_rlhf.errors import ConfigError
from lit_rlhf.ranges import require
from lit_rlhf.whole_files import write_text_whole

TABLE_KEY = "val/samples"
FILE_NAME = "samples.jsonl"

# One sample: `prompt`, `response`, and a column for each score.
Sample = dict[str, Any]


@runtime_checkable
class HasValidationSamples(Protocol):
    """A module that leaves the samples of its last validation on rank zero."""

    validation_samples: list[Sample]


class SampleTableCallback(Callback):
    """Writes the first samples of a validation to Weights & Biases, or to a file.

    With a `WandbLogger` the table is `val/samples`; without one, the rows are appended to
    `samples.jsonl` in the run's folder, one JSON object a line. Every row carries the global
    step. The first prompts of the validation set are shown each time, so that their responses can
    be compared over the run.

    A new run replaces the file; a resumed one goes on behind the rows of its checkpoint. A row
    that cannot be written (a full disk) is reported, and the run goes on.

    Args:
        num_samples: rows of the table, at least 1.
        every_n_validations: write after every n-th validation, at least 1; the check before
            training (`num_sanity_val_steps`) does not count.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, num_samples: int = 8, every_n_validations: int = 1) -> None:
        require("SampleTableCallback.num_samples", num_samples, least=1)
        require("SampleTableCallback.every_n_validations", every_n_validations, least=1)
        self.num_samples = num_samples
        self.every_n_validations = every_n_validations
        self.num_validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that leaves no samples.

        Raises:
            ConfigError: if the module has no `validation_samples`.
        """
        if not isinstance(pl_module, HasValidationSamples):
            raise ConfigError(
                f"callbacks: SampleTableCallback reads `validation_samples`, but "
                f"{type(pl_module).__name__} has none; remove it from this phase's configuration"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows that this run has not come to yet: of an earlier run, or of a killed one.

        A checkpoint of step n has seen all validations up to n and none behind it.
        """
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # on every rank, as below
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _drop_rows_after(folder / FILE_NAME, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table, when it is this validation's turn."""
        if trainer.sanity_checking:
            return
        self.num_validations += 1
        folder = trainer.log_dir  # on every rank: Lightning agrees on it by a broadcast
        if self.num_validations % self.every_n_validations or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, HasValidationSamples)  # seen in `setup`
        samples = pl_module.validation_samples[: self.num_samples]
        if samples:
            _write(trainer, samples, Path(folder or trainer.default_root_dir))

    def state_dict(self) -> dict[str, Any]:
        """Return how many validations there were."""
        return {"num_validations": self.num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count."""
        self.num_validations = state_dict["num_validations"]


def _write(trainer: Trainer, samples: Sequence[Sample], folder: Path) -> None:
    rows: list[Sample] = [{"step": trainer.global_step, **sample} for sample in samples]
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers:
        try:
            _append(folder / FILE_NAME, rows)
        except OSError as error:
            warnings.warn(
                f"{folder / FILE_NAME}: the samples of step {trainer.global_step} could not be "
                f"written ({error.strerror}); training goes on without them",
                stacklevel=2,
            )
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = [[row.get(name) for name in columns] for row in rows]
    for logger in loggers:
        logger.log_table(TABLE_KEY, columns=columns, data=data)


def _append(path: Path, rows: Sequence[Sample]) -> None:
    """Append all rows, or none where the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _drop_rows_after(path: Path, step: int) -> None:
    """Keep the rows up to a step; a line that a kill left torn goes, too."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:  # a text may hold U+2028
        lines = list(file)
    kept = [line for line in lines if line.endswith("\n") and 0 < json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        write_text_whole(path, "".join(kept))
