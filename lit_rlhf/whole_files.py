"""Files and folders that are there whole or not at all, after a kill or a power cut as well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a free path to write a file or a folder to, which then takes the place of `path`.

    What was there before stays as it is until then, and stays where anything fails.

    Args:
        path: its folder is made.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if _old_of(path).exists() and not path.exists():  # killed between the two renames below
        os.replace(_old_of(path), path)
    partial = partial_of(path)
    remove(partial)
    try:
        yield partial
        put_in_place(path)
    finally:
        remove(partial)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `written_whole`."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def partial_of(path: Path) -> Path:
    """Return where a file or folder is written before it takes its place."""
    return path.with_name(f"{path.name}.partial")


def put_in_place(path: Path) -> None:
    """Give what is at `partial_of(path)` its name, once it is on the disk.

    An older folder is moved aside for a moment, and so is a file where a folder comes. A kill just
    then leaves `last.ckpt` as `last-old.ckpt`, which Lightning's `--ckpt_path last` finds as well.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    partial, old = partial_of(path), _old_of(path)
    for file in partial.rglob("*"):
        sync(file)
    sync(partial)
    is_moved = path.is_dir() or (partial.is_dir() and path.exists())
    if is_moved:
        remove(old)
        os.replace(path, old)
    os.replace(partial, path)
    if is_moved or old.is_dir():
        os.replace(old, partial)  # torn from here on, so no longer found by its name
        remove(partial)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _old_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-old{path.suffix}")
