"""PostgreSQL, on which a run's judgments may be."""

from tests.support.feedback_stores import postgres, store_url  # noqa: F401 - fixtures
