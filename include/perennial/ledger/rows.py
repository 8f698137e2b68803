"""How rows of the ledger become records, and what every family of tables shares: the database and two ways to use it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from perennial.core.database import Database
from perennial.core.intervals import Interval

RecordT = TypeVar("RecordT")


def now() -> datetime:
    return datetime.now(UTC)


def as_record(kind: type[RecordT], row: Mapping[str, Any] | sa.RowMapping) -> RecordT:
    """A row as the dataclass of the same columns, its bounds made an interval."""
    values: dict[str, Any] = dict(row)
    if "start" in values:
        values["interval"] = Interval(values.pop("start"), values.pop("end"))
    return kind(**values)


def matches(table: sa.Table, key: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in key.items()]


class Rows:
    """A family of the ledger's tables in one database; each family of :mod:`perennial.ledger` extends it.

    Args:
        database: holds no open connection between calls.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def _list(self, kind: type[RecordT], query: sa.Select[Any]) -> list[RecordT]:
        with self._database.reading() as connection:
            return [as_record(kind, row) for row in connection.execute(query).mappings()]

    def _replace(self, connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        connection.execute(sa.delete(table).where(*matches(table, key)))
        connection.execute(sa.insert(table).values({**key, **values}))
