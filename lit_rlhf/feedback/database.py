"""The database behind the store: SQLite in a file, or PostgreSQL by its URL.

On SQLite every writing transaction begins IMMEDIATE. One that begins by reading, as SQLite's own
default has it, fails at once when somebody else has written in between, whatever its timeout.
Commits wait for the disk (`synchronous=FULL`): what was acknowledged survives a loss of power.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.pool import ConnectionPoolEntry

from lit_rlhf.errors import DataError
from lit_rlhf.extras import require_extra
from lit_rlhf.feedback.schema import metadata

_BUSY_TIMEOUT_S = 60
_MIGRATIONS = Path(__file__).parent / "migrations"
# Numbers that stand for "migrating a feedback store" and "adding to it" among PostgreSQL's locks.
_MIGRATION_LOCK = 7_226_017
_ADDING_LOCK = 7_226_018
_BEGIN = "lit_rlhf_begin"


class Database:
    """Connections to one database, for reading and for writing.

    Attributes:
        url: where it is.
    """

    def __init__(self, url: str, *, create: bool) -> None:
        """Connect, and bring the tables up to date.

        Args:
            url: a file's name, `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.
            create: make the SQLite file where there is none.

        Raises:
            DataError: there is no such store, it cannot be opened, or a newer version made it.
            ConfigError: PostgreSQL's driver is not installed.
        """
        self.url = parse_url(url)
        if self.is_sqlite:
            _check_file(Path(self.url.database or ""), create=create)
        else:
            require_extra("postgres", f"the feedback store {self}")
        # SQLite lets one write and has the others look again after up to 0.1 s, in no order. A
        # lock hands the turn on at once. PostgreSQL writes side by side.
        self._turn = threading.RLock() if self.is_sqlite else contextlib.nullcontext()
        self._engine = _make_engine(self.url)
        try:
            self._migrate()
        except DatabaseError as error:
            self.close()
            message = f"{self}: cannot be opened as a feedback store: {error.orig}"
            raise DataError(message) from error
        except DataError:
            self.close()
            raise

    def __str__(self) -> str:
        """Return the address without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open one state of the database to read from, whatever is written meanwhile."""
        options: dict[str, Any] = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._engine.execution_options(**options).begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that is written as a whole when the block ends, or not at all."""
        with (
            self._turn,
            self._engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"}).begin() as connection,
        ):
            yield connection

    def wait_to_add(self, connection: Connection) -> None:
        """Let those who add many rows wait for each other until the transaction ends.

        Two that add the same rows in other orders would wait for each other for ever. On SQLite
        all writers wait.
        """
        if not self.is_sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADDING_LOCK})"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _version(connection) == _newest_version():
                return
        # Alembic takes a moment to import, and is needed once in a store's life.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            config.attributes["connection"] = connection
            if _version(connection) is None:
                metadata.create_all(connection, checkfirst=False)
                command.stamp(config, "head")
                return
            try:
                command.upgrade(config, "head")
            except CommandError as error:  # its version is none that this package knows
                raise DataError(
                    f"{self}: was made by a newer lit_rlhf ({error}); install that version."
                ) from error


def parse_url(text: str) -> URL:
    """Return the address of a store.

    Args:
        text: a file's name, or a URL.

    Raises:
        DataError: it is neither a file nor an address of SQLite or PostgreSQL.
    """
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        url = make_url(text.replace("postgres://", "postgresql://", 1))
    except ArgumentError as error:
        raise DataError(f"{text}: is not an address of a feedback store: {error}") from error
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        raise DataError(
            f"{url.render_as_string()}: a feedback store is a file (feedback.db or "
            "sqlite:///feedback.db) or a PostgreSQL database (postgresql://USER@HOST/NAME)."
        )
    return url


def _check_file(path: Path, *, create: bool) -> None:
    if not path.is_file() and not create:
        raise DataError(f"{path}: there is no such feedback store (looked at {path.absolute()}).")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent.absolute()}; make it first.")


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: ConnectionPoolEntry) -> None:  # noqa: ANN401 - of the driver
        connection.isolation_level = None  # the driver begins no transaction of its own
        _use_wal(connection)
        # Ids are random, so an import touches pages all over their indexes: keep 64 MiB of them.
        for setting in ("synchronous=FULL", "foreign_keys=ON", "cache_size=-65536"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    return engine


def _use_wal(connection: Any) -> None:  # noqa: ANN401 - of the driver
    """Set the journal's mode; SQLite waits for nobody here, so wait where others open it too."""
    end = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@functools.cache
def _newest_version() -> str:
    files = sorted((_MIGRATIONS / "versions").glob("v*.py"))
    return files[-1].stem[1:].split("_")[0]
