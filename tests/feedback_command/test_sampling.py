"""`lit-rlhf feedback sample`: what a policy says becomes tasks."""

import json

import pytest

from lit_rlhf.cli import main
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.feedback_command.sampling import tasks_of
from tests.models.examples import save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(save_policy(tmp_path_factory.mktemp("policy") / "model", seed=1))


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(40)))
    return str(file)


def sample(policy, prompts, store, *options):
    words = ["feedback", "sample", policy, str(store), "--prompts", prompts]
    return main([*words, "--max-new-tokens", "3", *options])


def test_samples_become_rankings_that_say_where_they_come_from(policy, prompts, tmp_path, capsys):
    store = tmp_path / "feedback.db"
    assert sample(policy, prompts, store, "--k", "3", "--slots", "2", "--name", "first") == 0
    assert "40 new tasks for 40 prompts" in capsys.readouterr().out
    with FeedbackStore.open(str(store)) as opened:
        claimed = opened.claim("ana", 40)
        assert opened.counts().open_slots == 40
        stored = opened.task(claimed[0].id).content
        with opened.database.reading() as connection:
            query = "SELECT DISTINCT checkpoint, sampling FROM responses"
            ((checkpoint, sampling),) = connection.exec_driver_sql(query).all()
    assert stored.models == ("first",) * len(stored.responses)
    assert json.loads(checkpoint) == policy
    settings = json.loads(sampling)
    assert (settings["temperature"], settings["seed"], len(settings["sha256"])) == (1.0, 0, 64)
    for task in claimed:
        assert len(set(task.responses)) == len(task.responses) in (2, 3)
    # The same samples again are the same tasks; another seed brings others.
    assert sample(policy, prompts, store, "--k", "3", "--name", "first") == 0
    assert capsys.readouterr().out.startswith("0 new tasks")
    assert sample(policy, prompts, store, "--k", "3", "--seed", "1") == 0
    assert not capsys.readouterr().out.startswith("0 new tasks")


def test_tasks_of_a_prompt_never_show_a_response_twice():
    said = ["a", "b", "a", "c"]
    asked = {
        "comparison": [("a", "b"), ("a", "c"), ("b", "c")],
        "ranking": [("a", "b", "c")],
        "rating": [("a",), ("b",), ("c",)],
    }
    for ask, expected in asked.items():
        assert [task.responses for task in tasks_of("p", said, ask)] == expected
    assert list(tasks_of("p", ["a", "a"], "comparison")) == []
    assert list(tasks_of("p", ["a", "a"], "ranking")) == []
    assert [task.question for task in tasks_of("p", said, "ranking", "kind")] == ["kind"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "1"], "--k 1: a ranking takes 2 to 9"),
        (["--k", "10"], "--k 10: a ranking takes 2 to 9"),
        (["--slots", "0"], "--slots 0"),
        (["--temperature", "0"], "at temperature 0"),
    ],
)
def test_bad_options_leave_no_store(policy, prompts, tmp_path, capsys, options, message):
    store = tmp_path / "feedback.db"
    assert sample(policy, prompts, store, *options) == 1
    assert message in capsys.readouterr().err
    assert not store.exists()


def test_a_missing_policy_leaves_no_store(prompts, tmp_path):
    assert sample(str(tmp_path / "none"), prompts, tmp_path / "feedback.db") == 1
    assert not (tmp_path / "feedback.db").exists()
