import datetime
import gzip
import hashlib
import json
from pathlib import Path

import datasets
import pytest

from lit_rlhf.data.records import SourcedRecord
from lit_rlhf.data.sources import open_records, read_records
from lit_rlhf.errors import DataError

ROWS = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
DAY = datetime.date(2024, 1, 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Let Hugging Face's library prepare its tables in the test's own folder, without bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write(path, content):
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}',
        b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n',
    ],
    ids=["plain", "no last newline", "byte-order mark and CRLF"],
)
def test_jsonl(tmp_path, content):
    file = write(tmp_path / "x.jsonl", content)
    assert read_records(file) == [
        SourcedRecord({"a": 1}, f"{file}:1"),
        SourcedRecord({"a": 2}, f"{file}:2"),
    ]


def test_blank_lines_are_skipped_but_counted(tmp_path):
    file = write(tmp_path / "x.jsonl", b'\n{"a": 1}\n \r\n{"a": 2}\n\n')
    assert [row.where for row in read_records(file)] == [f"{file}:2", f"{file}:4"]


def test_line_separators_inside_a_text_end_no_line(tmp_path):
    text = "one\u2028two\x85three"
    content = json.dumps({"a": text}, ensure_ascii=False).encode() + b"\n"
    assert read_records(write(tmp_path / "x.jsonl", content))[0].record == {"a": text}


def test_json_array(tmp_path):
    file = write(tmp_path / "x.json", b' [{"a": 1},\n {"a": 2}]')
    assert [(row.record["a"], row.where) for row in read_records(file)] == [
        (1, f"{file}[0]"),
        (2, f"{file}[1]"),
    ]


def test_json_file_of_lines(tmp_path):
    file = write(tmp_path / "x.json", b'{"a": 1}\n{"a": 2}\n')
    assert [row.where for row in read_records(file)] == [f"{file}:1", f"{file}:2"]


BROKEN = {
    "broken line": ("x.jsonl", b'{"a": 1}\n{"a": \n', ":2: broken JSON at column 7"),
    "not an object": ("x.jsonl", b'{"a": 1}\n[1]\n', ":2: expected a JSON object"),
    "not an object in an array": ("x.json", b'[{"a": 1}, 2]', "[1]: expected a JSON object"),
    "broken array": ("x.json", b'[{"a": 1},\n x]', ": broken JSON at line 2"),
    "not UTF-8": ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2: is not UTF-8 text"),
    "empty": ("x.jsonl", b"\n", ": holds no rows"),
    "other format": ("x.txt", b"a,b\n", ": a data file ends in .jsonl"),
    "CSV": ("x.csv", b"a,b\n1,2\n3\n", ":3: has 1 cells"),
    "gzip": ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": \n'), ":2: broken JSON at column 7"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_names_its_line(tmp_path, case):
    name, content, message = BROKEN[case]
    file = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_records(file)
    assert str(caught.value).startswith(file + message)


def test_several_files_are_read_one_after_the_other(tmp_path):
    one = write(tmp_path / "1.jsonl", b'{"prompt": "a"}\n')
    two = write(tmp_path / "2.csv", b"prompt\nb\nc\n")
    found = [SourcedRecord({"prompt": "a"}, f"{one}:1")]
    found += [SourcedRecord({"prompt": text}, f"{two}:{n}") for text, n in (("b", 2), ("c", 3))]
    assert read_records([one, two]) == found
    assert read_records(f"{tmp_path}/[12].*") == read_records([f"{tmp_path}/*.*", one]) == found
    assert read_records([two, one])[2].where == f"{one}:1"
    assert open_records([one]).sha256 == open_records(one).sha256
    digests = {open_records(source).sha256 for source in ([one, two], [two, one], one)}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [([], "name one file"), (["a.jsonl", "owner/name"], "owner/name: there is no such file")],
)
def test_a_list_is_of_files(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", b"{}")
    with pytest.raises(DataError, match=message):
        read_records(source)


def test_a_bad_row_of_several_files_names_its_own(tmp_path):
    for name, content in (("1", b'{"a": 1}\n'), ("2", b'{"a": 1}\nno\n')):
        write(tmp_path / f"{name}.jsonl", content)
    with pytest.raises(DataError, match=r"2\.jsonl:2: broken JSON"):
        read_records(f"{tmp_path}/*.jsonl")


def test_columns_of_a_table_that_are_renamed_to_texts_stay_texts(tmp_path):
    file = write(tmp_path / "x.csv", b"q,best,weight\na,7,2\n")
    (row,) = read_records(file, columns={"prompt": "q", "response": "best"})
    assert row.record == {"prompt": "a", "response": "7", "weight": 2}


def test_home_folder(tmp_path, monkeypatch):
    write(tmp_path / "x.jsonl", b'{"a": 1}')
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_records("~/x.jsonl")[0].record == {"a": 1}


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "~/none", "none.jsonl", "a/b/c", "none.parquet", "none/"]
)
def test_a_missing_path_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match="there is no such file or folder"):
        read_records(name)


def test_a_hub_name(monkeypatch):
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: asked.append(name) or splits)
    assert read_records("owner/name", "train")[1] == SourcedRecord(ROWS[1], "owner/name#train[1]")
    assert read_records("owner/name:main#train")[0].where == "owner/name:main#train[0]"
    assert asked == [("owner/name", None), ("owner/name", "main")]


def test_a_name_that_is_neither_here_nor_on_the_hub():
    with pytest.raises(DataError, match="owner/none: this file or folder here, and as a hub name"):
        read_records("owner/none")


def test_a_saved_data_set(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    folder = str(tmp_path / "saved")
    assert read_records(folder, "validation") == [
        SourcedRecord(row, f"{folder}[{i}]") for i, row in enumerate(ROWS)
    ]
    with pytest.raises(DataError, match="without splits"):
        read_records(folder + "#train")


def test_splits_of_a_saved_data_set(tmp_path):
    data = {"train": ROWS[:1], "test": ROWS[1:]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in data.items()}
    ).save_to_disk(tmp_path / "saved")
    folder = str(tmp_path / "saved")
    assert read_records(folder, "train") == [SourcedRecord(ROWS[0], f"{folder}#train[0]")]
    assert read_records(f"{folder}#test", "train") == [SourcedRecord(ROWS[1], f"{folder}#test[0]")]
    with pytest.raises(DataError, match=r"has no split 'validation'; there are: train, test\."):
        read_records(folder, "validation")
    with pytest.raises(DataError, match="has several splits; there are: train, test"):
        read_records(folder)
    with pytest.raises(DataError, match="has no split 'none'"):
        read_records(folder + "#none")


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_folder_of_files(tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    table = datasets.Dataset.from_list(ROWS)
    getattr(table, f"to_{kind}")(folder / f"rows.{kind}")
    # A single split is taken whatever it is called: it is named "train" by the library.
    assert [row.record for row in read_records(str(folder), "validation")] == ROWS


@pytest.fixture
def configured(tmp_path):
    """A folder with two configurations, as a data set of the hub has them."""
    folder = tmp_path / "configured"
    folder.mkdir()
    names = ("one", "two")
    parts = "".join(f"- config_name: {n}\n  data_files: {n}.jsonl\n" for n in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    for name in names:
        (folder / f"{name}.jsonl").write_text(json.dumps({name: 1}) + "\n")
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_configuration_is_named_behind_a_colon(configured, streaming):
    for source in (f"{configured}:two", f"{configured}:two#train"):
        (record,) = open_records(source, "test", streaming=streaming)
        assert record == SourcedRecord({"two": 1}, f"{configured}:two#train[0]")
    for source, said in ((configured, "has several configurations"), (f"{configured}:x", "no 'x'")):
        with pytest.raises(DataError) as caught:
            open_records(source, streaming=streaming)
        assert f"{said}; there are: one, two. Name one of them" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (b'{"a": 1}', b'{"a": 1}\n{"a": \n', r"train2\.jsonl:2: broken JSON at column 7"),
        (b'{"a": 1}', b'{"b": 1, "c": 2}\n', r"could not be read as a data set: .*file by file"),
    ],
)
def test_a_bad_row_in_a_folder_is_one_line(tmp_path, one, two, message):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train1.jsonl", one)
    write(tmp_path / "folder" / "train2.jsonl", two)
    with pytest.raises(DataError, match=message) as caught:
        read_records(str(tmp_path / "folder"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="this folder could not be read as a data set"):
        read_records(str(tmp_path / "empty"))


def test_columns_rename(tmp_path):
    file = write(tmp_path / "x.jsonl", b'{"question": "q", "good": "a", "prompt": "old"}')
    (row,) = read_records(file, columns={"prompt": "question", "response": "good"})
    assert row.record == {"prompt": "q", "response": "a"}


def test_columns_can_swap(tmp_path):
    file = write(tmp_path / "x.jsonl", b'{"chosen": 1, "rejected": 2}')
    (row,) = read_records(file, columns={"chosen": "rejected", "rejected": "chosen"})
    assert row.record == {"chosen": 2, "rejected": 1}


def test_a_missing_column_names_row_and_field(tmp_path):
    file = write(tmp_path / "x.jsonl", b'{"q": 1}\n{"r": 1}')
    with pytest.raises(DataError) as caught:
        read_records(file, columns={"prompt": "q"})
    assert str(caught.value).startswith(f"{file}:2: field 'q', which 'columns' names as the prompt")


def test_a_file_may_have_a_hash_in_its_name(tmp_path):
    file = write(tmp_path / "a#b.jsonl", b'{"a": 1}')
    assert Path(read_records(file)[0].where).name == "a#b.jsonl:1"


def test_a_file_is_hashed_as_it_lies_there_and_a_data_set_by_its_columns(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert open_records(str(file)).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()

    def digest(name, rows):
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / name)
        return open_records(str(tmp_path / name)).sha256

    dated = [*ROWS, {"prompt": "c", "response": "d"}]
    assert digest("one", ROWS) == digest("other", ROWS)
    digests = [digest("two", rows) for rows in (ROWS, ROWS[::-1], dated, [{"day": DAY}])]
    assert len(set(digests)) == 4
    # How the rows are cut into pieces on the disk does not count.
    pieces = [datasets.Dataset.from_list([row]) for row in ROWS]
    datasets.concatenate_datasets(pieces).save_to_disk(tmp_path / "pieces", num_shards=2)
    assert open_records(str(tmp_path / "pieces")).sha256 == digest("one", ROWS)


def test_records_that_are_not_json_are_read_as_they_are(tmp_path):
    datasets.Dataset.from_list([{"day": DAY}]).save_to_disk(tmp_path / "saved")
    (record,) = read_records(str(tmp_path / "saved"))
    assert record.record == {"day": DAY}


@pytest.fixture
def folder(tmp_path):
    """A folder of two Parquet files, 10 records each."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for part in range(2):
        rows = [{"prompt": f"{part}", "day": DAY, "n": n} for n in range(10)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{part}.parquet")
    return str(folder)


def test_a_stream_is_what_is_read_whole(folder):
    streamed = open_records(folder, streaming=True)
    whole = open_records(folder)
    assert list(streamed) == list(whole)
    assert streamed.sha256 == whole.sha256
    assert streamed[3].record["day"] == DAY


def test_a_stream_is_read_once_and_no_further_than_needed(folder, monkeypatch):
    plain = datasets.IterableDataset.__iter__
    read = []

    def counting(self):
        for row in plain(self):
            read.append(row)
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", counting)
    assert len(open_records(folder, streaming=True, limit=3)) == 3
    assert len(read) == 3
    assert len(open_records(folder, streaming=True, limit=3)) == 3
    assert len(read) == 3
    new = {"prompt": "new", "day": DAY, "n": 1}
    datasets.Dataset.from_list([new]).to_parquet(folder + "/0.parquet")
    assert open_records(folder, streaming=True, limit=3)[0].record["prompt"] == "new"


def test_a_stream_has_splits_and_names_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="as a hub name it could not be read"):
        open_records("owner/none", streaming=True)
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"prompt": split}))
    (record,) = open_records(f"{tmp_path}#test", streaming=True)
    assert record == SourcedRecord({"prompt": "test"}, f"{tmp_path}#test[0]")
    with pytest.raises(DataError, match="has no split 'dev'; there are: train, test"):
        open_records(f"{tmp_path}#dev", streaming=True)
