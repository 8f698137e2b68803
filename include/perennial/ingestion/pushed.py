"""Rows that clients pushed online: a log in the predictions database, which is also a source of ``ingest``.

The table ``pushed_rows`` has a row for each row that was confirmed, in the order of its numbers: cast by the table's columns,
and then as a JSON object of texts, as a CSV file would have them. So a changed ``model.yaml`` casts and checks them again. Rows
are only added. They stay until ``retention.tables`` removes them, so that a day can be ingested again.

A number becomes visible in the order of numbers: who adds rows of a table waits for others who do. So "all up to number n" is
what an ingest has read (:func:`read_before`), and "all after n" is what came since.

Neighbours: :mod:`perennial.serving.pushing` takes rows; :mod:`perennial.ingestion.checks` reads them beside the source;
:mod:`perennial.serving.on_demand` shows those that are not published yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from perennial.core import bulk
from perennial.core.database import Database, as_moment
from perennial.core.intervals import Interval
from perennial.core.sql import connect, literal, quoted
from perennial.ingestion.casting import FROM, LANDED_EXTRAS, ROW, UNTIL
from perennial.ingestion.delimited import POSITION
from perennial.ingestion.given import by_columns
from perennial.lake.schema import KNOWN, MOMENT
from perennial.ledger.coverage import uncovered
from perennial.ledger.records import Publication
from perennial.spec.data import Table
from perennial.spec.folder import ModelFolder

METADATA = sa.MetaData()
_ROWS = sa.Table(
    "pushed_rows",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("table", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("row", sa.Text, nullable=False),
    sa.Index("pushed_rows_by_number", "model", "table", "id"),
    sa.Index("pushed_rows_by_state", "model", "table", "state", "id"),
    sa.Index("pushed_rows_by_event", "model", "table", "event_time"),
    # A number is never used again, also if the newest row was removed.
    sqlite_autoincrement=True,
)
#: What is read of rows: number, when received, the JSON text.
_READ = pa.schema([("id", pa.int64()), ("received_at", MOMENT), ("row", pa.string())])
#: A landed row's moment of receipt. Of two rows of one key and moment of knowing, the one received last counts.
RECEIVED = "_received"
#: Events may lie from here on, up to the other. Not every database can hold what lies beyond.
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
#: Rows, and values, of one statement.
_AT_ONCE, _READ_AT_ONCE = 500, 10_000
#: The key of :attr:`perennial.ledger.records.Publication.inputs` that says up to which number an ingest has read rows.
INPUT = "pushed"


@dataclass(frozen=True)
class PushedRow:
    """A row that was checked.

    Attributes:
        event_time: its event.
        state: the same for rows of one key that are known from one moment on: of these, the one received last counts.
        digest: the same for rows with the same values.
        text: its values, as a JSON object of texts.
    """

    event_time: datetime
    state: str
    digest: str
    text: str


@dataclass(frozen=True)
class Pushed:
    """Pushed rows that were landed.

    Attributes:
        path: Parquet file of texts by the table's own columns, of :data:`perennial.ingestion.casting.LANDED_EXTRAS`, and of
            :data:`RECEIVED`.
        rows: their number.
        through: up to which number rows are read.
        alone: whether the source had nothing of the interval.
    """

    path: Path
    rows: int
    through: int
    alone: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pushed:
        return cls(**{**value, "path": Path(value["path"])})


def pushed_rows(table: Table, typed: pa.Table) -> list[PushedRow]:
    """Rows to keep, from their values.

    Args:
        table: the table's spec.
        typed: columns of the table and when each row was known, as :meth:`perennial.ingestion.given.GivenTable.check` gives.
    """
    found = []
    for values in typed.to_pylist():
        known = _text(values.pop(KNOWN))
        texts = {name: _text(value) for name, value in values.items()}
        text = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
        state = _digest([texts[name] for name in table.key] + [known])
        found.append(PushedRow(values[str(table.event_time)], state, _digest([text]), text))
    return found


def _text(value: Any) -> str | None:
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.astimezone(UTC).isoformat()
        case date():
            return value.isoformat()
    return repr(value)  # a float's shortest text that gives it again


def _digest(values: Sequence[str | None]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


class PushedRows:
    """The pushed rows of a deployment. Threads may share it.

    Args:
        url: SQLAlchemy URL of the predictions database.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._there = False
        if self._database.is_sqlite:
            # A row that is confirmed outlives a loss of power.
            sa.event.listen(self._database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=FULL"))

    # --- push --------------------------------------------------------------------------------------------------------

    def keep(self, model: str, table: str, rows: Sequence[PushedRow], now: datetime) -> int:
        """Add rows, durably when this returns. One that is the newest of its state already is not added again.

        Args:
            model, table: whose.
            rows: in the order in which they are to count: the last one of a state does.
            now: when they came.

        Returns:
            How many were added.
        """
        if not self.exists():
            self.create()
        its = (_ROWS.c.model == model, _ROWS.c.table == table)
        with self._database.writing("pushed", model, table) as connection:
            if not self._database.is_sqlite:
                bulk.limit_locks(connection)
                # A server may confirm before it has written, unless it is told not to.
                connection.exec_driver_sql(
                    "SELECT pg_catalog.set_config('synchronous_commit', 'on', true) "
                    "WHERE pg_catalog.current_setting('synchronous_commit') = 'off'"
                )
            newest = self._newest(connection, its, sorted({row.state for row in rows}))
            new = []
            for row in rows:
                if newest.get(row.state) != row.digest:
                    newest[row.state] = row.digest
                    new.append(row)
            last = connection.execute(sa.select(_ROWS.c.received_at).where(*its).order_by(_ROWS.c.id.desc()).limit(1)).scalar()
            # Clocks of several scorers differ. A later number has a later time, and each row its own.
            base = max(now, now if last is None else as_moment(last) + timedelta(microseconds=1))
            values = [
                {
                    "model": model, "table": table, "state": row.state, "digest": row.digest, "row": row.text,
                    "event_time": self._bound(row.event_time),
                    "received_at": self._bound(base + timedelta(microseconds=place)),
                }
                for place, row in enumerate(new)
            ]  # fmt: skip
            for part in _parts(values):
                connection.execute(sa.insert(_ROWS).values(part))
        return len(new)

    def _newest(self, connection: sa.Connection, its: tuple[Any, ...], states: list[str]) -> dict[str, str]:
        """By state, the digest of its newest row."""
        found: dict[str, str] = {}
        for part in _parts(states):
            last = sa.select(sa.func.max(_ROWS.c.id)).where(*its, _ROWS.c.state.in_(part)).group_by(_ROWS.c.state)
            newest = sa.select(_ROWS.c.state, _ROWS.c.digest).where(_ROWS.c.id.in_(last))
            found |= {str(state): str(digest) for state, digest in connection.execute(newest)}
        return found

    # --- ingest ------------------------------------------------------------------------------------------------------

    def land(
        self,
        folder: ModelFolder,
        table: str,
        interval: Interval,
        publications: Sequence[Publication],
        directory: Path,
        *,
        first: int = 0,
        again: Sequence[Interval] = (),
    ) -> Pushed:
        """Write rows to a Parquet file, as a source's rows are landed: those of an interval's events, and what came late.

        What came late are rows of earlier events, of days that are published, that came after the ingest of the interval
        before had read. Those that are older than the table's ``late`` are marked to be quarantined. Rows of other days are
        left to the ingest of these days. Where the source is read again, pushed rows are too, so that the order in which both
        came decides.

        Args:
            folder: the model's folder.
            table: the table's name.
            interval: the interval.
            publications: of the raw tables, all of them.
            directory: of the file.
            first: the number of the first landed row, after those of the source.
            again: earlier periods of which the source is read again.
        """
        spec = folder.spec.tables[table]
        path = directory / f"{table}-{uuid4().hex}.pushed.parquet"
        known, reached = read_before(publications, table, interval.start)
        after = known or 0
        its = (_ROWS.c.model == folder.spec.name, _ROWS.c.table == table)
        start, end = (self._bound(moment) for moment in (interval.start, interval.end))
        event, number = _ROWS.c.event_time, _ROWS.c.id
        late_by = spec.late or timedelta()
        rows, through = 0, after
        with pq.ParquetWriter(path, _landed_schema(spec)) as writer:
            if self.exists():
                # What is read is of one moment.
                with self._reading_at_one_moment() as connection:
                    late = (*its, number > after, event < start)
                    oldest = connection.execute(
                        sa.select(sa.func.min(event)).where(*late, event >= self._bound(FIRST))
                    ).scalar()
                    through = int(connection.execute(sa.select(sa.func.max(number)).where(*its)).scalar() or 0)
                    of_late = list(late)
                    if known is None:  # nobody can tell which older rows were read
                        of_late.append(event >= self._bound(interval.start - late_by))
                    if oldest is not None:
                        gaps = uncovered(Interval(as_moment(oldest), interval.start), publications)
                        of_late += [
                            sa.not_(sa.and_(event >= self._bound(gap.start), event < self._bound(gap.end))) for gap in gaps
                        ]
                        if reached is not None and reached < interval.start:
                            # They are left to an ingest that has not published yet, and may not have read them.
                            waiting = sa.select(sa.func.min(number)).where(*late, event >= self._bound(reached))
                            if (left := connection.execute(waiting).scalar()) is not None:
                                through = int(left) - 1
                    ways = [sa.and_(event >= start, event < end), sa.and_(*of_late)]
                    ways += [
                        sa.and_(event >= self._bound(one.start - late_by), event < self._bound(min(one.end, interval.start)))
                        for one in again
                    ]
                    query = sa.select(number, _ROWS.c.received_at, _ROWS.c.row).where(*its, sa.or_(*ways))
                    for batch in _batches(connection, query.order_by(number)):
                        writer.write_table(_landed(spec, batch, interval, again, first + rows))
                        rows += batch.num_rows
        return Pushed(path, rows, through)

    # --- on demand ---------------------------------------------------------------------------------------------------

    def newest(self, model: str, tables: Sequence[str]) -> dict[str, int]:
        """By table, the number of its newest row; 0 if it has none. It takes one statement."""
        if not tables or not self.exists():
            return dict.fromkeys(tables, 0)
        each = [
            sa.select(sa.func.coalesce(sa.func.max(_ROWS.c.id), 0))
            .where(_ROWS.c.model == model, _ROWS.c.table == table)
            .scalar_subquery()
            for table in tables
        ]
        with self._database.reading() as connection:
            found = connection.execute(sa.select(*each)).one()
        return dict(zip(tables, map(int, found), strict=True))

    def waiting(self, model: str, table: str, after: int, since: datetime, end: datetime) -> int:
        """How many rows :meth:`read` would give, without ``most``."""
        if not self.exists():
            return 0
        query = sa.select(sa.func.count()).where(*self._not_read(model, table, after, since, end))
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def read(
        self, model: str, table: str, after: int, since: datetime, end: datetime, *, beyond: int = 0, most: int
    ) -> pa.Table:
        """Rows that no ingest has read, in the order of their numbers.

        Args:
            model, table: whose.
            after: up to this number, the ingest that has published up to ``end`` has read rows.
            since: events before this are left out.
            end: the end of what is published.
            beyond: only rows with a higher number.
            most: at most this many rows, the oldest.

        Returns:
            ``id``, ``received_at``, and ``row``, the values as JSON.
        """
        if not self.exists():
            return _READ.empty_table()
        query = sa.select(_ROWS.c.id, _ROWS.c.received_at, _ROWS.c.row)
        query = query.where(*self._not_read(model, table, after, since, end), _ROWS.c.id > beyond)
        with self._database.reading() as connection:
            return pa.concat_tables([_READ.empty_table(), *_batches(connection, query.order_by(_ROWS.c.id).limit(most))])

    def _not_read(self, model: str, table: str, after: int, since: datetime, end: datetime) -> tuple[Any, ...]:
        event = _ROWS.c.event_time
        return (
            _ROWS.c.model == model, _ROWS.c.table == table, event >= self._bound(since),
            sa.or_(_ROWS.c.id > after, event >= self._bound(end)),
        )  # fmt: skip

    # --- the end of rows ---------------------------------------------------------------------------------------------

    def erase(self, model: str, finds: Callable[[pa.Table], pa.Array], *, dry_run: bool = False) -> int:
        """Remove the rows that a function finds. No trace of them is left in the database's files.

        Args:
            model: the model.
            finds: from rows with the columns ``table`` and ``row``, the values as JSON, to a mask of those to remove.
            dry_run: only count the rows.

        Returns:
            The number of rows.
        """
        count = 0
        for found in self.find(model, finds):
            count += found.num_rows
            for part in _parts(found["id"].to_pylist()) if not dry_run else ():
                with self._database.writing("pushed", model) as connection:
                    self._database.leave_nothing(connection)
                    connection.execute(sa.delete(_ROWS).where(_ROWS.c.id.in_(part)))
        if count and not dry_run:
            self._database.free_space(_ROWS.name)
        return count

    def find(self, model: str, finds: Callable[[pa.Table], pa.Array]) -> Iterator[pa.Table]:
        """The rows that a function finds, see :meth:`erase`, with their number ``id``."""
        beyond = 0
        while self.exists():
            query = sa.select(_ROWS.c.id, _ROWS.c.table, _ROWS.c.row).where(_ROWS.c.model == model, _ROWS.c.id > beyond)
            with self._database.reading() as connection:
                found = connection.execute(query.order_by(_ROWS.c.id).limit(_READ_AT_ONCE)).all()
            if not found:
                return
            numbers, tables, texts = (list(values) for values in zip(*found, strict=True))
            beyond = numbers[-1]
            rows = pa.table({"id": numbers, "table": tables, "row": texts})
            if (its := rows.filter(finds(rows))).num_rows:
                yield its

    def remove_before(self, model: str, before: datetime | None = None) -> int:
        """Remove the rows of events before a moment, or all; returns how many."""
        if not self.exists():
            return 0
        its = [_ROWS.c.model == model]
        if before is not None:
            its.append(_ROWS.c.event_time < self._bound(before))
        with self._database.writing("pushed", model) as connection:
            return int(connection.execute(sa.delete(_ROWS).where(*its)).rowcount)

    # --- the table ---------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Create the table if it is missing."""
        if not self.exists():
            self._database.create(METADATA)

    def exists(self) -> bool:
        """Whether the table is there. Once it is, it stays."""
        if not self._there:
            with self._database.reading() as connection:
                self._there = sa.inspect(connection).has_table(_ROWS.name)
        return self._there

    def _reading_at_one_moment(self) -> Any:
        engine = self._database.engine
        if not self._database.is_sqlite:
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        return engine.begin()

    def _bound(self, moment: datetime) -> datetime:
        return self._database.bound(moment.astimezone(UTC))


def read_before(publications: Iterable[Publication], table: str, start: datetime) -> tuple[int | None, datetime | None]:
    """Up to which number the ingest before a moment has read a table's pushed rows, and where what is published then ends.

    Args:
        publications: of the raw tables.
        table: the table.
        start: the moment.

    Returns:
        The number, None if no ingest has read any; and the end of the newest publication, None if there is none.
    """
    before = [one for one in publications if one.interval.end <= start]
    reading = [one for one in before if table in one.inputs.get(INPUT, {})]
    reached = max((one.interval.end for one in before), default=None)
    if not reading:
        return None, reached
    newest = max(one.interval.end for one in reading)
    return max(int(one.inputs[INPUT][table]["through"]) for one in reading if one.interval.end == newest), reached


def by_texts(folder: ModelFolder, table: str) -> ModelFolder:
    """The folder with a table whose rows come as pushed rows are kept: by its own columns, as plain texts."""
    own = by_columns(folder, table)
    name = own.spec.tables[table].source
    plain = own.spec.sources[name].model_copy(update={"decimal": ".", "thousands": None, "time_zone": None})
    return own.model_copy(update={"spec": own.spec.model_copy(update={"sources": {**own.spec.sources, name: plain}})})


def as_columns(spec: Table, rows: pa.Table) -> pa.Table:
    """The values of rows that have them as JSON in the column ``row``: a column of texts for each of the table's columns.

    Where that is no JSON, which a scorer never writes, every value is missing.
    """
    with connect() as connection:
        connection.register("pushed", rows.select(["row"]))
        values = ", ".join(
            f'CASE WHEN json_valid("row") THEN json_extract_string("row", {literal(f"$.{quoted(name)}")}) END AS {quoted(name)}'
            for name in spec.columns
        )
        found: pa.Table = connection.sql(f"SELECT {values} FROM pushed").to_arrow_table()
    return found


def _moments(texts: pa.ChunkedArray) -> list[datetime | None]:
    """The moments that texts say; None where one says none."""
    with connect() as connection:
        connection.register("texts", pa.table({"text": texts}))
        # Python's datetime can hold these.
        moment = "TRY_CAST(text AS TIMESTAMPTZ)"
        inside = f"{moment} BETWEEN TIMESTAMPTZ '0001-01-01 00:00:00+00' AND TIMESTAMPTZ '9999-12-31 23:59:59+00'"
        found = connection.sql(f"SELECT CASE WHEN {inside} THEN {moment} END AS moment FROM texts").to_arrow_table()
    moments: list[datetime | None] = found["moment"].cast(MOMENT).to_pylist()
    return moments


def _landed_schema(spec: Table) -> pa.Schema:
    own = [pa.field(name, pa.string()) for name in spec.columns]
    return pa.schema([*own, *LANDED_EXTRAS, pa.field(RECEIVED, MOMENT)])


def _landed(spec: Table, rows: pa.Table, interval: Interval, again: Sequence[Interval], first: int) -> pa.Table:
    columns = as_columns(spec, rows)
    late = spec.late or timedelta()
    places: list[Interval | None] = []
    for event in _moments(columns[str(spec.event_time)]):
        if event is None or event >= interval.start - late:
            places.append(None)
        else:
            # It is judged as a row of a file would be: of its period, or of the interval, for which it is too late.
            places.append(next((one for one in again if one.start - late <= event < one.end), interval))
    extras = {
        ROW: pa.array(range(first, first + rows.num_rows), pa.int64()),
        POSITION: pa.array([f"pushed row {number}" for number in rows["id"].to_pylist()]),
        FROM: pa.array([None if place is None else place.start for place in places], MOMENT),
        UNTIL: pa.array([None if place is None else place.end for place in places], MOMENT),
        RECEIVED: rows["received_at"],
    }
    schema = _landed_schema(spec)
    for field in schema:
        if field.name not in columns.column_names:
            columns = columns.append_column(field, extras.get(field.name, pa.nulls(rows.num_rows, field.type)))
    return columns.select(schema.names).cast(schema)


def _batches(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Any]:
    """Rows of a query for :data:`_READ`, a bounded number at a time."""
    for rows in connection.execution_options(stream_results=True).execute(query).partitions(_READ_AT_ONCE):
        numbers, moments, texts = zip(*rows, strict=True)
        yield pa.table(
            {
                "id": pa.array(numbers, pa.int64()),
                "received_at": pa.array([as_moment(one) for one in moments], MOMENT),
                "row": pa.array(texts, pa.string()),
            }
        )


def _parts(values: Sequence[Any]) -> Iterator[Any]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
