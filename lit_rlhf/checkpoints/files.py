"""Checkpoint files: written whole or not at all, verified when read, free of code.

`torch.save` writes a ZIP archive, in which each record has a CRC-32. `torch.load` passes over it.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.checkpoints.folders import read_folder, verify_archive
from lit_rlhf.errors import CheckpointError
from lit_rlhf.whole_files import written_whole


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
            return read_folder(path)
        with path.open("rb") as file:
            verify_archive(file, path)
        return torch.load(path, weights_only=True, **options)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the object {named[1]}" if named else "an object"
        raise CheckpointError(
            f"{path}: not a readable checkpoint: {what} is pickled in it, which could run code; "
            "only plain types and tensors are read"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
