"""What the project page says about all judgments: read when somebody asks, but not all the time.

At 200,000 judgments it takes ten seconds, in which labelers' requests are slower. So what took
long is shown again for thirty times as long; who may do what is always as it is now.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from lit_rlhf.feedback.agreement_report import Agreement, read_agreement
from lit_rlhf.feedback.database import Database
from lit_rlhf.feedback.schema import labelers
from lit_rlhf.labelling.overview import (
    Disagreed,
    Overview,
    Person,
    read_disagreements,
    read_overview,
)

_QUICK_S = 0.5  # what takes less is read each time
_KEPT = 30  # times as long as it took


class Statistics(NamedTuple):
    """What the judgments came to.

    Attributes:
        overview: coverage, people and days.
        agreement: of the people.
        disagreements: the tasks most worth discussing.
        read_at: when, in seconds since 1970.
    """

    overview: Overview
    agreement: list[Agreement]
    disagreements: list[Disagreed]
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
            people = _as_they_are(self._last.overview.people, connection)
            return self._last._replace(overview=self._last.overview._replace(people=people))


def _read(connection: Connection) -> Statistics:
    return Statistics(
        read_overview(connection),
        read_agreement(connection),
        read_disagreements(connection),
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
