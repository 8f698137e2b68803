"""Rows that were read, with what they are: of which model and interval, and at which snapshots. As Arrow, pandas or DuckDB.

Neighbour: :mod:`perennial.client.reading` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from perennial.core.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd

#: Under this name, a table's metadata and a frame's ``attrs`` say where their rows come from.
ORIGIN = "perennial"


@dataclass(frozen=True, repr=False)
class Rows:
    """Rows of one table. They are read when they are asked for, and each time the same ones.

    Attributes:
        model: the model.
        table: the table in the lake, or what else the rows are.
        interval: of their event times; None for a table without event time, and for all rows.
        snapshots: by table, the snapshot that they are read at. Given to the same method of the client, it reads the same rows
            again, as long as the lake keeps the snapshot.
        known_by: only rows that were known by this moment; None for no bound. An ISO 8601 text in UTC.
        missing: the days of the interval without any publication, in stretches.
        scan: begins to read.
    """

    model: str
    table: str
    interval: Interval | None
    snapshots: Mapping[str, int]
    scan: Callable[[], pa.RecordBatchReader] = field(repr=False, compare=False)
    known_by: str | None = None
    missing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        said = [f"{self.table} of {self.model}", *([] if self.interval is None else [self.interval.in_words])]
        said += [f"snapshot {number} of {table}" for table, number in self.snapshots.items()]
        said += [f"known by {self.known_by}"] if self.known_by else []
        said += [f"without {', '.join(self.missing)}"] if self.missing else []
        return f"<Rows: {', '.join(said)}>"

    @property
    def origin(self) -> dict[str, Any]:
        """What the rows are, as plain values; it goes with them into Arrow's metadata and pandas' ``attrs``."""
        return {
            "model": self.model,
            "table": self.table,
            "interval": None if self.interval is None else self.interval.key,
            "snapshots": dict(self.snapshots),
            "known_by": self.known_by,
            "missing": list(self.missing),
        }

    def batches(self) -> pa.RecordBatchReader:
        """The rows as a stream, in no particular order, for more rows than memory holds."""
        return self.scan()

    def arrow(self) -> pa.Table:
        """All rows, in memory."""
        with self.scan() as reader:
            found = reader.read_all()
        return found.replace_schema_metadata({**(found.schema.metadata or {}), ORIGIN: json.dumps(self.origin)})

    def pandas(self) -> pd.DataFrame:
        """All rows as a frame; ``frame.attrs["perennial"]`` says what they are."""
        frame: pd.DataFrame = self.arrow().to_pandas()
        frame.attrs[ORIGIN] = self.origin
        return frame

    def duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """All rows as a relation of DuckDB.

        Args:
            connection: the connection that it belongs to; by default DuckDB's own.
        """
        return (connection or duckdb.default_connection()).from_arrow(self.arrow())


@dataclass(frozen=True)
class TrainingRows:
    """The rows that a training learns from, and those that it is measured on.

    Attributes:
        window: what candidates learn from: key, event time, features, ``label``.
        holdout: what the gates measure on.
        as_of: labels that became known later are not in them. An ISO 8601 text in UTC.
        version: the version that was trained on them; None if they were asked for by a moment.
        content: SHA-256 of each part, as the training's own.
    """

    window: Rows
    holdout: Rows
    as_of: str
    version: int | None
    content: Mapping[str, str]

    def arrow(self) -> pa.Table:
        """Both parts; the column ``part`` says which."""
        parts = {"window": self.window.arrow(), "holdout": self.holdout.arrow()}
        named = [rows.append_column("part", pa.array([name] * rows.num_rows, pa.string())) for name, rows in parts.items()]
        origin = {
            **self.window.origin,
            "interval": None,
            "parts": {part: rows.origin["interval"] for part, rows in self._parts},
        }
        return pa.concat_tables(named).replace_schema_metadata({ORIGIN: json.dumps(origin)})

    def pandas(self) -> pd.DataFrame:
        """Both parts as a frame."""
        table = self.arrow()
        frame: pd.DataFrame = table.to_pandas()
        frame.attrs[ORIGIN] = json.loads(table.schema.metadata[ORIGIN.encode()])
        return frame

    def duckdb(self, connection: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyRelation:
        """Both parts as a relation of DuckDB."""
        return (connection or duckdb.default_connection()).from_arrow(self.arrow())

    @property
    def _parts(self) -> tuple[tuple[str, Rows], ...]:
        return ("window", self.window), ("holdout", self.holdout)
