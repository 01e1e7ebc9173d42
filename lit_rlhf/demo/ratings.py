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
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_rlhf.errors import DataError

Split = Literal["train", "judge", "validation", "test"]

STUDY_IN_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
LOWEST_RATING, HIGHEST_RATING = -4, 4

# Cumulative shares of the splits; what is left is `test`.
SPLIT_ENDS: tuple[tuple[Split, float], ...] = (
    ("train", 0.66),
    ("judge", 0.84),
    ("validation", 0.89),
)

# The raters whom the training reward model learns from; the other one ("judge")
# learns from all others, so that no rating stands behind both.
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

    Args:
        archive: `vaderSentiment-3.3.2.tar.gz`, as `lit_rlhf.demo.fetching` keeps it.

    Returns:
        The texts in the study's order, each text once.

    Raises:
        DataError: the archive is not the study, or a line of it is not as described.
    """
    texts, ratings = _read_members(archive)
    return parse_ratings(texts, ratings, where=str(archive))


def parse_ratings(texts: str, ratings: str, *, where: str) -> list[RatedText]:
    """Join the two tables of a domain by the id in their first column.

    Args:
        texts: lines of `id, mean, text`, separated by tabs.
        ratings: lines of `id, mean, standard deviation, [ratings]`, in any order.
        where: named in errors.

    Returns:
        The texts in the order of `texts`; of texts that are equal when cleaned only the first.

    Raises:
        DataError: a line has other columns, a text has no ratings, a rating is out of range.
    """
    by_id = {
        row[0]: _parse_rating_list(row[3], f"{where}, ratings line {number}")
        for number, row in _rows(ratings, num_columns=4, where=f"{where}, ratings")
    }
    first: dict[str, RatedText] = {}
    for number, (row_id, _, text) in _rows(texts, num_columns=3, where=f"{where}, texts"):
        if row_id not in by_id:
            raise DataError(f"{where}, texts line {number}: id {row_id} has no line of ratings")
        rated = RatedText(clean_text(text), by_id[row_id])
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
    both are kept, but they must not stand in two splits.

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


def _read_members(archive: Path) -> tuple[str, str]:
    try:
        with tarfile.open(archive) as package:
            study = _read_member(package, STUDY_IN_ARCHIVE)
        with tarfile.open(fileobj=io.BytesIO(study)) as tables:
            texts, ratings = (
                # utf-8-sig: some of the tables start with a byte-order mark, some do not.
                _read_member(tables, f"hutto_ICWSM_2014/movieReviewSnippets_{table}.txt").decode(
                    "utf-8-sig"
                )
                for table in ("GroundTruth", "anonDataRatings")
            )
    except (OSError, tarfile.TarError, KeyError, UnicodeDecodeError) as error:
        raise DataError(
            f"{archive}: not the archive of the VADER study that was expected ({error}); "
            "delete it, so that it is fetched anew"
        ) from error
    return texts, ratings


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise KeyError(f"{name} is not a file")
    with member:
        return member.read()


def _rows(table: str, *, num_columns: int, where: str) -> Iterator[tuple[int, list[str]]]:
    # Not splitlines(): it would also cut a text at a stray Unicode line separator.
    for number, line in enumerate(table.split("\n"), start=1):
        row = line.rstrip("\r").split("\t")
        if row == [""]:
            continue
        if len(row) != num_columns:
            raise DataError(
                f"{where} line {number}: {len(row)} columns separated by tabs, "
                f"expected {num_columns}"
            )
        yield number, row


def _parse_rating_list(text: str, where: str) -> tuple[int, ...]:
    try:
        ratings = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: {text[:60]!r} is not a list of numbers") from error
    valid = isinstance(ratings, list) and all(
        isinstance(rating, int) and LOWEST_RATING <= rating <= HIGHEST_RATING for rating in ratings
    )
    if not valid or not ratings:
        raise DataError(f"{where}: {text[:60]!r}: expected whole numbers from -4 to 4")
    return tuple(ratings)
