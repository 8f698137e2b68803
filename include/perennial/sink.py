"""The predictions database: the table ``<model>_predictions`` that a model's consumers read with plain SQL.

It follows the lake and never leads it: :mod:`perennial.scoring` publishes predictions as an Iceberg table first and then
copies the published rows of the interval here. Which publication an interval was copied from stands in ``<model>_scored``
beside it, and rows of an older publication never replace those of a newer one.

The lock that other writers wait for is held for a few statements inside the server, not while rows are read from the lake
and sent. SQLite has one writer at a time, so rows are staged in a temporary table of the session first, which lies in a file
of its own. PostgreSQL takes them straight into the table, where nobody sees them before they are committed, and the lock is
for what they replace.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import sqlalchemy as sa

from perennial.database import LOCK_WAIT, Database
from perennial.errors import ScoringError
from perennial.intervals import Interval

#: How long PostgreSQL lets a writer that has stopped hold what others wait for.
IDLE_LIMIT = LOCK_WAIT / 2
_SQL_TYPES: dict[pa.DataType, sa.types.TypeEngine[Any]] = {
    pa.string(): sa.Text(),
    pa.large_string(): sa.Text(),
    pa.int64(): sa.BigInteger(),
    pa.float64(): sa.Double(),
    pa.bool_(): sa.Boolean(),
    pa.timestamp("us", "UTC"): sa.DateTime(timezone=True),
    pa.date32(): sa.Date(),
}


class PredictionSink:
    """The tables of one model in the predictions database.

    Args:
        url: SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
        model: the model's name.
        schema: columns of a prediction; they are created on first use.
        event_time: the column that places a row in an interval.
        shared: columns, none of floats, whose values many rows have in common, such as the run they are from: SQLite is sent
            them once.
    """

    def __init__(self, url: str, model: str, schema: pa.Schema, event_time: str, shared: Sequence[str] = ()) -> None:
        self._database = Database(url)
        self._engine = self._database.engine
        self._event_time = event_time
        self._shared = [name for name in schema.names if name in shared]
        self._own = [name for name in schema.names if name not in shared]
        metadata = sa.MetaData()
        self._table = sa.Table(
            f"{model}_predictions",
            metadata,
            *(sa.Column(field.name, _SQL_TYPES[field.type], nullable=field.nullable) for field in schema),
            # The name must fit PostgreSQL's 63 characters with the longest model name.
            sa.Index(f"{model}_predictions_at", event_time),
        )
        self._scored = sa.Table(
            f"{model}_scored",
            metadata,
            sa.Column("interval_start", sa.DateTime(timezone=True), primary_key=True),
            sa.Column("interval_end", sa.DateTime(timezone=True), primary_key=True),
            sa.Column("publication", sa.BigInteger, nullable=False),
            sa.Column("rows", sa.BigInteger, nullable=False),
            sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        )
        self._metadata = metadata

    def write(self, interval: Interval, publication: int, rows: pa.RecordBatchReader) -> int | None:
        """Replace the interval's rows with those of a publication, in one transaction.

        Args:
            interval: all of its rows are replaced.
            publication: the ledger's number of the publication that ``rows`` were read at.
            rows: the interval's predictions, in the sink's schema.

        Returns:
            How many rows were written; None if a newer publication was here first, in which case nothing was changed.

        Raises:
            ScoringError: the table there has other columns, or the database refused the rows.
        """
        try:
            self._create()
            with self._engine.connect() as connection:
                return self._write(connection, interval, publication, rows)
        except (sa.exc.DBAPIError, self._engine.dialect.loaded_dbapi.Error) as error:  # the rows are sent by the driver itself
            # The first line alone: what follows may quote data.
            cause = next(iter(str(getattr(error, "orig", error)).splitlines()), type(error).__name__)
            raise ScoringError(
                f"{self._table.name}, {interval}: the predictions database {self._where} refused: {cause}. "
                "The predictions are published in the lake; score the interval again when it is mended"
            ) from error

    @property
    def _where(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    def _create(self) -> None:
        names = (self._table.name, self._scored.name)
        with self._database.reading() as connection:
            found = all(sa.inspect(connection).has_table(name) for name in names)
        if not found:
            self._database.create(self._metadata)
        with self._database.reading() as connection:
            there = [column["name"] for column in sa.inspect(connection).get_columns(self._table.name)]
        wanted = [column.name for column in self._table.columns]
        if sorted(there) != sorted(wanted):
            raise ScoringError(
                f"the table {self._table.name} in {self._where} has the columns {', '.join(there)}, but predictions have "
                f"{', '.join(wanted)}: rename or drop it and score again"
            )

    def _write(self, connection: sa.Connection, interval: Interval, publication: int, rows: pa.RecordBatchReader) -> int | None:
        if self._database.is_sqlite:
            with connection.begin():
                written = self._stage_in_sqlite(connection, rows)
            connection = connection.execution_options(writes=True)
        with connection.begin() as transaction:
            if not self._database.is_sqlite:
                written = self._send_to_postgresql(connection, rows)
                self._lock(connection)
            if self._holds_newer(connection, interval, publication):
                transaction.rollback()
                return None
            self._swap(connection, interval, publication, written)
        return written

    def _lock(self, connection: sa.Connection) -> None:
        key = f"perennial/sink/{self._table.name}"
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})

    def _holds_newer(self, connection: sa.Connection, interval: Interval, publication: int) -> bool:
        scored = self._scored.c
        newest = connection.execute(
            sa.select(sa.func.max(scored.publication)).where(
                scored.interval_start < self._moment(interval.end), scored.interval_end > self._moment(interval.start)
            )
        ).scalar_one()
        return newest is not None and newest > publication

    def _swap(self, connection: sa.Connection, interval: Interval, publication: int, rows: int) -> None:
        start, end = self._moment(interval.start), self._moment(interval.end)
        at, scored = self._table.c[self._event_time], self._scored.c
        replaced = sa.delete(self._table).where(at >= start, at < end)
        if self._database.is_sqlite:
            connection.execute(replaced)
            names = self._names([*self._own, *self._shared])
            together = " CROSS JOIN said USING (_said)" if self._shared else ""
            connection.exec_driver_sql(
                f"INSERT INTO {self._quote(self._table.name)} ({names}) SELECT {names} FROM staged{together}"
            )
        else:
            # The rows that this transaction has sent are to stay.
            connection.execute(replaced.where(sa.text("xmin <> pg_current_xact_id()::xid")))
        connection.execute(sa.delete(self._scored).where(scored.interval_start >= start, scored.interval_end <= end))
        connection.execute(
            sa.insert(self._scored).values(
                interval_start=start,
                interval_end=end,
                publication=publication,
                rows=rows,
                written_at=self._moment(datetime.now(UTC)),
            )
        )

    def _moment(self, moment: datetime) -> datetime:
        return moment.replace(tzinfo=None) if self._database.is_sqlite else moment

    def _send_to_postgresql(self, connection: sa.Connection, rows: pa.RecordBatchReader) -> int:
        # A writer that is stopped while it holds the lock is cut off by the server, so those behind it go on.
        connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {int(IDLE_LIMIT.total_seconds() * 1000)}")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(LOCK_WAIT.total_seconds() * 1000)}")
        table, names = self._quote(self._table.name), self._names(rows.schema.names)
        source = _CsvFile(rows)
        cursor = connection.connection.cursor()
        try:
            cursor.copy_expert(f"COPY {table} ({names}) FROM STDIN (FORMAT csv)", source, 1 << 20)
        except self._engine.dialect.loaded_dbapi.Error:
            # The driver makes an error of the database of whatever went wrong while it read.
            if source.failure is not None:
                raise source.failure from None
            raise
        cursor.close()
        return source.rows

    def _stage_in_sqlite(self, connection: sa.Connection, rows: pa.RecordBatchReader) -> int:
        # The temporary tables are in a file of their own, so filling them keeps no other writer waiting.
        own, shared, table = self._names(self._own), self._names(self._shared), self._quote(self._table.name)
        if self._shared:
            connection.exec_driver_sql(f"CREATE TEMP TABLE said AS SELECT 0 AS _said, {shared} FROM {table} WHERE 0")
            connection.exec_driver_sql("CREATE UNIQUE INDEX temp.said_once ON said (_said)")
        reference = ", 0 AS _said" if self._shared else ""
        connection.exec_driver_sql(f"CREATE TEMP TABLE staged AS SELECT {own}{reference} FROM {table} WHERE 0")
        cursor = connection.connection.cursor()
        written = said = 0
        for batch in rows:
            for same in _by_values(batch, self._shared):
                if self._shared:
                    values = [_for_sqlite(same.column(name).slice(0, 1))[0] for name in self._shared]
                    cursor.execute(f"INSERT INTO said VALUES ({', '.join('?' * (1 + len(values)))})", [said, *values])
                columns: list[Iterable[Any]] = [_for_sqlite(same.column(name)) for name in self._own]
                if self._shared:
                    columns.append(repeat(said, same.num_rows))
                marks = ", ".join("?" * len(columns))
                cursor.executemany(f"INSERT INTO staged VALUES ({marks})", list(zip(*columns, strict=True)))
                written, said = written + same.num_rows, said + 1
        cursor.close()
        return written

    def _names(self, identifiers: Iterable[str]) -> str:
        return ", ".join(self._quote(name) for name in identifiers)

    def _quote(self, identifier: str) -> str:
        return self._engine.dialect.identifier_preparer.quote_identifier(identifier)


def newest_publication(url: str, model: str) -> int | None:
    """The newest publication that predictions of a model were copied from; None if none were."""
    with Database(url).reading() as connection:
        if not sa.inspect(connection).has_table(f"{model}_scored"):
            return None
        return connection.execute(sa.select(sa.func.max(sa.column("publication"))).select_from(_scored(model))).scalar_one()


def forget_newer(url: str, model: str, publication: int) -> int:
    """Let intervals be written again that were copied from a publication which the ledger, once restored, never made.

    Returns:
        How many intervals there were.
    """
    if (newest := newest_publication(url, model)) is None or newest <= publication:
        return 0
    with Database(url).writing("sink", f"{model}_predictions") as connection:
        return connection.execute(sa.delete(_scored(model)).where(sa.column("publication") > publication)).rowcount


def _scored(model: str) -> sa.TableClause:
    return sa.table(f"{model}_scored", sa.column("publication"))


def _by_values(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a batch, those together that have the same values in some columns."""
    found = pa.Table.from_batches([batch]).group_by(list(columns)).aggregate([]) if columns else None
    if found is None or found.num_rows <= 1:
        yield from [batch] if batch.num_rows else []
        return
    for values in found.to_pylist():
        same = pa.repeat(True, batch.num_rows)
        for name, value in values.items():
            column = batch.column(name)
            alike = column.is_null() if value is None else pc.equal(column, pa.scalar(value, column.type))
            same = pc.and_(same, pc.fill_null(alike, False))
        yield batch.filter(same)


def _for_sqlite(column: pa.Array) -> list[Any]:
    """Values as SQLAlchemy stores them in SQLite; moments are text in UTC that sorts by time."""
    if pa.types.is_timestamp(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("us")), pa.string())
    elif pa.types.is_date(column.type):
        column = pc.cast(column, pa.string())
    values: list[Any] = column.to_pylist()
    return values


class _CsvFile(io.RawIOBase):
    """Record batches as the bytes of a CSV file, made as they are asked for.

    Texts are quoted and missing values are not, which is how PostgreSQL tells an empty text from none.
    """

    def __init__(self, batches: pa.RecordBatchReader) -> None:
        self.rows = 0
        self.failure: Exception | None = None
        self._chunks = self._encode(batches)
        self._chunk: Any = io.BytesIO()

    def _encode(self, batches: pa.RecordBatchReader) -> Iterator[pa.Buffer]:
        options = pa.csv.WriteOptions(include_header=False, quoting_style="needed")
        for batch in batches:
            buffer = pa.BufferOutputStream()
            pa.csv.write_csv(batch, buffer, options)
            self.rows += batch.num_rows
            yield buffer.getvalue()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            part: bytes = self._chunk.read(size)
            if part:
                return part
            try:
                chunk = next(self._chunks, None)
            except Exception as error:
                self.failure = error
                raise
            if chunk is None:
                return b""
            self._chunk = pa.BufferReader(chunk)
