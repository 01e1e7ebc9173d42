import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.data.chat_template import (
    RenderedText,
    TextPiece,
    render_demonstration,
    render_prompt,
    render_response,
)
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import Demonstration
from tests.data.word_tokenizer import NO_EOS_TEMPLATE, SHIFTING_TEMPLATE, word_tokenizer
from tests.support.tokenizer import END, tiny_tokenizer


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def texts(rendered):
    return [piece.text for piece in rendered.pieces]


HI = (user("hi"),)
CHATML_HI = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_texts_are_plain(tokenizer, template):
    assert render_response(tokenizer, "a ", " b\n", template, "x") == RenderedText(
        (TextPiece("a ", is_response=False), TextPiece(" b\n", is_response=True)), is_chat=False
    )


@pytest.mark.parametrize(("prompt", "template"), [("hi", "chat"), (HI, "chat"), (HI, "auto")])
def test_a_prompt_through_the_template(prompt, template):
    assert render_prompt(tiny_tokenizer(), prompt, template, "x") == RenderedText(
        (TextPiece(CHATML_HI, is_response=False),), is_chat=True
    )


def test_the_response_ends_with_eos_and_without_the_white_space_behind_it():
    rendered = render_response(tiny_tokenizer(), HI, "ho", "auto", "x")
    assert rendered.pieces == (
        TextPiece(CHATML_HI, is_response=False),
        TextPiece("ho<|im_end|>", is_response=True),
    )


def test_a_template_that_does_not_open_the_turn():
    rendered = render_response(word_tokenizer(), (user("one"),), "yes", "auto", "x")
    assert texts(rendered) == ["<s>[INST] one [/INST]", " yes</s>"]


def test_a_template_without_eos_keeps_what_it_writes():
    tokenizer = word_tokenizer(chat_template=NO_EOS_TEMPLATE)
    rendered = render_response(tokenizer, (user("one"),), "yes", "auto", "x")
    assert texts(rendered) == ["user: one END\nassistant: ", "yes END"]


@pytest.mark.parametrize("chat_template", [None, NO_EOS_TEMPLATE])
def test_of_a_whole_chat_every_turn_of_the_assistant_counts(chat_template):
    tokenizer = word_tokenizer(chat_template=chat_template) if chat_template else tiny_tokenizer()
    messages = (user("a"), assistant("b"), user("c"), assistant("d"), user("never answered"))
    rendered = render_demonstration(tokenizer, Demonstration(messages=messages), "auto", "x")
    end = " END" if chat_template else END
    assert [piece.text for piece in rendered.pieces if piece.is_response] == ["b" + end, "d" + end]
    whole = tokenizer.apply_chat_template([*messages[:4]], tokenize=False)
    assert "".join(texts(rendered)) == whole.rstrip()


def test_a_demonstration_of_prompt_and_response():
    tokenizer = tiny_tokenizer()
    rendered = render_demonstration(tokenizer, Demonstration("a", "b"), "chat", "x")
    assert rendered == render_response(tokenizer, "a", "b", "chat", "x")


def test_a_response_that_holds_the_text_of_eos():
    rendered = render_response(tiny_tokenizer(), HI, f"a{END}b", "auto", "x")
    assert texts(rendered)[1] == f"a{END}b{END}"


WORDS = st.text("ab \n", max_size=6)


@given(WORDS, WORDS)
def test_prompt_and_response_are_the_whole_rendering(prompt, response):
    tokenizer = tiny_tokenizer()
    rendered = render_response(tokenizer, (user(prompt),), response, "auto", "x")
    chat = [user(prompt), assistant(response)]
    assert "".join(texts(rendered)) + "\n" == tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered.pieces[:1] == render_prompt(tokenizer, (user(prompt),), "auto", "x").pieces


def refused(tokenizer, prompt, template="auto"):
    with pytest.raises(DataError) as caught:
        render_response(tokenizer, prompt, "b", template, "f.jsonl:4")
    assert str(caught.value).startswith("f.jsonl:4: ")
    return str(caught.value)


def test_chats_need_a_chat_template():
    tokenizer = word_tokenizer(chat_template=None)
    assert "has none" in refused(tokenizer, HI)
    assert "has none" in refused(tokenizer, "a text", "chat")


def test_plain_refuses_chats():
    assert "template is 'plain'" in refused(tiny_tokenizer(), HI, "plain")


def test_what_the_template_says_is_passed_on():
    assert "no role tool" in refused(word_tokenizer(), ({"role": "tool", "content": "3"},))


def test_a_template_that_renders_earlier_turns_anew_is_refused():
    message = refused(word_tokenizer(chat_template=SHIFTING_TEMPLATE), HI)
    assert "renders earlier turns differently" in message
