"""The feedback store: prompts, responses, tasks, and every judgment that people made of them.

    store = FeedbackStore.open("feedback.db")        # or postgresql://USER@HOST/NAME
    store.add_tasks(tasks, slots=3)                  # three labelers are to judge each of them
    for task in store.claim("ana", count=5):         # leased to ana for ten minutes
        show(task.prompt, task.responses)
        store.submit(task.id, Judgment("judged", (1, 2), labeler="ana", id=str(uuid4())))
    for task in store.judged_tasks(split="train"):   # a stream
        train_on(task)
    store.counts()

What holds, whatever happens to the process or the network:

- A judgment for which `submit` returned is on the disk, exactly once, however often it is sent.
- A judgment is never refused for being late, and never changed: a correction is a new one.
- A task is given to as many labelers as it has slots, and to none of them twice. A slot whose
  lease ends unjudged is given to another one; so is a task that somebody skipped.
- A prompt never moves from one split to another.

All methods may be called from several threads, and several processes may open the same store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from sqlalchemy import func, select, update

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.adding import (
    Added,
    Adder,
    Kind,
    LabelerKind,
    Origin,
    add_repeat,
    labeler_id,
    task_ids,
)
from lit_rlhf.feedback.counting import Counts, count_store
from lit_rlhf.feedback.database import Database, parse_url
from lit_rlhf.feedback.judgments import JudgedTask, Judgment, check_judgment
from lit_rlhf.feedback.queue import claim_slots, close_task, open_slots
from lit_rlhf.feedback.reading import (
    Lineage,
    StoredTask,
    read_judged,
    read_lineage,
    read_questions,
    read_tasks,
)
from lit_rlhf.feedback.schema import in_parts, labelers, task_responses
from lit_rlhf.feedback.submitting import Receipt, store_judgment
from lit_rlhf.prompts import Prompt, response_text


class OpenTask(NamedTuple):
    """A task that a labeler is asked, without what others said about it.

    Attributes:
        id: give it back with the judgment.
        kind: comparison, ranking, rating or edit.
        prompt: text or chat.
        responses: in the store's order; the page shows them in an order by chance, and says so in
            the judgment's `side_order`. Ranks and ratings keep the store's order.
        lease_until: in seconds since 1970; a later judgment is stored all the same.
        question: which question about the responses; None for the usual one of the kind.
    """

    id: int
    kind: str
    prompt: Prompt
    responses: tuple[str, ...]
    lease_until: float
    question: str | None


class FeedbackStore:
    """A store of feedback in a database; see the module for what it promises."""

    def __init__(self, database: Database) -> None:
        """Take an open database; `FeedbackStore.open` is the usual way."""
        self.database = database

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """Open a store, and bring its tables up to date.

        Args:
            url: a file's name, `sqlite:///FILE`, or `postgresql://USER@HOST/NAME` (set the
                password by `PGPASSWORD` or `~/.pgpass`, so that it stands in no log).
            create: make the SQLite file where there is none.

        Raises:
            DataError: there is no such store, or it cannot be opened.
            ConfigError: PostgreSQL's driver is not installed.
        """
        return cls(Database(url, create=create))

    @classmethod
    @contextmanager
    def filling(cls, url: str) -> Iterator[Self]:
        """Open a store to add to it; where nothing was added, a new file is not left behind.

        Raises:
            DataError: as `open`.
        """
        path = Path(parse_url(url).database or "")
        was_there = path.exists()
        store = cls.open(url)
        try:
            yield store
        finally:
            is_empty = not was_there and store.database.is_sqlite and not store.counts().tasks
            store.close()
            if is_empty:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def add_tasks(
        self,
        added: Iterable[JudgedTask],
        *,
        slots: int = 0,
        kind: Kind | None = None,
        origin: Origin | None = None,
        labeler_kind: LabelerKind = "person",
    ) -> Added:
        """Add tasks, with the judgments that they come with.

        A task that is there already gets what is new: judgments, and slots up to `slots`.

        Args:
            added: the tasks, as a stream; 500 of them are one transaction.
            slots: how many labelers are to judge each task; 0 asks nobody.
            kind: what they are asked; None: what the judgments say, else a rating of one response,
                a comparison of two, a ranking of more.
            origin: how the responses were made.
            labeler_kind: of labelers who are new: people, or models that judge beside them.

        Raises:
            DataError: a task cannot be asked, or a judgment does not fit its task. The tasks of
                earlier transactions stay.
        """
        return Adder(self.database, slots, kind, origin or Origin(), labeler_kind).add(added)

    def ids_of(
        self, added: Iterable[JudgedTask], *, kind: Kind | None = None, origin: Origin | None = None
    ) -> list[int]:
        """Return the ids of tasks that were added with this kind and origin, in their order.

        Raises:
            DataError: one of them was not added.
        """
        with self.database.reading() as connection:
            return task_ids(connection, added, kind, origin or Origin())

    def open_slots(self, ids: Sequence[int]) -> dict[int, int]:
        """Return how many judgments each of these tasks waits for, of those that wait for any."""
        with self.database.reading() as connection:
            return open_slots(connection, ids)

    def close_task(self, task_id: int) -> int:
        """Ask nobody else about a task; return how many slots were open. Late judgments count."""
        with self.database.writing() as connection:
            return close_task(connection, task_id)

    def tasks(self, ids: Sequence[int]) -> list[StoredTask]:
        """Return tasks with the judgments that count, by ascending id."""
        with self.database.reading() as connection:
            return [task for some in in_parts(sorted(ids)) for task in read_tasks(connection, some)]

    def add_repeat(self, task_id: int, slots: int = 1) -> int:
        """Plan to ask labelers again who judged a task: do they agree with themselves?

        Returns:
            The id of the new task, which points at the first one.
        """
        with self.database.writing() as connection:
            return add_repeat(connection, task_id, slots)

    def add_labeler(self, name: str, kind: LabelerKind = "person") -> None:
        """Add a labeler; nothing changes where the name is there already."""
        with self.database.writing() as connection:
            labeler_id(connection, name, kind)

    def pause(self, name: str, *, is_paused: bool = True) -> None:
        """Give a labeler no more tasks, or tasks again; judgments are taken as before."""
        with self.database.writing() as connection:
            named = labelers.c.name == name
            connection.execute(update(labelers).where(named).values(is_paused=is_paused))

    def claim(
        self, labeler: str, count: int = 1, lease_s: float = 600, *, gold_first: int = 0
    ) -> list[OpenTask]:
        """Lease the next tasks to a labeler: first those claimed and not judged, then new ones.

        Args:
            labeler: the name; a new one is added.
            count: how many tasks the labeler shall have.
            lease_s: after so many seconds a slot that is not judged may go to another labeler.
            gold_first: a labeler's first tasks are so many that have a gold answer.

        Returns:
            Up to `count` tasks; none for a labeler who is paused.
        """
        with self.database.writing() as connection:
            owner = labeler_id(connection, labeler)
            paused = select(labelers.c.is_paused).where(labelers.c.id == owner)
            if connection.execute(paused).scalar():
                return []
            leases = claim_slots(connection, owner, count, lease_s, gold_first)
            claimed = list(read_tasks(connection, list(leases)))
        return [
            OpenTask(
                id_,
                kind,
                content.prompt,
                tuple(map(response_text, content.responses)),
                leases[id_],
                content.question,
            )
            for id_, kind, _, content in claimed
        ]

    def submit(self, task_id: int, judgment: Judgment) -> Receipt:
        """Store a judgment; when this returns, it is on the disk.

        Sending it again stores nothing and is no error. One that comes late is stored.

        Args:
            task_id: what was judged.
            judgment: with `labeler` and `id`.

        Raises:
            DataError: there is no such task, the judgment does not fit it, or another judgment has
                the same id.
        """
        if not judgment.id or not judgment.labeler:
            raise DataError("a judgment that is submitted needs an 'id' and a 'labeler'.")
        with self.database.writing() as connection:
            places = select(func.count()).where(task_responses.c.task_id == task_id)
            num_responses = connection.execute(places).scalar_one()
            if not num_responses:
                raise DataError(f"{self.database}: has no task {task_id}.")
            check_judgment(judgment, num_responses)
            owner = labeler_id(connection, judgment.labeler)
            return store_judgment(connection, task_id, judgment, owner)

    def task(self, task_id: int) -> StoredTask:
        """Return a task with the judgments that count.

        Raises:
            DataError: there is no such task.
        """
        with self.database.reading() as connection:
            found = next(read_tasks(connection, [task_id]), None)
        if found is None:
            raise DataError(f"{self.database}: has no task {task_id}.")
        return found

    def judged_tasks(
        self, split: str | None = None, question: str | None = None
    ) -> Iterator[JudgedTask]:
        """Yield the tasks that somebody judged, each with the judgments that count.

        Args:
            split: "train", "validation" or "test": 80, 10 and 10 per cent of the prompts, by a
                hash; None for all.
            question: such as "harmless"; "" for the usual one, None for all.

        Raises:
            DataError: there is no such split.
        """
        with self.snapshot(split, question) as (_, judged):
            yield from judged

    @contextmanager
    def snapshot(
        self, split: str | None, question: str | None = None
    ) -> Iterator[tuple[Lineage, Iterator[JudgedTask]]]:
        """Open one state of a split: which judgments it has, and its tasks as a stream.

        Raises:
            DataError: there is no such split.
        """
        with self.database.reading() as connection:
            judged = (task.content for task in read_judged(connection, split, question))
            yield read_lineage(connection, split, question), judged

    def check_question(self, question: str | None) -> None:
        """Refuse to mix the answers to several questions, or to take those to none.

        Args:
            question: the one to take, "" for the usual one; None where nobody named one.

        Raises:
            DataError: there are several, or this one is not among them.
        """
        with self.database.reading() as connection:
            found = read_questions(connection)
        names = ", ".join(repr(name) for name in found)
        if question is None and len(found) > 1:
            raise DataError(
                f"{self.database}: its labelers answered several questions ({names}), and one "
                "model learns the answers to one. Name it: question=NAME ('' is the one without "
                "a name)."
            )
        if question is not None and found and question not in found:
            raise DataError(f"{self.database}: nobody answered {question!r}; there are: {names}.")

    def counts(self) -> Counts:
        """Return how much of everything is there."""
        with self.database.reading() as connection:
            return count_store(connection)
