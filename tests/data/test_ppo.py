import logging

import pytest

from lit_rlhf.data import PPODataModule
from lit_rlhf.errors import ConfigError, DataError
from tests.data.word_tokenizer import PAD, ids

ROWS = [
    {"prompt": "one", "answer": "yes"},
    {"prompt": "one two three four"},
    {"prompt": [{"role": "user", "content": "two"}], "answer": "no"},
]


def only_batch(data):
    data.setup("test")
    (batch,) = data.test_dataloader()
    return batch


def test_a_batch(word_folder, write_rows):
    batch = only_batch(PPODataModule(word_folder, test=write_rows("x.jsonl", ROWS)))
    assert batch.input_ids.tolist() == [
        [*ids("<s> one"), PAD, PAD, PAD],
        ids("<s> one two three four"),
        [*ids("<s> [INST] two [/INST]"), PAD],
    ]
    assert batch.lengths.tolist() == [2, 5, 4]
    assert batch.prompt_ids.tolist() == [0, 1, 2]
    assert list(batch.prompts) == ["one", "one two three four", tuple(ROWS[2]["prompt"])]
    assert list(batch.fields) == [{"answer": "yes"}, {}, {"answer": "no"}]


def test_a_dropped_prompt_does_not_move_the_ids_of_the_others(word_folder, write_rows, caplog):
    caplog.set_level(logging.WARNING)
    file = write_rows("x.jsonl", ROWS)
    batch = only_batch(PPODataModule(word_folder, test=file, max_prompt_length=4, overlong="drop"))
    assert batch.prompt_ids.tolist() == [0, 2]
    assert "1 of 3 prompts exceed 4 tokens: left out" in caplog.text


def test_a_long_prompt_is_an_error_that_says_what_to_do(word_folder, write_rows):
    file = write_rows("x.jsonl", ROWS)
    with pytest.raises(DataError) as caught:
        PPODataModule(word_folder, train=file, max_prompt_length=3).setup("fit")
    assert str(caught.value) == (
        f"{file}:2: the prompt has 5 tokens, more than max_prompt_length=3 (as have 2 of 3 "
        "prompts). Raise max_prompt_length, or set 'overlong' to 'drop'."
    )


def test_a_bad_prompt_names_its_place(word_folder, write_rows):
    file = write_rows("x.jsonl", [*ROWS, {"prompt": 3}])
    with pytest.raises(DataError, match=r":4: field 'prompt': expected text or a list of chat"):
        PPODataModule(word_folder, train=file).setup("fit")


def test_texts_beside_chats_are_told(word_folder, write_rows, caplog):
    caplog.set_level(logging.WARNING)
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "yes"}]
    rows = [{"prompt": "one", "chosen": chat, "rejected": chat}]
    for number, template in enumerate(("auto", "auto", "chat")):
        file = write_rows(f"{number}.jsonl", rows)
        only_batch(PPODataModule(word_folder, test=file, template=template))
    assert caplog.text.count("'chosen' beside them has chats") == 1


def test_a_stand_in_is_known_by_its_id(word_folder, write_rows):
    data = PPODataModule(word_folder, test=write_rows("x.jsonl", ROWS))
    data.setup("test")
    example = data.prepared("test")[1]
    batch = data.collate([data.stand_in(example)])
    assert batch.prompt_ids.tolist() == [-1]
    assert batch.input_ids.tolist() == [example.input_ids]
    assert data.prepared("test").lengths.tolist() == [2, 5, 4]


def test_a_length_of_zero_has_no_room(word_folder):
    with pytest.raises(ConfigError, match="max_prompt_length is 0; it must be at least 1"):
        PPODataModule(word_folder, max_prompt_length=0)
