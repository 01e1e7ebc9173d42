"""Checkpoint files: written whole or not at all, verified by a SHA-256 that they carry.

`torch.save` writes a ZIP archive. The checksum is the archive's comment, so that it travels with
the file through copying and renaming and can never belong to another one; `torch.load` and ZIP
tools pass over it. It covers every byte before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

LAST_NAME = "last"  # Lightning's name for the newest state of a run
_MARK = b"lit_rlhf sha256 "
_COMMENT_SIZE = len(_MARK) + 64
_UNSIGNED_END = (b"PK\x05\x06", 22)  # how the last record of an archive without comment begins
_BLOCK_SIZE = 1 << 20


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; what stood under the name stays whole until this one is.

    File and folder are synced, so that it outlives a power cut. An older file whose name begins
    with `last` is kept as `previous_of(path)`.

    Args:
        checkpoint: plain types and tensors.
        path: a local file; its folder is made.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; nothing has changed then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _save_signed(checkpoint, file)
        if path.name.startswith(LAST_NAME):
            _keep_previous(path)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def link_checkpoint(source: Path, path: Path) -> None:
    """Give a checkpoint that was just written a second name, without writing it again.

    Raises:
        OSError: the file system has no hard links.
    """
    if path.exists() and path.samefile(source):
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    os.link(source, partial)
    _keep_previous(path)
    os.replace(partial, path)
    sync(path.parent)


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_fault(path: Path) -> str | None:
    """Read a file through and say what is wrong with it, or None.

    A checkpoint that somebody else's `torch.save` wrote is verified by the CRC-32 of its records.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _fault(file, path.stat().st_size)


class _HashingStream:
    """A file that `torch.save` writes to; it keeps the digest of what passed and the first error.

    Attributes:
        digest: of all bytes so far.
        error: of the file; torch reports it without the reason.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            num_bytes = self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise
        self.digest.update(content)
        return num_bytes

    def flush(self) -> None:
        self._file.flush()


def _save_signed(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    stream = _HashingStream(file)
    try:
        torch.save(checkpoint, cast("IO[bytes]", stream))
    except Exception as error:
        if stream.error is not None:
            raise stream.error from error
        raise
    # The last two bytes are the length of the archive's comment, which was none.
    file.seek(-2, os.SEEK_END)
    file.write(_signature(stream.digest.hexdigest()))
    file.flush()
    os.fsync(file.fileno())


def _signature(digest: str) -> bytes:
    return _COMMENT_SIZE.to_bytes(2, "little") + _MARK + digest.encode()


def _fault(file: BinaryIO, size: int) -> str | None:
    """Say what is wrong with a checkpoint, or None."""
    signature = _tail(file, size)
    if signature is None:
        return _fault_of_unsigned(file, size)
    digest = hashlib.sha256()
    file.seek(0)
    num_left = size - len(signature)
    while num_left:
        block = file.read(min(_BLOCK_SIZE, num_left))
        if not block:
            return "ends before its own length"
        digest.update(block)
        num_left -= len(block)
    digest.update(b"\0\0")  # where the comment's length stands now
    if _signature(digest.hexdigest()) != signature:
        return "altered: its content does not match its SHA-256"
    return None


def _tail(file: BinaryIO, size: int) -> bytes | None:
    """Return the length and text of the archive's comment, if it is one of ours."""
    file.seek(max(0, size - _COMMENT_SIZE - 2))
    tail = file.read()
    begins = _COMMENT_SIZE.to_bytes(2, "little") + _MARK
    return tail if len(tail) == _COMMENT_SIZE + 2 and tail.startswith(begins) else None


def _fault_of_unsigned(file: BinaryIO, size: int) -> str | None:
    mark, length = _UNSIGNED_END
    file.seek(max(0, size - length))
    end = file.read()
    if not (end.startswith(mark) and end.endswith(b"\0\0")):
        return f"torn, or no checkpoint: its {size} bytes do not end as one does"
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        return f"torn, or no checkpoint: {error}"
    return None if damaged is None else f"altered: its record {damaged} does not match its CRC-32"


def _keep_previous(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if _tail(file, path.stat().st_size) is None:
                return  # torn: what is kept is better
    except FileNotFoundError:
        return
    previous = previous_of(path)
    spare = previous.with_name(f"{previous.name}.partial")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # no hard links here: for a moment there is only the previous one
        os.replace(path, previous)
        return
    os.replace(spare, previous)
    spare.unlink(missing_ok=True)  # it stays where both names were one file already
