"""What becomes of a judgment that arrives: a row of the table, once, and a slot that is filled.

A judgment is taken whenever it arrives: if its slot was given to somebody else meanwhile, it is
stored beside the others.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Row, Table, and_, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.judgments import LISTS, SAID_NOTHING, Judgment
from lit_rlhf.feedback.queue import is_free, lock_labeler, take_slots
from lit_rlhf.feedback.schema import current_judgments, dump_json, judgments, slots, tasks

Values = dict[str, Any]  # column -> value, of whatever type the column has
# Fields of `Judgment` that are columns of the same name; `labeler` is a row of its own.
_FIELDS = tuple(field for field in Judgment._fields if field != "labeler")
# What the server adds; all other columns come from the client, and are equal when it sends twice.
_BY_SERVER = ("received_at", "valid_from")


class Receipt(NamedTuple):
    """What became of a judgment that was sent.

    Attributes:
        is_new: it was stored now; else it was there already.
        is_surplus: it fills no slot: the task had enough without it, it corrects an earlier one, or
            it is a gold answer.
    """

    is_new: bool
    is_surplus: bool


def store_judgment(
    connection: Connection, task_id: int, judgment: Judgment, labeler_id: int
) -> Receipt:
    """Store a judgment once, and fill the labeler's slot of the task.

    Raises:
        DataError: another judgment has the same id, or it replaces one of somebody else or of
            another task.
    """
    row = judgment_row(judgment, task_id, labeler_id, time.time())
    lock_labeler(connection, labeler_id)
    if _is_stored(connection, row):
        return Receipt(is_new=False, is_surplus=False)
    _lock_task(connection, task_id)
    row["valid_from"] = _valid_from(connection, row)
    # A skip without a slot has added none: to undo it takes none back.
    had_slot = _has_slot(connection, task_id, labeler_id)
    was_handed_on = had_slot and _hands_on(connection, task_id, labeler_id)
    if not insert_new(connection, judgments, [row], "id"):  # sent twice at the same moment
        return Receipt(is_new=False, is_surplus=False)
    # A gold answer is what labelers are compared with, and none of the judgments asked for.
    takes_free = not judgment.is_gold
    is_surplus = not _fill_slot(connection, task_id, labeler_id, row["id"], takes_free=takes_free)
    if _has_slot(connection, task_id, labeler_id):
        is_handed_on = _hands_on(connection, task_id, labeler_id)
        if is_handed_on and not was_handed_on:
            _add_slot(connection, task_id)
        elif was_handed_on and not is_handed_on:
            _remove_slot(connection, task_id)
    return Receipt(is_new=True, is_surplus=is_surplus)


def _lock_task(connection: Connection, task_id: int) -> None:
    """Let judgments of one task wait for each other: two skips at once add two slots, not one."""
    row = select(tasks.c.id).where(tasks.c.id == task_id)
    connection.execute(row.with_for_update(key_share=True))


def _hands_on(connection: Connection, task_id: int, labeler_id: int) -> bool:
    """Tell whether what counts of the labeler's judgments leaves the task to somebody else."""
    mine = (judgments.c.task_id == task_id, judgments.c.labeler_id == labeler_id)
    outcome = connection.execute(current_judgments(judgments.c.outcome).where(*mine)).scalar()
    return outcome in SAID_NOTHING


def _has_slot(connection: Connection, task_id: int, labeler_id: int) -> bool:
    mine = and_(slots.c.task_id == task_id, slots.c.labeler_id == labeler_id)
    return connection.execute(select(exists().where(mine))).scalar_one()


def _add_slot(connection: Connection, task_id: int) -> None:
    last = select(func.max(slots.c.n)).where(slots.c.task_id == task_id)
    n = connection.execute(last).scalar_one() + 1
    insert_new(connection, slots, [{"task_id": task_id, "n": n}], "task_id", "n")


def _remove_slot(connection: Connection, task_id: int) -> None:
    """Take back the slot that a skip added, unless somebody works on it already."""
    free = and_(slots.c.task_id == task_id, is_free(slots, time.time()))
    last = select(func.max(slots.c.n)).where(free).scalar_subquery()
    connection.execute(delete(slots).where(slots.c.task_id == task_id, slots.c.n == last))


def _is_stored(connection: Connection, row: Values) -> bool:
    found = connection.execute(select(judgments).where(judgments.c.id == row["id"])).one_or_none()
    if found is None:
        return False
    sent = {field: value for field, value in row.items() if field not in _BY_SERVER}
    stored = {field: getattr(found, field) for field in sent}
    differing = [field for field in sent if _as_stored(sent[field]) != _as_stored(stored[field])]
    if differing:
        raise DataError(
            f"judgment {row['id']}: another one with this id is stored, which differs in "
            f"{', '.join(differing)}; send a correction under an id of its own, with 'replaces'."
        )
    return True


def _as_stored(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _valid_from(connection: Connection, row: Values) -> float:
    """Return when the judgment begins to count: after what it replaces, before what replaces it."""
    own: float = row["valid_from"]
    # A browser may send a correction first, and its clock may have been put back in between.
    later = select(func.min(judgments.c.valid_from)).where(
        judgments.c.task_id == row["task_id"],
        judgments.c.labeler_id == row["labeler_id"],
        judgments.c.replaces == row["id"],
    )
    correction: float | None = connection.execute(later).scalar()
    if correction is not None:
        own = min(own, math.nextafter(correction, 0))
    columns = (judgments.c.task_id, judgments.c.labeler_id, judgments.c.valid_from)
    replaced = select(*columns).where(judgments.c.id == row["replaces"])
    earlier = connection.execute(replaced).one_or_none()
    if earlier is None:  # none, or it is still on its way: a browser may send in any order
        return own
    if (earlier.task_id, earlier.labeler_id) != (row["task_id"], row["labeler_id"]):
        raise DataError(
            f"judgment {row['id']}: replaces {row['replaces']}, which is of another labeler or "
            "task; a labeler corrects own judgments of the same task."
        )
    begins: float = max(own, earlier.valid_from)
    return begins


def _fill_slot(
    connection: Connection, task_id: int, labeler_id: int, judgment_id: str, *, takes_free: bool
) -> bool:
    """Put the judgment into the labeler's slot, or into a free one; say whether there was one."""
    own = select(slots.c.judgment_id).where(
        slots.c.task_id == task_id, slots.c.labeler_id == labeler_id
    )
    filled = {"labeler_id": labeler_id, "judgment_id": judgment_id, "lease_until": None}
    found = connection.execute(own.with_for_update()).one_or_none()
    if found is not None:
        mine = and_(slots.c.task_id == task_id, slots.c.labeler_id == labeler_id)
        unjudged = and_(mine, slots.c.judgment_id.is_(None))
        return connection.execute(update(slots).where(unjudged).values(filled)).rowcount > 0
    if not takes_free:
        return False
    free = (
        select(slots.c.task_id, slots.c.n)
        .where(slots.c.task_id == task_id, is_free(slots, time.time()))
        .order_by(slots.c.n)
        .limit(1)
    )
    return bool(take_slots(connection, free, filled))


def digest(*parts: object) -> str:
    """Return what tells these values from others: 32 hexadecimal digits."""
    return hashlib.sha256(dump_json(parts).encode()).hexdigest()[:32]


def judgment_row(
    judgment: Judgment, task_id: int, labeler_id: int | None, received_at: float
) -> Values:
    """Return the row of a judgment, which must have its id."""
    row: Values = {field: getattr(judgment, field) for field in _FIELDS}
    shown_at, submitted_at = judgment.shown_at, judgment.submitted_at
    if row["duration_s"] is None and shown_at is not None and submitted_at is not None:
        row["duration_s"] = submitted_at - shown_at
    return row | {
        "comment": judgment.comment or None,
        "task_id": task_id,
        "labeler_id": labeler_id,
        "received_at": received_at,
        "valid_from": received_at if submitted_at is None else submitted_at,
    }


def judgment_of(row: Row[Any] | Mapping[str, Any], labeler: str | None) -> Judgment:
    """Return the judgment that a row holds."""
    columns = cast("Mapping[str, Any]", getattr(row, "_mapping", row))
    values = {field: columns[field] for field in _FIELDS}
    for field in LISTS:
        if values[field] is not None:
            values[field] = tuple(values[field])
    return Judgment(**values | {"labeler": labeler, "comment": values["comment"] or ""})


def insert_new(connection: Connection, table: Table, rows: list[Values], *unique: str) -> int:
    """Insert rows, but for those that are there already by their unique columns.

    Returns:
        How many were new.
    """
    if not rows:
        return 0
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).on_conflict_do_nothing(index_elements=unique)
    options = {"preserve_rowcount": True}  # which psycopg's many rows would not
    return connection.execute(statement, rows, execution_options=options).rowcount
