"""The next task of a labeler without a look at all that this labeler judged."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Let the indexes of labelers know the tasks, too."""
    op.drop_index("ix_judgments_labeler_id", "judgments")
    op.create_index("ix_judgments_labeler_id_task_id", "judgments", ["labeler_id", "task_id"])
    op.drop_index("ix_slots_labeler_id", "slots")
    is_open = sa.text("judgment_id IS NULL")
    op.create_index(
        "ix_slots_leased",
        "slots",
        ["labeler_id", "task_id"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
