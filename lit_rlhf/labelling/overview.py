"""How far a labeling project is: tasks, people, days."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from sqlalchemy import Connection, Integer, Select, case, cast, func, select

from lit_rlhf.feedback.counting import Counts, count_store
from lit_rlhf.feedback.disagreements import most_split
from lit_rlhf.feedback.judgments import SAID_NOTHING, answer_text
from lit_rlhf.feedback.quality import LabelerQuality, labeler_quality
from lit_rlhf.feedback.schema import current_judgments, judgments, labelers, slots
from lit_rlhf.labelling.rendering import plain_text
from lit_rlhf.prompts import prompt_text, response_text

_DAY_S = 86_400
_NUM_DAYS = 14
_NUM_DISAGREEMENTS = 5
_SHOWN = 1_000  # characters of a text


class Person(NamedTuple):
    """What one labeler did.

    Attributes:
        name: of the labeler.
        is_paused: gets no tasks for now.
        judged: judgments that count.
        skipped: of these, skips and "cannot judge".
        seconds: for half of the judgments it took at most so long; None where nobody measured.
        last_at: when the newest arrived, in seconds since 1970; None for nobody's.
        quality: against gold answers, others and themselves; None where nothing was judged.
    """

    name: str
    is_paused: bool
    judged: int
    skipped: int
    seconds: float | None
    last_at: float | None
    quality: LabelerQuality | None


class Disagreed(NamedTuple):
    """A task on which labelers differ, as texts that hide nothing.

    Attributes:
        task_id: of the store.
        prompt: or its beginning.
        responses: likewise.
        said: labeler, answer such as `[2] > [1]`, and comment of each judgment.
    """

    task_id: int
    prompt: str
    responses: list[str]
    said: list[tuple[str, str, str]]


class Overview(NamedTuple):
    """The state of a project.

    Attributes:
        counts: how much of everything is there.
        asked: tasks that labelers are asked.
        covered: of these, tasks that need nobody any more.
        people: one a labeler, the busiest first.
        days: day -> judgments received, the newest first; days in UTC.
    """

    counts: Counts
    asked: int
    covered: int
    people: list[Person]
    days: dict[str, int]


def read_overview(connection: Connection) -> Overview:
    """Return the state of a project."""
    asked = connection.execute(select(func.count(slots.c.task_id.distinct()))).scalar_one()
    unjudged = slots.c.judgment_id.is_(None)
    still_open = select(func.count(slots.c.task_id.distinct())).where(unjudged)
    is_open = connection.execute(still_open).scalar_one()
    quality = {found.labeler: found for found in labeler_quality(connection)}
    return Overview(
        counts=count_store(connection),
        asked=asked,
        covered=asked - is_open,
        people=[
            Person(
                row.name,
                row.is_paused,
                row.judged,
                row.skipped,
                median_seconds(connection, row.id),
                row.last_at,
                quality.get(row.name),
            )
            for row in connection.execute(_people())
        ],
        days=_days(connection),
    )


def read_disagreements(connection: Connection) -> list[Disagreed]:
    """Return the tasks most worth discussing: those that split labelers most."""
    return [
        Disagreed(
            task.id,
            _beginning(prompt_text(task.content.prompt)),
            [_beginning(response_text(response)) for response in task.content.responses],
            [
                (said.labeler or "(not named)", answer_text(said), plain_text(said.comment))
                for said in task.content.judgments
            ],
        )
        for task, _, _ in most_split(connection, _NUM_DISAGREEMENTS)
    ]


def median_seconds(connection: Connection, labeler_id: int) -> float | None:
    """Return how long half of a labeler's judgments took at most; None where nobody measured."""
    mine = (judgments.c.labeler_id == labeler_id, judgments.c.duration_s.is_not(None))
    count = connection.execute(select(func.count()).where(*mine)).scalar_one()
    middle = select(judgments.c.duration_s).where(*mine).order_by(judgments.c.duration_s)
    return connection.execute(middle.offset(max(0, (count - 1) // 2)).limit(1)).scalar()


def _people() -> Select[Any]:
    said_nothing = judgments.c.outcome.in_(SAID_NOTHING)
    current = current_judgments(
        judgments.c.labeler_id,
        func.count().label("judged"),
        func.sum(case((said_nothing, 1), else_=0)).label("skipped"),
        func.max(judgments.c.received_at).label("last_at"),
    ).group_by(judgments.c.labeler_id)
    done = current.subquery()
    judged = func.coalesce(done.c.judged, 0)
    return (
        select(
            labelers.c.id,
            labelers.c.name,
            labelers.c.is_paused,
            judged.label("judged"),
            func.coalesce(done.c.skipped, 0).label("skipped"),
            done.c.last_at,
        )
        .join_from(labelers, done, done.c.labeler_id == labelers.c.id, isouter=True)
        .order_by(judged.desc(), labelers.c.name)
    )


def _days(connection: Connection) -> dict[str, int]:
    day = cast(func.floor(judgments.c.received_at / _DAY_S), Integer)
    recent = judgments.c.received_at > time.time() - _NUM_DAYS * _DAY_S
    query = select(day, func.count()).where(recent).group_by(day).order_by(day.desc())
    return {
        time.strftime("%Y-%m-%d", time.gmtime(number * _DAY_S)): count
        for number, count in connection.execute(query)
    }


def _beginning(text: str) -> str:
    return plain_text(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …")
