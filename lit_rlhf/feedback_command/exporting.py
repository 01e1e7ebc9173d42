"""Rows of a store as files: JSON lines, Parquet, or a folder that `load_dataset` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.splits import SPLITS
from lit_rlhf.whole_files import written_whole

Row = dict[str, object]
# Opens the rows of a split, or of all; Parquet reads them twice.
Rows = Callable[[str | None], Iterable[Row]]
_BATCH = 1_000


def write_export(path: Path, rows: Rows, split: str | None) -> int:
    """Write the rows of a store, and return how many there are.

    Args:
        path: JSON lines by its ending `.jsonl` or `.json`, Parquet by `.parquet`; a name without an
            ending is a new folder with one Parquet file a split.
        rows: of a split.
        split: None for all.

    Raises:
        DataError: the path has another ending or is there as a folder, or rows of different types
            do not fit one column.
    """
    if path.suffix in (".jsonl", ".json"):
        return _write_lines(path, rows(split))
    if path.suffix == ".parquet":
        return _write_parquet(path, lambda: rows(split))
    if path.suffix:
        raise DataError(f"{path}: name a file that ends in .jsonl or .parquet, or a folder.")
    if path.exists():
        raise DataError(f"{path}: is there already; name a folder that is not.")
    path.mkdir(parents=True)
    splits = SPLITS if split is None else [split]
    return sum(_write_split(path / f"{name}.parquet", rows, name) for name in splits)


def _write_split(path: Path, rows: Rows, split: str) -> int:
    return _write_parquet(path, lambda: rows(split)) if any(True for _ in rows(split)) else 0


def _write_lines(path: Path, rows: Iterable[Row]) -> int:
    number = 0
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row) + "\n")
            number += 1
    return number


def _write_parquet(path: Path, rows: Callable[[], Iterable[Row]]) -> int:
    """Write rows as Parquet: once they are read for the types of their columns, then to write."""
    import pyarrow as pa  # noqa: PLC0415 - slow to import
    import pyarrow.parquet as pq  # noqa: PLC0415

    number = 0
    try:
        schema = pa.schema([])
        for table in _tables(rows()):
            schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
        with written_whole(path) as partial, pq.ParquetWriter(partial, schema) as writer:
            for table in _tables(rows(), schema):
                writer.write_table(table)
                number += len(table)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: Parquet cannot hold these rows ({reason}): a column has one type, not texts "
            "beside chats, and whole characters. Export them as .jsonl."
        ) from error
    return number


def _tables(rows: Iterable[Row], schema: Any = None) -> Iterator[Any]:  # noqa: ANN401 - pyarrow's
    import pyarrow as pa  # noqa: PLC0415

    stream = iter(rows)
    while batch := [_plain(row) for row in islice(stream, _BATCH)]:
        yield pa.Table.from_pylist(batch, schema)


def _plain(row: Row) -> Row:
    """Return a row whose objects of any shape are JSON text, as a column has one type."""
    if metadata := row.get("metadata"):
        row = {**row, "metadata": json.dumps(metadata)}
    judgments = row.get("judgments")
    if isinstance(judgments, list):
        said = [{**one, "client": json.dumps(one["client"])} if "client" in one else one
                for one in judgments]  # fmt: skip
        row = {**row, "judgments": said}
    return row
