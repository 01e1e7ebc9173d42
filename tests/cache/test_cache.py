import json
import os
import threading

import pytest
import torch

from lit_rlhf.cache import cache_folder, entry_path, read_entry, write_entry

INPUTS = {"format": 1, "rows": "abc", "width": None}
TENSORS = {"values": torch.arange(5.0), "mask": torch.tensor([True, False])}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_RLHF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def assert_is_what_was_written(entry):
    assert entry.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(entry[name], tensor)
        assert entry[name].dtype == tensor.dtype


def test_the_folder_is_named_by_the_environment_or_lies_in_the_home_folder(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "home"
    monkeypatch.delenv("LIT_RLHF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lit_rlhf"


def test_what_is_written_is_read(home):
    path = entry_path("kind", INPUTS)
    assert path.parent == home / "kind"
    assert read_entry(path) is None
    write_entry(path, TENSORS)
    assert_is_what_was_written(read_entry(path))
    assert not list(path.parent.glob("*.partial"))


def test_any_other_input_has_another_entry():
    others = [{**INPUTS, "format": 2}, {**INPUTS, "width": 0}, {"format": 1}]
    paths = {entry_path("kind", inputs) for inputs in [INPUTS, *others]}
    paths.add(entry_path("other kind", INPUTS))
    assert len(paths) == 5
    assert entry_path("kind", json.loads(json.dumps(INPUTS))) in paths


@pytest.mark.parametrize("damage", ["cut", "empty", "one bit", "not ours"])
def test_a_damaged_entry_is_reported_and_counts_as_none(damage, caplog):
    path = entry_path("kind", INPUTS)
    write_entry(path, TENSORS)
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[content.index(TENSORS["values"].numpy().tobytes())] ^= 1
    damaged = {
        "cut": content[:-1],
        "empty": b"",
        "one bit": content,
        "not ours": b"PK" * 50,
    }
    path.write_bytes(damaged[damage])
    assert read_entry(path) is None
    assert str(path) in caplog.text
    write_entry(path, TENSORS)
    assert_is_what_was_written(read_entry(path))


def test_writers_at_the_same_time_leave_a_whole_entry():
    path = entry_path("kind", INPUTS)
    threads = [threading.Thread(target=write_entry, args=(path, TENSORS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        entry = read_entry(path)
        if entry is not None:
            assert_is_what_was_written(entry)
    assert_is_what_was_written(read_entry(path))
    assert not list(path.parent.glob("*.partial"))


def test_a_killed_writer_leaves_the_former_entry(monkeypatch):
    path = entry_path("kind", INPUTS)
    write_entry(path, TENSORS)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_entry(path, {"values": torch.zeros(1)})
    assert_is_what_was_written(read_entry(path))


def test_a_folder_that_cannot_be_written_to_does_not_end_the_run(home, caplog):
    home.write_text("a file where the folder should be")
    path = entry_path("kind", INPUTS)
    write_entry(path, TENSORS)
    assert "could not be written" in caplog.text
    assert read_entry(path) is None
