"""Rows of a table that a client gives online: cast and checked one by one, as ingestion casts and checks them.

The client names the table's own columns, not those of a source, so an expression ``sql`` of a column is not used. All other
rules are those of :mod:`perennial.ingestion.casting`, and the critical checks are those of :mod:`perennial.ingestion.suite`,
which judges many rows at once and takes seconds to import. A bad value is refused, since nobody looks into a quarantine here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from perennial.core.errors import NotAnswered, SourceError
from perennial.core.intervals import Interval
from perennial.core.sql import connect
from perennial.core.text import visible
from perennial.ingestion.casting import LANDED_EXTRAS, ROW, Bound, LandedPart, bind, typed_query
from perennial.ingestion.delimited import POSITION
from perennial.ingestion.local_time import add_macros
from perennial.lake.schema import published_schema
from perennial.spec.data import Column, Table
from perennial.spec.folder import ModelFolder

#: All moments that a row may have.
_ALWAYS = Interval.of("0001-01-02", "9999-12-30")
_SHOWN = 60


@dataclass(frozen=True)
class Fault:
    """What is wrong in a row.

    Attributes:
        row: its number, from 0.
        field: the column.
        reason: what is wrong, for the client who sent it.
    """

    row: int
    field: str
    reason: str


class GivenTable:
    """Reads rows of one table of a model. Threads may share it.

    Args:
        folder: the model's folder.
        table: the table's name.
    """

    def __init__(self, folder: ModelFolder, table: str) -> None:
        self._folder = by_columns(folder, table)
        self._table = self._folder.spec.tables[table]
        self._name = table
        self._bound: dict[pa.Schema, Bound] = {}
        self._lock = threading.Lock()
        self._connection = connect()
        add_macros(self._connection)
        # As in perennial.ingestion.checks: what two expressions share would be computed outside of their TRY.
        self._connection.execute("SET disabled_optimizers = 'common_subexpressions,filter_pushdown'")

    def read(self, rows: pa.Table) -> pa.Table:
        """The rows with the types of the spec, and when each was known; NULL where that cannot be computed.

        Args:
            rows: columns of the table, as texts or with a type. A column that may be missing need not be there.

        Raises:
            NotAnswered: a column is unknown, missing, or of a type that cannot be cast; or a value cannot be cast, fails a
                critical check, or repeats a key. It names the first such row and its field.
        """
        self._refuse_columns(rows)
        typed, faults = self.check(rows)
        for fault in faults:
            raise NotAnswered(fault.reason, row=fault.row, field=fault.field)
        seen: set[tuple[object, ...]] = set()
        for row, key in enumerate(zip(*(typed[name].to_pylist() for name in self._table.key), strict=True)):
            if key in seen:
                raise NotAnswered(
                    f"{', '.join(self._table.key)}: a row before has the same key", row=row, field=self._table.key[0]
                )
            seen.add(key)
        return typed

    def check(self, rows: pa.Table) -> tuple[pa.Table, list[Fault]]:
        """The rows as :meth:`read` gives them, those with faults too, and what is wrong in which of them.

        Rows may share a key: each of them may be a newer state of knowledge.

        Args:
            rows: columns of the table, as texts or with a type.

        Returns:
            All rows, in their order, and the first fault of each faulty row.

        Raises:
            NotAnswered: the type of a column cannot be cast.
        """
        for name in self._table.columns:
            if name not in rows.column_names:
                rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string()))
        with self._lock:
            typed = self._cast(rows)
        faults: dict[int, Fault] = {}
        for row, values in enumerate(typed.to_pylist()):
            for field, words in _faults(self._table, values):
                faults.setdefault(row, Fault(row, field, words))
        schema = published_schema(self._table)
        return typed.select(schema.names).cast(schema), [faults[row] for row in sorted(faults)]

    def _refuse_columns(self, rows: pa.Table) -> None:
        unknown = [name for name in rows.column_names if name not in self._table.columns]
        if unknown:
            raise NotAnswered(unknown_column(self._table, self._name, unknown[0]), field=unknown[0][:_SHOWN])
        for name in self._table.columns:
            if name not in rows.column_names and _is_needed(self._table, name):
                raise NotAnswered(f"{name}: missing", row=0, field=name)

    def _cast(self, rows: pa.Table) -> pa.Table:
        bound = self._bound.get(rows.schema)
        if bound is None:
            try:
                bound = bind(self._folder, self._name, rows.schema, "entities")
            except SourceError as error:
                raise NotAnswered(str(error)) from error
            if len(self._bound) > 100:  # clients choose the types
                self._bound.clear()
            self._bound[rows.schema] = bound
        landed = rows
        for extra in LANDED_EXTRAS:
            values = pa.array(range(rows.num_rows), extra.type) if extra.name == ROW else pa.nulls(rows.num_rows, extra.type)
            landed = landed.append_column(extra, values)
        place = landed.schema.get_field_index(POSITION)
        landed = landed.set_column(place, POSITION, pa.repeat("entities", rows.num_rows))
        self._connection.register("given", landed)
        try:
            query = typed_query(self._folder, self._name, [LandedPart([], bound, "given")], _ALWAYS)
            return self._connection.sql(f"FROM ({query}) ORDER BY {ROW}").to_arrow_table()
        finally:
            self._connection.unregister("given")


def unknown_column(table: Table, called: str, name: str) -> str:
    """Says that a table has no such column."""
    return f"{visible(name[:_SHOWN])} is no column of {called}; there are {', '.join(table.columns)}"


def by_columns(folder: ModelFolder, table: str) -> ModelFolder:
    """The folder with a table whose rows come with the table's own columns, not with those of its source."""
    spec = folder.spec
    columns = {
        name: column.model_copy(update={"sql": None, "alternatives": None})
        for name, column in spec.tables[table].columns.items()
    }
    own = spec.tables[table].model_copy(update={"columns": columns, "where": None})
    return folder.model_copy(update={"spec": spec.model_copy(update={"tables": {**spec.tables, table: own}})})


def _is_needed(table: Table, name: str) -> bool:
    """Whether no row may lack a column's value."""
    column = table.columns[name]
    return name in (*table.key, table.event_time) or (not column.nullable and column.severity == "critical")


def _faults(table: Table, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong in a row: the column, and what and why."""
    for name, column in table.columns.items():
        value, fault = values[name], values[f"_fault_{name}"]
        if fault is not None:
            yield name, visible(fault)
        elif value is None:
            if _is_needed(table, name):
                yield name, f"{name}: missing"
        elif column.severity == "critical" and (words := _refused(column, value)) is not None:
            yield name, f"{name}: {words}"


def _refused(column: Column, value: Any) -> str | None:
    if column.min is not None and value < column.min:
        return f"{value} is below {column.min:.15g}"
    if column.max is not None and value > column.max:
        return f"{value} is above {column.max:.15g}"
    if column.values is not None and value not in column.values:
        return f"{_quoted(value)} is not one of {', '.join(column.values[:10])}"
    # Python's $ also matches before a last line break.
    if column.matches is not None and (value.endswith("\n") or not re.match(column.matches, value)):
        return f"{_quoted(value)} does not match {column.matches}"
    return None


def _quoted(value: str) -> str:
    return f"'{visible(value if len(value) <= _SHOWN else value[: _SHOWN - 1] + '…')}'"
