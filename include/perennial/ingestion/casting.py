"""The SQL that casts a table's raw columns to the types of its spec, row by row.

One bad value must not fail a query. It must not silently become another value either. So each expression of a spec runs
under DuckDB's ``TRY``, which gives NULL where the expression raises. Each column gets a companion column that says why a
value could not be read. The rules:

* A text becomes a number only if it is plainly a number: ``12``, ``-3``, ``0.5``, ``1e-3``. Surrounding spaces are allowed.
  ``12.0`` is an integer. These are not numbers: ``1,234``, ``1_000``, ``12abc``, full-width digits, ``=1+1``, ``0x1F``,
  ``inf``, ``nan``, ``1e400``, integers beyond 64 bits, and numbers that contain invisible characters.
* A text becomes a timestamp only in ISO 8601 (``2013-04-01T06:00:00Z``). Offset, fraction, seconds and time may be absent.
  A text without an offset is read by the source's ``time_zone``, UTC by default, and a date as its midnight there. Digits
  beyond microseconds are dropped.
* A time that the clocks of a zone show twice, or skip, is no moment. It is a fault, also where an expression converts it by
  ``AT TIME ZONE``.
* A text becomes a boolean if it is ``true``, ``t``, ``yes``, ``y``, ``1`` or the opposite of one of these, in any case.
* A text stays a text, character by character. Leading zeros, ``NA``, ``=1+1`` and full-width digits are kept, because
  nothing here evaluates them. A text is refused if it looks like another text but differs from it: if it has control
  characters (except tab and line breaks), invisible characters, characters that change the direction of the text, no-break
  spaces, or the replacement character. ``sql: regexp_replace(name, '[^ -~]', '', 'g')`` cleans such a text.
* A typed value (Parquet, SQL, Python) is converted only if nothing is lost. A float becomes an integer only if it is whole
  and below 2⁵³; from there on it may have been another number. NaN is a missing value. A timestamp without a zone is of the
  source's ``time_zone``.

Neighbours: :mod:`perennial.ingestion.sources` binds expressions to a file's columns before it reads it;
:mod:`perennial.ingestion.checks` runs the query.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from perennial.core.errors import PerennialError, SourceError, SpecError
from perennial.core.intervals import Interval
from perennial.core.sql import connect, literal, quoted
from perennial.ingestion.delimited import FAULT, POSITION, RAW
from perennial.ingestion.local_time import add_macros, shown_twice_or_never, strictly, zone_of
from perennial.lake.schema import KNOWN, MOMENT, published_schema
from perennial.spec.data import Column, Source, Table
from perennial.spec.folder import ModelFolder

#: The period of a dated file. The event times of its rows must lie in it. Null for other sources.
FROM, UNTIL = "_from", "_until"
ROW, ROW_FAULT, KNOWN_FAULT, UNCLEAR = "_row", "_row_fault", "_known_fault", "_unclear"
#: The beginning of the period of the file that a typed row came in. Null for other sources.
ARRIVED = "_arrived"
#: The columns that a landed row has besides its raw columns. ``_row`` is its number among all landed rows, from 0.
LANDED_EXTRAS = pa.schema(
    [
        (ROW, pa.int64()),
        (POSITION, pa.string()),
        (FAULT, pa.string()),
        (RAW, pa.string()),
        (FROM, MOMENT),
        (UNTIL, MOMENT),
    ]
)

_TOKEN = re.compile(r'"((?:[^"]|"")*)"|([^\W\d]\w*)')
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_HUGE = {"UBIGINT", "HUGEINT", "UHUGEINT"}
_FLOATS = {"FLOAT", "DOUBLE"}
_MOMENT = "TIMESTAMP WITH TIME ZONE"
_TIMESTAMPS = {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", _MOMENT}
_DUCKDB = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
}
_ISO_TIME = r"\d{4}-\d{2}-\d{2}([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,12})?)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)?)?"
_LOCAL_TIME = r"\d{4}-\d{2}-\d{2}([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,12})?)?)?"
_ISO_DATE = r"\d{4}-\d{2}-\d{2}([T ]00:00(:00(\.0{1,12})?)?Z?)?"
# ZWNJ and ZWJ (200C, 200D) belong to Persian, to Indic scripts and to emoji. Beside ASCII they only hide something.
_HIDDEN = (
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{a0}\x{ad}\x{61c}\x{180e}\x{2007}\x{200b}\x{200e}\x{200f}\x{2028}-\x{202f}"
    r"\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffd}]"
    r"|(^|[\x00-\x7f])[\x{200c}\x{200d}]|[\x{200c}\x{200d}]([\x00-\x7f]|$)"
)
_PLAIN_NUMBER = r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,4})?"
#: The largest whole number that a 64-bit float tells from its neighbours.
_EXACT = 2**53 - 1


def mentioned(table: Table) -> frozenset[str]:
    """The case-folded names that the table's expressions and columns may read from its source."""
    expressions = [column.sql or " ".join(map(quoted, column.sources(name))) for name, column in table.columns.items()]
    return frozenset(name for sql in [table.where or "", *expressions] for name in _names(sql))


def _names(sql: str) -> Iterator[str]:
    """The case-folded names in an expression, those of functions included."""
    return ((match[2] or match[1].replace('""', '"')).casefold() for match in _TOKEN.finditer(sql))


def taken(table: Table, raw: pa.Schema) -> pa.Schema:
    """The columns of a source that the table mentions, except those whose names our queries use for something else."""
    wanted = mentioned(table) - {*LANDED_EXTRAS.names, "_holds"}
    return pa.schema([field for field in raw if field.name.casefold() in wanted])


@dataclass(frozen=True)
class Bound:
    """How a table reads a source that has certain columns.

    Attributes:
        expressions: SQL over the source's columns, by column of the table.
        types: the DuckDB type of each expression.
        lacking: columns that the source lacks although the table reads them, so that a nullable column is NULL.
        absent: columns that an expression names although the source lacks them. They are NULL in it.
        vacant: columns of the source whose type does not fit, with the error that says so. They fit as long as they hold no
            value, and are then landed without a type.
    """

    expressions: dict[str, str]
    types: dict[str, str]
    lacking: list[str]
    absent: list[str]
    vacant: dict[str, PerennialError] = field(default_factory=dict)


class _Unfit(Exception):  # it never leaves this module
    """A column of a source does not fit, unless it holds no value."""

    def __init__(self, error: PerennialError, columns: Sequence[str]) -> None:
        super().__init__()
        self.error, self.columns = error, columns


def may_lack(table: Table, column: str) -> bool:
    """Whether a source need not have the column: its value may be missing, and a row can be placed without it."""
    return table.columns[column].nullable and column not in table.key and column != table.event_time


def bind(folder: ModelFolder, name: str, raw: pa.Schema, place: str) -> Bound:
    """Find out how the table reads a source with these columns.

    Args:
        folder: the model's folder.
        name: the name of the table.
        raw: the columns of the source.
        place: the file and line that name the columns, for messages.

    Raises:
        SourceError: the source lacks a column, has two for one, or the type of a column cannot become the spec's type.
        SpecError: an expression is wrong for any source.
    """
    vacant: dict[str, PerennialError] = {}
    while True:
        columns = [pa.field(each.name, pa.null() if each.name in vacant else each.type) for each in raw]
        try:
            bound = _bind(folder, name, pa.schema(columns), place)
        except _Unfit as unfit:
            more = [column for column in unfit.columns if column not in vacant]
            if not more:
                raise unfit.error from None
            vacant |= dict.fromkeys(more, unfit.error)
        else:
            bound.vacant.update(vacant)
            return bound


def _bind(folder: ModelFolder, name: str, raw: pa.Schema, place: str) -> Bound:
    table = folder.spec.tables[name]
    where = f"{folder.path / 'model.yaml'}: tables.{name}"
    chosen = {column: _chosen(table, column, raw, place) for column in table.columns}
    lacking = [" or ".join(table.columns[column].sources(column)) for column, sql in chosen.items() if sql == _NOTHING]
    bound = Bound(chosen, {}, lacking, [])
    expressions = {f"columns.{column}.sql": sql for column, sql in chosen.items()}
    if table.where is not None:
        expressions["where"] = f"({table.where}\n)::BOOLEAN"
    owners = dict(zip(expressions, table.columns, strict=False))
    source = folder.spec.sources[table.source]
    with connect() as connection:
        add_macros(connection)
        while True:
            # DuckDB accepts no table without columns.
            extras = [pa.field(POSITION, pa.string()), *(pa.field(column, pa.null()) for column in bound.absent)]
            connection.register("landed", pa.schema([*taken(table, raw), *extras]).empty_table())
            try:
                types = _types(connection, "landed", expressions)
                break
            except _Refused as refused:
                column = owners.get(refused.key)
                missing = _absent_column(refused.error)
                is_replaced = missing and _is_replaced(expressions[refused.key], missing, raw)
                if missing and (is_replaced or (column is not None and may_lack(table, column))):
                    bound.absent.append(missing)
                    bound.lacking.extend([] if is_replaced else [missing])
                    continue
                error = _lacks(missing, raw, place) if missing else _unusable(where, refused)
                raise _unless_vacant(table, column, error, raw) from refused.error
        for column, spec in table.columns.items():
            kind = bound.types[column] = types[f"columns.{column}.sql"]
            if _value(spec, kind, "x", source) is None:
                unfit: PerennialError = _unfit_result(spec, kind, f"{where}.columns.{column}.sql")
                if spec.sql is None:
                    fault = f"has the type {_short(kind, 40)}, which cannot become {spec.type} without a decision"
                    unfit = SourceError(f"{place}: {column} {fault}; write it as `sql` at {where}.columns.{column}")
                raise _unless_vacant(table, column, unfit, raw)
        if table.known != "always":
            _bind_known(connection, table, where)
    return bound


#: The expression of a column that the source has nothing for.
_NOTHING = "NULL"


def _chosen(table: Table, column: str, raw: pa.Schema, place: str) -> str:
    """The expression of a column: its own, or the one column of the source that it is read from."""
    spec = table.columns[column]
    if spec.sql is not None:
        return spec.sql
    given = {name.casefold() for name in raw.names}
    present = [name for name in spec.sources(column) if name.casefold() in given]
    if len(present) > 1:
        raise SourceError(
            f"{place}: has the columns {' and '.join(present)}, but {column} is read from one of them "
            f"(`from: [{', '.join(spec.sources(column))}]`); deliver one, or write which one counts as `sql`"
        )
    if present:
        return quoted(present[0])
    if not may_lack(table, column):
        raise _lacks(" or ".join(spec.sources(column)), raw, place)
    return _NOTHING


def _unless_vacant(table: Table, column: str | None, error: PerennialError, raw: pa.Schema) -> Exception:
    """The error, or that it may be due to a column that holds no value.

    pandas writes a column without values as DOUBLE, whatever it held on other days.
    """
    if column is None or not may_lack(table, column):
        return error
    spec = table.columns[column]
    read = set(_names(spec.sql or " ".join(map(quoted, spec.sources(column)))))
    return _Unfit(
        error,
        [each.name for each in raw if each.name.casefold() in read and (spec.sql is None or pa.types.is_floating(each.type))],
    )


def _is_replaced(sql: str, missing: str, raw: pa.Schema) -> bool:
    """Whether an expression names a column only where ``coalesce`` takes another column of the source in its place."""
    given = {name.casefold() for name in raw.names}

    def reads(node: Any) -> set[str]:
        if isinstance(node, list):
            return {name for each in node for name in reads(each)}
        if not isinstance(node, dict):
            return set()
        if node.get("class") == "COLUMN_REF":
            return {str(part).casefold() for part in node["column_names"]}
        if node.get("type") == "OPERATOR_COALESCE":
            children = [reads(child) for child in node["children"]]
            if any(child and child <= given for child in children):
                return {name for child in children for name in child if name != missing.casefold()}
        return {name for each in node.values() for name in reads(each)}

    with connect() as connection:
        [(tree,)] = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{sql}\n)"]).fetchall()
    return missing.casefold() not in reads(json.loads(tree))


class _Refused(Exception):  # it never leaves this module
    """DuckDB cannot use an expression."""

    def __init__(self, key: str, error: duckdb.Error) -> None:
        super().__init__()
        self.key, self.error = key, error


def _types(connection: duckdb.DuckDBPyConnection, view: str, expressions: Mapping[str, str]) -> dict[str, str]:
    """The DuckDB types of expressions over a view. ``TRY`` must accept each expression too.

    Raises:
        _Refused: with the key of the first expression that DuckDB cannot use.
    """
    # No expression can mean these output names. Otherwise DuckDB would bind a missing column to an earlier alias.
    both = [f'(\n{sql}\n) AS "_v{n}", {_tried(strictly(sql))} AS "_t{n}"' for n, sql in enumerate(expressions.values())]
    try:
        rows = connection.execute(f"DESCRIBE SELECT {', '.join(both)} FROM {view}").fetchall()
        return dict(zip(expressions, (row[1] for row in rows[::2]), strict=True))
    except duckdb.Error:
        for key, one in zip(expressions, both, strict=True):
            try:
                connection.execute(f"DESCRIBE SELECT {one} FROM {view}")
            except duckdb.Error as error:
                raise _Refused(key, error) from error
        raise


def faults_without_rows(folder: ModelFolder, name: str, *, texts: bool) -> list[SpecError]:
    """What is wrong in a table's expressions for any source, one error per expression.

    Args:
        folder: the model's folder.
        name: the name of the table.
        texts: whether all values of the source are texts. If not, their types are not known. Then only what is wrong for
            every type is found.
    """
    table = folder.spec.tables[name]
    where = f"{folder.path / 'model.yaml'}: tables.{name}"
    kind = pa.string() if texts else pa.null()
    expressions = {f"columns.{column}.sql": spec.sql for column, spec in table.columns.items() if spec.sql is not None}
    if table.where is not None:
        expressions["where"] = f"({table.where}\n)::BOOLEAN"
    source = folder.spec.sources[table.source]
    found = []
    with connect() as connection:
        add_macros(connection)
        for place, sql in expressions.items():
            try:
                result = _bound_to_any(connection, place, sql, kind)
            except _Refused as refused:
                found.append(_unusable(where, refused))
                continue
            spec = table.columns[place.split(".")[1]] if place != "where" else None
            if spec is not None and result is not None and _value(spec, result, "x", source) is None:
                found.append(_unfit_result(spec, result, f"{where}.{place}"))
        if table.known != "always":
            try:
                _bind_known(connection, table, where)
            except SpecError as error:
                found.append(error)
    return found


def _bound_to_any(connection: duckdb.DuckDBPyConnection, place: str, sql: str, kind: pa.DataType) -> str | None:
    """The type of an expression over a source that has every column the expression reads; None if it is not known.

    Raises:
        _Refused: the expression is wrong for every source.
    """
    columns = [pa.field(POSITION, pa.string())]
    while True:
        connection.register("any_source", pa.schema(columns).empty_table())
        try:
            return _types(connection, "any_source", {place: sql})[place]
        except _Refused as refused:
            message, missing = str(refused.error), _absent_column(refused.error)
            if missing is None:
                # DuckDB cannot choose between functions for a value without a type. A name with a dot may be a part of a value.
                if kind == pa.null() and ('"NULL"' in message or "Referenced table" in message):
                    return None
                raise
            if missing in [column.name for column in columns]:
                return None  # offered, and absent where the expression looks for it: in a subquery of its own
            columns.append(pa.field(missing, kind))


def _unusable(where: str, refused: _Refused) -> SpecError:
    return SpecError(f"{where}.{refused.key}: this expression cannot be used here: {str(refused.error).splitlines()[0]}")


def _unfit_result(spec: Column, kind: str, place: str) -> SpecError:
    return SpecError(
        f"{place}: the result has the type {_short(kind, 40)}, which cannot become {spec.type} without a decision; cast it"
    )


def _bind_known(connection: duckdb.DuckDBPyConnection, table: Table, where: str) -> None:
    connection.register("typed", published_schema(table).empty_table().drop_columns([KNOWN]))
    try:
        kind = _types(connection, "typed", {"known": table.known})["known"]
    except _Refused as refused:
        if missing := _absent_column(refused.error):
            raise SpecError(f"{where}.known: no column {missing}; there are {', '.join(table.columns)}") from refused.error
        raise _unusable(where, refused) from refused.error
    if kind not in _TIMESTAMPS | {"DATE", "VARCHAR", '"NULL"'}:
        raise SpecError(f"{where}.known: gives {kind}; it must give the moment from which a row may be used")


def _absent_column(error: duckdb.Error) -> str | None:
    """The column that DuckDB does not find; None if the error is another one."""
    found = re.search(r'Referenced column "(.*?)" not found', str(error).splitlines()[0])
    return found[1] if found else None


def resembling(column: str, raw: pa.Schema) -> str:
    """A question whether another column of the source is meant; empty if none is similar."""
    close = difflib.get_close_matches(column, [name for name in raw.names if name], n=1)
    return f"; is it now called {close[0]}?" if close else ""


def _lacks(column: str, raw: pa.Schema, place: str) -> SourceError:
    names = [name for name in raw.names if name]
    shown = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
    hint = resembling(column, raw)
    if hint:
        close = hint.removeprefix("; is it now called ").removesuffix("?")
        hint += f" Then write from: [{column}, {close}], or the new name in sql"
    if not hint and len(names) == 1 and (other := next((d for d in ";\t|," if d in names[0]), None)):
        hint = f"; are the fields separated by {other!r}? Then set `delimiter` of the source"
    asked = ". Is this line the header?" if re.search(r":\d+$", place) else ""
    return SourceError(f"{place}: there is no column {column}; there are: {shown!r}{hint}{asked}")


@dataclass(frozen=True)
class LandedPart:
    """Landed files whose raw columns have the same names and types.

    Attributes:
        paths: Parquet files of raw columns and :data:`LANDED_EXTRAS`.
        bound: how the table reads them.
        relation: the name of a relation of the database that has the rows, instead of files.
        period: what the rows' ``_from`` and ``_until`` are, for messages.
    """

    paths: list[Path]
    bound: Bound
    relation: str | None = None
    period: str = "the period of its file"

    @property
    def rows(self) -> str:
        """SQL for the landed rows."""
        nothing = "".join(f", NULL AS {quoted(column)}" for column in self.bound.absent)
        if self.relation is not None:
            return f"(SELECT *{nothing} FROM {self.relation})"
        return f"(SELECT *{nothing} FROM read_parquet([{', '.join(literal(str(path)) for path in self.paths)}]))"


def typed_query(folder: ModelFolder, name: str, parts: Sequence[LandedPart], interval: Interval) -> str:
    """A query that gives the typed rows of the interval, and what is wrong in each row.

    Its columns are ``_row`` (the number of the landed row), ``_position``, ``_row_fault`` (the row could not be split, or
    ``where`` could not be computed), ``_arrived``, the spec's columns, ``_fault_<column>`` for each of them, ``_unclear`` (a
    time of it is shown twice or skipped by the clocks of its zone), ``_known_at`` and ``_known_fault``. A fault is a text for
    people, or NULL. Rows of other intervals are left out, except those that a file of an earlier day has, and those of a table
    with ``late`` that lie so long before. Rows whose event time cannot be read stay.

    Args:
        folder: the model's folder.
        name: the name of the table.
        parts: the landed rows. Each part is cast by its own types, so that days read together become what each would alone.
        interval: the interval of the rows.
    """
    table = folder.spec.tables[name]
    source = folder.spec.sources[table.source]
    in_interval = "true"
    if table.event_time is not None:
        event, fault = quoted(table.event_time), quoted(f"_fault_{table.event_time}")
        start, end = (f"TIMESTAMPTZ {literal(moment.isoformat())}" for moment in (interval.start, interval.end))
        late = f"INTERVAL {(table.late or timedelta()) // timedelta(microseconds=1)} MICROSECONDS"
        # Files after the interval are read for late rows. What is wrong in them is told when their own day is ingested.
        told = f"{UNTIL} <= {start} OR coalesce({_PLACE} >= {start} AND {_PLACE} < {end}, {ARRIVED} < {end}, true)"
        in_interval = f"""CASE WHEN {event} IS NULL OR {fault} IS NOT NULL THEN {told}
            ELSE {event} >= CASE WHEN {UNTIL} <= {start} THEN {ARRIVED} ELSE {start} END - {late} AND {event} < {end} END"""
    known = "TIMESTAMPTZ '1900-01-01 00:00:00+00'" if table.known == "always" else f"({table.known}\n)::TIMESTAMPTZ"
    known_fault = literal(f"known: {_short(table.known)} cannot be computed for this row")
    return f"""
        WITH typed AS (
            {" UNION ALL ".join(f"({_typed_part(table, source, part)})" for part in parts)}
        ), known AS (
            SELECT *, {_tried(strictly(known))} AS _known FROM typed
        )
        SELECT * EXCLUDE (_known, {_PLACE}),
            CASE WHEN {ROW_FAULT} IS NULL AND {_is_in_range("_known.v")} THEN _known.v END AS {KNOWN},
            CASE WHEN {ROW_FAULT} IS NULL AND _known IS NULL THEN {known_fault} END AS {KNOWN_FAULT}
        FROM known
        WHERE {in_interval}
    """


#: The moment that decides which interval tells of a row whose event time is not known. NULL: each that reads the row.
_PLACE = "_place"


def _typed_part(table: Table, source: Source, part: LandedPart) -> str:
    """A query that gives the typed rows of a part, those of other intervals included, and what is wrong in each."""
    names = list(table.columns)
    # 1: it holds. 0: it does not hold, or is NULL. NULL: it cannot be computed.
    where = "1"
    if table.where is not None:
        where = f"TRY(CASE WHEN (\n{strictly(table.where)}\n)::BOOLEAN THEN 1 ELSE 0 END)"
    where_fault = literal(f"where: {_short(table.where or '')} cannot be computed for this row")
    casts = [_cast(n, column, spec, part.bound, source) for n, (column, spec) in enumerate(table.columns.items())]
    tried, values, faults = (", ".join(parts) for parts in zip(*casts, strict=True))
    outside, place = {}, "NULL::TIMESTAMPTZ"
    if table.event_time is not None:
        n = names.index(table.event_time)
        late = f"INTERVAL {(table.late or timedelta()) // timedelta(microseconds=1)} MICROSECONDS"
        told = f"""{literal(f"{table.event_time}: ")} || "_v{n}"::VARCHAR"""
        period = part.period + (f", by the clocks of {source.time_zone}" if source.time_zone else "")
        too_late = f"lies outside {period}; if files may hold rows of earlier days, state `late` of the table"
        if table.late:
            too_late = f"lies more than {table.late / timedelta(days=1):g} days (late) before {period}"
        outside[n] = (
            f"""CASE WHEN "_v{n}" < {FROM} - {late} THEN {told} || {literal(f" {too_late}")} """
            f"""WHEN "_v{n}" >= {UNTIL} THEN {told} || {literal(f" lies outside {period}")} END"""
        )
        if unclear := _unclear(n, table.columns[table.event_time], part.bound, source):
            # A time before the file's period came late: the interval of the file tells of it.
            place = f"CASE WHEN {unclear[0]} THEN greatest({unclear[1]}, {FROM}) END"
        if source.time_zone:
            # Two intervals in UTC read one local day. The one in which it begins tells of what cannot be placed.
            place = f"coalesce({place}, {FROM})"
    columns = enumerate(table.columns.values())
    unclears = [found for n, spec in columns if (found := _unclear(n, spec, part.bound, source))]
    renamed = [f'"_v{n}" AS {quoted(column)}' for n, column in enumerate(names)]
    renamed += [
        f'coalesce("_f{n}", {outside.get(n, "NULL")}) AS {quoted(f"_fault_{column}")}' for n, column in enumerate(names)
    ]
    return f"""
        WITH chosen AS (
            SELECT *, {where} AS _holds FROM {part.rows} landed
        ), tried AS (
            SELECT {ROW}, {POSITION}, {FROM}, {UNTIL},
                coalesce({FAULT}, CASE WHEN _holds IS NULL THEN {where_fault} END) AS {ROW_FAULT},
                {tried}
            FROM chosen WHERE _holds IS NULL OR _holds = 1 OR {FAULT} IS NOT NULL
        ), cast_once AS (
            SELECT *, {values} FROM tried
        ), explained AS (
            SELECT *, {faults} FROM cast_once
        )
        SELECT {ROW}, {POSITION}, {ROW_FAULT}, {FROM} AS {ARRIVED}, {UNTIL}, {", ".join(renamed)}, {place} AS {_PLACE},
            {" OR ".join(f"({each[0]})" for each in unclears) or "false"} AS {UNCLEAR}
        FROM explained
    """


def _cast(n: int, column: str, spec: Column, bound: Bound, source: Source) -> tuple[str, str, str]:
    """SQL of a column's expression ``_t<n>``, of its cast value ``_v<n>``, and of its fault ``_f<n>``.

    An expression that converts local times has ``_l<n>`` too: what DuckDB makes of a time that is no single moment.
    """
    kind = bound.types[column]
    raw = f'"_t{n}".v'
    value = _value(spec, kind, raw, source)
    assert value is not None  # bind has checked it
    uncomputed = f"{column}: {_short(spec.sql or column)} cannot be computed for this row"
    why = literal(uncomputed)
    tried = f'struct_pack(v := {bound.expressions[column]}) AS "_t{n}"'
    if spec.sql:
        strict = strictly(spec.sql)
        tried = f'{_tried(strict)} AS "_t{n}"'
        if strict != spec.sql:
            tried += f', CASE WHEN {_tried(strict)} IS NULL THEN {_tried(spec.sql)} END AS "_l{n}"'
            local = f"{uncomputed}: a time that the clocks of {zone_of(spec.sql)} show twice, or skip, is no single moment; "
            local += "deliver it with its offset from UTC"
            why = f'CASE WHEN "_l{n}" IS NULL THEN {why} ELSE {literal(local)} END'
    fault = f"""CASE WHEN {ROW_FAULT} IS NOT NULL THEN NULL
        WHEN "_t{n}" IS NULL THEN {why}
        WHEN ({raw} IS NULL{f" OR isnan({raw})" if kind in _FLOATS else ""}) THEN NULL
        {_why_not(column, spec, kind, raw, f'"_v{n}"', source)} END AS "_f{n}\""""
    return tried, f'CASE WHEN {ROW_FAULT} IS NULL THEN {value} END AS "_v{n}"', fault


def _unclear(n: int, spec: Column, bound: Bound, source: Source) -> tuple[str, str] | None:
    """SQL for whether column ``n`` has a time that clocks show twice or skip, and for a moment near it; None if it cannot."""
    if spec.type != "timestamp":
        return None
    kind = list(bound.types.values())[n]
    if spec.sql and strictly(spec.sql) != spec.sql:
        return f'"_l{n}" IS NOT NULL', str(_value(spec, kind, f'"_l{n}".v', source))
    if source.time_zone and (shown := _shown(kind, f'"_t{n}".v')):
        zone = literal(source.time_zone)
        return f'"_v{n}" IS NULL AND coalesce(local_times({zone}, {shown}) <> 1, false)', f"local_first({zone}, {shown})"
    return None


def _shown(kind: str, raw: str) -> str | None:
    """SQL for the time that a clock showed, NULL for a moment; None if values of this type say no time."""
    if kind == "VARCHAR":
        text = f"trim({raw})"
        return f"CASE WHEN regexp_full_match({text}, '{_LOCAL_TIME}') THEN TRY_CAST({text} AS TIMESTAMP) END"
    if kind in (_TIMESTAMPS - {_MOMENT}) | {"DATE"}:
        return f"{raw}::TIMESTAMP"
    return None


def _tried(sql: str) -> str:
    """NULL where the expression raises, else a struct with its value ``v``, which may be NULL too."""
    return f"TRY(struct_pack(v := (\n{sql}\n)))"


def _short(sql: str, most: int = 80) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _is_in_range(moment: str) -> str:
    """Whether Python's datetime can hold the moment. It cannot hold infinity, or years before 1 or after 9999."""
    return f"{moment} BETWEEN TIMESTAMPTZ '0001-01-01 00:00:00+00' AND TIMESTAMPTZ '9999-12-31 23:59:59.999999+00'"


def _value(spec: Column, kind: str, raw: str, source: Source) -> str | None:
    """SQL for ``raw`` as the spec's type, NULL where it is not plainly of this type. None if no value of ``kind`` can be."""
    text = f"trim({raw})"
    if spec.type in ("integer", "float") and kind == "VARCHAR" and spec.sql is None:
        text = _plain(text, source)
    number = kind in _INTEGERS | _HUGE | _FLOATS or kind.startswith("DECIMAL")
    if kind == '"NULL"':  # a column without a value so far
        return f"NULL::{_DUCKDB[spec.type]}"
    match spec.type:
        case "string" if kind == "VARCHAR":
            return raw
        case "string" if kind in _INTEGERS | _HUGE | _TIMESTAMPS | {"BOOLEAN", "DATE", "TIME", "UUID"} or kind.startswith(
            "ENUM"
        ):
            return f"{raw}::VARCHAR"
        case "integer" if kind == "VARCHAR":
            whole = f"TRY_CAST(split_part({text}, '.', 1) AS BIGINT)"
            exact = f"regexp_full_match({text}, '[+-]?[0-9]+[.]0*') AND {whole} BETWEEN -{_EXACT} AND {_EXACT}"
            return f"CASE WHEN regexp_full_match({text}, '[+-]?[0-9]+') OR ({exact}) THEN {whole} END"
        case "integer" if kind in _INTEGERS | _HUGE | {"BOOLEAN"}:
            return f"TRY_CAST({raw} AS BIGINT)"
        case "integer" if number:
            return (
                f"CASE WHEN {raw} BETWEEN -{_EXACT} AND {_EXACT} AND {raw} = trunc({raw}) THEN TRY_CAST({raw} AS BIGINT) END"
                if kind in _FLOATS
                else f"CASE WHEN {raw} = trunc({raw}) THEN TRY_CAST({raw} AS BIGINT) END"
            )
        case "float" if kind == "VARCHAR":
            plain = f"regexp_full_match({text}, '{_PLAIN_NUMBER}')"
            return f"CASE WHEN {plain} AND isfinite(TRY_CAST({text} AS DOUBLE)) THEN TRY_CAST({text} AS DOUBLE) END"
        case "float" if number or kind == "BOOLEAN":
            return f"CASE WHEN isfinite({raw}::DOUBLE) THEN {raw}::DOUBLE END"
        case "boolean" if kind == "VARCHAR":
            return (
                f"CASE WHEN lower({text}) IN ('true', 't', 'yes', 'y', '1') THEN true "
                f"WHEN lower({text}) IN ('false', 'f', 'no', 'n', '0') THEN false END"
            )
        case "boolean" if kind == "BOOLEAN":
            return raw
        case "boolean" if kind in _INTEGERS:
            return f"CASE {raw} WHEN 1 THEN true WHEN 0 THEN false END"
        case "timestamp" if kind == "VARCHAR":
            moment = f"TRY_CAST({text} AS TIMESTAMPTZ)"
            if source.time_zone:
                is_local = f"regexp_full_match({text}, '{_LOCAL_TIME}')"
                moment = f"CASE WHEN {is_local} THEN {_local(source.time_zone, kind, raw)} ELSE {moment} END"
            return f"CASE WHEN regexp_full_match({text}, '{_ISO_TIME}') AND {_is_in_range(moment)} THEN {moment} END"
        case "timestamp" if kind in _TIMESTAMPS | {"DATE"}:
            moment = f"{raw}::TIMESTAMPTZ"
            if source.time_zone and kind != _MOMENT:
                moment = _local(source.time_zone, kind, raw)
            return f"CASE WHEN {_is_in_range(f'{raw}::TIMESTAMPTZ')} THEN {moment} END"
        case "date" if kind == "VARCHAR":
            day = f"TRY_CAST(left({text}, 10) AS DATE)"
            return f"CASE WHEN regexp_full_match({text}, '{_ISO_DATE}') AND {day} >= DATE '0001-01-01' THEN {day} END"
        case "date" if kind in _TIMESTAMPS | {"DATE"}:
            shown = f"{raw}::TIMESTAMP"  # the session is in UTC
            if source.time_zone and kind == _MOMENT:
                shown = f"timezone({literal(source.time_zone)}, {raw})"
            in_range = _is_in_range(f"{raw}::TIMESTAMPTZ")
            return f"CASE WHEN {in_range} AND date_trunc('day', {shown}) = {shown} THEN {shown}::DATE END"
    return None


def _often_meant(column: str, spec: Column, source: Source) -> Iterator[tuple[str, str]]:
    """Ways in which files write a value that are not told of, as a regular expression and what to write then."""
    if spec.type in ("integer", "float") and (source.decimal, source.thousands) == (".", None):
        yield r"[+-]?\d+(\.\d{3})*,\d+", "if the comma is its decimal sign, write decimal: ',' for the source"
    if spec.type in ("timestamp", "date"):
        day = r"\d{1,2}([./-])\d{1,2}[./-]\d{2,4}([ T].*)?"
        yield day, f"for another form write sql, such as strptime({column}, '%d.%m.%Y')"


def _local(zone: str, kind: str, raw: str) -> str:
    """SQL for the moment at which the clocks of a zone show a time; NULL unless there is exactly one."""
    return f"local_moment({literal(zone)}, {_shown(kind, raw)})"


def _plain(text: str, source: Source) -> str:
    """SQL for a number's text with a point before its fraction and without groups; as it is where the source writes so."""
    if source.decimal == "." and source.thousands is None:
        return text
    mark, group = source.decimal, source.thousands
    whole = r"[0-9]+" if group is None else rf"([0-9]+|[1-9][0-9]{{0,2}}([{group}][0-9]{{3}})+)"
    pattern = literal(rf"[+-]?({whole}([{mark}][0-9]*)?|[{mark}][0-9]+)([eE][+-]?[0-9]{{1,4}})?")
    bare = text if group is None else f"replace({text}, {literal(group)}, '')"
    # NULL where it is written in another way: 1,234 is 1234 for one source, and 1.234 for another.
    return f"CASE WHEN regexp_full_match({text}, {pattern}) THEN replace({bare}, {literal(mark)}, '.') END"


_REQUIRED = {
    "integer": "is not a plain whole number",
    "float": "is not a plain finite number",
    "boolean": "is neither true nor false",
    "timestamp": "is not an existing time in ISO 8601, such as 2013-04-01T06:00:00Z",
    "date": "is not an existing date in ISO 8601, such as 2013-04-01",
}


def _why_not(column: str, spec: Column, kind: str, raw: str, value: str, source: Source) -> str:
    """``WHEN … THEN …`` clauses that say what is wrong in a value that is present."""
    shown = f"chr(39) || left({raw}, 60) || chr(39)" if kind == "VARCHAR" else f"{raw}::VARCHAR"
    subject = f"{literal(f'{column}: ')} || {shown}"
    if spec.type == "string":
        if kind != "VARCHAR":
            return f"WHEN {value} IS NULL THEN {subject}"
        hidden = "holds a character that is invisible, changes the direction of the text, or controls a terminal"
        return f"WHEN regexp_matches({raw}, '{_HIDDEN}') THEN {subject} || ' {hidden}'"
    clauses = ""
    if spec.type == "timestamp" and source.time_zone and (local := _shown(kind, raw)):
        fault = shown_twice_or_never(source.time_zone, local)
        clauses = f"WHEN {value} IS NULL AND {_is_in_range(f'({local})::TIMESTAMPTZ')} AND {fault} IS NOT NULL "
        clauses += f"THEN {subject} || {fault} "
    if spec.type == "integer":
        plain = f"trim({raw})" if spec.sql else _plain(f"trim({raw})", source)
        whole = (
            f"coalesce(regexp_full_match({plain}, '[+-]?[0-9]+([.]0*)?'), false)"
            if kind == "VARCHAR"
            else ("true" if kind in _INTEGERS | _HUGE else f"{raw} = trunc({raw})")
        )
        if kind != "BOOLEAN":
            clauses = f"WHEN {value} IS NULL AND {whole} THEN {subject} || ' is too large to be an exact 64-bit integer' "
    if spec.type == "float" and kind == "VARCHAR":
        text = f"trim({raw})" if spec.sql else _plain(f"trim({raw})", source)
        plain = f"coalesce(regexp_full_match({text}, '{_PLAIN_NUMBER}'), false)"
        clauses = f"WHEN {value} IS NULL AND {plain} THEN {subject} || ' is too large for a 64-bit float' "
    required = _REQUIRED[spec.type]
    if kind == "VARCHAR" and spec.sql is None:
        for pattern, hint in _often_meant(column, spec, source):
            likely = f"coalesce(regexp_full_match(trim({raw}), {literal(pattern)}), false)"
            clauses += f"WHEN {value} IS NULL AND {likely} THEN {subject} || {literal(f' {required}; {hint}')} "
    if (
        kind == "VARCHAR"
        and spec.type in ("integer", "float")
        and (source.decimal, source.thousands) != (".", None)
        and spec.sql is None
    ):
        groups = f" and groups by {source.thousands!r}" if source.thousands else ""
        required += f", written with the decimal {source.decimal!r}{groups}"
    return f"{clauses}WHEN {value} IS NULL THEN {subject} || {literal(f' {required}')}"
