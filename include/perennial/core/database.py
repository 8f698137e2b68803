"""Uses a SQL database in one way, whether it is SQLite (embedded) or PostgreSQL (deployed).

It hides their differences: how writers of the same thing wait for each other, and how tables are made when several processes
start at once. Used by :mod:`perennial.ledger.store` and :mod:`perennial.lake.publish`.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.errors import ReadOnly

log = logging.getLogger(__name__)

#: Longest time that a writer waits for others.
LOCK_WAIT = timedelta(seconds=60)
#: Page size of a new SQLite file: writing millions of rows takes three quarters of the time of the default 4 KiB.
_PAGE_BYTES = 32_768


class Database:
    """A database that holds no open connection between calls: it may be shared by threads and survives a fork.

    Args:
        url: SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
        check: called with the first transaction's connection, before it is used; raises if the database is not fit for use.
        read_only: the database itself refuses what writes, and a file that is missing is not made.
    """

    def __init__(self, url: str, check: Callable[[sa.Connection], None] | None = None, *, read_only: bool = False) -> None:
        # Values stay out of error messages, and so out of logs.
        how = {"creator": _reading(url)} if read_only else {}
        self.engine = sa.create_engine(url, poolclass=NullPool, hide_parameters=True, **how)
        self._check = check
        self._read_only = read_only
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self.engine.begin() as connection:
            self._look_at_it_once(connection)
            yield connection

    @contextmanager
    def writing(self, *lock: str) -> Iterator[sa.Connection]:
        """A transaction without a concurrent writer of the same ``lock``: what it reads still holds when it writes.

        SQLite has one writer at a time. PostgreSQL takes an advisory lock, which ends with the transaction, before
        anything is read; its default isolation then shows each statement what others have committed.
        """
        with self._locked(*lock) as connection:
            self._look_at_it_once(connection)
            yield connection

    @contextmanager
    def changing_tables(self) -> Iterator[sa.Connection]:
        """A transaction that makes or alters tables, all or nothing, in one process at a time.

        The database is made if it is a file that is missing.
        """
        self._refuse_if_it_only_reads()
        if self.is_sqlite:
            Path(self.engine.url.database or "").parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._let_readers_and_a_writer_coexist()
        with self._locked("create") as connection:
            yield connection

    def bound(self, moment: datetime) -> datetime:
        """A moment as statements are given it: SQLite has texts in UTC, without a zone."""
        return moment.replace(tzinfo=None) if self.is_sqlite else moment

    def leave_nothing(self, connection: sa.Connection) -> None:
        """Let SQLite overwrite what this connection removes or changes; PostgreSQL frees it by its own VACUUM."""
        if self.is_sqlite:
            connection.exec_driver_sql("PRAGMA secure_delete = ON")

    def empty_the_log(self) -> None:
        """Let SQLite's write-ahead log hold nothing any more, as far as readers let it."""
        if self.is_sqlite:
            raw = self.engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                raw.close()

    @property
    def where(self) -> str:
        """Its address without the password, for messages."""
        return self.engine.url.render_as_string(hide_password=True)

    def free_space(self, table: str) -> None:
        """Free the space of a table's removed rows now, so that its files keep no trace of them."""
        if self.is_sqlite:
            self.empty_the_log()
            return
        quoted = self.engine.dialect.identifier_preparer.quote(table)
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"VACUUM {quoted}")
        except sa.exc.DBAPIError as error:
            kind = type(error).__name__
            log.warning("VACUUM of %s failed, so the server frees the space of removed rows later: %s", table, kind)

    def create(self, metadata: sa.MetaData) -> None:
        """Create the tables that are missing. Several processes may call it at once."""
        with self.changing_tables() as connection:
            metadata.create_all(connection)

    def _refuse_if_it_only_reads(self) -> None:
        if self._read_only:
            raise ReadOnly(f"{self.where} was opened to read, and nothing is written to it")

    @contextmanager
    def _locked(self, *lock: str) -> Iterator[sa.Connection]:
        self._refuse_if_it_only_reads()
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            if not self.is_sqlite:
                connection.execute(sa.text(f"SET LOCAL lock_timeout = {int(LOCK_WAIT.total_seconds() * 1000)}"))
                take_turn(connection, "/".join(("perennial", *lock)))
            yield connection

    def _look_at_it_once(self, connection: sa.Connection) -> None:
        if self._check is not None:
            self._check(connection)
            self._check = None

    def _let_readers_and_a_writer_coexist(self) -> None:
        # Write-ahead logging is a property of the file. SQLite does not queue processes that switch it on.
        deadline = time.monotonic() + LOCK_WAIT.total_seconds()
        while True:
            try:
                with self.engine.connect() as connection:
                    cursor = connection.connection.cursor()
                    cursor.execute(f"PRAGMA page_size={_PAGE_BYTES}")  # of a new file; one that is there keeps its own
                    cursor.execute("PRAGMA journal_mode=WAL")
                return
            except Exception as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def _reading(url: str) -> Callable[[], Any]:
    """What opens connections that the database lets read only."""
    address = sa.make_url(url)

    def sqlite() -> sqlite3.Connection:
        file = Path(address.database or "").absolute()
        return sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, check_same_thread=False)

    def postgresql() -> Any:
        import psycopg2

        arguments, options = address.get_dialect()().create_connect_args(address)
        opened = psycopg2.connect(*arguments, **options)
        opened.set_session(readonly=True)
        return opened

    return sqlite if address.get_backend_name() == "sqlite" else postgresql


def take_turn(connection: sa.Connection, key: str) -> None:
    """Wait, in a transaction on PostgreSQL, until no other transaction holds the lock of this key; then hold it.

    The functions are PostgreSQL's own, whatever others of their name the database has: a lock is the first thing that a
    writer does, with all its rights.
    """
    connection.execute(
        sa.text(
            "SELECT pg_catalog.pg_advisory_xact_lock("
            "pg_catalog.hashtextextended(CAST(:key AS pg_catalog.text), CAST(0 AS pg_catalog.int8)))"
        ),
        {"key": key},
    )


def _set_up_sqlite(connection: Any, _: object) -> None:
    # The driver's own transactions begin too late to be immediate; _begin_sqlite begins them.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(LOCK_WAIT.total_seconds() * 1000)}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and then writes fails at once if another wrote in between; one that says from the
    # start that it will write waits for its turn.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def cause(error: BaseException) -> str:
    """The first line of a database's error; the following lines may quote data."""
    return next(iter(str(getattr(error, "orig", error)).splitlines()), type(error).__name__)


def as_moment(value: datetime | str) -> datetime:
    """A time as a driver gives it: SQLite's a text in UTC, PostgreSQL's in the zone of the session."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
