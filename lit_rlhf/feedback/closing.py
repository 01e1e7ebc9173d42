"""Which of some tasks still wait for labelers, and closing those that need no more."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, select

from lit_rlhf.feedback.schema import slots

_BATCH = 500  # ids in one statement


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
