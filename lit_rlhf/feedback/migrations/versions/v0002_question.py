"""Tasks know which of several questions about the same responses they ask."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; tasks that are there ask the usual question."""
    op.add_column("tasks", sa.Column("question", sa.Text))
