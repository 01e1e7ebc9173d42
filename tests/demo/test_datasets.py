import json

import pytest

from lit_rlhf.demo.datasets import judged_groups, prompts, write_datasets
from lit_rlhf.demo.ratings import RatedText, split_of


def make_text(number):
    words = ["plot", "actors", "music", "light", "pace", "end"]
    text = f"Film {number} has " + " ".join(words[: number % 7]) + " and more"
    return RatedText(text, tuple((number + slot) % 9 - 4 for slot in range(12 + number % 5)))


TEXTS = [make_text(number) for number in range(600)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_datasets(tmp_path_factory.mktemp("data"), seed=3, texts=TEXTS)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts_in(records):
    for record in records:
        yield from record.get("responses", [record.get("response")])


def test_writes_every_file(paths):
    assert sorted(paths) == sorted(
        f"{task}/{name}"
        for task in ("sft", "reward", "judge", "ppo")
        for name in ("train", "validation", "test")
    )
    assert all(path.parts[-2:] == tuple(f"{key}.jsonl".split("/")) for key, path in paths.items())


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("sft/train", "train"),
        ("sft/validation", "validation"),
        ("sft/test", "test"),
        ("reward/train", "train"),
        ("reward/validation", "validation"),
        ("reward/test", "test"),
        ("judge/train", "judge"),
        ("judge/validation", "validation"),
        ("judge/test", "test"),
    ],
)
def test_each_file_holds_exactly_its_split(paths, key, split):
    expected = {" " + rated.text for rated in TEXTS if split_of(rated.text) == split}
    found = list(texts_in(read(paths[key])))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_demonstrations_join_to_the_plain_text(paths):
    record = read(paths["sft/train"])[0]
    assert record["prompt"] == "Movie review:"
    assert (record["prompt"] + record["response"]).startswith("Movie review: Film ")


@pytest.mark.parametrize(
    ("key", "slots"),
    [
        ("reward/train", range(10)),
        ("reward/validation", range(10)),
        ("judge/train", range(10, 99)),
        ("judge/validation", range(10, 99)),
        ("reward/test", range(99)),
        ("judge/test", range(99)),
    ],
)
def test_judged_groups_hold_the_ratings_of_their_slots(paths, key, slots):
    by_text = {" " + rated.text: rated.ratings for rated in TEXTS}
    for record in read(paths[key]):
        assert record["prompt"] == "Movie review:"
        assert 2 <= len(record["responses"]) <= 32
        for column, text in enumerate(record["responses"]):
            expected = [rating for slot, rating in enumerate(by_text[text]) if slot in slots]
            given = [row[column] for row in record["ratings"]]
            assert [rating for rating in given if rating is not None] == expected
            assert given[: len(expected)] == expected  # a slot keeps its row


def test_groups_are_full_but_for_the_last():
    sizes = [len(record["responses"]) for record in judged_groups(TEXTS[:70], range(10))]
    assert sizes == [32, 32, 6]
    assert [len(r["responses"]) for r in judged_groups(TEXTS[:65], range(10))] == [32, 32]


def test_a_text_that_none_of_the_slots_rated_is_left_out():
    texts = [RatedText("rated", (1, 2, 3)), RatedText("also", (0, 1, 2)), RatedText("not", (1,))]
    (record,) = judged_groups(texts, range(1, 99))
    assert record["responses"] == [" rated", " also"]
    assert record["ratings"] == [[2, 1], [3, 2]]


def test_prompts_are_the_first_five_words_of_long_texts_once():
    texts = [
        RatedText("one two three four five six seven eight", (0,)),
        RatedText("one two three four five and then another end", (0,)),
        RatedText("one two three four five six seven", (0,)),
        RatedText("a b c d e f g h i", (0,)),
    ]
    assert [record["prompt"] for record in prompts(texts)] == [
        "Movie review: one two three four five",
        "Movie review: a b c d e",
    ]


def test_held_out_prompts_are_unseen(tmp_path):
    opening = "one two three four five"
    texts = [RatedText(f"{opening} x y z{number}", (0, 0)) for number in range(300)]
    paths = write_datasets(tmp_path, seed=0, texts=texts)
    assert [record["prompt"] for record in read(paths["ppo/train"])] == [f"Movie review: {opening}"]
    assert read(paths["ppo/test"]) == read(paths["ppo/validation"]) == []


def test_seed_decides_the_order_and_nothing_else(paths, tmp_path):
    again = write_datasets(tmp_path / "same", seed=3, texts=TEXTS)
    other = write_datasets(tmp_path / "other", seed=4, texts=TEXTS)
    for key, path in paths.items():
        assert again[key].read_bytes() == path.read_bytes()
    assert other["sft/train"].read_bytes() != paths["sft/train"].read_bytes()
    assert set(texts_in(read(other["reward/train"]))) == set(texts_in(read(paths["reward/train"])))


def test_characters_stay_readable(tmp_path):
    texts = [RatedText(f"café {number} \u2028 <3", (0, 0)) for number in range(40)]
    path = write_datasets(tmp_path, seed=0, texts=texts)["sft/train"]
    assert "café" in path.read_text(encoding="utf-8")
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert {json.loads(line)["response"][1:] for line in lines} <= {t.text for t in texts}
