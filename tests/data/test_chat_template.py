import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.data.chat_template import Piece, RenderedText, Renderer, warn_once
from lit_rlhf.errors import DataError
from lit_rlhf.prompts import ChatWithTools
from tests.data.word_tokenizer import NO_EOS_TEMPLATE, SHIFTING_TEMPLATE, word_tokenizer
from tests.support.tokenizer import END, tiny_tokenizer


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **further):
    return {"role": "assistant", "content": content, **further}


def learned(text):
    """Return the learned stretches of a rendered text."""
    return [
        piece.text[start:end]
        for piece in text.pieces
        for start, end in piece.learned
        if end > start
    ]


def whole_of(text):
    return "".join(piece.text for piece in text.pieces)


def render(tokenizer, prompt, response, **settings):
    (text,) = Renderer(tokenizer, **settings).for_policy(prompt, response, "f.jsonl:4")
    return text


HI = (user("hi"),)
CHATML_HI = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def warnings_again():
    warn_once.cache_clear()


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_texts_are_plain(tokenizer, template):
    pieces = (Piece("a "), Piece(" b\n", ((0, 3),)))
    assert render(tokenizer, "a ", " b\n", template=template) == RenderedText(pieces, is_chat=False)
    assert Renderer(tokenizer, template).for_reward("a ", " b\n", "x").pieces == pieces


@pytest.mark.parametrize(("prompt", "template"), [("hi", "chat"), (HI, "chat"), (HI, "auto")])
def test_a_prompt_through_the_template(prompt, template):
    text = Renderer(tiny_tokenizer(), template).prompt(prompt, "x")
    assert text == RenderedText((Piece(CHATML_HI),), is_chat=True, takes_eos=False)


def test_the_response_ends_with_eos_and_without_the_white_space_behind_it():
    text = render(tiny_tokenizer(), HI, "ho")
    assert whole_of(text) == CHATML_HI + "ho<|im_end|>\n"
    assert learned(text) == ["ho<|im_end|>"]


def test_a_template_that_does_not_open_the_turn():
    text = render(word_tokenizer(), (user("one"),), "yes")
    assert whole_of(text) == "<s>[INST] one [/INST] yes</s>"
    assert learned(text) == [" yes</s>"]


def test_a_template_without_eos_keeps_what_it_writes():
    text = render(word_tokenizer(chat_template=NO_EOS_TEMPLATE), (user("one"),), "yes")
    assert learned(text) == ["yes END"]
    assert text.takes_eos


@pytest.mark.parametrize("chat_template", [None, NO_EOS_TEMPLATE])
def test_of_a_whole_chat_every_turn_of_the_assistant_counts(chat_template):
    tokenizer = word_tokenizer(chat_template=chat_template) if chat_template else tiny_tokenizer()
    messages = [user("a"), assistant("b"), user("c"), assistant("d"), user("never answered")]
    text = render(tokenizer, messages[:1], tuple(messages[1:]))
    end = " END" if chat_template else END
    assert learned(text) == ["b" + end, "d" + end]
    assert whole_of(text) == tokenizer.apply_chat_template(messages[:4], tokenize=False)


@pytest.mark.parametrize("key", [{"train": False}, {"weight": 0}])
def test_turns_that_are_not_to_be_learned(key):
    turns = (assistant("b", **key), user("c"), assistant("d"), user("e"), assistant("f", **key))
    text = render(tiny_tokenizer(), (user("a"),), turns)
    assert learned(text) == ["d" + END]
    assert whole_of(text).endswith("d<|im_end|>\n")
    with pytest.raises(DataError, match="nothing is learned from this row"):
        render(tiny_tokenizer(), HI, (assistant("b", **key),))


def test_the_last_turn_alone():
    turns = (assistant("b"), user("c"), assistant("d"))
    (text,) = Renderer(tiny_tokenizer()).for_policy(HI, turns, "x", last_only=True)
    assert learned(text) == ["d" + END]


@pytest.mark.parametrize("key", [{"train": False}, {"weight": 0}])
def test_where_the_last_turn_is_not_to_be_learned_no_earlier_one_takes_its_place(key):
    turns = (assistant("b"), user("c"), assistant("d", **key))
    with pytest.raises(DataError, match=r"x: nothing is learned .* the last turn"):
        Renderer(tiny_tokenizer()).for_policy(HI, turns, "x", last_only=True)
    earlier = (assistant("b", **key), user("c"), assistant("d"), user("e"))
    (text,) = Renderer(tiny_tokenizer()).for_policy(HI, earlier, "x", last_only=True)
    assert learned(text) == ["d" + END]


@pytest.mark.parametrize("template", [None, NO_EOS_TEMPLATE])
@pytest.mark.parametrize("is_in_parts", [False, True])
@pytest.mark.parametrize("ending", [END, f"{END}\n", END + END])
def test_a_response_that_ends_with_the_end_of_a_turn_has_it_once(ending, is_in_parts, template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    said = f"b{ending}"
    content = [{"type": "text", "text": said}] if is_in_parts else said
    closed, plain = ((assistant(text), user("c"), assistant(text)) for text in (content, "b"))
    assert render(tokenizer, HI, closed) == render(tokenizer, HI, plain)
    renderer = Renderer(tokenizer)
    assert renderer.for_reward(HI, closed, "x") == renderer.for_reward(HI, plain, "x")
    prompts = [renderer.prompt((*HI, *turns, user("d")), "x") for turns in (closed, plain)]
    assert prompts[0] == prompts[1]


def test_a_response_that_holds_the_text_of_eos():
    assert learned(render(tiny_tokenizer(), HI, f"a{END}b")) == [f"a{END}b{END}"]


WORDS = st.text("ab \n", max_size=6)


@given(WORDS, WORDS)
def test_prompt_and_response_are_the_whole_rendering(prompt, response):
    tokenizer = tiny_tokenizer()
    text = render(tokenizer, (user(prompt),), response)
    chat = [user(prompt), assistant(response)]
    assert whole_of(text) == tokenizer.apply_chat_template(chat, tokenize=False)
    opened = Renderer(tokenizer).prompt((user(prompt),), "x").pieces[0].text
    assert whole_of(text) == opened + learned(text)[0] + "\n"


def refused(tokenizer, prompt, response="b", template="auto"):
    with pytest.raises(DataError) as caught:
        render(tokenizer, prompt, response, template=template)
    assert str(caught.value).startswith("f.jsonl:4: ")
    return str(caught.value)


def test_chats_need_a_chat_template():
    tokenizer = word_tokenizer(chat_template=None)
    assert "has none" in refused(tokenizer, HI)
    assert "has none" in refused(tokenizer, "a text", template="chat")


def test_plain_refuses_chats():
    assert "template is 'plain'" in refused(tiny_tokenizer(), HI, template="plain")
    assert "template is 'plain'" in refused(tiny_tokenizer(), "hi", (assistant("b"),), "plain")


def test_what_the_template_says_is_passed_on():
    assert "no role tool" in refused(word_tokenizer(), ({"role": "tool", "content": "3"},))


def test_a_template_that_renders_a_prompt_differently_once_it_is_answered_is_refused():
    message = refused(word_tokenizer(chat_template=SHIFTING_TEMPLATE), HI)
    assert "renders earlier turns differently" in message


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def test_what_a_template_has_no_place_for_is_refused():
    assert "leaves out the tool 'weather'" in refused(tiny_tokenizer(), ChatWithTools(HI, [TOOL]))
    for tools, name in (([TOOL], "weather"), ("weather()", r"weather\(\)")):
        inside = ({"role": "system", "content": "be kind", "tools": tools}, *HI)
        assert re.search(f"leaves out the tool '{name}'", refused(tiny_tokenizer(), inside))
    call = (assistant("", tool_calls=[CALL]),)
    assert "leaves out a part of the assistant's turn: 'weather'" in refused(
        tiny_tokenizer(), HI, call
    )
    thought = (assistant("b", reasoning_content="deep"),)
    assert "'deep'" in refused(tiny_tokenizer(), HI, thought)


def test_turns_of_others_that_ask_to_be_learned_are_named_once(caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        render(tiny_tokenizer(), ({**HI[0], "train": True},), (assistant("yes", weight=1),))
    assert caplog.text.count("turns of the user are not learned") == 1
    assert "turns of the assistant" not in caplog.text


def test_what_is_left_out_is_refused_where_the_chat_has_its_words():
    asked = ({"role": "user", "content": "ask about the weather"},)
    told = ({"role": "system", "content": "be kind", "tools": [TOOL]}, *asked)
    for prompt in (ChatWithTools(asked, [TOOL]), told):
        assert "leaves out the tool 'weather'" in refused(tiny_tokenizer(), prompt)
    call = (assistant("let me see the weather", tool_calls=[CALL]),)
    assert "turn: 'weather'" in refused(tiny_tokenizer(), HI, call)
    thought = (assistant("deep water", reasoning_content="deep"),)
    assert "turn: 'deep'" in refused(tiny_tokenizer(), HI, thought)


def test_a_template_that_leaves_out_a_prompts_messages_is_named_once(caplog):
    caplog.set_level(logging.WARNING)
    tokenizer = word_tokenizer(
        chat_template="{% for m in messages if m.role != 'system' %}{{ m.content }} {% endfor %}"
    )
    for _ in range(2):
        render(tokenizer, ({"role": "system", "content": "be kind"}, *HI), "yes")
    assert caplog.text.count("leaves out messages of the system") == 1
    tokenizer = word_tokenizer(
        chat_template="{% for m in messages if m.role in ('user', 'assistant') %}"
        "{{ m.content }} {% endfor %}"
    )
    for role in ("tool", "developer"):
        render(tokenizer, (*HI, assistant("look"), {"role": role, "content": "30"}), "yes")
        assert caplog.text.count(f"leaves out messages of the {role}") == 1
    called = (*HI, assistant("look", tool_calls=[CALL]), {"role": "tool", "content": "30"})
    render(tiny_tokenizer(), called, "yes")
    assert caplog.text.count("leaves out messages of the assistant") == 1
