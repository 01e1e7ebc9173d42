"""`lit-rlhf feedback import`, `export` and `backup`: files into a store, and out of it.

A file that is written is JSON lines, Parquet, or a folder that `load_dataset` reads.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.database import parse_url
from lit_rlhf.feedback.exchange import full_row, trl_rows
from lit_rlhf.feedback.formats import check_format
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.feedback.splits import SPLITS
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.feedback.task_files import read_tasks_of_file
from lit_rlhf.whole_files import written_whole

Row = dict[str, object]
# Opens the rows of a split, or of all; Parquet reads them twice.
Rows = Callable[[str | None], Iterable[Row]]
_BATCH = 1_000


def import_file(options: argparse.Namespace) -> Iterator[str]:
    """Add the judged tasks of a file to a store."""
    check_format(options.format)
    num_skipped = 0

    def tasks() -> Iterator[JudgedTask]:
        nonlocal num_skipped
        for task in read_tasks_of_file(options.file, options.format, options.bad_rows):
            if task is None:
                num_skipped += 1
            else:
                yield task

    with FeedbackStore.filling(options.store) as store:
        added = store.add_tasks(
            tasks(), slots=options.slots, labeler_kind="model" if options.judges else "person"
        )
    said = f"{added.tasks} new tasks, {added.judgments} new judgments"
    said += f"; {num_skipped} bad rows skipped" if num_skipped else ""
    said += f"; {added.unasked} asked of nobody: their responses are alike" if added.unasked else ""
    yield said


def export_file(options: argparse.Namespace) -> Iterator[str]:
    """Write the judged tasks of a store."""
    with FeedbackStore.open(options.store, create=False) as store:
        if options.format == "trl" or options.question is not None:
            store.check_question(options.question)

        def rows(split: str | None) -> Iterator[dict[str, object]]:
            for task in store.judged_tasks(split, options.question):
                is_ours = options.format == "ours"
                yield from [full_row(task)] if is_ours else trl_rows(task, options.store)

        try:
            num_rows = _write_export(options.file, rows, options.split)
        except OSError as error:  # the disk is full or read-only, the folder another's
            reason = error.strerror or error
            raise DataError(f"{options.file}: cannot be written: {reason}") from error
    yield f"{num_rows} rows in {options.file}"


def backup(options: argparse.Namespace) -> Iterator[str]:
    """Copy a SQLite store while others write to it."""
    url = parse_url(options.store)
    if url.get_backend_name() != "sqlite":
        raise DataError(f"{url.render_as_string()}: use pg_dump to back up a PostgreSQL store.")
    source = Path(url.database or "")
    if not source.is_file():
        raise DataError(f"{source}: there is no such feedback store.")
    if options.file.exists():
        raise DataError(f"{options.file}: is there already; name a file that is not.")
    try:
        with (
            written_whole(options.file) as unfinished,
            closing(sqlite3.connect(source)) as live,
            closing(sqlite3.connect(unfinished)) as copy,
        ):
            live.backup(copy)
    except sqlite3.Error as error:
        raise DataError(f"{source}: cannot be copied to {options.file}: {error}") from error
    yield f"{source} is copied to {options.file}"


def _write_export(path: Path, rows: Rows, split: str | None) -> int:
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
        return _write_parquet(path, partial(rows, split))
    if path.suffix:
        raise DataError(f"{path}: name a file that ends in .jsonl or .parquet, or a folder.")
    if path.exists():
        raise DataError(f"{path}: is there already; name a folder that is not.")
    path.mkdir(parents=True)
    return sum(
        _write_parquet(path / f"{name}.parquet", partial(rows, name))
        for name in (SPLITS if split is None else [split])
        if any(True for _ in rows(name))
    )


def _write_lines(path: Path, rows: Iterable[Row]) -> int:
    number = 0
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as stream:
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
        with written_whole(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
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
