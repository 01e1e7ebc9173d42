import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.data import tokenization
from lit_rlhf.data.chat_template import Renderer
from lit_rlhf.data.tokenization import (
    Row,
    fit_length,
    leading_tokens,
    start_token,
    tokenize_prompts,
    tokenize_rows,
)
from lit_rlhf.errors import ConfigError, DataError
from tests.data.word_tokenizer import BOS, EOS, PAD, ids, word_tokenizer
from tests.support.tokenizer import tiny_tokenizer

TOKENIZERS = {"pad is not EOS": word_tokenizer(), "pad is EOS": tiny_tokenizer()}
WORDS = st.lists(st.sampled_from(["one", "two", "yes", "no", "strange"]), max_size=5).map(" ".join)


def row_of(tokenizer, prompt, response, template="auto", **options):
    texts = Renderer(tokenizer, template).for_policy(prompt, response, "x")
    (row,) = tokenize_rows(tokenizer, texts, **options)
    return row


def prompt_of(tokenizer, prompt, template="auto"):
    (tokens,) = tokenize_prompts(Renderer(tokenizer, template), [prompt], ["x"])
    return tokens


def parted(row):
    """Return the tokens before the response, and the response's."""
    start = row.response_mask.index(True)
    pairs = zip(row.input_ids, row.response_mask, strict=True)
    return row.input_ids[:start], [token for token, counts in pairs if counts]


@given(WORDS, WORDS, st.sampled_from(list(TOKENIZERS)), st.sampled_from(["plain", "chat"]))
def test_a_row_is_the_prompt_then_the_response_with_one_eos(prompt, response, kind, template):
    tokenizer = TOKENIZERS[kind]
    row = row_of(tokenizer, prompt, response, template)
    before, counted = parted(row)
    end = len(before) + len(counted)
    assert all(row.response_mask[len(before) : end])  # the response is one stretch
    assert before
    assert counted.count(tokenizer.eos_token_id) == 1
    assert counted[-1] == tokenizer.eos_token_id
    assert prompt_of(tokenizer, prompt, template) == before
    written = tokenizer.decode(counted[:-1], clean_up_tokenization_spaces=False)
    if kind == "pad is EOS":  # its tokens are characters: what was put in comes out
        assert written == response


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_text_that_begins_with_bos_by_hand_has_it_once(kind):
    tokenizer = TOKENIZERS[kind]
    row = row_of(tokenizer, "", f"{tokenizer.bos_token}no")
    assert row == row_of(tokenizer, "", "no")
    assert row.input_ids.count(tokenizer.bos_token_id) == 1


@given(st.lists(st.tuples(WORDS, WORDS), max_size=4), st.sampled_from(list(TOKENIZERS)))
def test_a_batch_of_texts_is_each_text_alone(pairs, kind):
    tokenizer = TOKENIZERS[kind]
    texts = [text for pair in pairs for text in Renderer(tokenizer).for_policy(*pair, "x")]
    alone = [row for text in texts for row in tokenize_rows(tokenizer, [text])]
    assert tokenize_rows(tokenizer, texts) == alone


def test_many_texts_go_in_several_batches(monkeypatch):
    monkeypatch.setattr(tokenization, "TEXTS_AT_ONCE", 2)
    tokenizer = word_tokenizer()
    words = ["one", "two", "one", "yes"]
    expected = [ids(f"<s> {word}") for word in words]
    assert tokenize_prompts(Renderer(tokenizer), words, words) == expected


def test_plain_text_gets_bos_where_the_tokenizer_adds_one():
    row = row_of(word_tokenizer(), "one two", "yes")
    assert row == Row(ids("<s> one two yes </s>"), [False, False, False, True, True])


def test_a_text_that_brings_its_bos_gets_no_second_one():
    assert row_of(word_tokenizer(), "<s> one", "yes").input_ids == ids("<s> one yes </s>")


def test_a_chat_template_writes_its_own_bos():
    row = row_of(word_tokenizer(), "one", "yes", "chat")
    assert row.input_ids == ids("<s> [INST] one [/INST] yes </s>")
    assert parted(row)[1] == ids("yes </s>")


def test_a_tokenizer_that_ends_texts_with_eos_puts_none_behind_the_prompt():
    tokenizer = word_tokenizer(single="<s> $A </s>")
    assert leading_tokens(tokenizer) == [BOS]
    assert row_of(tokenizer, "one", "yes").input_ids == ids("<s> one yes </s>")


def test_no_leading_token_where_none_is_added():
    assert leading_tokens(word_tokenizer(single="$A")) == []
    assert leading_tokens(tiny_tokenizer()) == []


def test_eos_is_not_added_to_a_text_that_ends_with_it():
    assert row_of(word_tokenizer(), "one", "yes </s>") == row_of(word_tokenizer(), "one", "yes")


def test_the_eos_of_a_prompt_is_not_the_eos_of_an_empty_response():
    row = row_of(word_tokenizer(), "one </s>", "")
    assert row == Row(ids("<s> one </s> </s>"), [False, False, False, True])


def test_eos_can_be_left_out():
    assert row_of(word_tokenizer(), "one", "yes", append_eos=False).input_ids == ids("<s> one yes")


@pytest.mark.parametrize(
    ("tokenizer", "start"),
    [
        (word_tokenizer(single="$A"), BOS),
        (word_tokenizer(single="$A", bos_token=None), EOS),
    ],
)
def test_something_stands_before_the_first_counted_token(tokenizer, start):
    assert row_of(tokenizer, "", "yes") == Row([start, *ids("yes </s>")], [False, True, True])
    assert prompt_of(tokenizer, "") == [start]


def test_every_turn_of_a_chat_counts_with_its_eos(tokenizer):
    messages = tuple(
        {"role": role, "content": content}
        for role, content in [("user", "one"), ("assistant", "yes"), ("user", "two")] * 2
    )
    row = row_of(tokenizer, messages[:1], messages[1:])
    counted = parted(row)[1]
    assert counted.count(tokenizer.eos_token_id) == 2
    assert counted[-1] == tokenizer.eos_token_id
    assert not row.response_mask[0]


def test_missing_special_tokens_are_named():
    bare = word_tokenizer(single="$A", bos_token=None, eos_token=None)
    with pytest.raises(ConfigError, match="no EOS token"):
        row_of(bare, "one", "yes")
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        start_token(bare)


def make_row(num_prompt, num_response):
    mask = [False] * num_prompt + [True] * num_response
    return Row(list(range(4, 4 + len(mask))), mask)


def test_rows_that_fit_are_left_alone():
    rows = [make_row(1, 2), make_row(2, 1)]
    assert fit_length(rows, ["a", "b"], max_length=3, overlong="error") == rows


def test_a_long_row_is_an_error_that_says_what_to_do():
    rows = [make_row(1, 1), make_row(2, 3), make_row(9, 9)]
    with pytest.raises(DataError) as caught:
        fit_length(rows, ["f:1", "f:2", "f:3"], max_length=3, overlong="error")
    message = str(caught.value)
    assert message.startswith("f:2: has 5 tokens, more than max_length=3 (as have 2 of 3 rows).")
    assert "Raise max_length, or set 'overlong' to" in message


def test_truncation_cuts_the_end():
    (row,) = fit_length([make_row(2, 3)], ["f:1"], max_length=3, overlong="truncate")
    assert row == Row([4, 5, 6], [False, False, True])


def test_truncation_leaves_no_row_without_a_response():
    with pytest.raises(DataError, match="f:1: the prompt alone fills max_length=3"):
        fit_length([make_row(3, 1)], ["f:1"], max_length=3, overlong="truncate")


def test_dropping_leaves_a_gap_and_says_so(caplog):
    caplog.set_level(logging.WARNING)
    rows = [make_row(2, 3), make_row(1, 1)]
    assert fit_length(rows, ["a", "b"], max_length=3, overlong="drop") == [None, rows[1]]
    assert "1 of 2 rows exceed 3 tokens: left out" in caplog.text


def test_padding_apart_from_eos_in_these_tests():
    assert PAD != EOS
    assert tiny_tokenizer().pad_token_id == tiny_tokenizer().eos_token_id


class SlowTokenizer:
    """A tokenizer that says nothing of characters, as slow ones."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def __call__(self, text, **settings):
        return {"input_ids": self._fast(text, **settings)["input_ids"]}


def test_a_slow_tokenizer_gives_the_same_rows_or_is_refused():
    turns = ({"role": "assistant", "content": "ab"}, {"role": "user", "content": "c"}) * 2
    prompt = ({"role": "user", "content": "hi"},)
    slow, fast = SlowTokenizer(tiny_tokenizer()), tiny_tokenizer()
    assert row_of(slow, prompt, turns) == row_of(fast, prompt, turns)
    words = word_tokenizer(
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"
    )  # no space: prompt and response are one word
    for prompt in ("one", "strange"):
        with pytest.raises(DataError, match="joins a prompt with its response"):
            row_of(SlowTokenizer(words), prompt, "yes", "chat")
