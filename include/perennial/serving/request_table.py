"""What was asked online and answered, until it is published: tables of the predictions database.

``online_requests`` has a row for each row of a request. Scorers add chunks of rows, each in one transaction, and may do nothing
else there. A run of the DAG ``record`` publishes the rows in the lake and removes them here. So a chunk is the unit of both:
what is published names its chunks, and a chunk is here as a whole or not at all.

``online_recorders`` counts, for each scorer process and model, the chunks and rows that it has stored, in the same transaction.
So a chunk that is sent twice is stored once, and the rows that a killed process had not stored are counted
(:mod:`perennial.serving.recording`).

Neighbours: :mod:`perennial.serving.recording` adds rows; :mod:`perennial.serving.recorded` publishes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from perennial.core import bulk
from perennial.core.columns import insert
from perennial.core.database import Database, as_moment, cause
from perennial.core.errors import ServingError
from perennial.core.intervals import Interval
from perennial.lake.schema import MOMENT

METADATA = sa.MetaData()
_REQUESTS = sa.Table(
    "online_requests",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("chunk", sa.Text, primary_key=True),
    sa.Column("place", sa.BigInteger, primary_key=True),
    sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("row", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("form", sa.Text, nullable=False),
    sa.Column("definition", sa.Text, nullable=True),
    sa.Column("entity", sa.Text, nullable=True),
    sa.Column("event_time", sa.DateTime(timezone=True), nullable=True),
    sa.Column("as_of", sa.DateTime(timezone=True), nullable=True),
    sa.Column("features_snapshot", sa.BigInteger, nullable=True),
    sa.Column("fallback", sa.Text, nullable=True),
    sa.Column("came", sa.Text, nullable=False),
    sa.Column("features", sa.Text, nullable=False),
    sa.Column("prediction", sa.Text, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Index("online_requests_at", "model", "asked_at"),
)
_RECORDERS = sa.Table(
    "online_recorders",
    METADATA,
    sa.Column("recorder", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("chunks", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("lost", sa.BigInteger, nullable=True),
    sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
)

#: What is recorded of a row that was asked and answered.
SCHEMA = pa.schema(
    [
        ("model", pa.string()), ("chunk", pa.string()), ("place", pa.int64()), ("asked_at", MOMENT),
        ("request_id", pa.string()),
        ("row", pa.int64()), ("version", pa.int64()), ("role", pa.string()), ("form", pa.string()), ("definition", pa.string()),
        ("entity", pa.string()), ("event_time", MOMENT), ("as_of", MOMENT), ("features_snapshot", pa.int64()),
        ("fallback", pa.string()), ("came", pa.string()), ("features", pa.string()), ("prediction", pa.string()),
        ("seconds", pa.float64()),
    ]
)  # fmt: skip

_HOUR = timedelta(hours=1)
#: Most rows that are read, and most values that are named in a statement, at once.
_ROWS_AT_ONCE, _VALUES_AT_ONCE = 10_000, 500


class RequestTable:
    """The tables of a deployment. Threads may share it.

    Args:
        url: SQLAlchemy URL of the predictions database, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._errors = (sa.exc.DBAPIError, self._database.engine.dialect.loaded_dbapi.Error)

    # --- record ------------------------------------------------------------------------------------------------------

    def add(self, recorder: str, model: str, number: int, rows: pa.RecordBatch) -> None:
        """Store a chunk. A chunk that is there already, or was, is not stored again.

        Args:
            recorder: the process.
            model: the model.
            number: of the chunk, counted by the recorder for each model from 1 on.
            rows: columns of :data:`SCHEMA`.

        Raises:
            ServingError: the database does not take them.
        """
        with self._telling(), self._adding() as connection:
            # Also if others have removed its row: a chunk must not count as stored that is not.
            new = {
                "recorder": recorder, "model": model, "chunks": number - 1, "rows": 0,
                "began_at": self._database.bound(datetime.now(UTC)),
            }  # fmt: skip
            connection.execute(insert(connection, _RECORDERS).values(new).on_conflict_do_nothing())
            counted = connection.execute(
                sa.update(_RECORDERS)
                .where(_RECORDERS.c.recorder == recorder, _RECORDERS.c.model == model, _RECORDERS.c.chunks == number - 1)
                .values(chunks=number, rows=_RECORDERS.c.rows + rows.num_rows)
            )
            if counted.rowcount:
                bulk.send(self._database, connection, "online_requests", rows)

    @contextmanager
    def _adding(self) -> Iterator[sa.Connection]:
        """A transaction that adds, beside those of other scorers."""
        writes = self._database.is_sqlite
        with self._database.engine.connect().execution_options(writes=writes) as connection, connection.begin():
            bulk.prepare(self._database, connection)
            if not writes:
                bulk.limit_locks(connection)
            yield connection

    def end(self, recorder: str, model: str, rows: int) -> int | None:
        """Say that a process has ended, and how many rows it should have stored.

        Returns:
            How many of them it has not stored; None if that was said before.

        Raises:
            ServingError: the database does not answer.
        """
        now = self._database.bound(datetime.now(UTC))
        with self._telling(), self._adding() as connection:
            new = {"recorder": recorder, "model": model, "chunks": 0, "rows": 0, "began_at": now}
            connection.execute(insert(connection, _RECORDERS).values(new).on_conflict_do_nothing())
            its = (_RECORDERS.c.recorder == recorder, _RECORDERS.c.model == model, _RECORDERS.c.ended_at.is_(None))
            stored = connection.execute(sa.select(_RECORDERS.c.rows).where(*its)).scalar_one_or_none()
            if stored is None:
                return None
            lost = max(0, rows - int(stored))
            ended = connection.execute(sa.update(_RECORDERS).where(*its).values(lost=lost, ended_at=now)).rowcount
            return lost if ended else None

    # --- publish -----------------------------------------------------------------------------------------------------

    def hours(self, model: str) -> list[Interval]:
        """The hours in which rows were asked that are here, oldest first."""
        if not self._exists():
            return []
        at = _REQUESTS.c.asked_at
        # The year, month, day and hour, in UTC.
        hour = sa.func.substr(at, 1, 13) if self._database.is_sqlite else sa.func.date_trunc("hour", at, "UTC")
        with self._telling(), self._database.reading() as connection:
            found = connection.execute(sa.select(sa.type_coerce(hour, sa.Text)).where(_REQUESTS.c.model == model).distinct())
            starts = [as_moment(f"{one}:00:00" if isinstance(one, str) and len(one) == 13 else one) for one in found.scalars()]
        return sorted(Interval(start, start + _HOUR) for start in starts)

    def chunks(self, model: str, within: Interval) -> list[str]:
        """The chunks that have rows of an interval here."""
        query = sa.select(_REQUESTS.c.chunk).where(*self._asked(model, within)).distinct()
        with self._telling(), self._database.reading() as connection:
            return sorted(connection.execute(query).scalars())

    def read(self, model: str, within: Interval, chunks: Collection[str]) -> Iterator[pa.RecordBatch]:
        """The rows of some chunks that were asked in an interval, in columns of :data:`SCHEMA`."""
        for part in _parts(sorted(chunks)):
            query = sa.select(*(_REQUESTS.c[name] for name in SCHEMA.names)).where(
                *self._asked(model, within), _REQUESTS.c.chunk.in_(part)
            )
            yield from self._rows(query)

    def of_request(self, model: str, request_id: str) -> pa.Table:
        """The rows of a request that are here."""
        if not self._exists():
            return SCHEMA.empty_table()
        query = sa.select(*(_REQUESTS.c[name] for name in SCHEMA.names))
        query = query.where(_REQUESTS.c.model == model, _REQUESTS.c.request_id == request_id)
        return pa.Table.from_batches(self._rows(query), SCHEMA)

    def _rows(self, query: sa.Select[Any]) -> Iterator[pa.RecordBatch]:
        with self._telling(), self._database.engine.connect().execution_options(stream_results=True) as connection:
            for rows in connection.execute(query).partitions(_ROWS_AT_ONCE):
                columns = []
                for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True):
                    of_time = pa.types.is_timestamp(field.type)
                    its = [None if one is None else as_moment(one) for one in values] if of_time else list(values)
                    columns.append(pa.array(its, field.type))
                yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def remove(self, model: str, within: Interval, chunks: Collection[str]) -> int:
        """Remove the rows of some chunks that were asked in an interval; returns how many."""
        count = 0
        for part in _parts(sorted(chunks)):
            with self._telling(), self._database.writing("requests", model) as connection:
                its = (*self._asked(model, within), _REQUESTS.c.chunk.in_(part))
                count += int(connection.execute(sa.delete(_REQUESTS).where(*its)).rowcount)
        return count

    def _asked(self, model: str, within: Interval) -> tuple[sa.ColumnElement[bool], ...]:
        at = _REQUESTS.c.asked_at
        return (_REQUESTS.c.model == model, at >= self._database.bound(within.start), at < self._database.bound(within.end))

    # --- forget ------------------------------------------------------------------------------------------------------

    def erase(self, model: str, finds: Callable[[pa.Table], pa.Array], *, dry_run: bool = False) -> int:
        """Remove the rows that a function finds. No trace of them is left in the database's files.

        Args:
            model: the model.
            finds: from rows in columns of :data:`SCHEMA` to a mask of those to remove.
            dry_run: only count the rows.

        Returns:
            The number of rows.
        """
        if not self._exists():
            return 0
        count = 0
        query = sa.select(*(_REQUESTS.c[name] for name in SCHEMA.names)).where(_REQUESTS.c.model == model)
        for batch in list(self._found(query, finds)):
            count += batch.num_rows
            keys = list(zip(batch["chunk"].to_pylist(), batch["place"].to_pylist(), strict=True))
            for part in _parts(keys) if not dry_run else ():
                with self._database.writing("requests", model) as connection:
                    self._database.leave_nothing(connection)
                    its = sa.tuple_(_REQUESTS.c.chunk, _REQUESTS.c.place).in_(part)
                    connection.execute(sa.delete(_REQUESTS).where(_REQUESTS.c.model == model, its))
        if count and not dry_run:
            self._database.free_space("online_requests")
        return count

    def _found(self, query: sa.Select[Any], finds: Callable[[pa.Table], pa.Array]) -> Iterator[pa.Table]:
        for batch in self._rows(query):
            rows = pa.Table.from_batches([batch])
            if (found := rows.filter(finds(rows)).select(["chunk", "place"])).num_rows:
                yield found

    def remove_before(self, model: str, before: datetime | None = None) -> int:
        """Remove the rows that were asked before a moment, or all; returns how many. Counts of old processes go too."""
        if not self._exists():
            return 0
        its, ended = [_REQUESTS.c.model == model], [_RECORDERS.c.model == model, _RECORDERS.c.ended_at.is_not(None)]
        if before is not None:
            its.append(_REQUESTS.c.asked_at < self._database.bound(before))
            ended.append(_RECORDERS.c.ended_at < self._database.bound(before))
        with self._database.writing("requests", model) as connection:
            connection.execute(sa.delete(_RECORDERS).where(*ended))
            return int(connection.execute(sa.delete(_REQUESTS).where(*its)).rowcount)

    # --- tell --------------------------------------------------------------------------------------------------------

    def count(self, model: str) -> int:
        """How many rows wait to be published."""
        if not self._exists():
            return 0
        with self._database.reading() as connection:
            query = sa.select(sa.func.count()).select_from(_REQUESTS).where(_REQUESTS.c.model == model)
            return int(connection.execute(query).scalar_one())

    def lost(self, model: str) -> int:
        """How many rows were lost by processes that were killed, as far as their counts are kept."""
        if not self._exists():
            return 0
        with self._database.reading() as connection:
            return int(
                connection.execute(
                    sa.select(sa.func.coalesce(sa.func.sum(_RECORDERS.c.lost), 0)).where(_RECORDERS.c.model == model)
                ).scalar_one()
            )

    def create(self) -> None:
        """Create the tables if they are missing.

        Raises:
            ServingError: the database does not answer.
        """
        with self._telling():
            if not self._exists():
                self._database.create(METADATA)

    def _exists(self) -> bool:
        with self._database.reading() as connection:
            return all(sa.inspect(connection).has_table(table.name) for table in (_REQUESTS, _RECORDERS))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:  # rows bypass SQLAlchemy
            raise ServingError(f"the predictions database {self._database.where} does not answer: {cause(error)}") from error


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _VALUES_AT_ONCE):
        yield values[start : start + _VALUES_AT_ONCE]
