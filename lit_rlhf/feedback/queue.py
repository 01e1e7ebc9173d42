"""Who judges which task next, and what becomes of a judgment that arrives.

A slot is claimed by one statement, so two labelers never get the same one, and a labeler never
gets a task twice. A judgment is taken whenever it arrives: if its slot was given to somebody else
meanwhile, it is stored beside the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.judgment_rows import Values, insert_new, judgment_row
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.schema import current_judgments, judgments, labelers, slots, tasks

# After these somebody else is asked: the labeler said nothing about the responses.
_HANDED_ON = ("skip", "cannot_judge")
# What the server adds; all other columns come from the client, and are equal when it sends twice.
_BY_SERVER = ("received_at", "valid_from")
_BATCH = 500  # ids in one statement


class Receipt(NamedTuple):
    """What became of a judgment that was sent.

    Attributes:
        is_new: it was stored now; else it was there already.
        is_surplus: it fills no slot: the task had enough without it, it corrects an earlier one, or
            it is a gold answer.
    """

    is_new: bool
    is_surplus: bool


def claim_slots(
    connection: Connection, labeler_id: int, count: int, lease_s: float, gold_first: int = 0
) -> dict[int, float]:
    """Lease tasks to a labeler: first those that the labeler has and did not judge, then new ones.

    Until the labeler has had `gold_first` tasks with a gold answer, only such are new, if any are
    left.

    Returns:
        Up to `count` tasks: id -> end of the lease.
    """
    lock_labeler(connection, labeler_id)
    now = time.time()
    lease = {"labeler_id": labeler_id, "lease_until": now + lease_s}
    mine = (
        select(slots.c.task_id, slots.c.n)
        .where(slots.c.labeler_id == labeler_id, slots.c.judgment_id.is_(None))
        .order_by(slots.c.task_id)
        .limit(count)
        .with_for_update()  # looks again where somebody else is just taking one whose lease ended
    )
    taken = _lease(connection, mine.cte("picked"), lease)
    had = num_gold_tasks(connection, labeler_id, gold_first) if gold_first > 0 else 0
    if (missing := gold_first - had) > 0:
        with_gold = select(judgments.c.task_id).where(judgments.c.is_gold)
        gold = _claimable(labeler_id, now).where(slots.c.task_id.in_(with_gold))
        gold = gold.limit(min(count - len(taken), missing))
        found = _lease(connection, gold.with_for_update(skip_locked=True, of=slots).cte(), lease)
        if found:
            return dict.fromkeys(sorted(taken + found), now + lease_s)
    # First behind the labeler's last task: those before it are mostly judged, and many to look at.
    newest = select(func.max(judgments.c.task_id)).where(judgments.c.labeler_id == labeler_id)
    for last in dict.fromkeys((connection.execute(newest).scalar() or 0, 0)):
        if len(taken) < count:
            more = _claimable(labeler_id, now).where(slots.c.task_id > last)
            more = more.limit(count - len(taken)).with_for_update(skip_locked=True, of=slots)
            taken += _lease(connection, more.cte("picked"), lease)
    return dict.fromkeys(sorted(taken), now + lease_s)


def num_gold_tasks(connection: Connection, labeler_id: int, most: int) -> int:
    """Return how many tasks with a gold answer a labeler has judged or has now, up to `most`."""
    mine = judgments.alias("mine")
    is_judged = exists().where(
        mine.c.labeler_id == labeler_id, mine.c.task_id == judgments.c.task_id
    )
    is_leased = exists().where(
        slots.c.labeler_id == labeler_id,
        slots.c.task_id == judgments.c.task_id,
        slots.c.judgment_id.is_(None),
    )
    had = select(judgments.c.task_id).where(judgments.c.is_gold, or_(is_judged, is_leased))
    found = had.distinct().limit(most).subquery()
    return connection.execute(select(func.count()).select_from(found)).scalar_one()


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


def open_slots(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Return how many judgments each task still waits for; tasks that wait for none are left out.

    Args:
        connection: of `Database.reading`.
        ids: of the tasks.
    """
    waiting: dict[int, int] = {}
    for start in range(0, len(ids), _BATCH):
        query = (
            select(slots.c.task_id, func.count().label("number"))
            .where(slots.c.task_id.in_(ids[start : start + _BATCH]), slots.c.judgment_id.is_(None))
            .group_by(slots.c.task_id)
            .order_by(slots.c.task_id)
        )
        waiting |= {row.task_id: row.number for row in connection.execute(query)}
    return waiting


def close_task(connection: Connection, task_id: int) -> int:
    """Take away the slots of a task that nobody has judged yet; return how many there were.

    A judgment that is still on its way is stored as surplus, as any that comes late.
    """
    unjudged = slots.c.judgment_id.is_(None)
    return connection.execute(delete(slots).where(slots.c.task_id == task_id, unjudged)).rowcount


def lock_labeler(connection: Connection, labeler_id: int) -> None:
    """Let a labeler's two windows wait for each other (PostgreSQL; on SQLite all writers do)."""
    row = select(labelers.c.id).where(labelers.c.id == labeler_id)
    connection.execute(row.with_for_update(key_share=True))


def _lock_task(connection: Connection, task_id: int) -> None:
    """Let judgments of one task wait for each other: two skips at once add two slots, not one."""
    row = select(tasks.c.id).where(tasks.c.id == task_id)
    connection.execute(row.with_for_update(key_share=True))


def _hands_on(connection: Connection, task_id: int, labeler_id: int) -> bool:
    """Tell whether what counts of the labeler's judgments leaves the task to somebody else."""
    mine = (judgments.c.task_id == task_id, judgments.c.labeler_id == labeler_id)
    outcome = connection.execute(current_judgments(judgments.c.outcome).where(*mine)).scalar()
    return outcome in _HANDED_ON


def _has_slot(connection: Connection, task_id: int, labeler_id: int) -> bool:
    mine = and_(slots.c.task_id == task_id, slots.c.labeler_id == labeler_id)
    return connection.execute(select(exists().where(mine))).scalar_one()


def _add_slot(connection: Connection, task_id: int) -> None:
    last = select(func.max(slots.c.n)).where(slots.c.task_id == task_id)
    n = connection.execute(last).scalar_one() + 1
    insert_new(connection, slots, [{"task_id": task_id, "n": n}], "task_id", "n")


def _remove_slot(connection: Connection, task_id: int) -> None:
    """Take back the slot that a skip added, unless somebody works on it already."""
    free = and_(slots.c.task_id == task_id, _is_free(slots, time.time()))
    last = select(func.max(slots.c.n)).where(free).scalar_subquery()
    connection.execute(delete(slots).where(slots.c.task_id == task_id, slots.c.n == last))


def _lease(connection: Connection, picked: CTE, lease: Values) -> list[int]:
    chosen = tuple_(slots.c.task_id, slots.c.n).in_(select(picked.c.task_id, picked.c.n))
    statement = update(slots).where(chosen).values(lease).returning(slots.c.task_id)
    return list(connection.execute(statement).scalars())


def _claimable(labeler_id: int, now: float) -> Select[tuple[int, int]]:
    """Select the first free slot of each task that this labeler may be asked."""
    own, other, original = slots.alias("own"), slots.alias("other"), slots.alias("original")
    is_repeat_of_own = exists().where(
        original.c.task_id == tasks.c.repeats,
        original.c.labeler_id == labeler_id,
        original.c.judgment_id.is_not(None),
    )
    has_slot = exists().where(own.c.task_id == slots.c.task_id, own.c.labeler_id == labeler_id)
    has_judged = exists().where(
        judgments.c.task_id == slots.c.task_id, judgments.c.labeler_id == labeler_id
    )
    is_not_first = exists().where(
        other.c.task_id == slots.c.task_id, other.c.n < slots.c.n, _is_free(other, now)
    )
    return (
        select(slots.c.task_id, slots.c.n)
        .join_from(slots, tasks, tasks.c.id == slots.c.task_id)
        .where(_is_free(slots, now), ~is_not_first, ~has_slot, ~has_judged)
        .where(or_(tasks.c.repeats.is_(None), is_repeat_of_own))
        .order_by(slots.c.task_id)
    )


def _is_free(table: FromClause, now: float) -> ColumnElement[bool]:
    is_unleased = or_(table.c.labeler_id.is_(None), table.c.lease_until < now)
    return and_(table.c.judgment_id.is_(None), is_unleased)


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
        .where(slots.c.task_id == task_id, _is_free(slots, time.time()))
        .order_by(slots.c.n)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    return bool(_lease(connection, free, filled))
