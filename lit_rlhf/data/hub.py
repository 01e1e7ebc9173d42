"""Data sets of the `datasets` library: folders that it wrote or can read, and those of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from lit_rlhf.data.records import Records, keep_table, records_of_dataset
from lit_rlhf.errors import DataError
from lit_rlhf.row_files import is_row_file, read_object, read_rows

_SAVED = ("dataset_dict.json", "state.json")
# A name with one of these endings is a file, there or not; it is never looked up on the hub.
_OTHER_SUFFIXES = (".arrow", ".txt", ".gz", ".zst", ".zip", "/")
_Table = TypeVar("_Table")


class _Name(NamedTuple):
    """What `name:config#split` names; `found` is a folder, or the hub's name."""

    name: str
    found: str
    config: str | None
    split: str | None


def open_dataset(source: str, split: str | None, *, streaming: bool, limit: int | None) -> Records:
    """Open a folder or a data set of the hub.

    Args:
        source: its name, with `:CONFIGURATION` and `#SPLIT` behind it where it has several.
        split: the split to take where `source` names none.
        streaming: read it as a stream.
        limit: of a stream, read only so many records.

    Raises:
        DataError: nothing is there, it cannot be read, or lacks the configuration or the split.
    """
    import datasets  # type: ignore[import-untyped] # noqa: PLC0415 - no stubs, and half a second

    named = _parse(source)
    version = ""
    try:
        if any((Path(named.found) / mark).is_file() for mark in _SAVED):
            data = datasets.load_from_disk(named.found)
        elif streaming:
            builder = datasets.load_dataset_builder(named.found, named.config)
            data = builder.as_streaming_dataset()
            version = builder.cache_dir  # named by what tells one state of the source from the next
        else:
            data = datasets.load_dataset(named.found, named.config)
        table, place = _pick_split(data, named, split)
        if version:
            inputs = {"version": version, "place": place, "limit": limit}
            stream = table if limit is None else table.take(limit)
            table = keep_table("streams", inputs, lambda: iter(stream), table.features)
        return records_of_dataset(table, place)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        raise _explain(named, error) from error


def _parse(source: str) -> _Name:
    whole, _, split = source.partition("#")
    name, colon, config = whole.rpartition(":")
    if not colon or Path(whole).expanduser().exists() or "/" in config or "\\" in config:
        name, config = whole, ""
    path = Path(name).expanduser()
    if not path.exists() and _looks_like_a_path(name):
        raise DataError(f"{name}: there is no such file or folder (looked at {path.absolute()}).")
    return _Name(name, str(path) if path.is_dir() else name, config or None, split or None)


def _looks_like_a_path(name: str) -> bool:
    # A hub name is `name` or `owner/name`.
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or is_row_file(name)
        or name.lower().endswith(_OTHER_SUFFIXES)
    )


def _explain(named: _Name, error: Exception) -> DataError:
    """Return one line for an error of `datasets`: which file, row or configuration it is about."""
    configs = _configurations(named)
    if len(configs) > 1 and named.config not in configs:
        found = "has several configurations" if named.config is None else f"has no {named.config!r}"
        return DataError(
            f"{named.name}: {found}; there are: {', '.join(configs)}. Name one of them: "
            f"'{named.name}:CONFIGURATION'."
        )
    is_folder = Path(named.found).is_dir()
    if is_folder and (bad := _first_bad_row(named)) is not None:
        return bad
    kind = "folder" if is_folder else "file or folder here, and as a hub name it"
    reason = " ".join(str(error.__cause__ or error).split())[:300]
    remedy = (
        f" Rows of mixed types are read file by file: '{named.name}/*.jsonl'." if is_folder else ""
    )
    return DataError(
        f"{named.name}: this {kind} could not be read as a data set: {reason}.{remedy}"
    )


def _configurations(named: _Name) -> list[str]:
    import datasets  # noqa: PLC0415 - see above

    try:
        return list(datasets.get_dataset_config_names(named.found))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return []  # there is no such data set, or no network


def _first_bad_row(named: _Name) -> DataError | None:
    """Read the files that `datasets` would read, until one of their rows is bad."""
    import datasets  # noqa: PLC0415 - see above

    try:
        files = datasets.load_dataset_builder(named.found, named.config).config.data_files or {}
        for path in (Path(file) for split in files.values() for file in split):
            if is_row_file(path.name):
                for content, place in read_rows(path):
                    read_object(content, f"{path}{place}")
    except DataError as error:
        return error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return None
    return None


def _pick_split(
    data: _Table | Mapping[str, _Table], named: _Name, wanted: str | None
) -> tuple[_Table, str]:
    """Return the split that the source names, else the wanted one, else the only one; its place."""
    name = named.name if named.config is None else f"{named.name}:{named.config}"
    if not isinstance(data, Mapping):
        if named.split:
            raise DataError(
                f"{name}#{named.split}: {name} is a single data set without splits; leave '#' out."
            )
        return data, name
    chosen = named.split or wanted
    if not named.split and len(data) == 1:
        (chosen,) = data
    if chosen is None or chosen not in data:
        found = ", ".join(data)
        asked = "has several splits" if chosen is None else f"has no split '{chosen}'"
        raise DataError(f"{name}: {asked}; there are: {found}. Name one of them: '{name}#SPLIT'.")
    return data[chosen], f"{name}#{chosen}"
