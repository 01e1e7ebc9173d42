"""How far the labelers of a store agree."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection

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
from lit_rlhf.feedback.answers import Answers, read_answers
from lit_rlhf.feedback.schema import tasks

# Of pairs no value is nearer to another; ratings are numbers.
_LEVELS: dict[str, tuple[Level, ...]] = {"pairs": ("nominal",), "ratings": ("ordinal", "interval")}


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
    answers = read_answers(connection, *([] if kind is None else [tasks.c.kind == kind]))
    answers = answers.where(~answers.is_gold & ~answers.is_repeat & ~answers.is_model)
    rows_of = {"pairs": ~answers.is_rating, "ratings": answers.is_rating}
    return [
        measured
        for judged, rows in rows_of.items()
        for measured in _measure(judged, answers.where(rows))
    ]


def _measure(judged: str, answers: Answers) -> list[Agreement]:
    if not len(answers.unit):
        return []
    values, columns = np.unique(answers.value, return_inverse=True)
    units, rows = np.unique(answers.unit, return_inverse=True)
    table = np.zeros((len(units), len(values)), np.int64)
    np.add.at(table, (rows, columns), 1)
    patterns = patterns_of(table)
    measures: dict[str, Measure] = {
        "percent agreement": percent_agreement,
        "Fleiss's kappa": fleiss_kappa,
    }
    for level in _LEVELS[judged]:
        measures[f"Krippendorff's alpha, {level}"] = partial(
            krippendorff_alpha, values=values.tolist(), level=level
        )
    num_units = int(patterns.number.sum())
    return [
        Agreement(judged, name, with_interval(measure, patterns), num_units)
        for name, measure in measures.items()
    ]
