"""Records of public shapes as records of our own, found by their keys.

What a record holds is written as JSON into an Arrow file once: several records may be one task, and
one record several tasks. A bad record is written as the error that it is, and raises it when read.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

from lit_rlhf.data.records import ERROR, PLACE, Records, SourcedRecord, json_features, keep_table
from lit_rlhf.errors import DataError
from lit_rlhf.feedback.exchange import row_of
from lit_rlhf.feedback.formats import (
    FORMATS,
    OUR_NAMES,
    check_format,
    find_format,
    read_rows,
)
from lit_rlhf.feedback.judgments import JudgedTask

_log = logging.getLogger(__name__)
# Records at a source's beginning whose keys are looked at: in tables the first may have nulls.
_LOOKED_AT = 10


def read_shape(records: Records, name: str, columns: Mapping[str, str] | None) -> Records:
    """Return records as rows of ours (docs/data.md).

    Args:
        records: of a source, renamed by `columns`.
        name: of their format, or "auto" to find it.
        columns: by which they were renamed.

    Raises:
        ConfigError: there is no such format.
        DataError: their keys fit several formats.
    """
    check_format(name)
    if name == "auto":
        name = _find(records)
    if name in OUR_NAMES:
        return replace(records, shape=name)
    inputs = {
        "sha256": records.sha256,
        "rows": len(records),
        "place": records.place,
        "columns": dict(columns or {}),
        "shape": name,
    }
    table = keep_table("shapes", inputs, lambda: _rows(records, name), json_features())
    if not len(table):
        place = records.place or records[0].where
        raise DataError(f"{place}: holds nothing that people judged (format {name}).")
    most = FORMATS[name].most_per_prompt
    if most is not None and (num_left := len(records) - len(table)):
        _log.warning(
            "%s: %s of %s pairs are left out: of a prompt the first %d are used (format %s)",
            records.place, f"{num_left:,}", f"{len(records):,}", most, name
        )  # fmt: skip
    return replace(records, table=table, is_json=True, changes=(), shape=name)


def _find(records: Records) -> str:
    for record in islice(records.each(), _LOOKED_AT):
        if isinstance(record, SourcedRecord):
            name = find_format(record.record, record.where)
            if name != "ours":
                return name
    return "ours"


def _rows(records: Records, name: str) -> Iterator[dict[str, object]]:
    """Yield rows of a table: what each record holds as JSON, and its place in the source."""
    broken: list[tuple[DataError, str]] = []

    def readable() -> Iterator[tuple[Mapping[str, object], str]]:
        for record in records.each():
            if isinstance(record, SourcedRecord):
                yield record.record, record.where
            else:
                broken.append(record)

    most = FORMATS[name].most_per_prompt
    pairs_of_prompt: Counter[int] = Counter()
    for content, where in read_rows(readable(), name):
        yield from _taken(records, broken)
        if most is not None and isinstance(content, JudgedTask):
            prompt = hash(str(content.prompt))
            pairs_of_prompt[prompt] += 1
            if pairs_of_prompt[prompt] > most:
                continue
        if isinstance(content, DataError):
            row: dict[str, object] = {ERROR: str(content)}
        else:
            row = row_of(content) if isinstance(content, JudgedTask) else content
        yield _row(records, row, where)
    yield from _taken(records, broken)


def _taken(records: Records, broken: list[tuple[DataError, str]]) -> Iterator[dict[str, object]]:
    while broken:
        error, where = broken.pop(0)
        yield _row(records, {ERROR: str(error)}, where)


def _row(records: Records, row: Mapping[str, object], where: str) -> dict[str, object]:
    text = json.dumps(row, default=str).encode()  # dates, bytes: metadata that nothing trains on
    return {"json": text, PLACE: where.removeprefix(records.place)}
