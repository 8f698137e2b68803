"""The landed file: the rows of any source in one Parquet file, each with its position in the source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.errors import SourceError
from perennial.core.intervals import Interval
from perennial.ingestion.casting import FROM, LANDED_EXTRAS, UNTIL, bind, mentioned, taken
from perennial.ingestion.delimited import FAULT, POSITION, RAW
from perennial.spec.folder import ModelFolder

#: Number of rows that are read at a time from a Parquet file or from the table of a Python function.
ARROW_ROWS = 64_000
#: Rows and bytes per row group of the landed file. A row group per daily file would be so small that readers would spend
#: their time on metadata.
GROUP_ROWS = 122_880
GROUP_BYTES = 32 << 20


class LandingWriter:
    """Collects raw batches in one Parquet file, which appears under its name only when it is complete.

    The types of a database or of several files may change while they are read: a column may be all null at first, or an
    integer first and a float later. Each change of schema begins a new part. At the end all parts are cast to one schema.

    A thread writes the gathered rows while more rows are read.

    Args:
        folder: the model's folder.
        table: name of the table.
        target: path of the landed file.
    """

    def __init__(self, folder: ModelFolder, table: str, target: Path) -> None:
        self.target = target
        self._folder, self._table, self._spec = folder, table, folder.spec.tables[table]
        self._bound: dict[pa.Schema, list[str]] = {}
        self._names: dict[str, str] = {}
        self._schema: pa.Schema | None = None
        self._parts: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._gathered: list[pa.Table] = []
        self._gathered_rows = self._gathered_bytes = 0
        self._rows = 0
        self._thread = ThreadPoolExecutor(1, "landing")
        self._writing: Future[None] | None = None
        self.notices: list[str] = []

    def takes(self, names: Sequence[str]) -> list[str]:
        """The columns of a source that the table uses."""
        return list(taken(self._spec, pa.schema([(name, pa.null()) for name in names])).names)

    def begin(self, raw: pa.Schema, place: str) -> list[str]:
        """Check that a source with these columns can give the table.

        Args:
            raw: the columns.
            place: the file and line that name them, for messages.

        Returns:
            The names of the columns that the table uses.

        Raises:
            SourceError, SpecError: see :func:`perennial.ingestion.casting.bind`.
        """
        if raw in self._bound:
            return self._bound[raw]
        landable = _landable(raw)
        bind(self._folder, self._table, landable, place)
        notice = _unknown_columns(self._folder, self._spec.source, raw.names)
        if notice and notice not in self.notices:
            self.notices.append(notice)
        wanted = taken(self._spec, landable)
        for name in wanted.names:
            self._names.setdefault(name.casefold(), name)
        if self._schema is None:
            self._open(pa.schema([*wanted, *LANDED_EXTRAS]))
        return self._bound.setdefault(raw, wanted.names)

    def write(self, batch: pa.RecordBatch, place: str, period: Interval | None = None) -> None:
        """Append a batch.

        Args:
            batch: raw columns and ``_position``; ``_fault`` and ``_raw`` if a row has a fault.
            place: where the rows come from, for messages.
            period: the period of a dated file.

        Raises:
            SourceError: the types of a column in two batches have no common type.
        """
        batch = _to_landable(batch)
        # Names that differ only in case mean the same column, as in SQL.
        batch = batch.rename_columns([self._names.get(name.casefold(), name) for name in batch.schema.names])
        for name, value in ((FROM, period and period.start), (UNTIL, period and period.end)):
            batch = batch.append_column(name, pa.repeat(pa.scalar(value, LANDED_EXTRAS.field(name).type), len(batch)))
        for name in (FAULT, RAW):
            if name not in batch.schema.names:
                batch = batch.append_column(name, pa.nulls(len(batch), pa.string()))
        assert self._schema is not None
        assert self._writer is not None
        if any(field not in self._schema for field in batch.schema):
            try:
                wider = pa.unify_schemas([self._schema, batch.schema], promote_options="permissive")
            except pa.ArrowException as error:
                raise SourceError(f"{place}: a column has one type in some rows and another in others: {error}") from error
            if wider != self._schema:
                self._open(wider)
        self._gathered.append(_conform(pa.table(batch), self._schema, place))
        self._rows += len(batch)
        self._gathered_rows += len(batch)
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
        if self._writer is not None:
            self._flush()
            self._wait()
            self._writer.close()
        self._schema = schema
        self._parts.append(self.target.with_suffix(f".{len(self._parts)}.part"))
        self._writer = pq.ParquetWriter(self._parts[-1], schema, compression="lz4")

    def finish(self) -> int:
        """Put the file in its place, and return the number of its rows."""
        assert self._writer is not None
        assert self._schema is not None
        self._flush()
        self._wait()
        self._writer.close()
        if len(self._parts) > 1:
            whole = self.target.with_suffix(".whole.part")
            with pq.ParquetWriter(whole, self._schema, compression="lz4") as writer:
                for part in self._parts:
                    with pq.ParquetFile(part) as file:
                        for batch in file.iter_batches(ARROW_ROWS):
                            writer.write_table(_conform(pa.table(batch), self._schema, self._table))
            self._parts.append(whole)
        os.replace(self._parts[-1], self.target)
        return self._rows

    def clear(self) -> None:
        """Remove all temporary files. Call it in any case, after :meth:`finish` or instead of it."""
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
        for part in self._parts:
            part.unlink(missing_ok=True)


def _conform(rows: pa.Table, schema: pa.Schema, place: str) -> pa.Table:
    """The rows with the column order and the types of a wider schema. A column that they lack is null."""
    columns = []
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        try:
            column = pa.nulls(len(rows), field.type) if index < 0 else rows.column(index)
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException as error:
            raise SourceError(f"{place}: column {field.name} cannot be kept as {field.type}: {error}") from error
    return pa.table(columns, schema=schema)


def _landable_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _landable_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_float16(kind):
        return pa.float32()
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


def _to_landable(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = _landable(batch.schema)
    if schema == batch.schema:
        return batch
    # safe=False: digits beyond microseconds are dropped.
    columns = [column.cast(field.type, safe=False) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.record_batch(columns, schema=schema)


def positioned(batch: pa.RecordBatch, name: str, first: int) -> pa.RecordBatch:
    """The batch with ``_position``: the name of the source and the number of the row, which counts from ``first``."""
    positions = [f"{name}:{n}" for n in range(first, first + len(batch))]
    return batch.append_column(POSITION, pa.array(positions, pa.string()))
