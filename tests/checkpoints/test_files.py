"""Whole or not at all, and whatever else stands there is found out."""

import os
import random
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from lit_rlhf import checkpoints
from lit_rlhf.checkpoints import (
    link_checkpoint,
    previous_of,
    read_verified,
    verify_checkpoint,
    write_checkpoint,
)
from lit_rlhf.errors import CheckpointError

CONTENT = {"step": 7, "weights": torch.arange(3000, dtype=torch.float32), "names": ["a", "b"]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(CONTENT, path)
    return path


@pytest.mark.parametrize("options", [{}, {"mmap": True, "map_location": "cpu"}])
def test_what_is_written_is_read(path, options):
    content = read_verified(path, **options)
    assert content["step"] == 7
    assert content["names"] == ["a", "b"]
    assert torch.equal(content["weights"], CONTENT["weights"])


def test_other_tools_read_it_as_ever(path):
    assert torch.load(path, weights_only=True, mmap=True)["step"] == 7
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_the_checksum_survives_copying_and_renaming(path, tmp_path):
    copy = tmp_path / "elsewhere" / "best.ckpt"
    copy.parent.mkdir()
    shutil.copyfile(path, copy)
    verify_checkpoint(copy)


def test_each_altered_byte_is_found_out(path):
    whole = path.read_bytes()
    random_choice = random.Random(0)
    ends = [*range(40), *range(len(whole) - 120, len(whole))]
    for position in [*ends, *random_choice.sample(range(len(whole)), 200)]:
        altered = bytearray(whole)
        altered[position] ^= 1 << random_choice.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: (altered|torn)"):
            verify_checkpoint(path)


def test_each_torn_file_is_found_out(path):
    whole = path.read_bytes()
    lengths = [0, 1, 21, 22, 100, *range(len(whole) - 110, len(whole))]
    for length in [*lengths, *random.Random(0).sample(range(len(whole)), 100)]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"last\.ckpt: torn, or no checkpoint"):
            verify_checkpoint(path)


def test_zeros_in_place_of_the_end_are_found_out(path):
    """What a power cut leaves of a file whose length reached the disk before its content."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-4096] + bytes(4096))
    with pytest.raises(CheckpointError, match="torn"):
        verify_checkpoint(path)


def test_a_checkpoint_of_somebody_else_is_verified_by_its_records(tmp_path):
    path = tmp_path / "theirs.ckpt"
    torch.save(CONTENT, path)
    assert read_verified(path)["step"] == 7
    altered = bytearray(path.read_bytes())
    altered[altered.index(CONTENT["weights"].numpy().tobytes()) + 50] ^= 1
    path.write_bytes(altered)
    with pytest.raises(CheckpointError, match=r"altered: its record .*data.* CRC-32"):
        verify_checkpoint(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.ckpt: cannot be read: No such file"):
        verify_checkpoint(tmp_path / "no.ckpt")


def test_the_one_before_is_kept(path):
    for step in (8, 9):
        write_checkpoint({"step": step}, path)
    assert read_verified(path)["step"] == 9
    assert read_verified(previous_of(path))["step"] == 8
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "last-previous.ckpt",
        "last.ckpt",
    ]


def test_a_torn_one_does_not_take_the_place_of_the_one_before(path):
    write_checkpoint({"step": 8}, path)
    path.write_bytes(path.read_bytes()[:-10])
    write_checkpoint({"step": 9}, path)
    assert read_verified(previous_of(path))["step"] == 7


def test_only_the_names_of_resuming_are_kept_twice(tmp_path):
    for step in (1, 2):
        write_checkpoint({"step": step}, tmp_path / "policy.ckpt")
    assert [one.name for one in tmp_path.iterdir()] == ["policy.ckpt"]


def test_without_hard_links_the_one_before_is_kept_as_well(path, monkeypatch):
    def refuse(*names):
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", refuse)
    write_checkpoint({"step": 8}, path)
    assert [read_verified(one)["step"] for one in (path, previous_of(path))] == [8, 7]


def test_a_second_name_costs_no_second_file(path, tmp_path):
    write_checkpoint({"step": 8}, tmp_path / "policy.ckpt")
    link_checkpoint(tmp_path / "policy.ckpt", path)
    assert os.path.samefile(path, tmp_path / "policy.ckpt")
    assert read_verified(previous_of(path))["step"] == 7
    link_checkpoint(tmp_path / "policy.ckpt", path)  # once more: nothing is left lying about
    write_checkpoint({"step": 9}, tmp_path / "policy.ckpt")
    assert read_verified(path)["step"] == 8
    names = {"last.ckpt", "last-previous.ckpt", "policy.ckpt"}
    assert {one.name for one in tmp_path.iterdir()} == names


def test_a_write_that_fails_says_why_and_changes_nothing(path, monkeypatch):
    class Full:
        def __init__(self, file):
            self._file, self._num_left = file, 2000

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self._file.close()

        def write(self, content):
            self._num_left -= len(content)
            if self._num_left < 0:
                raise OSError(28, "No space left on device")
            return self._file.write(content)

    opened = type(path).open
    monkeypatch.setattr(type(path), "open", lambda self, mode: Full(opened(self, mode)))
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(CONTENT | {"step": 8}, path)
    monkeypatch.undo()
    assert read_verified(path)["step"] == 7
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_file_and_folder_are_synced_around_the_rename(path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle):
        is_folder = os.path.isdir(f"/proc/self/fd/{handle}")
        events.append("folder" if is_folder else "file")
        sync(handle)

    def note_replace(source, target):
        events.append(f"rename {os.path.basename(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_checkpoint(CONTENT, path)
    assert events == ["file", "rename last-previous.ckpt", "rename last.ckpt", "folder"]


def test_a_whole_file_is_read_through_once(path, monkeypatch):
    verify_checkpoint(path)
    monkeypatch.setattr(checkpoints.verifying, "file_fault", lambda *_: pytest.fail("read again"))
    verify_checkpoint(path)


class Malice:
    """Would write a file as soon as it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.parametrize("signed", [True, False])
def test_pickled_code_is_named_and_not_run(tmp_path, signed):
    path, harm = tmp_path / "last.ckpt", tmp_path / "harm"
    content = {"callbacks": Malice(str(harm))}
    write_checkpoint(content, path) if signed else torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"object (_?io|builtins)\.open is pickled in it"):
        read_verified(path)
    assert not harm.exists()


def test_nothing_in_the_package_loads_otherwise():
    """`torch.load` stands where it is restricted to plain types, and pickle nowhere."""
    loads = re.compile(r"(?<!safetensors\.)torch\.load\(|pickle\.load|joblib|allow_pickle=True")
    sources = list(Path(checkpoints.__file__).parents[1].rglob("*.py"))
    assert len(sources) > 90
    lines = [line for source in sources for line in source.read_text().splitlines()]
    found = [line.strip() for line in lines if loads.search(line)]
    assert len(found) == 3  # a file; a folder's shards put together, and what stands beside them
    assert all("weights_only=True" in line for line in found), found
