"""Results kept on disk by what they were computed from, so that nothing is computed twice.

An entry's name is a digest of all that its content depends on. So it is never out of date: other
inputs have another name. An entry is a folder. Reading one executes nothing, and all of them may
be deleted between runs.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

# A folder that cannot be written to, or is full.
_UNWRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST
}  # fmt: skip

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder for what can be had again: `LIT_RLHF_HOME`, else `~/.cache/lit_rlhf`."""
    return Path(os.environ.get("LIT_RLHF_HOME") or Path.home() / ".cache" / "lit_rlhf").expanduser()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, as `sha256sum` gives it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def keep(kind: str, inputs: Mapping[str, object] | None, make: Callable[[Path], Result]) -> Result:
    """Return what `make` makes in a folder, or finds there; other processes wait until it is done.

    Where the cache cannot be written to, a temporary folder of this process takes its place.

    Args:
        kind: the folder of such results.
        inputs: all that the result depends on, as JSON can write it: digests of large inputs. None
            for a result that no other process may find.
        make: takes the result from a folder where it is, and else makes it there. A damaged folder
            is emptied, and it is called again.
    """
    if inputs is not None:
        text = json.dumps(inputs, sort_keys=True)
        path = cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()
        try:
            return _make_alone(path, make)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            _log_unwritable(cache_folder())
    name = uuid.uuid4().hex if inputs is None else path.name
    return _make_alone(_temporary_home() / kind / name, make)


def _make_alone(folder: Path, make: Callable[[Path], Result]) -> Result:
    import pyarrow as pa  # noqa: PLC0415 - only data need it

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        try:
            return make(folder)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's, not Arrow's
            _log.warning("%s is damaged, and is made again: %s", folder, error)
            shutil.rmtree(folder)
            folder.mkdir()
            return make(folder)


@functools.cache
def _temporary_home() -> Path:
    folder = tempfile.mkdtemp(prefix="lit_rlhf-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def _log_unwritable(folder: Path) -> None:
    _log.warning(
        "%s cannot be written to (%s), so a temporary folder takes its place. Set LIT_RLHF_HOME to "
        "a folder with room, and later runs need not do the same work again.",
        folder,
        sys.exception(),
    )
