"""Types and columns of the ledger's tables, and the metadata that all of them belong to.

Used by :mod:`perennial.ledger.store` and :mod:`perennial.alerts.outbox`. :mod:`perennial.ledger.migrations` makes the tables in
a database.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.core.errors import LedgerDamaged
from perennial.core.intervals import utc

#: What has happened to a row that cannot be read, and what to do.
DAMAGED = (
    "another program has changed it, or the database is damaged: run perennial verify, and restore the ledger from a backup"
)

metadata = sa.MetaData()


class Utc(sa.TypeDecorator[datetime]):
    """A moment in UTC; SQLite has no zones, so it is stored there without one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        moment = utc(value)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Text(sa.TypeDecorator[str]):
    """Text that may quote a broken file: PostgreSQL keeps no NUL, and neither keeps half a surrogate pair."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else value.replace("\0", "\ufffd").encode(errors="replace").decode()


class Json(sa.TypeDecorator[Any]):
    """A JSON value as text: NaN and infinity, which a refusal's evidence may hold, come back as they were."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str:  # noqa: ARG002
        return json.dumps(value, sort_keys=True)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:  # noqa: ARG002
        try:
            return None if value is None else json.loads(value)
        except ValueError as error:
            raise LedgerDamaged(f"a value in the ledger is no JSON ({error}); {DAMAGED}") from error


def table(name: str, *columns: sa.Column[Any] | sa.Constraint | sa.Index) -> sa.Table:
    # Without AUTOINCREMENT, SQLite gives the number of a deleted last row to the next one.
    return sa.Table(f"perennial_{name}", metadata, *columns, sqlite_autoincrement=True)


def number_itself() -> sa.Column[Any]:
    # SQLite numbers rows automatically only in a column of the type INTEGER.
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)


def text(name: str, *, key: bool = False, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, Text, primary_key=key, nullable=null)


def time(name: str, *, key: bool = False, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, Utc, primary_key=key, nullable=null)


def number(name: str, *, key: bool = False, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, primary_key=key, nullable=null, autoincrement=False)


def json_value(name: str) -> sa.Column[Any]:
    return sa.Column(name, Json, nullable=False)


def insert(connection: sa.Connection, into: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say what to do when the row is there already."""
    return sqlite.insert(into) if connection.dialect.name == "sqlite" else postgresql.insert(into)
