"""Finding the format of rows, and reading them: what `data.format` and `feedback import` share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.fields import Record
from lit_rlhf.feedback.formats.alpaca import ALPACA, ORCA
from lit_rlhf.feedback.formats.arena import ARENA, ARENA_KAGGLE, MTBENCH
from lit_rlhf.feedback.formats.argilla import ARGILLA
from lit_rlhf.feedback.formats.community_alignment import COMMUNITY_ALIGNMENT
from lit_rlhf.feedback.formats.helpsteer import HELPSTEER2, HELPSTEER2_PREFERENCE, HELPSTEER3
from lit_rlhf.feedback.formats.hh import HH
from lit_rlhf.feedback.formats.label_studio import LABEL_STUDIO
from lit_rlhf.feedback.formats.multipref import MULTIPREF
from lit_rlhf.feedback.formats.oasst import OASST
from lit_rlhf.feedback.formats.parts import OurRow, ReadResult, RowFormat
from lit_rlhf.feedback.formats.potato import POTATO
from lit_rlhf.feedback.formats.prism import PRISM, PRISM_UTTERANCES
from lit_rlhf.feedback.formats.sharegpt import SHAREGPT
from lit_rlhf.feedback.formats.shp import SHP
from lit_rlhf.feedback.formats.token_samples import BEST_OF_4
from lit_rlhf.feedback.formats.ultrafeedback import ULTRAFEEDBACK
from lit_rlhf.feedback.judgments import JudgedTask, Judgment

_log = logging.getLogger(__name__)

FORMATS = {
    row_format.name: row_format
    for row_format in (
        HH, SHAREGPT, ALPACA, ORCA, ULTRAFEEDBACK, SHP, HELPSTEER2, HELPSTEER2_PREFERENCE,
        HELPSTEER3, OASST, ARENA, ARENA_KAGGLE, MTBENCH, MULTIPREF, PRISM, PRISM_UTTERANCES,
        COMMUNITY_ALIGNMENT, ARGILLA, LABEL_STUDIO, POTATO, BEST_OF_4,
    )
}  # fmt: skip
# These name our own rows: what is not another format, TRL's comparisons, KTO's labels.
OUR_NAMES = ("ours", "trl", "kto")


class ReadRow(NamedTuple):
    """What stands at a place: a judged task, a row of ours, or why it cannot be read."""

    content: JudgedTask | OurRow | DataError
    where: str


def check_format(name: str) -> None:
    """Raise a ConfigError where no format has this name ("auto" is one)."""
    names = ("auto", *OUR_NAMES, *FORMATS)
    if name not in names:
        raise ConfigError(f"data.format={name}: must be one of {', '.join(names)}.")


def find_format(row: Record, where: str) -> str:
    """Return the name of the format that a row has: "ours" where no other is known by its keys.

    Raises:
        DataError: more than one format has such keys.
    """
    found = [row_format.name for row_format in FORMATS.values() if row_format.detects(row)]
    if len(found) > 1:
        raise DataError(
            f"{where}: the row's keys fit several formats: {', '.join(found)}. Name the right one "
            "by data.format ('ours' for the rows of docs/data.md)."
        )
    return found[0] if found else "ours"


def read_rows(rows: Iterable[tuple[Record, str]], name: str) -> Iterator[ReadRow]:
    """Yield what rows of a format hold, in their order; bad rows as the errors that they are.

    Args:
        rows: each with its place.
        name: of the format, one of `FORMATS` or `OUR_NAMES`.
    """
    if name in OUR_NAMES:
        yield from (ReadRow(dict(row), where) for row, where in rows)
        return
    row_format = FORMATS[name]
    found = _read_each(rows, row_format)
    num_tasks = num_declared = 0
    for read in _joined(found) if row_format.joins_rows else found:
        if row_format.looks_declared and isinstance(read.content, JudgedTask):
            num_tasks += 1
            num_declared += row_format.looks_declared(read.content)
        yield read
    if num_tasks > 1 and num_declared == num_tasks:
        _log.warning(
            "All %d rankings have the order in which %s declares the responses: its export may "
            "have lost the labelers' order (argilla issue 5712). Compare some with the page.",
            num_tasks, name,
        )  # fmt: skip


def _read_each(rows: Iterable[tuple[Record, str]], row_format: RowFormat) -> Iterator[ReadRow]:
    for row, where in rows:
        try:
            contents: ReadResult = row_format.read(row, where)
        except DataError as error:
            yield ReadRow(error, where)
        else:
            yield from (ReadRow(content, where) for content in contents)


def _joined(found: Iterator[ReadRow]) -> Iterator[ReadRow]:
    """Yield tasks that follow each other, with one prompt and one labeler, as one."""
    pending: list[ReadRow] = []
    for read in found:
        if pending and _key(pending[0]) != _key(read):
            yield _join(pending)
            pending = []
        pending.append(read)
    if pending:
        yield _join(pending)


def _key(read: ReadRow) -> object:
    task = read.content
    if not isinstance(task, JudgedTask):
        return read.where
    return task.prompt, [judgment.labeler for judgment in task.judgments]


def _join(found: list[ReadRow]) -> ReadRow:
    tasks = [read.content for read in found if isinstance(read.content, JudgedTask)]
    if len(tasks) < 2:
        return found[0]
    first = tasks[0]
    models = tuple(model for task in tasks for model in task.models or (None,))
    rated = [judgment.ratings or (None,) for task in tasks for judgment in task.judgments]
    judgment = Judgment(
        "judged",
        ratings=tuple(rating for ratings in rated for rating in ratings),
        labeler=first.judgments[0].labeler,
    )
    responses = tuple(response for task in tasks for response in task.responses)
    metadata: dict[str, object] = {"responses": [task.metadata for task in tasks]}
    task = JudgedTask(first.prompt, responses, (judgment,), models, metadata)
    return ReadRow(task, found[0].where)
