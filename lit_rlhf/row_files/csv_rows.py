"""CSV and TSV: a table whose cells are text, and what numbers, lists and chats in them mean.

A column is read as numbers, truths or JSON lists only where all of its cells are such, so that a
response "7" among other responses stays a text, and a text of "NA" is not taken for nothing.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path

from lit_rlhf.errors import DataError
from lit_rlhf.row_files.opening import opened, split_suffix

_TRUTHS = {"true": True, "false": False}
_PYTHON_LISTS = ("[{'", "{'")
_Meaning = Callable[[str], object]


def read_csv(path: Path, texts: Collection[str]) -> Iterator[tuple[bytes, str]]:
    """Yield each row as JSON text, and its place: the line on which it begins.

    Args:
        path: its first line names the columns.
        texts: columns that are never numbers; lists only where these are chat messages.

    Raises:
        DataError: the columns have no names of their own, a row has more or fewer cells, or the
            file is not UTF-8.
    """
    names, rows = _open(path)
    meanings = _find_meanings(names, rows, texts)
    for cells, line in _open(path)[1]:
        row = {name: _mean(cell, meanings.get(name)) for name, cell in cells.items()}
        for name, cell in cells.items():
            if cell.startswith(_PYTHON_LISTS):
                raise DataError(
                    f"{path}:{line}: field '{name}' is a list as Python prints it "
                    f"({cell[:40]!r}), not JSON. Write such rows as JSON lines or Parquet."
                )
        yield json.dumps(row).encode(), f":{line}"


def _open(path: Path) -> tuple[list[str], Iterator[tuple[dict[str, str], int]]]:
    lines = _lines(path)
    names, _ = next(lines, ([], 0))
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataError(
            f"{path}:1: the first line must give each column a name of its own; found: "
            f"{', '.join(names)[:200]}."
        )
    return names, _rows(path, names, lines)


def _rows(
    path: Path, names: list[str], lines: Iterator[tuple[list[str], int]]
) -> Iterator[tuple[dict[str, str], int]]:
    for cells, line in lines:
        if len(cells) != len(names):
            raise DataError(
                f"{path}:{line}: has {len(cells)} cells, and the first line names {len(names)} "
                'columns. Put texts with commas or line breaks into quotes ("), and double the '
                "quotes inside."
            )
        yield dict(zip(names, cells, strict=True)), line


def _lines(path: Path) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of each row that has any, and the line on which it begins."""
    csv.field_size_limit(sys.maxsize)  # texts may be longer than the library expects
    begin = 1
    with opened(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            first = text.readline()
            lines = chain([first], text)
            reader = csv.reader(lines, delimiter=_delimiter(path, first), strict=True)
            for cells in reader:
                if cells:
                    yield cells, begin
                begin = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{begin}: is not UTF-8 text ({error.reason}); save it as UTF-8."
            ) from error
        except csv.Error as error:
            raise DataError(
                f"{path}:{begin}: broken CSV ({error}); write tables with a CSV library."
            ) from error


def _delimiter(path: Path, first: str) -> str:
    """Return a tab for TSV, else a comma, or the semicolon of spreadsheets where no comma is."""
    if split_suffix(path.name)[0] == ".tsv":
        return "\t"
    return ";" if ";" in first and "," not in first else ","


def _find_meanings(
    names: list[str], rows: Iterator[tuple[dict[str, str], int]], texts: Collection[str]
) -> Mapping[str, _Meaning]:
    """Return how columns are read of which all cells are numbers, truths or lists."""
    possible: dict[str, list[_Meaning]] = {
        name: [_chat] if name in texts else [_number, _truth, _list] for name in names
    }
    for cells, _ in rows:
        for name, meanings in possible.items():
            if meanings and cells[name]:
                possible[name] = [meaning for meaning in meanings if _fits(meaning, cells[name])]
    return {name: meanings[0] for name, meanings in possible.items() if meanings}


def _fits(meaning: _Meaning, cell: str) -> bool:
    try:
        meaning(cell)
    except (ValueError, KeyError, RecursionError):
        return False
    return True


def _mean(cell: str, meaning: _Meaning | None) -> object:
    """Return what a cell says; an empty one is absent."""
    if not cell:
        return None
    return cell if meaning is None else meaning(cell)


def _number(cell: str) -> object:
    value = json.loads(cell)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(cell)  # noqa: TRY004 - as json.loads does
    return value


def _truth(cell: str) -> object:
    return _TRUTHS[cell.lower()]


def _list(cell: str) -> object:
    value = json.loads(cell)
    if not isinstance(value, list | dict):
        raise ValueError(cell)  # noqa: TRY004 - as json.loads does
    return value


def _chat(cell: str) -> object:
    value = _list(cell)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(cell)
    return value
