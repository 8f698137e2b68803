"""Makes records from rows of the ledger. Also holds the base class of all families of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, get_type_hints

import sqlalchemy as sa

from perennial.core.columns import DAMAGED
from perennial.core.database import Database
from perennial.core.errors import LedgerDamaged
from perennial.core.intervals import Interval
from perennial.evidence.plain import Evidence
from perennial.ledger.chain import Decisions
from perennial.ledger.records import Approval, ShadowComparison, VersionRecord
from perennial.ledger.signing import Keys

RecordT = TypeVar("RecordT")


def now() -> datetime:
    return datetime.now(UTC)


def as_record(kind: type[RecordT], row: Mapping[str, Any] | sa.RowMapping) -> RecordT:
    """Make a record of class ``kind`` from a row: ``start`` and ``end`` become an interval, and evidence gets its type.

    Raises:
        LedgerDamaged: the row holds something that Perennial does not write.
    """
    values: dict[str, Any] = dict(row)
    if "start" in values:
        values["interval"] = Interval(values.pop("start"), values.pop("end"))
    for name, evidence in _evidence_of(kind).items():  # type: ignore[arg-type]  # mypy takes no type[T] for hashable
        try:
            values[name] = evidence.from_json(values[name])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            of = f" of {values['model']}" if "model" in values else ""
            raise LedgerDamaged(f"the {kind.__name__}{of} in the ledger has no readable {name}; {DAMAGED}") from error
    return kind(**values)


def as_columns(record: Approval | ShadowComparison | VersionRecord) -> dict[str, Any]:
    """The inverse of :func:`as_record`. Empty evidence becomes an empty mapping."""
    values = {field.name: as_column(getattr(record, field.name)) for field in fields(record)}
    if isinstance(interval := values.pop("interval", None), Interval):
        values |= {"start": interval.start, "end": interval.end}
    return values


def as_column(value: Any) -> Any:
    """The value that a column stores for a value of a record."""
    if isinstance(value, Evidence):
        return {} if value.is_empty else value.to_json()
    return value


@cache
def _evidence_of(kind: type[Any]) -> dict[str, type[Evidence]]:
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Evidence)}


def matches(table: sa.Table, key: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in key.items()]


class TableFamily:
    """A family of the ledger's tables in one database; each family of :mod:`perennial.ledger` extends it.

    Args:
        database: holds no open connection between calls.
        keys: sign decisions.
    """

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys

    def _list(self, kind: type[RecordT], query: sa.Select[Any]) -> list[RecordT]:
        with self._database.reading() as connection:
            return [as_record(kind, row) for row in connection.execute(query).mappings()]

    @contextmanager
    def _deciding(self, *lock: str) -> Iterator[Decisions]:
        """Like :meth:`Database.writing`, for rows of decisions; after the transaction, its newest entry is written down."""
        with self._database.writing(*lock) as connection:
            decisions = Decisions(connection, self._keys)
            yield decisions
        if decisions.head is not None:
            self._keys.note(decisions.head)

    def _replace(self, connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        connection.execute(sa.delete(table).where(*matches(table, key)))
        connection.execute(sa.insert(table).values({**key, **values}))
