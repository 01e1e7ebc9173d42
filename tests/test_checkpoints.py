"""Whole or not at all, and whatever else stands there is found out."""

import random
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_rlhf import checkpoints
from lit_rlhf.checkpoints import kinds_in, read_verified, unreadable_object, write_checkpoint
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


def test_no_altered_byte_is_read(path):
    """It is refused; or it lies between the records, and what is read is what was written."""
    whole = path.read_bytes()
    random_choice = random.Random(0)
    ends = [*range(40), *range(len(whole) - 120, len(whole))]
    num_refused = 0
    for position in [*ends, *random_choice.sample(range(len(whole)), 400)]:
        altered = bytearray(whole)
        altered[position] ^= 1 << random_choice.randrange(8)
        path.write_bytes(altered)
        try:
            content = read_verified(path)
        except CheckpointError:
            num_refused += 1
        else:
            assert (content["step"], content["names"]) == (7, ["a", "b"])
            assert torch.equal(content["weights"], CONTENT["weights"])
    assert num_refused > 400


def test_each_torn_file_is_found_out(path):
    whole = path.read_bytes()
    lengths = [0, 1, 21, 22, 100, *range(len(whole) - 110, len(whole))]
    for length in [*lengths, *random.Random(0).sample(range(len(whole)), 100)]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"last\.ckpt: torn, or no checkpoint"):
            read_verified(path)


def test_zeros_in_place_of_the_end_are_found_out(path):
    """What a power cut leaves of a file whose length reached the disk before its content."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-4096] + bytes(4096))
    with pytest.raises(CheckpointError, match="torn"):
        read_verified(path)


def test_an_altered_weight_is_named_by_its_record(path):
    altered = bytearray(path.read_bytes())
    altered[altered.index(CONTENT["weights"].numpy().tobytes()) + 50] ^= 1
    path.write_bytes(altered)
    with pytest.raises(CheckpointError, match=r"altered: its record .*data.* CRC-32"):
        read_verified(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.ckpt: cannot be read: No such file"):
        read_verified(tmp_path / "no.ckpt")


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


class Malice:
    """Would write a file as soon as it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_pickled_code_is_named_and_not_run(tmp_path):
    path, harm = tmp_path / "last.ckpt", tmp_path / "harm"
    write_checkpoint({"callbacks": Malice(str(harm))}, path)
    with pytest.raises(CheckpointError, match=r"object (_?io|builtins)\.open is pickled in it"):
        read_verified(path)
    assert not harm.exists()


def test_numbers_and_arrays_of_numpy_come_back(tmp_path):
    state = {"mean": np.float64(1.5), "n": np.int32(3), "seen": np.arange(3.0), "is_on": np.True_}
    state |= {"words": np.array(["a", "b"]), "half": np.zeros(2, np.float16)}
    assert unreadable_object({"callbacks": state}) is None
    write_checkpoint({"callbacks": state}, tmp_path / "last.ckpt")
    found = read_verified(tmp_path / "last.ckpt")["callbacks"]
    for name, value in state.items():
        assert type(found[name]) is type(value)
        assert np.array_equal(found[name], value)


def test_objects_of_classes_are_named(tmp_path):
    assert unreadable_object({"callbacks": {"Own": {"path": tmp_path}}}) == (
        "the object pathlib.PosixPath"
    )


def test_kinds_are_found_wherever_they_are():
    def is_new(one):
        return not kinds_in(one) <= kinds_in([{"a": [torch.zeros(1)]}, (np.zeros(1), {1})])

    assert not is_new({"b": [(torch.ones(2, 3), np.ones(4))], 1: {"c": None}})
    with_attribute = OrderedDict(a=1)
    with_attribute.hidden = Path()
    around = []
    around.append(around)
    for holder in ([Path()], (Path(),), {Path()}, {"a": Path()}, {Path(): 1}):
        assert is_new([holder, around])
    for one in (with_attribute, np.zeros(1, dtype=object), np.float32(1), torch.relu, Path, 1j):
        assert is_new([one]), one
    assert kinds_in([Path]) != kinds_in([OrderedDict])


def test_nothing_in_the_package_loads_otherwise():
    """`torch.load` stands where it is restricted to plain types, and pickle nowhere."""
    loads = re.compile(r"(?<!safetensors\.)torch\.load\(|pickle\.load|joblib|allow_pickle=True")
    sources = list(Path(checkpoints.__file__).parent.rglob("*.py"))
    assert len(sources) > 90
    lines = [line for source in sources for line in source.read_text().splitlines()]
    found = [line.strip() for line in lines if loads.search(line)]
    # A file, or what goes into one; a folder's shards put together, and what stands beside them.
    assert len(found) == 4
    assert all("weights_only=True" in line for line in found), found
