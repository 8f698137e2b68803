"""The lake: an interval is published as a whole or not at all, and read at the snapshots that the ledger names.

Iceberg commits one table at a time. To publish an interval of several tables at once, an attempt

1. claims the interval, which takes it from any earlier attempt of the same run;
2. writes its rows into new files;
3. makes, for each table, a snapshot on a branch of its own, from the snapshot that the ledger names now;
4. commits one row to the ledger: only if the claim is still its own, no later run has published an overlapping interval,
   and the ledger still names what the branches began from. If it has moved on, steps 3 and 4 are done again.

Before the fourth step nothing of it can be read, after it everything; readers never read "latest". Afterwards the main
branches follow, for Spark, Trino and other readers from outside. What an attempt that died has left is in nobody's way, and
:meth:`Lake.remove_orphans` removes it.

Tables are not partitioned: a file holds rows of one publication, so its own statistics tell a reader of a day which files
to open, and PyIceberg writes a stream to tables without partitions only. Partitions by month took as long to write (0.05 s
of processor time for a day of 3,000 rows, 0.65 s for 300,000 rows) and saved a reader of one day in ninety 0.05 s.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.update.snapshot import ExpireSnapshots, ManageSnapshots

from perennial.core.errors import Superseded
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake.catalog import EMPTY, Catalog, columns_of, event_time_of, point_main
from perennial.lake.data_files import Span, Written, digest, discard, time_bounds
from perennial.lake.data_files import known_by as _known_by
from perennial.ledger.records import Claim, Head, Publication
from perennial.ledger.store import Ledger

log = logging.getLogger(__name__)


_ATTEMPT = "attempt-"
_PIN = "pin-"


@dataclass(frozen=True)
class TableWrite:
    """What an interval of a table shall hold from now on.

    Attributes:
        data: gives the rows. Called once a publication; the reader is used up.
        event_time: the timestamp column that places a row in an interval: every row must lie in the interval that is
            published. None when the whole table is replaced.
        schema: the schema of the rows. Types of the lake: string, int64, double, bool, timestamp[us, tz=UTC], date32 and
            lists of those; wider and narrower ones are cast.
    """

    data: Callable[[], pa.RecordBatchReader]
    event_time: str | None
    schema: pa.Schema


@dataclass(frozen=True)
class _Prepared:
    """A table's new rows, in files, and what the staging of them has found out so far.

    Attributes:
        remainders: by data file, its rows outside the interval in files of their own; None if all its rows are outside.
    """

    write: TableWrite
    table: Table
    written: Written
    remainders: dict[str, list[DataFile] | None]


class Lake:
    """The tables of all models."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._catalog = Catalog(settings.catalog_url, settings.warehouse)

    # --- publishing --------------------------------------------------------------------------------------------------

    def publish(
        self,
        *,
        model: str,
        dataset: str,
        interval: Interval,
        tables: Mapping[str, TableWrite],
        order: int,
        run_id: str,
        inputs: Mapping[str, object],
    ) -> Publication:
        """Replace an interval of a dataset's tables, all at once.

        Publishing the same again leaves the same rows. Of runs whose intervals overlap, the one with the highest order
        wins, whichever ends first. A table without event time holds what was published for the interval that ends last:
        an interval of the past that is published again does not bring its old content back.

        Args:
            model: the model.
            dataset: ``tables``, ``features`` or ``predictions``.
            interval: what is replaced in tables with an event time.
            tables: by name, the new rows. Tables of the dataset that are not named stay as they are.
            order: from :meth:`perennial.ledger.store.Ledger.next_order`.
            run_id: the run, the same for all its attempts.
            inputs: what the rows were made from; kept with the publication.

        Raises:
            Superseded: another attempt of the run has taken over, or a later run has published an overlapping interval.
            SpecError: a column changed its type.
            ValueError: rows lie outside the interval, or a column has a type that the lake cannot keep.
        """
        claim = self._ledger.claim(model, dataset, interval, order=order, run_id=run_id)
        self._ledger.check(claim)
        prepared = {name: self._prepare(model, name, write, interval) for name, write in tables.items()}
        branches: dict[str, list[str]] = {name: [] for name in tables}
        try:
            publication = self._commit(claim, prepared, inputs, branches)
        except Superseded:
            self._leave(model, dataset, branches)
            raise
        # Attempts of the same run that died can never commit, and have left branches that begin alike.
        self._leave(model, dataset, {name: own and [f"{_ATTEMPT}{order}-"] for name, own in branches.items()})
        for name, own in branches.items():
            if not own:
                discard(prepared[name].table, prepared[name].written.files)
        told = ", ".join(f"{name} {rows:,} rows" for name, rows in publication.rows.items())
        log.info("published %s of %s: %s", dataset, interval, told)
        return publication

    def _commit(
        self, claim: Claim, prepared: Mapping[str, _Prepared], inputs: Mapping[str, object], branches: Mapping[str, list[str]]
    ) -> Publication:
        for trial in count():
            head = self._ledger.head(claim.model, claim.dataset)
            self._ledger.check(claim)
            snapshots, hashes, rows = dict(head.snapshots), {}, {}
            for name, ready in prepared.items():
                earlier = self._still_stands(claim, name, ready)
                if earlier is not None and name in head.snapshots:
                    hashes[name], rows[name] = earlier.hashes[name], earlier.rows[name]
                    continue
                branch = f"{_ATTEMPT}{claim.order}-{claim.token}-{trial}"
                branches[name].append(branch)
                snapshots[name] = self._stage(claim, name, ready, head, branch)
                hashes[name], rows[name] = ready.written.digest, ready.written.rows
            publication = self._ledger.commit(claim, base=head, snapshots=snapshots, hashes=hashes, rows=rows, inputs=inputs)
            if publication is not None:
                return publication
            log.info("%s of %s: others have published meanwhile; going on from there", claim.dataset, claim.interval)
        raise AssertionError("unreachable")

    def _prepare(self, model: str, name: str, write: TableWrite, interval: Interval) -> _Prepared:
        table = self._catalog.ensure(model, name, write.schema, write.event_time)

        def check(rows: pa.Table) -> None:
            if write.event_time is None:
                return
            moments = rows[write.event_time]
            bounds = pc.min_max(moments).as_py()
            if moments.null_count or bounds["min"] < interval.start or bounds["max"] >= interval.end:
                raise ValueError(
                    f"{model}: table {name} has rows whose {write.event_time} lies outside {interval} or is missing "
                    f"(from {bounds['min']} to {bounds['max']}, {moments.null_count} missing)"
                )

        with write.data() as reader:
            written = self._catalog.write(table, reader, digest_of=write.schema.names, check=check)
        return _Prepared(write, table, written, {})

    def _still_stands(self, claim: Claim, name: str, ready: _Prepared) -> Publication | None:
        """For a table that is replaced as a whole: the publication whose content stays, if one does."""
        if ready.write.event_time is not None:
            return None
        latest = self._ledger.latest(claim.model, claim.dataset, name)
        if latest is None:
            return None
        outranked = (latest.interval.end, latest.order) > (claim.interval.end, claim.order)
        return latest if outranked or latest.hashes[name] == ready.written.digest else None

    def _stage(self, claim: Claim, name: str, ready: _Prepared, head: Head, branch: str) -> int:
        base = head.snapshots.get(name)
        if base is None:
            base = ready.table.metadata.refs[EMPTY].snapshot_id
        event_time = ready.write.event_time
        span = None if event_time is None else Span.of(event_time, claim.interval)
        removed, kept = self._cut_out(ready.table, base, span, ready.remainders)
        return self._catalog.stage(
            claim.model,
            name,
            base=base,
            branch=branch,
            removed=removed,
            added=[*ready.written.files, *kept],
            summary={"perennial.interval": claim.interval.key, "perennial.run": claim.run_id},
        )

    def _cut_out(
        self, table: Table, snapshot: int, span: Span | None, remainders: dict[str, list[DataFile] | None]
    ) -> tuple[list[DataFile], list[DataFile]]:
        """The files to remove so that no row of the span is left, and new files with their other rows."""
        removed: list[DataFile] = []
        kept: list[DataFile] = []
        table = table.refresh()
        for task in self._catalog.files(table, snapshot, span.expression if span else AlwaysTrue()):
            if span is None or span.covers(task.file, table):
                removed.append(task.file)
                continue
            path = task.file.file_path
            if path not in remainders:
                remainders[path] = self._remainder(table, task, span)
            remainder = remainders[path]
            if remainder is not None:
                removed.append(task.file)
                kept += remainder
        return removed, kept

    def _remainder(self, table: Table, task: FileScanTask, span: Span) -> list[DataFile] | None:
        columns = columns_of(table.schema())
        with self._catalog.read(table, [task], columns=columns, where=AlwaysTrue()) as rows:
            outside = (batch for chunk in rows for batch in span.outside(pa.Table.from_batches([chunk])).to_batches())
            rest = self._catalog.write(table, outside)
        if rest.rows == task.file.record_count:
            discard(table, rest.files)
            return None
        return rest.files

    def _leave(self, model: str, dataset: str, branches: Mapping[str, Sequence[str]]) -> None:
        """Let main follow the ledger and drop the branches of attempts that are over, by the beginnings of their names.

        The interval is published, or not, whatever happens here; what fails is done by the next publication or by
        :meth:`remove_orphans`.
        """
        for name, own in branches.items():
            if not own:
                continue
            try:
                self._tidy(model, dataset, name, tuple(own))
            except Exception as error:
                log.warning("%s: the main branch of %s stays behind for now: %s", model, name, error)

    def follow_ledger(self, model: str) -> None:
        """Let the main branches end at what the ledger names, as after a restore, when they may be ahead of it."""
        for dataset in self._ledger.datasets(model):
            for name in self._ledger.head(model, dataset).snapshots:
                self._tidy(model, dataset, name, ())

    def _tidy(self, model: str, dataset: str, name: str, over: tuple[str, ...]) -> None:
        def change(table: Table, transaction: Transaction) -> None:
            # Asked for after the table was loaded: should main move in between, the commit fails and this is done again,
            # so main never ends at less than the ledger names.
            snapshot = self._ledger.head(model, dataset).snapshots.get(name)
            if snapshot is not None:
                point_main(transaction, snapshot)
            for branch in [ref for ref in table.metadata.refs if ref.startswith(over)]:
                ManageSnapshots(transaction).remove_branch(branch).commit()

        self._catalog.commit(model, name, change)

    # --- reading -----------------------------------------------------------------------------------------------------

    def scan(
        self,
        model: str,
        table: str,
        snapshot: int,
        *,
        columns: Sequence[str] | None = None,
        interval: Interval | None = None,
        event_time: str | None = None,
        known_by: datetime | None = None,
    ) -> pa.RecordBatchReader:
        """The rows of a table at a snapshot, as a stream in no particular order.

        Args:
            model: the model.
            table: the table.
            snapshot: a snapshot that the ledger names, or that is pinned.
            columns: which columns, in this order; by default all that the table had then. One that came later is empty.
            interval: only rows whose event time lies in it.
            event_time: the event time column; by default the one the table was published with.
            known_by: only rows that were known by this moment (``_known_at``).

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
            ValueError: the table has no such column.
        """
        found = self._catalog.load(model, table)
        where: BooleanExpression = AlwaysTrue()
        if interval is not None:
            column = event_time or event_time_of(found)
            if column is None:
                raise ValueError(f"{model}: table {table} has no event time to choose an interval by")
            where = And(where, Span.of(column, interval).expression)
        if known_by is not None:
            where = And(where, _known_by(known_by))
        tasks = self._catalog.files(found, snapshot, where)
        if columns is None:
            columns = self._catalog.columns(found, snapshot)
        if unknown := [column for column in columns if column not in columns_of(found.schema())]:
            raise ValueError(f"{model}: table {table} has no column {', '.join(unknown)}")
        return self._catalog.read(found, tasks, columns=columns, where=where)

    def columns(self, model: str, table: str, snapshot: int) -> list[str]:
        """The columns that a table had at a snapshot.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
        """
        return self._catalog.columns(self._catalog.load(model, table), snapshot)

    def missing(self, model: str, table: str, snapshot: int) -> list[str]:
        """Files that a snapshot names and that are not there, or are of another size; for people.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
        """
        return self._catalog.missing(self._catalog.load(model, table), snapshot)

    def holds(self, published: Publication, table: str, snapshot: int) -> bool:
        """Whether a snapshot holds the very rows for a publication's interval that were published, by their content hash.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
        """
        timed = event_time_of(self._catalog.load(published.model, table)) is not None

        def rows() -> pa.RecordBatchReader:
            return self.scan(published.model, table, snapshot, interval=published.interval if timed else None)

        with rows() as reader:
            columns = reader.schema.names
            if digest(reader, columns) == published.hashes[table]:
                return True
        # Columns that the table had before, and rows published later have not, are no part of what was published.
        with rows() as reader:
            given = {name for batch in reader for name in columns if batch[name].null_count < len(batch)}
        with rows() as reader:
            return digest(reader, [name for name in columns if name in given]) == published.hashes[table]

    def files(self, model: str, table: str, snapshot: int, interval: Interval) -> list[str]:
        """The Parquet files that hold an interval's rows at a snapshot, and others too: for engines that read files themselves.

        Args:
            model: the model.
            table: a table with event time.
            snapshot: a snapshot that the ledger names, or that is pinned.
            interval: whose event times lie in it.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
            ValueError: the table has no event time.
        """
        found = self._catalog.load(model, table)
        column = event_time_of(found)
        if column is None:
            raise ValueError(f"{model}: table {table} has no event time to choose an interval by")
        return [task.file.file_path for task in self._catalog.files(found, snapshot, Span.of(column, interval).expression)]

    # --- keeping -----------------------------------------------------------------------------------------------------

    def pin(self, model: str, snapshots: Mapping[str, int], name: str) -> None:
        """Keep snapshots whatever their age, until :meth:`unpin`.

        Args:
            model: the model.
            snapshots: by table. One that was pinned under the same name before is let go.
            name: of the pin, such as ``version-12``.

        Raises:
            SnapshotMissing: one of them is not in the lake.
        """
        for table, snapshot in snapshots.items():
            self._catalog.require(self._catalog.load(model, table), snapshot)

            def change(found: Table, transaction: Transaction, snapshot: int = snapshot) -> None:
                ref = found.metadata.refs.get(f"{_PIN}{name}")
                if ref is None or ref.snapshot_id != snapshot:
                    ManageSnapshots(transaction).create_tag(snapshot, f"{_PIN}{name}").commit()

            self._catalog.commit(model, table, change)

    def unpin(self, model: str, name: str) -> None:
        """Undo :meth:`pin`; nothing happens if nothing is pinned under the name."""
        for table in self._catalog.tables(model):
            if f"{_PIN}{name}" in self._catalog.load(model, table).metadata.refs:
                self._catalog.commit(
                    model, table, lambda _, transaction: ManageSnapshots(transaction).remove_tag(f"{_PIN}{name}").commit()
                )

    def pins(self, model: str) -> dict[str, dict[str, int]]:
        """What is pinned: by the pin's name, the snapshots by table."""
        found: dict[str, dict[str, int]] = {}
        for table in self._catalog.tables(model):
            for ref, target in self._catalog.load(model, table).metadata.refs.items():
                if ref.startswith(_PIN):
                    found.setdefault(ref.removeprefix(_PIN), {})[table] = target.snapshot_id
        return found

    # --- maintenance -------------------------------------------------------------------------------------------------

    def compact(self, model: str, *, many: int = 16, small: int = 16 * 1024**2) -> dict[str, int]:
        """Join small files, in the order of their time, so that a scan opens few. Readers notice nothing.

        Args:
            model: the model.
            many: tables with fewer small files than this are left alone.
            small: bytes below which a file is small.

        Returns:
            By table, how many files were joined.
        """
        joined: dict[str, int] = {}
        for dataset in self._ledger.datasets(model):
            for name in self._ledger.head(model, dataset).snapshots:

                def join(table: Table, snapshot: int) -> tuple[list[DataFile], list[DataFile]]:
                    tasks = [t for t in self._catalog.files(table, snapshot, AlwaysTrue()) if t.file.file_size_in_bytes < small]
                    if len(tasks) < many:
                        return [], []
                    tasks.sort(key=lambda task: _first_moment(task.file, table))
                    columns = columns_of(table.schema())
                    with self._catalog.read(table, tasks, columns=columns, where=AlwaysTrue()) as rows:
                        written = self._catalog.write(table, rows)
                    return [task.file for task in tasks], written.files

                if removed := self._rearrange(model, dataset, name, "compact", join):
                    joined[name] = removed
        return joined

    def forget(self, model: str, dataset: str, table: str, before: datetime) -> int:
        """Drop rows whose event time lies before a moment, as when quarantined rows have been kept long enough.

        Snapshots that are pinned or young still hold them.

        Returns:
            How many data files were removed or written anew.
        """

        def drop(found: Table, snapshot: int) -> tuple[list[DataFile], list[DataFile]]:
            event_time = event_time_of(found)
            if event_time is None:
                raise ValueError(f"{model}: table {table} has no event time to tell old rows by")
            return self._cut_out(found, snapshot, Span(event_time, None, before), {})

        return self._rearrange(model, dataset, table, "forget", drop)

    def _rearrange(
        self,
        model: str,
        dataset: str,
        name: str,
        purpose: str,
        plan: Callable[[Table, int], tuple[list[DataFile], list[DataFile]]],
    ) -> int:
        """Send readers to a snapshot with other files; a publication that comes between goes first.

        Returns:
            How many files were removed; 0 if nothing was to be done or publications kept coming between.
        """
        for _ in range(3):
            head = self._ledger.head(model, dataset)
            if name not in head.snapshots:
                return 0
            table = self._catalog.load(model, name)
            base = head.snapshots[name]
            removed, added = plan(table, base)
            if not removed:
                return 0
            branch = f"{_ATTEMPT}{purpose}-{uuid.uuid4()}"
            snapshot = self._catalog.stage(
                model, name, base=base, branch=branch, removed=removed, added=added, summary={"perennial.purpose": purpose}
            )
            moved = self._ledger.move(model, dataset, base=head, snapshots={**head.snapshots, name: snapshot})
            self._leave(model, dataset, {name: [branch]})
            if moved:
                return len(removed)
        log.info("%s: %s of %s is left for another time: it is being published", model, purpose, name)
        return 0

    def expire(self, model: str, older_than: datetime) -> int:
        """Let snapshots go, except those that are pinned, on a branch, or that readers were sent to since ``older_than``.

        Their files are removed by :meth:`remove_orphans`.

        Returns:
            How many snapshots were let go.
        """
        named: dict[str, set[int]] = {}
        for dataset in self._ledger.datasets(model):
            for table, snapshots in self._ledger.snapshots_since(model, dataset, older_than).items():
                named.setdefault(table, set()).update(snapshots)
        expired = 0
        for name in self._catalog.tables(model):
            keep = named.get(name, set())

            def change(table: Table, transaction: Transaction, keep: set[int] = keep) -> int:
                kept = keep | {ref.snapshot_id for ref in table.metadata.refs.values()}
                old = [
                    snapshot.snapshot_id
                    for snapshot in table.snapshots()
                    if snapshot.timestamp_ms < older_than.timestamp() * 1000 and snapshot.snapshot_id not in kept
                ]
                if old:
                    ExpireSnapshots(transaction).by_ids(old).commit()
                return len(old)

            expired += self._catalog.commit(model, name, change)[1]
        return expired

    def remove_orphans(self, model: str, older_than: datetime) -> int:
        """Remove what attempts that died have left: branches, and files that no snapshot names.

        Args:
            model: the model.
            older_than: what is younger is left alone, since it may belong to an attempt that is at work: a day at least.

        Returns:
            How many files were removed.
        """
        # An attempt that has slept all this time may wake up, and must not publish what is about to be removed.
        self._ledger.revoke_claims(model, older_than)
        dataset_of = {
            table: dataset for dataset in self._ledger.datasets(model) for table in self._ledger.head(model, dataset).snapshots
        }
        removed = 0
        for name in self._catalog.tables(model):
            table = self._catalog.load(model, name)
            stale = tuple(
                branch
                for branch, ref in table.metadata.refs.items()
                if branch.startswith(_ATTEMPT)
                and (snapshot := table.snapshot_by_id(ref.snapshot_id)) is not None
                and snapshot.timestamp_ms < older_than.timestamp() * 1000
            )
            self._tidy(model, dataset_of.get(name, ""), name, stale)
            removed += self._catalog.sweep(model, name, older_than)
        return removed


def _first_moment(file: DataFile, table: Table) -> tuple[datetime, str]:
    event_time = event_time_of(table)
    bounds = time_bounds(file, table, event_time) if event_time else None
    return (bounds[0] if bounds else datetime.min.replace(tzinfo=UTC), file.file_path)
