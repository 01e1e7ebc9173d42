"""Tasks that wait for labelers, and tasks that need no more of them."""

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.adding import Origin
from tests.feedback.store.test_store import judgment, task


def test_tasks_are_found_by_what_they_are(store):
    given = [task(f"say {place}") for place in range(3)]
    origin = Origin("policy", "runs/ppo/model")
    store.add_tasks(given, slots=1, origin=origin)
    ids = store.ids_of(reversed(given), origin=origin)
    assert [found.content.prompt for found in store.tasks(ids)] == ["say 0", "say 1", "say 2"]
    assert ids == sorted(ids, reverse=True)
    with pytest.raises(DataError, match="3 of 3 tasks are not in the feedback store"):
        store.ids_of(given)


def test_open_slots_are_counted_until_they_are_judged(store):
    store.add_tasks([task("one"), task("two")], slots=2)
    one, two = store.ids_of([task("one"), task("two")])
    assert store.open_slots([one, two]) == {one: 2, two: 2}
    store.claim("ana", count=1)  # a lease is no judgment
    assert store.open_slots([one, two]) == {one: 2, two: 2}
    store.submit(one, judgment("ana"))
    store.submit(one, judgment("ben"))
    assert store.open_slots([one, two]) == {two: 2}


def test_a_closed_task_is_asked_of_nobody_and_a_late_judgment_stays(store):
    store.add_tasks([task()], slots=3)
    (id_,) = store.ids_of([task()])
    store.submit(id_, judgment("ana"))
    store.claim("ben")
    assert store.close_task(id_) == 2
    assert store.open_slots([id_]) == {}
    assert store.claim("cem") == []
    assert store.submit(id_, judgment("ben")).is_surplus
    assert len(store.task(id_).content.judgments) == 2
