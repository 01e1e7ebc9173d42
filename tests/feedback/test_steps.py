import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.steps import JudgedSteps, is_stepwise, parse_steps

ROW = {"prompt": "1 + 2 + 3?", "completions": ["1 + 2 = 3\n", "3 + 3 = 7"], "labels": [True, 0]}


def test_steps_with_labels():
    steps = parse_steps(ROW | {"weight": 2}, "x")
    assert steps == JudgedSteps("1 + 2 + 3?", ("1 + 2 = 3", "3 + 3 = 7"), (1.0, 0.0), 2.0)
    assert steps.response == "1 + 2 = 3\n3 + 3 = 7"
    assert parse_steps(ROW | {"labels": [0.25, False]}, "x").labels == (0.25, 0.0)


def test_other_rows_are_no_steps():
    assert is_stepwise(ROW)
    assert not is_stepwise({"prompt": "p", "completion": "c", "label": True})
    with pytest.raises(DataError, match="'prompt', 'completions' and 'labels'"):
        parse_steps({"prompt": "p"}, "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [True]}, "one label for each of 2 steps"),
        ({"labels": [True, 2]}, r"labels\[1\].*from 0 to 1"),
        ({"labels": [True, "yes"]}, r"labels\[1\].*from 0 to 1"),
        ({"completions": ["a", " \n"]}, r"completions\[1\].*a step with a text"),
        ({"weight": 1e300}, "a weight of at most 1e.06"),
        ({"completions": [], "labels": []}, "one label for each of 0 steps"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(DataError, match=f"x.jsonl:3: .*{message}"):
        parse_steps(ROW | changes, "x.jsonl:3")
