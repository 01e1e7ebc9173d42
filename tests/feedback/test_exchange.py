import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import judged_pairs, parse_judged_group
from lit_rlhf.feedback.exchange import row_of, task_of_row, training_row
from lit_rlhf.feedback.judgments import JudgedTask, Judgment

ABC = ("a", "b", "c")


def task(*judgments, responses=ABC, **metadata):
    return JudgedTask("p", responses, judgments, None, metadata)


def judged_group(judged, where):
    return parse_judged_group(row_of(judged), where)


def pairs(judged):
    return {(p.chosen, p.rejected): p.probability for p in judged_pairs(judged_group(judged, "x"))}


def test_judgments_become_lists_of_labelers():
    ranked = task(Judgment("judged", ranks=(2, 1, None)), Judgment("judged", ranks=(1, 1, 2)))
    assert row_of(ranked)["rankings"] == [(2, 1, None), (1, 1, 2)]
    rated = task(Judgment("judged", ratings=(1.0, None, 2.0)))
    assert row_of(rated)["ratings"] == [(1.0, None, 2.0)]
    assert "rankings" not in row_of(rated)


def test_only_what_compares_responses_counts():
    judged = task(
        Judgment("skip"), Judgment("cannot_judge"), Judgment("judged", ranks=(1, 2)),
        Judgment("tie"), Judgment("both_bad"), Judgment("judged", edit="better"),
        responses=("a", "b"),
    )  # fmt: skip
    assert row_of(judged)["rankings"] == [(1, 2), (1, 1), (1, 1)]
    assert pairs(judged) == {(0, 1): pytest.approx(4 / 6)}


def test_the_best_alone_beats_each_other_which_are_not_tied():
    assert pairs(task(Judgment("judged", ranks=(None, 1, None)))) == {(1, 0): 1.0, (1, 2): 1.0}
    assert row_of(task(Judgment("judged", ranks=(None, 2, None))))["rankings"] == [(None, 2, None)]


def test_ratings_beside_ties_keep_their_order():
    judged = task(Judgment("tie"), Judgment("judged", ratings=(1, 3)), responses=("a", "b"))
    assert pairs(judged) == {(1, 0): 0.75}


def test_a_task_that_nobody_judged_is_an_error():
    with pytest.raises(DataError, match="x: field 'rankings': expected one labeler or more"):
        judged_group(task(Judgment("skip")), "x")


def test_the_weight_is_kept():
    judged = task(Judgment("judged", ranks=(1, 2, 3)), weight=0.5, other=1)
    assert judged_group(judged, "x").weight == 0.5
    assert row_of(judged)["metadata"] == {"weight": 0.5, "other": 1}


@pytest.mark.parametrize(
    ("row", "judgments"),
    [
        ({"chosen": "a", "rejected": "b"}, [Judgment("judged", ranks=(1, 2))]),
        ({"chosen": "a", "rejected": "b", "probability": 0}, [Judgment("judged", ranks=(2, 1))]),
        ({"chosen": "a", "rejected": "b", "probability": 0.5}, [Judgment("tie", ranks=(1, 1))]),
        (
            {"responses": ["a", "b"], "rankings": [[10, 5], [None, 3], [0, 0]]},
            [
                Judgment("judged", ranks=(2, 1)),
                Judgment("skip"),  # a null was not judged, so nothing was compared
                Judgment("judged", ranks=(1, 1)),
            ],
        ),
        (
            {"responses": ["a", "b"], "ratings": [[1, 2], [2, 1]], "labelers": ["ana", None]},
            [
                Judgment("judged", ratings=(1.0, 2.0), labeler="ana"),
                Judgment("judged", ratings=(2.0, 1.0)),
            ],
        ),
    ],
)
def test_a_row_of_ours_is_a_task(row, judgments):
    record = task_of_row({"prompt": "p", **row}, "x")
    assert list(record.judgments) == judgments
    assert record.responses == ("a", "b")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b", "probability": 0.8}, "what several judgments come to"),
        (
            {"responses": ["a", "b"], "rankings": [[1, 2], [2, 1]], "labelers": ["ana", "ana"]},
            "each labeler once",
        ),
    ],
)
def test_what_is_no_single_judgment_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        task_of_row({"prompt": "p", **row}, "x")


def test_tools_reach_the_training_row():
    chat, tools = [{"role": "user", "content": "p"}], [{"name": "search"}]
    task = task_of_row({"prompt": chat, "chosen": "a", "rejected": "b", "tools": tools}, "x")
    assert training_row(task)["tools"] == tools


def test_there_and_back():
    row = {"prompt": "p", "responses": ["a", "b", "c"], "rankings": [[2, 1, 3], [1, 1, None]]}
    assert judged_group(task_of_row(row, "x"), "x") == parse_judged_group(row, "x")


def test_thumbs_are_ratings_and_demonstrations_edits():
    rows = [
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "completion": "c", "label": False},
        {"prompt": "p", "chosen": "a", "rejected": "b", "source": "s"},
    ]
    edited, thumb, compared = (task_of_row(row, "x") for row in rows)
    assert edited == JudgedTask("p", ("r",), (Judgment("judged", edit="r"),), None, {})
    assert thumb == JudgedTask("p", ("c",), (Judgment("judged", ratings=(0.0,)),), None, {})
    assert compared.metadata == {"source": "s"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "answer": 4}, "x: holds no judgment of a response"),
        ({"prompt": "p", "response": 3}, "x: field 'response': expected text or a list of chat"),
        ({"answer": 4}, "x: expected 'prompt', found the fields: answer"),
    ],
)
def test_what_holds_no_judgment_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        task_of_row(row, "x")


def test_judgments_of_both_kinds_keep_their_labelers():
    judged = task(
        Judgment("judged", ratings=(1, 3), labeler="ana"), Judgment("skip", labeler="ben"),
        Judgment("tie", labeler="cem"), responses=("a", "b"),
    )  # fmt: skip
    assert training_row(judged) == {
        "prompt": "p",
        "responses": ["a", "b"],
        "rankings": [(1, 1), (-1, -3)],
        "labelers": ["cem", "ana"],
    }
    best = task(Judgment("judged", ranks=(1, None, None), labeler="ana"))
    assert training_row(best)["labelers"] == ["ana", "ana"]
