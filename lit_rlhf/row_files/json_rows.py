"""JSON lines and JSON arrays, and the parsing of one row."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lit_rlhf.errors import DataError
from lit_rlhf.row_files.opening import opened, split_suffix

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the JSON text of each row of a file, and its place: `:3`, or `[2]` in an array.

    Lines end at the byte 10 alone: str.splitlines would also cut at U+2028 inside a JSON text.
    """
    with opened(path) as stream:
        if split_suffix(path.name)[0] != ".json":
            yield from _lines(stream)
            return
        content = stream.read()
    is_array = content.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")
    yield from _array(content, path) if is_array else _lines(io.BytesIO(content))


def _lines(stream: Iterable[bytes]) -> Iterator[tuple[bytes, str]]:
    for number, line in enumerate(stream, start=1):
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if text.strip():
            yield text.removesuffix(b"\n"), f":{number}"


def _array(content: bytes, path: Path) -> Iterator[tuple[bytes, str]]:
    items = _parse(content.removeprefix(_BYTE_ORDER_MARK), str(path))
    assert isinstance(items, list)  # content begins with "["
    for index, item in enumerate(items):
        yield json.dumps(item).encode(), f"[{index}]"


def read_object(content: bytes, where: str) -> dict[str, object]:
    """Return the JSON object of one row.

    Args:
        content: its JSON text.
        where: its place, for errors.

    Raises:
        DataError: it is no JSON object, not UTF-8, or has a field twice.
    """
    value = _parse(content, where)
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: expected a JSON object such as {{"prompt": ...}}, found '
            f"{type(value).__name__}."
        )
    return value


def _parse(content: bytes, where: str) -> object:
    """Return what a JSON text says; errors as in `read_object`."""
    try:
        value: object = json.loads(content.decode("utf-8"), object_pairs_hook=_object_of)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise DataError(
            f"{where}: broken JSON at {place}: {error.msg}. One JSON object a line is expected; "
            "write rows with a JSON library."
        ) from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deep to be read; flatten it.") from error
    except ValueError as error:  # a field that is there twice, a number of thousands of digits
        raise DataError(f"{where}: {error}; correct the row.") from error
    return value


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field '{twice}' stands twice in one object")
    return fields
