import json
from datetime import date

import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.growing_rows import GrowingRows

SETTINGS = {"seed": 0, "names": ("a", "b")}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_has_its_name_once_it_is_complete(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    file = GrowingRows(path, SETTINGS)
    assert file.is_new
    file.add([{"text": "é\u2028"}], {"done": 1})
    assert not path.exists()
    file.add([{"text": "b"}], {"done": 2})
    file.finish()
    assert [row["text"] for row in (json.loads(x) for x in path.read_text().split("\n")[:-1])] == [
        "é\u2028",
        "b",
    ]
    assert sorted(path.parent.iterdir()) == [path]
    with pytest.raises(DataError, match="is there already"):
        GrowingRows(path, SETTINGS)


def test_a_part_that_was_not_told_of_is_written_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    GrowingRows(path, SETTINGS).add([{"row": 1}], {"done": 1})
    with (tmp_path / "rows.jsonl.partial").open("a") as torn:
        torn.write('{"row": 2}\n{"ro')
    again = GrowingRows(path, SETTINGS)
    assert again.facts == {"done": 1}
    again.add([{"row": 2}], {"done": 2})
    again.finish()
    assert lines(path) == [{"row": 1}, {"row": 2}]


def test_a_first_part_that_was_not_told_of_is_forgotten(tmp_path):
    (tmp_path / "rows.jsonl.partial").write_text('{"row": 0}\n')
    file = GrowingRows(tmp_path / "rows.jsonl", SETTINGS)
    file.add([{"row": 1}], {"done": 1})
    file.finish()
    assert lines(tmp_path / "rows.jsonl") == [{"row": 1}]


def test_what_json_has_not_is_written_as_text(tmp_path):
    file = GrowingRows(tmp_path / "rows.jsonl", SETTINGS)
    file.add([{"day": date(2020, 1, 2)}], {"done": 1})
    file.finish()
    assert lines(tmp_path / "rows.jsonl") == [{"day": "2020-01-02"}]


def test_other_settings_do_not_go_on(tmp_path):
    GrowingRows(tmp_path / "rows.jsonl", SETTINGS).add([{}], {"done": 1})
    with pytest.raises(
        DataError, match=r"another seed; go on with the same, or remove rows\.jsonl"
    ):
        GrowingRows(tmp_path / "rows.jsonl", SETTINGS | {"seed": 1})
    assert GrowingRows(tmp_path / "rows.jsonl", SETTINGS).facts == {"done": 1}
