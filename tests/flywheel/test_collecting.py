"""Collecting ends with the judgments that are needed, whatever happened before."""

import sqlite3
from dataclasses import dataclass, replace

import pytest
import sqlalchemy as sa

from lit_rlhf.feedback.adding import Origin
from lit_rlhf.feedback.early_stop import EarlyStop
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.flywheel import collecting
from lit_rlhf.flywheel.collecting import WaitingError, collect
from lit_rlhf.flywheel.labelers import Labeler, People
from lit_rlhf.flywheel.settings import FlywheelSettings, GateConfig

ORIGIN = Origin("SFT", "runs/sft/model")
FIRST, SECOND = (1, 2), (2, 1)


class KilledError(Exception):
    """A process that ends in the middle."""


@dataclass(frozen=True)
class Scripted(Labeler):
    """Says what it is told: prompt -> ranks of each labeler; breaks off after so many."""

    said: dict
    breaks_after: int = 10_000

    def judge(self, tasks, num_judgments):
        number = 0
        for task in tasks:
            for place, ranks in enumerate(self.said[task.content.prompt][:num_judgments]):
                if number == self.breaks_after:
                    raise KilledError
                number += 1
                name = f"m{place}"
                own = f"{task.content.prompt}-{name}"
                if ranks is None:
                    yield task.id, Judgment("cannot_judge", labeler=name, id=own)
                else:
                    yield task.id, Judgment("judged", ranks, labeler=name, id=own)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore.open(str(tmp_path / "feedback.db")) as opened:
        yield opened


def settings(labeler, **changes):
    made = FlywheelSettings("sft", "p", "h", GateConfig("reward:x"), labeler=labeler, slots=4)
    return replace(made, **{"early_stop": EarlyStop(accuracy=0.9), **changes})


def tasks(*shares):
    return [
        JudgedTask(f"p{place}", ("a", "b"), (), None, {"share": share})
        for place, share in enumerate(shares)
    ]


def judged(store):
    return {
        task.prompt: [(one.labeler, one.ranks) for one in task.judgments]
        for task in store.judged_tasks()
    }


def run(store, asked, made, *, waits=False):
    collect(store, asked, ORIGIN, made, lambda line: None, waits=waits)


def test_a_decided_task_is_asked_of_nobody_else_but_never_one_of_the_random_share(store):
    said = {"p0": [FIRST] * 4, "p1": [FIRST] * 4, "p2": [FIRST, SECOND, FIRST, SECOND]}
    run(store, tasks("chosen", "random", "chosen"), settings(Scripted(said)))
    assert {prompt: len(own) for prompt, own in judged(store).items()} == {
        "p0": 2,
        "p1": 4,
        "p2": 4,
    }
    assert store.counts().open_slots == 0


def test_without_early_stop_every_slot_is_filled(store):
    run(store, tasks("chosen"), settings(Scripted({"p0": [FIRST] * 4}), early_stop=None))
    assert len(judged(store)["p0"]) == 4


def test_what_a_machine_cannot_judge_ends_as_well(store):
    run(store, tasks("chosen"), settings(Scripted({"p0": [None] * 4})))
    assert store.counts().open_slots == 0


@pytest.mark.parametrize("breaks_after", range(9))
def test_broken_off_and_started_again_it_ends_the_same(store, tmp_path, breaks_after):
    said = {"p0": [FIRST] * 4, "p1": [FIRST, SECOND, SECOND, SECOND], "p2": [SECOND] * 4}
    asked = tasks("chosen", "random", "chosen")
    with pytest.raises(KilledError):
        run(store, asked, settings(Scripted(said, breaks_after)))
    run(store, asked, settings(Scripted(said)))
    with FeedbackStore.open(str(tmp_path / "whole.db")) as whole:
        run(whole, asked, settings(Scripted(said)))
        assert judged(store) == judged(whole)
    assert store.counts().open_slots == 0


def test_people_are_waited_for_and_decided_tasks_close(store):
    asked, made = tasks("chosen", "random"), settings(People(poll_s=0.01))
    with pytest.raises(WaitingError, match="8 judgments of 2 tasks are missing"):
        run(store, asked, made)
    for labeler in ("ana", "ben"):
        for task in store.claim(labeler, count=2):
            own = Judgment("judged", FIRST, labeler=labeler, id=f"{labeler}{task.id}")
            store.submit(task.id, own)
    # The chosen one is decided; the random one still waits for two.
    with pytest.raises(WaitingError, match="2 judgments of 1 tasks are missing"):
        run(store, asked, made)


def test_ctrl_c_ends_the_waiting_and_loses_nothing(store, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting.time, "sleep", interrupt)
    with pytest.raises(WaitingError, match="4 judgments of 1 tasks are missing; run the same"):
        run(store, tasks("chosen"), settings(People()), waits=True)
    assert store.counts().open_slots == 4


def test_a_store_that_does_not_answer_is_waited_for(store, monkeypatch):
    """Such as a PostgreSQL server that is started again."""
    asked, said, real = tasks("chosen"), [], FeedbackStore.open_slots

    def open_slots(self, ids):
        if not said:
            gone = sqlite3.OperationalError("the connection is lost")
            raise sa.exc.OperationalError("SELECT", {}, gone)
        return {} if said[1:] else real(self, ids)

    monkeypatch.setattr(FeedbackStore, "open_slots", open_slots)
    collect(store, asked, ORIGIN, settings(People(0.01)), said.append, waits=True)
    assert said[0].startswith("the feedback store does not answer: the connection is lost; waiting")
    assert said[1].startswith("4 judgments of 1 tasks are missing")
    said.clear()
    with pytest.raises(sa.exc.OperationalError):
        run(store, asked, settings(People(0.01)))


def test_other_slots_hold_for_tasks_that_are_there(store):
    """People do not finish, so fewer are asked; then more again."""
    asked, made = tasks("chosen", "random"), settings(People(), early_stop=None)
    with pytest.raises(WaitingError, match="8 judgments of 2 tasks are missing"):
        run(store, asked, made)
    for task in store.claim("ana", count=2):
        store.submit(task.id, Judgment("tie", labeler="ana", id=f"ana{task.id}"))
    run(store, asked, replace(made, slots=1))
    assert store.counts().open_slots == 0
    with pytest.raises(WaitingError, match="2 judgments of 2 tasks are missing"):
        run(store, asked, replace(made, slots=2))


@pytest.mark.parametrize("breaks_after", [1, 2])
def test_a_machine_that_changes_its_mind_after_a_kill_is_taken_at_its_first_word(
    store, breaks_after
):
    asked, said = tasks("chosen", "random"), {"p0": [None], "p1": [FIRST]}
    with pytest.raises(KilledError):
        run(store, asked, settings(Scripted({**said, "p1": [FIRST, FIRST]}, breaks_after)))
    run(store, asked, settings(Scripted({"p0": [SECOND], "p1": [SECOND]}), slots=1))
    second = FIRST if breaks_after == 2 else SECOND
    assert judged(store) == {"p0": [("m0", None)], "p1": [("m0", second)]}
    assert store.counts().open_slots == 0
