import json

import pytest

from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.labelling.statistics import StatisticsReader
from tests.labelling.conftest import Client, pair

ROWS = [{"prompt": f"p{i}", "responses": ["a", "b"], "ratings": [[1, 2]]} for i in range(3)]


def upload(client, text, **values):
    data = {"csrf": client.csrf(), "slots": 2} | values
    return client.post("/admin/tasks", data=data, files={"file": ("rows.jsonl", text)})


def test_only_an_administrator_sees_and_does(enter, app):
    ana = enter("ana")
    csrf = {"csrf": ana.csrf()}
    assert ana.get("/admin").status_code == 403
    for path, values in {
        "invite": {"name": "eve", "role": "admin"},
        "pause": {"name": "ana", "is_paused": "true"},
        "revoke": {"name": "ana"},
    }.items():
        assert ana.post(f"/admin/{path}", data=csrf | values).status_code == 403
    assert upload(ana, "").status_code == 403
    assert Client(app).get("/admin").status_code == 401


@pytest.mark.parametrize("path", ["invite", "pause", "revoke"])
def test_a_form_needs_the_sessions_token(enter, path):
    values = {"name": "eve", "role": "admin", "is_paused": "true"}
    assert enter("root", "admin").post(f"/admin/{path}", data=values).status_code == 403


def test_an_invitation_from_the_page_works_once(enter, app):
    root = enter("root", "admin")
    shown = root.post(
        "/admin/invite", data={"csrf": root.csrf(), "name": "<ana>", "role": "labeler"}
    ).text
    assert "&lt;ana&gt;" in shown
    secret = shown.split("/join#")[1].split("<")[0]
    ana = Client(app)
    assert ana.join(secret).status_code == 204
    assert ana.get("/v1/me").json()["name"] == "<ana>"
    assert Client(app).join(secret).status_code == 403


def test_tasks_come_from_a_file(enter, store):
    root = enter("root", "admin")
    shown = upload(root, "\n".join(map(json.dumps, ROWS)))
    assert "3 new tasks, 3 new judgments." in shown.text
    assert store.counts().open_slots == 6


def test_a_bad_file_adds_nothing_and_says_where(enter, store):
    root = enter("root", "admin")
    shown = upload(root, json.dumps(ROWS[0]) + "\n{\n")
    assert shown.status_code == 422
    assert "rows.jsonl:2" in shown.text
    assert "/tmp" not in shown.text
    assert store.counts().tasks == 0


def test_the_page_says_how_far_people_are(enter, store):
    store.add_tasks([pair(i) for i in range(4)], slots=1)
    for task in store.claim("ana", 2):
        said = Judgment("judged", (1, 2), labeler="ana", id=f"{task.id}" * 16, duration_s=7.0)
        store.submit(task.id, said)
    shown = enter("root", "admin").get("/admin").text
    assert "<dd>2 of 4</dd>" in shown
    assert "<bdi>ana</bdi>" in shown
    assert "<td>7</td>" in shown


def test_the_page_shows_quality_and_what_is_worth_discussing(enter, store):
    gold = Judgment("judged", (1, 2), is_gold=True)
    said = [
        Judgment("judged", (1, 2), labeler="ana", comment="<b>sure</b>"),
        Judgment("judged", (2, 1), labeler="ben"),
    ]
    store.add_tasks([
        pair(1)._replace(judgments=(gold, said[0])),
        pair(2, "left \u202e", "right")._replace(judgments=tuple(said)),
    ])  # fmt: skip
    shown = enter("root", "admin").get("/admin").text
    assert "<td>100% (21% to 100%)</td>" in shown  # ana, as the gold answers
    assert shown.count("<summary>") == 1
    assert "<summary>Task 2: <bdi>Prompt 2</bdi></summary>" in shown
    assert "left \\u202e" in shown
    assert "<li><bdi>ana</bdi>: [1] &gt; [2], " in shown
    assert "&lt;b&gt;sure&lt;/b&gt;" in shown


def test_what_takes_long_is_kept_but_people_are_as_they_are(app, enter, store):
    app.state.page.statistics = StatisticsReader(quick_s=0)  # everything takes long
    root = enter("root", "admin")
    store.add_tasks([pair()], slots=1)
    assert "<dd>0 of 1</dd>" in root.get("/admin").text
    (task,) = store.claim("ana")
    store.submit(task.id, Judgment("judged", (1, 2), labeler="ana", id="a" * 16))
    store.pause("ana")
    shown = root.get("/admin").text
    assert "<bdi>ana</bdi> <em>paused</em>" in shown
    app.state.page.statistics = StatisticsReader()
    assert "<dd>1 of 1</dd>" in root.get("/admin").text


def test_who_is_logged_out_is_out(enter):
    root, ana = enter("root", "admin"), enter("ana")
    root.post("/admin/revoke", data={"csrf": root.csrf(), "name": "ana"})
    assert ana.get("/v1/me").status_code == 401
