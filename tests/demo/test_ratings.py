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
    parse_ratings,
    read_ratings,
    split_of,
    texts_of,
)
from lit_rlhf.errors import DataError

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


def test_joins_by_id_and_takes_means_from_the_list():
    great, awful, plain = parse_ratings(TEXTS, RATINGS, where="here")
    assert great == RatedText('A "great" film & more', (2, -1))
    assert great.mean == 0.5
    assert awful == RatedText("Awful stuff", (-4, -3, 0))
    assert awful.mean == pytest.approx(-7 / 3)  # the file says -9
    assert plain == RatedText("a great film & more", (1, 1))


@pytest.mark.parametrize(
    ("texts", "rated", "message"),
    [
        ("1\t0.5", "1\t0\t0\t[1]", "here, texts line 1: 2 columns"),
        ("1\t0\ta", "\n1\t0\t[1]", "here, ratings line 2: 3 columns"),
        ("1\t0\ta\n2\t0\tb", "1\t0\t0\t[1]", "texts line 2: id 2 has no line of ratings"),
        ("1\t0\ta", "1\t0\t0\t[1, 5]", "ratings line 1: .* from -4 to 4"),
        ("1\t0\ta", "1\t0\t0\t[]", "expected whole numbers"),
        ("1\t0\ta", "1\t0\t0\tnone", "is not a list of numbers"),
    ],
)
def test_a_bad_line_is_named(texts, rated, message):
    with pytest.raises(DataError, match=message):
        parse_ratings(texts, rated, where="here")


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


def test_reads_the_archive_within_the_archive(tmp_path):
    marked = "\ufeff"  # the byte-order mark
    study = packed(
        {
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": TEXTS.encode(),
            "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt": (marked + RATINGS).encode(),
        }
    )
    path = tmp_path / "study.tar.gz"
    path.write_bytes(packed({STUDY_IN_ARCHIVE: study}))
    assert read_ratings(path) == parse_ratings(TEXTS, RATINGS, where="")
    path.write_bytes(packed({STUDY_IN_ARCHIVE: packed({"another.txt": b""})}))
    with pytest.raises(DataError, match="not the archive"):
        read_ratings(path)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "study.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="delete it"):
        read_ratings(path)
