"""Judgments as rows of the table, and back; ids for judgments that came without one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import Connection, Row, Table
from sqlalchemy.dialects import postgresql, sqlite

from lit_rlhf.feedback.judgments import Judgment
from lit_rlhf.feedback.schema import dump_json

Values = dict[str, Any]  # column -> value, of whatever type the column has
# Fields of `Judgment` that are columns of the same name; `labeler` is a row of its own.
_FIELDS = tuple(field for field in Judgment._fields if field != "labeler")
_LISTS = ("ranks", "ratings", "side_order")


def digest(*parts: object) -> str:
    """Return what tells these values from others: 32 hexadecimal digits."""
    return hashlib.sha256(dump_json(parts).encode()).hexdigest()[:32]


def judgment_row(
    judgment: Judgment, task_id: int, labeler_id: int | None, received_at: float
) -> Values:
    """Return the row of a judgment, which must have its id."""
    row: Values = {field: getattr(judgment, field) for field in _FIELDS}
    shown_at, submitted_at = judgment.shown_at, judgment.submitted_at
    if row["duration_s"] is None and shown_at is not None and submitted_at is not None:
        row["duration_s"] = submitted_at - shown_at
    return row | {
        "comment": judgment.comment or None,
        "task_id": task_id,
        "labeler_id": labeler_id,
        "received_at": received_at,
        "valid_from": received_at if submitted_at is None else submitted_at,
    }


def judgment_of(row: Row[Any] | Mapping[str, Any], labeler: str | None) -> Judgment:
    """Return the judgment that a row holds."""
    columns = cast("Mapping[str, Any]", getattr(row, "_mapping", row))
    values = {field: columns[field] for field in _FIELDS}
    for field in _LISTS:
        if values[field] is not None:
            values[field] = tuple(values[field])
    return Judgment(**values | {"labeler": labeler, "comment": values["comment"] or ""})


def insert_new(connection: Connection, table: Table, rows: list[Values], *unique: str) -> int:
    """Insert rows, but for those that are there already by their unique columns.

    Returns:
        How many were new.
    """
    if not rows:
        return 0
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).on_conflict_do_nothing(index_elements=unique)
    options = {"preserve_rowcount": True}  # which psycopg's many rows would not
    return connection.execute(statement, rows, execution_options=options).rowcount
