import pytest

from lit_rlhf.data import DPODataModule, RewardDataModule
from lit_rlhf.errors import ConfigError, DataError
from tests.support.tokenizer import save_tiny_tokenizer

ROWS = [
    {"prompt": "q ", "completions": ["ab", "c"], "labels": [True, False]},
    {"prompt": "why ", "completions": ["d"], "labels": [0.25], "weight": 2.0},
]


@pytest.fixture
def folder(tmp_path):
    return str(save_tiny_tokenizer(tmp_path))


def only_batch(data):
    data.setup("test")
    (batch,) = data.test_dataloader()
    return batch


@pytest.mark.parametrize("is_chat", [False, True])
def test_the_last_token_of_each_step_counts(folder, write_rows, is_chat):
    rows = ROWS
    if is_chat:
        rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    data = RewardDataModule(folder, test=write_rows("x.jsonl", rows))
    batch = only_batch(data)
    ends = []
    for ids, length, mask in zip(*batch.rows[:2], batch.rows.response_mask, strict=True):
        places = mask.nonzero().squeeze(1).tolist()
        assert places[-1] == length - 1  # where a reward model scores the whole answer
        before = [data.tokenizer.decode(ids[place - 2 : place]) for place in places[:-1]]
        ends.append((before, [data.tokenizer.decode(ids[place]) for place in places[:-1]]))
    assert ends == [(["ab"], ["\n"]), ([], [])]
    assert batch.probability.tolist() == [1.0, 0.0, 0.25]
    assert batch.weight.tolist() == [1.0, 1.0, 2.0]
    assert batch.chosen.tolist() == batch.rejected.tolist() == [0, 0, 1]


def test_a_loss_and_the_rows_must_agree(folder, write_rows):
    pair = {"prompt": "q ", "chosen": "yes", "rejected": "no"}
    steps = RewardDataModule(folder, test=write_rows("x.jsonl", ROWS))
    pairs = RewardDataModule(folder, test=write_rows("y.jsonl", [pair]))
    for data in (steps, pairs):
        data.setup("test")
    steps.require_rows_for("StepLoss", reads_steps=True)
    pairs.require_rows_for("BradleyTerryLoss", reads_steps=False)
    with pytest.raises(ConfigError, match=r"Loss reads comparisons, but data\.test has"):
        steps.require_rows_for("BradleyTerryLoss", reads_steps=False)
    with pytest.raises(ConfigError, match=r"StepLoss reads steps .* has comparisons"):
        pairs.require_rows_for("StepLoss", reads_steps=True)


def test_both_kinds_of_rows_cut_rows_and_policies_are_refused(folder, write_rows):
    pair = {"prompt": "q ", "chosen": "yes", "rejected": "no"}
    with pytest.raises(DataError, match=r"x\.jsonl: 3 labels and 1 comparisons"):
        only_batch(RewardDataModule(folder, test=write_rows("x.jsonl", [*ROWS, pair])))
    with pytest.raises(ConfigError, match="overlong truncate would cut steps"):
        only_batch(RewardDataModule(folder, test=write_rows("y.jsonl", ROWS), overlong="truncate"))
    with pytest.raises(DataError, match="expected 'prompt' with 'chosen'"):
        only_batch(DPODataModule(folder, test=write_rows("z.jsonl", ROWS)))
