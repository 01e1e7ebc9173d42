"""Many labelers at once, in threads and in processes, and writers that are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lit_rlhf.feedback.adding import labeler_id
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.queue import claim_slots
from lit_rlhf.feedback.store import FeedbackStore

ROOT = Path(__file__).parents[3]
# Claims and judges until nothing is left; says on its output what was acknowledged.
LABELER = """
import sys, uuid
from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.store import FeedbackStore

store, labeler = FeedbackStore.open(sys.argv[1]), sys.argv[2]
while tasks := store.claim(labeler, 2, lease_s=float(sys.argv[3])):
    for task in tasks:
        judgment = Judgment("judged", (1, 2), labeler=labeler, id=str(uuid.uuid4()))
        store.submit(task.id, judgment)
        print(task.id, judgment.id, flush=True)
"""


def add_comparisons(store, number, slots):
    tasks = [JudgedTask(f"prompt {i}", ("a", "b"), (), None, {}) for i in range(number)]
    store.add_tasks(tasks, slots=slots)


def start_labeler(url, labeler, ledger, lease_s=600):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", LABELER, url, labeler, str(lease_s)]
    return subprocess.Popen(words, stdout=ledger, env=environment)


def read_ledger(path):
    """Return task -> id of each judgment that was acknowledged: whole lines alone."""
    lines = path.read_text().splitlines(keepends=True)
    return [tuple(line.split()) for line in lines if line.endswith("\n")]


def test_two_imports_of_the_same_rows_in_other_orders_both_end(store):
    tasks = [
        JudgedTask(f"{i} {'x' * 500}", ("a", "b"), (Judgment("tie", labeler=f"l {i}"),), None, {})
        for i in range(400)
    ]
    with ThreadPoolExecutor(2) as pool:
        added = list(pool.map(store.add_tasks, [tasks, tasks[::-1]]))
    assert sum(each.judgments for each in added) == store.counts().judgments == 400


def test_threads_claim_each_slot_once_and_no_labeler_twice(store):
    add_comparisons(store, 50, slots=3)

    def work(number):
        claimed = []
        while tasks := store.claim(f"labeler {number}", 3):
            for task in tasks:
                judgment = Judgment("tie", labeler=f"labeler {number}", id=str(uuid.uuid4()))
                assert not store.submit(task.id, judgment).is_surplus
                claimed.append(task.id)
        return claimed

    with ThreadPoolExecutor(8) as pool:
        by_labeler = list(pool.map(work, range(8)))
    assert all(len(set(claimed)) == len(claimed) for claimed in by_labeler)
    # Who claims beside others may find a task's slots locked for a moment; a last one finds all.
    rest = [task_id for number in range(8, 11) for task_id in work(number)]
    given = Counter(task_id for claimed in (*by_labeler, rest) for task_id in claimed)
    assert len(given) == 50
    assert set(given.values()) == {3}


def test_one_labelers_two_windows_get_no_task_twice(store):
    add_comparisons(store, 20, slots=2)

    def work(_):
        for task in store.claim("ana", 20):
            store.submit(task.id, Judgment("tie", labeler="ana", id=f"ana {task.id}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.counts().judgments == 20


def test_a_judgment_sent_by_two_threads_at_once_is_stored_once(store):
    add_comparisons(store, 1, slots=1)
    (task,) = store.claim("ana")
    sent = Judgment("tie", labeler="ana", id="once")
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda _: store.submit(task.id, sent), range(8)))
    assert sum(receipt.is_new for receipt in receipts) == 1
    assert store.counts().judgments == 1


def test_skips_at_once_each_ask_somebody_else_and_undone_nobody(store):
    add_comparisons(store, 10, slots=6)
    names = [f"labeler {number}" for number in range(6)]
    for name in names:
        assert len(store.claim(name, 10)) == 10

    def send(name, outcome, kind):
        for task_id in range(1, 11):
            ranks = (1, 2) if outcome == "judged" else None
            replaces = f"skip {name} {task_id}" if kind == "undo" else None
            said = Judgment(
                outcome, ranks, labeler=name, id=f"{kind} {name} {task_id}", replaces=replaces
            )
            store.submit(task_id, said)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: send(name, "skip", "skip"), names))
        assert store.open_slots(range(1, 11)) == dict.fromkeys(range(1, 11), 6)
        list(pool.map(lambda name: send(name, "judged", "undo"), names))
        assert store.open_slots(range(1, 11)) == {}


def test_an_undone_skip_that_had_no_slot_takes_none_away(store):
    add_comparisons(store, 1, slots=2)
    store.claim("ana", lease_s=-1)
    store.claim("ben")
    store.claim("cem")  # ana's slot as well
    late = Judgment("skip", labeler="ana", id="skip")
    assert store.submit(1, late).is_surplus
    store.submit(1, Judgment("skip", labeler="ben", id="ben"))
    store.submit(1, Judgment("skip", labeler="cem", id="cem"))  # two slots are free again
    assert not store.submit(1, Judgment("tie", labeler="ana", id="tie", replaces="skip")).is_surplus
    assert store.open_slots([1]) == {1: 1}


def test_who_asks_again_takes_nothing_from_who_got_it_meanwhile(store):
    add_comparisons(store, 1, slots=1)
    assert store.claim("ana", lease_s=-1)
    store.add_labeler("ben")
    with ThreadPoolExecutor(1) as pool:
        with store.database.writing() as connection:
            assert claim_slots(connection, labeler_id(connection, "ben"), 1, 600)
            waiting = pool.submit(store.claim, "ana")
            time.sleep(0.2)
        assert waiting.result() == []


def test_stores_opened_at_once_are_made_once(store_url):
    barrier = threading.Barrier(4)

    def open_store(_):
        barrier.wait()
        with FeedbackStore.open(store_url) as store:
            return store.counts().tasks

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_store, range(4))) == [0] * 4


def test_killed_writers_lose_nothing_that_was_acknowledged(store, store_url, tmp_path):
    add_comparisons(store, 60, slots=2)
    ledgers = []
    for number in range(6):  # each is killed in the midst of its work
        ledgers.append(tmp_path / f"ledger {number}")
        with ledgers[-1].open("w") as ledger:
            writer = start_labeler(store_url, f"labeler {number % 3}", ledger)
            deadline = time.monotonic() + 60
            while len(read_ledger(ledgers[-1])) < 5 and time.monotonic() < deadline:
                time.sleep(0.005)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    processes = []
    for number in range(3):  # those who come back, all at once, finish
        ledgers.append(tmp_path / f"last ledger {number}")
        with ledgers[-1].open("w") as ledger:
            processes.append(start_labeler(store_url, f"labeler {number}", ledger))
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    acknowledged = [judgment_id for path in ledgers for _, judgment_id in read_ledger(path)]
    stored = Counter()
    labelers = Counter()
    for task in store.judged_tasks():
        for judgment in task.judgments:
            stored[judgment.id] += 1
            labelers[task.prompt, judgment.labeler] += 1
    assert len(acknowledged) >= 30
    assert set(acknowledged) <= stored.keys()
    assert set(stored.values()) == set(labelers.values()) == {1}
    # One that a kill cut off from its acknowledgement may be stored as well.
    assert len(acknowledged) <= len(stored) <= len(acknowledged) + 6
    assert len(stored) == 120
