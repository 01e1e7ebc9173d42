import sqlite3

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.database import Database, parse_url
from lit_rlhf.feedback.schema import judgments, metadata
from lit_rlhf.feedback.store import FeedbackStore
from tests.feedback.store.first_tables import create_first_tables


def tables_of(store):
    """Return the columns and the indexes of all tables by name, and what SQLite says of indexes."""
    with store.database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        found = sa.inspect(connection)
        tables = {
            name: (
                sorted((column["name"], str(column["type"])) for column in found.get_columns(name)),
                sorted(map(described, found.get_indexes(name))),
            )
            for name in metadata.tables
        }
        sql = "SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name"
        return tables, connection.execute(sa.text(sql)).all() if store.database.is_sqlite else []


def described(index):
    """Return an index with its conditions as texts."""
    options = {name: str(value) for name, value in index["dialect_options"].items()}
    return index["name"], index["column_names"], bool(index["unique"]), sorted(options.items())


def test_a_store_of_the_first_version_becomes_what_a_new_one_is(store, store_url):
    new = tables_of(store)
    with store.database.writing() as connection:
        metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))
        with Operations.context(MigrationContext.configure(connection)):
            create_first_tables()
    with FeedbackStore.open(store_url, create=False) as old:
        assert tables_of(old) == new
        old.add_labeler("ana")


def test_another_programs_tables_are_not_taken_for_a_store(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE prompts (id INTEGER)")
    with pytest.raises(DataError, match="cannot be opened as a feedback store"):
        FeedbackStore.open(str(tmp_path / "other.db"))


def test_gold_answers_are_found_without_a_look_at_all_judgments(tmp_path):
    query = sa.select(judgments.c.task_id).where(judgments.c.is_gold)
    with (
        FeedbackStore.open(str(tmp_path / "feedback.db")) as store,
        store.database.reading() as connection,
    ):
        sql = query.compile(connection)
        plan = connection.execute(sa.text(f"EXPLAIN QUERY PLAN {sql}")).all()
    assert "ix_judgments_gold" in str(plan)


def test_opening_again_changes_nothing(store, store_url):
    store.add_labeler("ana")
    with FeedbackStore.open(store_url, create=False) as again:
        again.add_labeler("ana", "model")
        assert again.claim("ana") == []


def test_a_store_of_a_newer_version_is_refused(store, store_url):
    with store.database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DataError, match="was made by a newer lit_rlhf"):
        FeedbackStore.open(store_url)


def test_sqlite_waits_for_the_disk_and_for_other_writers(tmp_path):
    database = Database(str(tmp_path / "feedback.db"), create=True)
    with database.writing() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
        assert settings == ["wal", 2, 1, 60_000]
        # The transaction is a writer from its beginning: nobody else can become one meanwhile.
        other = sqlite3.connect(tmp_path / "feedback.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
    database.close()


def test_a_failed_transaction_leaves_nothing(store):
    def fail():
        with store.database.writing() as connection:
            connection.execute(sa.text("INSERT INTO prompts VALUES (1, 'd', '\"x\"', 0)"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert store.counts().prompts == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("feedback.db", "sqlite:///feedback.db"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("postgres://ana@host/name", "postgresql+psycopg://ana@host/name"),
        ("postgresql://ana:secret@host/name", "postgresql+psycopg://ana:***@host/name"),
    ],
)
def test_addresses(text, expected):
    assert parse_url(text).render_as_string(hide_password=True) == expected


@pytest.mark.parametrize("text", ["mysql://host/name", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(text):
    with pytest.raises(DataError, match="a feedback store is a file"):
        parse_url(text)


def test_a_file_that_is_missing_or_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no such feedback store \(looked at /"):
        FeedbackStore.open(str(tmp_path / "none.db"), create=False)
    with pytest.raises(DataError, match="there is no folder"):
        FeedbackStore.open(str(tmp_path / "nowhere" / "none.db"))
    text = tmp_path / "text.db"
    text.write_text(
        "this is a text, and long enough to be read as a database's header, 100 bytes " * 3
    )
    with pytest.raises(DataError, match="cannot be opened as a feedback store"):
        FeedbackStore.open(str(text))
