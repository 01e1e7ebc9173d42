"""Read the human ratings of the VADER study, and split its texts.

Source: C. J. Hutto and E. Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis
of Social Media Text, ICWSM 2014 (MIT licence). Every text was rated by 15 to 99 people from -4,
very negative, to +4, very positive.

Two things of its files are not taken: the printed means (of 199 tweets they are not the mean of
the ratings listed; `RatedText.mean` is computed from the list) and later copies of a text.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "judge", "validation", "test"]

STUDY_IN_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

# Cumulative shares of the splits; what is left is `test`.
SPLIT_ENDS: tuple[tuple[Split, float], ...] = (
    ("train", 0.66),
    ("judge", 0.84),
    ("validation", 0.89),
)

# The raters whom the training reward model learns from; the other one ("judge")
# learns from all others, so that no rating is behind both.
TRAIN_SLOTS = range(10)
JUDGE_SLOTS = range(TRAIN_SLOTS.stop, 1000)  # no text has that many raters


@dataclass(frozen=True)
class RatedText:
    """A text and what people thought of it.

    Attributes:
        text: cleaned: entities resolved, quotes and white space as written by hand.
        ratings: one number a rater, -4 to 4. The position is an anonymous slot: it is not
            known whether slot 3 of two texts is the same person.
    """

    text: str
    ratings: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The mean rating."""
        return sum(self.ratings) / len(self.ratings)


def read_ratings(archive: Path) -> list[RatedText]:
    """Read the movie reviews of the study from the package file that carries it.

    What stands in it is known by its SHA-256, see `lit_rlhf.demo.fetching`, and not checked again.

    Args:
        archive: `vaderSentiment-3.3.2.tar.gz`.

    Returns:
        The texts in the study's order; of texts that are equal when cleaned only the first.
    """
    with (
        tarfile.open(archive) as package,
        tarfile.open(fileobj=package.extractfile(STUDY_IN_ARCHIVE)) as study,
    ):
        texts, ratings = (
            _rows(study, f"hutto_ICWSM_2014/movieReviewSnippets_{table}.txt")
            for table in ("GroundTruth", "anonDataRatings")
        )
    by_id = {row_id: tuple(json.loads(listed)) for row_id, _, _, listed in ratings}
    first: dict[str, RatedText] = {}
    for row_id, _, raw in texts:
        rated = RatedText(clean_text(raw), by_id[row_id])
        first.setdefault(rated.text, rated)
    return list(first.values())


def clean_text(text: str) -> str:
    """Resolve entities, turn doubled quotes into plain ones, and collapse white space.

    >>> clean_text("  ''Rock &amp;#38; roll'',  he said ")
    '"Rock & roll", he said'
    """
    while (resolved := html.unescape(text)) != text:  # `&amp;#38;` is escaped twice
        text = resolved
    text = text.replace("''", '"').replace('""', '"')
    return " ".join(text.split())


def normalised(text: str) -> str:
    """Return the words in lower case, or the text itself if there are none.

    Texts that differ in case and punctuation alone have other ratings ("GREAT!!!", "great"), so
    both are kept, but they must not be in two splits.

    >>> normalised("Eh."), normalised("!")
    ('eh', '!')
    """
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def split_of(text: str) -> Split:
    """Say where a text belongs, by a hash of its normalised form; never by its place in a file.

    The shares: `train` 66 % (policy and reward model), `judge` 18 % (the reward model that judges),
    `validation` 5 % (early stopping of both), `test` 11 % (held out, for every figure).
    """
    digest = hashlib.sha256(normalised(text).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, end in SPLIT_ENDS:
        if position < end:
            return split
    return "test"


def texts_of(texts: Iterable[RatedText], split: Split) -> list[RatedText]:
    """Return the texts of one split, in their order."""
    return [rated for rated in texts if split_of(rated.text) == split]


def _rows(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    """Return the rows of a table: an id, and columns separated by tabs."""
    member = archive.extractfile(name)
    assert member is not None  # a file, not a folder
    # Some of the tables start with a byte-order mark, some do not. Not splitlines(): it would
    # also cut a text at a stray Unicode line separator.
    lines = member.read().decode("utf-8-sig").split("\n")
    return [line.rstrip("\r").split("\t") for line in lines if line.strip()]
