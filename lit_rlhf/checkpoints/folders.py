"""Sharded checkpoints: a folder to which every process writes its part.

`checksums.json` in it has the SHA-256 of each file and is written last. A folder without it, or
without one of the files that it names, is torn. It is read whole, as if it were one file, so that
any strategy, number of processes and later phase can go on from it.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from lit_rlhf.cache import digest_file
from lit_rlhf.checkpoints.files import LAST_NAME, previous_of, sync
from lit_rlhf.errors import CheckpointError

_CHECKSUMS = "checksums.json"
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


def partial_of(path: Path) -> Path:
    """Return where a folder is written before it takes its place."""
    return path.with_name(f"{path.name}.partial")


def seal_folder(partial: Path, path: Path) -> None:
    """Sign a folder that is written whole, bring it to the disk, and give it its name.

    An older folder is moved away first: `previous_of(path)` keeps it where the name begins with
    `last`. A kill in between leaves that one.

    Args:
        partial: the folder, from `partial_of`.
        path: its name from now on.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    checksums = {}
    for file in sorted(partial.iterdir()):
        checksums[file.name] = digest_file(file)
        sync(file)
    (partial / _CHECKSUMS).write_text(json.dumps(checksums, indent=2))
    sync(partial / _CHECKSUMS)
    sync(partial)
    previous = previous_of(path)
    if path.is_dir():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(path, previous)
    os.replace(partial, path)
    sync(path.parent)
    if not path.name.startswith(LAST_NAME):
        shutil.rmtree(previous, ignore_errors=True)


def folder_fault(path: Path) -> str | None:
    """Read a folder through and say what is wrong with it, or None.

    Raises:
        OSError: a file cannot be read.
    """
    if not (path / _CHECKSUMS).is_file():
        return f"torn: the folder has no {_CHECKSUMS}, which is written last"
    try:
        checksums: dict[str, str] = json.loads((path / _CHECKSUMS).read_text())
    except ValueError:
        return f"torn: its {_CHECKSUMS} is not whole"
    for name, digest in checksums.items():
        if name != Path(name).name or not (path / name).is_file():
            return f"torn: its file {name} is missing"
        if digest_file(path / name) != digest:
            return f"altered: its file {name} does not match its SHA-256"
    return None


def read_folder(path: Path, *, with_shards: bool = True) -> dict[str, Any]:
    """Put a folder's shards together to what one ordinary file of the same run would hold.

    No code of it is run. The shards are written to the disk once more meanwhile: room for them is
    needed in the folder of temporary files.

    Args:
        path: a folder that is whole, see `folder_fault`.
        with_shards: False leaves out the weights and optimizer states.

    Raises:
        CheckpointError: its index names code, or cannot be read.
    """
    checkpoint: dict[str, Any] = torch.load(path / _META, map_location="cpu", weights_only=True)
    if not with_shards:
        return checkpoint
    refuse_pickled_code(path)
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


def refuse_pickled_code(path: Path) -> None:
    """See that torch's index of a sharded checkpoint, which it unpickles, names no code.

    Raises:
        CheckpointError: it does, or cannot be read.
    """
    try:
        with (path / _INDEX).open("rb") as file:
            _IndexUnpickler(file).load()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path / _INDEX}: not a readable index ({error})") from error


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of torch's index, and no others."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - a class
        is_data_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        is_of_index = module in _INDEX_MODULES and "." not in name and name[:1].isupper()
        is_record = (module, name) == (_INDEX_MODULES[1], "_StorageInfo")
        is_known = (module, name) in _INDEX_CLASSES or name == "_MEM_FORMAT_ENCODING"
        if is_data_type or is_of_index or is_record or is_known:
            return super().find_class(module, name)
        raise CheckpointError(
            f"sharded checkpoint: {module}.{name} is pickled in its index, which could run code"
        )
