"""Rows that were pushed online: kept until their day is ingested, which reads them with the source.

They are in the table ``pushed_rows`` of the predictions database, as JSON as their client wrote it, so that ingestion casts and
checks them by its own code. A row that is delivered twice is kept once. Another row for the same key is a correction, and the
one received last counts.

Neighbours: :mod:`perennial.ingestion.given` casts them, before they are kept and again when they are ingested;
:mod:`perennial.ingestion.checks` reads them beside the source; :mod:`perennial.serving.pushing` takes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from perennial.core.database import Database
from perennial.core.intervals import Interval
from perennial.ingestion.casting import LANDED_EXTRAS, ROW
from perennial.ingestion.delimited import POSITION
from perennial.lake.schema import MOMENT

METADATA = sa.MetaData()
_ROWS = sa.Table(
    "pushed_rows",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("table", sa.Text, nullable=False),
    sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("row", sa.Text, nullable=False),
    sa.UniqueConstraint("model", "table", "digest"),
    sa.Index("pushed_rows_of_a_time", "model", "table", "event_time"),
)
#: A landed row's moment of receipt. Of two rows of one key and moment of knowing, the one received last counts.
RECEIVED = "_received"
#: Rows of one statement.
_AT_ONCE = 500


class PushedRows:
    """The pushed rows of a deployment. Threads may share it.

    Args:
        url: SQLAlchemy URL of the predictions database.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        if self._database.is_sqlite:
            # A row that is confirmed outlives a loss of power.
            sa.event.listen(self._database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=FULL"))

    def keep(
        self, model: str, table: str, rows: Sequence[Mapping[str, Any]], event_times: Sequence[datetime], received_at: datetime
    ) -> int:
        """Store rows, durably when this returns; those that are there already stay as they are.

        Args:
            model, table: whose.
            rows: by column, the values as the client wrote them.
            event_times: of the rows.
            received_at: when they came.

        Returns:
            How many are new.
        """
        values = [
            {
                "model": model, "table": table, "event_time": self._bound(event), "received_at": self._bound(received_at),
                "digest": digest_of(row), "row": json.dumps(row, ensure_ascii=False),
            }
            for row, event in zip(rows, event_times, strict=True)
        ]  # fmt: skip
        new = 0
        if not self._exists():
            self._database.create(METADATA)
        insert: Any = self._insert()
        with self._database.engine.connect().execution_options(writes=True) as connection, connection.begin():
            for start in range(0, len(values), _AT_ONCE):
                done = connection.execute(insert.values(values[start : start + _AT_ONCE]).on_conflict_do_nothing())
                new += int(done.rowcount)
        return new

    def _insert(self) -> Any:
        from sqlalchemy.dialects import postgresql, sqlite

        return sqlite.insert(_ROWS) if self._database.is_sqlite else postgresql.insert(_ROWS)

    def land(self, model: str, table: str, interval: Interval, directory: Path) -> list[Path]:
        """Write the rows of an interval's events to Parquet files, as a source's rows are landed.

        Rows with columns of other types are in files of their own. The oldest come first.
        """
        if not self._exists():
            return []
        bounds = (self._bound(interval.start), self._bound(interval.end))
        query = (
            sa.select(_ROWS.c.id, _ROWS.c.received_at, _ROWS.c.row)
            .where(_ROWS.c.model == model, _ROWS.c.table == table)
            .where(_ROWS.c.event_time >= bounds[0], _ROWS.c.event_time < bounds[1])
            .order_by(_ROWS.c.id)
        )
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        by_kinds: dict[tuple[tuple[str, type], ...], list[tuple[int, datetime, dict[str, Any]]]] = {}
        for number, received_at, text in found:
            row = {name: value for name, value in json.loads(text).items() if value is not None}
            kinds = tuple(sorted((name, type(value)) for name, value in row.items()))
            by_kinds.setdefault(kinds, []).append((number, received_at, row))
        paths = []
        for kinds, rows in by_kinds.items():
            paths.append(directory / f"{table}-{uuid4().hex}.pushed.parquet")
            pq.write_table(_landed([name for name, _ in kinds], rows), paths[-1])
        return paths

    def remove_before(self, model: str, before: datetime) -> int:
        """Remove the rows of events before a moment; returns how many."""
        if not self._exists():
            return 0
        with self._database.writing("pushed", model) as connection:
            old = (_ROWS.c.model == model, _ROWS.c.event_time < self._bound(before))
            return int(connection.execute(sa.delete(_ROWS).where(*old)).rowcount)

    def remove(self, model: str) -> int:
        """Remove all rows of a model; returns how many."""
        if not self._exists():
            return 0
        with self._database.writing("pushed", model) as connection:
            return int(connection.execute(sa.delete(_ROWS).where(_ROWS.c.model == model)).rowcount)

    def _exists(self) -> bool:
        with self._database.reading() as connection:
            return sa.inspect(connection).has_table(_ROWS.name)

    def _bound(self, moment: datetime) -> datetime:
        return moment.astimezone(UTC).replace(tzinfo=None) if self._database.is_sqlite else moment


def digest_of(row: Mapping[str, Any]) -> str:
    """What is the same for rows with the same values, in whatever order they were written."""
    given = {name: value for name, value in row.items() if value is not None}
    return hashlib.sha256(json.dumps(given, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _landed(names: list[str], rows: list[tuple[int, datetime, dict[str, Any]]]) -> pa.Table:
    columns: dict[str, pa.Array] = {name: pa.array([row[name] for _, _, row in rows]) for name in names}
    received = [at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC) for _, at, _ in rows]
    columns[RECEIVED] = pa.array(received, MOMENT)
    for extra in LANDED_EXTRAS:
        columns[extra.name] = pa.nulls(len(rows), extra.type)
    columns[ROW] = pa.array([number for number, _, _ in rows], pa.int64())
    columns[POSITION] = pa.array([f"pushed row {number}" for number, _, _ in rows])
    return pa.table(columns)
