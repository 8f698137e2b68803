"""Sources that are a SQL query or a Python function, landed in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC
from typing import Any
from uuid import UUID

import pyarrow as pa
import sqlalchemy as sa

from perennial.core.errors import PerennialError, SourceError
from perennial.core.intervals import Interval
from perennial.core.text import one_line
from perennial.ingestion.landing import ARROW_ROWS, LandingWriter, positioned
from perennial.lake.schema import MOMENT
from perennial.spec.code import folder_function
from perennial.spec.folder import ModelFolder

#: Number of rows that are fetched from a database at a time.
SQL_ROWS = 20_000


def land_sql(query: str, name: str, interval: Interval, engine: sa.Engine, writer: LandingWriter) -> None:
    """Land the result of a SQL query.

    Args:
        query: SQL with the parameters ``:start`` and ``:end``.
        name: name of the source, for positions.
        interval: gives the parameters.
        engine: the database.
        writer: takes the rows.

    Raises:
        SourceError: the query failed, names a column twice, or a column has no single type.
    """
    statement = sa.text(query).bindparams(
        sa.bindparam("start", interval.start, sa.DateTime(timezone=True)),
        sa.bindparam("end", interval.end, sa.DateTime(timezone=True)),
    )
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
                # So columns without a time zone are compared with the bounds as UTC.
                connection.execute(sa.text("SET LOCAL TIME ZONE 'UTC'"))
            result = connection.execution_options(stream_results=True, max_row_buffer=SQL_ROWS).execute(statement)
            names = list(result.keys())
            if doubled := sorted({column for column in names if names.count(column) > 1}):
                raise SourceError(f"the query gives the column {doubled[0]} twice; rename one with AS")
            takes = writer.takes(names)
            kept = [n for n, column in enumerate(names) if column in takes]
            types = [pa.null()] * len(kept)
            if engine.dialect.name == "postgresql":
                described = result.cursor.description
                types = [_POSTGRESQL.get(described[n][1], pa.null()) for n in kept]
            schema = pa.schema([(names[n], kind) for n, kind in zip(kept, types, strict=True)])
            first = 1
            for rows in result.partitions(SQL_ROWS):
                values = list(zip(*rows, strict=True))
                arrays = [_array(values[n], names[n], kind) for n, kind in zip(kept, types, strict=True)]
                batch = pa.record_batch(arrays, names=schema.names)
                writer.begin(batch.schema, "the query")
                writer.write(positioned(batch, name, first))
                first += len(rows)
            if first == 1:
                writer.begin(schema, "the query")
    except sa.exc.SQLAlchemyError as error:
        raise SourceError(f"the query failed: {one_line(getattr(error, 'orig', None) or error)}") from error


#: The types of PostgreSQL's columns by number, for columns that have no value yet.
_POSTGRESQL: dict[object, pa.DataType] = {
    16: pa.bool_(), 20: pa.int64(), 21: pa.int64(), 23: pa.int64(), 25: pa.string(), 700: pa.float64(), 701: pa.float64(),
    1042: pa.string(), 1043: pa.string(), 1082: pa.date32(), 1114: pa.timestamp("us"), 1184: MOMENT,
}  # fmt: skip


def _array(values: Sequence[Any], column: str, kind: pa.DataType) -> pa.Array:
    """The values of one database column as an Arrow array. Structures become JSON texts, and UUIDs become texts.

    Args:
        values: the values, None for NULL.
        column: name of the column, for messages.
        kind: the type if all values are NULL.
    """
    sample = next((value for value in values if value is not None), None)
    if isinstance(sample, UUID):
        values = [None if value is None else str(value) for value in values]
    elif isinstance(sample, dict | list):
        values = [None if value is None else json.dumps(value, default=str) for value in values]
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SourceError(f"the query's column {column} has values of several types; CAST it: {one_line(error)}") from error
    if pa.types.is_null(array.type):
        return array.cast(kind)
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        return array.cast(MOMENT)
    return array


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
        raise SourceError(f"{reference} raised {type(error).__name__}: {one_line(error)}") from error
