"""Many labelers at once, while the server is killed and started again."""

import asyncio
from collections import Counter

import pytest
import sqlalchemy as sa

from lit_rlhf.feedback.schema import current_judgments, judgments, labelers, slots
from tests.labelling.conftest import pair
from tests.labelling.serving import served
from tests.labelling.simulated import TROUBLE, Labeler

SLOTS = 3


async def label(people, store, server, num_kills):
    """Let people judge everything, and kill the server so often, evenly over their work."""
    wanted = store.counts().open_slots
    progress = {"is_over": False}
    working = [asyncio.create_task(person.work(lambda: progress["is_over"])) for person in people]

    async def watch():
        kills = 0
        while not progress["is_over"]:
            acknowledged = sum(len(person.receipts) for person in people)
            if kills < num_kills and acknowledged > wanted * (kills + 1) / (num_kills + 1):
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                kills += 1
            counts = await asyncio.to_thread(store.counts)
            progress["is_over"] = not counts.open_slots + counts.leased_slots
            await asyncio.sleep(0.02)
        return kills

    *_, kills = await asyncio.gather(*working, watch())
    return kills


def rows(store, query):
    with store.database.reading() as connection:
        return connection.execute(query).all()


def check_ledgers(store, people):
    """Compare the store with what every labeler decided and heard."""
    named = sa.select(labelers.c.name, *judgments.c).join_from(judgments, labelers)
    stored = rows(store, named)
    decided = {id_: (p.name, body) for p in people for id_, body in p.decided.items()}
    assert Counter(row.id for row in stored) == Counter(decided.keys())
    for row in stored:
        name, body = decided[row.id]
        assert (row.name, row.comment) == (name, body["comment"])
        assert {key: getattr(row, key) for key in body} == body
    current = current_judgments(labelers.c.name, judgments.c.task_id, judgments.c.id)
    counted = rows(store, current.join_from(judgments, labelers))
    assert {(name, task): id_ for name, task, id_ in counted} == {
        (person.name, task): id_ for person in people for task, id_ in person.last.items()
    }
    assert len(counted) == sum(len(person.last) for person in people)


def check_slots(store, people, num_tasks):
    """See that every task has its judgments in its slots, and none more but surplus ones."""
    decided = {id_: body for person in people for id_, body in person.decided.items()}
    last = {(p.name, task): decided[id_] for p in people for task, id_ in p.last.items()}
    undone = Counter(
        body["task_id"] for body in decided.values()
        if body["replaces"] and decided[body["replaces"]]["outcome"] == "skip"
    )  # fmt: skip
    filled = rows(
        store,
        sa.select(labelers.c.name, slots.c.task_id, slots.c.judgment_id)
        .join_from(slots, labelers, isouter=True)
    )  # fmt: skip
    assert all(slot.judgment_id for slot in filled)
    assert max(Counter((slot.name, slot.task_id) for slot in filled).values()) == 1
    said = Counter(
        slot.task_id for slot in filled if last[slot.name, slot.task_id]["outcome"] == "judged"
    )
    assert len(said) == num_tasks
    for task, count in said.items():
        assert SLOTS <= count <= SLOTS + undone[task]
    in_slots = {slot.judgment_id for slot in filled}
    for person in people:
        for id_, receipt in person.receipts.items():
            assert not receipt["is_new"] or receipt["is_surplus"] == (id_ not in in_slots)


@pytest.mark.parametrize(
    ("num_people", "num_tasks", "num_kills", "lease_s"),
    [
        pytest.param(8, 40, 3, 2.0, id="8 people, 3 kills"),
        pytest.param(50, 600, 20, 6.0, id="50 people, 20 kills", marks=pytest.mark.slow),
    ],
)
def test_a_killed_server_loses_and_doubles_nothing(
    store, store_url, num_people, num_tasks, num_kills, lease_s
):
    store.add_tasks([pair(i) for i in range(num_tasks)], slots=SLOTS)
    with served(store_url, "--lease-minutes", str(lease_s / 60)) as server:
        people = [
            Labeler(f"person {i}", store, server.address, TROUBLE, lease_s)
            for i in range(num_people)
        ]
        limit_s = 60 + 20 * num_kills
        kills = asyncio.run(asyncio.wait_for(label(people, store, server, num_kills), limit_s))
    assert kills == num_kills
    check_ledgers(store, people)
    check_slots(store, people, num_tasks)
