"""A table of a database, copied so that it can be looked at like a file; and the query by which a source reads it.

The address of the database, with its password, goes into no file: a source names a connection. Neighbours:
:mod:`perennial.authoring.profile` looks at the copy; :mod:`perennial.authoring.draft` writes the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.database import cause
from perennial.core.errors import SpecError
from perennial.spec.names import listed

#: Most rows that are looked at, and how many are fetched at once.
MOST, _AT_ONCE = 1_000_000, 20_000


@dataclass(frozen=True)
class TableCopy:
    """A copied table.

    Attributes:
        name: as it was asked for, with its schema if that was given.
        file: the copy, a Parquet file in which every value is a text.
        times: the columns whose type is a date or a timestamp.
        dialect: of the database; it quotes names.
        is_whole: whether all rows were copied, and not only the first :data:`MOST`.
    """

    name: str
    file: Path
    times: frozenset[str]
    dialect: sa.Dialect
    is_whole: bool

    def query(self, time: str) -> str:
        """The query that reads an interval of the table by one of its times.

        Raises:
            SpecError: the column is no date or timestamp, so the database cannot compare it with an interval.
        """
        if time not in self.times:
            raise SpecError(
                f"table {self.name}: a source of a database is read by an interval of time, and {time} is no date or timestamp "
                f"there{f'; name one of {listed(sorted(self.times))} by --time' if self.times else ''}. Or write the folder by "
                "hand, with a query that makes one"
            )
        quote = self.dialect.identifier_preparer.quote_identifier
        table = ".".join(quote(part) for part in _parts(self.name) if part)
        return f"SELECT * FROM {table} WHERE {quote(time)} >= :start AND {quote(time)} < :end"


def copy_table(address: str, name: str, folder: Path) -> TableCopy:
    """Copy a table, each value as the text that the database makes of it; times in UTC.

    Args:
        address: SQLAlchemy URL of the database.
        name: the table or view, with its schema before a dot if it is not in the usual one.
        folder: where the copy is made.

    Raises:
        SpecError: the address is none, the database does not answer, or there is no such table. No message has a password.
    """
    try:
        url = sa.make_url(address)
        engine = sa.create_engine(url, poolclass=NullPool, hide_parameters=True)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise SpecError(
            "the address of the database is none that SQLAlchemy knows: write postgresql+psycopg2://user@host/database, and "
            f"the table after a further slash ({type(error).__name__})"
        ) from None
    where = url.render_as_string(hide_password=True)
    try:
        schema, table = _parts(name)
        inspector = sa.inspect(engine)
        if not inspector.has_table(table, schema):
            there = sorted([*inspector.get_table_names(schema), *inspector.get_view_names(schema)])
            raise SpecError(f"{where} has no table {name}; there are {listed(there[:20]) or 'none'}")
        columns = inspector.get_columns(table, schema)
        times = frozenset(one["name"] for one in columns if isinstance(one["type"], sa.DateTime | sa.Date))
        names = [one["name"] for one in columns]
        file = folder / f"{table}.parquet"
        rows = _write(engine, table, schema, names, file)
    except sa.exc.SQLAlchemyError as error:
        raise SpecError(f"{where} cannot be read: {cause(error)}") from None
    return TableCopy(name, file, times, engine.dialect, rows <= MOST)


def _write(engine: sa.Engine, table: str, schema: str | None, names: list[str], file: Path) -> int:
    texts = [sa.cast(sa.column(name), sa.String).label(name) for name in names]
    query = sa.select(*texts).select_from(sa.table(table, schema=schema)).limit(MOST + 1)
    wanted = pa.schema([(name, pa.string()) for name in names])
    count = 0
    with engine.connect() as connection, pq.ParquetWriter(file, wanted) as writer:
        if engine.dialect.name == "postgresql":
            connection.execution_options(postgresql_readonly=True)
            connection.execute(sa.text("SET LOCAL TIME ZONE 'UTC'"))
        for rows in _chunks(connection, query):
            count += len(rows)
            kept = rows[: max(0, MOST - count + len(rows))]
            if kept:
                writer.write_table(
                    pa.table([pa.array(column, pa.string()) for column in zip(*kept, strict=True)], schema=wanted)
                )
    return count


def _chunks(connection: sa.Connection, query: sa.Executable) -> Iterator[Sequence[sa.Row[Any]]]:
    result = connection.execution_options(stream_results=True, max_row_buffer=_AT_ONCE).execute(query)
    while rows := result.fetchmany(_AT_ONCE):
        yield rows


def _parts(name: str) -> tuple[str | None, str]:
    """Schema and table."""
    schema, _, table = name.rpartition(".")
    return schema or None, table
