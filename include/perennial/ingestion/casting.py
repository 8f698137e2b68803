"""The SQL that casts a table's raw columns to the types of its spec, row by row.

One bad value must not fail a query. It must not silently become another value either. So each expression of a spec runs
under DuckDB's ``TRY``, which gives NULL where the expression raises. Each column gets a companion column that says why a
value could not be read. The rules:

* A text becomes a number only if it is plainly a number: ``12``, ``-3``, ``0.5``, ``1e-3``. Surrounding spaces are allowed.
  ``12.0`` is an integer. These are not numbers: ``1,234``, ``1_000``, ``12abc``, full-width digits, ``=1+1``, ``0x1F``,
  ``inf``, ``nan``, ``1e400``, integers beyond 64 bits, and numbers that contain invisible characters.
* A text becomes a timestamp only in ISO 8601 (``2013-04-01T06:00:00Z``). Offset, fraction, seconds and time may be absent.
  A text without an offset is read as UTC, and a date as its midnight in UTC. Digits beyond microseconds are dropped.
* A text becomes a boolean if it is ``true``, ``t``, ``yes``, ``y``, ``1`` or the opposite of one of these, in any case.
* A text stays a text, character by character. Leading zeros, ``NA``, ``=1+1`` and full-width digits are kept, because
  nothing here evaluates them. A text is refused if it looks like another text but differs from it: if it has control
  characters (except tab and line breaks), invisible characters, characters that change the direction of the text, no-break
  spaces, or the replacement character. ``sql: regexp_replace(name, '[^ -~]', '', 'g')`` cleans such a text.
* A typed value (Parquet, SQL, Python) is converted only if nothing is lost. A float becomes an integer only if it is whole
  and within 2⁵³; beyond that it may have been another number. NaN is a missing value. A timestamp without a zone is UTC.

Neighbours: :mod:`perennial.ingestion.sources` binds expressions to a file's columns before it reads it;
:mod:`perennial.ingestion.checks` runs the query.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from perennial.core.errors import PerennialError, SourceError, SpecError
from perennial.core.intervals import Interval
from perennial.core.sql import connect, literal, quoted
from perennial.ingestion.delimited import FAULT, POSITION, RAW
from perennial.lake.schema import KNOWN, MOMENT, published_schema
from perennial.spec.data import Column, Table
from perennial.spec.folder import ModelFolder

#: The period of a dated file. The event times of its rows must lie in it. Null for other sources.
FROM, UNTIL = "_from", "_until"
#: The columns that a landed row has besides its raw columns.
LANDED_EXTRAS = pa.schema(
    [
        (POSITION, pa.string()),
        (FAULT, pa.string()),
        (RAW, pa.string()),
        (FROM, MOMENT),
        (UNTIL, MOMENT),
    ]
)
ROW, ROW_FAULT, KNOWN_FAULT = "_row", "_row_fault", "_known_fault"

_TOKEN = re.compile(r'"((?:[^"]|"")*)"|([^\W\d]\w*)')
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_HUGE = {"UBIGINT", "HUGEINT", "UHUGEINT", "BIGNUM"}
_FLOATS = {"FLOAT", "DOUBLE"}
_TIMESTAMPS = {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"}
_DUCKDB = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
}
_ISO_TIME = r"\d{4}-\d{2}-\d{2}([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,12})?)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)?)?"
_ISO_DATE = r"\d{4}-\d{2}-\d{2}([T ]00:00(:00(\.0{1,12})?)?Z?)?"
# ZWNJ and ZWJ (200C, 200D) belong to Persian, to Indic scripts and to emoji. Beside ASCII they only hide something.
_HIDDEN = (
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{a0}\x{ad}\x{61c}\x{180e}\x{2007}\x{200b}\x{200e}\x{200f}\x{2028}-\x{202f}"
    r"\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffd}]"
    r"|(^|[\x00-\x7f])[\x{200c}\x{200d}]|[\x{200c}\x{200d}]([\x00-\x7f]|$)"
)
_PLAIN_NUMBER = r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,4})?"
_EXACT = 2**53


def mentioned(table: Table) -> frozenset[str]:
    """The case-folded names that the table's expressions and columns may read from its source."""
    expressions = [column.sql or quoted(name) for name, column in table.columns.items()]
    found = (match for sql in [table.where or "", *expressions] for match in _TOKEN.finditer(sql))
    return frozenset((match[2] or match[1].replace('""', '"')).casefold() for match in found)


def taken(table: Table, raw: pa.Schema) -> pa.Schema:
    """The columns of a source that the table mentions, except those whose names our queries use for something else."""
    wanted = mentioned(table) - {*LANDED_EXTRAS.names, ROW, "_holds", "file_row_number"}
    return pa.schema([field for field in raw if field.name.casefold() in wanted])


def bind(folder: ModelFolder, name: str, raw: pa.Schema, place: str) -> dict[str, str]:
    """The DuckDB type that each column of the table has in a source.

    Args:
        folder: the model's folder.
        name: the name of the table.
        raw: the columns of the source.
        place: the file and line that name the columns, for messages.

    Returns:
        The DuckDB types by column of the table.

    Raises:
        SourceError: the source lacks a column, or the type of a column cannot become the spec's type.
        SpecError: an expression is wrong for any source.
    """
    table = folder.spec.tables[name]
    where = f"{folder.path / 'model.yaml'}: tables.{name}"
    with connect() as connection:
        # DuckDB accepts no table without columns.
        connection.register("landed", taken(table, raw).append(pa.field(POSITION, pa.string())).empty_table())
        given = {named.casefold() for named in raw.names}
        for column, column_spec in table.columns.items():
            if column_spec.sql is None and column.casefold() not in given:
                raise _lacks(column, raw, place)
        expressions = {f"columns.{column}.sql": spec.sql or quoted(column) for column, spec in table.columns.items()}
        if table.where is not None:
            expressions["where"] = f"({table.where}\n)::BOOLEAN"
        types = dict(
            zip(expressions, _types(connection, "landed", expressions, where, lambda c: _lacks(c, raw, place)), strict=True)
        )
        found = {}
        for column, spec in table.columns.items():
            found[column] = types[f"columns.{column}.sql"]
            if spec.sql is not None:
                _check_result(spec, found[column], f"{where}.columns.{column}.sql")
            elif _value(spec, found[column], "x") is None:
                fault = f"has the type {_short(found[column], 40)}, which cannot become {spec.type} without a decision"
                raise SourceError(f"{place}: {column} {fault}; write it as `sql` at {where}.columns.{column}")
        if table.known != "always":
            _bind_known(connection, table, where)
    return found


def _types(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    expressions: dict[str, str],
    where: str,
    lacks: Callable[[str], PerennialError],
) -> list[str]:
    """The DuckDB types of expressions over a view. ``TRY`` must accept each expression too."""
    # No expression can mean these output names. Otherwise DuckDB would bind a missing column to an earlier alias.
    both = [f'(\n{sql}\n) AS "_v{n}", {_tried(sql)} AS "_t{n}"' for n, sql in enumerate(expressions.values())]
    try:
        rows = connection.execute(f"DESCRIBE SELECT {', '.join(both)} FROM {view}").fetchall()
        return [row[1] for row in rows[::2]]
    except duckdb.Error:
        for place, one in zip(expressions, both, strict=True):
            try:
                connection.execute(f"DESCRIBE SELECT {one} FROM {view}")
            except duckdb.Error as error:
                message = str(error).splitlines()[0]
                if absent := re.search(r'Referenced column "(.*?)" not found', message):
                    raise lacks(absent[1]) from error
                raise SpecError(f"{where}.{place}: this expression cannot be used here: {message}") from error
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
    found = []
    with connect() as connection:
        for place, sql in expressions.items():
            try:
                result = _bound_to_any(connection, {place: sql}, where, kind)
                if place != "where" and result is not None:
                    _check_result(table.columns[place.split(".")[1]], result, f"{where}.{place}")
            except SpecError as error:
                found.append(error)
        if table.known != "always":
            try:
                _bind_known(connection, table, where)
            except SpecError as error:
                found.append(error)
    return found


class _Absent(PerennialError):
    """An expression reads a column that was not offered; its name is the message."""


def _bound_to_any(
    connection: duckdb.DuckDBPyConnection, expression: dict[str, str], where: str, kind: pa.DataType
) -> str | None:
    """The type of an expression over a source that has every column the expression reads; None if it is not known."""
    columns = [pa.field(POSITION, pa.string())]
    while True:
        connection.register("any_source", pa.schema(columns).empty_table())
        try:
            return _types(connection, "any_source", expression, where, _Absent)[0]
        except _Absent as absent:
            if str(absent) in [column.name for column in columns]:
                return None  # offered, and absent where the expression looks for it: in a subquery of its own
            columns.append(pa.field(str(absent), kind))
        except SpecError as error:
            # DuckDB cannot choose between functions for a value without a type. A name with a dot may be a part of a value.
            if kind == pa.null() and ('"NULL"' in str(error) or "Referenced table" in str(error)):
                return None
            raise


def _check_result(spec: Column, kind: str, place: str) -> None:
    if _value(spec, kind, "x") is None:
        raise SpecError(
            f"{place}: the result has the type {_short(kind, 40)}, which cannot become {spec.type} without a decision; cast it"
        )


def _bind_known(connection: duckdb.DuckDBPyConnection, table: Table, where: str) -> None:
    connection.register("typed", published_schema(table).empty_table().drop_columns([KNOWN]))
    columns = ", ".join(table.columns)

    def lacks(column: str) -> SpecError:
        return SpecError(f"{where}.known: no column {column}; there are {columns}")

    [kind] = _types(connection, "typed", {"known": table.known}, where, lacks)
    if kind not in _TIMESTAMPS | {"DATE", "VARCHAR", '"NULL"'}:
        raise SpecError(f"{where}.known: gives {kind}; it must give the moment from which a row may be used")


def _lacks(column: str, raw: pa.Schema, place: str) -> SourceError:
    names = [name for name in raw.names if name]
    close = difflib.get_close_matches(column, names, n=1)
    shown = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
    hint = f"; is it now called {close[0]}?" if close else ""
    if not hint and len(names) == 1 and (other := next((d for d in ";\t|," if d in names[0]), None)):
        hint = f"; are the fields separated by {other!r}? Then set `delimiter` of the source"
    return SourceError(f"{place}: there is no column {column}; there are: {shown!r}{hint}. Is this line the header?")


def typed_query(folder: ModelFolder, name: str, types: dict[str, str], landed: Path, interval: Interval) -> str:
    """A query that gives the typed rows of the interval, and what is wrong in each row.

    Its columns are ``_row`` (the number in the landed file), ``_position``, ``_row_fault`` (the row could not be split, or
    ``where`` could not be computed), the spec's columns, ``_fault_<column>`` for each of them, ``_known_at`` and
    ``_known_fault``. A fault is a text for people, or NULL. Rows of other intervals are left out. Rows whose event time
    cannot be read stay.

    Args:
        folder: the model's folder.
        name: the name of the table.
        types: from :func:`bind`.
        landed: Parquet file of raw columns and :data:`LANDED_EXTRAS`.
        interval: the interval of the rows.
    """
    table = folder.spec.tables[name]
    names = list(table.columns)
    # 1: it holds. 0: it does not hold, or is NULL. NULL: it cannot be computed.
    where = "1" if table.where is None else f"TRY(CASE WHEN (\n{table.where}\n)::BOOLEAN THEN 1 ELSE 0 END)"
    where_fault = literal(f"where: {_short(table.where or '')} cannot be computed for this row")
    casts = [_cast(n, column, spec, types[column]) for n, (column, spec) in enumerate(table.columns.items())]
    tried, values, faults = (", ".join(parts) for parts in zip(*casts, strict=True))
    in_interval, outside = "true", {}
    if table.event_time is not None:
        event, n = quoted(table.event_time), names.index(table.event_time)
        start, end = (f"TIMESTAMPTZ {literal(moment.isoformat())}" for moment in (interval.start, interval.end))
        outside[n] = (
            f'CASE WHEN "_v{n}" < {FROM} OR "_v{n}" >= {UNTIL} '
            f"""THEN {literal(f"{table.event_time}: ")} || "_v{n}"::VARCHAR || ' lies outside the period of its file' END"""
        )
        in_interval = (
            f"{event} IS NULL OR {quoted(f'_fault_{table.event_time}')} IS NOT NULL OR ({event} >= {start} AND {event} < {end})"
        )
    renamed = [f'"_v{n}" AS {quoted(column)}' for n, column in enumerate(names)]
    renamed += [
        f'coalesce("_f{n}", {outside.get(n, "NULL")}) AS {quoted(f"_fault_{column}")}' for n, column in enumerate(names)
    ]
    known = "TIMESTAMPTZ '1900-01-01 00:00:00+00'" if table.known == "always" else f"({table.known}\n)::TIMESTAMPTZ"
    known_fault = literal(f"known: {_short(table.known)} cannot be computed for this row")
    return f"""
        WITH landed AS (
            SELECT *, file_row_number AS {ROW} FROM read_parquet({literal(str(landed))}, file_row_number = true)
        ), chosen AS (
            SELECT *, {where} AS _holds FROM landed
        ), tried AS (
            SELECT {ROW}, {POSITION}, {FROM}, {UNTIL},
                coalesce({FAULT}, CASE WHEN _holds IS NULL THEN {where_fault} END) AS {ROW_FAULT},
                {tried}
            FROM chosen WHERE _holds IS NULL OR _holds = 1 OR {FAULT} IS NOT NULL
        ), cast_once AS (
            SELECT *, {values} FROM tried
        ), explained AS (
            SELECT *, {faults} FROM cast_once
        ), typed AS (
            SELECT {ROW}, {POSITION}, {ROW_FAULT}, {", ".join(renamed)} FROM explained
        ), known AS (
            SELECT *, {_tried(known)} AS _known FROM typed
        )
        SELECT * EXCLUDE (_known),
            CASE WHEN {ROW_FAULT} IS NULL AND {_is_in_range("_known.v")} THEN _known.v END AS {KNOWN},
            CASE WHEN {ROW_FAULT} IS NULL AND _known IS NULL THEN {known_fault} END AS {KNOWN_FAULT}
        FROM known
        WHERE {in_interval}
    """


def _cast(n: int, column: str, spec: Column, kind: str) -> tuple[str, str, str]:
    """SQL of a column's expression ``_t<n>``, of its cast value ``_v<n>``, and of its fault ``_f<n>``."""
    raw = f'"_t{n}".v'
    value = _value(spec, kind, raw)
    assert value is not None  # bind has checked it
    fault = f"""CASE WHEN {ROW_FAULT} IS NOT NULL THEN NULL
        WHEN "_t{n}" IS NULL THEN {literal(f"{column}: {_short(spec.sql or column)} cannot be computed for this row")}
        WHEN ({raw} IS NULL{f" OR isnan({raw})" if kind in _FLOATS else ""}) THEN NULL
        {_why_not(column, spec, kind, raw, f'"_v{n}"')} END AS "_f{n}\""""
    return (
        f'{_tried(spec.sql) if spec.sql else f"struct_pack(v := {quoted(column)})"} AS "_t{n}"',
        f'CASE WHEN {ROW_FAULT} IS NULL THEN {value} END AS "_v{n}"',
        fault,
    )


def _tried(sql: str) -> str:
    """NULL where the expression raises, else a struct with its value ``v``, which may be NULL too."""
    return f"TRY(struct_pack(v := (\n{sql}\n)))"


def _short(sql: str, most: int = 80) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _is_in_range(moment: str) -> str:
    """Whether Python's datetime can hold the moment. It cannot hold infinity, or years before 1 or after 9999."""
    return f"{moment} BETWEEN TIMESTAMPTZ '0001-01-01 00:00:00+00' AND TIMESTAMPTZ '9999-12-31 23:59:59.999999+00'"


def _value(spec: Column, kind: str, raw: str) -> str | None:
    """SQL for ``raw`` as the spec's type, NULL where it is not plainly of this type. None if no value of ``kind`` can be."""
    text = f"trim({raw})"
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
            return f"CASE WHEN regexp_full_match({text}, '{_ISO_TIME}') AND {_is_in_range(moment)} THEN {moment} END"
        case "timestamp" if kind in _TIMESTAMPS | {"DATE"}:
            return f"CASE WHEN {_is_in_range(f'{raw}::TIMESTAMPTZ')} THEN {raw}::TIMESTAMPTZ END"
        case "date" if kind == "VARCHAR":
            day = f"TRY_CAST(left({text}, 10) AS DATE)"
            return f"CASE WHEN regexp_full_match({text}, '{_ISO_DATE}') AND {day} >= DATE '0001-01-01' THEN {day} END"
        case "date" if kind in _TIMESTAMPS | {"DATE"}:
            moment = f"{raw}::TIMESTAMPTZ"
            return f"CASE WHEN {_is_in_range(moment)} AND date_trunc('day', {moment}) = {moment} THEN {raw}::DATE END"
    return None


_REQUIRED = {
    "integer": "is not a plain whole number",
    "float": "is not a plain finite number",
    "boolean": "is neither true nor false",
    "timestamp": "is not an existing time in ISO 8601, such as 2013-04-01T06:00:00Z",
    "date": "is not an existing date in ISO 8601, such as 2013-04-01",
}


def _why_not(column: str, spec: Column, kind: str, raw: str, value: str) -> str:
    """``WHEN … THEN …`` clauses that say what is wrong in a value that is present."""
    shown = f"chr(39) || left({raw}, 60) || chr(39)" if kind == "VARCHAR" else f"{raw}::VARCHAR"
    subject = f"{literal(f'{column}: ')} || {shown}"
    if spec.type == "string":
        if kind != "VARCHAR":
            return f"WHEN {value} IS NULL THEN {subject}"
        hidden = "holds a character that is invisible, changes the direction of the text, or controls a terminal"
        return f"WHEN regexp_matches({raw}, '{_HIDDEN}') THEN {subject} || ' {hidden}'"
    clauses = ""
    if spec.type == "integer":
        whole = f"regexp_full_match(trim({raw}), '[+-]?[0-9]+([.]0*)?')" if kind == "VARCHAR" else f"{raw} = trunc({raw})"
        if kind != "BOOLEAN":
            clauses = f"WHEN {value} IS NULL AND {whole} THEN {subject} || ' is too large to be an exact 64-bit integer' "
    if spec.type == "float" and kind == "VARCHAR":
        plain = f"regexp_full_match(trim({raw}), '{_PLAIN_NUMBER}')"
        clauses = f"WHEN {value} IS NULL AND {plain} THEN {subject} || ' is too large for a 64-bit float' "
    return f"{clauses}WHEN {value} IS NULL THEN {subject} || ' {_REQUIRED[spec.type]}'"
