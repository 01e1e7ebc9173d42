"""The tables of the feedback store.

    prompts ── responses ── task_responses ── tasks ── slots
                                                └───── judgments ── labelers

Judgments are never changed or deleted. A correction is a judgment of its own; of a labeler's
judgments of one task, the newest by (`valid_from`, `seq`) counts (`current_judgments`). How many
labelers a task still needs is no count but its open `slots`, so two who ask at once cannot both
get the last one.

A new store is made of these tables. Every change here needs a step in `migrations/versions/` as
well, for the stores that are there; a test compares what the two lead to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    exists,
    or_,
    select,
    text,
)
from sqlalchemy.engine import Dialect

Value = TypeVar("Value")


class JsonText(TypeDecorator[object]):
    """A value as JSON text: equal values are equal texts, so SQL can group them.

    JSON also escapes what databases refuse in texts: the character 0, and halves of characters.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object | None, dialect: Dialect) -> str | None:
        """Write the value; None is NULL."""
        return None if value is None else dump_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> object | None:
        """Read the value."""
        return None if value is None else json.loads(value)


def dump_json(value: object) -> str:
    """Return the value as JSON text: the same text for equal values, whatever their key order."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as a browser may send it
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return text


# The first 32 hexadecimal digits of a SHA-256.
_Digest = String(32)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

prompts = Table(
    "prompts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", _Digest, nullable=False, unique=True),
    Column("content", JsonText, nullable=False),  # a text, or a list of chat messages
    Column("bucket", Integer, nullable=False),  # 0 to 99, by a hash: see splits.py
)
responses = Table(
    "responses",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", _Digest, nullable=False, unique=True),
    Column("prompt_id", ForeignKey("prompts.id"), nullable=False, index=True),
    Column("text", JsonText, nullable=False),
    Column("model", JsonText),  # the policy's name, as the file or the sampler gives it
    Column("checkpoint", JsonText),
    Column("sampling", JsonText),
)
labelers = Table(
    "labelers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("kind", String(10), nullable=False),  # "person" or "model"
    Column("is_paused", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
)
tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", _Digest, nullable=False, unique=True),
    Column("prompt_id", ForeignKey("prompts.id"), nullable=False, index=True),
    Column("kind", String(10), nullable=False),  # comparison, ranking, rating or edit
    Column("question", JsonText),  # NULL: which response is better, or how good
    Column("repeats", ForeignKey("tasks.id"), index=True),  # asked again for self-agreement
    Column("metadata", JsonText),
    Column("created_at", Double, nullable=False),
)
task_responses = Table(
    "task_responses",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("response_id", ForeignKey("responses.id"), nullable=False, index=True),
)
judgments = Table(
    "judgments",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("labeler_id", ForeignKey("labelers.id")),  # NULL: the file did not say
    Column("outcome", String(12), nullable=False),
    Column("ranks", JsonText),
    Column("strength", Integer),
    Column("ratings", JsonText),
    Column("edit", JsonText),
    Column("is_gold", Boolean, nullable=False),
    Column("comment", JsonText),
    Column("duration_s", Double),
    Column("side_order", JsonText),
    Column("shown_at", Double),
    Column("submitted_at", Double),
    Column("received_at", Double, nullable=False),
    Column("guideline", JsonText),
    Column("replaces", String(64)),  # may arrive after the one that replaces it
    Column("client", JsonText),
    # When it was submitted, but never before what it replaces, however the client's clock runs.
    Column("valid_from", Double, nullable=False),
    Index(None, "task_id", "labeler_id", "valid_from", "seq"),
    Index(None, "labeler_id", "task_id"),
)
# SQLite's planner wants the condition as SQLAlchemy writes it in queries.
Index(
    "ix_judgments_gold",
    judgments.c.task_id,
    sqlite_where=text("is_gold = 1"),
    postgresql_where=text("is_gold"),
)
slots = Table(
    "slots",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("labeler_id", ForeignKey("labelers.id")),
    Column("lease_until", Double),
    Column("judgment_id", ForeignKey("judgments.id")),
    UniqueConstraint("task_id", "labeler_id"),
)
# Who may use the labeling page: secrets are stored as their SHA-256 alone.
access = Table(
    "access",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("kind", String(10), nullable=False),  # invitation, session or api
    Column("role", String(10), nullable=False),  # labeler, admin or api
    Column("labeler_id", ForeignKey("labelers.id"), nullable=False, index=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),  # of an invitation, which is exchanged once
)
_AT_ONCE = 500  # values in one statement
_is_open = slots.c.judgment_id.is_(None)
_only_open: dict[str, Any] = {"sqlite_where": _is_open, "postgresql_where": _is_open}
Index("ix_slots_open", slots.c.task_id, slots.c.n, **_only_open)
Index("ix_slots_leased", slots.c.labeler_id, slots.c.task_id, **_only_open)


def in_parts(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Yield as many values at a time as a statement takes."""
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def current_judgments(*columns: ColumnElement[Any]) -> Select[Any]:
    """Select judgments that no newer one of the same labeler on the same task has corrected.

    A judgment without a labeler always counts: nobody could correct it.

    Args:
        *columns: what to select; all columns of `judgments` where none are given.
    """
    newer = judgments.alias("newer")
    is_newer = or_(
        newer.c.valid_from > judgments.c.valid_from,
        and_(newer.c.valid_from == judgments.c.valid_from, newer.c.seq > judgments.c.seq),
    )
    return select(*(columns or judgments.c)).where(
        ~exists().where(
            newer.c.task_id == judgments.c.task_id,
            newer.c.labeler_id == judgments.c.labeler_id,
            is_newer,
        )
    )
