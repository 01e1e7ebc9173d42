from collections import Counter

import pytest

from lit_rlhf.data import PPODataModule
from lit_rlhf.data.loading import endless_batch
from lit_rlhf.errors import ConfigError
from tests.models.examples import save_policy
from tests.support.phases import demonstrations, prompts, write_rows


@pytest.mark.parametrize("batch_size", [1, 3, 5, 12])
def test_each_example_comes_once_before_any_comes_again(batch_size):
    how = {"num_examples": 5, "batch_size": batch_size, "seed": 0}
    drawn = [example for number in range(20) for example in endless_batch(number, **how)]
    for start in range(0, len(drawn) - 4, 5):
        assert sorted(drawn[start : start + 5]) == list(range(5))
    assert drawn[:5] != drawn[5:10] or drawn[:5] != drawn[10:15]


def test_a_batch_is_named_by_its_number_and_the_seed():
    how = {"num_examples": 9, "batch_size": 4}
    assert endless_batch(7, **how, seed=0) == endless_batch(7, **how, seed=0)
    assert [endless_batch(n, **how, seed=0) for n in range(3)] != [
        endless_batch(n, **how, seed=1) for n in range(3)
    ]


@pytest.fixture
def data(tmp_path):
    files = {
        "train": write_rows(tmp_path / "prompts.jsonl", prompts(6)),
        "pretraining": write_rows(
            tmp_path / "texts.jsonl", [*demonstrations()[:3], {"text": "plain words"}]
        ),
    }
    policy = str(save_policy(tmp_path / "policy"))
    data = PPODataModule(policy, batch_size=2, pretraining_batch_size=3, **files)
    data.setup("fit")
    return data


def texts(data, rows):
    return Counter(
        data.tokenizer.decode(ids[:length])
        for ids, length in zip(rows.input_ids.tolist(), rows.lengths.tolist(), strict=True)
    )


def test_processes_share_the_rows_of_a_step(data):
    for number in range(4):
        whole = texts(data, data.pretraining_rows(number, 0, 1))
        shares = [texts(data, data.pretraining_rows(number, rank, 2)) for rank in (0, 1)]
        assert whole == shares[0] + shares[1]
    assert sum(whole.values()) == 3


def test_a_process_without_a_row_takes_a_stand_in(data):
    rows = data.pretraining_rows(0, 3, 4)
    assert len(rows.lengths) == 1
    assert not rows.response_mask.any()


def test_a_plain_text_is_learned_from_its_beginning(data):
    for number in range(4):
        rows = data.pretraining_rows(number, 0, 1)
        for ids, length, mask in zip(*rows, strict=True):
            if "plain words" in data.tokenizer.decode(ids[:length]):
                assert mask.sum() >= length - 1
                return
    pytest.fail("the text never came")


def test_lineage_names_the_rows(data):
    assert data.provenance["pretraining"]["rows"] == 4
    assert data.provenance["train"]["rows"] == 6


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"pretraining_batch_size has no effect without"):
        PPODataModule("policy", train="prompts.jsonl", pretraining_batch_size=2)
