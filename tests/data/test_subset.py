import pytest

from lit_rlhf.data import RewardDataModule
from lit_rlhf.data.sources import open_records
from lit_rlhf.data.subset import Subset
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.aggregation import BetaMean
from tests.support.phases import judged_groups, write_rows
from tests.support.tokenizer import save_tiny_tokenizer


@pytest.fixture
def records(tmp_path):
    rows = [{"n": n, "ratings": [[place, n] for place in range(10)]} for n in range(20)]
    return open_records(write_rows(tmp_path / "records.jsonl", rows))


def test_all_is_taken_as_it_stands(records):
    assert Subset().choose(records) is records


def test_a_share_of_rows_and_of_the_same_labelers_everywhere(records):
    chosen = Subset(raters=0.3, rows=0.5, seed=1).choose(records)
    numbers = [row.record["n"] for row in chosen]
    assert len(numbers) == 10
    assert numbers == sorted(set(numbers))
    places = {tuple(rating[0] for rating in row.record["ratings"]) for row in chosen}
    assert len(places) == 1
    assert len(places.pop()) == 3
    assert all(rating[1] == row.record["n"] for row in chosen for rating in row.record["ratings"])


def test_another_seed_takes_others(records):
    parts = [Subset(raters=0.3, rows=0.5, seed=seed).choose(records) for seed in range(5)]
    assert len({tuple(row.record["n"] for row in part) for part in parts}) == 5
    kept = [tuple(rating[0] for rating in part[0].record["ratings"]) for part in parts]
    assert len(set(kept)) > 1
    assert list(parts[2]) == list(Subset(raters=0.3, rows=0.5, seed=2).choose(records))


def test_at_least_one_is_kept(records):
    (row,) = Subset(raters=0.01, rows=0.01).choose(records)
    assert len(row.record["ratings"]) == 1


def test_rows_without_labelers_are_refused(tmp_path):
    file = write_rows(tmp_path / "file.jsonl", [{"chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"file.jsonl:1: data\.subset\.raters 0\.5"):
        list(Subset(raters=0.5).choose(open_records(file)))
    with pytest.raises(ConfigError, match=r"data\.subset\.rows is 0"):
        Subset(rows=0)


def test_training_data_alone_is_thinned_before_the_limit(tmp_path):
    path = write_rows(tmp_path / "groups.jsonl", judged_groups(12))
    data = RewardDataModule(
        str(save_tiny_tokenizer(tmp_path)),
        train=path,
        validation=path,
        subset=Subset(raters=0.67, rows=0.5, seed=3),
        limit_train=4,
        aggregation=BetaMean(prior=0.0),
    )
    data.setup("fit")
    assert len(data.prepared("train")) == 4
    assert len(data.prepared("validation")) == 12
    # Of two labelers, shares are halves; of three they need not be.
    shares = {pair.probability for example in data.prepared("train") for pair in example.pairs}
    assert shares <= {0.5, 0.75, 1.0}
