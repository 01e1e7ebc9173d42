"""Rows of public shapes as the data modules read them."""

import logging

import pytest

from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.data.sources import open_records
from lit_rlhf.errors import ConfigError, DataError
from tests.support.tokenizer import save_tiny_tokenizer

HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
ALPACA = {"instruction": "Name it.", "input": "France", "output": "Paris"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
RATED = {"prompt": "Hi", "helpfulness": 1, "correctness": 1, "coherence": 1}


@pytest.fixture
def tiny(tmp_path):
    return str(save_tiny_tokenizer(tmp_path / "tokenizer"))


def texts(data):
    """Return the rows of a test batch as text, and their pairs."""
    data.setup("test")
    examples = data.prepared("test")
    rows = [data.tokenizer.decode(row.input_ids) for group in examples for row in group.rows]
    return rows, [(pair.chosen, pair.probability) for group in examples for pair in group.pairs]


def test_the_input_of_an_instruction_is_learned_from(tiny, write_rows):
    ((row,), _) = texts(SFTDataModule(tiny, test=write_rows("x.jsonl", [ALPACA])))
    assert "user\nName it.\n\nFrance<|im_end|>" in row
    assert row.rstrip().endswith("assistant\nParis<|im_end|>")


def test_columns_may_not_lose_the_input(tiny, write_rows):
    file = write_rows("x.jsonl", [{**ALPACA, "input": ""}, ALPACA])
    columns = {"prompt": "instruction", "response": "output"}
    with pytest.raises(DataError, match=r"x.jsonl:2: field 'input' is a part of the prompt"):
        texts(SFTDataModule(tiny, test=file, columns=columns))


@pytest.mark.parametrize("module_class", [RewardDataModule, DPODataModule])
def test_dialogues_as_text_are_compared(module_class, tiny, write_rows):
    rows, pairs = texts(module_class(tiny, test=write_rows("x.jsonl", [HH])))
    assert ["Yes" in row for row in rows] == [True, False]
    assert all("user\nHi<|im_end|>" in row and "Human:" not in row for row in rows)
    assert pairs == [(0, 1.0)]


def test_prompts_of_a_public_shape(tiny, write_rows):
    data = PPODataModule(tiny, test=write_rows("x.jsonl", [HH]))
    data.setup("test")
    (example,) = data.prepared("test")
    assert example.prompt == ({"role": "user", "content": "Hi"},)


def test_a_place_is_that_of_the_source(write_rows):
    rows = [{**RATED, "response": text} for text in "abc"]
    rows[2]["prompt"] = "Other"
    file = write_rows("x.jsonl", [*rows, {**RATED, "response": "d", "prompt": "Other"}])
    records = open_records(file)
    assert [record.where for record in records] == [f"{file}:1", f"{file}:3"]
    assert records[0].record["ratings"] == [[1.0, 1.0]]
    assert records.shape == "helpsteer2"


def test_a_format_can_be_named(tiny, write_rows):
    file = write_rows("x.jsonl", [HH])
    with pytest.raises(DataError, match=r"x.jsonl:1: expected a 'prompt' beside"):
        texts(DPODataModule(tiny, test=file, format="ours"))
    with pytest.raises(DataError, match=r"x.jsonl:1: field 'labels'"):
        texts(DPODataModule(tiny, test=file, format="shp"))
    with pytest.raises(ConfigError, match=r"data.format=hhh: must be one of auto, ours"):
        DPODataModule(tiny, format="hhh")


@pytest.mark.parametrize("row", [{"prompt": "p", "completion": "c", "label": False},
                                 {"instruction": "i", "output": "c", "kto_tag": False},
                                 {**RATED, "response": "c"}])  # fmt: skip
def test_bad_answers_are_not_learned(tiny, write_rows, row):
    with pytest.raises(DataError, match=r"x.jsonl:1: "):
        texts(SFTDataModule(tiny, test=write_rows("x.jsonl", [row])))


def test_what_was_read_is_said_in_one_line(tiny, write_rows, caplog):
    caplog.set_level(logging.INFO)
    tie = {**PAIR, "score_chosen": 8.0, "score_rejected": 8.0}
    group = {"prompt": "p", "responses": ["a", "b", "c"], "ratings": [[1, 2, 3]]}
    file = write_rows("x.jsonl", [PAIR, tie, {**PAIR, "weight": 0}, group])
    texts(DPODataModule(tiny, test=file))
    assert f"{file}: 6 comparisons in 4 groups, format ours, 1 ties, 1 of weight 0" in caplog.text
    caplog.clear()
    texts(SFTDataModule(tiny, test=write_rows("y.jsonl", [ALPACA])))
    assert "y.jsonl: 1 demonstrations, format alpaca" in caplog.text


BAD = [
    b'{"prompt": ',
    {**PAIR, "score_chosen": 1, "score_rejected": 2},
    {**PAIR, "weight": 1e300},
    {**PAIR, "chosen": "b \n"},
    {**PAIR, "chosen": "x" * 99 + "a", "rejected": "x" * 99 + "b"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_refused_or_skipped_and_counted(tiny, tmp_path, write_rows, bad, caplog):
    file = write_rows(
        "x.jsonl", [PAIR, PAIR, PAIR] if isinstance(bad, bytes) else [PAIR, bad, PAIR]
    )
    if isinstance(bad, bytes):
        good = (tmp_path / "x.jsonl").read_bytes().splitlines()
        (tmp_path / "x.jsonl").write_bytes(b"\n".join([good[0], bad, good[2]]))
    settings = {"max_length": 50, "overlong": "truncate", "test": file}
    with pytest.raises(DataError, match=r"x.jsonl:2: "):
        texts(DPODataModule(tiny, **settings))
    rows, pairs = texts(DPODataModule(tiny, bad_rows="skip", **settings))
    assert (len(rows), len(pairs)) == (4, 2)
    assert f"{file}: 1 of 3 rows are bad and were skipped (data.bad_rows): {file}:2" in caplog.text


def test_bad_rows_of_a_public_shape_are_skipped_too(tiny, write_rows, caplog):
    file = write_rows("x.jsonl", [HH, {**HH, "chosen": "no dialogue"}, HH])
    rows, _ = texts(DPODataModule(tiny, test=file, bad_rows="skip"))
    assert len(rows) == 4
    assert "1 of 3 rows are bad" in caplog.text
    with pytest.raises(ConfigError, match=r"data.bad_rows=drop: must be refuse or skip"):
        DPODataModule(tiny, bad_rows="drop")


def test_rows_that_are_all_bad_are_an_error(tiny, write_rows):
    file = write_rows("x.jsonl", [{**PAIR, "rejected": "a"}] * 3)
    with pytest.raises(DataError, match=r"All 3 rows are bad; the first: .*x.jsonl:1: "):
        texts(DPODataModule(tiny, test=file, bad_rows="skip"))


def test_equal_responses_of_a_group_make_no_pair(tiny, write_rows):
    group = {"prompt": "p", "responses": ["a", "b", "a "], "ratings": [[1, 2, 3]]}
    _, pairs = texts(DPODataModule(tiny, test=write_rows("x.jsonl", [group])))
    assert len(pairs) == 2


def test_nothing_to_learn_is_refused_and_one_row_that_is_all_is_named(tiny, write_rows, caplog):
    def fit(rows):
        DPODataModule(tiny, train=write_rows("x.jsonl", rows), batch_size=1).setup("fit")

    with pytest.raises(DataError, match="all comparisons have weight 0"):
        fit([{**PAIR, "weight": 0}] * 2)
    with pytest.raises(DataError, match="all comparisons are ties"):
        fit([{**PAIR, "probability": 0.5}] * 2)
    fit([{**PAIR, "weight": 1000}, *[PAIR] * 20])
    assert "one comparison has 98% of all weight" in caplog.text


def test_a_margin_is_used_where_it_is_asked_for(tiny, write_rows, caplog):
    rows = [{**PAIR, "margin": 1.5}, {**PAIR, "margin": 2, "probability": 0.25}]
    file = write_rows("x.jsonl", rows)

    def margins(**settings):
        data = RewardDataModule(tiny, test=file, **settings)
        data.setup("test")
        return data.collate(data.prepared("test")).margin.tolist()

    assert margins(margin=True) == [1.5, -2]
    assert "look meant" not in caplog.text
    assert margins() == [0, 0]
    assert "The reward phase uses margins by data.margin true." in caplog.text
    group = {"prompt": "p", "responses": ["a", "b"], "ratings": [[1, 2]], "margin": 1}
    for row in (PAIR, group):
        with pytest.raises(DataError, match=r"x.jsonl:1: data.margin is true, and this row has no"):
            texts(RewardDataModule(tiny, test=write_rows("x.jsonl", [row]), margin=True))


def test_of_a_post_of_shp_five_pairs_are_used(tiny, write_rows, caplog):
    row = {"human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_ratio": 1.5}
    rows = [{**row, "history": post} for post in ["p"] * 7 + ["q"] + ["p"] * 2]
    file = write_rows("x.jsonl", rows)
    for _ in range(2):  # also where the table is there already
        caplog.clear()
        _, pairs = texts(DPODataModule(tiny, test=file))
        assert len(pairs) == 6
        assert f"{file}: 4 of 10 pairs are left out: of a prompt the first 5" in caplog.text


def test_strengths_of_judgments_are_named(tiny, write_rows, caplog):
    row = {
        "prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 2,
        "preference_statement": "x", "preference_elaboration": "y",
    }  # fmt: skip
    texts(DPODataModule(tiny, test=write_rows("x.jsonl", [row]), format="helpsteer2_preference"))
    assert "'strengths' (1 rows)" in caplog.text


def test_fields_that_look_meant_are_named_once(tiny, write_rows, caplog):
    file = write_rows("x.jsonl", [{**PAIR, "margin": 1.5}, {**PAIR, "margin": 2, "topic": "t"}])
    texts(DPODataModule(tiny, test=file))
    named = [record.message for record in caplog.records if "look meant" in record.message]
    assert len(named) == 1
    assert (
        f"{file}: fields that look meant, and that nothing uses here: 'margin' (2 rows)" in named[0]
    )
