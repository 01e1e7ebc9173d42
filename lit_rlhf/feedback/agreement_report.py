"""How far the labelers of a store agree, from one GROUP BY over its judgments."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection, func, or_

from lit_rlhf.feedback.agreement import (
    Estimate,
    Level,
    Measure,
    Undefined,
    fleiss_kappa,
    krippendorff_alpha,
    patterns_of,
    percent_agreement,
    with_interval,
)
from lit_rlhf.feedback.answers import select_said, values_of
from lit_rlhf.feedback.schema import judgments, labelers, tasks

# Of pairs no value is nearer to another; ratings are numbers.
_LEVELS: dict[str, tuple[Level, ...]] = {"pairs": ("nominal",), "ratings": ("ordinal", "interval")}
_Unit = tuple[int, int, int]  # a task, and two of its responses (or one, twice)


class Agreement(NamedTuple):
    """One measure of one kind of judgments.

    Attributes:
        judged: "pairs" of comparisons and rankings, or "ratings" of single responses.
        measure: its name.
        value: with its interval over tasks, or why there is none.
        num_units: pairs or responses that two labelers or more judged.
    """

    judged: str
    measure: str
    value: Estimate | Undefined
    num_units: int


def read_agreement(connection: Connection, kind: str | None = None) -> list[Agreement]:
    """Return the measures of a store's people, without gold answers and planned repeats.

    Args:
        connection: of `Database.reading`.
        kind: of the tasks; None for all.
    """
    found: dict[str, dict[_Unit, Counter[float]]] = {name: defaultdict(Counter) for name in _LEVELS}
    is_person = or_(labelers.c.kind.is_(None), labelers.c.kind == "person")
    query = (
        select_said(func.count())
        .where(tasks.c.repeats.is_(None), ~judgments.c.is_gold, is_person)
        .where(*([] if kind is None else [tasks.c.kind == kind]))
        .group_by(judgments.c.task_id, judgments.c.outcome, judgments.c.ranks, judgments.c.ratings)
    )
    for task_id, *said, number in connection.execute(query):
        for (a, b), value in values_of(*said):
            found["ratings" if a == b else "pairs"][task_id, a, b][value] += number
    return [measured for name, units in found.items() for measured in _measure(name, units)]


def _measure(judged: str, units: dict[_Unit, Counter[float]]) -> list[Agreement]:
    values = sorted({value for counts in units.values() for value in counts})
    if not values:
        return []
    column = {value: index for index, value in enumerate(values)}
    table = np.zeros((len(units), len(values)), np.int64)
    for row, counts in enumerate(units.values()):
        for value, number in counts.items():
            table[row, column[value]] = number
    patterns = patterns_of(table)
    measures: dict[str, Measure] = {
        "percent agreement": percent_agreement,
        "Fleiss's kappa": fleiss_kappa,
    }
    for level in _LEVELS[judged]:
        measures[f"Krippendorff's alpha, {level}"] = partial(
            krippendorff_alpha, values=values, level=level
        )
    num_units = int(patterns.number.sum())
    return [
        Agreement(judged, name, with_interval(measure, patterns), num_units)
        for name, measure in measures.items()
    ]
