"""The catalog of Iceberg tables: create, commit, write, stage, read and sweep, by PyIceberg.

What it adds to PyIceberg 0.12:

- A commit that conflicts with another one is repeated on fresh metadata. PyIceberg's own retry loses a branch that was
  created in the same transaction, and does not recognise every conflict.
- Rows are written and read as a stream. PyIceberg's writer reads a whole stream before it closes the first file. Its reader
  reads all files before it gives the first batch.
- Files on a local disk are on the disk before the catalog points at them.
- A transaction derives its metadata once per update, not once per access. With 200 snapshots that took nine tenths of the
  time of a commit.

Neighbours: :mod:`perennial.lake.publish` decides what is written and read. :mod:`perennial.lake.data_files` has the files.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import sqlalchemy as sa
from pyiceberg.catalog.sql import SqlCatalog, SqlCatalogBaseTable
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, IsNull, NotNull, Reference
from pyiceberg.io.pyarrow import ArrowScan, PyArrowFileIO, schema_to_pyarrow
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update.snapshot import ExpireSnapshots, ManageSnapshots

from perennial.core.database import LOCK_WAIT, Database
from perennial.core.errors import SnapshotMissing, SpecError
from perennial.core.private_parts import MetadataOncePerUpdate, may_hold, use_engine
from perennial.core.streams import ahead
from perennial.lake.data_files import (
    FILE_BYTES,
    DurableFileIO,
    FileWriter,
    ReadingFileIO,
    RowDigest,
    Written,
    conform,
    discard,
    in_chunks,
    in_groups,
    optional,
    plain_schema,
)
from perennial.lake.schema import MOMENT

log = logging.getLogger(__name__)


_T = TypeVar("_T")

#: The tag of the snapshot without rows with which every history begins.
EMPTY = "empty"
_EVENT_TIME = "perennial.event-time"

_PROPERTIES = {
    # Catalog.commit repeats commits.
    "commit.retry.num-retries": "0",
    # Each publication adds a manifest, and every scan reads all of them. So many manifests are merged.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    # Each commit writes a metadata file. Catalog.sweep removes old ones. If commits removed them, a backup could copy a
    # catalog, and the metadata that it names would be gone before the backup reaches them.
    "write.metadata.delete-after-commit.enabled": "false",
    "write.metadata.previous-versions-max": "20",
}


def _object_store(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the AWS SDKs that PyArrow does not read itself, as PyIceberg's properties."""
    properties = {}
    if region := environment.get("AWS_REGION"):
        # Otherwise each process asks Amazon for the region of the bucket, and waits for seconds if Amazon is unreachable.
        properties["s3.region"] = region
    if endpoint := environment.get("AWS_ENDPOINT_URL"):
        # Most stores other than Amazon's have no host name per bucket.
        properties |= {"s3.endpoint": endpoint, "s3.force-virtual-addressing": "false"}
    return properties


class Catalog:
    """The tables of all models, each in the namespace of its model.

    Args:
        url: SQLAlchemy URL of the catalog's database.
        warehouse: the place of the files: a path, or an address that PyArrow can open.
        read_only: neither the database nor the files are written.
    """

    def __init__(self, url: str, warehouse: str, *, read_only: bool = False) -> None:
        self._url = url
        self._read_only = read_only
        self._warehouse = warehouse if "://" in warehouse else f"file://{Path(warehouse).absolute()}"

    def migrate(self) -> Database:
        """Create the catalog's own tables if they do not exist. Several processes may call it at the same time."""
        # PyIceberg also creates its tables, but fails if two processes start at the same time.
        database = Database(self._url)
        database.create(SqlCatalogBaseTable.metadata)
        return database

    @cached_property
    def _catalog(self) -> SqlCatalog:
        database = Database(self._url, read_only=True) if self._read_only else self.migrate()
        properties = {"warehouse": self._warehouse, "init_catalog_tables": "false", "pool_pre_ping": "true"}
        is_local = self._warehouse.startswith("file://")
        if not is_local:
            properties |= _object_store(os.environ)
        if is_local or self._read_only:
            files = ReadingFileIO if self._read_only else DurableFileIO
            properties["py-io-impl"] = f"{files.__module__}.{files.__name__}"
        catalog = SqlCatalog("perennial", uri=self._url, **properties)
        if database.is_sqlite or self._read_only:
            # This engine waits longer than five seconds for other writers, and leaves no connection open.
            use_engine(catalog, database.engine)
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

    def ensure(
        self, model: str, table: str, schema: pa.Schema, event_time: str | None, *, derived: Collection[str] = ()
    ) -> Table:
        """A table that has these columns. It is created if it does not exist, and gets the columns that it lacks.

        A column of a wider type replaces one of a narrower type, which keeps its values under a name such as
        ``_integer_amount``. :meth:`read` gives both as one column.

        A derived column of another type begins anew. Its values of before stay under a name such as ``_float_amount``, for
        snapshots of before. If the type changes back, the columns swap their names again.

        Other columns of the table stay, and are null in new rows. If they were dropped and added again, their old values
        would be lost.

        Args:
            model: the model.
            table: the table.
            schema: the columns.
            event_time: the column that places a row in an interval; None if the table is replaced as a whole.
            derived: columns whose values are computed, and can be computed again in another type.

        Raises:
            SpecError: the table has a column with another type, whose values may not fit.
        """
        wanted = optional(schema)
        try:
            found = self._catalog.load_table((model, table))
        except NoSuchTableError:
            found = self._create(model, table, wanted, event_time)
        if EMPTY not in found.metadata.refs:
            found = self.commit(model, table, _begin_history)[0]
        names = set(plain_schema(found.schema()).names)
        changed = _changed(found, wanted, derived)
        lacking = any(field.name not in names for field in wanted)
        if (
            changed
            or lacking
            or found.properties.get(_EVENT_TIME) != event_time
            or not _PROPERTIES.items() <= found.properties.items()
        ):

            def adapt(now: Table, transaction: Transaction) -> None:
                renamed = _changed(now, wanted, derived)
                if renamed:  # Iceberg itself changes none of these types
                    with transaction.update_schema() as update:
                        for name, kind in renamed.items():
                            update.rename_column(name, f"_{kind}_{name}")
                    there = plain_schema(transaction.table_metadata.schema())
                    with transaction.update_schema() as update:
                        for name in renamed:
                            back = f"_{_derived_kind(wanted.field(name).type)}_{name}"
                            if name in derived and back in there.names:
                                update.rename_column(back, name)
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
        # Another process may create the same namespace or table at the same time.
        try:
            self._catalog.create_namespace(model)
        except (NamespaceAlreadyExistsError, sa.exc.IntegrityError):
            log.debug("the namespace %s exists already", model)
        properties = {**_PROPERTIES, **({_EVENT_TIME: event_time} if event_time else {})}
        try:
            return self._catalog.create_table((model, table), schema, properties=properties)
        except TableAlreadyExistsError:
            return self._catalog.load_table((model, table))

    def commit(self, model: str, table: str, change: Callable[[Table, Transaction], _T]) -> tuple[Table, _T]:
        """Change the metadata of a table. The change is repeated until no other commit conflicts with it.

        Args:
            model: the model.
            table: the table.
            change: makes the change in a transaction on the current table. It is called again after a conflict.

        Returns:
            The table after the change, and the result of ``change``.
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
                # For PyIceberg, two snapshots with the same sequence number are a ValueError. Any error is a conflict only
                # if another process has committed.
                if self.load(model, table).metadata_location == seen or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0, 0.05))  # noqa: S311 - spreads the retries

    def write(
        self,
        table: Table,
        rows: Iterable[pa.RecordBatch],
        *,
        digest_of: Sequence[str] = (),
        check: Callable[[pa.Table], None] | None = None,
    ) -> Written:
        """Write rows to new data files, which no snapshot names yet.

        Another thread reads, checks and hashes the rows while they are written.

        Args:
            table: the table.
            rows: batches of any size, with the columns of the table.
            digest_of: the columns of the digest; if it is empty, no digest is made.
            check: called with each chunk of rows. It raises if they must not be written.
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
            with closing(ahead(ready(), most=1)) as chunks:  # reading stops if writing fails
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
        """Make a snapshot from ``base`` with other data files, on a new branch.

        Args:
            model: the model.
            table: the table.
            base: id of the snapshot to start from.
            branch: name of the new branch.
            removed: data files that the new snapshot lacks.
            added: data files that it has in addition.
            summary: properties of the new snapshot.

        Returns:
            The id of the new snapshot; ``base`` if no file is removed or added.
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
                # Without a predicate, PyIceberg searches no manifest of an unpartitioned table for the files.
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
        """The files of a snapshot that cannot be read: data files that are missing or have another size, and their lists.

        Returns:
            One text for people per file.

        Raises:
            SnapshotMissing: the snapshot no longer exists.
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
                found.append(f"{task.file.file_path} ({len(file):,} of {task.file.file_size_in_bytes:,} bytes)")
        return found

    def files(self, table: Table, snapshot: int, where: BooleanExpression) -> list[FileScanTask]:
        """The data files of a snapshot that may hold rows for which ``where`` holds.

        Raises:
            SnapshotMissing: the snapshot no longer exists.
        """
        self.require(table, snapshot)
        return list(table.scan(snapshot_id=snapshot, row_filter=where).plan_files())

    def check_types(self, model: str, table: str, schema: pa.Schema, *, derived: Collection[str] = ()) -> list[str]:
        """The derived columns that :meth:`ensure` lets begin anew, without changing anything.

        Raises:
            SpecError: see :meth:`ensure`.
        """
        try:
            found = self._catalog.load_table((model, table))
        except NoSuchTableError:
            return []
        return [name for name, kind in _changed(found, optional(schema), derived).items() if kind not in _NARROWER]

    def columns(self, table: Table, snapshot: int) -> list[str]:
        """The columns that a table had at a snapshot.

        Raises:
            SnapshotMissing: the snapshot no longer exists.
        """
        self.require(table, snapshot)
        return columns_of(table.scan(snapshot_id=snapshot).projection())

    def require(self, table: Table, snapshot: int) -> None:
        """Check that a snapshot exists.

        Raises:
            SnapshotMissing: it does not exist.
        """
        if table.snapshot_by_id(snapshot) is None:
            model, *_ = table.name()
            raise SnapshotMissing(
                f"{'.'.join(table.name())}: snapshot {snapshot} is no longer in the lake: its retention is over, or the lake "
                "was lost or replaced. If it was lost, restore ledger and lake from one backup, or begin again: perennial "
                f"retire {model} --drop-lake, then ingest"
            )

    def read(
        self,
        table: Table,
        tasks: Sequence[FileScanTask],
        *,
        columns: Sequence[str],
        where: BooleanExpression,
        snapshot: int | None = None,
    ) -> pa.RecordBatchReader:
        """The rows of data files for which ``where`` holds. Only a few files are in memory at a time.

        A value that was published when its column had a narrower type is given in the type of today. ``where`` does not see it.

        Args:
            table: the table.
            tasks: the files.
            columns: the columns to read.
            where: the condition.
            snapshot: the snapshot of the files, so that a derived column is read as it was then; None: as it is today.

        Raises:
            SnapshotMissing: some of the rows were published before a derived column got the type that is read.
        """
        then = _derived_then(table, snapshot)
        before = {column: narrower_columns(table.schema(), column) for column in columns}
        read_as = {column: then.get(column, column) for column in columns}
        self._refuse_earlier(table, tasks, [column for column in columns if column not in then], where)
        projected = table.schema().select(*read_as.values(), *(name for names in before.values() for name in names))
        plain = plain_schema(projected)
        schema = pa.schema([plain.field(read_as[name]).with_name(name) for name in columns])

        def widened(batch: pa.RecordBatch) -> pa.RecordBatch:
            arrays = [
                pc.coalesce(
                    batch[field.name].cast(field.type), *(_widened(batch[name], field.type) for name in before[field.name])
                )
                if before[field.name]
                else batch[read_as[field.name]].cast(field.type)
                for field in schema
            ]
            return pa.RecordBatch.from_arrays(arrays, schema=schema)

        scan = ArrowScan(table.metadata, table.io, projected, where)

        def batches() -> Iterator[pa.RecordBatch]:
            for group in in_groups(tasks):
                for batch in scan.to_record_batches(group):
                    yield widened(batch)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _refuse_earlier(
        self, table: Table, tasks: Sequence[FileScanTask], columns: Sequence[str], where: BooleanExpression
    ) -> None:
        """Refuse to read rows as null whose value is in the column of an earlier type."""
        for column in columns:
            earlier = earlier_column(table.schema(), column)
            if earlier is None or earlier in columns:  # who reads both takes the row along as it is
                continue
            old = And(where, NotNull(term=Reference(earlier)), IsNull(term=Reference(column)))
            may = may_hold(table.schema(), old)
            suspects = [task for task in tasks if may(task.file)]
            scan = ArrowScan(table.metadata, table.io, table.schema().select(earlier), old)
            if any(batch.num_rows for group in in_groups(suspects) for batch in scan.to_record_batches(group)):
                model, name = table.name()
                types = (plain_schema(table.schema()).field(name).type for name in (earlier, column))
                raise SnapshotMissing(
                    f"{model}: rows of {name} have {column} as {' and not yet as '.join(map(str, types))}: these days must be "
                    f"built again; run {model}.load for them"
                )

    def sweep(self, model: str, table: str, older_than: datetime) -> int:
        """Remove the files of a table that neither a snapshot nor the log of its metadata names.

        Args:
            model: the model.
            table: the table.
            older_than: younger files are not removed.

        Returns:
            The number of removed files.
        """
        location = self.load(model, table).location()
        io_ = self.load(model, table).io
        if not isinstance(io_, PyArrowFileIO):
            return 0
        scheme, host, root = io_.parse_location(location, io_.properties)
        files = io_.fs_by_scheme(scheme, host)
        # Files are listed first, and the names are read after that. So a file that is committed in between is never removed.
        old = {
            info.path
            for info in files.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
            if info.is_file and info.mtime is not None and info.mtime < older_than
        }
        named = {io_.parse_location(path, io_.properties)[2] for path in _named_files(self.load(model, table))}
        for path in old - named:
            files.delete_file(path)
        return len(old - named)

    # --- what snapshots name, and expiring them at any age ------------------------------------------------

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
        may = may_hold(table.schema(), where)
        return [FileScanTask(file) for file in files if may(file)]

    def settle(self, model: str, table: str, *, base: int, branch: str) -> int:
        """Make a snapshot with the rows at the end of a branch, or of ``base``. It does not list files as removed.

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
        """Expire snapshots, and remove the branches and tags that point to them."""
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
        """Remove files. A file that no longer exists is no error.

        Returns:
            How many existed.
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
        # Last, so that an interrupted removal can be repeated.
        self._catalog.drop_table((model, table))


@dataclass(frozen=True)
class Holding:
    """What a snapshot names.

    Attributes:
        snapshot: its id.
        files: data files by path, including those that it lists as removed, because it still names the bounds of their values.
        lists: the files in which it names them.
    """

    snapshot: int
    files: Mapping[str, DataFile]
    lists: frozenset[str]


class _Transaction(MetadataOncePerUpdate, Transaction):
    pass


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
                # Entries of removed files are skipped: earlier snapshots name these files as long as they exist.
                yield from (
                    entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                )


def _begin_history(table: Table, transaction: Transaction) -> None:
    """Make a tagged empty snapshot to start branches from. A table without snapshots accepts only its main branch."""
    if EMPTY in table.metadata.refs:
        return
    with transaction.update_snapshot().fast_append() as append:
        pass
    ManageSnapshots(transaction).create_tag(append.snapshot_id, EMPTY).commit()


def point_main(transaction: Transaction, snapshot: int) -> None:
    """Let the main branch end at a snapshot. Readers other than Perennial read this branch."""
    main = transaction.table_metadata.refs.get(MAIN_BRANCH)
    if main is None or main.snapshot_id != snapshot:
        ManageSnapshots(transaction).set_current_snapshot(snapshot_id=snapshot)


def columns_of(schema: Schema, *, earlier: bool = False) -> list[str]:
    """The names of the columns, without those that keep values of another type.

    PyIceberg's own list also contains the elements of list columns.

    Args:
        schema: the table's schema.
        earlier: whether the columns are included that keep the values of a derived column. Whoever writes rows of a file
            to another file must take them along, see :func:`earlier_column`.
    """
    names = [field.name for field in schema.fields]
    kept = {narrow for name in names for narrow in narrower_columns(schema, name)}
    if not earlier:
        kept |= {before for name in names if (before := earlier_column(schema, name)) is not None}
    return [name for name in names if name not in kept]


def earlier_column(schema: Schema, column: str) -> str | None:
    """The column that keeps the values of a derived column from when it had another type; None if its type never changed.

    A row with a value there and none in the column itself was published before the change.
    """
    names = {field.name for field in schema.fields}
    return next((name for kind in _DERIVED if (name := f"_{kind}_{column}") in names), None)


def narrower_columns(schema: Schema, column: str) -> list[str]:
    """The columns that keep the values of a column from when its type was narrower; :meth:`Catalog.read` joins them."""
    names = {field.name for field in schema.fields}
    return [name for kind in _NARROWER if (name := f"_{kind}_{column}") in names]


def earlier_schemas(schema: Schema, today: pa.Schema) -> Iterator[pa.Schema]:
    """The schemas that rows of a table may have been published with, if some of its columns had narrower types then.

    Args:
        schema: the table's schema.
        today: columns of it, with their types of today.
    """
    kinds = {
        field.name: [
            kind for name, (kind, _) in _NARROWER.items() if f"_{name}_{field.name}" in narrower_columns(schema, field.name)
        ]
        for field in today
    }
    for types in product(*([field.type, *kinds[field.name]] for field in today)):
        yield pa.schema([pa.field(field.name, kind) for field, kind in zip(today, types, strict=True)])


#: The narrower types, by their names in ``model.yaml``, and the types that hold all of their values.
_NARROWER: dict[str, tuple[pa.DataType, tuple[pa.DataType, ...]]] = {
    "integer": (pa.int64(), (pa.float64(),)),
    "boolean": (pa.bool_(), (pa.int64(), pa.float64())),
    "date": (pa.date32(), (MOMENT,)),
}


def _derived_then(table: Table, snapshot: int | None) -> dict[str, str]:
    """The derived columns that had another type at a snapshot, each with the column that has their values today."""
    found = table.snapshot_by_id(snapshot) if snapshot is not None else None
    if found is None or found.schema_id is None:
        return {}
    today = {field.field_id: field.name for field in table.schema().fields}
    then = table.schemas()[found.schema_id]
    return {
        field.name: earlier
        for field in then.fields
        if (earlier := earlier_column(table.schema(), field.name)) is not None and today[field.field_id] == earlier
    }


#: The types that a derived column can change between, by their names in ``model.yaml``.
_DERIVED: dict[str, pa.DataType] = {"float": pa.float64(), "string": pa.string()}


def _derived_kind(of: pa.DataType) -> str | None:
    return next((name for name, kind in _DERIVED.items() if kind == of), None)


def _changed(table: Table, wanted: pa.Schema, derived: Collection[str]) -> dict[str, str]:
    """The columns whose type changes, each with the name of the type that it has.

    Raises:
        SpecError: published values may not fit.
    """
    present = plain_schema(table.schema())
    found: dict[str, str] = {}
    for field in wanted:
        if field.name not in present.names or (held := present.field(field.name).type) == field.type:
            continue
        kind = _narrower(held, field.type)
        if kind is None and field.name in derived:
            kind = _derived_kind(held)
        if kind is None:
            model, name = table.name()
            raise SpecError(
                f"{model}: column {field.name} of table {name} is of type {held} in the lake and {field.type} now, "
                f"and published values may not fit. Keep its type, add a column of another name (`sql: {field.name}` reads the "
                f"same) and ingest the past again to fill it; remove {field.name} once no version in use needs it"
            )
        found[field.name] = kind
    return found


def _narrower(held: pa.DataType, wanted: pa.DataType) -> str | None:
    """The name of the type that is held if the wanted type is wider; None if it is not."""
    return next((name for name, (kind, wider) in _NARROWER.items() if kind == held and wanted in wider), None)


def _widened(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_boolean(values.type) and pa.types.is_floating(wanted):
        values = values.cast(pa.int64())
    # An integer beyond 2**53 becomes the nearest float, as when it is ingested.
    return values.cast(wanted, safe=False)


def event_time_of(table: Table) -> str | None:
    """The event time of the table, as :meth:`Catalog.ensure` was last given it."""
    return table.properties.get(_EVENT_TIME)
