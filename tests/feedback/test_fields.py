import subprocess
import sys

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import (
    is_present,
    missing_fields,
    read_conversation,
    read_list,
    read_number,
    read_text,
    read_text_or_conversation,
    wrong_field,
)

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def test_an_error_names_place_field_expectation_and_finding():
    error = wrong_field("a.jsonl:3", "weight", "a number of 0 or more", "much")
    assert str(error) == (
        "a.jsonl:3: field 'weight': expected a number of 0 or more, found 'much'."
    )


def test_a_long_finding_is_shortened():
    assert len(str(wrong_field("a", "b", "c", "x" * 1000))) < 150


def test_missing_fields_lists_those_present_without_nulls():
    message = str(missing_fields({"b": 1, "a": 2, "c": None}, "a.jsonl:1", "'prompt'"))
    assert "expected 'prompt', found the fields: a, b." in message


def test_null_counts_as_absent():
    assert not is_present({"a": None}, "a")
    assert not is_present({}, "a")
    assert is_present({"a": ""}, "a")


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), 1.5, -0.5, [1]])
def test_no_number_in_the_range(value):
    with pytest.raises(DataError, match="expected a number from 0 to 1"):
        read_number(value, "probability", "here", low=0, high=1)


@pytest.mark.parametrize(
    ("low", "expected"), [(0.0, "a number of 0 or more"), (float("-inf"), "a finite number")]
)
def test_the_expected_range_is_said(low, expected):
    with pytest.raises(DataError, match=expected):
        read_number("x", "weight", "here", low=low)


def test_an_integer_becomes_a_float():
    number = read_number(1, "weight", "here")
    assert number == 1.0
    assert isinstance(number, float)


def test_text_is_not_converted():
    assert read_text("", "prompt", "here") == ""
    with pytest.raises(DataError, match="expected text, found 3"):
        read_text(3, "prompt", "here")


def test_a_text_is_no_list():
    with pytest.raises(DataError, match="expected numbers, found 'abc'"):
        read_list("abc", "ratings", "here", "numbers")
    assert read_list((1, 2), "ratings", "here", "numbers") == [1, 2]


def test_further_keys_of_a_message_are_kept_and_nulls_dropped():
    message = {"role": "user", "content": "hi", "name": "Ann", "tool_calls": None}
    assert read_conversation([message], "prompt", "here") == (
        {"role": "user", "content": "hi", "name": "Ann"},
    )


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "prompt"),
        (["hi"], r"prompt\[0\]"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], r"prompt\[1\]\.content"),
        ([{"content": "a"}], r"prompt\[0\]\.role"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"prompt\[0\]\.content\[0\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"prompt\[0\]\.content\[0\]\.text"),
        ([{"role": "assistant", "content": "a", "train": 0}], r"prompt\[0\]\.train"),
        ([{"role": "assistant", "content": "a", "weight": 0.5}], r"prompt\[0\]\.weight"),
        ([{"role": "assistant", "content": "a", "loss": 1}], r"prompt\[0\]\.loss"),
        ([{"role": "assistant", "content": "a", "mask": True}], r"prompt\[0\]\.mask"),
        ([{"role": "assistant", "content": "a", "train_detail": []}], r"prompt\[0\]\.train_detail"),
        ([{"role": "assistant", "content": 3, "tool_calls": [CALL]}], r"prompt\[0\]\.content"),
        ([{"role": "assistant", "tool_calls": [{}]}], r"prompt\[0\]\.tool_calls"),
        ([{"role": "assistant", "tool_calls": "f()"}], r"prompt\[0\]\.tool_calls"),
        (
            [{"role": "assistant", "function_call": {**CALL["function"], "arguments": "x = 1"}}],
            r"prompt\[0\]\.tool_calls\.arguments",
        ),
        (3, "prompt"),
    ],
)
def test_a_broken_chat_names_the_message(value, place):
    with pytest.raises(DataError, match=f"field '{place}'"):
        read_conversation(value, "prompt", "here")


@pytest.mark.parametrize("content", [None, "", "I look."])
def test_a_call_of_a_tool_needs_no_content(content):
    message = {"role": "assistant", "content": content, "tool_calls": [CALL]}
    (read,) = read_conversation([message], "prompt", "here")
    assert read == {key: value for key, value in message.items() if value is not None}


@pytest.mark.parametrize(
    "written",
    [
        {"tool_calls": [{"id": "1", **CALL}]},
        {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}]},
        {"tool_calls": [CALL["function"]]},
        {"function_call": {"name": "f", "arguments": '{"x": 1}'}, "content": None},
    ],
    ids=["as templates take it", "arguments as JSON", "nulls of a table", "bare", "older form"],
)
def test_each_form_of_a_call_is_what_templates_take(written):
    (read,) = read_conversation([{"role": "assistant", **written}], "prompt", "here")
    (call,) = read["tool_calls"]
    assert call["function"] == CALL["function"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"training": False}, {"train": False}),
        ({"trainable": False, "train": True}, {"train": False}),
        ({"loss": True}, {"train": True}),
        ({"loss_weight": 0.0, "weight": 1}, {"weight": 0.0}),
    ],
)
def test_what_is_learned_has_several_names(keys, expected):
    message = {"role": "assistant", "content": "a"}
    assert read_conversation([message | keys], "p", "here") == (message | expected,)


@pytest.mark.parametrize("text", ['[{"role": "user", "content": "hi"}]', " [{'from': 'human'}]"])
def test_a_chat_that_was_written_as_text_is_refused(text):
    with pytest.raises(DataError, match=r"field 'prompt': expected .*not such a list written as"):
        read_text_or_conversation(text, "prompt", "here")
    pasted = {"role": "user", "content": text}  # what somebody says may be that
    assert read_conversation([pasted], "prompt", "here") == (pasted,)


def test_content_may_be_parts_of_text():
    message = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert read_conversation([message], "prompt", "here") == (message,)


def test_feedback_needs_no_torch():
    program = "import sys, lit_rlhf.feedback; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
