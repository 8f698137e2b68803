"""Iceberg tables by PyIceberg: the only module that knows its ways.

What it does that PyIceberg 0.12 leaves open:

- A commit that meets another one is repeated on fresh metadata. PyIceberg's own repetition loses a branch that was
  created in the same transaction, and does not recognise every conflict.
- Rows are written and read as a stream. PyIceberg's writer takes in a whole stream before the first file is closed, its
  reader all files before the first batch is used, however large.
- Files on a local disk are on the disk before the catalog points at them.
- A transaction derives its metadata once for each update, not each time it is asked: with 200 snapshots that was nine
  tenths of a commit.

:mod:`perennial.lake.publish` decides what is written and read.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import sqlalchemy as sa
from pyiceberg.catalog.sql import SqlCatalog, SqlCatalogBaseTable
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.expressions.visitors import _InclusiveMetricsEvaluator
from pyiceberg.io.pyarrow import ArrowScan, PyArrowFileIO, schema_to_pyarrow
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update.snapshot import ExpireSnapshots, ManageSnapshots

from perennial.core import logs
from perennial.core.database import LOCK_WAIT, Database
from perennial.core.errors import SnapshotMissing, SpecError
from perennial.core.streams import ahead
from perennial.lake.data_files import (
    FILE_BYTES,
    DurableFileIO,
    FileWriter,
    RowDigest,
    Written,
    conform,
    discard,
    in_chunks,
    in_groups,
    optional,
    plain_schema,
)

log = logs.get(__name__)


# It tells of each file it opens.
logging.getLogger("pyiceberg.io").setLevel(logging.WARNING)

_T = TypeVar("_T")

#: Points at the snapshot without rows that every history begins with.
EMPTY = "empty"
_EVENT_TIME = "perennial.event-time"

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
        wanted = optional(schema)
        try:
            found = self._catalog.load_table((model, table))
        except NoSuchTableError:
            found = self._create(model, table, wanted, event_time)
        if EMPTY not in found.metadata.refs:
            found = self.commit(model, table, _begin_history)[0]
        present = plain_schema(found.schema())
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
        digest = RowDigest(digest_of) if digest_of else None
        files: list[DataFile] = []
        writer: FileWriter | None = None
        count = 0

        def ready() -> Iterator[pa.Table]:
            for chunk in in_chunks(rows):
                conformed = conform(chunk, schema)
                if check is not None:
                    check(conformed)
                if digest is not None:
                    digest.add(conformed)
                yield conformed

        try:
            with closing(ahead(ready(), most=1)) as chunks:  # so that nothing is read any more when this fails
                for chunk in chunks:
                    count += chunk.num_rows
                    writer = writer or FileWriter(table)
                    writer.write(chunk)
                    if writer.bytes >= FILE_BYTES:
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
        plain = plain_schema(projected)
        schema = pa.schema([plain.field(name) for name in columns])
        scan = ArrowScan(table.metadata, table.io, projected, where)

        def batches() -> Iterator[pa.RecordBatch]:
            for group in in_groups(tasks):
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

    # --- what snapshots name, and letting go of them whatever their age ------------------------------------------------

    def holdings(self, table: Table) -> list[Holding]:
        """What each snapshot of a table names."""
        read: dict[str, list[DataFile]] = {}
        found = []
        for snapshot in table.snapshots():
            manifests = snapshot.manifests(table.io)
            for manifest in manifests:
                if manifest.manifest_path not in read:
                    entries = manifest.fetch_manifest_entry(table.io, discard_deleted=False)
                    read[manifest.manifest_path] = [entry.data_file for entry in entries]
            data = {file.file_path: file for manifest in manifests for file in read[manifest.manifest_path]}
            lists = frozenset([snapshot.manifest_list, *(manifest.manifest_path for manifest in manifests)])
            found.append(Holding(snapshot.snapshot_id, data, lists))
        return found

    def some(self, table: Table, files: Iterable[DataFile], where: BooleanExpression) -> list[FileScanTask]:
        """Those of some data files that may hold rows for which ``where`` holds, by their statistics."""
        may_hold = _InclusiveMetricsEvaluator(table.schema(), where)
        return [FileScanTask(file) for file in files if may_hold.eval(file)]

    def settle(self, model: str, table: str, *, base: int, branch: str) -> int:
        """A snapshot with the rows at the end of a branch, or of ``base``, that names no file which those before it removed.

        Returns:
            Its id; it is the end of the branch.
        """

        def change(found: Table, transaction: Transaction) -> int:
            if branch not in found.metadata.refs:
                ManageSnapshots(transaction).create_branch(base, branch).commit()
            with transaction.update_snapshot(branch=branch).fast_append() as append:
                pass
            return append.snapshot_id

        return self.commit(model, table, change)[1]

    def expire(self, model: str, table: str, snapshots: Iterable[int]) -> None:
        """Let go of snapshots, with the branches and tags that lead to them."""
        wanted = set(snapshots)

        def change(found: Table, transaction: Transaction) -> None:
            manage = ManageSnapshots(transaction)
            for name, ref in found.metadata.refs.items():
                if ref.snapshot_id in wanted:
                    manage = manage.remove_branch(name) if ref.snapshot_ref_type == "branch" else manage.remove_tag(name)
            manage.commit()
            there = wanted & {snapshot.snapshot_id for snapshot in found.snapshots()}
            if there:
                ExpireSnapshots(transaction).by_ids(sorted(there)).commit()

        self.commit(model, table, change)

    def delete(self, table: Table, paths: Iterable[str]) -> int:
        """Remove files; those that are gone already are no error.

        Returns:
            How many were there.
        """
        there = [path for path in paths if table.io.new_input(path).exists()]
        for path in there:
            table.io.delete(path)
        return len(there)

    def unnamed(self, table: Table, older_than: datetime) -> list[str]:
        """Parquet files of a table that no snapshot names, and that are older than a moment."""
        io_ = table.io
        if not isinstance(io_, PyArrowFileIO):
            return []
        scheme, host, root = io_.parse_location(table.location(), io_.properties)
        files = io_.fs_by_scheme(scheme, host)
        selector = pafs.FileSelector(root, allow_not_found=True, recursive=True)
        old = [
            info.path
            for info in files.get_file_info(selector)
            if info.is_file and info.path.endswith(".parquet") and info.mtime is not None and info.mtime < older_than
        ]
        named = {io_.parse_location(path, io_.properties)[2] for path in _named_files(self.load(*table.name()))}
        prefix = table.location().removesuffix(root.rstrip("/"))
        return [f"{prefix}{path}" for path in old if path not in named]

    def read_file(self, table: Table, path: str) -> Iterator[pa.Table]:
        """The rows of a Parquet file that no snapshot names, a part at a time."""
        with table.io.new_input(path).open(seekable=True) as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches():
                yield pa.Table.from_batches([batch])

    def drop(self, model: str, table: str) -> None:
        """Remove a table and all of its files; nothing happens if there is none."""
        try:
            found = self._catalog.load_table((model, table))
        except NoSuchTableError:
            return
        if isinstance(found.io, PyArrowFileIO):
            scheme, host, root = found.io.parse_location(found.location(), found.io.properties)
            found.io.fs_by_scheme(scheme, host).delete_dir_contents(root, missing_dir_ok=True)
        # Last, so that what was cut off is found again.
        self._catalog.drop_table((model, table))


@dataclass(frozen=True)
class Holding:
    """What a snapshot names.

    Attributes:
        snapshot: its id.
        files: data files by path, those that it says it has removed among them: it names the bounds of their values.
        lists: the files in which it names them.
    """

    snapshot: int
    files: Mapping[str, DataFile]
    lists: frozenset[str]


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
