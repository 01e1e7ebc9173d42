"""Labelers against gold answers, against each other, against themselves, and against models."""

import datetime

import numpy as np
import pytest

from lit_rlhf.feedback.agreement import Estimate, Undefined
from lit_rlhf.feedback.agreement_report import read_agreement
from lit_rlhf.feedback.disagreements import most_split
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.quality import (
    NO_GOLD,
    NO_OTHERS,
    NO_REPEATS,
    agreement_by_week,
    gold_agreement,
    judges_and_people,
    labeler_quality,
)

A, B = (1, 2), (2, 1)


def said(labeler, ranks=A, outcome="judged", **fields):
    return Judgment(outcome, ranks if outcome == "judged" else None, labeler=labeler, **fields)


def task(name, *judgments, responses=("a", "b")):
    return JudgedTask(name, responses, judgments, None, {})


def qualities(store):
    with store.database.reading() as connection:
        return {found.labeler: found for found in labeler_quality(connection)}


def test_quality_by_hand(store):
    gold = said(None, A, is_gold=True)
    store.add_tasks([
        task("1", gold, said("ana", A), said("ben", B)),
        task("2", gold, said("ana", A), said("ben", A), said("cem", outcome="skip")),
        task("3", said("ana", A), said("ben", A), said("eve", B)),
        task("4", said("ana", outcome="tie"), said("eve", outcome="both_bad")),
    ])  # fmt: skip
    found = qualities(store)
    assert set(found) == {"ana", "ben", "eve"}  # a skip is no answer
    assert (found["ana"].gold.value, found["ben"].gold.value) == (1.0, 0.5)
    assert found["eve"].gold == Undefined(NO_GOLD)
    with store.database.reading() as connection:
        for name in ("ana", "ben", "eve", "nobody"):
            alone = gold_agreement(connection, name)
            assert alone == (found[name].gold if name in found else Undefined(NO_GOLD))
    # ana: 0 of 1, 1 of 1, 1 of 2, 0 of 1; the gold answers are nobody's.
    assert found["ana"].others.value == pytest.approx(1.5 / 4)
    assert found["ben"].others.value == pytest.approx((0 + 1 + 0.5) / 3)
    assert found["eve"].others.value == 0
    assert found["ana"].itself == Undefined(NO_REPEATS)
    assert found["ana"].num_tasks == 4
    low, high = found["ana"].gold[1:]
    assert (low, high) == (pytest.approx(0.342, abs=1e-3), 1.0)  # Wilson's of 2 of 2


def test_a_labeler_against_themselves(store):
    store.add_tasks([task("1"), task("2")], slots=1)
    claimed = store.claim("ana", 2)
    for place, asked in enumerate(claimed):
        store.submit(asked.id, said("ana", A, id=f"first {place}"))
        store.add_repeat(asked.id)
    for place, repeat in enumerate(store.claim("ana", 2)):
        store.submit(repeat.id, said("ana", A if place else B, id=f"again {place}"))
    found = qualities(store)["ana"]
    assert found.itself.value == 0.5
    assert found.others == Undefined(NO_OTHERS)


def test_rankings_count_by_pairs_and_ratings_by_response(store):
    ranked = task("r", said("ana", (1, 2, 3)), said("ben", (1, 3, 2)), responses=("a", "b", "c"))
    rated = task(
        "s", Judgment("judged", ratings=(4.0, 1.0), labeler="ana"),
        Judgment("judged", ratings=(4.0, None), labeler="ben"),
    )  # fmt: skip
    store.add_tasks([ranked, rated])
    assert qualities(store)["ana"].others.value == pytest.approx(3 / 4)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    from lit_rlhf.feedback.quality import _estimate  # noqa: PLC0415

    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):  # three answers a task, of which a task has all right or all wrong
        right = np.repeat(draw.random(60) < 0.8, 3).astype(float)
        estimate = _estimate(np.repeat(np.arange(60), 3), right, "")
        held += estimate.low <= 0.8 <= estimate.high
    assert 0.92 <= held / 400 <= 0.98


def test_judges_stand_beside_people_and_do_not_count_among_them(store):
    store.add_tasks([
        task("1", said("ana", A), said("ben", A)),
        task("2", said("ana", A), said("ben", B)),
        task("3", said("ana", B)),
    ])  # fmt: skip
    store.add_tasks(
        [task("1", said("gpt", A)), task("2", said("gpt", A)), task("3", said("gpt", A))],
        labeler_kind="model",
    )
    with store.database.reading() as connection:
        (judge,) = judges_and_people(connection)
        percent = read_agreement(connection)[0]
    assert (judge.judge, judge.num_tasks) == ("gpt", 2)
    assert judge.with_people.value == pytest.approx(0.75)
    assert judge.among_people.value == pytest.approx(0.5)
    assert (percent.value.value, percent.num_units) == (0.5, 2)
    found = qualities(store)
    assert found["gpt"].is_model
    assert found["gpt"].others.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["ana"].others.value == pytest.approx(0.5)


def test_agreement_by_week(store):
    def on(day):
        return datetime.datetime.fromisoformat(f"{day}T23:00+00:00").timestamp()

    first, second = on("2026-01-04"), on("2026-01-05")  # a Sunday and the Monday behind it
    store.add_tasks([
        task("1", said("ana", submitted_at=first), said("ben", submitted_at=second)),
        task("2", said("ana", submitted_at=second), said("ben", B, submitted_at=second)),
        task("3", said("ana", submitted_at=second)),
    ])  # fmt: skip
    with store.database.reading() as connection:
        weeks = agreement_by_week(connection)
    assert [(week, number) for week, number, _ in weeks] == [("2026-W01", 1), ("2026-W02", 3)]
    assert [others.value for _, _, others in weeks] == [1.0, pytest.approx(1 / 3)]
    assert all(isinstance(others, Estimate) for _, _, others in weeks)


def test_the_disagreements_most_worth_discussing(store):
    store.add_tasks([
        task("alike", *[said(name) for name in "abcde"]),
        task("three to two", *[said(name, A if name in "abc" else B) for name in "abcde"]),
        task("one to one", said("a", A), said("b", B)),
        task("with a comment", said("a", A), said("b", B, comment="The first is a joke.")),
        task("a tie", said("a", A), said("b", outcome="tie")),
        task("gold", said("a", A), said("b", A), said(None, B, is_gold=True)),
        task("rated", *[Judgment("judged", ratings=(r, 3.0), labeler=f"{r}") for r in (1.0, 5.0)]),
    ])  # fmt: skip
    with store.database.reading() as connection:
        found = most_split(connection, 5)
        assert most_split(connection, 2) == found[:2]
    assert [one.task.content.prompt for one in found] == [
        "three to two", "with a comment", "one to one", "a tie", "rated",
    ]  # fmt: skip
    assert [one.split for one in found] == pytest.approx([6 / 11, 1 / 2, 1 / 2, 1 / 4, 1 / 4])
    assert found[0].num_labelers == 5
    assert found[1].task.content.judgments[1].comment == "The first is a joke."


def test_a_store_without_judgments(store):
    with store.database.reading() as connection:
        assert labeler_quality(connection) == []
        assert agreement_by_week(connection) == []
        assert judges_and_people(connection) == []
        assert most_split(connection, 5) == []


def test_a_gold_answer_fills_no_slot(store):
    store.add_tasks([task("1")], slots=1)
    (claimed,) = store.claim("admin", lease_s=-1)
    receipt = store.submit(claimed.id, said("boss", A, id="g", is_gold=True))
    assert (receipt.is_new, receipt.is_surplus) == (True, True)
    assert [given.id for given in store.claim("ana")] == [claimed.id]
