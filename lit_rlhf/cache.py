"""Results kept on disk by what they were computed from, so that nothing is computed twice.

A file's name is a digest of all that its content depends on. So an entry is never out of date:
other inputs have another name. Entries hold tensors alone; reading one executes nothing. The
folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

_DIGEST_SIZE = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder for what can be had again: `LIT_RLHF_HOME`, else `~/.cache/lit_rlhf`."""
    return Path(os.environ.get("LIT_RLHF_HOME") or Path.home() / ".cache" / "lit_rlhf").expanduser()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, as `sha256sum` gives it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def entry_path(kind: str, inputs: Mapping[str, object]) -> Path:
    """Return where an entry lies.

    Args:
        kind: the folder of such entries.
        inputs: all that the content depends on, as JSON can write it: digests of large inputs.
    """
    text = json.dumps(inputs, sort_keys=True)
    return cache_folder() / kind / f"{hashlib.sha256(text.encode()).hexdigest()}.bin"


def read_entry(path: Path) -> dict[str, Tensor] | None:
    """Read an entry.

    Returns:
        Its tensors by name; None if there is none, or what is there is not what was written
        (which is logged: it is about to be computed again).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s cannot be read, and is computed again: %s", path, error)
        return None
    digest, body = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if hashlib.sha256(body).digest() == digest:
        try:
            return safetensors.torch.load(body)
        except SafetensorError as error:
            _log.warning("%s is no entry of ours, and is computed again: %s", path, error)
            return None
    _log.warning("%s is torn or damaged, and is computed again", path)
    return None


def write_entry(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write an entry, whole or not at all; of several writers of the same one any may win.

    The file is a SHA-256, 32 bytes, and the safetensors file that it belongs to. Where the folder
    cannot be written to, this is logged, and the run goes on.

    Args:
        path: from `entry_path`.
        tensors: on the CPU, by name.
    """
    body = safetensors.torch.save(dict(tensors))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: other processes may be writing the same entry.
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem[:16]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(hashlib.sha256(body).digest())
                stream.write(body)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s could not be written, so it will be computed again: %s", path, error)
