"""Putting prompts, responses, tasks and the judgments that came with them into the store.

Everything has a digest of its content, so what is added twice is stored once. Rows go in by
batches, each a transaction of its own: an import that broke off goes on when it is run again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple, get_args

from sqlalchemy import Connection, Table, func, literal, select

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.database import Database
from lit_rlhf.feedback.judgments import JudgedTask, Judgment, check_judgment
from lit_rlhf.feedback.schema import (
    dump_json,
    in_parts,
    judgments,
    labelers,
    prompts,
    responses,
    slots,
    task_responses,
    tasks,
)
from lit_rlhf.feedback.splits import bucket_of
from lit_rlhf.feedback.submitting import Values, digest, insert_new, judgment_row

Kind = Literal["comparison", "ranking", "rating", "edit"]
LabelerKind = Literal["person", "model"]
MOST_RANKED = 9  # as many keys as a keyboard has digits

_BATCH = 500  # tasks in a transaction


class Origin(NamedTuple):
    """How responses were made.

    Attributes:
        policy: name of the policy, for responses whose task names no model.
        checkpoint: the policy's folder or hub name.
        sampling: its settings, such as temperature and seed.
    """

    policy: str | None = None
    checkpoint: str | None = None
    sampling: Mapping[str, object] | None = None


class Added(NamedTuple):
    """What a call of `add_tasks` stored that was not there before.

    Attributes:
        tasks: new tasks.
        judgments: new judgments.
        unasked: tasks that nobody will be asked, as two of their responses are the same text.
    """

    tasks: int = 0
    judgments: int = 0
    unasked: int = 0


def _kind_of(task: JudgedTask) -> Kind:
    """Return what is asked of a task: what its judgments say, else by its number of responses."""
    if any(said.edit is not None for said in task.judgments):
        return "edit"
    if len(task.responses) == 1 or any(said.ratings is not None for said in task.judgments):
        return "rating"
    return "comparison" if len(task.responses) == 2 else "ranking"


class _TaskRows(NamedTuple):
    """The rows of one task, without the ids that the database gives."""

    prompt: Values
    responses: list[Values]
    task: Values
    judgments: tuple[Judgment, ...]


@dataclass
class Adder:
    """Adds tasks to a database.

    Attributes:
        database: where to.
        num_slots: how many labelers are to judge each task; 0 asks nobody.
        kind: what they are asked; None for what `_kind_of` says.
        origin: how the responses were made.
        labeler_kind: of labelers who are new, "person" or "model".
    """

    database: Database
    num_slots: int
    kind: Kind | None
    origin: Origin
    labeler_kind: LabelerKind = "person"
    _labelers: dict[str, int] = field(default_factory=dict)
    # Judgments without a labeler that a task had already in this call: they are told apart by it.
    _anonymous: Counter[str] = field(default_factory=Counter)

    def add(self, added: Iterable[JudgedTask]) -> Added:
        """Add tasks; arguments and errors as in `FeedbackStore.add_tasks`."""
        total = Added()
        stream = iter(added)
        while batch := list(islice(stream, _BATCH)):
            rows = [_rows_of(task, self.kind or _kind_of(task), self.origin) for task in batch]
            for row in rows:
                _check(row, self.num_slots)
            with self.database.writing() as connection:
                self.database.wait_to_add(connection)
                part = self._add_batch(connection, rows)
            total = Added(*(a + b for a, b in zip(total, part, strict=True)))
        return total

    def _add_batch(self, connection: Connection, rows: list[_TaskRows]) -> Added:
        prompt_ids, _ = _ids(connection, prompts, [row.prompt for row in rows])
        for row in rows:
            for owned in (*row.responses, row.task):
                owned["prompt_id"] = prompt_ids[row.prompt["digest"]]
        texts = [text for row in rows for text in row.responses]
        response_ids, _ = _ids(connection, responses, texts)
        task_ids, num_tasks = _ids(connection, tasks, [row.task for row in rows])
        members, places, num_unasked = [], [], 0
        for row in rows:
            task_id = task_ids[row.task["digest"]]
            ids = [response_ids[text["digest"]] for text in row.responses]
            members += [
                {"task_id": task_id, "position": i, "response_id": id_} for i, id_ in enumerate(ids)
            ]
            if len({dump_json(text["text"]) for text in row.responses}) == len(ids):
                places += [{"task_id": task_id, "n": n} for n in range(self.num_slots)]
            elif self.num_slots:
                num_unasked += 1
        insert_new(connection, task_responses, members, "task_id", "position")
        insert_new(connection, slots, places, "task_id", "n")
        judged = self._judgment_rows(connection, rows, task_ids)
        return Added(num_tasks, insert_new(connection, judgments, judged, "id"), num_unasked)

    def _judgment_rows(
        self, connection: Connection, rows: list[_TaskRows], task_ids: Mapping[str, int]
    ) -> list[Values]:
        now = time.time()
        result = []
        for row in rows:
            valid_from: dict[str, float] = {}
            for judgment in row.judgments:
                key = row.task["digest"]
                named = judgment._replace(id=judgment.id or self._made_id(judgment, key))
                owner = self._labeler_id(connection, judgment.labeler)
                values = judgment_row(named, task_ids[key], owner, now)
                earlier = valid_from.get(judgment.replaces or "", values["valid_from"])
                values["valid_from"] = max(values["valid_from"], earlier)
                valid_from[values["id"]] = values["valid_from"]
                result.append(values)
        return result

    def _labeler_id(self, connection: Connection, name: str | None) -> int | None:
        if name is None:
            return None
        if name not in self._labelers:
            self._labelers[name] = labeler_id(connection, name, self.labeler_kind)
        return self._labelers[name]

    def _made_id(self, judgment: Judgment, task: str) -> str:
        """Return an id that this judgment gets whenever its file is read."""
        number = None
        if judgment.labeler is None:
            number = self._anonymous[task]
            self._anonymous[task] += 1
        return digest(task, number, list(judgment))


def task_ids(
    connection: Connection, added: Iterable[JudgedTask], kind: Kind | None, origin: Origin
) -> list[int]:
    """Return the ids of tasks as `Adder` stored them, in their order.

    Raises:
        DataError: one of them was not added.
    """
    digests = [_rows_of(task, kind or _kind_of(task), origin).task["digest"] for task in added]
    found: dict[str, int] = {}
    for some in in_parts(digests):
        found |= _find(connection, tasks, some)
    if missing := sum(digest not in found for digest in digests):
        raise DataError(f"{missing} of {len(digests)} tasks are not in the feedback store.")
    return [found[digest] for digest in digests]


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
    columns = (literal(repeat), task_responses.c.position, task_responses.c.response_id)
    members = select(*columns).where(task_responses.c.task_id == task_id)
    names = ["task_id", "position", "response_id"]
    connection.execute(task_responses.insert().from_select(names, members))
    places = [{"task_id": repeat, "n": n} for n in range(num_slots)]
    insert_new(connection, slots, places, "task_id", "n")
    return repeat


def labeler_id(connection: Connection, name: str, kind: LabelerKind = "person") -> int:
    """Return the id of a labeler, who is added where the name is new."""
    row = {"name": name, "kind": kind, "is_paused": False, "created_at": time.time()}
    known = select(labelers.c.id).where(labelers.c.name == name)
    found: int | None = connection.execute(known).scalar()
    if found is None:
        insert_new(connection, labelers, [row], "name")
        found = connection.execute(known).scalar_one()
    return found


def _rows_of(task: JudgedTask, kind: Kind, origin: Origin) -> _TaskRows:
    content = task.prompt if isinstance(task.prompt, str) else list(task.prompt)
    prompt = {"digest": digest(content), "content": content, "bucket": bucket_of(task.prompt)}
    sampling = None if origin.sampling is None else dict(origin.sampling)
    made = {"checkpoint": origin.checkpoint, "sampling": sampling}
    texts: list[Values] = []
    models = task.models or (None,) * len(task.responses)
    for answer, model in zip(task.responses, models, strict=True):
        content = answer if isinstance(answer, str) else list(answer)
        response = {"text": content, "model": model or origin.policy, **made}
        texts.append({"digest": digest(prompt["digest"], response), **response})
    asked = [kind] if task.question is None else [kind, task.question]
    row = {
        "digest": digest(*asked, prompt["digest"], [text["digest"] for text in texts]),
        "kind": kind,
        "question": task.question,
        "metadata": task.metadata or None,
        "created_at": time.time(),
    }
    return _TaskRows(prompt, texts, row, task.judgments)


def _check(rows: _TaskRows, num_slots: int) -> None:
    """Raise a DataError if a task cannot be stored, or not be asked."""
    kind, num_responses = rows.task["kind"], len(rows.responses)
    if kind not in get_args(Kind):
        raise DataError(f"a task's kind is one of {', '.join(get_args(Kind))}, not {kind!r}.")
    least, most = {"comparison": (2, 2), "ranking": (2, MOST_RANKED)}.get(kind, (1, MOST_RANKED))
    if not num_responses or (num_slots and not least <= num_responses <= most):
        raise DataError(
            f"a {kind} of {num_responses} responses cannot be asked; it takes {least} to {most}."
        )
    for judgment in rows.judgments:
        check_judgment(judgment, num_responses)


def _ids(
    connection: Connection, table: Table, rows: Sequence[Values]
) -> tuple[dict[str, int], int]:
    """Insert the rows that are not there; return digest -> id of all, and how many were new."""
    distinct = {row["digest"]: row for row in rows}
    num_new = insert_new(connection, table, list(distinct.values()), "digest")
    return _find(connection, table, list(distinct)), num_new


def _find(connection: Connection, table: Table, digests: Sequence[str]) -> dict[str, int]:
    query = select(table.c.digest, table.c.id).where(table.c.digest.in_(digests))
    return {row.digest: row.id for row in connection.execute(query)}
