"""A feedback store on SQLite and, where there is a server, on PostgreSQL: fixtures."""

import itertools

import pytest
import sqlalchemy as sa

from lit_rlhf.feedback.store import FeedbackStore
from tests.support.postgres import postgres_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres():
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request, tmp_path):
    """Return the URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.db'}"
    server = request.getfixturevalue("postgres")
    name = f"feedback_{next(_numbers)}"
    engine = sa.create_engine(
        server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def store(store_url):
    with FeedbackStore.open(store_url) as opened:
        yield opened
