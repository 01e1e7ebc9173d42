"""Judgments as columns of numbers: what every comparison of labelers is computed from.

A judgment of two responses is one answer; one that ranks n responses answers n (n - 1) / 2
questions, one that rates them n. Answers to the same question of the same task have the same
`unit`, so labelers agree where their values of a unit are equal.

    N  answers
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    func,
    select,
    type_coerce,
)

from lit_rlhf.feedback.judgments import SAID_NOTHING, rankings_of
from lit_rlhf.feedback.schema import current_judgments, judgments, labelers, task_responses, tasks

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Values of a pair: who is better, a tie, or both bad, which is no tie.
FIRST, SECOND, TIE, BOTH_BAD = 1.0, -1.0, 0.0, 2.0
UNNAMED = 0  # the labeler of judgments whose file named none: each may be somebody else
# A unit is its task and the places of two responses (or of one, twice), in one number.
_BITS = 12


class Answers(NamedTuple):
    """Answers, one a row.

    Attributes:
        task: `[N]` ids; of a planned repeat that of the task which it repeats.
        unit: `[N]` which responses of which task.
        value: `[N]` FIRST, SECOND, TIE or BOTH_BAD of two responses, or a rating.
        labeler: `[N]` ids, or UNNAMED.
        is_rating: `[N]` the value is a rating of one response.
        is_gold: `[N]` taken for the truth.
        is_repeat: `[N]` of a task that was asked again.
        is_model: `[N]` the labeler is a model, not a person.
        judged_at: `[N]` seconds since 1970.
    """

    task: Ints
    unit: Ints
    value: Floats
    labeler: Ints
    is_rating: Bools
    is_gold: Bools
    is_repeat: Bools
    is_model: Bools
    judged_at: Floats

    def where(self, rows: Bools | Ints) -> Answers:
        """Return some answers, by a mask or by their places."""
        return Answers(*(column[rows] for column in self))  # type: ignore[arg-type] # a column each


_ROW = np.dtype([
    ("task", np.int64), ("unit", np.int64), ("value", np.float64), ("labeler", np.int64),
    ("is_rating", np.bool_), ("is_gold", np.bool_), ("is_repeat", np.bool_),
    ("is_model", np.bool_), ("judged_at", np.float64),
])  # fmt: skip


def read_answers(connection: Connection, *where: ColumnElement[bool]) -> Answers:
    """Read the answers of judgments that count and say something about the responses.

    Args:
        connection: of `Database.reading`.
        *where: which judgments; all where nothing is given.
    """
    table = np.fromiter(_rows(connection, *where), _ROW)
    return Answers(*(np.ascontiguousarray(table[name]) for name in Answers._fields))


def _rows(connection: Connection, *where: ColumnElement[bool]) -> Iterator[tuple[object, ...]]:
    columns = (judgments.c.is_gold, tasks.c.repeats, labelers.c.kind, judgments.c.valid_from)
    query = select_said(judgments.c.labeler_id, *columns).where(*where)
    for task_id, *said, owner, is_gold, repeats, kind, valid_from in connection.execute(query):
        task, labeler = repeats or task_id, owner or UNNAMED
        about = (is_gold, repeats is not None, kind == "model")
        for (a, b), value in values_of(*said):
            unit = (task << 2 * _BITS) | (a << _BITS) | b
            yield (task, unit, value, labeler, a == b, *about, valid_from)


@lru_cache(maxsize=10_000)
def values_of(
    outcome: str, ranks: str | None, ratings: str | None, num_responses: int
) -> list[tuple[tuple[int, int], float]]:
    """Return what a judgment answers: places of two responses, or of one twice, and the value.

    Args:
        outcome: of the judgment.
        ranks: as JSON, or None.
        ratings: as JSON, or None; read where nothing was ranked.
        num_responses: of the task.
    """
    if outcome in ("tie", "both_bad"):
        value = TIE if outcome == "tie" else BOTH_BAD
        return [(pair, value) for pair in combinations(range(num_responses), 2)]
    if ranks is None:
        rated = enumerate(json.loads(ratings or "[]"))
        return [((place, place), rating) for place, rating in rated if rating is not None]
    return [
        ((a, b), TIE if first == second else FIRST if first < second else SECOND)
        for places in rankings_of(json.loads(ranks))
        for (a, first), (b, second) in combinations(enumerate(places), 2)
        if first is not None and second is not None
    ]


def select_said(*columns: ColumnElement[Any]) -> Select[Any]:
    """Select what current judgments say that say something: arguments of `values_of`, and more.

    Args:
        *columns: of the judgments, their tasks or labelers, beside the task's id.
    """
    places = select(func.count()).where(task_responses.c.task_id == judgments.c.task_id)
    said = (
        judgments.c.task_id,
        judgments.c.outcome,
        type_coerce(judgments.c.ranks, Text).label("ranks"),
        type_coerce(judgments.c.ratings, Text).label("ratings"),
        places.correlate(judgments).scalar_subquery().label("num_responses"),
    )
    return (
        current_judgments(*said, *columns)
        .join_from(judgments, tasks)
        .join(labelers, isouter=True)
        .where(judgments.c.outcome.not_in(SAID_NOTHING))
        .execution_options(yield_per=10_000)
    )
