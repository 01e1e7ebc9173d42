"""Rows that a program has in its hands: a list of dictionaries, or a data set of `datasets`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.data.records import PLACE, Records, json_features, keep_table, records_of_dataset
from lit_rlhf.errors import ConfigError, DataError


def is_given(source: object) -> bool:
    """Tell rows from the names of files, folders and data sets."""
    if isinstance(source, str):
        return False
    return not isinstance(source, Sequence) or any(not isinstance(one, str) for one in source)


def without_paths(source: Any) -> Any:  # noqa: ANN401 - any source
    """Return a source with the text of a `Path` in its place."""
    if isinstance(source, (list, tuple)):
        return [str(one) if isinstance(one, Path) else one for one in source]
    return str(source) if isinstance(source, Path) else source


def open_given(rows: Any, split: str | None) -> Records:  # noqa: ANN401 - whatever a program gives
    """Open rows; their places are `data.train[3]`.

    Args:
        rows: dictionaries, or a `datasets.Dataset`, or a `DatasetDict` of which the split is taken.
        split: "train", "validation" or "test".

    Raises:
        ConfigError: they are of another kind, or there is no such split.
        DataError: a row is not a dictionary, or has a value that JSON cannot write.
    """
    import datasets  # type: ignore[import-untyped] # noqa: PLC0415 - no stubs, and half a second

    place = f"data.{split or 'rows'}"
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise ConfigError(f"{place}: the DatasetDict has no such split, only {sorted(rows)}")
        rows = rows[split]
    if isinstance(rows, datasets.Dataset):
        return records_of_dataset(rows.with_format(None), place)
    if not isinstance(rows, (list, tuple)):
        raise ConfigError(
            f"{place}: give a file, a folder, a hub name, a list of dictionaries or a "
            f"datasets.Dataset, not {_name(rows)}; datasets.Dataset.from_pandas, from_generator "
            "and from_list make one"
        )
    lines = [_as_json(row, f"{place}[{index}]") for index, row in enumerate(rows)]
    sha256 = hashlib.sha256(b"\n".join(lines)).hexdigest()

    def columns() -> Iterator[dict[str, object]]:
        for index, line in enumerate(lines):
            yield {"json": line, PLACE: f"[{index}]"}

    table = keep_table("records", {"sha256": sha256, "given": True}, columns, json_features())
    return Records(table, place, sha256, is_json=True)


def _as_json(row: object, where: str) -> bytes:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row must be a dictionary, not {_name(row)}.")
    try:
        return json.dumps(dict(row), ensure_ascii=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: the row cannot be written as JSON ({error}).") from error


def _plain(value: Any) -> object:  # noqa: ANN401 - arrays and scalars of numpy and torch
    if not hasattr(value, "tolist"):
        raise TypeError(f"{_name(value)} has no form in JSON")
    return value.tolist()


def _name(value: object) -> str:
    return f"{type(value).__name__} ({value!r:.40})" if value is not None else "None"
