import pytest

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.formats import (
    FORMATS,
    ReadRow,
    check_format,
    find_format,
    read_rows,
)
from lit_rlhf.feedback.judgments import JudgedTask

RATED = {"prompt": "Hi", "helpfulness": 1, "correctness": 1, "coherence": 1}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 0},
        {"prompt": "p", "responses": ["a", "b"], "ratings": [[1, 2]]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"prompt": "Human: Hi", "chosen": "Human: a", "rejected": "Human: b"},
        {"text": "t", "label": 1},
        {"prompt": "p", "instruction": "i", "output": "o"},
        {"prompt": "p", "winner": "model_a"},
        {},
    ],
)
def test_our_own_rows_are_taken_for_no_other_format(row):
    assert find_format(row, "x") == "ours"
    assert list(read_rows([(row, "x")], "ours")) == [ReadRow(row, "x")]


def test_a_row_of_two_formats_names_both():
    row = {**HH, "instruction": "Hi"}
    with pytest.raises(DataError, match=r"x: .* several formats: hh, alpaca. Name the right one"):
        find_format(row, "x")


def test_a_format_that_is_not_there_names_those_that_are():
    for name in ("auto", "ours", "trl", "kto", *FORMATS):
        check_format(name)
    with pytest.raises(ConfigError, match=r"data.format=oast: must be one of auto, ours, .*oasst"):
        check_format("oast")


def test_a_bad_row_stands_in_its_place():
    rows = [(HH, "x:1"), ({"chosen": "no", "rejected": "no"}, "x:2"), (HH, "x:3")]
    found = list(read_rows(rows, "hh"))
    assert [read.where for read in found] == ["x:1", "x:2", "x:3"]
    assert [type(read.content) for read in found] == [JudgedTask, DataError, JudgedTask]


def test_rows_are_joined_only_with_their_neighbours():
    rows = [{**RATED, "response": text} for text in "abc"]
    rows[2]["prompt"] = "Other"
    other = {**RATED, "prompt": "Other", "response": "d"}
    broken = {**RATED, "response": "e", "helpfulness": "much"}
    found = list(read_rows([(row, str(i)) for i, row in enumerate([*rows, other, broken])],
                           "helpsteer2"))  # fmt: skip
    assert [read.where for read in found] == ["0", "2", "4"]
    assert [task.responses for task, _ in found[:2]] == [("a", "b"), ("c", "d")]
    assert found[0].content.metadata["responses"][1]["correctness"] == 1
    assert isinstance(found[2].content, DataError)


def test_different_labelers_are_not_joined():
    row = {"interaction_id": "i", "user_prompt": "Hi", "model_response": "a", "score": 1}
    rows = [({**row, "user_id": user}, user) for user in "uv"]
    assert len(list(read_rows(rows, "prism_utterances"))) == 2


def argilla(*order):
    fields = {"prompt": "Hi", "r1": "a", "r2": "b"}
    return {"fields": fields, "responses": {"q": [{"value": list(order), "user_id": "u"}]}}


def test_rankings_that_all_have_the_declared_order_are_doubted(caplog):
    rows = [(argilla("r1", "r2"), str(index)) for index in range(3)]
    list(read_rows(rows, "argilla"))
    assert "All 3 rankings have the order in which argilla declares" in caplog.text
    caplog.clear()
    list(read_rows([*rows, (argilla("r2", "r1"), "3")], "argilla"))
    assert not caplog.text
