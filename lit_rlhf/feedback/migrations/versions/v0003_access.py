"""Who may use the labeling page."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "access",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("labeler_id", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_access"),
        sa.UniqueConstraint("digest", name="uq_access_digest"),
        sa.ForeignKeyConstraint(["labeler_id"], ["labelers.id"], name="fk_access_labeler_id"),
    )
    op.create_index("ix_access_labeler_id", "access", ["labeler_id"])
