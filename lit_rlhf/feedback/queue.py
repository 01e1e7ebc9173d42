"""Who judges which task next.

A slot is claimed by one statement, so two labelers never get the same one, and a labeler never
gets a task twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
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

from lit_rlhf.feedback.schema import in_parts, judgments, labelers, slots, tasks


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
    )
    taken = take_slots(connection, mine, lease, waits=True)  # somebody takes those that ended
    had = num_gold_tasks(connection, labeler_id, gold_first) if gold_first > 0 else 0
    if (missing := gold_first - had) > 0:
        with_gold = select(judgments.c.task_id).where(judgments.c.is_gold)
        gold = _claimable(labeler_id, now).where(slots.c.task_id.in_(with_gold))
        found = take_slots(connection, gold.limit(min(count - len(taken), missing)), lease)
        if found:
            return dict.fromkeys(sorted(taken + found), now + lease_s)
    # First behind the labeler's last task: those before it are mostly judged, and many to look at.
    newest = select(func.max(judgments.c.task_id)).where(judgments.c.labeler_id == labeler_id)
    for last in dict.fromkeys((connection.execute(newest).scalar() or 0, 0)):
        if len(taken) < count:
            more = _claimable(labeler_id, now).where(slots.c.task_id > last)
            taken += take_slots(connection, more.limit(count - len(taken)), lease)
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


def open_slots(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Return how many judgments each task still waits for; tasks that wait for none are left out.

    Args:
        connection: of `Database.reading`.
        ids: of the tasks.
    """
    waiting: dict[int, int] = {}
    for some in in_parts(ids):
        query = (
            select(slots.c.task_id, func.count().label("number"))
            .where(slots.c.task_id.in_(some), slots.c.judgment_id.is_(None))
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


def take_slots(
    connection: Connection,
    picked: Select[Any],
    values: Mapping[str, object],
    *,
    waits: bool = False,
) -> list[int]:
    """Write values into the slots that a query picks, in one statement.

    Args:
        connection: of `Database.writing`.
        picked: task and number of slots.
        values: of these slots from now on.
        waits: for slots that somebody else is just taking, and then looks again; else they are
            passed over.

    Returns:
        The tasks of the slots that were there to be taken.
    """
    found = picked.with_for_update(skip_locked=not waits, of=slots).cte("picked")
    chosen = tuple_(slots.c.task_id, slots.c.n).in_(select(found.c.task_id, found.c.n))
    statement = update(slots).where(chosen).values(values).returning(slots.c.task_id)
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
        other.c.task_id == slots.c.task_id, other.c.n < slots.c.n, is_free(other, now)
    )
    return (
        select(slots.c.task_id, slots.c.n)
        .join_from(slots, tasks, tasks.c.id == slots.c.task_id)
        .where(is_free(slots, now), ~is_not_first, ~has_slot, ~has_judged)
        .where(or_(tasks.c.repeats.is_(None), is_repeat_of_own))
        .order_by(slots.c.task_id)
    )


def is_free(table: FromClause, now: float) -> ColumnElement[bool]:
    """Say of a slot whether nobody judged it or works on it."""
    is_unleased = or_(table.c.labeler_id.is_(None), table.c.lease_until < now)
    return and_(table.c.judgment_id.is_(None), is_unleased)
