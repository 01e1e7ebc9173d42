import pytest

from lit_rlhf.labelling.access import invite
from lit_rlhf.labelling.app import create_app
from lit_rlhf.labelling.page import Settings
from tests.labelling.conftest import Client


@pytest.fixture
def store(file_store):
    """One database is enough: these requests hardly ask it anything."""
    return file_store


def test_the_session_cookie_is_for_the_server_alone(app, store):
    answer = Client(app).join(invite(store.database, "ana", "labeler"))
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie  # a local network has no https
    client = Client(app)
    client.base_url = "https://testserver"
    assert "Secure" in client.join(invite(store.database, "ana", "labeler")).headers["Set-Cookie"]


def test_opening_a_link_uses_no_invitation_up(app, store):
    secret = invite(store.database, "ana", "labeler")
    assert Client(app).get(f"/join#{secret}").status_code == 200
    assert Client(app).join(secret).status_code == 204


def test_leaving_ends_the_session(enter):
    ana = enter("ana")
    kept = dict(ana.cookies)
    assert ana.post("/leave", data={"csrf": ana.csrf()}).status_code == 303
    ana.cookies.update(kept)
    assert ana.get("/v1/me").status_code == 401


def test_guidelines_are_shown_and_named_in_the_page(file_store, tmp_path):
    file = tmp_path / "guidelines.md"
    file.write_text("# Be kind\n<script>alert(1)</script>")
    app = create_app(file_store, Settings(guidelines=file))
    ana = Client(app)
    ana.join(invite(file_store.database, "ana", "labeler"))
    shown = ana.get("/guidelines").text
    assert "<h1>Be kind</h1>" in shown
    assert "<script>alert" not in shown
    version = ana.get("/").text.split('data-guideline="')[1].split('"')[0]
    file.write_text("# Be kinder")
    other = Client(create_app(file_store, Settings(guidelines=file)))
    other.join(invite(file_store.database, "ben", "labeler"))
    assert version
    assert version not in other.get("/").text


def test_errors_are_pages_for_people_and_json_for_programs(enter):
    ana = enter("ana")
    assert "<h1>That did not work</h1>" in ana.get("/admin", headers={"Accept": "text/html"}).text
    assert ana.get("/admin").json() == {"detail": "this page is for administrators"}


def test_other_front_ends_find_the_interface(app):
    paths = Client(app).get("/openapi.json").json()["paths"]
    assert {"/v1/tasks", "/v1/judgments", "/v1/feedback", "/v1/me"} <= set(paths)
