"""How far the labelers of a store agree, from one GROUP BY over its judgments."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import lru_cache, partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, ScalarSelect, Select, Text, func, select, type_coerce

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
from lit_rlhf.feedback.schema import current_judgments, judgments, task_responses, tasks

# Values of a pair: who is better, a tie, or both bad, which is no tie.
_FIRST, _SECOND, _TIE, _BOTH_BAD = 1.0, -1.0, 0.0, 2.0
_SAID_NOTHING = ("skip", "cannot_judge")
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


def read_agreement(connection: Connection) -> list[Agreement]:
    """Return the measures of a store, without its gold answers and planned repeats."""
    found: dict[str, dict[_Unit, Counter[float]]] = {kind: defaultdict(Counter) for kind in _LEVELS}
    for task_id, num_responses, outcome, ranks, ratings, number in connection.execute(_query()):
        if outcome == "judged" and ranks is None and ratings is not None:
            for place, rating in enumerate(json.loads(ratings)):
                if rating is not None:
                    found["ratings"][task_id, place, place][rating] += number
        for (a, b), value in _pair_values(outcome, ranks, num_responses):
            found["pairs"][task_id, a, b][value] += number
    return [measured for kind, units in found.items() for measured in _measure(kind, units)]


def _query() -> Select[Any]:
    columns = (
        judgments.c.task_id,
        _num_responses().label("num_responses"),
        judgments.c.outcome,
        type_coerce(judgments.c.ranks, Text).label("ranks"),
        type_coerce(judgments.c.ratings, Text).label("ratings"),
    )
    return (
        current_judgments(*columns, func.count())
        .join_from(judgments, tasks)
        .where(tasks.c.repeats.is_(None), ~judgments.c.is_gold)
        .where(judgments.c.outcome.not_in(_SAID_NOTHING))
        .group_by(judgments.c.task_id, judgments.c.outcome, judgments.c.ranks, judgments.c.ratings)
        .execution_options(yield_per=10_000)
    )


def _num_responses() -> ScalarSelect[int]:
    places = select(func.count()).where(task_responses.c.task_id == judgments.c.task_id)
    return places.correlate(judgments).scalar_subquery()


@lru_cache(maxsize=10_000)
def _pair_values(
    outcome: str, ranks: str | None, num_responses: int
) -> list[tuple[tuple[int, int], float]]:
    """Return the value of each pair of responses that a judgment compares."""
    if outcome in ("tie", "both_bad"):
        value = _TIE if outcome == "tie" else _BOTH_BAD
        return [(pair, value) for pair in combinations(range(num_responses), 2)]
    places = json.loads(ranks or "[]")
    return [
        ((a, b), _TIE if places[a] == places[b] else _FIRST if places[a] < places[b] else _SECOND)
        for a, b in combinations(range(len(places)), 2)
        if places[a] is not None and places[b] is not None
    ]


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
