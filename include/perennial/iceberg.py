"""Iceberg tables by PyIceberg: the only module that knows its ways.

What it does that PyIceberg 0.12 leaves open:

- A commit that meets another one is repeated on fresh metadata. PyIceberg's own repetition loses a branch that was
  created in the same transaction, and does not recognise every conflict.
- Rows are written and read as a stream. PyIceberg's writer takes in a whole stream before the first file is closed, its
  reader all files before the first batch is used, however large.
- Files on a local disk are on the disk before the catalog points at them.
- A transaction derives its metadata once for each update, not each time it is asked: with 200 snapshots that was nine
  tenths of a commit.

:mod:`perennial.lake` decides what is written and read.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import sqlalchemy as sa
from pyiceberg.catalog.sql import SqlCatalog, SqlCatalogBaseTable
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.expressions import (
    AlwaysTrue,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    LessThan,
    LessThanOrEqual,
    Reference,
)
from pyiceberg.expressions.literals import literal
from pyiceberg.io.pyarrow import (
    ArrowScan,
    ParquetFormatWriter,
    PyArrowFile,
    PyArrowFileIO,
    PyArrowLocalFileSystem,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update.snapshot import ManageSnapshots
from pyiceberg.typedef import Record
from pyiceberg.types import LongType

from perennial import logs
from perennial.casting import quoted
from perennial.database import LOCK_WAIT, Database
from perennial.errors import SnapshotMissing, SpecError
from perennial.intervals import Interval
from perennial.overlap import ahead

log = logs.get(__name__)


# It tells of each file it opens.
logging.getLogger("pyiceberg.io").setLevel(logging.WARNING)

_T = TypeVar("_T")

#: Rows are gathered to this many before they are hashed and written, so that row groups are worth reading.
_CHUNK_ROWS = 131_072
#: A data file is closed when it holds this many bytes of Arrow memory, several times what it takes on disk.
_FILE_BYTES = 128 * 1024**2
#: Files are read together up to this size on disk; what they hold is in memory at once.
_READ_BYTES = 32 * 1024**2

#: Points at the snapshot without rows that every history begins with.
EMPTY = "empty"
_EVENT_TIME = "perennial.event-time"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_PROPERTIES = {
    # Repeating a commit is Catalog.commit's affair.
    "commit.retry.num-retries": "0",
    # Each publication adds a manifest, and every scan reads them all: join them when they are many.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    # Each commit writes a metadata file. Those that are named no more are left to Catalog.sweep: were they removed by the
    # commit, a backup could copy a catalog whose metadata are gone before it comes to them.
    "write.metadata.delete-after-commit.enabled": "false",
    "write.metadata.previous-versions-max": "20",
}


class DurableFileIO(PyArrowFileIO):
    """PyArrow's, except that a file on a local disk has reached the disk when it is closed.

    Without it a power failure could leave the catalog and the ledger, which are databases and do sync, pointing at files
    that are empty.
    """

    def _initialize_local_fs(self) -> pafs.FileSystem:
        return _DurableFileSystem()


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
    """Rows by their event time.

    Attributes:
        column: the event time.
        start: from here on; None for no bound.
        end: up to but not including this.
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
        """Whether each row of the file is inside, by the file's own statistics."""
        bounds = time_bounds(file, table, self.column)
        return bounds is not None and (self.start is None or self.start <= bounds[0]) and bounds[1] < self.end

    def outside(self, rows: pa.Table) -> pa.Table:
        """The rows that are not inside."""
        moments = rows[self.column]
        outside = pc.greater_equal(moments, pa.scalar(self.end, moments.type))
        if self.start is not None:
            outside = pc.or_(outside, pc.less(moments, pa.scalar(self.start, moments.type)))
        # A row that was written before the table had this event time is in no span.
        return rows.filter(pc.fill_null(outside, True))


@dataclass(frozen=True)
class Written:
    """Data files that no snapshot names yet.

    Attributes:
        files: the files.
        rows: how many rows they hold.
        digest: a hash of the rows, whatever their order and files; empty if none was wanted.
    """

    files: list[DataFile]
    rows: int
    digest: str


def _object_store(environment: Mapping[str, str]) -> dict[str, str]:
    """What PyArrow does not read of the AWS SDKs' own variables by itself."""
    properties = {}
    if region := environment.get("AWS_REGION"):
        # Otherwise Amazon is asked for the bucket's, by each process, for seconds where Amazon cannot be reached.
        properties["s3.region"] = region
    if endpoint := environment.get("AWS_ENDPOINT_URL"):
        # Most stores that are not Amazon's have no name for each bucket.
        properties |= {"s3.endpoint": endpoint, "s3.force-virtual-addressing": "false"}
    return properties


class Catalog:
    """The tables of all models, each in the namespace of its model.

    Args:
        url: SQLAlchemy URL of the catalog's database.
        warehouse: where the files lie: a path, or an address that PyArrow can open.
    """

    def __init__(self, url: str, warehouse: str) -> None:
        self._url = url
        self._warehouse = warehouse if "://" in warehouse else f"file://{Path(warehouse).absolute()}"

    def migrate(self) -> Database:
        """Create the catalog's own tables, unless they are there. Several processes may call it at once."""
        # PyIceberg creates its tables as well, but not when two processes start at once.
        database = Database(self._url)
        database.create(SqlCatalogBaseTable.metadata)
        return database

    @cached_property
    def _catalog(self) -> SqlCatalog:
        database = self.migrate()
        properties = {"warehouse": self._warehouse, "init_catalog_tables": "false", "pool_pre_ping": "true"}
        if self._warehouse.startswith("file://"):
            properties["py-io-impl"] = f"{DurableFileIO.__module__}.{DurableFileIO.__name__}"
        else:
            properties |= _object_store(os.environ)
        catalog = SqlCatalog("perennial", uri=self._url, **properties)
        if database.is_sqlite:
            # This one waits for other writers for longer than five seconds, and leaves no connection open.
            catalog.engine.dispose()
            catalog.engine = database.engine
        return catalog

    def tables(self, model: str) -> list[str]:
        """Names of a model's tables."""
        if not self._catalog.namespace_exists(model):
            return []
        return sorted(name[-1] for name in self._catalog.list_tables(model))

    def load(self, model: str, table: str) -> Table:
        """A table as it is now.

        Raises:
            SnapshotMissing: there is no such table.
        """
        try:
            return self._catalog.load_table((model, table))
        except NoSuchTableError as error:
            raise SnapshotMissing(f"{model}: there is no table {table} in the lake; nothing was published in it yet") from error

    def ensure(self, model: str, table: str, schema: pa.Schema, event_time: str | None) -> Table:
        """A table that has these columns: created if it is missing, widened if it lacks some.

        Columns that it has beyond these stay, and are empty in new rows: a column that is dropped and given again would
        come back without its old values.

        Raises:
            SpecError: a column is there with another type.
        """
        wanted = _optional(schema)
        try:
            found = self._catalog.load_table((model, table))
        except NoSuchTableError:
            found = self._create(model, table, wanted, event_time)
        if EMPTY not in found.metadata.refs:
            found = self.commit(model, table, _begin_history)[0]
        present = _plain_schema(found.schema())
        names = set(present.names)
        for field in wanted:
            if field.name in names and present.field(field.name).type != field.type:
                raise SpecError(
                    f"{model}: column {field.name} of table {table} is a {present.field(field.name).type} in the lake and a "
                    f"{field.type} now. Give the column of the new type another name, and ingest the past again to fill it"
                )
        widened = any(field.name not in names for field in wanted)
        if widened or found.properties.get(_EVENT_TIME) != event_time or not _PROPERTIES.items() <= found.properties.items():

            def adapt(_: Table, transaction: Transaction) -> None:
                with transaction.update_schema() as update:
                    update.union_by_name(wanted)
                transaction.set_properties(_PROPERTIES)
                if event_time is None:
                    transaction.remove_properties(_EVENT_TIME)
                else:
                    transaction.set_properties({_EVENT_TIME: event_time})

            found = self.commit(model, table, adapt)[0]
        return found

    def _create(self, model: str, table: str, schema: pa.Schema, event_time: str | None) -> Table:
        # Another process may be creating the same ones.
        try:
            self._catalog.create_namespace(model)
        except (NamespaceAlreadyExistsError, sa.exc.IntegrityError):
            log.debug("namespace %s is there already", model)
        properties = {**_PROPERTIES, **({_EVENT_TIME: event_time} if event_time else {})}
        try:
            return self._catalog.create_table((model, table), schema, properties=properties)
        except TableAlreadyExistsError:
            return self._catalog.load_table((model, table))

    def commit(self, model: str, table: str, change: Callable[[Table, Transaction], _T]) -> tuple[Table, _T]:
        """Make a change of a table's metadata, again and again until no other commit comes between.

        Args:
            model: the model.
            table: the table.
            change: stages the change in a transaction on the table as it is; called again after a conflict.

        Returns:
            The table after the change, and what ``change`` returned.
        """
        deadline = time.monotonic() + LOCK_WAIT.total_seconds()
        while True:
            found = self.load(model, table)
            seen = found.metadata_location
            try:
                transaction = _Transaction(found)
                result = change(found, transaction)
                return transaction.commit_transaction(), result
            except (CommitFailedException, ValueError):
                # Two snapshots with one sequence number are a ValueError to PyIceberg. Whatever it is, it is a conflict
                # only if someone else has committed.
                if self.load(model, table).metadata_location == seen or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0, 0.05))  # noqa: S311 - spreads competitors

    def write(
        self,
        table: Table,
        rows: Iterable[pa.RecordBatch],
        *,
        digest_of: Sequence[str] = (),
        check: Callable[[pa.Table], None] | None = None,
    ) -> Written:
        """Write rows into new data files, which no snapshot names yet.

        Args:
            table: the table whose columns they have.
            rows: batches of any size.
            digest_of: the columns that the digest is over; without any there is none.
            check: called with each chunk of rows; raises if they must not be written.

        Rows are read, checked and hashed in a thread beside the writing.
        """
        schema = schema_to_pyarrow(table.schema())
        digest = _Digest(digest_of) if digest_of else None
        files: list[DataFile] = []
        writer: _FileWriter | None = None
        count = 0

        def ready() -> Iterator[pa.Table]:
            for chunk in _chunks(rows):
                conformed = _conform(chunk, schema)
                if check is not None:
                    check(conformed)
                if digest is not None:
                    digest.add(conformed)
                yield conformed

        try:
            with closing(ahead(ready(), most=1)) as chunks:  # so that nothing is read any more when this fails
                for chunk in chunks:
                    count += chunk.num_rows
                    writer = writer or _FileWriter(table)
                    writer.write(chunk)
                    if writer.bytes >= _FILE_BYTES:
                        files.append(writer.close())
                        writer = None
            if writer is not None:
                files.append(writer.close())
        except BaseException:
            if writer is not None:
                writer.abandon()
            discard(table, files)
            raise
        return Written(files, count, digest.hex() if digest is not None else "")

    def stage(
        self,
        model: str,
        table: str,
        *,
        base: int,
        branch: str,
        removed: Sequence[DataFile],
        added: Sequence[DataFile],
        summary: Mapping[str, str],
    ) -> int:
        """A snapshot that differs from ``base`` by data files, on a new branch of its own.

        Returns:
            Its id; ``base`` if nothing differs.
        """
        if not removed and not added:
            return base

        def change(_: Table, transaction: Transaction) -> int:
            ManageSnapshots(transaction).create_branch(base, branch).commit()
            update = transaction.update_snapshot(snapshot_properties=dict(summary), branch=branch)
            if not removed:
                with update.merge_append() as append:
                    for file in added:
                        append.append_data_file(file)
                return append.snapshot_id
            with update.overwrite() as overwrite:
                # Without a predicate no manifest of a table without partitions is searched for the files.
                overwrite.delete_by_predicate(AlwaysTrue())
                for file in removed:
                    overwrite.delete_data_file(file)
                for file in added:
                    overwrite.append_data_file(file)
            return overwrite.snapshot_id

        after, snapshot_id = self.commit(model, table, change)
        snapshot = after.snapshot_by_id(snapshot_id)
        if snapshot is None or snapshot.parent_snapshot_id != base:
            raise RuntimeError(f"{model}: the snapshot {snapshot_id} of {table} does not follow {base}; nothing was published")
        return snapshot_id

    def missing(self, table: Table, snapshot: int) -> list[str]:
        """What a snapshot names and cannot be read: its data files, compared by size, and the lists of them.

        Raises:
            SnapshotMissing: the snapshot is not there any more.
        """
        try:
            tasks = self.files(table, snapshot, AlwaysTrue())
        except OSError as error:
            return [f"the list of its files ({error})"]
        found = []
        for task in tasks:
            file = table.io.new_input(task.file.file_path)
            if not file.exists():
                found.append(task.file.file_path)
            elif len(file) != task.file.file_size_in_bytes:
                found.append(f"{task.file.file_path} (of {task.file.file_size_in_bytes:,} bytes there are {len(file):,})")
        return found

    def files(self, table: Table, snapshot: int, where: BooleanExpression) -> list[FileScanTask]:
        """The data files of a snapshot that may hold rows for which ``where`` holds.

        Raises:
            SnapshotMissing: the snapshot is not there any more.
        """
        self.require(table, snapshot)
        return list(table.scan(snapshot_id=snapshot, row_filter=where).plan_files())

    def columns(self, table: Table, snapshot: int) -> list[str]:
        """The columns that a table had at a snapshot.

        Raises:
            SnapshotMissing: the snapshot is not there any more.
        """
        self.require(table, snapshot)
        return columns_of(table.scan(snapshot_id=snapshot).projection())

    def require(self, table: Table, snapshot: int) -> None:
        """Make sure that a snapshot is there.

        Raises:
            SnapshotMissing: it is not.
        """
        if table.snapshot_by_id(snapshot) is None:
            raise SnapshotMissing(
                f"{'.'.join(table.name())}: snapshot {snapshot} is not in the lake any more; what is to outlive the retention "
                "of snapshots has to be pinned"
            )

    def read(
        self, table: Table, tasks: Sequence[FileScanTask], *, columns: Sequence[str], where: BooleanExpression
    ) -> pa.RecordBatchReader:
        """The rows of data files for which ``where`` holds, a few files in memory at a time."""
        projected = table.schema().select(*columns)
        plain = _plain_schema(projected)
        schema = pa.schema([plain.field(name) for name in columns])
        scan = ArrowScan(table.metadata, table.io, projected, where)

        def batches() -> Iterator[pa.RecordBatch]:
            for group in _groups(tasks):
                for batch in scan.to_record_batches(group):
                    yield batch.select(list(columns)).cast(schema)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def sweep(self, model: str, table: str, older_than: datetime) -> int:
        """Remove the files of a table that neither a snapshot nor the log of its metadata names.

        Returns:
            How many were removed; files younger than ``older_than`` are left alone.
        """
        location = self.load(model, table).location()
        io_ = self.load(model, table).io
        if not isinstance(io_, PyArrowFileIO):
            return 0
        scheme, host, root = io_.parse_location(location, io_.properties)
        files = io_.fs_by_scheme(scheme, host)
        # Listed before the names are gathered: what is committed in between is younger than the list.
        old = {
            info.path
            for info in files.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
            if info.is_file and info.mtime is not None and info.mtime < older_than
        }
        named = {io_.parse_location(path, io_.properties)[2] for path in _named_files(self.load(model, table))}
        for path in old - named:
            files.delete_file(path)
        return len(old - named)


class _Transaction(Transaction):
    _derived: tuple[object, TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        if self._derived is None or self._derived[0] is not self._updates:
            self._derived = self._updates, super().table_metadata
        return self._derived[1]


def _named_files(table: Table) -> Iterator[str]:
    yield table.metadata_location
    yield from (entry.metadata_file for entry in table.metadata.metadata_log)
    yield from (statistics.statistics_path for statistics in table.metadata.statistics)
    seen: set[str] = set()
    for snapshot in table.snapshots():
        yield snapshot.manifest_list
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in seen:
                seen.add(manifest.manifest_path)
                yield manifest.manifest_path
                # What a snapshot has removed, the snapshots before it name themselves, if they are still there.
                yield from (
                    entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                )


def _begin_history(table: Table, transaction: Transaction) -> None:
    """An empty snapshot, tagged, for branches to start from: a table without any accepts only its main branch."""
    if EMPTY in table.metadata.refs:
        return
    with transaction.update_snapshot().fast_append() as append:
        pass
    ManageSnapshots(transaction).create_tag(append.snapshot_id, EMPTY).commit()


def point_main(transaction: Transaction, snapshot: int) -> None:
    """Let the main branch, which readers other than Perennial take, end at a snapshot."""
    main = transaction.table_metadata.refs.get(MAIN_BRANCH)
    if main is None or main.snapshot_id != snapshot:
        ManageSnapshots(transaction).set_current_snapshot(snapshot_id=snapshot)


def columns_of(schema: Schema) -> list[str]:
    """The names of the columns; PyIceberg's own list has the elements of lists too."""
    return [field.name for field in schema.fields]


def event_time_of(table: Table) -> str | None:
    """The column that :meth:`Catalog.ensure` was told of last."""
    return table.properties.get(_EVENT_TIME)


def time_bounds(file: DataFile, table: Table, column: str) -> tuple[datetime, datetime] | None:
    """The first and last moment in a column of a data file, by its statistics; None if they do not tell."""
    field = table.schema().find_field(column)
    low, high = (bounds.get(field.field_id) for bounds in (file.lower_bounds or {}, file.upper_bounds or {}))
    if low is None or high is None or (file.null_value_counts or {}).get(field.field_id):
        return None

    def moment(value: bytes) -> datetime:
        return _EPOCH + timedelta(microseconds=int(from_bytes(LongType(), value)))

    return moment(low), moment(high)


def discard(table: Table, files: Iterable[DataFile]) -> None:
    """Remove data files that no snapshot names; what cannot be removed now is left to the removal of orphans."""
    for file in files:
        try:
            table.io.delete(file.file_path)
        except OSError as error:
            log.warning("cannot remove %s: %s", file.file_path, error)


def known_by(moment: datetime) -> BooleanExpression:
    """Holds for rows that were known at ``moment``."""
    return LessThanOrEqual(term=Reference("_known_at"), value=literal(moment))


# --- rows ------------------------------------------------------------------------------------------------------------


def plain_type(given: pa.DataType) -> pa.DataType:
    """The type that stands for ``given`` in the lake.

    Raises:
        ValueError: nothing does.
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
        return pa.timestamp("us", tz="UTC")
    if pa.types.is_list(given) or pa.types.is_large_list(given):
        return pa.list_(plain_type(given.value_type))
    raise ValueError(f"a column of the type {given} cannot be kept; a timestamp must have a zone")


def _optional(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def _plain_schema(schema: Schema) -> pa.Schema:
    return _optional(schema_to_pyarrow(schema, include_field_ids=False))


def _conform(chunk: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with exactly the columns of ``schema``; those they lack are empty."""
    columns = [
        chunk[field.name].cast(field.type) if field.name in chunk.schema.names else pa.nulls(chunk.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows in tables of at most :data:`_CHUNK_ROWS` rows, none of them empty."""
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


def _groups(tasks: Sequence[FileScanTask]) -> Iterator[list[FileScanTask]]:
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


class _FileWriter:
    """One data file of a table, written chunk by chunk."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._path = table.location_provider().new_data_location(f"{uuid.uuid4()}.parquet")
        self._output: PyArrowFile = table.io.new_output(self._path)  # type: ignore[assignment]
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
    """The digest that :meth:`Catalog.write` gives rows which it writes, of rows that were read."""
    found = _Digest(columns)
    for chunk in _chunks(rows):
        found.add(chunk)
    return found.hex()


class _Digest:
    """A hash of a multiset of rows: equal rows in another order, in other files or batches, give the same.

    Each row's text is hashed by MD5 and the hashes are summed up, with the number of rows. It tells that content changed;
    it is no defence against someone who makes up rows in order to collide.

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
        # Both halves of one hash: what the functions md5_number_lower and md5_number_upper give, which hash a row each.
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
    """Numbers and moments by their bits, which have a text that is short and the same in all settings."""
    if pa.types.is_floating(column.type):
        # There are many NaN and two zeros.
        column = pc.add(pc.if_else(pc.is_nan(column), pa.scalar(float("nan"), column.type), column), 0.0)
    elif not pa.types.is_timestamp(column.type):
        return column
    return pa.chunked_array([chunk.view(pa.int64()) for chunk in column.chunks], pa.int64())


def _as_text(field: pa.Field) -> str:
    name = quoted(field.name)
    if pa.types.is_integer(field.type) or pa.types.is_boolean(field.type) or pa.types.is_date(field.type):
        return f"coalesce({name}::VARCHAR, '')"
    # Its length before it keeps apart where one value ends and the next begins, and the empty text from no value.
    return f"coalesce(strlen({name}::VARCHAR) || ':' || {name}::VARCHAR, '')"
