import pytest

from lit_rlhf.labelling.access import invite
from tests.labelling.conftest import Client

THUMB = {"id": "a" * 32, "prompt": "Hi", "response": "Hello", "label": True, "user": "u1"}


@pytest.fixture
def product(app, store):
    client = Client(app)
    client.headers.pop("Sec-Fetch-Site")
    client.headers["Authorization"] = f"Bearer {invite(store.database, 'shop', 'api')}"
    return client


def test_thumbs_and_edits_are_stored_once(product, store):
    assert product.post("/v1/feedback", json=THUMB).json() == {"is_new": True}
    assert product.post("/v1/feedback", json=THUMB).json() == {"is_new": False}
    chat = [{"role": "user", "content": "Hi"}]
    edit = {"id": "b" * 32, "prompt": chat, "response": "Hello", "edit": "Hello!", "model": "m1"}
    assert product.post("/v1/feedback", json=edit).json() == {"is_new": True}
    thumb, edited = store.judged_tasks()
    assert (thumb.prompt, thumb.responses) == ("Hi", ("Hello",))
    assert [(said.labeler, said.ratings) for said in thumb.judgments] == [("shop:u1", (1.0,))]
    assert [(said.labeler, said.edit) for said in edited.judgments] == [("shop", "Hello!")]
    assert edited.models == ("m1",)


def test_only_a_program_may_send_feedback(app, enter, store):
    assert Client(app).post("/v1/feedback", json=THUMB).status_code == 401
    assert enter("ana", "admin").post("/v1/feedback", json=THUMB).status_code == 401
    token = {"Authorization": f"Bearer {invite(store.database, 'ana', 'labeler')}"}
    assert Client(app).post("/v1/feedback", json=THUMB, headers=token).status_code == 401
    assert store.counts().judgments == 0


def test_a_program_may_not_label(product):
    assert product.get("/v1/tasks").status_code == 401
    assert product.get("/admin").status_code == 401


@pytest.mark.parametrize("change", [{"label": None}, {"edit": "x"}, {"id": "short"}, {"prompt": 3}])
def test_what_says_nothing_is_refused(product, store, change):
    answer = product.post("/v1/feedback", json=THUMB | change)
    assert answer.status_code == 422
    assert store.counts().tasks == 0
