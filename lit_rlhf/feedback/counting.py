"""How much of everything the store has."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, FromClause, Select, func, select

from lit_rlhf.feedback.queue import is_free
from lit_rlhf.feedback.schema import (
    current_judgments,
    judgments,
    labelers,
    prompts,
    responses,
    slots,
    tasks,
)

_UNNAMED = "(not named)"


class Counts(NamedTuple):
    """Numbers of rows.

    Attributes:
        prompts: distinct prompts.
        responses: distinct responses.
        tasks: all tasks, planned repeats among them.
        judgments: all judgments, also those that were corrected.
        current: judgments that count.
        open_slots: judgments that are still wanted and nobody works on.
        leased_slots: judgments that somebody works on.
        by_kind: kind of task -> current judgments.
        by_outcome: outcome -> current judgments.
        by_labeler: name -> current judgments.
    """

    prompts: int
    responses: int
    tasks: int
    judgments: int
    current: int
    open_slots: int
    leased_slots: int
    by_kind: dict[str, int]
    by_outcome: dict[str, int]
    by_labeler: dict[str, int]


def count_store(connection: Connection) -> Counts:
    """Return the numbers of a store."""
    by_outcome = _count_by(connection, judgments.c.outcome)
    unjudged = slots.c.judgment_id.is_(None)
    num_open = _count(connection, slots, is_free(slots, time.time()))
    return Counts(
        prompts=_count(connection, prompts),
        responses=_count(connection, responses),
        tasks=_count(connection, tasks),
        judgments=_count(connection, judgments),
        current=sum(by_outcome.values()),
        open_slots=num_open,
        leased_slots=_count(connection, slots, unjudged) - num_open,
        by_kind=_count_by(connection, tasks.c.kind),
        by_outcome=by_outcome,
        by_labeler=_count_by(connection, func.coalesce(labelers.c.name, _UNNAMED)),
    )


def _count(connection: Connection, table: FromClause, *where: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(table).where(*where)
    return connection.execute(query).scalar_one()


def _count_by(connection: Connection, column: ColumnElement[Any]) -> dict[str, int]:
    """Count current judgments by a column of theirs, of their task or of their labeler."""
    query: Select[Any] = (
        current_judgments(column, func.count())
        .join_from(judgments, tasks)
        .join(labelers, isouter=True)
        .group_by(column)
        .order_by(column)
    )
    return {row[0]: row[1] for row in connection.execute(query)}
