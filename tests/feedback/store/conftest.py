"""Every test of the store runs on SQLite and, where there is a server, on PostgreSQL."""

from tests.support.feedback_stores import postgres, store, store_url  # noqa: F401 - fixtures
