"""Shapes of chats and instructions, which become rows of ours."""

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import (
    Comparison,
    Demonstration,
    Unpaired,
    parse_comparison,
    parse_demonstration,
    parse_prompt,
    parse_unpaired,
)
from lit_rlhf.feedback.formats import find_format, read_rows

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}
BRIEF = {"role": "system", "content": "Be brief."}
FROM = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def ours(name, row):
    assert find_format(row, "x") == name
    (read,) = read_rows([(row, "x")], name)
    if isinstance(read.content, DataError):
        raise read.content
    return read.content


# format, row, demonstration
DEMONSTRATIONS = [
    ("sharegpt", {"conversations": FROM}, Demonstration((HI,), (HELLO,))),
    ("sharegpt", {"id": "1", "conversations": [{"from": "system", "value": "Be brief."}, *FROM]},
     Demonstration((BRIEF, HI), (HELLO,))),
    ("sharegpt", {"conversations": FROM, "system": "Be brief."},
     Demonstration((BRIEF, HI), (HELLO,))),
    ("sharegpt", {"conversations": [HI, HELLO]}, Demonstration((HI,), (HELLO,))),
    ("sharegpt", {"messages": FROM}, Demonstration((HI,), (HELLO,))),
    ("sharegpt", {"messages": [{"role": "Human", "content": "Hi"},
                               {"role": "Assistant", "content": "Hello"}]},
     Demonstration((HI,), (HELLO,))),
    ("sharegpt", {"messages": [{"role": "User", "content": "Hi"}, {"role": "gpt",
                                                                   "content": "Hello"}]},
     Demonstration((HI,), (HELLO,))),
    ("sharegpt", {"conversations": [
        FROM[0],
        {"from": "function_call", "value": '{"name": "look_up", "arguments": {"of": "Hi"}}'},
        {"from": "observation", "value": "a greeting"},
        FROM[1],
     ]},
     Demonstration((HI,), (
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "look_up", "arguments": {"of": "Hi"}}}
        ]},
        {"role": "tool", "content": "a greeting"},
        HELLO,
     ))),
    ("ours", {"messages": [BRIEF, HI, HELLO]}, Demonstration((BRIEF, HI), (HELLO,))),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"},
     Demonstration((HI,), "Hello")),
    ("alpaca", {"instruction": "Name it.", "input": "France", "output": "Paris"},
     Demonstration(({"role": "user", "content": "Name it.\n\nFrance"},), "Paris")),
    ("alpaca", {"instruction": "Why?", "output": "So.", "history": [["Hi", "Hello"]],
                "system": "Be brief."},
     Demonstration((BRIEF, HI, HELLO, {"role": "user", "content": "Why?"}), "So.")),
    ("orca", {"system_prompt": "Be brief.", "question": "Hi", "response": "Hello"},
     Demonstration((BRIEF, HI), "Hello")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), DEMONSTRATIONS)
def test_demonstrations(name, row, expected):
    assert parse_demonstration(ours(name, row), "x") == expected


# format, row, comparison
COMPARISONS = [
    ("sharegpt", {"conversations": FROM[:1], "chosen": FROM[1], "rejected": {"from": "gpt",
                                                                             "value": "No"}},
     Comparison((HI,), "Hello", "No")),
    ("sharegpt", {"conversations": FROM[:1], "system": "Be brief.", "chosen": "Hello",
                  "rejected": "No"}, Comparison((BRIEF, HI), "Hello", "No")),
    ("sharegpt", {"chosen": FROM, "rejected": [FROM[0], {"from": "gpt", "value": "No"}]},
     Comparison((HI,), "Hello", "No")),
    ("alpaca", {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "No"},
     Comparison((HI,), "Hello", "No")),
    ("orca", {"system": "Be brief.", "question": "Hi", "chosen": "Hello", "rejected": "No"},
     Comparison((BRIEF, HI), "Hello", "No")),
    ("orca", {"system": "", "input": "Hi", "chosen": "Hello", "rejected": "No"},
     Comparison((HI,), "Hello", "No")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), COMPARISONS)
def test_comparisons(name, row, expected):
    assert parse_comparison(ours(name, row), "x") == expected


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("sharegpt", {"conversations": FROM, "label": False}, Unpaired((HI,), "Hello", False)),
        (
            "sharegpt",
            {"messages": [{"role": "human", "content": "Hi"}, HELLO], "label": True},
            Unpaired((HI,), "Hello", True),
        ),
        (
            "alpaca",
            {"instruction": "Hi", "output": "Hello", "kto_tag": False},
            Unpaired((HI,), "Hello", False),
        ),
        ("ours", {"prompt": "p", "completion": "c", "label": 0}, Unpaired("p", "c", False)),
        ("ours", {"messages": [HI, HELLO], "label": True}, Unpaired((HI,), "Hello", True)),
    ],
)
def test_a_labelled_answer_is_never_a_demonstration_when_it_is_bad(name, row, expected):
    row = ours(name, row)
    assert parse_unpaired(row, "x") == expected
    if not expected.is_good:
        with pytest.raises(DataError, match=r"field 'label': .* a bad one"):
            parse_demonstration(row, "x")


def test_the_other_fields_of_a_row_are_kept():
    turn = {"from": "gpt", "value": "Hello", "weight": 0}
    row = ours("sharegpt", {"id": 3, "conversations": [FROM[0], turn], "tools": [{"name": "f"}]})
    assert (row["id"], row["tools"]) == (3, [{"name": "f"}])
    assert row["messages"] == (HI, {**HELLO, "weight": 0})
    assert ours("alpaca", {"instruction": "Hi", "output": "o", "topic": "t"})["topic"] == "t"
    prompt = ours("sharegpt", {"prompt": FROM[:1], "answer": 4})
    assert parse_prompt(prompt, "x").prompt == (HI,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "'conversations[0].role'"),
        ({"conversations": [FROM[0], {"from": "gpt", "value": 3}]}, "content'"),
        ({"instruction": "Hi", "output": "o", "history": [["one"]]}, "'history[0]'"),
        ({"instruction": None, "output": "o"}, "'instruction'"),
    ],
)
def test_a_bad_row_names_its_field(row, message):
    with pytest.raises(DataError, match=r"^x: ") as caught:
        ours(find_format(row, "x"), row)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["look_up(Hi)", "[]", "[1]", '{"arguments": {}}'])
def test_a_call_that_is_none_is_refused(value):
    row = {"conversations": [FROM[0], {"from": "function_call", "value": value}]}
    with pytest.raises(DataError, match=r"conversations\[1\]': expected calls as JSON"):
        ours("sharegpt", row)


def test_several_calls_are_one_turn():
    calls = '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]'
    row = {"conversations": [FROM[0], {"from": "function_call", "value": calls}]}
    (turn,) = parse_demonstration(ours("sharegpt", row), "x").response
    assert [call["function"]["name"] for call in turn["tool_calls"]] == ["a", "b"]
