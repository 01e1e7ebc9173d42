"""The tasks with a gold answer without a look at all judgments."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the index of gold answers."""
    op.create_index(
        "ix_judgments_gold",
        "judgments",
        ["task_id"],
        sqlite_where=sa.text("is_gold = 1"),
        postgresql_where=sa.text("is_gold"),
    )
