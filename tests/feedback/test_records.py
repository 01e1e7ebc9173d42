import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import (
    Comparison,
    Demonstration,
    JudgedGroup,
    PromptRecord,
    parse_comparison,
    parse_demonstration,
    parse_judged_group,
    parse_judgment,
    parse_prompt,
)

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ho"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "response": "r"}, Demonstration(prompt="p", response="r")),
        ({"prompt": "p", "completion": "r"}, Demonstration(prompt="p", response="r")),
        ({"prompt": "p", "response": "r", "messages": None, "extra": 1}, Demonstration("p", "r")),
        ({"prompt": [USER], "completion": [ASSISTANT]}, Demonstration((USER,), "ho")),
        ({"messages": [USER, ASSISTANT]}, Demonstration(messages=(USER, ASSISTANT))),
        (
            {"prompt": "hi", "messages": [USER, ASSISTANT]},
            Demonstration(None, None, (USER, ASSISTANT)),
        ),
        ({"text": "words"}, Demonstration(prompt="", response="words")),
    ],
)
def test_demonstrations(row, expected):
    assert parse_demonstration(row, "x") == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, Comparison("p", "a", "b", 1.0, 1.0)),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.3, "weight": 2},
            Comparison("p", "a", "b", 0.3, 2.0),
        ),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
            Comparison((USER,), "ho", "ho"),
        ),
    ],
)
def test_comparisons(row, expected):
    assert parse_comparison(row, "x") == expected
    assert parse_judgment(row, "x") == expected


def test_judged_groups():
    row = {"prompt": "p", "responses": ["a", "b"], "rankings": [[1, 2], [None, 1]], "weight": 0.5}
    expected = JudgedGroup("p", ("a", "b"), rankings=((1.0, 2.0), (None, 1.0)), weight=0.5)
    assert parse_judged_group(row, "x") == expected
    assert parse_judgment({**row, "chosen": None}, "x") == expected
    rated = {"prompt": "p", "responses": ["a", "b"], "ratings": [[1.5, -2]], "rankings": None}
    assert parse_judged_group(rated, "x") == JudgedGroup("p", ("a", "b"), ratings=((1.5, -2.0),))


def test_prompts_hand_on_their_fields():
    row = {"prompt": "p", "answer": 4, "prompt_id": None}
    assert parse_prompt(row, "x") == PromptRecord("p", {"answer": 4, "prompt_id": None})
    assert parse_prompt({"prompt": [USER]}, "x") == PromptRecord((USER,), {})


GROUP = {"prompt": "p", "responses": ["a", "b"]}
# parser, row, the field that the error names, what it expects there
BAD = [
    (parse_demonstration, {}, "prompt", "'prompt' and 'response', or 'messages'"),
    (parse_demonstration, {"prompt": "p"}, "messages", "found the fields: prompt"),
    (parse_demonstration, {"prompt": "p", "response": 3}, "response", "text or a list"),
    (parse_demonstration, {"response": "r"}, "prompt", "found the fields: response"),
    (parse_demonstration, {"messages": [USER]}, "messages", "a turn of the role 'assistant'"),
    (parse_demonstration, {"messages": [ASSISTANT]}, "messages", "a turn before the assistant's"),
    (parse_demonstration, {"messages": "hi"}, "messages", "a list of chat messages"),
    (parse_demonstration, {"text": 3}, "text", "expected text"),
    (parse_comparison, {"prompt": "p", "chosen": "a"}, "rejected", "found the fields: chosen, pr"),
    (
        parse_comparison,
        {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 1.5},
        "probability",
        "a number from 0 to 1, found 1.5",
    ),
    (
        parse_comparison,
        {"prompt": "p", "chosen": "a", "rejected": "b", "weight": -1},
        "weight",
        "a number of 0 or more, found -1",
    ),
    (parse_judged_group, {"prompt": "p"}, "responses", "found the fields: prompt"),
    (parse_judged_group, {"prompt": "p", "responses": "ab"}, "responses", "a list of two"),
    (parse_judged_group, {"prompt": "p", "responses": ["a"]}, "responses", "two responses or more"),
    (parse_judged_group, GROUP, "rankings", "either 'rankings' or 'ratings'"),
    (parse_judged_group, {**GROUP, "rankings": [[1, 2]], "ratings": [[1, 2]]}, "ratings", "either"),
    (parse_judged_group, {**GROUP, "rankings": []}, "rankings", "one labeler or more"),
    (parse_judged_group, {**GROUP, "rankings": [1, 2]}, "rankings[0]", "a list of 2 numbers"),
    (parse_judged_group, {**GROUP, "ratings": [[1, 2], [1]]}, "ratings[1]", "a list of 2 numbers"),
    (parse_judged_group, {**GROUP, "ratings": [[1, "2"]]}, "ratings[0]", "a finite number"),
    (
        parse_judged_group,
        {"prompt": "p", "responses": ["a", 3], "ratings": [[1, 2]]},
        "responses[1]",
        "text",
    ),
    (parse_judgment, {"prompt": "p"}, "chosen", "or with 'responses'"),
    (parse_judgment, {"prompt": "p", "rejected": "b"}, "chosen", "'chosen' and 'rejected'"),
    (parse_prompt, {"text": "p"}, "prompt", "found the fields: text"),
    (parse_prompt, {"prompt": 3}, "prompt", "text or a list of chat messages"),
    (parse_prompt, {"prompt": [ASSISTANT]}, "prompt", "ends before the assistant's turn"),
]


@pytest.mark.parametrize(("parse", "row", "field", "expected"), BAD)
def test_a_bad_row_is_one_error_with_place_field_and_expectation(parse, row, field, expected):
    with pytest.raises(DataError) as caught:
        parse(row, "train.jsonl:12")
    message = str(caught.value)
    assert message.startswith("train.jsonl:12: ")
    assert f"'{field}'" in message
    assert expected in message
