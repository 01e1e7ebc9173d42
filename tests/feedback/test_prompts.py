import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import parse_demonstration, parse_prompt
from lit_rlhf.feedback.prompts import split_prompt, unanswered, with_tools


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def test_texts_stay_as_they_are():
    row = {"prompt": "Say: "}
    assert split_prompt(row, {"chosen": "yes", "rejected": "yet"}, "x") == ("Say: ", ("yes", "yet"))


def test_a_chat_prompt_with_text_responses():
    row = {"prompt": [user("hi")]}
    assert split_prompt(row, {"response": "ho"}, "x") == ((user("hi"),), ("ho",))


def test_chats_of_one_turn_follow_the_prompt():
    responses = {"chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert split_prompt({"prompt": [user("hi")]}, responses, "x") == ((user("hi"),), ("a", "b"))


def test_a_text_prompt_of_chats_becomes_a_turn_of_the_user():
    responses = {"chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert split_prompt({"prompt": "hi"}, responses, "x") == ((user("hi"),), ("a", "b"))


TURNS = st.lists(st.text(max_size=3), max_size=2).map(
    lambda texts: [turn for text in texts for turn in (user(text), assistant(text))]
)


@given(TURNS, st.text(max_size=3), st.lists(st.text(max_size=3), min_size=2, max_size=3))
def test_the_implicit_prompt_is_all_but_the_last_turn(earlier, question, answers):
    prompt = [*earlier, user(question)]
    chats = {f"responses[{i}]": [*prompt, assistant(text)] for i, text in enumerate(answers)}
    assert split_prompt({}, chats, "x") == (tuple(prompt), tuple(answers))


@pytest.mark.parametrize("prompt", ["hi", [user("hi")]])
def test_a_prompt_said_twice_is_taken_once(prompt):
    responses = {"chosen": [user("hi"), assistant("a")], "rejected": [user("hi"), assistant("b")]}
    assert split_prompt({"prompt": prompt}, responses, "x") == ((user("hi"),), ("a", "b"))


HI = [user("hi"), assistant("a")]
BAD = {
    "no prompt": ({}, {"chosen": "a", "rejected": "b"}, "expected a 'prompt'"),
    "no prompt of chats": ({}, {"chosen": [assistant("a")]}, "chats that begin with it"),
    "text and chat": ({}, {"chosen": HI, "rejected": "b"}, "'rejected': expected a list of messa"),
    "other prompt": ({"prompt": "ho"}, {"chosen": HI}, "'prompt': expected the prompt that the"),
    "other chat": ({"prompt": [user("ho")]}, {"chosen": HI}, "'prompt': expected the prompt that"),
    "prompts differ": ({}, {"chosen": HI, "rejected": [user("ho"), assistant("b")]}, "'chosen'"),
    "no assistant": ({}, {"chosen": [user("hi"), user("ho")]}, "found 'user'"),
    "ends answered": ({"prompt": HI}, {"chosen": "b"}, "'prompt': expected a chat that ends befor"),
    "prompt a number": ({"prompt": 3}, {"chosen": "b"}, "'prompt': expected text or a list of ch"),
    "response a number": ({"prompt": "p"}, {"chosen": 3}, "'chosen': expected text or a list of"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    row, responses, message = BAD[case]
    with pytest.raises(DataError) as caught:
        split_prompt(row, responses, "f.jsonl:7")
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert message in str(caught.value)


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
RETURNED = {"role": "tool", "content": "4"}


def test_a_call_is_a_response():
    responses = {"chosen": [user("hi"), CALL], "rejected": [user("hi"), assistant("b")]}
    assert split_prompt({}, responses, "x") == ((user("hi"),), ((CALL,), "b"))
    responses["chosen"] = [user("hi"), CALL, RETURNED, assistant("a")]
    _, (chosen, _) = split_prompt({}, responses, "x")
    assert chosen == (CALL, RETURNED, assistant("a"))


@pytest.mark.parametrize("key", [{"reasoning_content": "hm"}, {"weight": 0}, {"train": False}])
def test_a_response_keeps_what_it_says_beside_its_content(key):
    _, (response,) = split_prompt({"prompt": "p"}, {"response": [assistant("a") | key]}, "x")
    assert response == (assistant("a") | key,)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


# A table has the fields of all tools in each, null where a tool lacks them.
FILLED = {**TOOL, "function": {**TOOL["function"], "strict": None}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], [FILLED]])
def test_tools_go_with_the_chat(tools):
    row = {"prompt": [user("hi")], "functions": tools}  # OpenAI's older name
    assert with_tools([user("hi")], row, "x").tools == (TOOL,)
    row = {"prompt": [user("hi")], "tools": tools}
    prompt = with_tools([user("hi")], row, "x")
    assert prompt == (user("hi"),)
    assert prompt.tools == (TOOL,)
    copied = pickle.loads(pickle.dumps(prompt))
    assert copied == prompt
    assert copied.tools == prompt.tools
    both = {"prompt": "hi", "system": "be kind", "tools": tools}
    assert parse_prompt(both, "x").prompt.tools == (TOOL,)
    assert parse_demonstration({**both, "response": "a"}, "x").prompt.tools == (TOOL,)


@pytest.mark.parametrize(
    ("prompt", "tools", "place"),
    [("hi", [TOOL], "prompt"), ([user("hi")], "{", "tools"), ([user("hi")], ["f"], "tools[0]")],
)
def test_tools_that_nobody_can_read(prompt, tools, place):
    with pytest.raises(DataError) as caught:
        with_tools(prompt, {"tools": tools}, "x")
    assert f"field '{place}'" in str(caught.value)


def test_a_chat_prompt_ends_before_the_answer():
    assert unanswered((user("hi"),), "x") == (user("hi"),)
    with pytest.raises(DataError, match="ends before the assistant's turn"):
        unanswered((user("hi"), assistant("a")), "x")
