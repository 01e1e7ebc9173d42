"""Reading records from where people keep them: JSON files, Hugging Face folders, hub names.

Each record comes with its place, so that whatever is wrong with it later can be found and mended.
Records stay in Arrow files on the disk and are read from there when they are asked for.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lit_rlhf import __version__
from lit_rlhf.cache import digest_file, keep
from lit_rlhf.errors import DataError

if TYPE_CHECKING:
    # `datasets` takes half a second to import, so it is imported where it is used.
    from datasets import Dataset, Features  # type: ignore[import-untyped] # has no stubs

# A source with one of these endings is a file, there or not; it is never looked up on the hub.
FILE_SUFFIXES = (".jsonl", ".ndjson", ".json")
OTHER_SUFFIXES = (".parquet", ".csv", ".tsv", ".arrow", ".txt", ".gz", ".zst")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The column of a table that says where in the source a record is: `:3` or `[2]`.
PLACE = "lit_rlhf:place"
# The key of a record that could not be read, with the message of its error.
ERROR = "lit_rlhf:error"
# Counts up whenever the same inputs give other tables.
FORMAT = 1
_Table = TypeVar("_Table")


class SourcedRecord(NamedTuple):
    """One line of data.

    Attributes:
        record: field name -> value, after renaming by `columns`.
        where: its place for error messages: `train.jsonl:3`, or `owner/name#train[3]`.
    """

    record: dict[str, object]
    where: str


@dataclass(frozen=True)
class Records(Sequence[SourcedRecord]):
    """The records of a source, read from the disk when they are asked for.

    A record that is not a JSON object, or lacks a field that `columns` names, is a DataError when
    it is read.

    Attributes:
        table: Arrow columns on the disk, `PLACE` among them: a record's place in the source.
        place: of the source, for error messages.
        sha256: of the source's content: of a file as `sha256sum` gives it, of a data set of its
            Arrow columns.
        is_json: the table has the records as JSON text.
        changes: of each record, in turn.
        shape: the format that the source's rows have, as `data.format` names it.
        facts: what else the lineage says of the source.
    """

    table: Dataset
    place: str
    sha256: str
    is_json: bool
    changes: tuple[Callable[[SourcedRecord], SourcedRecord], ...] = ()
    shape: str = "ours"
    facts: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.table)

    def __getitem__(self, index: int) -> SourcedRecord:  # type: ignore[override] # no slices
        """Return one record."""
        if index >= len(self):
            raise IndexError(index)
        return self.read(self.table[index : index + 1])[0]

    def read(self, columns: Mapping[str, Sequence[Any]]) -> list[SourcedRecord]:
        """Return the records that some rows of the table hold: column -> values."""
        fields = [name for name in columns if name != PLACE]
        records = []
        for index, place in enumerate(columns[PLACE]):
            where = f"{self.place}{place}"
            values = {name: columns[name][index] for name in fields}
            record = _read_object(values["json"], where) if self.is_json else values
            if ERROR in record:
                raise DataError(str(record[ERROR]))
            sourced = SourcedRecord(record, where)
            for change in self.changes:
                sourced = change(sourced)
            records.append(sourced)
        return records

    def each(self) -> Iterator[SourcedRecord | tuple[DataError, str]]:
        """Yield the records in their order, and for a bad one its error and its place."""
        for columns in self.table.iter(1000):
            for index, place in enumerate(columns[PLACE]):
                try:
                    yield self.read({name: [values[index]] for name, values in columns.items()})[0]
                except DataError as error:
                    yield error, f"{self.place}{place}"

    def select(self, indices: Sequence[int]) -> Records:
        """Return the records at these indices, in that order."""
        return replace(self, table=self.table.select(indices))

    def changed(self, change: Callable[[SourcedRecord], SourcedRecord]) -> Records:
        """Return the records as `change` makes them."""
        return replace(self, changes=(*self.changes, change))


def open_records(
    source: str,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    streaming: bool = False,
    limit: int | None = None,
    shape: str = "auto",
) -> Records:
    """Open a file, a Hugging Face data set folder or a data set of the hub.

    A file's lines, a stream, and what rows of another shape hold, are written into an Arrow file
    first, unless an earlier run did.

    Args:
        source: a `.jsonl` or `.json` file; a folder that `save_to_disk` wrote; a folder of
            Parquet, JSON or CSV files; or a hub name. `~` is the home folder. A data set with
            several splits may be followed by `#` and the one to take: `owner/name#test`. Or a
            feedback store, `store:sqlite:///feedback.db?split=train`.
        split: the split to take where the data set has several and `source` names none. A data
            set with a single split is taken whole, whatever that split is called.
        columns: our field name -> the name it has in the source.
        streaming: read folders of files and hub names as a stream, not downloaded whole first.
        limit: of a stream, read only so many records.
        shape: the format of the rows, see `feedback.formats`; "auto" finds it by their keys.

    Returns:
        The records in the order of the source; at least one.

    Raises:
        ConfigError: there is no such format.
        DataError: nothing is there, it cannot be read, holds no records, lacks the split, or has
            rows that fit several formats.
    """
    from lit_rlhf.data.shapes import read_shape  # noqa: PLC0415 - it needs `Records`

    if source.startswith("store:"):
        from lit_rlhf.data.store_source import open_store  # noqa: PLC0415 - an optional package

        return open_store(source, split)
    path = Path(source).expanduser()
    records = _open_file(path) if path.is_file() else _open_dataset(source, split, streaming, limit)
    if not records:
        raise DataError(f"{source}: holds no rows.")
    if columns:
        records = records.changed(partial(_rename, columns=columns))
    return read_shape(records, shape, columns)


def read_records(
    source: str, split: str | None = None, columns: Mapping[str, str] | None = None
) -> list[SourcedRecord]:
    """Read all records of a source at once; arguments and errors as in `open_records`."""
    records = open_records(source, split, columns)
    return records.read(records.table[:])


def _open_file(path: Path) -> Records:
    with _readable(path):
        sha256 = digest_file(path)
    table = keep_table(
        "records",
        {"sha256": sha256, "suffix": path.suffix},
        lambda: ({"json": text, PLACE: place} for text, place in _lines(path)),
        json_features(),
    )
    return Records(table, str(path), sha256, is_json=True)


def json_features() -> Features:
    """Return the columns of a table of records as JSON text."""
    from datasets import Features, Value  # noqa: PLC0415 - see above

    return Features({"json": Value("binary"), PLACE: Value("string")})


def keep_table(
    kind: str,
    inputs: Mapping[str, object],
    generator: Callable[[], Iterator[dict[str, object]]],
    features: Features | None,
) -> Dataset:
    """Write records into Arrow files as they come, unless an earlier run did."""
    import datasets  # noqa: PLC0415 - see above

    def make(folder: Path) -> Dataset:
        try:
            return datasets.Dataset.from_generator(
                generator, features, str(folder), fingerprint="records"
            )
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None

    return keep(kind, {"format": FORMAT, "lit_rlhf": __version__, **inputs}, make)


def _lines(path: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the JSON text of each record and its place in the file; at least one.

    Lines end at the byte 10 alone: str.splitlines would also cut at U+2028 inside a JSON text.
    """
    if path.suffix not in FILE_SUFFIXES:
        raise DataError(
            f"{path}: a data file ends in {', '.join(FILE_SUFFIXES)}; put files of other formats "
            "(Parquet, CSV) into a folder and give the folder's name."
        )
    is_empty = True
    with _readable(path), path.open("rb") as stream:
        for text, place in _array(path, stream) or _numbered(stream):
            is_empty = False
            yield text, place
    if is_empty:
        raise DataError(f"{path}: holds no rows.")


def _numbered(stream: io.BufferedReader) -> Iterator[tuple[bytes, str]]:
    for number, line in enumerate(stream, start=1):
        text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if text.strip():
            yield text.removesuffix(b"\n"), f":{number}"


def _array(path: Path, stream: io.BufferedReader) -> list[tuple[bytes, str]] | None:
    """Return the items of a JSON array; None, and the stream as it was, where there is none."""
    if path.suffix != ".json":
        return None
    content = stream.read().removeprefix(_BYTE_ORDER_MARK)
    if not content.lstrip().startswith(b"["):
        stream.seek(0)
        return None
    items = _parse_json(content, str(path))
    assert isinstance(items, list)  # content begins with "["
    return [(json.dumps(item).encode(), f"[{index}]") for index, item in enumerate(items)]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights.") from error


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


def _read_object(content: bytes, where: str) -> dict[str, object]:
    value = _parse_json(content, where)
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: expected a JSON object such as {{"prompt": ...}}, found '
            f"{type(value).__name__}."
        )
    return value


def _open_dataset(source: str, split: str | None, streaming: bool, limit: int | None) -> Records:
    import datasets  # noqa: PLC0415 - see above

    name, _, named_split = source.partition("#")
    path = Path(name).expanduser()
    if not path.exists() and _looks_like_a_path(name):
        raise DataError(f"{name}: there is no such file or folder (looked at {path.absolute()}).")
    found = str(path) if path.is_dir() else name
    is_saved = any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    version = ""
    try:
        if is_saved:
            data = datasets.load_from_disk(found)
        elif streaming:
            builder = datasets.load_dataset_builder(found)
            data = builder.as_streaming_dataset()
            version = builder.cache_dir  # named by what tells one state of the source from the next
        else:
            data = datasets.load_dataset(found)
        table, place = _pick_split(data, name, named_split or None, split)
        if version:
            inputs = {"version": version, "place": place, "limit": limit}
            stream = table if limit is None else table.take(limit)
            table = keep_table("streams", inputs, lambda: iter(stream), table.features)
        sha256 = _digest_table(table)
        table = table.add_column(PLACE, [f"[{index}]" for index in range(len(table))])
        return Records(table, place, sha256, is_json=False)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        kind = "folder" if path.is_dir() else "file or folder here, and as a hub name it"
        raise DataError(f"{name}: this {kind} could not be read as a data set: {error}") from error


def _digest_table(table: Dataset) -> str:
    """Return the SHA-256 of a table's columns, however they are cut into chunks on the disk."""
    digest = hashlib.sha256(str(table.features).encode())
    for rows in table.with_format("arrow").iter(1000):
        for batch in rows.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _looks_like_a_path(name: str) -> bool:
    # A hub name is `name` or `owner/name`.
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith((*FILE_SUFFIXES, *OTHER_SUFFIXES, "/"))
    )


def _pick_split(
    data: _Table | Mapping[str, _Table], name: str, named: str | None, wanted: str | None
) -> tuple[_Table, str]:
    """Return the split that the source names, else the wanted one, else the only one; its place."""
    if not isinstance(data, Mapping):
        if named:
            message = f"{name}#{named}: {name} is a single data set without splits; leave '#' out."
            raise DataError(message)
        return data, name
    chosen = named or wanted
    if not named and len(data) == 1:
        (chosen,) = data
    if chosen is None or chosen not in data:
        found = ", ".join(data)
        asked = "has several splits" if chosen is None else f"has no split '{chosen}'"
        raise DataError(f"{name}: {asked}; there are: {found}. Name one of them: '{name}#SPLIT'.")
    return data[chosen], f"{name}#{chosen}"


def _rename(sourced: SourcedRecord, columns: Mapping[str, str]) -> SourcedRecord:
    if "instruction" in columns.values() and "input" not in columns.values():
        _refuse_lost_input(sourced)
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


def _refuse_lost_input(sourced: SourcedRecord) -> None:
    if sourced.record.get("input"):
        raise DataError(
            f"{sourced.where}: field 'input' is a part of the prompt beside 'instruction', and "
            "'columns' would leave it out. Leave 'columns' out: data.format alpaca reads both."
        )
