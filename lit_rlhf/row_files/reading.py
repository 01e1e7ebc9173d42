"""The rows of any file, each as JSON text with its place."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from lit_rlhf.errors import DataError
from lit_rlhf.row_files.csv_rows import read_csv
from lit_rlhf.row_files.json_rows import read_json
from lit_rlhf.row_files.opening import SUFFIXES, readable, split_suffix

# Fields of rows that are text, or a chat; in a CSV, no number is meant by "7" there.
TEXT_FIELDS = frozenset({
    "prompt", "response", "completion", "chosen", "rejected", "text", "messages", "system",
    "system_prompt", "instruction", "input", "output", "question", "conversations", "conversation",
})  # fmt: skip


def read_rows(path: Path, texts: Collection[str] = TEXT_FIELDS) -> Iterator[tuple[bytes, str]]:
    """Yield each row of a file as JSON text, and its place in the file: `:3` or `[2]`.

    Args:
        path: a file with one of the `SUFFIXES`, in either case, or with `.gz`, `.bz2` or `.zst`
            behind it.
        texts: columns of a CSV that are texts, whatever stands in them.

    Yields:
        At least one row. Whether JSON text is a whole object is checked by `read_object`.

    Raises:
        DataError: the file has another ending, cannot be read, or holds no rows.
    """
    suffix, compression = split_suffix(path.name)
    if suffix not in SUFFIXES or (suffix == ".parquet" and compression):
        raise DataError(
            f"{path}: a data file ends in {', '.join(SUFFIXES)}, or in one of these and .gz, .bz2 "
            "or .zst (Parquet has its own compression). Of a folder that datasets wrote, give the "
            "folder's name."
        )
    is_empty = True
    with readable(path):
        for row in _read(path, suffix, texts):
            is_empty = False
            yield row
    if is_empty:
        raise DataError(f"{path}: holds no rows.")


def _read(path: Path, suffix: str, texts: Collection[str]) -> Iterator[tuple[bytes, str]]:
    if suffix == ".parquet":
        return _read_parquet(path)
    return read_csv(path, texts) if suffix in {".csv", ".tsv"} else read_json(path)


def _read_parquet(path: Path) -> Iterator[tuple[bytes, str]]:
    import pyarrow as pa  # noqa: PLC0415 - slow to import
    import pyarrow.parquet as pq  # noqa: PLC0415

    index = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(1000):
                for row in batch.to_pylist():
                    yield json.dumps(row, default=_plain).encode(), f"[{index}]"
                    index += 1
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: cannot be read as Parquet ({reason}); write or fetch it again."
        ) from error


def _plain(value: object) -> str:
    """Return text for a value that JSON has not: bytes are UTF-8, a date is written out."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
