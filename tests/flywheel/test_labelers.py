"""Simulated raters are as noisy as people were, and an AI judge says each thing once."""

import itertools
import json

import numpy as np
import pytest

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.evaluation.endpoint import EndpointError
from lit_rlhf.evaluation.pairwise import PairJudge, Verdicts
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.feedback.reading import StoredTask
from lit_rlhf.flywheel import labelers
from lit_rlhf.flywheel.labelers import AIJudge, People, SimulatedRaters, measure_scale
from tests.support.judge_server import judge_server, shown_responses
from tests.support.phases import write_rows


def task(number, responses):
    content = JudgedTask(f"p {number}", responses, (), None, {})
    return StoredTask(number, "comparison", None, content)


def by_length(prompts, responses):
    return np.array([len(text) for text in responses], float)


@pytest.fixture
def ratings(tmp_path):
    """Texts whose mean rating is their length / 2 - 3; each rater is off by -1 or 1."""
    rows = [
        {
            "prompt": "p",
            "responses": ["x" * (2 * length) for length in range(1, 7)],
            "ratings": [[length - 3 + off for length in range(1, 7)] for off in (-1, 1)],
        }
    ]
    return write_rows(tmp_path / "ratings.jsonl", rows)


@pytest.fixture
def raters(ratings, monkeypatch):
    monkeypatch.setattr(labelers, "gold_scores", lambda model: by_length)
    return SimulatedRaters("gold", ratings)


def test_scale_and_noise_are_those_of_the_raters(ratings):
    scale = measure_scale(ratings, by_length)
    assert scale.slope == pytest.approx(0.5)
    assert scale.offset == pytest.approx(-3)
    assert scale.noise == pytest.approx(np.sqrt(2))  # deviation of {-1, 1} with n - 1


def test_raters_who_agree_measure_no_noise_and_too_few_are_refused(tmp_path):
    row = {"prompt": "p", "responses": ["a", "bb"], "ratings": [[1, None], [None, 2]]}
    with pytest.raises(DataError, match="two texts with two ratings each"):
        measure_scale(write_rows(tmp_path / "few.jsonl", [row]), by_length)


def test_a_gold_model_against_people_is_refused(ratings):
    with pytest.raises(DataError, match="orders these texts against people"):
        measure_scale(ratings, lambda prompts, texts: -by_length(prompts, texts))


def test_what_a_rater_says_depends_on_seed_pair_and_name_alone(raters):
    tasks = [task(number, ("x" * 4, "y" * 5)) for number in range(6)]
    both = {(id_, said.labeler): said for id_, said in raters.judge(tasks, 2)}
    alone = {(id_, said.labeler): said for id_, said in raters.judge(tasks[3:], 1)}
    assert alone.items() <= both.items()
    assert len({said.id for said in both.values()}) == 12
    other = SimulatedRaters("gold", raters.ratings, seed=1)
    assert {said.id for _, said in other.judge(tasks, 2)}.isdisjoint(s.id for s in both.values())


def test_the_better_one_is_preferred_as_often_as_the_noise_says(raters):
    tasks = [task(number, ("x" * 6, "y" * 4)) for number in range(600)]
    said = [judgment for _, judgment in raters.judge(tasks, 1)]
    # Ratings 0 and -1, each with noise of deviation sqrt(2), rounded.
    draws = np.random.default_rng(0).normal(size=(2, 200_000)) * np.sqrt(2)
    first, second = np.rint(draws[0]), np.rint(draws[1] - 1)
    share = {
        outcome: np.mean([one.outcome == outcome for one in said]) for outcome in ("judged", "tie")
    }
    assert share["tie"] == pytest.approx(np.mean(first == second), abs=0.06)
    right = np.mean([one.ranks == (1, 2) for one in said])
    assert right == pytest.approx(np.mean(first > second), abs=0.06)
    assert {one.strength for one in said if one.outcome == "judged"} == {1, 2, 3}


def test_without_noise_the_gold_order_is_told(raters):
    exact = SimulatedRaters("gold", raters.ratings, noise=0.0)
    tasks = [task(0, ("x" * 8, "y" * 2)), task(1, ("x" * 2, "y" * 8)), task(2, ("x" * 4, "y" * 4))]
    said = [judgment for _, judgment in exact.judge(tasks, 1)]
    assert [one.ranks for one in said] == [(1, 2), (2, 1), None]
    assert [one.strength for one in said] == [2, 2, None]
    assert said[2].outcome == "tie"


def test_an_ai_judge_judges_each_pair_once():
    def answer(content):
        a, b = shown_responses(content)
        better = "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
        return "no idea" if "?" in a + b else json.dumps({"better": better})

    pairs = [("long one", "short"), ("s", "longer"), ("same", "size"), ("what?", "this?")]
    tasks = [task(number, pair) for number, pair in enumerate(pairs)]
    with judge_server(answer) as server:
        judge = AIJudge(server.address, "judge-1")
        said = [judgment for _, judgment in judge.judge(tasks, 1)]
        again = [judgment for _, judgment in judge.judge(tasks, 1)]
    assert [one.outcome for one in said] == ["judged", "judged", "tie", "cannot_judge"]
    assert [one.ranks for one in said] == [(1, 2), (2, 1), None, None]
    assert [one.id for one in said] == [one.id for one in again]
    assert all(a.id != b.id for a, b in itertools.combinations(said, 2))


def test_an_ai_judge_that_cannot_be_asked_is_told_beforehand():
    AIJudge("http://127.0.0.1:1/v1", "judge-1").check(1)
    with pytest.raises(ConfigError, match="slots is 3; one AI judge judges once"):
        AIJudge("http://127.0.0.1:1/v1", "judge-1").check(3)
    with pytest.raises(ConfigError, match=r"labeler: endpoint.*127.0.0.1:1/v1"):
        AIJudge("127.0.0.1:1/v1", "judge-1").check(1)
    with pytest.raises(ConfigError, match=r"labeler: judge.num_connections is 0"):
        AIJudge("http://127.0.0.1:1/v1", "judge-1", num_connections=0).check(1)


def test_people_are_not_asked_by_the_program():
    assert list(People().judge([task(0, ("a", "b"))], 3)) == []


def test_people_are_looked_for_in_some_seconds():
    with pytest.raises(ConfigError, match=r"labeler.poll_s is -1"):
        People(poll_s=-1)


def test_answers_of_an_ai_judge_outlive_an_endpoint_that_fails(monkeypatch):
    asked = []

    def compare(self, prompts, first, second):
        asked.append([prompt.where for prompt in prompts])
        if len(asked) == 2:
            raise EndpointError("gone")
        return Verdicts(*[np.ones(len(prompts))] * 3)

    monkeypatch.setattr(PairJudge, "compare", compare)
    monkeypatch.setattr(labelers, "_ASKED_TOGETHER", 2)
    judge = AIJudge("http://127.0.0.1:1/v1", "judge-1")
    tasks, said = [task(number, ("aa", "b")) for number in range(5)], {}
    with pytest.raises(EndpointError, match="gone"):
        said.update(judge.judge(tasks, 1))
    assert list(said) == [0, 1]
    stored = [
        one._replace(content=one.content._replace(judgments=(said[one.id],)))
        for one in tasks[: len(said)]
    ]
    said.update(judge.judge([*stored, *tasks[2:]], 1))
    assert list(said) == [0, 1, 2, 3, 4]
    assert asked == [["task 0", "task 1"], *[["task 2", "task 3", "task 4"]] * 2]
    assert list(judge.judge(stored, 1)) == []
