"""Write the demonstration's data files: what a user would bring, made from the movie ratings.

    sft/{train,validation,test}.jsonl      demonstrations
    reward/{train,validation,test}.jsonl   judged groups for the training reward model
    judge/{train,validation,test}.jsonl    judged groups for the reward model that judges
    ppo/{train,validation,test}.jsonl      prompts: the first words of unseen texts

Who learns from what: policy and reward model from the `train` texts, the reward model from the
first ten raters; the judge from the `judge` texts and the other raters. `validation` serves early
stopping, with each one's own raters. `test` is seen by nobody; there all raters count.

Prompt and response are joined as they are (`"Movie review:" + " A fine film."`), so the
response brings the space.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.demo.fetching import RATINGS_ARCHIVE, fetch
from lit_rlhf.demo.ratings import (
    JUDGE_SLOTS,
    TRAIN_SLOTS,
    RatedText,
    Split,
    read_ratings,
    texts_of,
)

INSTRUCTION = "Movie review:"
GROUP_SIZE = 32
NUM_PROMPT_WORDS = 5
MIN_WORDS_FOR_PROMPT = 8

Record = dict[str, Any]  # Any: JSON values of several types

TASKS = ("sft", "reward", "judge", "ppo")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def write_datasets(
    folder: Path, seed: int, *, texts: Sequence[RatedText] | None = None
) -> dict[str, Path]:
    """Write all data files of the demonstration.

    Args:
        folder: where; made when missing, files in it are replaced.
        seed: of the order of the lines and of who shares a judged group.
        texts: the rated texts; default: the study's movie reviews, fetched when not cached.

    Returns:
        The files by name, such as `"reward/train"`.
    """
    if texts is None:
        texts = read_ratings(fetch(RATINGS_ARCHIVE))
    paths = {}
    train_prompts = {record["prompt"] for record in prompts(texts_of(texts, "train"))}
    for task, name in itertools.product(TASKS, SPLITS):
        key = f"{task}/{name}"
        shuffled = texts_of(texts, "judge" if key == "judge/train" else name)
        # A stream of its own for every file: one more line here changes no other file.
        random.Random(f"{seed}/{key}").shuffle(shuffled)
        records = _records(task, name, shuffled)
        if task == "ppo" and name != "train":  # "This is one of the" opens many a review
            records = (record for record in records if record["prompt"] not in train_prompts)
        paths[key] = _write_lines(folder / f"{key}.jsonl", records)
    return paths


def demonstrations(texts: Iterable[RatedText]) -> Iterator[Record]:
    """Yield each text as a response to the instruction."""
    for rated in texts:
        yield {"prompt": INSTRUCTION, "response": f" {rated.text}"}


def judged_groups(texts: Sequence[RatedText], slots: range | None) -> Iterator[Record]:
    """Yield groups of `GROUP_SIZE` texts with one list of ratings a rater slot.

    Args:
        texts: in the order in which they are grouped; a last group may be smaller, and one
            text that is left alone is left out, as it cannot be compared.
        slots: the rater slots to use; None: all. A slot that did not rate a text is null there;
            a text that none of the slots rated is left out.
    """
    if slots is not None:
        texts = [rated for rated in texts if len(rated.ratings) > slots.start]
    for start in range(0, len(texts), GROUP_SIZE):
        group = texts[start : start + GROUP_SIZE]
        if len(group) < 2:
            continue
        num_slots = max(len(rated.ratings) for rated in group)
        used = [slot for slot in slots or range(num_slots) if slot < num_slots]
        yield {
            "prompt": INSTRUCTION,
            "responses": [f" {rated.text}" for rated in group],
            "ratings": [[_rating(rated, slot) for rated in group] for slot in used],
        }


def prompts(texts: Iterable[RatedText]) -> Iterator[Record]:
    """Yield the beginnings of the texts that are long enough, each beginning once."""
    seen = set()
    for rated in texts:
        words = rated.text.split()
        prompt = " ".join([INSTRUCTION, *words[:NUM_PROMPT_WORDS]])
        if len(words) >= MIN_WORDS_FOR_PROMPT and prompt not in seen:
            seen.add(prompt)
            yield {"prompt": prompt}


def _records(task: str, name: str, texts: Sequence[RatedText]) -> Iterator[Record]:
    if task == "sft":
        return demonstrations(texts)
    if task == "ppo":
        return prompts(texts)
    if name == "test":
        return judged_groups(texts, None)
    return judged_groups(texts, TRAIN_SLOTS if task == "reward" else JUDGE_SLOTS)


def _rating(rated: RatedText, slot: int) -> int | None:
    return rated.ratings[slot] if slot < len(rated.ratings) else None


def _write_lines(path: Path, records: Iterable[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path
