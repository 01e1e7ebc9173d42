import json
import uuid

import pytest

from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.labelling.access import invite
from lit_rlhf.labelling.app import create_app
from lit_rlhf.labelling.page import Settings
from tests.labelling.conftest import Client, pair
from tests.support.feedback_stores import judgments_of


def fresh():
    return str(uuid.uuid4())


def test_without_a_session_there_is_nothing(app, store):
    store.add_tasks([pair()], slots=1)
    client = Client(app)
    assert client.get("/v1/tasks").status_code == 401
    assert client.get("/v1/me").status_code == 401
    assert client.get("/v1/tasks/1/responses/0").status_code == 401
    assert client.post("/v1/judgments", json={}).status_code in (401, 403, 422)
    assert client.get("/").headers["Location"] == "/join"


def test_a_judgment_reaches_the_store_once(enter, store):
    store.add_tasks([pair()], slots=1)
    ana = enter("ana")
    (task,) = ana.get("/v1/tasks").json()
    sent = {"task_id": task["id"], "id": fresh(), "ranks": [2, 1], "strength": 3,
            "side_order": task["side_order"], "comment": "second", "guideline": "v1"}  # fmt: skip
    assert ana.judge(**sent).json() == {"is_new": True, "is_surplus": False}
    assert ana.judge(**sent).json() == {"is_new": False, "is_surplus": False}
    ((task_id, said),) = judgments_of(store, "ana")
    assert (task_id, said.ranks, said.strength, said.comment) == (task["id"], (2, 1), 3, "second")
    assert said.side_order == tuple(task["side_order"])
    assert said.guideline == "v1"
    assert ana.get("/v1/me").json()["judged"] == 1


def test_sides_are_by_chance_and_the_same_again(enter, store):
    store.add_tasks([pair(i) for i in range(40)], slots=2)
    first = enter("ana").get("/v1/tasks?count=40").json()
    again = enter("ana").get("/v1/tasks?count=40").json()
    other = enter("ben").get("/v1/tasks?count=40").json()
    assert first == [
        {**a, "lease_until": b["lease_until"]} for a, b in zip(again, first, strict=True)
    ]
    swapped = sum(task["side_order"] == [1, 0] for task in first)
    assert 8 < swapped < 32
    assert [task["side_order"] for task in first] != [task["side_order"] for task in other]
    for task in first:
        texts = [response["html"].strip() for response in task["responses"]]
        stored = [f"<p>{which} {task['id'] - 1}</p>" for which in ("first", "second")]
        assert texts == [stored[i] for i in task["side_order"]]


def test_what_cannot_be_meant_is_refused_in_one_line(enter, store):
    store.add_tasks([pair()], slots=1)
    ana = enter("ana")
    answer = ana.judge(task_id=1, id=fresh(), ranks=[1, 2, 3])
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "ranks (1, 2, 3): expected 2, one for each response.",
    )
    assert "outcome" in ana.judge(task_id=1, outcome="perhaps").json()["detail"]
    assert "labeler" in ana.judge(task_id=1, labeler="ben").json()["detail"]
    assert ana.judge(task_id=99).status_code == 422
    assert store.counts().judgments == 0


@pytest.mark.parametrize(
    "values",
    [
        {"submitted_at": float("nan")}, {"duration_s": float("inf")}, {"task_id": 10**30},
        {"id": "\0" * 32}, {"replaces": "a\nb"},
    ],
)  # fmt: skip
def test_what_a_database_cannot_hold_is_refused(enter, store, values):
    store.add_tasks([pair()], slots=1)
    ana = enter("ana")
    (task,) = ana.get("/v1/tasks").json()
    body = {"task_id": task["id"], "id": "0" * 32, "outcome": "tie"} | values
    headers = {"X-CSRF-Token": ana.csrf(), "Content-Type": "application/json"}
    assert ana.post("/v1/judgments", content=json.dumps(body), headers=headers).status_code == 422


def test_a_judgment_after_its_lease_is_kept_as_a_surplus(enter, store):
    store.add_tasks([pair()], slots=1)
    ana = enter("ana")
    (task,) = store.claim("ana", lease_s=-1)
    store.claim("ben")
    store.submit(task.id, Judgment("judged", (1, 2), labeler="ben", id=fresh()))
    assert ana.judge(task_id=task.id, id=fresh()).json() == {"is_new": True, "is_surplus": True}


def test_a_judgment_needs_the_sessions_token(enter, store):
    store.add_tasks([pair()], slots=1)
    ana, ben = enter("ana"), enter("ben")
    body = {"task_id": 1, "id": fresh(), "outcome": "tie"}
    assert ana.post("/v1/judgments", json=body).status_code == 403
    stolen = {"X-CSRF-Token": ben.csrf()}
    assert ana.post("/v1/judgments", json=body, headers=stolen).status_code == 403


def test_nobody_replaces_somebody_elses_judgment(enter, store):
    store.add_tasks([pair()], slots=2)
    ana, ben = enter("ana"), enter("ben")
    first = fresh()
    ana.judge(task_id=1, id=first)
    answer = ben.judge(task_id=1, id=fresh(), replaces=first)
    assert answer.status_code == 422
    assert "of another labeler" in answer.json()["detail"]


def test_a_whole_long_response_is_plain_text(enter, store):
    long = "<b>" + "y" * 1_000_000 + "\u202e"
    store.add_tasks([pair(0, long, "short")], slots=1)
    ana = enter("ana")
    (task,) = ana.get("/v1/tasks").json()
    place = task["side_order"].index(0)
    assert task["responses"][place]["num_hidden"] == len(long) - 20_000
    whole = ana.get("/v1/tasks/1/responses/0").json()["text"]
    assert whole == "<b>" + "y" * 1_000_000 + "\\u202e"
    assert ana.get("/v1/tasks/1/prompt/0").json() == {"text": "Prompt 0"}
    assert ana.get("/v1/tasks/1/responses/2").status_code == 404
    assert ana.get("/v1/tasks/7/prompt/0").status_code == 404


def test_who_is_paused_gets_no_tasks_and_may_send_what_was_begun(enter, store):
    store.add_tasks([pair()], slots=1)
    ana = enter("ana")
    (task,) = ana.get("/v1/tasks").json()
    store.pause("ana")
    assert ana.get("/v1/tasks").json() == []
    assert ana.get("/v1/me").json()["is_paused"]
    assert ana.judge(task_id=task["id"], id=fresh()).json()["is_new"]


def test_labelers_see_how_often_they_gave_the_gold_answer(enter, store):
    for number, ranks in enumerate(((1, 2), (2, 1))):
        gold = Judgment("judged", ranks, is_gold=True)
        store.add_tasks([pair(number)._replace(judgments=(gold,))], slots=1)
    ana = enter("ana")
    assert ana.get("/v1/me").json()["gold"] is None
    for task in ana.get("/v1/tasks").json():
        ana.judge(task_id=task["id"], id=fresh(), ranks=[1, 2])
    assert ana.get("/v1/me").json()["gold"] == "50% as the gold answers"
    assert enter("ben").get("/v1/me").json()["gold"] is None


def test_new_labelers_begin_with_gold_tasks_and_hear_the_answers(store):
    gold = Judgment("judged", (2, 1), is_gold=True)
    store.add_tasks([pair(i) for i in range(4)], slots=2)
    store.add_tasks([pair(i)._replace(judgments=(gold,)) for i in range(4, 8)], slots=2)
    app = create_app(store, Settings(qualification=2))
    ana = Client(app)
    ana.join(invite(store.database, "ana", "labeler"))

    def answer(task, is_right):
        ranks = [2, 1] if is_right else [1, 2]
        sent = {"task_id": task["id"], "id": fresh(), "ranks": ranks}
        return ana.judge(side_order=task["side_order"], **sent).json().get("told")

    first, second = ana.get("/v1/tasks").json()
    assert (first["id"], second["id"]) == (5, 6)
    place = 1 + first["side_order"].index(1)
    told = f"The gold answer to “Prompt 4”: [{place}] > [{3 - place}]"
    assert answer(first, is_right=False) == told
    assert answer(second, is_right=True)  # one of two is too few
    others = ana.get("/v1/tasks").json()
    assert [task["id"] for task in others] == [1, 2, 3, 4, 7, 8]
    assert answer(others[0], is_right=False) is None
    assert answer(others[4], is_right=False) is None  # the qualification is over
