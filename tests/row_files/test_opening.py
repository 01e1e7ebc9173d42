from pathlib import Path

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.row_files import find_files, is_row_file, readable


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a.jsonl", True),
        ("A.JSONL", True),
        ("a.json.GZ", True),
        ("a.csv.zst", True),
        ("data/*.parquet", True),
        ("a.gz", False),
        ("runs/sft/model", False),
        ("owner/model-v1.5", False),
    ],
)
def test_files_of_rows_are_told_by_their_ending(name, is_one):
    assert is_row_file(name) == is_one


def test_a_pattern_names_its_files_in_their_order(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "c.txt", "deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_files("~/*.jsonl") == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert [file.name for file in find_files(f"{tmp_path}/**/*.jsonl")] == [
        "a.jsonl", "b.jsonl", "d.jsonl"
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert find_files("[ab].jsonl") == [Path("a.jsonl"), Path("b.jsonl")]
    assert find_files("owner/name") == []
    with pytest.raises(DataError, match=r"^none\*\.jsonl: no file fits this pattern"):
        find_files("none*.jsonl")


def test_a_file_with_a_pattern_for_its_name_is_that_file(tmp_path):
    for name in ("a[1].jsonl", "a1.jsonl"):
        (tmp_path / name).write_text("{}")
    assert find_files(str(tmp_path / "a[1].jsonl")) == [tmp_path / "a[1].jsonl"]


def test_a_file_that_cannot_be_read_says_so():
    message = r"^x: cannot be read \(Is a directory\); check its rights"
    with pytest.raises(DataError, match=message), readable(Path("x")):
        raise IsADirectoryError(21, "Is a directory")
