"""Checkpoint files and folders: written whole or not at all, verified when read, free of code.

`torch.save` writes a ZIP archive, in which each record has a CRC-32. `torch.load` passes over it.
A sharded checkpoint is a folder to which every process writes its part. It is read whole, as if it
were one file, so that any strategy and number of processes can go on from it. It is written while
training goes on, from a copy of what is saved.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import IO, Any

import numpy as np
import torch
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult

from lit_rlhf.errors import CheckpointError
from lit_rlhf.whole_files import partial_of, put_in_place, written_whole

__all__ = ["kinds_in", "read_verified", "unreadable_object", "write_checkpoint", "write_folder"]

_INDEX = ".metadata"  # torch's, a pickle
_META = "meta.pt"  # Lightning's: all but weights and optimizer states
_OPTIMIZER = "optimizer_"  # Lightning's, followed by the optimizer's number
# Read by torch: what is stored in bytes beside the tensors is then no code, either.
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_INDEX_MODULES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
)
_INDEX_CLASSES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}

# What any checkpoint may hold, and holds most of.
_PLAIN = (bool, int, float, str, bytes, type(None))
# Numbers and arrays of numpy, which states of rewards and callbacks often hold, run no code.
_NUMPY: list[Any] = [
    np.float64().__reduce__()[0],  # functions that pickle names
    np.zeros(1).__reduce__()[0],
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"),
    codecs.encode,
]


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all: an older one stays until then.

    Args:
        checkpoint: plain types and tensors.
        path: a local file; its folder is made.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; nothing has changed then.
    """
    try:
        with written_whole(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        # Of a full disk torch says only where in its code it noticed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def write_folder(
    checkpoint: dict[str, Any], path: Path, group: distributed.ProcessGroup
) -> Future[Any]:
    """Begin to write a folder of shards; it takes its name once all of them are on the disk.

    All processes call it. What is saved is what the checkpoint holds now: it is copied into the
    host's memory before this returns.

    Args:
        checkpoint: its weights and optimizer states are taken out.
        path: where nothing is being written.
        group: by which the writing processes talk, of the gloo backend. Nobody else may use it.

    Returns:
        Done when the folder is in its place. If any process failed, its `result` raises torch's
        `CheckpointException` on all of them.
    """
    shards = {"state_dict": checkpoint.pop("state_dict")}
    for number, states in enumerate(checkpoint.pop("optimizer_states", [])):
        shards[f"{_OPTIMIZER}{number}"] = states
    meta = io.BytesIO()
    if distributed.get_rank() == 0:
        torch.save(checkpoint, meta)
    writer = _FolderWriter(path, meta.getvalue())
    future = async_save(shards, storage_writer=writer, process_group=group)
    assert isinstance(future, Future)
    return future


class _FolderWriter(FileSystemWriter):
    """Writes beside a folder's place, and puts it there in the end."""

    def __init__(self, target: Path, meta: bytes) -> None:
        super().__init__(partial_of(target))
        self._target, self._meta = target, meta

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called on rank zero, once all processes have written."""
        super().finish(metadata, results)
        (partial_of(self._target) / _META).write_bytes(self._meta)
        put_in_place(self._target)


def read_verified(path: Path, **options: Any) -> Any:  # noqa: ANN401 - whatever was saved
    """Verify a checkpoint and read it; code that is pickled in it is refused, never run.

    Args:
        path: a local file, or the folder of a sharded checkpoint, put together to the same.
        **options: of `torch.load` for a file; a folder is read to the CPU.

    Raises:
        CheckpointError: missing, torn, altered, or with more in it than plain types and tensors.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        with path.open("rb") as file:
            _verify_archive(file, path)
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(path, weights_only=True, **options)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint: {_named(error)} is pickled in it, which could run "
            "code; only plain types, tensors and arrays are read"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error


def kinds_in(content: object) -> set[object]:
    """Return the types of all objects in a checkpoint's content, by which it can be read or not.

    Classes and functions, which are stored by their names, and the types of an array's numbers are
    kinds of their own. Nothing is copied.
    """
    kinds: set[object] = set()
    seen: set[int] = set()
    left = [content]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, (type, FunctionType, BuiltinFunctionType)):
            kinds.add(one)
            continue
        numbers = one.dtype if isinstance(one, (np.ndarray, np.generic)) else None
        kinds.add((type(one), numbers))
        parts = list(getattr(one, "__dict__", {}).values())
        if isinstance(one, dict):
            parts += [*one, *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            parts += one
        left += [part for part in parts if type(part) not in _PLAIN]
    return kinds


def unreadable_object(content: object) -> str | None:
    """Return what of a checkpoint's content could not be read back, or None where all can."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    try:
        with torch.serialization.safe_globals(_NUMPY):
            torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        return _named(error)
    return None


def _named(error: pickle.UnpicklingError) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"the object {named[1]}" if named else "an object"


def _read_folder(path: Path) -> dict[str, Any]:
    """Put a folder's shards together to what one ordinary file of the same run would hold.

    No code of it is run. The shards are written to the disk once more meanwhile: room for them is
    needed in the folder of temporary files.

    Args:
        path: the folder.

    Raises:
        CheckpointError: it is torn or altered, or its index names code.
    """
    for name in (_META, _INDEX):
        if not (path / name).is_file():
            raise CheckpointError(f"{path}: torn: its file {name} is missing")
    with (path / _META).open("rb") as file:
        _verify_archive(file, path / _META)
    checkpoint: dict[str, Any] = torch.load(path / _META, map_location="cpu", weights_only=True)
    _verify_shards(path)
    with tempfile.TemporaryDirectory() as folder:
        together = Path(folder, "together")
        with _plain_types_alone():
            dcp_to_torch_save(path, together)
        shards: dict[str, Any] = torch.load(together, map_location="cpu", weights_only=True)
    checkpoint["state_dict"] = shards["state_dict"]
    numbers = sorted(int(key[len(_OPTIMIZER) :]) for key in shards if key.startswith(_OPTIMIZER))
    if numbers:
        states = [_number_states(shards[f"{_OPTIMIZER}{number}"]) for number in numbers]
        checkpoint["optimizer_states"] = states
    return checkpoint


def _verify_archive(file: IO[bytes], path: Path) -> None:
    """Read what `torch.save` wrote through and compare each record with its CRC-32.

    Raises:
        CheckpointError: it is torn or altered, or no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # whatever makes no sense in it
        raise CheckpointError(f"{path}: torn, or no checkpoint: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: altered: its record {damaged} does not match its CRC-32")


def _verify_shards(path: Path) -> None:
    """Verify each part of each shard, which is an archive of its own."""
    for part in read_index(path).storage_data.values():
        shard = path / part.relative_path
        if not shard.is_file():
            raise CheckpointError(f"{path}: torn: its file {part.relative_path} is missing")
        with shard.open("rb") as file:
            file.seek(part.offset)
            _verify_archive(io.BytesIO(file.read(part.length)), shard)


def _number_states(named: dict[str, Any]) -> dict[str, Any]:
    """Replace the names of an optimizer's parameters by numbers, counted through its groups."""
    names = [name for group in named["param_groups"] for name in group["params"]]
    number_of = {name: number for number, name in enumerate(names)}
    groups = [
        {**group, "params": [number_of[name] for name in group["params"]]}
        for group in named["param_groups"]
    ]
    return {
        "state": {number_of[name]: of for name, of in named["state"].items()},
        "param_groups": groups,
    }


@contextmanager
def _plain_types_alone() -> Iterator[None]:
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before


def read_index(path: Path) -> Any:  # noqa: ANN401 - torch's `Metadata`
    """Read torch's index of a sharded checkpoint, a pickle, unless it names code.

    Raises:
        CheckpointError: it does, or cannot be read.
    """
    try:
        with (path / _INDEX).open("rb") as file:
            return _IndexUnpickler(file).load()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path / _INDEX}: not a readable index ({error})") from error


def _member_of(kind: type, name: str) -> Any:  # noqa: ANN401 - of an enumeration
    """Stand for `getattr`, by which Python before 3.11.4 pickles a member of an enumeration.

    Raises:
        CheckpointError: it is asked of anything else.
    """
    if isinstance(kind, EnumMeta) and isinstance(name, str) and name in kind.__members__:
        return kind[name]
    raise CheckpointError(
        "sharded checkpoint: builtins.getattr is pickled in its index, which could run code"
    )


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of torch's index, and no others."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - a class
        if (module, name) == ("builtins", "getattr"):
            return _member_of
        is_data_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        is_of_index = module in _INDEX_MODULES and "." not in name and name[:1].isupper()
        is_record = (module, name) == (_INDEX_MODULES[1], "_StorageInfo")
        is_known = (module, name) in _INDEX_CLASSES or name == "_MEM_FORMAT_ENCODING"
        if is_data_type or is_of_index or is_record or is_known:
            return super().find_class(module, name)
        raise CheckpointError(
            f"sharded checkpoint: {module}.{name} is pickled in its index, which could run code"
        )
