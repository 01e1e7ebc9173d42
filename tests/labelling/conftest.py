"""The application over an empty store, and clients of it; on SQLite and on PostgreSQL."""

import pytest
from fastapi.testclient import TestClient

from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.labelling.access import invite
from lit_rlhf.labelling.app import create_app
from tests.support.feedback_stores import (  # noqa: F401 - fixtures
    postgres,
    store,
    store_url,
)

HOST = "http://testserver"


def pair(number=0, *responses):
    """Return a task of two responses."""
    return JudgedTask(
        f"Prompt {number}", responses or (f"first {number}", f"second {number}"), (), None, {}
    )


class Client(TestClient):
    """A browser: it says where its requests come from."""

    def __init__(self, app, site="same-origin"):
        super().__init__(app, base_url=HOST, follow_redirects=False)
        self.headers["Sec-Fetch-Site"] = site

    def join(self, secret):
        """Open an invitation."""
        return self.post("/v1/session", json={"secret": secret})

    def csrf(self):
        """Return what the page's forms send."""
        text = self.get("/").text
        return text.split('name="csrf" value="')[1].split('"')[0]

    def judge(self, **values):
        """Send a judgment as the page's script does."""
        body = {"id": "0" * 32, "outcome": "judged", "ranks": [1, 2]} | values
        return self.post("/v1/judgments", json=body, headers={"X-CSRF-Token": self.csrf()})


@pytest.fixture
def app(store):  # noqa: F811
    return create_app(store)


@pytest.fixture
def enter(app, store):  # noqa: F811
    """Return a function that gives the browser of somebody who has joined."""

    def enter(name, role="labeler"):
        client = Client(app)
        assert client.join(invite(store.database, name, role)).status_code == 204
        return client

    return enter


@pytest.fixture
def file_store(tmp_path):
    """Return a SQLite store, where the database makes no difference."""
    with FeedbackStore.open(str(tmp_path / "feedback.db")) as opened:
        yield opened
