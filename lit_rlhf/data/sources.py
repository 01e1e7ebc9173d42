"""Opening records where people keep them: files, Hugging Face folders, hub names, stores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.cache import digest_file
from lit_rlhf.data.given_rows import is_given, open_given
from lit_rlhf.data.hub import open_dataset
from lit_rlhf.data.records import PLACE, Records, SourcedRecord, json_features, keep_table
from lit_rlhf.data.shapes import read_shape
from lit_rlhf.errors import DataError
from lit_rlhf.row_files import TEXT_FIELDS, find_files, read_rows, readable

# Of larger files one line says that they are being read.
_LARGE = 100_000_000
# `datasets.Dataset` is one of them, which has no type of its own.
Source = str | Sequence[str] | Sequence[Mapping[str, Any]]

# What data modules take. The config parser reads the annotations of constructors, and offers what
# it finds. It is to find text alone, since no object can be given on a command line.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    RowSource: TypeAlias = Source | Path
    TokenizerSource: TypeAlias = str | Path | PreTrainedTokenizerBase
else:
    RowSource = str | list[str]
    TokenizerSource = str


def open_records(
    source: Source,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    streaming: bool = False,
    limit: int | None = None,
    shape: str = "auto",
) -> Records:
    """Open files, a Hugging Face data set folder or a data set of the hub.

    A file's rows, a stream, and what rows of another shape hold, are written into an Arrow file
    first, unless an earlier run did.

    Args:
        source: a file, see `row_files`, or a pattern such as `data/*.jsonl`, or a list of these,
            read one after the other; a folder that `save_to_disk` wrote; a folder of Parquet,
            JSON or CSV files; or a hub name. `~` is the home folder. A data set with several
            configurations may be followed by `:` and one of them, and one with several splits by
            `#` and the one to take: `owner/name:config#test`. Or a feedback store,
            `store:sqlite:///feedback.db?split=train`. In Python also a list of dictionaries, or a
            `datasets.Dataset`.
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
    if is_given(source):
        records = open_given(source, split)
    elif isinstance(source, str) and source.startswith("store:"):
        from lit_rlhf.data.store_source import open_store  # noqa: PLC0415 - an optional package

        return open_store(source, split)
    elif paths := _find_all(source):
        records = _open_files(paths, columns)
    else:
        assert isinstance(source, str)  # a list has files alone
        records = open_dataset(source, split, streaming=streaming, limit=limit)
    if not records:
        raise DataError(f"{source_name(source)}: holds no rows.")
    if columns:
        records = records.changed(partial(_rename, columns=columns))
    return read_shape(records, shape, columns)


def read_records(
    source: Source, split: str | None = None, columns: Mapping[str, str] | None = None
) -> list[SourcedRecord]:
    """Read all records of a source at once; arguments and errors as in `open_records`."""
    records = open_records(source, split, columns)
    return records.read(records.table[:])


def source_name(source: Source) -> str:
    """Return a source as messages name it."""
    if isinstance(source, str):
        return source
    if is_given(source):
        return f"{len(source):,} rows of a {type(source).__name__}"
    return str(source[0]) if len(source) == 1 else f"{source[0]} and {len(source) - 1} more"


def _find_all(source: Source) -> list[Path]:
    """Return the files that a source names; none where it is a folder or a hub name.

    Raises:
        DataError: no file fits a pattern, or a list is empty or names anything but files.
    """
    if isinstance(source, str):
        return find_files(source)
    found = [(name, find_files(name)) for name in source if isinstance(name, str)]
    for name, paths in found:
        if not paths:
            raise DataError(f"{name}: there is no such file, and a list of sources names files.")
    if not found:
        raise DataError("an empty list of sources: give rows, or name one file or more.")
    return list(dict.fromkeys(path for _, paths in found for path in paths))


def _open_files(paths: Sequence[Path], columns: Mapping[str, str] | None) -> Records:
    digests = _digests(paths)
    if len(paths) == 1:
        place, names, sha256 = str(paths[0]), [""], digests[0]
        inputs: dict[str, object] = {"sha256": sha256, "suffixes": paths[0].suffixes[-2:]}
    else:
        place, names = "", [str(path) for path in paths]
        sha256 = hashlib.sha256("".join(digests).encode()).hexdigest()
        inputs = {"sha256": digests, "names": names}
    texts = sorted(TEXT_FIELDS | {(columns or {}).get(field, field) for field in TEXT_FIELDS})

    def rows() -> Iterator[dict[str, object]]:
        for path, name in zip(paths, names, strict=True):
            for text, row_place in read_rows(path, texts):
                yield {"json": text, PLACE: name + row_place}

    table = keep_table("records", {**inputs, "texts": texts}, rows, json_features())
    return Records(table, place, sha256, is_json=True)


def _digests(paths: Sequence[Path]) -> list[str]:
    digests = []
    for path in paths:
        with readable(path):
            if (size := path.stat().st_size) > _LARGE:
                rank_zero_info(f"{path}: reading {size // 1_000_000:,} MB")
            digests.append(digest_file(path))
    return digests


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
