"""The first tables: where the steps begin. A new store gets all tables by the schema itself."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Do nothing: a store without tables does not come here."""
