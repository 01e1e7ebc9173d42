"""Checkpoints are verified before they are read, and reading one runs no code from it."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.checkpoints.files import LAST_NAME, file_fault, previous_of
from lit_rlhf.checkpoints.folders import folder_fault, read_folder
from lit_rlhf.errors import CheckpointError

# Found whole, by what changes when one is written anew: each is read through once a process.
_whole: set[tuple[str, int, int, int]] = set()


def read_verified(path: Path, *, with_shards: bool = True, **options: Any) -> Any:  # noqa: ANN401 - whatever was saved
    """Verify a checkpoint and read it; code that is pickled in it is refused, never run.

    Args:
        path: a local file, or the folder of a sharded checkpoint, put together to the same.
        with_shards: False leaves a folder's weights and optimizer states where they are.
        **options: of `torch.load` for a file, such as `mmap`; a folder is read to the CPU.

    Raises:
        CheckpointError: missing, torn, altered, or with more in it than plain types and tensors.
    """
    verify_checkpoint(path)
    try:
        if path.is_dir():
            return read_folder(path, with_shards=with_shards)
        return torch.load(path, weights_only=True, **options)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the object {named[1]}" if named else "an object"
        raise CheckpointError(
            f"{path}: not a readable checkpoint: {what} is pickled in it, which could run code; "
            "only plain types and tensors are read"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error


def verify_checkpoint(path: Path) -> None:
    """Read a checkpoint through and compare its checksum; one found whole is not read again.

    Args:
        path: a file, or the folder of a sharded checkpoint.

    Raises:
        CheckpointError: missing, torn or altered; the message says which.
    """
    try:
        identity = _identity(path)
        if identity in _whole:
            return
        reason = folder_fault(path) if path.is_dir() else file_fault(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if reason is not None:
        raise CheckpointError(f"{path}: {reason}")
    _whole.add(identity)


def newest_whole(path: Path) -> tuple[Path, str | None]:
    """Return the checkpoint to resume from: the one at `path`, else the one kept before it.

    Args:
        path: a file or folder; one before it is kept where the name begins with `last`.

    Returns:
        The path, and what is wrong with the newer one if it is not that.

    Raises:
        CheckpointError: none is whole.
    """
    try:
        verify_checkpoint(path)
    except CheckpointError as error:
        previous = previous_of(path)
        if not path.name.startswith(LAST_NAME) or not previous.exists():
            raise
        try:
            verify_checkpoint(previous)
        except CheckpointError as older:
            raise CheckpointError(
                f"{error}; {older}: none to go on from. To start anew, leave --ckpt_path out"
            ) from error
        return previous, str(error)
    return path, None


def _identity(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns
