"""What the project page says about all judgments: read when somebody asks, but not all the time.

At 200,000 judgments it takes ten seconds, in which labelers' requests are slower. So what took
long is shown again for thirty times as long; who may do what is always as it is now.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Integer, Select, case, cast, func, select

from lit_rlhf.feedback.agreement_report import Agreement, read_agreement
from lit_rlhf.feedback.counting import Counts, count_store
from lit_rlhf.feedback.database import Database
from lit_rlhf.feedback.disagreements import Disagreement, most_split
from lit_rlhf.feedback.judgments import SAID_NOTHING
from lit_rlhf.feedback.quality import LabelerQuality, labeler_quality
from lit_rlhf.feedback.schema import current_judgments, judgments, labelers, slots

_QUICK_S = 0.5  # what takes less is read each time
_KEPT = 30  # times as long as it took
_DAY_S = 86_400
_NUM_DAYS = 14
_NUM_DISAGREEMENTS = 5


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


class Statistics(NamedTuple):
    """What the judgments came to.

    Attributes:
        counts: how much of everything is there.
        asked: tasks that labelers are asked.
        covered: of these, tasks that need nobody any more.
        people: one a labeler, the busiest first.
        days: day -> judgments received, the newest first; days in UTC.
        agreement: of the people.
        disagreements: the tasks most worth discussing: those that split labelers most.
        read_at: when, in seconds since 1970.
    """

    counts: Counts
    asked: int
    covered: int
    people: list[Person]
    days: dict[str, int]
    agreement: list[Agreement]
    disagreements: list[Disagreement]
    read_at: float


class StatisticsReader:
    """Reads the statistics of a store; several threads may ask, and one reads."""

    def __init__(self, quick_s: float = _QUICK_S) -> None:
        """Begin with nothing read.

        Args:
            quick_s: what took less is read again each time.
        """
        self._quick_s = quick_s
        self._lock = threading.Lock()
        self._last: Statistics | None = None
        self._good_until = 0.0

    def read(self, database: Database) -> Statistics:
        """Return the statistics, with all labelers as they are now."""
        with self._lock, database.reading() as connection:
            if self._last is None or time.monotonic() > self._good_until:
                began = time.monotonic()
                self._last = _read(connection)
                took = time.monotonic() - began
                kept_s = _KEPT * took if took >= self._quick_s else 0.0
                self._good_until = time.monotonic() + kept_s
            return self._last._replace(people=_as_they_are(self._last.people, connection))


def _read(connection: Connection) -> Statistics:
    asked = select(func.count(slots.c.task_id.distinct()))
    num_asked = connection.execute(asked).scalar_one()
    num_open = connection.execute(asked.where(slots.c.judgment_id.is_(None))).scalar_one()
    quality = {found.labeler: found for found in labeler_quality(connection)}
    return Statistics(
        count_store(connection),
        num_asked,
        num_asked - num_open,
        [
            Person(
                row.name,
                row.is_paused,
                row.judged,
                row.skipped,
                _median_seconds(connection, row.id),
                row.last_at,
                quality.get(row.name),
            )
            for row in connection.execute(_people())
        ],
        _days(connection),
        read_agreement(connection),
        most_split(connection, _NUM_DISAGREEMENTS),
        time.time(),
    )


def _as_they_are(people: Sequence[Person], connection: Connection) -> list[Person]:
    """Return all labelers with their state of now, and what they did as it was read."""
    query = select(labelers.c.name, labelers.c.is_paused).order_by(labelers.c.name)
    paused = {row.name: row.is_paused for row in connection.execute(query)}
    known = {person.name: person for person in people}
    nothing = Person("", False, 0, 0, None, None, None)
    names = [*known, *(name for name in paused if name not in known)]
    return [known.get(name, nothing)._replace(name=name, is_paused=paused[name]) for name in names]


def _median_seconds(connection: Connection, labeler_id: int) -> float | None:
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
