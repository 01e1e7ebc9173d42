"""Asking a task again, to see whether labelers agree with themselves."""

from __future__ import annotations

import time

from sqlalchemy import Connection, func, select

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.schema import slots, task_responses, tasks
from lit_rlhf.feedback.submitting import digest, insert_new


def add_repeat(connection: Connection, task_id: int, num_slots: int) -> int:
    """Add a task with the same responses that points at the first one, and return its id.

    Raises:
        DataError: there is no such task, or it is a repeat itself.
    """
    first = connection.execute(select(tasks).where(tasks.c.id == task_id)).one_or_none()
    if first is None or first.repeats is not None:
        found = "there is no such task" if first is None else f"it repeats {first.repeats} itself"
        raise DataError(f"task {task_id} cannot be asked again: {found}.")
    repeated = select(func.count()).where(tasks.c.repeats == task_id)
    number = connection.execute(repeated).scalar_one()
    row = {
        "digest": digest("repeat", first.digest, number),
        "prompt_id": first.prompt_id,
        "kind": first.kind,
        "question": first.question,
        "repeats": task_id,
        "created_at": time.time(),
    }
    added = connection.execute(tasks.insert().values(row).returning(tasks.c.id))
    repeat: int = added.scalar_one()
    members = connection.execute(
        select(task_responses.c.position, task_responses.c.response_id).where(
            task_responses.c.task_id == task_id
        )
    )
    copied = [{"task_id": repeat, **member._mapping} for member in members]
    insert_new(connection, task_responses, copied, "task_id", "position")
    places = [{"task_id": repeat, "n": n} for n in range(num_slots)]
    insert_new(connection, slots, places, "task_id", "n")
    return repeat
