import datetime
import inspect
import math
import os

import datasets
import pytest
import torch

from lit_rlhf.cache import cache_folder
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule, tables
from lit_rlhf.data.subset import Subset
from lit_rlhf.data.tables import digest_tokenizer
from lit_rlhf.errors import DataError
from lit_rlhf.feedback.aggregation import BetaMean
from tests.data.word_tokenizer import BOS_TEMPLATE, word_tokenizer
from tests.support.tokenizer import save_tiny_tokenizer
from tests.support.two_processes import run_in_two_processes

CHAT = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "yes"}]
DEMONSTRATIONS = [{"prompt": "one", "response": "yes " * n} for n in range(1, 10)] + [
    {"messages": CHAT * 2},
    {"text": "no no"},
]
GROUPS = [
    {"prompt": "one", "chosen": "yes", "rejected": "no", "probability": 0.7, "weight": 2.5},
    {"prompt": "two", "responses": ["no", "yes yes", "three"], "ratings": [[1, 2, 2], [3, 0, 1]]},
]
PROMPTS = [
    {"prompt": "one"},
    {"prompt": "", "wanted": {"ü\u2028\ud800": [1, 2.5, None, True, 10**30]}, "no": math.inf},
    {"prompt": CHAT[:1], "prompt_id": 7},
]
CASES = {
    SFTDataModule: DEMONSTRATIONS,
    RewardDataModule: GROUPS,
    DPODataModule: GROUPS,
    PPODataModule: PROMPTS,
}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """An empty cache."""
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "home"))


@pytest.fixture
def num_prepared(monkeypatch):
    """The rows that data modules prepared, one number each time."""
    prepared = []
    for module_class in {SFTDataModule, DPODataModule.__mro__[1], PPODataModule}:
        prepare = module_class.prepare

        def counting(self, rows, prepare=prepare):
            prepared.append(len(rows))
            return prepare(self, rows)

        counting.__module__, counting.__qualname__ = prepare.__module__, prepare.__qualname__
        monkeypatch.setattr(module_class, "prepare", counting)
    return prepared


def examples(module_class, tokenizer, file, **settings):
    data = module_class(tokenizer, train=file, **settings)
    data.setup("fit")
    return list(data.prepared("train"))


def entries():
    return sorted(path for path in cache_folder().glob("tokenized/*") if path.is_dir())


def assert_same(one, other):
    """Compare examples, types included: True is no 1, and a tuple no list."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


@pytest.mark.parametrize("module_class", CASES)
def test_what_is_found_is_what_was_prepared(module_class, word_folder, write_rows, num_prepared):
    file = write_rows("x.jsonl", CASES[module_class])
    first = examples(module_class, word_folder, file)
    assert num_prepared == [len(CASES[module_class])]
    found = examples(module_class, word_folder, file)
    assert len(num_prepared) == 1
    assert len(entries()) == 1
    assert_same(found, first)


@pytest.mark.parametrize("module_class", CASES)
def test_several_processes_prepare_what_one_does(
    module_class, word_folder, write_rows, tmp_path, monkeypatch
):
    rows = [row for row in CASES[module_class] for _ in range(3)]
    file = write_rows("x.jsonl", rows)
    alone = examples(module_class, word_folder, file)
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "other"))
    assert_same(examples(module_class, word_folder, file, num_proc=3), alone)
    assert len(list(entries()[0].glob("*.arrow"))) == 3
    # However many processes made it, it is one entry.
    assert_same(examples(module_class, word_folder, file, num_proc=1), alone)
    assert len(entries()) == 1


def test_several_processes_read_a_data_set_and_name_its_rows(word_folder, tmp_path):
    saved = str(tmp_path / "saved")
    datasets.Dataset.from_list(DEMONSTRATIONS[:9]).save_to_disk(saved)
    rows = examples(SFTDataModule, word_folder, saved, num_proc=2)
    assert [len(row.input_ids) for example in rows for row in example.rows] == list(range(4, 13))
    with pytest.raises(DataError, match=r"saved\[8\]: has 12 tokens"):
        examples(SFTDataModule, word_folder, saved, num_proc=2, max_length=11)


def test_an_error_of_another_process_names_the_line(word_folder, write_rows):
    file = write_rows("x.jsonl", [*DEMONSTRATIONS, {"prompt": 3, "response": "yes"}])
    for _ in range(2):  # what was tokenised before it is no reason to let the second run pass
        with pytest.raises(DataError, match=r"x\.jsonl:12: field 'prompt': expected text"):
            examples(SFTDataModule, word_folder, file, num_proc=2)


def test_numbers_that_nearly_agree_survive(word_folder, write_rows):
    row = {**GROUPS[0], "probability": 1 - 2**-53, "weight": 1e-300}
    (example,) = examples(DPODataModule, word_folder, write_rows("x.jsonl", [row]))
    assert example.pairs == ((0, 1, 1 - 2**-53, 1e-300, 0),)


def test_how_many_are_tokenised_at_once_does_not_count(
    word_folder, write_rows, monkeypatch, tmp_path
):
    file = write_rows("x.jsonl", DEMONSTRATIONS)
    whole = examples(SFTDataModule, word_folder, file)
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(tables, "RECORDS_AT_ONCE", 2)
    assert_same(examples(SFTDataModule, word_folder, file), whole)


def test_what_a_limit_leaves_out_does_not_tokenise_again(word_folder, write_rows, num_prepared):
    file = write_rows("x.jsonl", DEMONSTRATIONS)
    lengths = {
        overlong: [
            len(example.rows[0].input_ids)
            for example in examples(
                SFTDataModule, word_folder, file, max_length=7, overlong=overlong
            )
        ]
        for overlong in ("drop", "truncate")
    }
    assert lengths["drop"] == [4, 5, 6, 7, 4]
    assert lengths["truncate"] == [4, 5, 6, 7, *[7] * 6, 4]
    assert len(num_prepared) == 1


def test_reward_models_and_dpo_have_tokens_of_their_own(word_folder, write_rows, num_prepared):
    file = write_rows("x.jsonl", GROUPS)
    examples(RewardDataModule, word_folder, file)
    examples(DPODataModule, word_folder, file)
    assert len(num_prepared) == 2


# What neither rows nor `prepare` depend on, or only through the rows as read.
IRRELEVANT = {
    "tokenizer", "train", "validation", "test", "predict", "batch_size", "eval_batch_size", "seed",
    "eval_batch_tokens",
    "limit_train", "limit_validation", "last_batch", "num_proc", "streaming",
    "pretraining", "pretraining_batch_size",
    "kwargs", "self", "max_length", "max_prompt_length", "overlong",
}  # fmt: skip
OTHERS = {
    "template": "plain",
    "template_options": {"enable_thinking": False},
    "thinking": "drop",
    "learn": "last",
    "format": "ours",
    "columns": {"prompt": "prompt"},
    "bad_rows": "skip",
    "id_field": None,
    "subset": Subset(rows=0.5),
    "aggregation": BetaMean(prior=0.0),
    "append_eos": False,
    "empty_responses": "keep",
    "margin": 0,  # another value than the default, by which these rows need none
}


@pytest.mark.parametrize("module_class", CASES)
def test_every_setting_of_the_preparation_counts(
    module_class, word_folder, write_rows, num_prepared
):
    settings = set()
    for one in module_class.__mro__:
        if one.__module__.startswith("lit_rlhf.data"):
            settings |= set(inspect.signature(one.__init__).parameters) - IRRELEVANT
    assert settings == set(module_class.preparation) - {"is_for_reward"}
    plain = [row for row in CASES[module_class] if isinstance(row.get("prompt"), str)]
    file = write_rows("x.jsonl", plain)
    examples(module_class, word_folder, file)
    for number, name in enumerate(sorted(settings), start=2):
        examples(module_class, word_folder, file, **{name: OTHERS[name]})
        assert len(num_prepared) == number, name
    examples(module_class, word_folder, file, batch_size=1, seed=3)
    assert len(num_prepared) == 1 + len(settings)


def test_other_rows_or_tokenizers_are_prepared_anew(
    word_folder, write_rows, num_prepared, tmp_path
):
    def is_new(tokenizer, rows, **settings):
        before = len(num_prepared)
        examples(SFTDataModule, tokenizer, write_rows("x.jsonl", rows), batch_size=1, **settings)
        return len(num_prepared) > before

    rows = DEMONSTRATIONS
    assert is_new(word_folder, rows)
    assert not is_new(word_folder, rows)
    assert is_new(word_folder, rows[::-1])
    assert is_new(word_folder, [*rows[:-1], {"text": "no  no"}])
    assert is_new(word_folder, rows, limit_train=3)
    assert is_new(str(save_tiny_tokenizer(tmp_path / "tiny")), rows)
    changed = word_tokenizer(chat_template=BOS_TEMPLATE.replace("[INST]", "three"))
    changed.save_pretrained(tmp_path / "changed")
    assert is_new(str(tmp_path / "changed"), rows)
    word_tokenizer().save_pretrained(tmp_path / "moved")
    assert not is_new(str(tmp_path / "moved"), rows)


def test_a_template_that_asks_for_the_date_is_rendered_each_day(monkeypatch):
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls):
            return datetime.datetime(2031, 1, 1)

    plain = word_tokenizer()
    dated = word_tokenizer(chat_template="{{ strftime_now('%d') }}" + BOS_TEMPLATE)
    before = digest_tokenizer(plain), digest_tokenizer(dated)
    assert (digest_tokenizer(plain), digest_tokenizer(dated)) == before
    monkeypatch.setattr(tables.datetime, "datetime", Tomorrow)
    assert digest_tokenizer(plain) == before[0]
    assert digest_tokenizer(dated) != before[1]


def test_a_torn_entry_is_prepared_again(word_folder, write_rows, num_prepared, caplog):
    file = write_rows("x.jsonl", GROUPS)
    expected = examples(DPODataModule, word_folder, file)
    for kind in ("tokenized", "records"):
        (torn,) = cache_folder().glob(f"{kind}/**/*.arrow")
        os.truncate(torn, torn.stat().st_size // 2)
        assert_same(examples(DPODataModule, word_folder, file), expected)
        assert "is damaged, and is made again" in caplog.text
        caplog.clear()
        assert_same(examples(DPODataModule, word_folder, file), expected)
        assert "WARNING" not in caplog.text
    assert len(num_prepared) == 2


def test_an_interrupted_run_leaves_nothing_that_counts(word_folder, write_rows, monkeypatch):
    file = write_rows("x.jsonl", DEMONSTRATIONS)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "RECORDS_AT_ONCE", 5)
    with monkeypatch.context() as patch:
        patch.setattr(SFTDataModule, "_render", stop)
        with pytest.raises(KeyboardInterrupt):
            examples(SFTDataModule, word_folder, file)
    assert len(examples(SFTDataModule, word_folder, file)) == len(DEMONSTRATIONS)


def test_where_the_cache_cannot_be_written_a_temporary_folder_serves(
    word_folder, write_rows, tmp_path, caplog, num_prepared
):
    (tmp_path / "home").write_text("a file, not a folder")
    file = write_rows("x.jsonl", DEMONSTRATIONS)
    assert len(examples(SFTDataModule, word_folder, file)) == len(DEMONSTRATIONS)
    assert len(examples(SFTDataModule, word_folder, file)) == len(DEMONSTRATIONS)
    assert len(num_prepared) == 1
    assert caplog.text.count("Set LIT_RLHF_HOME to a folder with room") == 1


def test_fields_that_are_not_json_reach_the_reward(word_folder, tmp_path):
    day = datetime.date(2030, 1, 1)
    saved = datasets.Dataset.from_list([{"prompt": "one", "day": day}])
    saved.save_to_disk(tmp_path / "saved")
    for _ in range(2):
        (example,) = examples(PPODataModule, word_folder, str(tmp_path / "saved"))
        assert example.fields == {"day": day}


def test_classes_from_elsewhere_are_not_kept(word_folder, write_rows):
    """Their code may change under the same name."""

    class Own(SFTDataModule):
        def prepare(self, records):
            return super().prepare(records[:1]) * len(records)

    file = write_rows("x.jsonl", DEMONSTRATIONS)
    first, second = examples(Own, word_folder, file)[:2]
    assert first == second
    assert entries() == []


def prepare_together(folder, tokenizer, file):
    os.environ["LIT_RLHF_HOME"] = folder
    torch.distributed.barrier()
    return [[*map(tuple, examples(SFTDataModule, tokenizer, file))] for _ in range(20)]


def test_processes_that_start_together_do_not_trample_each_other(word_folder, write_rows, tmp_path):
    file = write_rows("x.jsonl", DEMONSTRATIONS)
    expected = [tuple(row) for row in examples(SFTDataModule, word_folder, file)]
    folder = tmp_path / "shared"
    ranks = run_in_two_processes(prepare_together, str(folder), word_folder, file)
    assert all(found == expected for rank in ranks for found in rank)
    assert len([path for path in folder.glob("tokenized/*") if path.is_dir()]) == 1


def test_much_text_at_once_is_said(word_folder, write_rows, caplog, monkeypatch):
    monkeypatch.setattr("lit_rlhf.data.tables._MUCH_TEXT", 10)
    caplog.set_level("INFO")
    file = write_rows("x.jsonl", DEMONSTRATIONS)
    examples(SFTDataModule, word_folder, file)
    assert f"{file}:1: tokenising 0 MB of text at once" in caplog.text
