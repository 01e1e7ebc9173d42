"""Alembic runs this file: migrate over the connection that `database.py` hands over."""

from alembic import context

from lit_rlhf.feedback.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot change most things of a table in place
)
context.run_migrations()
