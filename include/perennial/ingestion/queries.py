"""Sources that are a SQL query or a Python function, landed in batches."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from perennial.core.errors import PerennialError, SourceError
from perennial.core.intervals import Interval
from perennial.core.sql import literal, quoted
from perennial.core.text import one_line
from perennial.ingestion.database_values import TEXTS, WITHOUT_VALUE, DatabaseBatches, take_texts
from perennial.ingestion.delimited import FAULT, POSITION, RAW
from perennial.ingestion.landing import ARROW_ROWS, LandingWriter, positioned
from perennial.spec.binds import END, START, binds, replace_binds
from perennial.spec.code import folder_function
from perennial.spec.data import Source
from perennial.spec.folder import ModelFolder

#: Number of rows that are fetched from a database at a time.
SQL_ROWS = 20_000


def land_sql(source: Source, name: str, interval: Interval, engine: sa.Engine, writer: LandingWriter) -> None:
    """Land the result of a SQL query.

    Args:
        source: a source with ``sql``.
        name: name of the source, for positions.
        interval: gives the parameters.
        engine: the database.
        writer: takes the rows.

    Raises:
        SourceError: the query failed, names a column twice or another parameter, or a column has no single type.
    """
    try:
        with engine.connect() as connection:
            _prepare(connection, source.time_zone or "UTC")
            assert source.sql is not None
            if connection.dialect.name == "duckdb":
                _land_from_duckdb(source.sql, name, interval, connection, writer)
            else:
                bounds = _bounds(interval, source.time_zone, connection.dialect.name)
                _land_rows(source.sql, name, bounds, connection, writer)
    except (sa.exc.SQLAlchemyError, duckdb.Error) as error:
        raise SourceError(f"the query failed: {one_line(getattr(error, 'orig', None) or error)}") from error


def _prepare(connection: sa.Connection, zone: str) -> None:
    """Let the session write nothing, and compare times without a zone with the bounds by the clocks of ``zone``."""
    match connection.dialect.name:
        case "postgresql":
            connection.execution_options(postgresql_readonly=True)
            connection.execute(sa.text(f"SET LOCAL TIME ZONE {literal(zone)}"))
            if connection.dialect.driver == "psycopg2":
                connection.detach()  # what is registered must not outlive this query
                take_texts(connection.connection.dbapi_connection)
        case "mysql" | "mariadb":
            connection.execute(sa.text("SET SESSION TRANSACTION READ ONLY"))
            # A server without tables of zones knows offsets only.
            connection.execute(sa.text(f"SET SESSION time_zone = {literal('+00:00' if zone == 'UTC' else zone)}"))
        case "duckdb":
            connection.execute(sa.text(f"SET TimeZone = {literal(zone)}"))


#: Databases whose DATETIME or text has no zone. They compare the bounds as their clocks show them.
_WITHOUT_ZONE = {"mysql", "mariadb", "sqlite"}


def _bounds(interval: Interval, zone: str | None, dialect: str) -> tuple[datetime, datetime]:
    if zone is None or dialect == "postgresql":
        return interval.start, interval.end
    if dialect not in _WITHOUT_ZONE:
        raise SourceError(f"time_zone is not known for {dialect}; convert the times to UTC in the query")
    start, end = (moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for moment in (interval.start, interval.end))
    return start, end


def _as_text(moment: datetime) -> str:
    """The shortest text of a moment. SQLite compares texts: ``2024-01-01 00:00:00`` precedes ``2024-01-01 00:00:00.0``."""
    shown = moment.replace(tzinfo=None)
    if shown.time() == time():
        return shown.date().isoformat()
    return shown.isoformat(" ", "auto" if shown.second or shown.microsecond else "minutes")


def _bound(query: str, name: Callable[[str], str], literally: Callable[[str], str], *, backslashes: bool = False) -> str:
    def checked(parameter: str) -> str:
        if parameter not in (START, END):
            raise SourceError(
                f"the query binds :{parameter}, but only :start and :end have a value; write \\:{parameter} for text"
            )
        return name(parameter)

    return replace_binds(query, checked, literally=literally, backslashes=backslashes)


def _land_rows(
    query: str, name: str, bounds: tuple[datetime, datetime], connection: sa.Connection, writer: LandingWriter
) -> None:
    backslashes = connection.dialect.name in ("mysql", "mariadb")
    # SQLAlchemy takes a colon for a parameter in texts and comments too.
    text = _bound(query, lambda bind: f":{bind}", lambda other: other.replace(":", "\\:"), backslashes=backslashes)
    statement = sa.text(text)
    for bind, moment in zip((START, END), bounds, strict=True):
        if connection.dialect.name == "sqlite":
            statement = statement.bindparams(sa.bindparam(bind, _as_text(moment), sa.String()))
        else:
            statement = statement.bindparams(sa.bindparam(bind, moment, sa.DateTime(timezone=True)))
    result = connection.execution_options(stream_results=True, max_row_buffer=SQL_ROWS).execute(statement)
    names = list(result.keys())
    _refuse_doubled(names)
    takes = writer.takes(names)
    kept = [n for n, column in enumerate(names) if column in takes]
    codes = {names[n]: result.cursor.description[n][1] for n in kept} if connection.dialect.driver == "psycopg2" else {}
    values = DatabaseBatches(
        [names[n] for n in kept],
        {column: TEXTS[code] for column, code in codes.items() if code in TEXTS},
        {column: WITHOUT_VALUE[code] for column, code in codes.items() if code in WITHOUT_VALUE},
        name,
    )
    rows: Sequence[Sequence[Any]] = ()
    for rows in _fetched(result):
        for batch in values.batches([[row[n] for n in kept] for row in rows]):
            raw = pa.schema([field for field in batch.schema if field.name not in (POSITION, FAULT, RAW)])
            writer.begin(raw, "the query")
            writer.write(batch)
    if not rows:
        writer.begin(values.empty, "the query")


def _fetched(result: sa.CursorResult[Any]) -> Iterator[Sequence[Sequence[Any]]]:
    # Only reading is guarded: a driver may fail to make a Python value of what the database holds.
    pieces = result.partitions(SQL_ROWS)
    while True:
        try:
            rows = next(pieces, None)
        except (ValueError, ArithmeticError, TypeError) as error:
            raise SourceError(
                f"the driver cannot read a value of the query: {one_line(error)}; CAST its column to text in the query"
            ) from error
        if rows is None:
            return
        yield rows


def _land_from_duckdb(query: str, name: str, interval: Interval, connection: sa.Connection, writer: LandingWriter) -> None:
    """DuckDB gives Arrow, which has its infinite times and its huge integers too."""
    database: Any = connection.connection.dbapi_connection
    text = _bound(query, lambda bind: f"${bind}", lambda other: other)
    bounds = {bind: value for bind, value in ((START, interval.start), (END, interval.end)) if bind in binds(query)}
    relation = database.sql(text, params=bounds)
    _refuse_doubled(relation.columns)
    # In Arrow, a BIGNUM would be DuckDB's own bytes.
    kinds = {column: str(kind) for column, kind in zip(relation.columns, relation.dtypes, strict=True)}
    taken = {column: f"{quoted(column)}::VARCHAR" if kind == "BIGNUM" else quoted(column) for column, kind in kinds.items()}
    relation = relation.project(", ".join(f"{value} AS {quoted(column)}" for column, value in taken.items()))
    raw = pa.schema(relation.limit(0).to_arrow_table().schema)
    names = writer.begin(raw, "the query")
    first = 1
    for batch in relation.to_arrow_reader(ARROW_ROWS):
        writer.write(positioned(batch.select(names), name, first))
        first += len(batch)


def _refuse_doubled(names: Sequence[str]) -> None:
    if doubled := sorted({column for column in names if list(names).count(column) > 1}):
        raise SourceError(f"the query gives the column {doubled[0]} twice; rename one with AS")


def land_python(folder: ModelFolder, reference: str, name: str, interval: Interval, writer: LandingWriter) -> None:
    """Land the table that a function of ``model.py`` gives.

    Args:
        folder: the model's folder.
        reference: the function, such as ``model:rows``. It gets the start and the end of the interval.
        name: name of the source, for positions.
        interval: the interval.
        writer: takes the rows.

    Raises:
        SourceError: the function raised, gave no Arrow table, or named a column twice.
        SpecError: ``model.py`` cannot be imported, or has no such function.
    """
    function = folder_function(folder, reference)
    try:
        given = function(interval.start.astimezone(UTC), interval.end.astimezone(UTC))
        if not hasattr(given, "__arrow_c_stream__"):
            raise SourceError(f"{reference} gives a {type(given).__name__}; it must give an Arrow table or record batch reader")
        reader = pa.RecordBatchReader.from_stream(given)
        raw = reader.schema
        if doubled := sorted({column for column in raw.names if raw.names.count(column) > 1}):
            raise SourceError(f"{reference} gives the column {doubled[0]} twice")
        names = writer.begin(raw, reference)
        first = 1
        for batch in reader:
            for offset in range(0, len(batch), ARROW_ROWS):
                piece = batch.slice(offset, ARROW_ROWS).select(names)
                writer.write(positioned(piece, name, first))
                first += len(piece)
    except PerennialError:
        raise
    except Exception as error:  # code of a model folder may raise anything
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # what it read could not be written here
        raise SourceError(f"{reference} raised {type(error).__name__}: {one_line(error)}") from error
