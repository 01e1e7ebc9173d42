import pytest

from lit_rlhf.data import DPODataModule, RewardDataModule
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.aggregation import Majority
from tests.data.word_tokenizer import ids

ROWS = [
    {"prompt": "one", "response": "yes", "label": True},
    {"prompt": "one", "completion": "no", "label": 0, "weight": 2.0},
    {"prompt": "two", "response": "four four", "label": True},
    {"prompt": "three one", "response": "two", "label": False},
]


def prepared(folder, file, **settings):
    data = DPODataModule(folder, test=file, batch_size=4, **settings)
    data.setup("test")
    return data


def test_a_labelled_response_is_paired_with_one_to_another_prompt(word_folder, write_rows, caplog):
    data = prepared(word_folder, write_rows("x.jsonl", ROWS))
    (batch,) = data.test_dataloader()
    lengths = batch.rows.lengths.tolist()
    tokens = [row[:n].tolist() for row, n in zip(batch.rows.input_ids, lengths, strict=True)]
    texts = ["one yes", "one four four", "one no", "one two", "two four four", "two yes"]
    texts += ["three one two", "three one no"]
    assert tokens == [ids(f"<s> {text} </s>") for text in texts]
    assert batch.rows.response_mask.sum(1).tolist() == [2, 3, 2, 2, 3, 2, 2, 2]
    assert batch.chosen.tolist() == [0, 2, 4, 6]
    assert batch.rejected.tolist() == [1, 3, 5, 7]
    assert batch.probability.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert batch.weight.tolist() == [1.0, 2.0, 1.0, 1.0]
    longest = [max(lengths[i : i + 2]) for i in range(0, 8, 2)]
    assert data._examples["test"].lengths.tolist() == longest
    assert "'label'" not in caplog.text  # no field that nothing uses


def test_an_unrelated_response_is_cut_where_rows_are(word_folder, write_rows):
    rows = [
        {"prompt": "one two three four", "response": "yes", "label": True},
        {"prompt": "two", "response": "four four no no", "label": False},
    ]
    file = write_rows("x.jsonl", rows)
    data = prepared(word_folder, file, max_length=6, overlong="truncate")
    (batch,) = data.test_dataloader()
    assert batch.rows.lengths.tolist() == [6, 6, 6, 3]
    assert data._examples["test"].lengths.tolist() == [6, 6]
    assert not batch.rows.response_mask[1, :5].any()
    assert batch.rows.response_mask[1, 5]


def test_rows_of_both_kinds_and_a_lone_one_are_refused(word_folder, write_rows):
    pair = {"prompt": "one", "chosen": "yes", "rejected": "no"}
    with pytest.raises(DataError, match=r"x\.jsonl: 4 labels and 1 comparisons"):
        prepared(word_folder, write_rows("x.jsonl", [*ROWS, pair]))
    with pytest.raises(DataError, match="two or more are needed"):
        prepared(word_folder, write_rows("y.jsonl", ROWS[:1]))


def test_an_aggregation_has_no_effect_on_labels(word_folder, write_rows):
    file = write_rows("x.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"aggregation Majority has no effect on .*x\.jsonl"):
        prepared(word_folder, file, aggregation=Majority())


def test_a_reward_model_reads_no_labels(word_folder, write_rows):
    data = RewardDataModule(word_folder, test=write_rows("x.jsonl", ROWS))
    with pytest.raises(DataError, match=r"x\.jsonl:1: expected 'prompt' with 'chosen'"):
        data.setup("test")


def test_a_loss_and_the_rows_must_agree(word_folder, write_rows):
    labels = prepared(word_folder, write_rows("x.jsonl", ROWS))
    pair = {"prompt": "one", "chosen": "yes", "rejected": "no"}
    pairs = prepared(word_folder, write_rows("y.jsonl", [pair]))
    labels.require_rows_for("KTO", is_unpaired=True)
    pairs.require_rows_for("DPO", is_unpaired=False)
    with pytest.raises(ConfigError, match=r"DPO reads comparisons, but data\.test has labelled"):
        labels.require_rows_for("DPO", is_unpaired=False)
    with pytest.raises(ConfigError, match=r"KTO reads labelled responses .* has comparisons"):
        pairs.require_rows_for("KTO", is_unpaired=True)
