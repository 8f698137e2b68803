"""The predictions database: the table ``<model>_predictions`` that a model's consumers read with plain SQL.

It follows the lake: the rows of an interval become visible here after :mod:`perennial.scoring.publish` has published them as
an Iceberg table. The table ``<model>_scored`` records the publication that an interval's rows belong to. Rows of an older
publication never replace those of a newer one.

Rows are first staged in temporary tables of the session, possibly before it is known whether they will be published.
During this time nothing is locked, and no transaction stays open, so the server can vacuum. Rows that are not published
leave nothing behind. The server then swaps the rows. SQLite has one writer at a time. In PostgreSQL nobody sees the new rows
before they are committed, and a lock protects the rows that they replace. A connection pooler in front of PostgreSQL must
pool sessions, not transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from perennial.core import bulk
from perennial.core.database import Database, cause, take_turn
from perennial.core.errors import ScoringError
from perennial.core.intervals import Interval


class PredictionSink:
    """The tables of one model in the predictions database.

    Args:
        url: SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
        model: the model's name.
        schema: columns of a prediction; they are created on first use.
        event_time: the column that assigns a row to an interval.
        shared: columns whose values are the same in many rows, such as the run's id. Each set of values is sent once. No
            column of floats is allowed.
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
            *(sa.Column(field.name, bulk.SQL_TYPES[field.type], nullable=field.nullable) for field in schema),
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
        self._staging = sa.MetaData()
        self._staged = sa.Table(
            "staged", self._staging, *self._columns(self._own), sa.Column("_said", sa.BigInteger), prefixes=["TEMPORARY"]
        )
        self._said = sa.Table(
            "said",
            self._staging,
            sa.Column("_said", sa.Integer, primary_key=True, autoincrement=False),
            *self._columns(self._shared),
            prefixes=["TEMPORARY"],
        )

    def _columns(self, names: Iterable[str]) -> list[sa.Column[Any]]:
        return [sa.Column(name, self._table.c[name].type, nullable=self._table.c[name].nullable) for name in names]

    def write(self, interval: Interval, publication: int | Callable[[], int], rows: Iterable[pa.RecordBatch]) -> int | None:
        """Replace the interval's rows with those of a publication, all at once.

        Args:
            interval: all of its rows are replaced.
            publication: the ledger's number of the rows' publication. If it is a function, it is called after all rows are
                staged, and may wait until they are published. Its errors are raised here, and nothing is changed.
            rows: the interval's predictions, in the sink's schema.

        Returns:
            The number of rows written; None if the rows of a newer publication are there, so that nothing was changed.

        Raises:
            ScoringError: the existing table has other columns, or the database refused the rows.
        """
        try:
            with self._engine.connect() as connection:
                staged = self._stage(connection, rows)
                number = publication if isinstance(publication, int) else publication()
                self._create()
                return self._replace(connection, interval, number, staged)
        except (sa.exc.DBAPIError, self._engine.dialect.loaded_dbapi.Error) as error:  # rows bypass SQLAlchemy
            raise ScoringError(
                f"{self._table.name}, {interval}: the predictions database {self._database.where} refused: {cause(error)}. "
                "The predictions are published in the lake. Repair the database, then score the interval again"
            ) from error

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
                f"the table {self._table.name} in {self._database.where} has the columns {', '.join(there)}, but predictions "
                f"have {', '.join(wanted)}: rename or drop it and score again"
            )

    def _stage(self, connection: sa.Connection, rows: Iterable[pa.RecordBatch]) -> int:
        with connection.begin():
            bulk.prepare(self._database, connection)
            self._staging.create_all(connection, checkfirst=False)
        written = said = 0
        for batch in rows:
            with connection.begin():
                for same in _by_values(batch, self._shared):
                    [values] = same.select(self._shared).slice(0, 1).to_pylist()
                    connection.execute(sa.insert(self._said), {"_said": said, **values})
                    own = same.select(self._own).append_column("_said", pa.repeat(said, same.num_rows))
                    bulk.send(self._database, connection, "staged", own)
                    written, said = written + same.num_rows, said + 1
        return written

    def _replace(self, connection: sa.Connection, interval: Interval, publication: int, rows: int) -> int | None:
        if self._database.is_sqlite:
            connection = connection.execution_options(writes=True)
        with connection.begin() as transaction:
            if not self._database.is_sqlite:
                bulk.limit_locks(connection)
                self._insert(connection)
                self._lock(connection)
            if self._holds_newer(connection, interval, publication):
                transaction.rollback()
                return None
            self._swap(connection, interval, publication, rows)
        return rows

    def _insert(self, connection: sa.Connection) -> None:
        names = [*self._own, *self._shared]
        # Every row has a match on the right. The outer join prevents SQLite from scanning all rows for each value.
        together = self._staged.outerjoin(self._said, self._staged.c["_said"] == self._said.c["_said"])
        columns = [(self._staged if name in self._own else self._said).c[name] for name in names]
        connection.execute(sa.insert(self._table).from_select(names, sa.select(*columns).select_from(together)))

    def _lock(self, connection: sa.Connection) -> None:
        take_turn(connection, f"perennial/sink/{self._table.name}")

    def _holds_newer(self, connection: sa.Connection, interval: Interval, publication: int) -> bool:
        scored = self._scored.c
        newest = connection.execute(
            sa.select(sa.func.max(scored.publication)).where(
                scored.interval_start < self._database.bound(interval.end),
                scored.interval_end > self._database.bound(interval.start),
            )
        ).scalar_one()
        return newest is not None and newest > publication

    def _swap(self, connection: sa.Connection, interval: Interval, publication: int, rows: int) -> None:
        start, end = self._database.bound(interval.start), self._database.bound(interval.end)
        at, scored = self._table.c[self._event_time], self._scored.c
        replaced = sa.delete(self._table).where(at >= start, at < end)
        if self._database.is_sqlite:
            connection.execute(replaced)
            self._insert(connection)
        else:
            # Keep the rows that this transaction has inserted.
            connection.execute(replaced.where(sa.text("xmin <> pg_current_xact_id()::xid")))
        connection.execute(sa.delete(self._scored).where(scored.interval_start >= start, scored.interval_end <= end))
        connection.execute(
            sa.insert(self._scored).values(
                interval_start=start,
                interval_end=end,
                publication=publication,
                rows=rows,
                written_at=self._database.bound(datetime.now(UTC)),
            )
        )


def newest_publication(url: str, model: str) -> int | None:
    """Return the newest publication whose predictions are in the database; None if there is none."""
    with Database(url).reading() as connection:
        if not sa.inspect(connection).has_table(f"{model}_scored"):
            return None
        return connection.execute(sa.select(sa.func.max(sa.column("publication"))).select_from(_scored(model))).scalar_one()


def forget_newer(url: str, model: str, publication: int) -> int:
    """Allow intervals to be written again whose publication is newer than ``publication``.

    This is for a ledger that was restored from a backup: it does not know these publications.

    Returns:
        The number of these intervals.
    """
    if (newest := newest_publication(url, model)) is None or newest <= publication:
        return 0
    with Database(url).writing("sink", f"{model}_predictions") as connection:
        return connection.execute(sa.delete(_scored(model)).where(sa.column("publication") > publication)).rowcount


def _scored(model: str) -> sa.TableClause:
    return sa.table(f"{model}_scored", sa.column("publication"))


def _by_values(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a batch, grouped by their values in some columns."""
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
