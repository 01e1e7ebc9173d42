"""Reading rows from where people keep them: JSON files, Hugging Face folders, hub names.

Each row comes with its place, so that whatever is wrong with it later can be found and mended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_rlhf.cache import digest_file
from lit_rlhf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict  # type: ignore[import-untyped] # has no stubs

# A source with one of these endings is a file, there or not; it is never looked up on the hub.
FILE_SUFFIXES = (".jsonl", ".ndjson", ".json")
OTHER_SUFFIXES = (".parquet", ".csv", ".tsv", ".arrow", ".txt", ".gz", ".zst")


class SourcedRecord(NamedTuple):
    """One line of data.

    Attributes:
        record: field name -> value, after renaming by `columns`.
        where: its place for error messages: `train.jsonl:3`, or `owner/name#train[3]`.
    """

    record: dict[str, object]
    where: str


def read_records(
    source: str, split: str | None = None, columns: Mapping[str, str] | None = None
) -> list[SourcedRecord]:
    """Read all rows of a file, a Hugging Face data set folder or a data set of the hub.

    Args:
        source: a `.jsonl` or `.json` file; a folder that `save_to_disk` wrote; a folder of
            Parquet, JSON or CSV files; or a hub name. `~` is the home folder. A data set with
            several splits may be followed by `#` and the one to take: `owner/name#test`.
        split: the split to take where the data set has several and `source` names none. A data
            set with a single split is taken whole, whatever that split is called.
        columns: our field name -> the name it has in the source.

    Returns:
        The rows in the order of the source; at least one.

    Raises:
        DataError: nothing is there, it cannot be read, holds no rows, lacks the split, or a row
            lacks a field that `columns` names.
    """
    path = Path(source).expanduser()
    rows = list(_read_file(path)) if path.is_file() else _read_dataset(source, split)
    if not rows:
        raise DataError(f"{source}: holds no rows.")
    return [_rename(row, columns) for row in rows] if columns else rows


def digest_source(source: str, rows: Sequence[SourcedRecord]) -> str:
    """Return the SHA-256 of a source's content, in hexadecimal digits.

    Args:
        source: as in `read_records`. A file is hashed as it lies there, as `sha256sum` does it.
        rows: what was read from it: they are hashed where the source is no file.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return digest_file(path)
    digest = hashlib.sha256()
    for row, _ in rows:
        # A value that JSON does not know (a date, say) by what it prints as.
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _read_file(path: Path) -> Iterator[SourcedRecord]:
    if path.suffix not in FILE_SUFFIXES:
        raise DataError(
            f"{path}: a data file ends in {', '.join(FILE_SUFFIXES)}; put files of other formats "
            "(Parquet, CSV) into a folder and give the folder's name."
        )
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the byte-order mark of UTF-8
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights.") from error
    if path.suffix == ".json" and content.lstrip().startswith(b"["):
        return _read_array(path, content)
    return _read_lines(path, content)


def _read_lines(path: Path, content: bytes) -> Iterator[SourcedRecord]:
    # Lines end at the byte \n alone: str.splitlines would also cut at U+2028 inside a JSON text.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield SourcedRecord(_as_object(_parse_json(line, where), where), where)


def _read_array(path: Path, content: bytes) -> Iterator[SourcedRecord]:
    items = _parse_json(content, str(path))
    assert isinstance(items, list)  # content begins with "["
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        yield SourcedRecord(_as_object(item, where), where)


def _parse_json(content: bytes, where: str) -> object:
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
    except ValueError as error:  # a field that stands twice, a number of thousands of digits
        raise DataError(f"{where}: {error}; correct the row.") from error
    return value


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field '{twice}' stands twice in one object")
    return fields


def _as_object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: expected a JSON object such as {{"prompt": ...}}, found '
            f"{type(value).__name__}."
        )
    return value


def _read_dataset(source: str, split: str | None) -> list[SourcedRecord]:
    name, _, named_split = source.partition("#")
    data = _load_dataset(name)
    if isinstance(data, Mapping):  # DatasetDict: split name -> data set
        data, chosen = _pick_split(data, name, named_split or None, split)
        place = f"{name}#{chosen}"
    elif named_split:
        raise DataError(f"{source}: {name} is a single data set without splits; leave '#' out.")
    else:
        place = name
    return [SourcedRecord(dict(row), f"{place}[{index}]") for index, row in enumerate(data)]


def _load_dataset(name: str) -> Dataset | DatasetDict:
    import datasets  # noqa: PLC0415 - seconds to import, and JSON files do not need it

    path = Path(name).expanduser()
    if not path.exists() and _looks_like_a_path(name):
        raise DataError(f"{name}: there is no such file or folder (looked at {path.absolute()}).")
    try:
        if any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path) if path.is_dir() else name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        kind = "folder" if path.is_dir() else "file or folder here, and as a hub name it"
        raise DataError(f"{name}: this {kind} could not be read as a data set: {error}") from error


def _looks_like_a_path(name: str) -> bool:
    # A hub name is `name` or `owner/name`.
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith((*FILE_SUFFIXES, *OTHER_SUFFIXES, "/"))
    )


def _pick_split(
    splits: DatasetDict, name: str, named: str | None, wanted: str | None
) -> tuple[Dataset, str]:
    """Return the split that the source names, else the wanted one, else the only one."""
    chosen = named or wanted
    if not named and len(splits) == 1:
        (chosen,) = splits
    if chosen is None or chosen not in splits:
        found = ", ".join(splits)
        asked = "has several splits" if chosen is None else f"has no split '{chosen}'"
        raise DataError(f"{name}: {asked}; there are: {found}. Name one of them: '{name}#SPLIT'.")
    return splits[chosen], chosen


def _rename(sourced: SourcedRecord, columns: Mapping[str, str]) -> SourcedRecord:
    for ours, theirs in columns.items():
        if theirs not in sourced.record:
            found = ", ".join(sorted(sourced.record)) or "none"
            raise DataError(
                f"{sourced.where}: field '{theirs}', which 'columns' names as the {ours}, is "
                f"missing; found the fields: {found}. Correct 'columns', or mend the row."
            )
    renamed = set(columns.values())
    kept = {field: value for field, value in sourced.record.items() if field not in renamed}
    return sourced._replace(
        record=kept | {ours: sourced.record[theirs] for ours, theirs in columns.items()}
    )
