"""What a public row shape is: how its rows are known, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lit_rlhf.feedback.fields import Record
from lit_rlhf.feedback.judgments import JudgedTask

# A row in our own shape (docs/data.md), with the keys that the format does not know.
OurRow = dict[str, object]
ReadResult = list[JudgedTask | OurRow]


class RowFormat(NamedTuple):
    """A public shape of rows.

    Attributes:
        name: as `data.format` names it.
        detects: says by its keys whether a row has this shape; no row has two.
        read: turns a row and its place into what it holds: none, one or more judged tasks, or
            rows of ours (demonstrations, unpaired labels). It raises a DataError for a bad row.
        joins_rows: rows next to each other that have one prompt and one labeler are one task.
        looks_declared: says of a task that its order may be that of the declaration, not the
            labeler's; where all of a file do, a warning says so.
        most_per_prompt: as many pairs of a prompt are trained on, the first ones.
    """

    name: str
    detects: Callable[[Record], bool]
    read: Callable[[Record, str], ReadResult]
    joins_rows: bool = False
    looks_declared: Callable[[JudgedTask], bool] | None = None
    most_per_prompt: int | None = None
