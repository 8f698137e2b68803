"""The landed file: rows of any source as one Parquet file, each with its position in the source."""

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

#: Rows of a Parquet file or a Python function's table at a time.
ARROW_ROWS = 64_000
#: What is gathered for a row group of the landed file: a day's file alone would make one so small that all who read it
#: spend their time on its metadata.
GROUP_ROWS = 122_880
GROUP_BYTES = 32 << 20


class LandingWriter:
    """Collects raw batches in one Parquet file, which appears under its name only when it is complete.

    A database or a row of files gives types as it goes along: a column may be all null at first, or an integer and later a
    float. Each change of schema begins a new part, and parts are brought to one schema at the end.

    A thread writes what was gathered while more is read.
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
        """Those of a source's columns that the table takes."""
        return list(taken(self._spec, pa.schema([(name, pa.null()) for name in names])).names)

    def begin(self, raw: pa.Schema, place: str) -> list[str]:
        """Make sure that a source with these columns can give the table; returns the names that it takes of them."""
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
        """Append a batch that has ``_position`` and, where they are not null, the other extras."""
        batch = _to_landable(batch)
        # Files that differ in the case of a name mean one column, as SQL has it.
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
        """Until what was given to the thread is written; raises what it raised."""
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
        """Put the file in its place; returns its rows."""
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
        """Remove what is not the finished file."""
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
        for part in self._parts:
            part.unlink(missing_ok=True)


def _conform(rows: pa.Table, schema: pa.Schema, place: str) -> pa.Table:
    """The rows in the order and types of a wider schema; a column they lack is null."""
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


@lru_cache(maxsize=16)  # thousands of small files have one schema
def _landable(schema: pa.Schema) -> pa.Schema:
    """The schema with types that Parquet and DuckDB keep alike."""
    return pa.schema([pa.field(field.name, _landable_type(field.type)) for field in schema])


def _unknown_columns(folder: ModelFolder, source: str, names: Sequence[str]) -> str | None:
    """A notice of the columns that no table fed by the source mentions; None if there are none."""
    known = frozenset().union(*(mentioned(table) for table in folder.spec.tables.values() if table.source == source))
    extra = [name for name in names if name and name.casefold() not in known]
    if not extra:
        return None
    return "columns that no table names are left out: " + ", ".join(extra[:10]) + (", …" if len(extra) > 10 else "")


def _to_landable(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = _landable(batch.schema)
    if schema == batch.schema:
        return batch
    # safe=False: what lies beyond microseconds is dropped.
    columns = [column.cast(field.type, safe=False) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.record_batch(columns, schema=schema)


def positioned(batch: pa.RecordBatch, name: str, first: int) -> pa.RecordBatch:
    positions = [f"{name}:{n}" for n in range(first, first + len(batch))]
    return batch.append_column(POSITION, pa.array(positions, pa.string()))
