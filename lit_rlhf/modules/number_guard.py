"""Steps whose numbers are not finite: skipped, counted, and their rows kept for inspection.

A NaN or an infinite number that reaches the weights ends a run silently: every later number is NaN.
Here the step is left out instead, on all processes alike.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.batches import TokenRows
from lit_rlhf.errors import TrainingError
from lit_rlhf.ranges import require
from lit_rlhf.ranks import rank

FILE_NAME = "skipped_rows.jsonl"

_log = logging.getLogger(__name__)


class Watched(NamedTuple):
    """What one forward of a step has computed.

    Attributes:
        rows: `B` rows.
        numbers: `[B]` or `[B, ...]`, or scalars, by the names that a report gives them.
    """

    rows: TokenRows
    numbers: dict[str, Tensor]


class NumberGuard:
    """Remembers what a step computed until it is known whether the step may be taken.

    Args:
        max_skipped_steps: the run stops when more steps than these were skipped; 0 stops it at
            the first.

    Attributes:
        num_skipped: steps skipped since the run began, resumed runs included.
        gradient_norm: of the last step, before clipping.

    Raises:
        ConfigError: the limit is negative.
    """

    def __init__(self, max_skipped_steps: int) -> None:
        require("model.max_skipped_steps", max_skipped_steps, least=0)
        self.max_skipped_steps = max_skipped_steps
        self.num_skipped = 0
        self.gradient_norm = 0.0
        self._watched: list[Watched] = []

    def watch(self, rows: TokenRows, loss: Tensor | None = None, **numbers: Tensor | None) -> None:
        """Remember rows with their numbers, until `forget` or `skip`; costs nothing by itself."""
        numbers["loss"] = loss
        kept = {name: value.detach() for name, value in numbers.items() if value is not None}
        self._watched.append(Watched(rows, kept))

    def forget(self) -> None:
        """Drop what was watched: the step was taken."""
        self._watched.clear()

    @property
    def is_broken(self) -> Tensor:
        """Whether a watched loss or number is not finite: float scalar, 0 or 1, on its device."""
        values = [value for watched in self._watched for value in watched.numbers.values()]
        broken = [(~torch.isfinite(value)).any() for value in values]
        return torch.stack(broken).any().float() if broken else torch.zeros(())

    def skip(self, step: int, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Count a step that is not taken, and append its offending rows to the run's file.

        Call it on all processes: the count is the same on each. A process writes those of its own
        rows whose numbers are not finite, or all of them where only the loss or the gradient is
        not.

        Args:
            step: that is not taken.
            folder: of the run.
            tokenizer: turns rows into text.

        Raises:
            TrainingError: more steps than `max_skipped_steps` were skipped.
        """
        self.num_skipped += 1
        records = [record for watched in self._watched for record in _offending(watched, tokenizer)]
        if not records:
            records = [record for one in self._watched for record in _all_rows(one, tokenizer)]
        self.forget()
        path = folder / (FILE_NAME if rank() == 0 else f"rank{rank()}-{FILE_NAME}")
        lines = [{"step": step, "rank": rank(), **record} for record in records]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as error:  # a full disk; training goes on without these lines
            _log.warning("%s: the rows of step %d are not kept: %s", path, step, error.strerror)
        found = ", ".join(sorted({record["number"] for record in records})) or "elsewhere"
        _log.warning(
            "step %d skipped: not finite: %s (%d rows, see %s)",
            step,
            found,
            len(records),
            path,
        )
        if self.num_skipped > self.max_skipped_steps:
            raise TrainingError(
                f"{self.num_skipped} steps were skipped because a number was not finite, more than "
                f"model.max_skipped_steps={self.max_skipped_steps}; at step {step}: {found}. "
                f"The rows are in {path}. The weights are as before these steps. Likely causes: a "
                "learning rate too high, a reward that is NaN or infinite, weights that were "
                "broken from the start. Mend it and go on from the last checkpoint."
            )


def gradient_squares(
    parameters: Iterable[nn.Parameter], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sum the squares of all gradients, in float32; not finite where one of them is not.

    Returns:
        Of sharded weights, this process's part; and of whole ones, alike on all processes.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    return _square(sharded, device), _square(whole, device)


def _square(gradients: list[Tensor], device: torch.device) -> Tensor:
    norm: Tensor = torch.nn.utils.get_total_norm(gradients)
    return norm.float().square().to(device)


def _offending(watched: Watched, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    records = []
    by_row = {name: values for name, values in watched.numbers.items() if values.ndim > 0}
    for name, values in by_row.items():
        flat = values.reshape(len(values), -1).float()  # [B, n]
        is_bad = ~torch.isfinite(flat)
        for row in is_bad.any(1).nonzero().squeeze(-1).tolist():
            value = float(flat[row][is_bad[row]][0])
            records.append(_record(watched.rows, row, name, value, tokenizer))
    return records


def _all_rows(watched: Watched, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    loss = float(watched.numbers.get("loss", 0.0))
    name, value = ("gradient", None) if math.isfinite(loss) else ("loss", loss)
    rows = range(len(watched.rows.lengths))
    return [_record(watched.rows, row, name, value, tokenizer) for row in rows]


def _record(
    rows: TokenRows, row: int, name: str, value: float | None, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    length = int(rows.lengths[row])
    ids, mask = rows.input_ids[row, :length].tolist(), rows.response_mask[row, :length].tolist()
    start = mask.index(True) if True in mask else length
    return {
        "number": name,
        "value": None if value is None else str(value),  # JSON has neither NaN nor infinity
        "prompt": tokenizer.decode(ids[:start]),
        "response": tokenizer.decode(ids[start:]),
    }
