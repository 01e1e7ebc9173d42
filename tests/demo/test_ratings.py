import collections
import io
import itertools
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.demo.ratings import (
    JUDGE_SLOTS,
    STUDY_IN_ARCHIVE,
    TRAIN_SLOTS,
    RatedText,
    clean_text,
    normalised,
    read_ratings,
    split_of,
    texts_of,
)

TEXTS = "\n".join(
    [
        "1_1\t0.5\tA ''great'' film &amp; more\r",
        "1_2\t-9\tAwful  stuff\r",
        "2_1\t1\tA ''great'' film & more\r",  # the first one again
        "2_2\t1\ta great film & more\r",
    ]
)
RATINGS = "\n".join(
    [
        "2_2\t1\t0\t[1, 1]\r",
        "1_2\t-9\t0.5\t[-4, -3, 0]\r",
        "1_1\t0.5\t1.5\t[2, -1]\r",
        "2_1\t1\t0\t[4, 4, 4]\r",
    ]
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a &amp;#38; b", "a & b"),
        ("I &lt;3 it &gt; that", "I <3 it > that"),
        ("''Conan'' and 'it'", "\"Conan\" and 'it'"),
        ('say ""no""', 'say "no"'),
        (" two\u00a0 spaces ", "two spaces"),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


@given(st.text())
def test_cleaned_text_has_single_spaces(text):
    clean = clean_text(text)
    assert clean == " ".join(clean.split())


def test_case_punctuation_and_spaces_do_not_change_the_split():
    assert normalised("GREAT, film!!!") == normalised(" great film") == "great film"
    assert normalised(":)") != normalised(":(")
    assert {split_of(text) for text in ("Great film", "great  FILM!", "'great' film.")} == {
        split_of("great film")
    }


def test_splits_are_pinned():
    """A change here moves test texts into training: no figure could be compared any more."""
    begins = [split_of(f"text {number}")[:2] for number in range(24)]
    expected = "tr tr ju tr ju tr tr tr ju tr tr tr tr tr tr tr tr tr tr tr tr tr te tr"
    assert begins == expected.split()


def test_shares():
    count = collections.Counter(split_of(f"text {number}") for number in range(20_000))
    shares = {split: number / 20_000 for split, number in count.items()}
    assert shares == {
        "train": pytest.approx(0.66, abs=0.01),
        "judge": pytest.approx(0.18, abs=0.01),
        "validation": pytest.approx(0.05, abs=0.01),
        "test": pytest.approx(0.11, abs=0.01),
    }


def test_texts_of_partition_the_texts():
    texts = [RatedText(f"text {number}", (0,)) for number in range(100)]
    splits = [texts_of(texts, split) for split in ("train", "judge", "validation", "test")]
    assert sorted(itertools.chain(*splits), key=texts.index) == texts


def test_no_rater_slot_is_on_both_sides():
    assert not set(TRAIN_SLOTS) & set(JUDGE_SLOTS)


def member(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def packed(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member(archive, name, content)
    return buffer.getvalue()


def test_reads_the_archive_and_joins_its_tables_by_id(tmp_path):
    marked = "\ufeff"  # the byte-order mark
    study = packed(
        {
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": TEXTS.encode(),
            "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt": (marked + RATINGS).encode(),
        }
    )
    path = tmp_path / "study.tar.gz"
    path.write_bytes(packed({STUDY_IN_ARCHIVE: study}))
    great, awful, plain = read_ratings(path)
    assert great == RatedText('A "great" film & more', (2, -1))
    assert great.mean == 0.5
    assert awful == RatedText("Awful stuff", (-4, -3, 0))
    assert awful.mean == pytest.approx(-7 / 3)  # the file says -9
    assert plain == RatedText("a great film & more", (1, 1))
