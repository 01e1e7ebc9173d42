import pytest

from lit_rlhf.data import SFTDataModule
from lit_rlhf.errors import ConfigError, DataError
from tests.data.template_table import tokenizer_of
from tests.data.word_tokenizer import PAD, ids

ROWS = [
    {"prompt": "one", "response": "yes"},
    {"prompt": "one two", "completion": "no no"},
    {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "yes"}]},
]


def test_batches(word_folder, write_rows):
    data = SFTDataModule(word_folder, test=write_rows("x.jsonl", ROWS), eval_batch_size=2)
    data.setup("test")
    first, second = data.test_dataloader()
    assert first.input_ids.tolist() == [
        [*ids("<s> one yes </s>"), PAD, PAD],
        ids("<s> one two no no </s>"),
    ]
    assert first.response_mask.sum(1).tolist() == [2, 3]
    assert second.input_ids.tolist() == [ids("<s> [INST] one [/INST] yes </s>")]
    assert second.response_mask.tolist() == [[False] * 4 + [True] * 2]


def test_settings_reach_the_rows(word_folder, write_rows):
    file = write_rows("x.jsonl", [{"q": "one", "a": "yes no"}, {"q": "one two", "a": "yes no"}])
    data = SFTDataModule(
        word_folder,
        test=file,
        columns={"prompt": "q", "response": "a"},
        template="chat",
        append_eos=False,
        max_length=7,
        overlong="drop",
    )
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.input_ids.tolist() == [ids("<s> [INST] one [/INST] yes no </s>")]


def test_nothing_counts_in_a_stand_in(word_folder, write_rows):
    data = SFTDataModule(word_folder, test=write_rows("x.jsonl", ROWS))
    data.setup("test")
    example = data.prepared("test")[0]
    stand_in = data.stand_in(example)
    assert stand_in.rows[0].input_ids == example.rows[0].input_ids
    assert not any(stand_in.rows[0].response_mask)


@pytest.mark.parametrize(("learn", "answers"), [("all", ["No.", "Yes."]), ("last", ["Yes."])])
def test_a_chat_is_a_row_a_turn_where_the_template_drops_earlier_thinking(
    tmp_path, write_rows, learn, answers
):
    tokenizer = tokenizer_of("qwen3")
    tokenizer.save_pretrained(tmp_path / "qwen3")
    thoughts = [f"<think>\nHm.\n</think>\n\n{answer}" for answer in ("No.", "Yes.")]
    chat = [
        {"role": role, "content": content}
        for thought in thoughts
        for role, content in (("user", "Hi"), ("assistant", thought))
    ]
    file = write_rows("x.jsonl", [{"messages": chat}])
    data = SFTDataModule(str(tmp_path / "qwen3"), test=file, learn=learn)
    data.setup("test")
    (batch,) = data.test_dataloader()
    learned = [
        tokenizer.decode(ids[mask])
        for ids, mask in zip(batch.input_ids, batch.response_mask, strict=True)
    ]
    assert learned == [f"<think>\nHm.\n</think>\n\n{answer}<|im_end|>" for answer in answers]
    last = batch.input_ids[-1, : batch.lengths[-1]]
    assert last.tolist() == tokenizer.apply_chat_template(chat)["input_ids"]


BAD = {
    "no response": ({"prompt": "one"}, "expected 'prompt' and 'response'"),
    "response a number": ({"prompt": "one", "response": 3}, "field 'response': expected text"),
    "role missing": ({"messages": [{"content": "x"}]}, "field 'messages[0].role': expected text"),
    "role unknown": (
        {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]},
        "the chat template refuses this chat: no role tool",
    ),
    "too long": ({"prompt": "one " * 30, "response": "yes"}, "has 33 tokens, more than max_length"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_ends_the_setup_with_its_place(word_folder, write_rows, case):
    row, message = BAD[case]
    file = write_rows("x.jsonl", [*ROWS, row])
    data = SFTDataModule(word_folder, train=file, max_length=16)
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    assert str(caught.value).startswith(f"{file}:4: {message}")


def test_a_length_of_one_has_no_room(word_folder):
    with pytest.raises(ConfigError, match="max_length is 1; it must be at least 2"):
        SFTDataModule(word_folder, max_length=1)
