"""The landed rows: the rows of any source in Parquet, each with its number and its position in the source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from perennial.core.errors import PerennialError, SourceError
from perennial.core.intervals import Interval
from perennial.ingestion.casting import FROM, LANDED_EXTRAS, ROW, UNTIL, bind, mentioned, resembling, taken
from perennial.ingestion.delimited import FAULT, POSITION, RAW
from perennial.lake.schema import MOMENT
from perennial.spec.folder import ModelFolder

#: Number of rows that are read at a time from a Parquet file or from the table of a Python function.
ARROW_ROWS = 64_000
#: Rows and bytes per row group of the landed file. A row group per daily file would be so small that readers would spend
#: their time on metadata.
GROUP_ROWS = 122_880
GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class _Shape:
    """What is landed of a source with certain columns.

    Attributes:
        names: the source's columns that are landed, as the source spells them.
        schema: the landed columns, :data:`LANDED_EXTRAS` included.
        vacant: see :class:`perennial.ingestion.casting.Bound`.
    """

    names: list[str]
    schema: pa.Schema
    vacant: dict[str, PerennialError]


class LandingWriter:
    """Collects raw batches in Parquet files, which appear under their names only when all are complete.

    Files of a range, and batches of a database, may differ in their columns and types. Rows keep the types that they came
    with, so that each is cast as it would be alone: a change of schema begins a new file.

    NaN is landed as NULL, so that no expression can make a text or a number of it.

    A thread writes the gathered rows while more rows are read.

    Args:
        folder: the model's folder.
        table: name of the table.
        target: path of the first landed file. Further ones have a number before ``.landed.parquet``.
    """

    def __init__(self, folder: ModelFolder, table: str, target: Path) -> None:
        self.target = target
        self._folder, self._table, self._spec = folder, table, folder.spec.tables[table]
        self._shapes: dict[pa.Schema, tuple[_Shape, list[str]]] = {}
        self._spelling: dict[str, str] = {}
        self._shape: _Shape | None = None
        self._written: pa.Schema | None = None
        self._parts: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._gathered: list[pa.Table] = []
        self._gathered_rows = self._gathered_bytes = 0
        self._rows = 0
        self._lacking: dict[str, list[str]] = {}
        self._thread = ThreadPoolExecutor(1, "landing")
        self._writing: Future[None] | None = None
        self.notices: list[str] = []

    @property
    def absences(self) -> list[str]:
        """What the source has no column for, and is NULL therefore: a line for each column of the table."""
        return [
            f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: there is no column {missing}"
            for missing, places in self._lacking.items()
        ]

    def takes(self, names: Sequence[str]) -> list[str]:
        """The columns of a source that the table uses."""
        return list(taken(self._spec, pa.schema([(name, pa.null()) for name in names])).names)

    def unnamed(self, names: Sequence[str]) -> list[str]:
        """A name for each column that is read without ``sql``, and from none of a source's columns ``names``."""
        given = {name.casefold() for name in names}
        plain = [spec.sources(column) for column, spec in self._spec.columns.items() if spec.sql is None]
        return [sources[0] for sources in plain if given.isdisjoint(map(str.casefold, sources))]

    def expected(self) -> list[str]:
        """Columns from which the table can be read, for a file that has no rows and therefore names none."""
        columns = self._spec.columns.items()
        plain = {source.casefold() for name, spec in columns if spec.sql is None for source in spec.sources(name)}
        return [*self.unnamed([]), *sorted(mentioned(self._spec) - plain)]

    def texts(self, names: Sequence[str]) -> list[str]:
        """Those of a source's columns that stay texts in the table."""
        columns = self._spec.columns.items()
        texts = {
            source.casefold()
            for name, spec in columns
            if spec.type == "string" and not spec.sql
            for source in spec.sources(name)
        }
        return [name for name in names if name.casefold() in texts]

    def begin(self, raw: pa.Schema, place: str) -> list[str]:
        """Check that a source with these columns can give the table. The batches that follow have these columns.

        Args:
            raw: the columns.
            place: the file and line that name them, for messages.

        Returns:
            The names of the columns that the table uses.

        Raises:
            SourceError, SpecError: see :func:`perennial.ingestion.casting.bind`.
        """
        if raw not in self._shapes:
            self._shapes[raw] = self._new_shape(raw, place)
        self._shape, lacking = self._shapes[raw]
        for missing in lacking:
            places = self._lacking.setdefault(missing, [])
            if place not in places:
                places.append(place)
        return self._shape.names

    def _new_shape(self, raw: pa.Schema, place: str) -> tuple[_Shape, list[str]]:
        landable = _landable(raw)
        _refuse_alike(taken(self._spec, landable).names, place)
        bound = bind(self._folder, self._table, landable, place)
        notice = _unknown_columns(self._folder, self._spec.source, raw.names)
        if notice and notice not in self.notices:
            self.notices.append(notice)
        lacking = [f"{column}, so it is NULL there{resembling(column, raw)}" for column in bound.lacking]
        # Names that differ only in case mean the same column, as in SQL. One spelling and one order save files.
        wanted = taken(self._spec, landable)
        for name in wanted.names:
            self._spelling.setdefault(name.casefold(), name)
        order = {name: n for n, name in enumerate(self._spelling)}
        fields = sorted(wanted, key=lambda field: order[field.name.casefold()])
        columns = [
            pa.field(self._spelling[field.name.casefold()], pa.null() if field.name in bound.vacant else field.type)
            for field in fields
        ]
        return _Shape([field.name for field in fields], pa.schema([*columns, *LANDED_EXTRAS]), bound.vacant), lacking

    def write(self, batch: pa.RecordBatch, period: Interval | None = None) -> None:
        """Append a batch.

        Args:
            batch: the columns that :meth:`begin` named last, and ``_position``; ``_fault`` and ``_raw`` if a row has a fault.
            period: the period of a dated file.

        Raises:
            SourceError, SpecError: a column whose type does not fit holds a value.
        """
        shape = self._shape
        assert shape is not None
        rows = len(batch)
        arrays: dict[str, pa.Array] = {
            ROW: pa.array(np.arange(self._rows, self._rows + rows)),
            POSITION: batch.column(POSITION),
            FROM: pa.repeat(pa.scalar(period and period.start, MOMENT), rows),
            UNTIL: pa.repeat(pa.scalar(period and period.end, MOMENT), rows),
        }
        for name in (FAULT, RAW):
            arrays[name] = batch.column(name) if name in batch.schema.names else pa.nulls(rows, pa.string())
        for name, field in zip(shape.names, shape.schema, strict=False):
            column = _without_nan(batch.column(name))
            if name in shape.vacant:
                if column.null_count < rows:
                    raise shape.vacant[name]
                column = pa.nulls(rows)
            # safe=False: digits beyond microseconds are dropped.
            arrays[field.name] = column if column.type == field.type else column.cast(field.type, safe=False)
        if shape.schema != self._written:
            self._open(shape.schema)
        self._gathered.append(pa.table([arrays[name] for name in shape.schema.names], schema=shape.schema))
        self._rows += rows
        self._gathered_rows += rows
        self._gathered_bytes += batch.nbytes
        if self._gathered_rows >= GROUP_ROWS or self._gathered_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None
        if self._gathered:
            self._wait()  # one group at a time, so that memory stays bounded
            self._writing = self._thread.submit(self._writer.write_table, pa.concat_tables(self._gathered))
            self._gathered, self._gathered_rows, self._gathered_bytes = [], 0, 0

    def _wait(self) -> None:
        """Wait until the thread has written its rows. An error of the thread is raised here."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _open(self, schema: pa.Schema) -> None:
        self._close()
        self._parts.append(self.target.with_suffix(f".{len(self._parts)}.part"))
        self._writer, self._written = pq.ParquetWriter(self._parts[-1], schema, compression="lz4"), schema

    def _close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._wait()
            self._writer.close()

    def finish(self) -> tuple[list[Path], int]:
        """Put the files in their places.

        Returns:
            The landed files, in the order of their rows, and the number of all rows.
        """
        if not self._parts:
            assert self._shape is not None
            self._open(self._shape.schema)
        self._close()
        name = self.target.name.removesuffix(".landed.parquet")
        landed = [self.target]
        landed += [self.target.with_name(f"{name}.{n}.landed.parquet") for n in range(1, len(self._parts))]
        for part, path in zip(self._parts, landed, strict=True):
            os.replace(part, path)
        return landed, self._rows

    def clear(self) -> None:
        """Remove all temporary files. Call it in any case, after :meth:`finish` or instead of it."""
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
        for part in self._parts:
            part.unlink(missing_ok=True)


def _refuse_alike(names: Sequence[str], place: str) -> None:
    """SQL would read one of two columns whose names differ only in case, and nobody could say which."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise SourceError(f"{place}: {other!r} and {name!r} differ only in case; rename one of them")


def _without_nan(column: pa.Array) -> pa.Array:
    if not pa.types.is_floating(column.type):
        return column
    nan = pc.is_nan(column)
    return pc.if_else(nan, pa.scalar(None, column.type), column) if pc.any(nan).as_py() else column


def _landable_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _landable_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_decimal256(kind):  # DuckDB has no more than 38 digits
        return pa.float64()
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return kind


@lru_cache(maxsize=16)  # thousands of small files share one schema
def _landable(schema: pa.Schema) -> pa.Schema:
    """The schema with types that Parquet and DuckDB both keep unchanged."""
    return pa.schema([pa.field(field.name, _landable_type(field.type)) for field in schema])


def _unknown_columns(folder: ModelFolder, source: str, names: Sequence[str]) -> str | None:
    """A notice about columns that no table of the source mentions; None if there are none."""
    known = frozenset().union(*(mentioned(table) for table in folder.spec.tables.values() if table.source == source))
    extra = [name for name in names if name and name.casefold() not in known]
    if not extra:
        return None
    return "columns that no table mentions are left out: " + ", ".join(extra[:10]) + (", …" if len(extra) > 10 else "")


def positioned(batch: pa.RecordBatch, name: str, first: int) -> pa.RecordBatch:
    """The batch with ``_position``: the name of the source and the number of the row, which counts from ``first``."""
    positions = [f"{name}:{n}" for n in range(first, first + len(batch))]
    return batch.append_column(POSITION, pa.array(positions, pa.string()))
