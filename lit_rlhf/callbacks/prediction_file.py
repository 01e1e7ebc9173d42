"""What `predict` draws and where it is written: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.errors import ConfigError
from lit_rlhf.ranges import require
from lit_rlhf.ranks import of_all_ranks
from lit_rlhf.rollout import Sampling
from lit_rlhf.whole_files import partial_of, put_in_place

FILE_NAME = "predictions.jsonl"


@dataclass(frozen=True)
class PredictionConfig:
    """How a policy responds in `predict`.

    Attributes:
        sampling: length, temperature and truncation; None for the module's own, which is a
            temperature of 1 where the phase has no setting for it.
        samples_per_prompt: responses to each prompt.
        seed: the same one draws the same responses.
    """

    sampling: Sampling | None = None
    samples_per_prompt: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        require("prediction.samples_per_prompt", self.samples_per_prompt, least=1)
        require("prediction.seed", self.seed, least=0)


@runtime_checkable
class Predicts(Protocol):
    """A module that predicts as it is told."""

    prediction: PredictionConfig


class PredictionFile(Callback):
    """Writes predictions into a file, in the order of the data, also from several processes.

    The file is there once it is whole.

    Args:
        path: where to; null for `predictions.jsonl` in the run's folder.
        sampling: length, temperature and truncation of responses; null for the module's own, which
            is a temperature of 1 where the phase has no setting for it.
        samples_per_prompt: responses to each prompt.
        seed: the same one draws the same responses.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        path: str | None = None,
        sampling: Sampling | None = None,
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> None:
        self.config = PredictionConfig(sampling, samples_per_prompt, seed)
        self.path = None if path is None else Path(path)
        self._num_rows = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the module how to predict."""
        if stage == "predict" and isinstance(pl_module, Predicts):
            pl_module.prediction = self.config

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an empty file.

        Raises:
            ConfigError: there is no place for it; likewise where the disk is full later.
        """
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank, by a broadcast
        self.path = self.path or Path(folder) / FILE_NAME
        self._num_rows = 0
        if trainer.is_global_zero:
            with _writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                partial_of(self.path).write_bytes(b"")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature
        *_: object,
    ) -> None:
        """Append the rows of all processes."""
        rows = [row for of_rank in of_all_ranks(list(outputs or ())) for row in of_rank]
        self._num_rows += len(rows)
        if trainer.is_global_zero:
            self._append(sorted(rows, key=lambda row: row["row"]))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the file its name."""
        assert self.path is not None
        if trainer.is_global_zero:
            with _writing(self.path):
                put_in_place(self.path)
        rank_zero_info(f"{self._num_rows:,} predictions: {self.path}")

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        assert self.path is not None
        with _writing(self.path), partial_of(self.path).open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"prediction.path: {path} cannot be written ({error.strerror}); make room, or name "
            "another file"
        ) from error
