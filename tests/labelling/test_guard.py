import pytest
from fastapi import HTTPException

from lit_rlhf.labelling.access import invite
from lit_rlhf.labelling.guard import RateLimit
from tests.labelling.conftest import HOST, Client


@pytest.fixture
def store(file_store):
    """One database is enough: these requests hardly ask it anything."""
    return file_store


def test_every_answer_forbids_what_the_page_does_not_need(app, enter):
    for answer in (enter("ana").get("/"), Client(app).get("/nothing"), Client(app).get("/join")):
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'nonce-")
        assert "unsafe" not in policy
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    first, second = (Client(app).get("/join").headers["Content-Security-Policy"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_another_site_sends_nothing(app, site):
    assert Client(app, site).join("x").status_code == 403


def test_without_fetch_metadata_the_origin_counts(app):
    client = Client(app)
    del client.headers["Sec-Fetch-Site"]  # as over plain http in a local network
    body = {"json": {"secret": "x"}}
    own = client.post("/v1/session", **body, headers={"Origin": HOST})
    other = client.post("/v1/session", **body, headers={"Origin": "http://evil.example"})
    assert own.json()["detail"].startswith("this invitation was used")
    assert other.json()["detail"] == "this request came from another site"
    assert client.post("/v1/session", **body).status_code == 403


def test_a_large_request_is_refused(enter):
    client = enter("ana")
    answer = client.judge(task_id=1, edit="x" * 5 * 2**20)
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "a request has at most 4 MiB here; send it in parts",
    )


def test_who_asks_too_often_waits():
    limit = RateLimit(3)
    for _ in range(3):
        limit.take("ana")
    with pytest.raises(HTTPException) as refused:
        limit.take("ana")
    assert refused.value.status_code == 429
    limit.take("ben")


def test_invitations_cannot_be_guessed_fast(app):
    codes = [Client(app).join("guess").status_code for _ in range(25)]
    assert codes[:20] == [403] * 20
    assert 429 in codes[20:]


def test_a_whole_office_joins_from_one_address(app, store):
    for number in range(25):
        assert Client(app).join(invite(store.database, f"labeler {number}", "labeler")).is_success
    for _ in range(25):
        Client(app).join("guess")
    assert Client(app).join(invite(store.database, "late", "labeler")).is_success
