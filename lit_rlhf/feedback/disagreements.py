"""The tasks most worth discussing: those whose judgments split most, with what people wrote."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection, func, select

from lit_rlhf.feedback.answers import BOTH_BAD, TIE, Answers, Floats, Ints, read_answers
from lit_rlhf.feedback.reading import StoredTask, read_tasks
from lit_rlhf.feedback.schema import judgments

_OPPOSITE = 2.0  # the distance of "the first is better" and "the second is"


class Disagreement(NamedTuple):
    """A task on which labelers differ.

    Attributes:
        task: with all judgments that count, and their comments.
        split: how far apart two labelers' answers are on average, shrunk towards 0 where few
            judged: 0 where all are alike, about one half where two sides are equally strong.
            Opposite preferences are 1 apart, a tie is half-way; ratings are as far apart as their
            difference is of the range of all ratings.
        num_labelers: who answered.
    """

    task: StoredTask
    split: float
    num_labelers: int


def most_split(connection: Connection, count: int) -> list[Disagreement]:
    """Return the tasks whose judgments split most, those with more comments first among equals.

    Args:
        connection: of `Database.reading`.
        count: at most so many; tasks on which all agree are left out.
    """
    answers = read_answers(connection)
    answers = answers.where(~answers.is_gold & ~answers.is_repeat)
    ids, splits, numbers = _split_of_tasks(answers)
    comments = (
        select(judgments.c.task_id, func.count())
        .where(judgments.c.comment.is_not(None))
        .group_by(judgments.c.task_id)
    )
    written = {row[0]: row[1] for row in connection.execute(comments)}
    num_comments = np.array([written.get(task, 0) for task in ids.tolist()])
    order = np.lexsort((ids, -numbers, -num_comments, -splits))
    chosen = [place for place in order[:count].tolist() if splits[place] > 0]
    found = {task.id: task for task in read_tasks(connection, ids[chosen].tolist())}
    return [
        Disagreement(found[int(ids[place])], float(splits[place]), int(numbers[place]))
        for place in chosen
    ]


def _split_of_tasks(answers: Answers) -> tuple[Ints, Floats, Ints]:
    """Return the ids of all tasks, how far each splits, and how many labelers answered.

    The split of a unit is `sum of distances / (pairs of labelers + 1)`; that of a task is the mean
    over its units. The 1 lets five labelers at 3 to 2 come before two at 1 to 1.
    """
    if not len(answers.unit):
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)
    value = np.where(answers.is_rating | (answers.value != BOTH_BAD), answers.value, TIE)
    ratings = value[answers.is_rating]
    spread = float(np.ptp(ratings)) if len(ratings) else 0.0
    scale = np.where(answers.is_rating, spread or 1.0, _OPPOSITE)
    order = np.lexsort((value, answers.unit))
    _, starts, sizes = np.unique(answers.unit[order], return_index=True, return_counts=True)
    # Of sorted values, sum over pairs of v_j - v_i = sum over i of v_i (2 i - m + 1).
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    factor = 2 * place - np.repeat(sizes, sizes) + 1
    distances = np.add.reduceat((value / scale)[order] * factor, starts)
    splits = distances / (sizes * (sizes - 1) / 2 + 1)
    unit_tasks = answers.task[order][starts]
    ids, units = np.unique(unit_tasks, return_inverse=True)
    numbers = np.zeros(len(ids), np.int64)
    np.maximum.at(numbers, units, sizes)
    return ids, np.bincount(units, weights=splits) / np.bincount(units), numbers
