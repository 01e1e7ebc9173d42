import math

import pytest

from lit_rlhf.data import DPODataModule, RewardDataModule
from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.data.subset import Subset
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.aggregation import OneCoinDawidSkene
from tests.data.word_tokenizer import ids, word_tokenizer
from tests.support.tokenizer import save_tiny_tokenizer, tiny_tokenizer

COMPARISON = {"prompt": "one", "chosen": "yes", "rejected": "no no", "probability": 0.25}
GROUP = {
    "prompt": "two",
    "responses": ["yes", "four", "no", "three"],
    "ratings": [[1, None, 2, 3], [2, 1, 2, None]],  # response 1 was compared with 0 and 2 alone
}


@pytest.fixture(params=[RewardDataModule, DPODataModule])
def module_class(request):
    return request.param


def only_batch(data):
    data.setup("test")
    (batch,) = data.test_dataloader()
    return batch


def test_a_comparison_and_a_group_in_one_batch(module_class, word_folder, write_rows):
    batch = only_batch(module_class(word_folder, test=write_rows("x.jsonl", [COMPARISON, GROUP])))
    texts = ["one yes", "one no no", "two yes", "two four", "two no", "two three"]
    lengths = batch.rows.lengths.tolist()
    tokens = [row[:n].tolist() for row, n in zip(batch.rows.input_ids, lengths, strict=True)]
    assert tokens == [ids(f"<s> {text} </s>") for text in texts]
    assert batch.rows.response_mask.sum(1).tolist() == [2, 3, 2, 2, 2, 2]
    assert batch.group.tolist() == [0, 0, 1, 1, 1, 1]
    pairs = list(zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True))
    shares = dict(zip(pairs, batch.probability.tolist(), strict=True))
    assert shares == {
        (1, 0): 0.75,
        (2, 3): 1.0,
        (4, 2): 0.75,
        (5, 2): 1.0,
        (4, 3): 1.0,
        (5, 4): 1.0,
    }
    assert batch.weight.tolist() == [1.0] * 6
    ratings = ["nan" if math.isnan(rating) else rating for rating in batch.ratings.tolist()]
    assert ratings == ["nan", "nan", 1.5, 1.0, 2.0, 3.0]  # means of those who rated


def test_a_reward_model_and_a_policy_read_the_same_chat(tmp_path, write_rows):
    save_tiny_tokenizer(tmp_path)
    row = {"prompt": [{"role": "user", "content": "q"}], "chosen": "aa", "rejected": "b"}
    file = write_rows("x.jsonl", [row])
    for module_class in (RewardDataModule, DPODataModule):
        data = module_class(str(tmp_path), test=file)
        rows = only_batch(data).rows
        tokens = rows.input_ids[0, : rows.lengths[0]]
        chat = [*row["prompt"], {"role": "assistant", "content": "aa"}]
        assert tokens.tolist() == data.tokenizer.apply_chat_template(chat)["input_ids"]
        response = data.tokenizer.decode(rows.input_ids[0][rows.response_mask[0]])
        assert response == "aa<|im_end|>"


def test_responses_that_nobody_judged_are_not_computed(module_class, word_folder, write_rows):
    group = {"prompt": "one", "responses": ["one", "yes", "no"], "rankings": [[None, 2, 1]]}
    batch = only_batch(module_class(word_folder, test=write_rows("x.jsonl", [group])))
    assert batch.rows.input_ids.tolist() == [ids("<s> one yes </s>"), ids("<s> one no </s>")]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([1], [0])


def test_batch_size_counts_groups(module_class, word_folder, write_rows):
    file = write_rows("x.jsonl", [COMPARISON, GROUP, COMPARISON])
    data = module_class(word_folder, train=file, batch_size=2)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(set(batch.group.tolist())) == 2


def test_an_overlong_response_drops_its_group(module_class, word_folder, write_rows):
    long = {**GROUP, "responses": ["yes", "four", "no", "three three three"]}
    file = write_rows("x.jsonl", [COMPARISON, long])
    batch = only_batch(module_class(word_folder, test=file, max_length=5, overlong="drop"))
    assert batch.group.tolist() == [0, 0]
    assert batch.chosen.tolist() == [1]


def test_an_overlong_response_can_be_cut(module_class, word_folder, write_rows):
    file = write_rows("x.jsonl", [COMPARISON])
    batch = only_batch(module_class(word_folder, test=file, max_length=4, overlong="truncate"))
    assert batch.rows.input_ids.tolist() == [ids("<s> one yes </s>"), ids("<s> one no no")]


def test_nothing_counts_in_a_stand_in(module_class, word_folder, write_rows):
    data = module_class(word_folder, test=write_rows("x.jsonl", [GROUP]))
    data.setup("test")
    (example,) = data.prepared("test")
    batch = data.collate([data.stand_in(example)])
    assert len(batch.chosen) == len(batch.weight) == 0
    assert batch.rows.num_response_tokens == 0


def test_the_length_of_a_group_is_its_longest_row(module_class, word_folder, write_rows):
    data = module_class(word_folder, test=write_rows("x.jsonl", [COMPARISON]))
    data.setup("test")
    assert data.prepared("test").lengths.tolist() == [5]
    assert data.longest("test") == 5


BAD = {
    "no pair": (
        {"prompt": "p", "responses": ["a", "b"], "ratings": [[1, None], [None, 1]]},
        "no labeler judged two responses of this group",
    ),
    "neither": ({"prompt": "p", "response": "a"}, "expected 'prompt' with 'chosen' and 'rejected'"),
    "probability": (
        {**COMPARISON, "probability": 2},
        "field 'probability': expected a number from",
    ),
    "too long": ({**COMPARISON, "chosen": "yes " * 40}, "has 43 tokens, more than max_length=16"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_ends_the_setup_with_its_place(word_folder, write_rows, case):
    row, message = BAD[case]
    file = write_rows("x.jsonl", [GROUP, row])
    with pytest.raises(DataError) as caught:
        RewardDataModule(word_folder, train=file, max_length=16).setup("fit")
    assert str(caught.value).startswith(f"{file}:2: {message}")


def test_a_length_of_one_has_no_room(module_class, word_folder):
    with pytest.raises(ConfigError, match="max_length is 1; it must be at least 2"):
        module_class(word_folder, max_length=1)


def test_responses_of_equal_tokens_are_no_pair(tmp_path, write_rows):
    tokenizer = word_tokenizer()  # it has one token for all words that it does not know
    tokenizer.save_pretrained(tmp_path / "words")
    folder = str(tmp_path / "words")
    row = {"prompt": "one", "chosen": "good", "rejected": "bad"}
    with pytest.raises(DataError, match=r"x\.jsonl:1: the responses that were compared differ"):
        RewardDataModule(folder, test=write_rows("x.jsonl", [row])).setup("test")
    group = {"prompt": "one", "responses": ["good", "bad", "yes"], "rankings": [[1, 2, 3]]}
    batch = only_batch(RewardDataModule(folder, test=write_rows("x.jsonl", [group])))
    assert list(zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True)) == [
        (0, 2),
        (1, 2),
    ]


def test_training_shrinks_the_shares_and_held_out_data_keep_them(
    module_class, word_folder, write_rows
):
    rows = write_rows("x.jsonl", [GROUP])
    data = module_class(word_folder, train=rows, validation=rows, batch_size=1)
    data.setup("fit")
    (train,), (held_out,) = data.train_dataloader(), data.val_dataloader()
    assert sorted(held_out.probability.tolist()) == [0.75, 1.0, 1.0, 1.0, 1.0]
    # One labeler of one, (1 + 0.5) / 2; 1.5 of 2, (1.5 + 0.5) / 3.
    expected = [2 / 3, 0.75, 0.75, 0.75, 0.75]
    assert sorted(train.probability.tolist()) == pytest.approx(expected)


def test_labeler_models_learn_from_all_rows_of_the_subset(module_class, word_folder, write_rows):
    judged = [((1, 2), (1, 2), (2, 1)), ((2, 1), (2, 1), (1, 2)), ((1, 2), (1, 2), (1, 2))] * 10
    rows = [
        {"prompt": "two", "responses": ["yes", "no"], "rankings": r, "labelers": ["a", "b", "c"]}
        for r in judged
    ]
    data = module_class(
        word_folder,
        train=write_rows("x.jsonl", rows),
        aggregation=OneCoinDawidSkene(),
        batch_size=30,
    )
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.probability.min() > 0.9  # two who agree outweigh one who does not


def test_a_subset_of_labelers_keeps_their_names():
    row = {"ratings": [[0], [1], [2], [3]], "labelers": ["0", "1", "2", "3"]}
    record = Subset(raters=0.5)(SourcedRecord(row, "x:1")).record
    assert record["labelers"] == [str(rating) for (rating,) in record["ratings"]]
    assert len(record["labelers"]) == 2


# It drops the thinking of all turns but the last.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endif %}<|im_end|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)


def test_a_response_whose_turns_make_no_single_row_is_refused(write_rows):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = FORGETFUL
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    said = "<think>hm</think>look"
    chosen = [
        {"role": "assistant", "content": said, "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "four"},
    ]
    rejected = [{"role": "assistant", "content": "no"}]
    prompt = [{"role": "user", "content": "hi"}]
    file = write_rows("x.jsonl", [{"prompt": prompt, "chosen": chosen, "rejected": rejected}])
    with pytest.raises(DataError, match=r"x\.jsonl:1: .*no single row.*set data\.thinking to drop"):
        DPODataModule(tokenizer, test=file).setup("test")
    batch = only_batch(DPODataModule(tokenizer, test=file, thinking="drop"))
    ids, counts = batch.rows.input_ids[0], batch.rows.response_mask[0]
    learned = tokenizer.decode(ids[counts])
    assert learned == "lookadd<|im_end|>four<|im_end|>"
