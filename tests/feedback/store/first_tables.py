"""The tables of a store of the first version, to see it become one of the newest."""

import sqlalchemy as sa
from alembic import op


def create_first_tables() -> None:
    """Create them, inside of an `Operations.context`."""
    _create_prompts_and_responses()
    _create_tasks()
    _create_judgments()
    _create_slots()
    op.create_table(
        "alembic_version",
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),  # as alembic makes it
    )
    op.execute("INSERT INTO alembic_version VALUES ('0001')")


def _create_prompts_and_responses() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        sa.UniqueConstraint("digest", name="uq_prompts_digest"),
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("prompt_id", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("checkpoint", sa.Text),
        sa.Column("sampling", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_responses"),
        sa.UniqueConstraint("digest", name="uq_responses_digest"),
        _reference("responses", "prompt_id", "prompts.id"),
    )
    op.create_index("ix_responses_prompt_id", "responses", ["prompt_id"])


def _create_tasks() -> None:
    op.create_table(
        "labelers",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("is_paused", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_labelers"),
        sa.UniqueConstraint("name", name="uq_labelers_name"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("prompt_id", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("repeats", sa.Integer),
        sa.Column("metadata", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("digest", name="uq_tasks_digest"),
        _reference("tasks", "prompt_id", "prompts.id"),
        _reference("tasks", "repeats", "tasks.id"),
    )
    op.create_index("ix_tasks_prompt_id", "tasks", ["prompt_id"])
    op.create_index("ix_tasks_repeats", "tasks", ["repeats"])
    op.create_table(
        "task_responses",
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("response_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "position", name="pk_task_responses"),
        _reference("task_responses", "task_id", "tasks.id"),
        _reference("task_responses", "response_id", "responses.id"),
    )
    op.create_index("ix_task_responses_response_id", "task_responses", ["response_id"])


def _create_judgments() -> None:
    op.create_table(
        "judgments",
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("labeler_id", sa.Integer),
        sa.Column("outcome", sa.String(12), nullable=False),
        sa.Column("ranks", sa.Text),
        sa.Column("strength", sa.Integer),
        sa.Column("ratings", sa.Text),
        sa.Column("edit", sa.Text),
        sa.Column("is_gold", sa.Boolean, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("duration_s", sa.Double),
        sa.Column("side_order", sa.Text),
        sa.Column("shown_at", sa.Double),
        sa.Column("submitted_at", sa.Double),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("guideline", sa.Text),
        sa.Column("replaces", sa.String(64)),
        sa.Column("client", sa.Text),
        sa.Column("valid_from", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_judgments"),
        sa.UniqueConstraint("id", name="uq_judgments_id"),
        _reference("judgments", "task_id", "tasks.id"),
        _reference("judgments", "labeler_id", "labelers.id"),
    )
    op.create_index("ix_judgments_labeler_id", "judgments", ["labeler_id"])
    newest = ["task_id", "labeler_id", "valid_from", "seq"]
    op.create_index("ix_judgments_" + "_".join(newest), "judgments", newest)


def _create_slots() -> None:
    op.create_table(
        "slots",
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("labeler_id", sa.Integer),
        sa.Column("lease_until", sa.Double),
        sa.Column("judgment_id", sa.String(64)),
        sa.PrimaryKeyConstraint("task_id", "n", name="pk_slots"),
        sa.UniqueConstraint("task_id", "labeler_id", name="uq_slots_task_id_labeler_id"),
        _reference("slots", "task_id", "tasks.id"),
        _reference("slots", "labeler_id", "labelers.id"),
        _reference("slots", "judgment_id", "judgments.id"),
    )
    op.create_index("ix_slots_labeler_id", "slots", ["labeler_id"])
    is_open = sa.text("judgment_id IS NULL")
    op.create_index(
        "ix_slots_open", "slots", ["task_id", "n"], sqlite_where=is_open, postgresql_where=is_open
    )


def _reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}")
