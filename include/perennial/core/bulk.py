"""Sends Arrow rows to a table of a SQL database, many per statement.

PostgreSQL gets them by COPY, SQLite by INSERT. Values arrive as they are: an empty text is not a missing one, and floats keep
their bits, except that SQLite has no -0.0. In SQLite a time is a text in UTC that sorts by time, as SQLAlchemy reads it.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import sqlalchemy as sa

from perennial.core.database import LOCK_WAIT, Database

#: How long PostgreSQL lets a stopped writer hold a lock that others wait for.
IDLE_LIMIT = LOCK_WAIT / 2
#: Rows per statement for SQLite. More rows per statement are not faster; one row per statement takes nearly twice as long.
_ROWS_A_STATEMENT = 50

#: The SQL type of each Arrow type that can be sent.
SQL_TYPES: dict[pa.DataType, sa.types.TypeEngine[Any]] = {
    pa.string(): sa.Text(),
    pa.large_string(): sa.Text(),
    pa.int64(): sa.BigInteger(),
    pa.float64(): sa.Double(),
    pa.bool_(): sa.Boolean(),
    pa.timestamp("us", "UTC"): sa.DateTime(timezone=True),
    pa.date32(): sa.Date(),
}


def prepare(database: Database, connection: sa.Connection) -> None:
    """Prepare a session of the database for :func:`send`."""
    if not database.is_sqlite:
        connection.exec_driver_sql("SET timezone TO 'UTC'")  # times are sent without their zone


def send(database: Database, connection: sa.Connection, table: str, rows: pa.RecordBatch) -> None:
    """Add rows to a table. Its columns are those of the rows, in the same order.

    Args:
        database: the database.
        connection: a connection after :func:`prepare`, in a transaction.
        table: the table's name, which is a plain word.
        rows: columns with types of :data:`SQL_TYPES`.
    """
    cursor = connection.connection.cursor()
    if database.is_sqlite:
        columns = [_for_sqlite(column) for column in rows.columns]
        width, values = len(columns), list(chain.from_iterable(zip(*columns, strict=True)))
        row, most = f"({', '.join('?' * width)})", _ROWS_A_STATEMENT * width
        for start in range(0, len(values), most):
            part = values[start : start + most]
            cursor.execute(f"INSERT INTO {table} VALUES {', '.join([row] * (len(part) // width))}", part)
    else:
        # Texts are quoted and missing values are not: this is how PostgreSQL distinguishes an empty text from NULL.
        options = pa.csv.WriteOptions(include_header=False, quoting_style="needed")
        buffer = pa.BufferOutputStream()
        columns = [_without_zone(column) for column in rows.columns]
        pa.csv.write_csv(pa.RecordBatch.from_arrays(columns, names=rows.schema.names), buffer, options)
        cursor.copy_expert(f"COPY {table} FROM STDIN (FORMAT csv)", pa.BufferReader(buffer.getvalue()), 1 << 20)
    cursor.close()


def limit_locks(connection: sa.Connection) -> None:
    """Let PostgreSQL disconnect this transaction's writer if it stops while it holds a lock, so that others can continue."""
    for setting, limit in (("idle_in_transaction_session_timeout", IDLE_LIMIT), ("lock_timeout", LOCK_WAIT)):
        connection.exec_driver_sql(f"SET LOCAL {setting} = {int(limit.total_seconds() * 1000)}")


def _for_sqlite(column: pa.Array) -> list[Any]:
    """Convert values to what SQLAlchemy stores in SQLite."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = pc.cast(_without_zone(column), pa.string())
    values: list[Any] = column.to_pylist()
    return values


def _without_zone(column: pa.Array) -> pa.Array:
    """Remove the time zone UTC: Arrow converts such times to text twenty times as fast. Other columns do not change."""
    return pc.cast(column, pa.timestamp("us")) if pa.types.is_timestamp(column.type) else column
