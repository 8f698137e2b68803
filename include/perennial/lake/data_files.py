"""Data files of Iceberg tables: write them in chunks, hash their rows, read their time bounds, and sync them to disk."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import And, BooleanExpression, GreaterThanOrEqual, LessThan, LessThanOrEqual, Reference
from pyiceberg.expressions.literals import literal
from pyiceberg.io import InputFile, OutputFile
from pyiceberg.io.pyarrow import ParquetFormatWriter, PyArrowFile, PyArrowFileIO, PyArrowLocalFileSystem, schema_to_pyarrow
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.typedef import EMPTY_DICT, Properties, Record
from pyiceberg.types import LongType

from perennial.core.errors import ReadOnly
from perennial.core.intervals import Interval
from perennial.core.sql import quoted
from perennial.lake.schema import KNOWN, MOMENT

log = logging.getLogger(__name__)


#: Rows are gathered to chunks of this size before they are hashed and written. So row groups are not too small.
_CHUNK_ROWS = 131_072
#: A data file is closed at this many bytes of Arrow memory. On disk the file is several times smaller.
FILE_BYTES = 128 * 1024**2
#: Files of at most this size on disk are read together. Their rows are in memory at the same time.
_READ_BYTES = 32 * 1024**2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DurableFileIO(PyArrowFileIO):
    """PyArrow's file IO, except that closing a local file syncs it to the disk.

    The catalog and the ledger are databases, which sync. Without this class they could name files that are empty after a
    power failure.
    """

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._write_durably()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._write_durably()

    def _write_durably(self) -> None:
        opened, local = self.fs_by_scheme, _DurableFileSystem()
        self.fs_by_scheme = lambda scheme, host: local if scheme == "file" else opened(scheme, host)


class ReadingFileIO(PyArrowFileIO):
    """PyArrow's file IO of a process that only reads: no file is written or removed."""

    def new_output(self, location: str) -> PyArrowFile:
        raise ReadOnly(f"the lake was opened to read, and {location} is not written")

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise ReadOnly(f"the lake was opened to read, and {location} is not removed")


class _DurableFileSystem(PyArrowLocalFileSystem):
    def open_output_stream(self, path: str, *_: Any, **__: Any) -> pa.NativeFile:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return pa.PythonFile(_DurableFile(path, "wb"), mode="w")


class _DurableFile(io.FileIO):
    def close(self) -> None:
        if not self.closed:
            os.fsync(self.fileno())
        super().close()


@dataclass(frozen=True)
class Span:
    """A range of event times.

    Attributes:
        column: the event time.
        start: inclusive; None for no bound.
        end: exclusive.
    """

    column: str
    start: datetime | None
    end: datetime

    @classmethod
    def of(cls, column: str, interval: Interval) -> Span:
        return cls(column, interval.start, interval.end)

    @property
    def expression(self) -> BooleanExpression:
        column = Reference(self.column)
        before = LessThan(term=column, value=literal(self.end))
        return before if self.start is None else And(GreaterThanOrEqual(term=column, value=literal(self.start)), before)

    def covers(self, file: DataFile, table: Table) -> bool:
        """Whether every row of the file lies inside, by the statistics of the file."""
        bounds = time_bounds(file, table, self.column)
        return bounds is not None and (self.start is None or self.start <= bounds[0]) and bounds[1] < self.end

    def outside(self, rows: pa.Table) -> pa.Table:
        """The rows that do not lie inside."""
        moments = rows[self.column]
        outside = pc.greater_equal(moments, pa.scalar(self.end, moments.type))
        if self.start is not None:
            outside = pc.or_(outside, pc.less(moments, pa.scalar(self.start, moments.type)))
        # A row that was written before the table had this event time lies in no span.
        return rows.filter(pc.fill_null(outside, True))


@dataclass(frozen=True)
class Written:
    """Data files that no snapshot names yet.

    Attributes:
        files: the files.
        rows: number of rows.
        digest: hash of the rows, independent of their order and files; empty if none was requested.
    """

    files: list[DataFile]
    rows: int
    digest: str


def time_bounds(file: DataFile, table: Table, column: str) -> tuple[datetime, datetime] | None:
    """The first and last moment in a column of a data file, by its statistics; None if these are incomplete."""
    field = table.schema().find_field(column)
    low, high = (bounds.get(field.field_id) for bounds in (file.lower_bounds or {}, file.upper_bounds or {}))
    if low is None or high is None or (file.null_value_counts or {}).get(field.field_id):
        return None

    def moment(value: bytes) -> datetime:
        return _EPOCH + timedelta(microseconds=int(from_bytes(LongType(), value)))

    return moment(low), moment(high)


def discard(table: Table, files: Iterable[DataFile]) -> None:
    """Remove data files that no snapshot names. A file that cannot be removed now is removed with the orphans later."""
    for file in files:
        try:
            table.io.delete(file.file_path)
        except OSError as error:
            log.warning("cannot remove %s: %s", file.file_path, error)


def known_by(moment: datetime) -> BooleanExpression:
    """A filter for the rows that were known at a moment."""
    return LessThanOrEqual(term=Reference(KNOWN), value=literal(moment))


def plain_type(given: pa.DataType) -> pa.DataType:
    """The type of the lake that ``given`` is cast to.

    Raises:
        ValueError: there is none.
    """
    if pa.types.is_dictionary(given):
        return plain_type(given.value_type)
    if pa.types.is_boolean(given) or pa.types.is_date32(given):
        return given
    if pa.types.is_string(given) or pa.types.is_large_string(given) or pa.types.is_string_view(given):
        return pa.string()
    if pa.types.is_integer(given) and given != pa.uint64():
        return pa.int64()
    if pa.types.is_floating(given):
        return pa.float64()
    if pa.types.is_timestamp(given) and given.tz is not None:
        return MOMENT
    if pa.types.is_list(given) or pa.types.is_large_list(given):
        return pa.list_(plain_type(given.value_type))
    raise ValueError(f"a column of the type {given} cannot be kept; a timestamp must have a time zone")


def optional(schema: pa.Schema) -> pa.Schema:
    """The schema with types of the lake, and with all columns nullable."""
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def plain_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of an Iceberg schema, with types of the lake."""
    return optional(schema_to_pyarrow(schema, include_field_ids=False))


def conform(chunk: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with exactly the columns of ``schema``. Columns that they lack are null."""
    columns = [
        chunk[field.name].cast(field.type) if field.name in chunk.schema.names else pa.nulls(chunk.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def in_chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows in tables of at most :data:`_CHUNK_ROWS` rows. No table is empty."""
    gathered: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, _CHUNK_ROWS - rows)
            batch = batch.slice(part.num_rows)
            gathered.append(part)
            rows += part.num_rows
            if rows == _CHUNK_ROWS:
                yield pa.Table.from_batches(gathered)
                gathered, rows = [], 0
    if gathered:
        yield pa.Table.from_batches(gathered)


def in_groups(tasks: Sequence[FileScanTask]) -> Iterator[list[FileScanTask]]:
    """The files in groups of at most :data:`_READ_BYTES` on disk. A larger file is a group of its own."""
    group: list[FileScanTask] = []
    size = 0
    for task in tasks:
        if group and size + task.file.file_size_in_bytes > _READ_BYTES:
            yield group
            group, size = [], 0
        group.append(task)
        size += task.file.file_size_in_bytes
    if group:
        yield group


class FileWriter:
    """Writes one data file of a table, chunk by chunk."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._path = table.location_provider().new_data_location(f"{uuid.uuid4()}.parquet")
        self._output: PyArrowFile = table.io.new_output(self._path)  # type: ignore[assignment]  # PyArrowFileIO's
        self._writer = ParquetFormatWriter(self._output, table.schema(), table.properties)
        self.bytes = 0

    def write(self, rows: pa.Table) -> None:
        self._writer.write(rows)
        self.bytes += rows.nbytes

    def close(self) -> DataFile:
        statistics = self._writer.close()
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=self._path,
            file_format=FileFormat.PARQUET,
            partition=Record(),
            file_size_in_bytes=len(self._output),
            sort_order_id=None,
            spec_id=self._table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )

    def abandon(self) -> None:
        """Close and remove the file."""
        try:
            self._writer.close()
            self._table.io.delete(self._path)
        except (OSError, ValueError, pa.ArrowException) as error:
            log.warning("cannot remove %s: %s", self._path, error)


def digest(rows: Iterable[pa.RecordBatch], columns: Sequence[str]) -> str:
    """The digest of rows that were read. It equals the digest that :meth:`Catalog.write` gave when it wrote them."""
    found = RowDigest(columns)
    for chunk in in_chunks(rows):
        found.add(chunk)
    return found.hex()


class RowDigest:
    """A hash of a multiset of rows. The order of rows, their files and their batches do not matter.

    The text of each row is hashed by MD5. The hashes are added up, together with the number of rows. The digest shows that
    content has changed. It does not protect against rows that were constructed to collide.

    Args:
        columns: names of the columns, in any order.

    References:
        Bellare and Micciancio, A New Paradigm for Collision-Free Hashing: Incrementality at Reduced Cost, 1997 (AdHash).
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = sorted(columns)
        self._database = duckdb.connect(":memory:")
        self._count = self._low = self._high = 0

    def add(self, rows: pa.Table) -> None:
        chunk = pa.table({column: _hashable(rows[column]) for column in self._columns})
        self._database.register("chunk", chunk)
        # Both halves of one hash. md5_number_lower and md5_number_upper give the same, but hash each row twice.
        sums = self._database.execute(
            f"SELECT count(*), sum((hash >> 64)::HUGEINT), sum((hash & {2**64 - 1}::UHUGEINT)::HUGEINT) "
            f"FROM (SELECT md5_number(concat_ws('|', {', '.join(map(_as_text, chunk.schema))})) AS hash FROM chunk)"
        ).fetchall()
        self._database.unregister("chunk")
        for count, low, high in sums:
            self._count, self._low, self._high = self._count + count, self._low + low, self._high + high

    def hex(self) -> str:
        self._database.close()
        text = "\0".join([*self._columns, str(self._count), str(self._low), str(self._high)])
        return hashlib.sha256(text.encode()).hexdigest()


def _hashable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats and moments as integers of their bits. Their text is short and does not depend on any setting."""
    if pa.types.is_floating(column.type):
        # There are many NaN values and two zeros. Each becomes one.
        column = pc.add(pc.if_else(pc.is_nan(column), pa.scalar(float("nan"), column.type), column), 0.0)
    elif not pa.types.is_timestamp(column.type):
        return column
    return pa.chunked_array([chunk.view(pa.int64()) for chunk in column.chunks], pa.int64())


def _as_text(field: pa.Field) -> str:
    name = quoted(field.name)
    if pa.types.is_integer(field.type) or pa.types.is_boolean(field.type) or pa.types.is_date(field.type):
        return f"coalesce({name}::VARCHAR, '')"
    # The length before the text marks where the value ends. It also distinguishes the empty text from NULL.
    return f"coalesce(strlen({name}::VARCHAR) || ':' || {name}::VARCHAR, '')"
