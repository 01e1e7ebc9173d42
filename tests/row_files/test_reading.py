import datetime
import json

import datasets
import pyarrow as pa
import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.row_files import read_object, read_rows

ROWS = [{"prompt": "a\u2028b", "n": 1}, {"prompt": "c", "n": None}]
PLACES = {".jsonl": [":1", ":2"], ".json": ["[0]", "[1]"], ".csv": [":2", ":3"]}


def content_of(suffix):
    if suffix == ".csv":
        return "prompt,n\na\u2028b,1\nc,\n".encode()
    if suffix == ".json":
        return json.dumps(ROWS).encode()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(path):
    return [(read_object(text, f"{path}{place}"), place) for text, place in read_rows(path)]


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".zst", ".GZ"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".JSONL"])
def test_every_form_gives_the_same_rows_and_their_places(tmp_path, suffix, packed):
    path = tmp_path / f"rows{suffix}{packed}"
    kind = {"": None, ".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[packed.lower()]
    with pa.output_stream(str(path), compression=kind) as stream:
        stream.write(content_of(suffix.lower()))
    assert read(path) == list(zip(ROWS, PLACES[suffix.lower()], strict=True))


def test_parquet_gives_texts_for_bytes_and_dates(tmp_path):
    rows = [
        {"prompt": b"p", "turns": [{"role": "user", "content": "x"}], "n": None},
        {"prompt": b"q", "turns": None, "n": 2},
    ]
    for row in rows:
        row["day"] = datetime.date(2024, 1, 2)
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    (first, _), (second, place) = read(path)
    assert first == {"prompt": "p", "turns": rows[0]["turns"], "n": None, "day": "2024-01-02"}
    assert (second["prompt"], second["n"], place) == ("q", 2, "[1]")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"\n \n", "holds no rows"),
        ("x.json", b"[]", "holds no rows"),
        ("x.csv", b"prompt\n", "holds no rows"),
        ("x.csv", b"", "holds no rows"),
        ("x.jsonl.gz", b"hello", "cannot be unpacked"),
        ("x.jsonl.zst", b"hello", "cannot be unpacked"),
        ("x.parquet", b"hello", "cannot be read as Parquet"),
        ("x.parquet.gz", b"hello", "Parquet has its own compression"),
        ("x.xlsx", b"hello", "a data file ends in .jsonl"),
        ("x.arrow", b"hello", "give the folder's name"),
    ],
)
def test_a_file_of_no_rows_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_torn_file_is_refused_not_cut(tmp_path, kind):
    path = tmp_path / f"x.jsonl.{'gz' if kind == 'gzip' else 'zst'}"
    with pa.output_stream(str(path), compression=kind) as stream:
        stream.write(content_of(".jsonl") * 1000)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read(path)
