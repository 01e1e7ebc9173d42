"""Reading judged tasks out of the store: in batches, so that memory does not grow with the store.

All functions take a connection of `Database.reading`, and so see one state of the store.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Select, and_, exists, select

from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.schema import (
    current_judgments,
    judgments,
    labelers,
    prompts,
    responses,
    task_responses,
    tasks,
)
from lit_rlhf.feedback.splits import buckets_of
from lit_rlhf.feedback.submitting import judgment_of
from lit_rlhf.prompts import Conversation, Response

_BATCH = 500  # tasks in memory


class Lineage(NamedTuple):
    """Which judgments something was made from.

    Attributes:
        digest: SHA-256 of their ids in order: the same judgments have the same one.
        newest: id of the one that was stored last; None where there are none.
        number: how many.
    """

    digest: str
    newest: str | None
    number: int


class StoredTask(NamedTuple):
    """A task with what the store knows of it.

    Attributes:
        id: of the task.
        kind: comparison, ranking, rating or edit.
        repeats: id of the task that this one asks again.
        content: prompt, responses and the judgments that count.
    """

    id: int
    kind: str
    repeats: int | None
    content: JudgedTask


def read_questions(connection: Connection) -> list[str]:
    """Return the questions that labelers answered by comparing responses; "" is the usual one."""
    is_second = and_(task_responses.c.task_id == tasks.c.id, task_responses.c.position == 1)
    compared = exists().where(judgments.c.task_id == tasks.c.id), exists().where(is_second)
    found = connection.execute(select(tasks.c.question).where(*compared).distinct()).scalars()
    return sorted(question or "" for question in found)


def read_lineage(connection: Connection, split: str | None, question: str | None = None) -> Lineage:
    """Say which judgments `read_judged` yields."""
    query = current_judgments(judgments.c.id).order_by(judgments.c.id)
    query = _selected(query.join_from(judgments, tasks), split, question)
    hashed = hashlib.sha256()
    number = 0
    for judgment_id in connection.execute(query.execution_options(yield_per=10_000)).scalars():
        hashed.update(f"{judgment_id}\n".encode())
        number += 1
    newest = _selected(select(judgments.c.id).join_from(judgments, tasks), split, question)
    last = connection.execute(newest.order_by(judgments.c.seq.desc()).limit(1)).scalar()
    return Lineage(hashed.hexdigest(), last, number)


def read_judged(
    connection: Connection, split: str | None, question: str | None = None
) -> Iterator[StoredTask]:
    """Yield the tasks that have judgments, in the order in which they were added.

    Planned repeats are left out: they would count their labelers twice.

    Args:
        connection: of `Database.reading`.
        split: None for all.
        question: None for all; "" for the usual one, which has no name.
    """
    judged = exists().where(judgments.c.task_id == tasks.c.id)
    query = _selected(select(tasks.c.id).where(judged), split, question)
    query = query.order_by(tasks.c.id).limit(_BATCH)
    last = 0
    while ids := connection.execute(query.where(tasks.c.id > last)).scalars().all():
        yield from read_tasks(connection, ids)
        last = ids[-1]


def read_tasks(connection: Connection, ids: Sequence[int]) -> Iterator[StoredTask]:
    """Yield tasks by their ids, in ascending order."""
    found = connection.execute(
        select(*tasks.c, prompts.c.content)
        .join_from(tasks, prompts)
        .where(tasks.c.id.in_(ids))
        .order_by(tasks.c.id)
    ).all()
    members = _read_responses(connection, ids)
    judged = _read_judgments(connection, ids)
    for row in found:
        texts, models = zip(*members[row.id], strict=True)
        content = JudgedTask(
            _text_or_chat(row.content),
            texts,
            tuple(judged[row.id]),
            models if any(model is not None for model in models) else None,
            cast("dict[str, object]", row.metadata or {}),
            row.question,
        )
        yield StoredTask(row.id, row.kind, row.repeats, content)


def _selected(query: Select[Any], split: str | None, question: str | None) -> Select[Any]:
    query = query.where(tasks.c.repeats.is_(None))
    if question is not None:
        query = query.where(tasks.c.question.is_not_distinct_from(question or None))
    if split is None:
        return query
    buckets = buckets_of(split)
    return query.join(prompts, prompts.c.id == tasks.c.prompt_id).where(
        prompts.c.bucket.between(buckets.start, buckets.stop - 1)
    )


def _read_responses(
    connection: Connection, ids: Sequence[int]
) -> dict[int, list[tuple[Response, str | None]]]:
    rows = connection.execute(
        select(task_responses.c.task_id, responses.c.text, responses.c.model)
        .join_from(task_responses, responses)
        .where(task_responses.c.task_id.in_(ids))
        .order_by(task_responses.c.task_id, task_responses.c.position)
    )
    found: dict[int, list[tuple[Response, str | None]]] = defaultdict(list)
    for row in rows:
        found[row.task_id].append((_text_or_chat(row.text), row.model))
    return found


def _read_judgments(connection: Connection, ids: Sequence[int]) -> dict[int, list[Judgment]]:
    name = labelers.c.name.label("labeler")
    rows = connection.execute(
        current_judgments(*judgments.c, name)
        .join_from(judgments, labelers, isouter=True)
        .where(judgments.c.task_id.in_(ids))
        .order_by(judgments.c.seq)
    )
    found: dict[int, list[Judgment]] = defaultdict(list)
    for row in rows:
        found[row.task_id].append(judgment_of(row, row.labeler))
    return found


def _text_or_chat(content: object) -> str | Conversation:
    return content if isinstance(content, str) else tuple(cast("list[Any]", content))
