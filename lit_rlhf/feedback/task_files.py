"""Files of rows in any known shape as judged tasks, each checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.exchange import is_full, task_of_row
from lit_rlhf.feedback.formats import OurRow, find_format, read_rows
from lit_rlhf.feedback.judgments import JudgedTask, check_judgment
from lit_rlhf.row_files import is_row_file, read_object
from lit_rlhf.row_files import read_rows as read_rows_of_file

BadRows = Literal["refuse", "skip"]


def read_tasks_of_file(path: Path, name: str, bad_rows: BadRows) -> Iterator[JudgedTask | None]:
    """Yield the judged tasks of a file in any known shape; None for each row left out.

    Args:
        path: JSON lines, JSON, CSV or Parquet, see `row_files`, or a folder of such files or as
            `save_to_disk` of Hugging Face's datasets writes it.
        name: of the format; "auto" finds it by the keys of the first row.
        bad_rows: "refuse" raises the error of the first bad row, "skip" leaves such rows out.

    Raises:
        DataError: a row cannot be read, named by file and line, or no format fits.
    """
    broken: list[DataError] = []
    rows = _rows_of_file(path, broken if bad_rows == "skip" else None)
    first = next(rows, None)
    if first is None:  # a file without rows is refused
        raise broken[0]
    if is_full(first[0]):
        name = "ours"
    elif name == "auto":
        name = find_format(*first)
    for content, where in read_rows(chain([first], rows), name):
        try:
            yield _checked(content, where)
        except DataError:
            if bad_rows == "refuse":
                raise
            yield None
    yield from (None for _ in broken)


def _checked(content: JudgedTask | OurRow | DataError, where: str) -> JudgedTask:
    """Return what a row holds as a judged task that the store takes."""
    if isinstance(content, DataError):
        raise content
    task = content if isinstance(content, JudgedTask) else task_of_row(content, where)
    for judgment in task.judgments:
        try:
            check_judgment(judgment, len(task.responses))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    return task


def _rows_of_file(
    path: Path, broken: list[DataError] | None
) -> Iterator[tuple[dict[str, object], str]]:
    """Yield the rows with their places; what is no row goes to `broken` where it is a list."""
    files = [path] if path.is_file() else _files_of_folder(path)
    for file in files:
        if file.suffix == ".arrow":
            yield from _rows_of_arrow(file)
        else:
            for content, place in read_rows_of_file(file):
                try:
                    row = read_object(content, f"{file}{place}")
                except DataError as error:
                    if broken is None:
                        raise
                    broken.append(error)
                else:
                    yield row, f"{file}{place}"


def _files_of_folder(path: Path) -> list[Path]:
    """Return the files of a folder as `save_to_disk` writes it, or of any folder of rows."""
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder.")
    found = sorted(path.rglob("*"))
    # Beside its Arrow files a data set has JSON files about itself.
    arrow = [file for file in found if re.fullmatch(r"data-\d+-of-\d+\.arrow", file.name)]
    files = arrow or [file for file in found if file.is_file() and is_row_file(file.name)]
    if not files:
        raise DataError(f"{path}: holds no files of rows.")
    return files


def _rows_of_arrow(file: Path) -> Iterator[tuple[dict[str, object], str]]:
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and seldom needed

    number = 0
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            for row in batch.to_pylist():
                yield row, f"{file}[{number}]"
                number += 1
