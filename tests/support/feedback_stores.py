"""A feedback store on SQLite and, where there is a server, on PostgreSQL: fixtures."""

import itertools

import pytest
import sqlalchemy as sa

from lit_rlhf.feedback.schema import judgments, labelers
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.feedback.submitting import judgment_of
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


def judgments_of(store, labeler):
    """Return all judgments of a labeler, the newest first, each with its task's id."""
    query = (
        sa.select(*judgments.c)
        .join_from(judgments, labelers)
        .where(labelers.c.name == labeler)
        .order_by(judgments.c.seq.desc())
    )
    with store.database.reading() as connection:
        return [(row.task_id, judgment_of(row, labeler)) for row in connection.execute(query)]
