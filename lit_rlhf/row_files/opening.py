"""Which files a name means, and their bytes, unpacked where they are compressed."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from lit_rlhf.errors import DataError

# A name with one of these endings, or of these and a compression's, is a file of rows.
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def split_suffix(name: str) -> tuple[str, str | None]:
    """Return the ending that names a file's form, in lower case, and its compression or None."""
    path = PurePath(name.lower())
    compression = _COMPRESSIONS.get(path.suffix)
    return (PurePath(path.stem).suffix if compression else path.suffix), compression


def is_row_file(name: str) -> bool:
    """Tell by its ending whether a name, or a pattern such as `data/*.jsonl`, is of such files."""
    return split_suffix(name)[0] in SUFFIXES


def find_files(name: str) -> list[Path]:
    """Return the file of this name, or all files that a pattern fits, sorted by name.

    Args:
        name: `~` is the home folder; `*`, `?`, `[...]` and `**` are patterns, unless a file or
            folder has this very name.

    Returns:
        None of them where the name is no file and no pattern.

    Raises:
        DataError: no file fits the pattern.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.exists() or not glob.has_magic(name):
        return []
    found = map(Path, glob.glob(str(path), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise DataError(f"{name}: no file fits this pattern (looked from {Path.cwd()}).")
    return files


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading its unpacked bytes."""
    compression = split_suffix(path.name)[1]
    if compression is None:
        with path.open("rb") as stream:
            yield stream
    else:
        import pyarrow as pa  # noqa: PLC0415 - slow to import, and seldom needed

        with pa.input_stream(str(path), compression=compression) as stream:
            yield io.BufferedReader(stream)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of a file that cannot be read which one it is, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a decompressor
            raise DataError(
                f"{path}: cannot be unpacked ({error}); it is torn or of another kind. Write or "
                "fetch it again."
            ) from error
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights.") from error
