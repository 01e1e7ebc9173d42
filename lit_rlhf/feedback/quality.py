"""How good each labeler is: against gold answers, against the others, against themselves.

Shares of answers that are the same, with 95 % intervals. Answers of one task are resampled
together, as it were: the interval is Wilson's, with the number of independent answers that the
spread between tasks gives. A share of nothing says why it is undefined.
"""

from __future__ import annotations

import datetime
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection, or_, select

from lit_rlhf.feedback.agreement import Estimate, Undefined
from lit_rlhf.feedback.answers import UNNAMED, Answers, Bools, Floats, Ints, read_answers
from lit_rlhf.feedback.schema import judgments, labelers

# How often people agree on pairs in published projects: 63 % (Bai et al. 2022), 73 and 77 %
# (Ouyang et al. 2022), 60 to 75 % (Coste et al. 2023).
FIELD_AGREEMENT = (0.60, 0.77)

NO_GOLD = "no task with a gold answer was judged"
NO_OTHERS = "nobody else judged the same responses"
NO_REPEATS = "no task was asked twice"
NO_PEOPLE = "no two people judged what the model judged"
_Z = NormalDist().inv_cdf(0.975)

Share = Estimate | Undefined


class LabelerQuality(NamedTuple):
    """One labeler against gold answers, others, and the labeler's own earlier answers.

    Attributes:
        labeler: the name.
        is_model: a model, not a person.
        num_tasks: that the labeler judged.
        gold: share of answers that are the gold one.
        others: mean share of the other people who gave the same answer.
        itself: share of answers to planned repeats that are as before.
    """

    labeler: str
    is_model: bool
    num_tasks: int
    gold: Share
    others: Share
    itself: Share


class WeekAgreement(NamedTuple):
    """How far people's answers of one week are those of the other people.

    Attributes:
        week: such as 2026-W05, in UTC.
        num_answers: of the week that others answered as well.
        others: mean share of the other people who gave the same answer.
    """

    week: str
    num_answers: int
    others: Share


class JudgeAgreement(NamedTuple):
    """A model that judges beside the people, on the tasks that it and two people judged.

    Attributes:
        judge: the name.
        num_tasks: these tasks.
        with_people: mean share of people who answered as the model did.
        among_people: mean share of the other people who answered as each person did.
    """

    judge: str
    num_tasks: int
    with_people: Share
    among_people: Share


def labeler_quality(connection: Connection) -> list[LabelerQuality]:
    """Return the quality of every labeler who judged something, by name."""
    answers = read_answers(connection)
    codes = _codes(answers)
    fresh = ~answers.is_gold & ~answers.is_repeat
    people = fresh & ~answers.is_model
    with_gold = _share(answers, codes, answers.is_gold & ~answers.is_repeat, ~answers.is_gold)
    with_others = _share(answers, codes, people, fresh)
    found = []
    known = connection.execute(select(labelers).order_by(labelers.c.name)).all()
    places = _places_by(answers.labeler)
    for labeler in known:
        if (mine := places.get(labeler.id)) is None:
            continue
        own = answers.where(mine)
        found.append(
            LabelerQuality(
                labeler.name,
                labeler.kind == "model",
                len(np.unique(own.task)),
                _estimate(own.task, with_gold[mine], NO_GOLD),
                _estimate(own.task, with_others[mine], NO_OTHERS),
                _self_agreement(own),
            )
        )
    return found


def gold_agreement(connection: Connection, name: str) -> Share:
    """Return how often one labeler gave the gold answer, without a look at all judgments."""
    owner = select(labelers.c.id).where(labelers.c.name == name).scalar_subquery()
    mine = judgments.alias("mine")
    own_tasks = select(mine.c.task_id).where(mine.c.labeler_id == owner)
    is_own_or_gold = or_(judgments.c.labeler_id == owner, judgments.c.is_gold)
    answers = read_answers(connection, judgments.c.task_id.in_(own_tasks), is_own_or_gold)
    fresh = ~answers.is_repeat
    share = _share(answers, _codes(answers), answers.is_gold & fresh, ~answers.is_gold & fresh)
    return _estimate(answers.task, share, NO_GOLD)


def agreement_by_week(connection: Connection) -> list[WeekAgreement]:
    """Return people's agreement with the others, by the week in which they answered."""
    answers = read_answers(connection)
    people = ~answers.is_gold & ~answers.is_repeat & ~answers.is_model
    share = _share(answers, _codes(answers), people, people)
    counted = ~np.isnan(share)
    answers, share = answers.where(counted), share[counted]
    weeks = (answers.judged_at // 86_400).astype(np.int64) + 3  # 1970-01-01 was a Thursday
    return [
        WeekAgreement(
            _week(int(week)), len(mine), _estimate(answers.task[mine], share[mine], NO_OTHERS)
        )
        for week, mine in sorted(_places_by(weeks // 7).items())
    ]


def judges_and_people(connection: Connection) -> list[JudgeAgreement]:
    """Return each model's agreement with people, beside that of the people there, by name."""
    models = select(labelers.c.id, labelers.c.name).where(labelers.c.kind == "model")
    known = connection.execute(models.order_by(labelers.c.name)).all()
    if not known:  # all answers would be read for nothing
        return []
    answers = read_answers(connection)
    codes = _codes(answers)
    fresh = ~answers.is_gold & ~answers.is_repeat
    share = _share(answers, codes, fresh & ~answers.is_model, fresh)
    people = fresh & ~answers.is_model & ~np.isnan(share)
    found = []
    for labeler_id, name in known:
        judged = (answers.labeler == labeler_id) & fresh
        judged &= np.isin(answers.unit, answers.unit[people])
        there = people & np.isin(answers.unit, answers.unit[judged])
        found.append(
            JudgeAgreement(
                name,
                len(np.unique(answers.task[judged])),
                _estimate(answers.task[judged], share[judged], NO_PEOPLE),
                _estimate(answers.task[there], share[there], NO_PEOPLE),
            )
        )
    return found


def _codes(answers: Answers) -> Ints:
    """Return one number `[N]` for each unit with its value: equal where answers are the same."""
    _, units = np.unique(answers.unit, return_inverse=True)
    values, places = np.unique(answers.value, return_inverse=True)
    return np.asarray(units * len(values) + places, np.int64)


def _share(
    answers: Answers,
    codes: Ints,
    compared: Bools,
    asked: Bools,
) -> Floats:
    """Return `[N]` the share of `compared` answers of the unit that are the same.

    An answer is not compared with itself; NaN where there is none to compare with, or the answer
    is not among `asked`.
    """
    same = _number_of(codes, codes[compared]) - compared
    total = _number_of(answers.unit, answers.unit[compared]) - compared
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(asked & (total > 0), same / total, np.nan)


def _number_of(keys: Ints, among: Ints) -> Ints:
    """Return `[N]` how often each key is among others."""
    if not len(among):
        return np.zeros(len(keys), np.int64)
    distinct, number = np.unique(among, return_counts=True)
    places = np.searchsorted(distinct, keys).clip(max=len(distinct) - 1)
    return np.where(distinct[places] == keys, number[places], 0)


def _self_agreement(own: Answers) -> Share:
    """Return how far a labeler's answers to the same unit are the same: a share of pairs."""
    fresh = own.where(~own.is_gold)
    if not len(fresh.unit) or fresh.labeler[0] == UNNAMED:
        return Undefined(NO_REPEATS)
    every = np.ones(len(fresh.unit), np.bool_)
    return _estimate(fresh.task, _share(fresh, _codes(fresh), every, every), NO_REPEATS)


def _estimate(task: Ints, share: Floats, reason: str) -> Share:
    """Return the mean of shares that are not NaN, with Wilson's interval over tasks."""
    counted = ~np.isnan(share)
    task, share = task[counted], share[counted]
    if not len(share):
        return Undefined(reason)
    mean = float(share.mean())
    _, places = np.unique(task, return_inverse=True)
    number = int(places.max()) + 1
    # Of a ratio of sums over tasks: its variance is that of the residuals' sums.
    residuals = np.bincount(places, weights=share - mean)
    variance = float(residuals @ residuals) / len(share) ** 2 * number / max(1, number - 1)
    independent = mean * (1 - mean) / variance if variance > 0 and number > 1 else number
    return Estimate(mean, *_wilson(mean, independent))


def _wilson(share: float, number: float) -> tuple[float, float]:
    """Return the ends of the interval of a share. Source: E. B. Wilson, JASA 22, 1927."""
    middle = (share + _Z**2 / (2 * number)) / (1 + _Z**2 / number)
    half = _Z * (share * (1 - share) / number + _Z**2 / (4 * number**2)) ** 0.5
    half /= 1 + _Z**2 / number
    return max(0.0, middle - half), min(1.0, middle + half)


def _places_by(groups: Ints) -> dict[int, Ints]:
    """Return the places of each group's rows."""
    if not len(groups):
        return {}
    order = np.argsort(groups, kind="stable")
    distinct, starts = np.unique(groups[order], return_index=True)
    return dict(zip(distinct.tolist(), np.split(order, starts[1:]), strict=True))


def _week(number: int) -> str:
    monday = datetime.date(1969, 12, 29) + datetime.timedelta(weeks=number)
    year, week, _ = monday.isocalendar()
    return f"{year}-W{week:02}"
