"""Rows, tokenizers and paths as objects of a program."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from lit_rlhf.data import DPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.errors import ConfigError, DataError
from tests.support.phases import demonstrations, judged_groups, write_rows
from tests.support.tokenizer import tiny_tokenizer


def tokens_of(data):
    data.setup("fit")
    return [[row.input_ids for row in one.rows] for one in data.prepared("train")]


def test_rows_give_the_tokens_of_their_file(tmp_path):
    rows = demonstrations(4)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    table = datasets.Dataset.from_list(rows)
    sources = [file, Path(file), [Path(file)], rows, tuple(rows), table, table.with_format("torch"),
               datasets.DatasetDict(train=table, test=table)]  # fmt: skip
    found = [tokens_of(SFTDataModule(tiny_tokenizer(), train=source)) for source in sources]
    assert all(one == found[0] for one in found)
    assert len(found[0]) == 4


def test_a_shuffled_data_set_is_read_in_its_own_order():
    rows = demonstrations(6)
    table = datasets.Dataset.from_list(rows).shuffle(seed=1).select(range(3))
    expected = tokens_of(SFTDataModule(tiny_tokenizer(), train=list(table)))
    assert tokens_of(SFTDataModule(tiny_tokenizer(), train=table)) == expected


def test_judged_groups_and_numbers_of_numpy():
    groups = judged_groups(3)
    arrays = [{**group, "ratings": np.array(group["ratings"], dtype=object)} for group in groups]
    assert tokens_of(RewardDataModule(tiny_tokenizer(), train=arrays)) == tokens_of(
        RewardDataModule(tiny_tokenizer(), train=groups)
    )


def test_changed_rows_are_other_data():
    rows = demonstrations(2)
    before = tokens_of(SFTDataModule(tiny_tokenizer(), train=rows))
    rows[1]["response"] = "other"
    assert tokens_of(SFTDataModule(tiny_tokenizer(), train=rows)) != before


def test_the_lineage_says_that_a_program_gave_the_rows():
    data = SFTDataModule(tiny_tokenizer(), train=demonstrations(2))
    data.setup("fit")
    entry = data.provenance["train"]
    assert (entry["source"], entry["rows"]) == ("2 rows of a list", 2)
    assert len(entry["sha256"]) == 64


@pytest.mark.parametrize(
    ("data", "rows", "expected"),
    [
        (SFTDataModule, [{"prompt": "a", "response": "b"}, {"prompt": "a"}], r"data\.train\[1\]"),
        (SFTDataModule, datasets.Dataset.from_list([{"prompt": "a"}]), r"data\.train\[0\]"),
        (SFTDataModule, [{"prompt": "a", "response": "b"}, "b"], r"data\.train\[1\]: .*not str"),
        (DPODataModule, [{"prompt": "a", "chosen": object()}], r"data\.train\[0\]: .*as JSON"),
        (SFTDataModule, [], "an empty list"),
        (SFTDataModule, datasets.Dataset.from_list([]), "holds no rows"),
    ],
    ids=["field", "table", "text", "object", "empty", "empty table"],
)
def test_a_bad_row_is_named(data, rows, expected):
    with pytest.raises(DataError, match=expected):
        data(tiny_tokenizer(), train=rows).setup("fit")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            datasets.DatasetDict(test=datasets.Dataset.from_list([{"a": 1}])),
            r"no such split, .*tes",
        ),
        (iter([{"prompt": "a"}]), r"data\.train: give a file.*not list_iterator"),
        (datasets.Dataset.from_list([{"a": 1}]).to_iterable_dataset(), "not IterableDataset"),
        (7, r"not int \(7\)"),
    ],
    ids=["split", "iterator", "stream", "number"],
)
def test_what_is_no_source_is_refused(rows, expected):
    with pytest.raises(ConfigError, match=expected):
        SFTDataModule(tiny_tokenizer(), train=rows).setup("fit")


def test_a_tokenizer_may_say_how_long_rows_are():
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 16
    with pytest.raises(DataError, match=r"data\.train\[0\].*context of 16"):
        SFTDataModule(tokenizer, train=[{"prompt": "a" * 20, "response": "b"}]).setup("fit")
