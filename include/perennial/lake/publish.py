"""The lake: publish an interval as a whole or not at all, and read it at the snapshots that the ledger names.

Iceberg commits one table at a time. To publish an interval of several tables at once, an attempt

1. claims the interval, which takes it from any earlier attempt of the same run;
2. writes its rows to new files;
3. makes a snapshot per table on a new branch, from the snapshot that the ledger names now;
4. commits one row to the ledger. It does so only if it still holds the claim, no later run has published an overlapping
   interval, and the ledger still names the snapshots that the branches start from. If others have published in between,
   steps 3 and 4 are repeated.

Before step 4 none of its rows can be read. After step 4 all of them can. Readers never read "latest". The main branches
follow later, for Spark, Trino and other external readers. The remains of an attempt that died do no harm.
:meth:`Lake.remove_orphans` removes them.

Tables are not partitioned. A file holds the rows of one publication, so its statistics tell a reader of one day which files
to open. PyIceberg also writes streams only to tables without partitions. Partitions by month took as long to write (0.05 s of
processor time for a day of 3,000 rows, 0.65 s for 300,000 rows), and saved a reader of one day out of ninety 0.05 s.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import AlwaysFalse, AlwaysTrue, And, BooleanExpression, IsNull, NotNull, Or, Reference
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.update.snapshot import ExpireSnapshots, ManageSnapshots

from perennial.core.errors import Superseded
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake.catalog import EMPTY, Catalog, columns_of, earlier_schemas, event_time_of, narrower_columns, point_main
from perennial.lake.data_files import Span, Written, digest, discard, time_bounds
from perennial.lake.data_files import known_by as _known_by
from perennial.ledger.records import Claim, Head, Publication
from perennial.ledger.store import Ledger

log = logging.getLogger(__name__)


_ATTEMPT = "attempt-"
_PIN = "pin-"


@dataclass(frozen=True)
class TableWrite:
    """The new rows of a table for an interval.

    Attributes:
        data: gives the rows. It is called once per publication, and its reader is read to the end.
        event_time: the timestamp column that places a row in an interval. Every row must lie in the published interval. None
            if the whole table is replaced.
        schema: the schema of the rows. The types of the lake are string, int64, double, bool, timestamp[us, tz=UTC], date32
            and lists of these. Wider and narrower types are cast.
        derived: the columns that are computed, so that they can be computed again if their type changes.
    """

    data: Callable[[], pa.RecordBatchReader]
    event_time: str | None
    schema: pa.Schema
    derived: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Prepared:
    """A table's new rows in files, and what staging has found so far.

    Attributes:
        write: the new rows.
        table: the table.
        written: the files of the new rows.
        remainders: by data file, new files with its rows outside the interval; None if all its rows are outside.
    """

    write: TableWrite
    table: Table
    written: Written
    remainders: dict[str, list[DataFile] | None]


class Lake:
    """The tables of all models.

    Args:
        settings: of the deployment: catalog and warehouse.
        ledger: says what is published.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._catalog = Catalog(settings.catalog_url, settings.warehouse, read_only=settings.read_only)

    @property
    def ledger(self) -> Ledger:
        """What says which of its snapshots are published."""
        return self._ledger

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
        since: int | None = None,
    ) -> Publication:
        """Replace an interval of all tables of a dataset at once.

        Publishing the same rows again changes nothing. Of runs with overlapping intervals, the run with the highest order
        wins, in whatever order they end. A table without event time holds the rows of the interval that ends last. So
        publishing an earlier interval again does not bring its old rows back.

        Args:
            model: the model.
            dataset: ``tables``, ``features`` or ``predictions``.
            interval: the interval to replace in tables with an event time.
            tables: by name, the new rows. Other tables of the dataset stay unchanged.
            order: from :meth:`perennial.ledger.store.Ledger.next_order`.
            run_id: the run. It is the same for all attempts of the run.
            inputs: what the rows were made from. It is kept with the publication.
            since: id of the publication of the interval that the rows were made from, if they must not replace a newer one;
                0 if there was none.

        Returns:
            The publication, as the ledger keeps it.

        Raises:
            Superseded: another attempt of the run has taken over, a later run has published an overlapping interval, or any
                run has done so after ``since``.
            SpecError: a column has another type than before.
            ValueError: rows lie outside the interval, or a column has a type that the lake cannot keep.
        """
        claim = self._ledger.claim(model, dataset, interval, order=order, run_id=run_id)
        self._ledger.check(claim)
        prepared = {name: self._prepare(model, name, write, interval) for name, write in tables.items()}
        branches: dict[str, list[str]] = {name: [] for name in tables}
        try:
            publication = self._commit(claim, prepared, inputs, branches, since)
        except Superseded:
            self._leave(model, dataset, branches)
            raise
        # Earlier attempts of the run can no longer commit. Their branches have names with the same beginning.
        self._leave(model, dataset, {name: own and [f"{_ATTEMPT}{order}-"] for name, own in branches.items()})
        for name, own in branches.items():
            if not own:
                discard(prepared[name].table, prepared[name].written.files)
        told = ", ".join(f"{name} {rows:,} rows" for name, rows in publication.rows.items())
        log.info("published %s of %s: %s", dataset, interval, told)
        return publication

    def _commit(
        self,
        claim: Claim,
        prepared: Mapping[str, _Prepared],
        inputs: Mapping[str, object],
        branches: Mapping[str, list[str]],
        since: int | None,
    ) -> Publication:
        for trial in count():
            head = self._ledger.head(claim.model, claim.dataset)
            self._ledger.check(claim)
            self._check_since(claim, since)
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
            log.info("%s of %s: another run has published in between; staging again from there", claim.dataset, claim.interval)
        raise AssertionError("unreachable")

    def _check_since(self, claim: Claim, since: int | None) -> None:
        """Refuse rows that were merged with an older publication. The ledger commits only if its head has not moved since."""
        if since is None:
            return
        made = self._ledger.publications(claim.model, claim.dataset, claim.interval)
        if made and (newer := made[-1]).id > since:
            raise Superseded(
                f"{claim.model}: {claim.dataset} of {claim.interval}: run {newer.run_id} has published it after run "
                f"{claim.run_id} had read it; run the task again"
            )

    def _prepare(self, model: str, name: str, write: TableWrite, interval: Interval) -> _Prepared:
        table = self._catalog.ensure(model, name, write.schema, write.event_time, derived=write.derived)

        def check(rows: pa.Table) -> None:
            if write.event_time is None:
                return
            moments = rows[write.event_time]
            bounds = pc.min_max(moments).as_py()
            if moments.null_count or bounds["min"] < interval.start or bounds["max"] >= interval.end:
                raise ValueError(
                    f"{model}: table {name} has rows whose {write.event_time} is outside {interval} or is missing "
                    f"(from {bounds['min']} to {bounds['max']}, {moments.null_count} missing)"
                )

        with write.data() as reader:
            written = self._catalog.write(table, reader, digest_of=write.schema.names, check=check)
        return _Prepared(write, table, written, {})

    def _still_stands(self, claim: Claim, name: str, ready: _Prepared) -> Publication | None:
        """The publication whose rows stay, for a table that is replaced as a whole; None if the new rows replace them."""
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
        """The files to remove so that no row of the span remains, and new files with the other rows of these files."""
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
        columns = columns_of(table.schema(), earlier=True)
        with self._catalog.read(table, [task], columns=columns, where=AlwaysTrue()) as rows:
            outside = (batch for chunk in rows for batch in span.outside(pa.Table.from_batches([chunk])).to_batches())
            rest = self._catalog.write(table, outside)
        if rest.rows == task.file.record_count:
            discard(table, rest.files)
            return None
        return rest.files

    def _leave(self, model: str, dataset: str, branches: Mapping[str, Sequence[str]]) -> None:
        """Let main follow the ledger, and remove the branches of finished attempts, by the beginnings of their names.

        An error here does not change whether the interval is published. The next publication or :meth:`remove_orphans` does
        what failed.
        """
        for name, own in branches.items():
            if not own:
                continue
            try:
                self._tidy(model, dataset, name, tuple(own))
            except Exception as error:
                log.warning("%s: the main branch of %s could not follow yet: %s", model, name, error)

    def follow_ledger(self, model: str) -> None:
        """Let the main branches end at the snapshots that the ledger names. After a restore they may be ahead of them."""
        for dataset in self._ledger.datasets(model):
            for name in self._ledger.head(model, dataset).snapshots:
                self._tidy(model, dataset, name, ())

    def _tidy(self, model: str, dataset: str, name: str, over: tuple[str, ...]) -> None:
        def change(table: Table, transaction: Transaction) -> None:
            # The ledger is read after the table was loaded. If main moves in between, the commit fails and is repeated. So
            # main never falls behind the ledger.
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
            columns: columns to read, in this order; by default all that the table had then. A column that was added later
                is null.
            interval: only rows whose event time lies in it.
            event_time: the event time column; by default the column that the table was last published with.
            known_by: only rows that were known by this moment (``_known_at``).

        Raises:
            SnapshotMissing: there is no such table, the snapshot has expired, or some of the rows were published before a
                derived column got its present type.
            ValueError: the table has no such column.
        """
        found = self._catalog.load(model, table)
        self._catalog.require(found, snapshot)
        where: BooleanExpression = AlwaysTrue()
        if interval is not None:
            column = event_time or event_time_of(found)
            if column is None:
                raise ValueError(f"{model}: table {table} has no event time, so no interval can be chosen")
            where = And(where, Span.of(column, interval).expression)
        if known_by is not None:
            where = And(where, _known_by(known_by))
        if columns is None:
            columns = self._catalog.columns(found, snapshot)
        needed = [*columns, *([event_time] if interval is not None and event_time is not None else [])]
        if unknown := [column for column in dict.fromkeys(needed) if column not in columns_of(found.schema())]:
            raise ValueError(f"{model}: table {table} has no column {', '.join(unknown)}")
        tasks = self._catalog.files(found, snapshot, where)
        return self._catalog.read(found, tasks, columns=columns, where=where, snapshot=snapshot)

    def without_values(
        self,
        model: str,
        table: str,
        snapshot: int,
        columns: Mapping[str, str | None],
        *,
        interval: Interval | None = None,
        event_time: str | None = None,
    ) -> dict[str, list[Interval]]:
        """The days with rows that have no value in a column.

        Args:
            model: the model.
            table: the table.
            snapshot: a snapshot that the ledger names, or that is pinned.
            columns: the columns. A column may name another one: then only rows count that have a value in the other one. If
                the table lacks the column, no row has a value in it.
            interval: only rows whose event time lies in it.
            event_time: the event time column. None if the table has none; then ``interval`` must be None.

        Returns:
            By column, the UTC days, oldest first. A column without such rows is absent. Of a table without event time there
            are no days: the list is empty.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
        """
        found = self._catalog.load(model, table)
        present = columns_of(found.schema())
        if event_time is not None and event_time not in present:
            # A new event time, which no row has yet. Rows are placed by the one that they were published with.
            event_time = event_time_of(found)
        span = Span.of(event_time, interval).expression if event_time and interval else AlwaysTrue()

        def held(column: str) -> list[str]:
            return [column, *narrower_columns(found.schema(), column)] if column in present else []

        def lacking(column: str, other: str | None) -> BooleanExpression:
            without: BooleanExpression = AlwaysTrue()
            for name in held(column):
                without = And(without, IsNull(term=Reference(name)))
            having: BooleanExpression = AlwaysFalse()
            for name in held(other) if other is not None else ():
                having = Or(having, NotNull(term=Reference(name)))
            return without if other is None else And(without, having)

        conditions = {column: lacking(column, other) for column, other in columns.items() if other is None or other in present}
        # The statistics of files say where nothing is missing. Usually that is everywhere.
        anywhere: BooleanExpression = AlwaysFalse()
        for condition in conditions.values():
            anywhere = Or(anywhere, condition)
        if not self._catalog.files(found, snapshot, And(span, anywhere)):
            return {}
        days: dict[str, list[Interval]] = {}
        looked_at = [event_time or present[0]]
        for column, condition in conditions.items():
            where = And(span, condition)
            tasks = self._catalog.files(found, snapshot, where)
            moments: set[datetime | None] = set()
            with self._catalog.read(found, tasks, columns=looked_at, where=where) as rows:
                for batch in rows:
                    if event_time is not None:
                        moments.update(pc.unique(pc.floor_temporal(batch[event_time], unit="day")).to_pylist())
                    elif batch.num_rows:
                        moments.add(None)
            if moments:
                days[column] = [Interval.day(moment) for moment in sorted(filter(None, moments))]
        return days

    def columns(self, model: str, table: str, snapshot: int) -> list[str]:
        """The columns that a table had at a snapshot.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
        """
        return self._catalog.columns(self._catalog.load(model, table), snapshot)

    def check_types(self, model: str, table: str, schema: pa.Schema, *, derived: Collection[str] = ()) -> list[str]:
        """Whether rows of this schema can be published; the derived columns that begin anew, since their type changes.

        Raises:
            SpecError: they cannot: a column has another type, and published values may not fit.
        """
        return self._catalog.check_types(model, table, schema, derived=derived)

    def missing(self, model: str, table: str, snapshot: int) -> list[str]:
        """The files of a snapshot that are missing or have another size, as texts for people.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
        """
        return self._catalog.missing(self._catalog.load(model, table), snapshot)

    def holds(self, published: Publication, table: str, snapshot: int) -> bool:
        """Whether a snapshot still holds exactly the rows that were published for an interval, by their content hash.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
        """
        found = self._catalog.load(published.model, table)
        timed = event_time_of(found) is not None

        def rows() -> pa.RecordBatchReader:
            return self.scan(published.model, table, snapshot, interval=published.interval if timed else None)

        # The hash covers only the columns that were published. So columns of the table that are all null may be left out.
        with rows() as reader:
            today = reader.schema
            given = {name for batch in reader for name in today.names if batch[name].null_count < len(batch)}
        for schema in earlier_schemas(found.schema(), today):
            for columns in (schema.names, [name for name in schema.names if name in given]):
                with rows() as reader, suppress(pa.ArrowInvalid):  # values that do not fit were not published with this type
                    if digest(reader.cast(schema), columns) == published.hashes[table]:
                        return True
        return False

    def files(self, model: str, table: str, snapshot: int, interval: Interval) -> list[str]:
        """The Parquet files with an interval's rows at a snapshot, for engines that read files. They may hold other rows too.

        Args:
            model: the model.
            table: a table with event time.
            snapshot: a snapshot that the ledger names, or that is pinned.
            interval: the interval of event times.

        Raises:
            SnapshotMissing: there is no such table, or the snapshot has expired.
            ValueError: the table has no event time.
        """
        found = self._catalog.load(model, table)
        column = event_time_of(found)
        if column is None:
            raise ValueError(f"{model}: table {table} has no event time, so no interval can be chosen")
        return [task.file.file_path for task in self._catalog.files(found, snapshot, Span.of(column, interval).expression)]

    # --- keeping -----------------------------------------------------------------------------------------------------

    def pin(self, model: str, snapshots: Mapping[str, int], name: str) -> None:
        """Keep snapshots at any age, until :meth:`unpin`.

        Args:
            model: the model.
            snapshots: by table. A snapshot that was pinned under the same name before is no longer pinned.
            name: name of the pin, such as ``version-12``.

        Raises:
            SnapshotMissing: a snapshot is not in the lake.
        """
        for table, snapshot in snapshots.items():
            self._catalog.require(self._catalog.load(model, table), snapshot)

            def change(found: Table, transaction: Transaction, snapshot: int = snapshot) -> None:
                ref = found.metadata.refs.get(f"{_PIN}{name}")
                if ref is None or ref.snapshot_id != snapshot:
                    ManageSnapshots(transaction).create_tag(snapshot, f"{_PIN}{name}").commit()

            self._catalog.commit(model, table, change)

    def unpin(self, model: str, name: str) -> None:
        """Undo :meth:`pin`. It does nothing if there is no pin of this name."""
        for table in self._catalog.tables(model):
            if f"{_PIN}{name}" in self._catalog.load(model, table).metadata.refs:
                self._catalog.commit(
                    model, table, lambda _, transaction: ManageSnapshots(transaction).remove_tag(f"{_PIN}{name}").commit()
                )

    def pins(self, model: str) -> dict[str, dict[str, int]]:
        """The pinned snapshots by table, by the name of the pin."""
        found: dict[str, dict[str, int]] = {}
        for table in self._catalog.tables(model):
            for ref, target in self._catalog.load(model, table).metadata.refs.items():
                if ref.startswith(_PIN):
                    found.setdefault(ref.removeprefix(_PIN), {})[table] = target.snapshot_id
        return found

    # --- maintenance -------------------------------------------------------------------------------------------------

    def compact(self, model: str, *, many: int = 16, small: int = 16 * 1024**2) -> dict[str, int]:
        """Join small files in the order of time, so that a scan opens fewer files. The rows stay the same.

        Args:
            model: the model.
            many: tables with fewer small files than this are not changed.
            small: a file of fewer bytes than this is small.

        Returns:
            By table, the number of files that were joined.
        """
        joined: dict[str, int] = {}
        for dataset in self._ledger.datasets(model):
            for name in self._ledger.head(model, dataset).snapshots:

                def join(table: Table, snapshot: int) -> tuple[list[DataFile], list[DataFile]]:
                    tasks = [t for t in self._catalog.files(table, snapshot, AlwaysTrue()) if t.file.file_size_in_bytes < small]
                    if len(tasks) < many:
                        return [], []
                    tasks.sort(key=lambda task: _first_moment(task.file, table))
                    columns = columns_of(table.schema(), earlier=True)
                    with self._catalog.read(table, tasks, columns=columns, where=AlwaysTrue()) as rows:
                        written = self._catalog.write(table, rows)
                    return [task.file for task in tasks], written.files

                if removed := self._rearrange(model, dataset, name, "compact", join):
                    joined[name] = removed
        return joined

    def forget(self, model: str, dataset: str, table: str, before: datetime) -> int:
        """Delete rows whose event time lies before a moment. It ends the retention of quarantined rows, for example.

        Pinned snapshots and recent snapshots still hold these rows.

        Args:
            model: the model.
            dataset: the dataset of the table.
            table: the table.
            before: the moment.

        Returns:
            The number of data files that were removed or rewritten.
        """

        def drop(found: Table, snapshot: int) -> tuple[list[DataFile], list[DataFile]]:
            event_time = event_time_of(found)
            if event_time is None:
                raise ValueError(f"{model}: table {table} has no event time, so its old rows are unknown")
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
        """Replace files of a table by others with the same or fewer rows. A publication in between takes precedence.

        Args:
            model: the model.
            dataset: the dataset of the table.
            name: name of the table.
            purpose: ``compact`` or ``forget``, for names and logs.
            plan: takes the table and its snapshot, and gives the files to remove and the files to add.

        Returns:
            The number of removed files; 0 if there was nothing to do, or if other runs published again and again.
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
        log.info("%s: %s of %s is postponed: the table is being published", model, purpose, name)
        return 0

    def expire(self, model: str, older_than: datetime) -> int:
        """Expire old snapshots. Kept are pinned ones, heads of branches, and those that the ledger named since ``older_than``.

        :meth:`remove_orphans` removes their files.

        Args:
            model: the model.
            older_than: younger snapshots are kept.

        Returns:
            The number of expired snapshots.
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
        """Remove the remains of attempts that died: branches, and files that no snapshot names.

        Args:
            model: the model.
            older_than: younger branches and files are kept, since they may belong to a running attempt. It should be at
                least a day ago.

        Returns:
            The number of removed files.
        """
        # An old attempt may still wake up. It must not publish files that are removed here, so it loses its claim.
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
