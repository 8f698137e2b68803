"""One entity that is to be erased, and how its rows are found in each place.

Neighbour: :mod:`perennial.operations.forget` erases what is found here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.expressions import AlwaysTrue, BooleanExpression

from perennial.core.errors import ErasureError
from perennial.core.intervals import utc
from perennial.core.sql import connect, literal, quoted
from perennial.lake.erasure import AnyOf, Equal, Finder
from perennial.lake.schema import ARROW, published_schema
from perennial.ledger.erasures import word_pattern
from perennial.serving.online_table import entity_text
from perennial.spec.model import ModelSpec

#: Shorter values are not searched for in texts: they occur in too many that are about something else.
SHORTEST_WORD = 4
#: DuckDB's name of each type of a column.
_DUCKDB = {
    "string": "VARCHAR", "integer": "BIGINT", "float": "DOUBLE", "boolean": "BOOLEAN", "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
}  # fmt: skip
#: The only key of a quarantined row whose line could not be read as columns.
_RAW = "_raw"


@dataclass(frozen=True)
class Entity:
    """The entity that is to be erased.

    Attributes:
        spec: the model's spec.
        values: the values that name the entity, by column, as they were given.
        keys: entity keys as texts, in the order of the spec's key: the key that was given, or the keys of all rows that have
            the given value of a column.
        quoted: how warnings and pages quote its quarantined rows: position and reason.
    """

    spec: ModelSpec
    values: Mapping[str, str]
    keys: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    quoted: frozenset[str] = field(default_factory=frozenset)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the entity's key."""
        return tuple(self.spec.entity_table.key)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that name the entity, sorted."""
        return tuple(sorted(self.values))

    def in_table(self, schema: pa.Schema) -> Finder | None:
        """A finder of the entity's rows in a table with these columns; None if the columns cannot identify them."""
        found = self.equal(schema)
        if not found:
            return None
        return found[0] if len(found) == 1 else AnyOf(tuple(found))

    def equal(self, schema: pa.Schema) -> list[Equal]:
        """Conditions on these columns, each of which identifies the entity's rows."""
        found: list[Equal] = []
        if set(self.columns) <= set(schema.names):
            found += _equal(schema, self.columns, [tuple(self.values[name] for name in self.columns)])
        if self.keys and set(self.key) <= set(schema.names) and set(self.key) != set(self.columns):
            found += _equal(schema, self.key, self.keys)
        return found

    def in_quarantine(self) -> Finder:
        """A finder of the entity's rows in the quarantine, which stores rows as texts."""
        return _Quarantined(self)

    def in_requests(self) -> Finder:
        """A finder of rows of ``online_requests`` that were asked about the entity."""
        return _Requested(self)

    def in_pushed(self, rows: pa.Table) -> pa.Array:
        """Which rows of ``pushed_rows``, with their ``table`` and ``row``, are the entity's."""
        conditions: list[str] = []
        with connect() as connection:
            connection.register("pushed", rows)
            for name, table in self.spec.tables.items():
                for columns, wanted in (
                    (self.columns, [tuple(self.values[one] for one in self.columns)]),
                    (self.key, self.keys),
                ):
                    if not wanted or not set(columns) <= set(table.columns):
                        continue
                    kinds = [_DUCKDB[table.columns[one].type] for one in columns]
                    its = ", ".join(
                        f'k{place} := TRY_CAST(json_extract_string("row", {literal(f"$.{quoted(one)}")}) AS {kind})'
                        for place, (one, kind) in enumerate(zip(columns, kinds, strict=True))
                    )
                    named = ", ".join(f"k{place} := TRY_CAST(_{place} AS {kind})" for place, kind in enumerate(kinds))
                    there = f"wanted_{len(conditions)}"
                    connection.register(
                        there, pa.table({f"_{place}": list(each) for place, each in enumerate(zip(*wanted, strict=True))})
                    )
                    same = f"struct_pack({its}) IN (SELECT struct_pack({named}) FROM {there})"
                    conditions.append(f'("table" = {literal(name)} AND {same})')
            # One that is no JSON, which a scorer never writes, is nobody's.
            found = connection.sql(
                f"SELECT coalesce({' OR '.join(conditions) or 'false'}, false) AS found FROM "
                """(SELECT "table", CASE WHEN json_valid("row") THEN "row" ELSE '{}' END AS "row" FROM pushed)"""
            )
            mask: pa.Array = found.to_arrow_table()["found"].combine_chunks()
        return mask

    def keys_in_pushed(self, rows: pa.Table) -> frozenset[tuple[str, ...]]:
        """The entity keys of these rows of ``pushed_rows``, as far as they have them."""
        found = (json.loads(text) for text in rows["row"].to_pylist())
        keys = (tuple(values.get(name) for name in self.key) for values in found)
        return frozenset(one for one in keys if all(value is not None for value in one))

    @cached_property
    def typed_keys(self) -> set[tuple[object, ...]]:
        """The entity's keys, each with the types of the spec."""
        published = published_schema(self.spec.entity_table)
        return {
            tuple(values[one.columns.index(name)] for name in self.key)
            for one in self.equal(pa.schema([published.field(name) for name in self.key]))
            if set(one.columns) == set(self.key)
            for values in one.tuples
        }

    def keys_in(self, rows: pa.Table) -> frozenset[tuple[str, ...]]:
        """The entity keys of these rows; none if the key's columns are missing."""
        if not set(self.key) <= set(rows.column_names):
            return frozenset()
        columns = [[_text(value) for value in rows[name].to_pylist()] for name in self.key]
        return frozenset(one for one in zip(*columns, strict=True) if all(value is not None for value in one))

    @cached_property
    def words(self) -> list[str]:
        """What a text, such as a warning, may quote of the entity, without strings shorter than :data:`SHORTEST_WORD`."""
        named = [self.values[name] for name in (self.key if set(self.key) == set(self.columns) else self.columns)]
        found = {", ".join(named), *(", ".join(one) for one in self.keys), *self.quoted}
        return sorted(word for word in found if len(word) >= SHORTEST_WORD)

    def in_file(self, path: Path) -> bool:
        """Whether a file quotes one of the entity's values: a report, or rows that one task hands to another.

        Raises:
            OSError: the file cannot be read.
        """
        if path.suffix == ".parquet":
            return _in_parquet(path, [tuple(self.values[name] for name in self.columns), *self.keys])
        pattern = word_pattern(self.words)
        return pattern is not None and pattern.search(path.read_text(encoding="utf-8", errors="replace")) is not None


def _text(value: Any) -> str | None:
    return None if value is None else value.isoformat() if isinstance(value, date) else str(value)


def _value(text: str, kind: pa.DataType) -> object:
    """The text as a value of a column's type; None if it is not such a value."""
    try:
        if pa.types.is_timestamp(kind):
            return utc(text)
        if pa.types.is_date(kind):
            return date.fromisoformat(text)
        if pa.types.is_boolean(kind):
            return {"true": True, "false": False}[text.lower()]
        if pa.types.is_integer(kind):
            return int(text)
        if pa.types.is_floating(kind):
            return number if math.isfinite(number := float(text)) else None
        return text
    except (ValueError, KeyError):
        return None


def _equal(schema: pa.Schema, names: tuple[str, ...], texts: Iterable[tuple[str, ...]]) -> list[Equal]:
    kinds = [schema.field(name).type for name in names]
    found = (tuple(_value(text, kind) for text, kind in zip(one, kinds, strict=True)) for one in texts)
    tuples = frozenset(one for one in found if all(value is not None for value in one))
    return [Equal(names, tuples)] if tuples else []


def check_values(spec: ModelSpec, values: Mapping[str, str]) -> None:
    """Refuse values that no row can have.

    Raises:
        ErasureError: no table of the model has the column, or the value is not of its type.
    """
    for name, text in values.items():
        kinds = {table.columns[name].type for table in spec.tables.values() if name in table.columns}
        if not kinds:
            known = ", ".join(sorted({column for table in spec.tables.values() for column in table.columns}))
            raise ErasureError(f"{spec.name}: no table has a column {name}; there are: {known}")
        if not any(_value(text, ARROW[kind]) is not None for kind in kinds):
            raise ErasureError(f"{spec.name}: the value given for {name} is not of the type {' or '.join(sorted(kinds))}")


# --- the quarantine --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Quarantined:
    """Finds rows by their stored text: a JSON object of the source's columns, or a line that could not be read as a row.

    A column that the spec computes is computed again. If that fails, the row is found if any of its values is the same. A row
    that is found by mistake does no harm: only people read the quarantine.
    """

    entity: Entity

    @property
    def where(self) -> BooleanExpression:
        return AlwaysTrue()

    def finds(self, rows: pa.Table) -> pa.Array:
        if not {"table", "row"} <= set(rows.column_names):
            return pa.repeat(False, rows.num_rows)
        texts = list(zip(rows["table"].to_pylist(), rows["row"].to_pylist(), strict=True))
        return pa.array([self._is_its(table, text) for table, text in texts], pa.bool_())

    def _is_its(self, table: str | None, text: str | None) -> bool:
        if text is None:
            return False
        try:
            row = json.loads(text)
        except ValueError:
            row = {_RAW: text}
        entity = self.entity
        wanted = [({*entity.columns}, [entity.values])]
        wanted.append(({*entity.key}, [dict(zip(entity.key, one, strict=True)) for one in entity.keys]))
        if not isinstance(row, dict) or set(row) == {_RAW}:
            line = str(row.get(_RAW) if isinstance(row, dict) else row)
            return any(_in_line(values, line) for _, every in wanted for values in every)
        return any(self._has(table, row, values) for _, every in wanted for values in every)

    def _has(self, table: str | None, row: Mapping[str, Any], values: Mapping[str, str]) -> bool:
        given = {name.casefold(): value for name, value in row.items()}
        spec = self.entity.spec.tables.get(table or "")
        for name, text in values.items():
            column = spec.columns.get(name) if spec is not None else None
            kind = ARROW[column.type] if column is not None else pa.string()
            if column is not None and column.sql is not None:
                computed = _computed(column.sql, column.type, row)
                there = [computed] if computed is not None else list(row.values())
                # A row that was pushed has the table's own columns.
                there += [given[name.casefold()]] if name.casefold() in given else []
            elif name.casefold() in given:
                there = [given[name.casefold()]]
            else:
                there = list(row.values()) if column is None else []
            if not any(_same(value, text, kind) for value in there):
                return False
        return True


def _in_line(values: Mapping[str, str], line: str) -> bool:
    return all((pattern := word_pattern([text])) is not None and pattern.search(line) for text in values.values())


def _same(value: Any, text: str, kind: pa.DataType) -> bool:
    if value is None:
        return False
    shown = _text(value) or ""
    if shown.strip() == text.strip():
        return True
    parsed = _value(shown.strip(), kind)
    return parsed is not None and parsed == _value(text, kind)


def _computed(sql: str, kind: str, row: Mapping[str, Any]) -> str | None:
    """The result of a spec's expression on a row of texts; None if it fails."""
    names = ", ".join(f"? AS {quoted(name)}" for name in row)
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as connection:
        try:
            connection.execute("SET TimeZone = 'UTC'")
            texts = [None if value is None else str(value) for value in row.values()]
            target = {"string": "VARCHAR", "timestamp": "TIMESTAMPTZ", "integer": "BIGINT", "float": "DOUBLE"}.get(kind, kind)
            query = f"SELECT (({sql})::{target})::VARCHAR FROM (SELECT {names})"
            [(found,)] = connection.execute(query, texts).fetchall()
        except duckdb.Error:
            return None
    return None if found is None else str(found)


# --- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Requested:
    """Finds rows by the entity's key, and by features that have the values by which the entity was named."""

    entity: Entity

    @property
    def where(self) -> BooleanExpression:
        return AlwaysTrue()

    def finds(self, rows: pa.Table) -> pa.Array:
        keys = sorted(entity_text(key) for key in self.entity.typed_keys)
        conditions = [f"entity IN ({', '.join(map(literal, keys))})"] if keys else []
        same = []
        for name, text in self.entity.values.items():
            value = f"json_extract_string(features, {literal(f'$.{quoted(name)}')})"
            same.append(f"({value} = {literal(text)} OR TRY_CAST({value} AS DOUBLE) = TRY_CAST({literal(text)} AS DOUBLE))")
        conditions.append(f"({' AND '.join(same)})")
        with connect() as connection:
            connection.register("requests", rows.select(["entity", "features"]))
            found = connection.sql(f"SELECT coalesce({' OR '.join(conditions)}, false) AS found FROM requests")
            mask: pa.Array = found.to_arrow_table()["found"].combine_chunks()
        return mask


# --- files -----------------------------------------------------------------------------------------------------------


def _in_parquet(path: Path, tuples: Iterable[tuple[str, ...]]) -> bool:
    wanted = {frozenset(one) for one in tuples}
    single = {next(iter(one)) for one in wanted if len(one) == 1}
    several = [one for one in wanted if len(one) > 1]
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException:
        return False  # an incomplete file: it is still being written, or its process died
    with file:
        for batch in file.iter_batches():
            columns = [_texts(column) for column in batch.columns]
            if single and any(pc.any(pc.is_in(column, value_set=pa.array(single, pa.string()))).as_py() for column in columns):
                return True
            if several:
                rows = zip(*(column.to_pylist() for column in columns), strict=True)
                if any(one <= set(row) for row in rows for one in several):
                    return True
            for column in columns:
                # The column `row` of the quarantine holds a whole row as one text.
                if "row" in batch.schema.names and column is columns[batch.schema.names.index("row")]:
                    patterns = [word_pattern([text]) for text in single]
                    lines = [text for text in column.to_pylist() if text]
                    if any(pattern is not None and pattern.search(line) for pattern in patterns for line in lines):
                        return True
    return False


def _texts(column: pa.Array) -> pa.Array:
    try:
        return pc.cast(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if value is None else str(value.as_py()) for value in column], pa.string())
