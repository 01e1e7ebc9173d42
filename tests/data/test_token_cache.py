import datetime
import inspect
import json
import logging
import math
import os

import pytest
import torch

from lit_rlhf.cache import cache_folder
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule, token_cache
from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.token_cache import digest_tokenizer
from lit_rlhf.data.tokenization import Row
from lit_rlhf.feedback import JudgedPair
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
    """An empty cache that keeps data of any size."""
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(token_cache, "SMALLEST", 0)


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
    return data.prepared("train")


def entries():
    folder = cache_folder() / "tokenized"
    return sorted(folder.iterdir()) if folder.exists() else []


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
    plain = examples(module_class, word_folder, file, cache_tokens=False)
    assert entries() == []
    first = examples(module_class, word_folder, file)
    assert len(num_prepared) == 2
    found = examples(module_class, word_folder, file)
    assert len(num_prepared) == 2
    assert len(entries()) == 1
    assert_same(first, plain)
    assert_same(found, plain)


def test_numbers_that_nearly_agree_survive():
    pairs = (JudgedPair(0, 1, 1 - 2**-53, 1e-300), JudgedPair(1, 0, 0.5, 3.0))
    groups = [
        GroupExample((Row([5, 2**31 - 1], [False, True]), Row([1], [False])), pairs),
        GroupExample((Row([1, 2], [False, True]),), ()),
    ]
    assert_same(token_cache.unpack_groups(token_cache.pack_groups(groups)), groups)


def test_reward_models_and_dpo_have_tokens_of_their_own(word_folder, write_rows, num_prepared):
    file = write_rows("x.jsonl", GROUPS)
    examples(RewardDataModule, word_folder, file)
    examples(DPODataModule, word_folder, file)
    assert len(num_prepared) == 2


# What neither rows nor `prepare` depend on, or only through the rows as read.
IRRELEVANT = {
    "tokenizer", "train", "validation", "test", "columns", "batch_size", "eval_batch_size", "seed",
    "length_window", "limit_train", "limit_validation", "cache_tokens", "id_field", "last_batch",
    "subset", "kwargs", "self",
}  # fmt: skip
OTHERS = {
    "template": "plain",
    "max_length": 50,
    "max_prompt_length": 50,
    "overlong": "drop",
    "append_eos": False,
    "empty_responses": "keep",
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
    examples(module_class, word_folder, file, batch_size=1, seed=3, length_window=2)
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
    assert not is_new(word_folder, rows[:3])
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
    monkeypatch.setattr(token_cache.datetime, "datetime", Tomorrow)
    assert digest_tokenizer(plain) == before[0]
    assert digest_tokenizer(dated) != before[1]


def test_a_torn_entry_is_prepared_again(word_folder, write_rows, num_prepared, caplog):
    file = write_rows("x.jsonl", GROUPS)
    expected = examples(DPODataModule, word_folder, file)
    (entry,) = entries()
    os.truncate(entry, 100)
    assert_same(examples(DPODataModule, word_folder, file), expected)
    assert "is torn or damaged" in caplog.text
    assert_same(examples(DPODataModule, word_folder, file), expected)
    assert len(num_prepared) == 2


def test_small_data_are_not_kept(word_folder, write_rows, monkeypatch):
    size = sum(len(json.dumps(row)) + 1 for row in GROUPS)
    file = write_rows("x.jsonl", GROUPS)
    monkeypatch.setattr(token_cache, "SMALLEST", size + 1)
    examples(DPODataModule, word_folder, file)
    assert entries() == []
    monkeypatch.setattr(token_cache, "SMALLEST", size)
    examples(DPODataModule, word_folder, file)
    assert len(entries()) == 1


def test_rows_that_are_not_json_are_not_kept(word_folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="lit_rlhf")
    rows = [({"prompt": "one", "day": datetime.date(2030, 1, 1)}, "x[0]")]
    monkeypatch.setattr("lit_rlhf.data.datamodule.read_records", lambda *_, **__: rows)
    (example,) = examples(PPODataModule, word_folder, "x")
    assert example.fields == {"day": datetime.date(2030, 1, 1)}
    assert entries() == []
    assert "more than JSON can write" in caplog.text


def test_classes_from_elsewhere_are_not_kept(word_folder, write_rows):
    """Their code may change under the same name."""

    class Own(SFTDataModule):
        def prepare(self, rows):
            return super().prepare(rows)[:1]

    file = write_rows("x.jsonl", DEMONSTRATIONS)
    assert len(examples(Own, word_folder, file)) == 1
    assert entries() == []


def prepare_together(folder, tokenizer, file):
    os.environ["LIT_RLHF_HOME"] = folder
    token_cache.SMALLEST = 0
    torch.distributed.barrier()
    return [[*map(tuple, examples(SFTDataModule, tokenizer, file))] for _ in range(20)]


def test_processes_that_start_together_do_not_trample_each_other(word_folder, write_rows, tmp_path):
    file = write_rows("x.jsonl", DEMONSTRATIONS)
    expected = examples(SFTDataModule, word_folder, file, cache_tokens=False)
    folder = tmp_path / "shared"
    ranks = run_in_two_processes(prepare_together, str(folder), word_folder, file)
    assert all(found == expected for rank in ranks for found in rank)
    assert len(list((folder / "tokenized").iterdir())) == 1
