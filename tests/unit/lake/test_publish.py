"""What readers of the lake see; on PostgreSQL as well where the databases have a part in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from perennial.core.errors import SnapshotMissing, SpecError, Superseded
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake import data_files
from perennial.lake.catalog import Catalog
from perennial.lake.data_files import digest
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger

MODEL = "flight_delay"
DAY = Interval.day("2013-04-01")
NEXT_DAY = Interval.day("2013-04-02")
TWO_DAYS = Interval.of("2013-04-01", "2013-04-03")

MOMENT = pa.timestamp("us", tz="UTC")
FLIGHTS = pa.schema([("flight", pa.string()), ("departure", MOMENT), ("source", pa.string()), ("_known_at", MOMENT)])
FLEET = pa.schema([("tailnum", pa.string()), ("source", pa.string())])


def flights(interval: Interval, source: str, per_day: int = 3) -> pa.Table:
    """``per_day`` rows for each day, spread over it, that tell where they come from."""
    moments = [day.start + timedelta(hours=24 * n / per_day) for day in interval.days() for n in range(per_day)]
    names = [f"{moment:%m-%d %H:%M}" for moment in moments]
    columns = [names, moments, [source] * len(names), moments]
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, FLIGHTS, strict=True)], schema=FLIGHTS)


def fleet(source: str) -> pa.Table:
    return pa.table({"tailnum": ["N1", "N2"], "source": [source] * 2}, schema=FLEET)


def write(table: pa.Table, event_time: str | None = "departure") -> TableWrite:
    return TableWrite(table.to_reader, event_time, table.schema)


@dataclass
class Publisher:
    """Publishes as the stages do."""

    settings: Settings
    ledger: Ledger
    lake: Lake
    model: str = MODEL

    def order(self, interval: Interval, run: str) -> int:
        return self.ledger.next_order(self.model, "tables", interval, run)

    def publish(self, interval: Interval, run: str, order: int | None = None, **tables: TableWrite) -> Publication:
        return self.lake.publish(
            model=self.model,
            dataset="tables",
            interval=interval,
            tables=tables or {"flights": write(flights(interval, run)), "fleet": write(fleet(run), None)},
            order=order or self.order(interval, run),
            run_id=run,
            inputs={"run": run},
        )

    def rows(self, table: str = "flights", **choice: Any) -> list[dict[str, Any]]:
        """What a reader reads now, in the order of the first column."""
        published = self.ledger.published(self.model, "tables")
        if published is None or table not in published.snapshots:
            return []
        found = self.lake.scan(self.model, table, published.snapshots[table], **choice).read_all()
        rows: list[dict[str, Any]] = found.sort_by(found.schema.names[0]).to_pylist()
        return rows

    def sources(self) -> dict[date, set[str]]:
        """Which runs the flights of each day come from; a day whose rows are not all there once fails."""
        found: dict[date, list[str]] = {}
        for row in self.rows():
            found.setdefault(row["departure"].date(), []).append(row["source"])
        assert {len(sources) for sources in found.values()} <= {3}
        return {day: set(sources) for day, sources in found.items()}

    def files(self, table: str = "flights") -> int:
        """How many data files a reader opens."""
        published = self.ledger.published(self.model, "tables")
        assert published is not None
        found = catalog(self.settings).load(self.model, table)
        return len(list(found.scan(snapshot_id=published.snapshots[table]).plan_files()))


def catalog(settings: Settings) -> Catalog:
    return Catalog(settings.catalog_url, settings.warehouse)


def publisher_with(settings: Settings) -> Publisher:
    ledger = Ledger(settings.database_url)
    ledger.migrate()
    return Publisher(settings, ledger, Lake(settings, ledger))


@pytest.fixture
def publisher(settings: Settings) -> Publisher:
    return publisher_with(settings)


@pytest.fixture
def publisher_on_each_database(settings_on_each_database: Settings) -> Publisher:
    return publisher_with(settings_on_each_database)


# --- publishing ------------------------------------------------------------------------------------------------------


def test_published_rows_are_read_at_the_ledgers_snapshots(publisher_on_each_database: Publisher) -> None:
    publisher = publisher_on_each_database
    publication = publisher.publish(DAY, "a")
    assert publication == publisher.ledger.published(MODEL, "tables")
    assert publication.rows == {"flights": 3, "fleet": 2}
    assert publication.inputs == {"run": "a"}
    assert publisher.rows() == flights(DAY, "a").to_pylist()
    assert publisher.rows("fleet") == fleet("a").to_pylist()


def test_interval_is_replaced_and_its_neighbours_stay(publisher_on_each_database: Publisher) -> None:
    publisher = publisher_on_each_database
    publisher.publish(TWO_DAYS, "range")
    publisher.publish(DAY, "day")
    assert publisher.sources() == {date(2013, 4, 1): {"day"}, date(2013, 4, 2): {"range"}}
    publisher.publish(TWO_DAYS, "range-again")
    assert publisher.sources() == {date(2013, 4, 1): {"range-again"}, date(2013, 4, 2): {"range-again"}}


def test_interval_published_without_rows_is_empty(publisher: Publisher) -> None:
    publisher.publish(TWO_DAYS, "range")
    empty = publisher.publish(DAY, "nothing", flights=write(flights(DAY, "nothing", per_day=0)))
    assert empty.rows == {"flights": 0}
    assert publisher.sources() == {date(2013, 4, 2): {"range"}}
    assert publisher.rows("fleet") == fleet("range").to_pylist()


def test_bounds_of_an_interval_belong_to_the_day_they_begin(publisher: Publisher) -> None:
    last = pa.Table.from_pylist(
        [{"flight": "last", "departure": DAY.end - timedelta(microseconds=1), "source": "a"}], schema=FLIGHTS
    )
    publisher.publish(DAY, "a", flights=write(last))
    publisher.publish(NEXT_DAY, "b")
    publisher.publish(NEXT_DAY, "c")
    assert [row["flight"] for row in publisher.rows() if row["source"] == "a"] == ["last"]
    assert len(publisher.rows(interval=NEXT_DAY)) == 3


@pytest.mark.parametrize("departure", [DAY.end, DAY.start - timedelta(microseconds=1), None])
def test_row_outside_the_interval_is_refused(publisher: Publisher, departure: datetime | None) -> None:
    publisher.publish(DAY, "a")
    astray = pa.Table.from_pylist([{"flight": "astray", "departure": departure}], schema=FLIGHTS)
    with pytest.raises(ValueError, match="table flights has rows whose departure lies outside 2013-04-01"):
        publisher.publish(DAY, "b", flights=write(astray))
    assert publisher.sources() == {date(2013, 4, 1): {"a"}}


def test_source_that_breaks_off_publishes_nothing(publisher: Publisher, settings: Settings) -> None:
    publisher.publish(DAY, "a")

    def broken() -> pa.RecordBatchReader:
        def batches() -> Iterator[pa.RecordBatch]:
            yield from flights(DAY, "b").to_batches()
            raise OSError("the disk is gone")

        return pa.RecordBatchReader.from_batches(FLIGHTS, batches())

    files = set(Path(settings.warehouse).rglob("*.parquet"))
    with pytest.raises(OSError, match="the disk is gone"):
        publisher.publish(DAY, "b", fleet=write(fleet("b"), None), flights=TableWrite(broken, "departure", FLIGHTS))
    assert publisher.sources() == {date(2013, 4, 1): {"a"}}
    assert publisher.rows("fleet") == fleet("a").to_pylist()
    left = set(Path(settings.warehouse).rglob("*.parquet")) - files
    assert not [path for path in left if "/flights/" in str(path)]


def test_table_without_event_time_keeps_what_the_latest_interval_brought(publisher: Publisher) -> None:
    publisher.publish(NEXT_DAY, "newer")
    publication = publisher.publish(DAY, "older")
    assert publisher.rows("fleet") == fleet("newer").to_pylist()
    assert publication.hashes["fleet"] == publisher.ledger.publications(MODEL, "tables")[0].hashes["fleet"]
    publisher.publish(NEXT_DAY, "corrected")
    assert publisher.rows("fleet") == fleet("corrected").to_pylist()


def test_table_without_event_time_is_written_only_when_it_changes(publisher: Publisher, settings: Settings) -> None:
    first = publisher.publish(DAY, "a")
    second = publisher.publish(NEXT_DAY, "b", flights=write(flights(NEXT_DAY, "b")), fleet=write(fleet("a"), None))
    assert second.snapshots["fleet"] == first.snapshots["fleet"]
    assert second.hashes["fleet"] == first.hashes["fleet"]
    assert len(list(Path(settings.warehouse).rglob("*/fleet/data/*.parquet"))) == 1


def test_new_column_is_empty_in_older_rows(publisher: Publisher) -> None:
    publisher.publish(DAY, "a")
    wider = flights(NEXT_DAY, "b").append_column("delay", pa.array([1.5, 2.5, float("nan")]))
    publisher.publish(NEXT_DAY, "b", flights=write(wider))
    delays = [row["delay"] for row in publisher.rows()]
    assert delays[:3] == [None] * 3
    assert delays[3:5] == [1.5, 2.5]
    # A spec that goes back does not lose what was there.
    publisher.publish(DAY, "c")
    assert [row["delay"] for row in publisher.rows(columns=["flight", "delay"])][3:5] == [1.5, 2.5]


def test_rows_from_before_a_new_event_time_are_not_lost(publisher: Publisher) -> None:
    publisher.publish(DAY, "a", flights=write(flights(DAY, "a")))
    arrivals = flights(NEXT_DAY, "b").append_column("arrival", pa.array([NEXT_DAY.start] * 3, MOMENT))
    publisher.publish(NEXT_DAY, "b", flights=write(arrivals, "arrival"))
    assert publisher.lake.compact(MODEL, many=2) == {"flights": 2}
    publisher.publish(NEXT_DAY, "c", flights=write(arrivals.slice(0, 1), "arrival"))
    assert [row["source"] for row in publisher.rows()] == ["a", "a", "a", "b"]
    assert len(publisher.rows(interval=NEXT_DAY)) == 1


def test_column_of_another_type_is_refused(publisher: Publisher) -> None:
    publisher.publish(DAY, "a")
    other = flights(DAY, "b").set_column(2, "source", pa.array([1, 2, 3]))
    with pytest.raises(SpecError, match="column source of table flights is a string in the lake and a int64 now"):
        publisher.publish(DAY, "b", flights=write(other))
    assert publisher.sources() == {date(2013, 4, 1): {"a"}}


def test_every_type_of_the_lake_comes_back_as_it_was(publisher: Publisher) -> None:
    table = pa.table(
        {
            "moment": pa.array([DAY.start, DAY.start], MOMENT),
            "text": pa.array(["", None]),
            "whole": pa.array([2**62, None], pa.int64()),
            "number": pa.array([float("-inf"), None]),
            "flag": pa.array([True, None]),
            "date": pa.array([date(1, 1, 1), None]),
            "reasons": pa.array([["a", None], []], pa.list_(pa.string())),
        }
    )
    publication = publisher.publish(DAY, "a", flights=write(table, "moment"))
    read = publisher.lake.scan(MODEL, "flights", publication.snapshots["flights"]).read_all()
    assert read.schema.equals(table.schema)
    assert read.equals(table)


def test_other_types_are_cast_or_refused(publisher: Publisher) -> None:
    near = pa.table(
        {
            "moment": pa.array([DAY.start], pa.timestamp("ms", tz="Europe/Berlin")),
            "text": pa.array(["a"], pa.string_view()),
            "code": pa.array(["x"]).dictionary_encode(),
            "whole": pa.array([3], pa.int16()),
            "number": pa.array([0.5], pa.float32()),
        }
    )
    publisher.publish(DAY, "a", near=write(near, "moment"))
    assert publisher.rows("near") == [{"moment": DAY.start, "text": "a", "code": "x", "whole": 3, "number": 0.5}]
    far = pa.table({"moment": pa.array([datetime(2013, 4, 1)], pa.timestamp("us"))})  # noqa: DTZ001
    with pytest.raises(ValueError, match="timestamp must have a zone"):
        publisher.publish(DAY, "b", far=write(far, "moment"))


def test_hash_of_an_interval_does_not_depend_on_order_batches_or_neighbours(publisher: Publisher) -> None:
    rows = flights(DAY, "same", per_day=50)
    batches = rows.slice(20).to_batches(max_chunksize=7) + rows.slice(0, 20).to_batches()
    shuffled = TableWrite(lambda: pa.RecordBatchReader.from_batches(FLIGHTS, iter(batches)), "departure", FLIGHTS)
    first = publisher.publish(DAY, "a", flights=write(rows))
    publisher.publish(NEXT_DAY, "b")
    second = publisher.publish(DAY, "c", flights=shuffled)
    assert second.hashes["flights"] == first.hashes["flights"]


@pytest.mark.parametrize(
    "other",
    [
        [("a", 1.0), ("a", 1.0)],
        [("a", 1.0), ("b", 2.0), ("b", 2.0)],
        [("a", 1.0), ("b", float("nan"))],
        [("a", 1.0), ("b", None)],
        [("a", 1.0), (None, 2.0)],
        [("a", 1.0), ("", 2.0)],
        [("a", 1.0), ("b|", 2.0)],
        [("a", 2.0), ("b", 1.0)],
    ],
)
def test_hash_tells_other_rows_apart(other: Sequence[tuple[str | None, float | None]], publisher: Publisher) -> None:
    def digest(rows: Sequence[tuple[str | None, float | None]], run: str) -> str:
        table = pa.table({"t": pa.array([DAY.start] * len(rows), MOMENT), "x": [r[0] for r in rows], "y": [r[1] for r in rows]})
        return publisher.publish(DAY, run, t=write(table, "t")).hashes["t"]

    assert digest(other, "a") != digest([("a", 1.0), ("b", 2.0)], "b")


def test_hashes_that_ledgers_hold_already_stay_comparable() -> None:
    rows = pa.table(
        {
            "text": ["a", "", None, "ü|漢"],
            "number": pa.array([1.5, -0.0, np.nan, None]),
            "count": pa.array([1, None, -7, 2**62]),
            "yes": [True, False, None, True],
            "day": [date(2013, 4, 1), None, date(1969, 1, 1), date(2013, 4, 1)],
            "at": pa.array([DAY.start, None, datetime(1969, 1, 1, tzinfo=UTC), DAY.end], MOMENT),
        }
    )
    assert digest(rows.to_batches(), rows.column_names) == "459f62f74b5f47fd97c18482756789a443e88c8ea00e752666519acd3a41a6f4"


def test_memory_stays_flat_while_rows_are_written_and_read(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.lake.catalog.FILE_BYTES", 4 * 1024**2)
    monkeypatch.setattr(data_files, "_READ_BYTES", 4 * 1024**2)
    # How far reading is ahead, and how many files go into one group, varies: a share of all rows is what never may be held.
    rows_a_batch, batches = 131_072, 120
    schema = pa.schema([("departure", MOMENT), ("number", pa.int64())])
    a_quarter = rows_a_batch * batches * 16 // 4
    before = pa.total_allocated_bytes()
    held: list[int] = []

    def source() -> pa.RecordBatchReader:
        def generate() -> Iterator[pa.RecordBatch]:
            for n in range(batches):
                held.append(pa.total_allocated_bytes())
                numbers = np.arange(n * rows_a_batch, (n + 1) * rows_a_batch)
                moments = pa.array(np.full(rows_a_batch, int(DAY.start.timestamp() * 1e6)), MOMENT)
                yield pa.record_batch([moments, pa.array(numbers)], schema=schema)

        return pa.RecordBatchReader.from_batches(schema, generate())

    publication = publisher.publish(DAY, "a", big=TableWrite(source, "departure", schema))
    assert publication.rows["big"] == batches * rows_a_batch
    assert publisher.files("big") > 8
    assert len(held) == batches
    assert max(held) - before < a_quarter
    rows, held = 0, []
    for batch in publisher.lake.scan(MODEL, "big", publication.snapshots["big"]):
        rows += batch.num_rows
        held.append(pa.total_allocated_bytes())
    assert rows == batches * rows_a_batch
    assert max(held) - before < a_quarter


def test_files_are_on_the_disk_before_the_catalog_names_them(
    publisher: Publisher, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    publisher.publish(DAY, "a")
    files = [path for path in Path(settings.warehouse).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".parquet", ".avro", ".json"}
    assert {path.stat().st_ino for path in files} <= synced


# --- any schedule of runs --------------------------------------------------------------------------------------------

_MODELS = count()
_DAYS = [Interval.day(DAY.start + timedelta(days=n)) for n in range(3)]
_INTERVALS = [*_DAYS, Interval.of("2013-04-01", "2013-04-03"), Interval.of("2013-04-01", "2013-04-04")]


@dataclass(frozen=True)
class Run:
    interval: Interval
    attempts: int
    at_once: bool


RUNS = st.builds(Run, st.sampled_from(_INTERVALS), st.sampled_from([1, 1, 3]), st.booleans())


@given(
    plan=st.lists(RUNS, min_size=1, max_size=4).flatmap(
        lambda runs: st.tuples(st.just(runs), st.permutations(range(len(runs))))
    )
)
@example(plan=([Run(_INTERVALS[4], 1, False), Run(_DAYS[1], 3, True)], [1, 0]))
@example(plan=([Run(_INTERVALS[4], 1, False), Run(_DAYS[1], 3, True), Run(_INTERVALS[3], 1, True)], [0, 1, 2]))
@hypothesis_settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_schedule_leaves_each_interval_once_from_the_run_that_ranks_highest(
    publisher_on_each_database: Publisher, plan: tuple[list[Run], list[int]]
) -> None:
    """Once, three times, twice at once, out of order, days within ranges: the tables tell no difference."""
    runs, schedule = plan
    publisher = replace(publisher_on_each_database, model=f"model_{next(_MODELS)}")
    orders = [publisher.order(run.interval, f"run-{n}") for n, run in enumerate(runs)]
    stands: list[int] = []

    def attempt(n: int) -> None:
        # Each attempt is a process of its own in production: nothing is shared but the databases and the files.
        ledger = Ledger(publisher.settings.database_url)
        fresh = replace(publisher, ledger=ledger, lake=Lake(publisher.settings, ledger))
        run = runs[n]
        try:
            fresh.publish(run.interval, f"run-{n}", orders[n])
        except Superseded:
            outranked = any(orders[m] > orders[n] and runs[m].interval.overlaps(run.interval) for m in stands)
            assert outranked or run.at_once

    for n in schedule:
        for _ in range(runs[n].attempts):
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(attempt, [n, n] if runs[n].at_once else [n]))
        if not any(orders[m] > orders[n] and runs[m].interval.overlaps(runs[n].interval) for m in stands):
            stands.append(n)

    expected = {
        day.start.date(): {f"run-{max(covering, key=orders.__getitem__)}"}
        for day in _DAYS
        if (covering := [n for n in stands if runs[n].interval.contains(day)])
    }
    assert publisher.sources() == expected
    newest = max(stands, key=lambda n: (runs[n].interval.end, orders[n]))
    assert publisher.rows("fleet") == fleet(f"run-{newest}").to_pylist()


# --- reading ---------------------------------------------------------------------------------------------------------


def test_scan_chooses_columns_interval_and_what_was_known(publisher: Publisher) -> None:
    publisher.publish(TWO_DAYS, "a")
    noon = DAY.start + timedelta(hours=12)
    rows = publisher.rows(columns=["source", "flight"], interval=DAY, event_time="departure", known_by=noon)
    assert rows == [{"source": "a", "flight": "04-01 00:00"}, {"source": "a", "flight": "04-01 08:00"}]
    assert [*rows[0]] == ["source", "flight"]
    assert publisher.rows(interval=Interval.day("2013-05-01")) == []


def test_scan_at_an_older_snapshot_sees_what_was_there_then(publisher: Publisher) -> None:
    first = publisher.publish(DAY, "a")
    publisher.publish(DAY, "b", flights=write(flights(DAY, "b").append_column("delay", pa.array([1.0] * 3))))
    old = publisher.lake.scan(MODEL, "flights", first.snapshots["flights"]).read_all()
    assert old.schema.names == FLIGHTS.names
    assert set(old["source"].to_pylist()) == {"a"}
    wider = publisher.lake.scan(MODEL, "flights", first.snapshots["flights"], columns=["delay"]).read_all()
    assert wider["delay"].to_pylist() == [None] * 3


def test_what_is_not_there_is_named(publisher: Publisher) -> None:
    with pytest.raises(SnapshotMissing, match="there is no table flights"):
        publisher.lake.scan(MODEL, "flights", 1)
    publication = publisher.publish(DAY, "a")
    with pytest.raises(SnapshotMissing, match="snapshot 1 is not in the lake"):
        publisher.lake.scan(MODEL, "flights", 1)
    with pytest.raises(ValueError, match="table flights has no column delay"):
        publisher.lake.scan(MODEL, "flights", publication.snapshots["flights"], columns=["delay"])
    with pytest.raises(ValueError, match="table fleet has no event time"):
        publisher.lake.scan(MODEL, "fleet", publication.snapshots["fleet"], interval=DAY)


def test_readers_from_outside_find_what_is_published_on_main(publisher: Publisher, settings: Settings) -> None:
    publisher.publish(DAY, "a")
    publication = publisher.publish(NEXT_DAY, "b")
    for name in ("flights", "fleet"):
        table = catalog(settings).load(MODEL, name)
        assert table.metadata.current_snapshot_id == publication.snapshots[name]
        assert set(table.metadata.refs) == {"main", "empty"}


# --- keeping ---------------------------------------------------------------------------------------------------------


def soon() -> datetime:
    """So late that nothing is young."""
    return datetime.now(UTC) + timedelta(hours=1)


def test_pinned_snapshot_outlives_expiry(publisher_on_each_database: Publisher) -> None:
    publisher = publisher_on_each_database
    first, second, third = (publisher.publish(DAY, run) for run in "abc")
    publisher.lake.pin(MODEL, first.snapshots, "version-1")
    publisher.lake.pin(MODEL, first.snapshots, "version-1")
    assert publisher.lake.pins(MODEL) == {"version-1": first.snapshots}
    assert publisher.lake.expire(MODEL, soon()) == 2
    publisher.lake.remove_orphans(MODEL, soon())
    assert publisher.sources() == {date(2013, 4, 1): {"c"}}
    for publication, run in ((first, "a"), (third, "c")):
        rows = publisher.lake.scan(MODEL, "flights", publication.snapshots["flights"]).read_all()
        assert set(rows["source"].to_pylist()) == {run}
    with pytest.raises(SnapshotMissing):
        publisher.lake.scan(MODEL, "flights", second.snapshots["flights"])
    publisher.lake.unpin(MODEL, "version-1")
    publisher.lake.unpin(MODEL, "version-1")
    assert publisher.lake.pins(MODEL) == {}
    publisher.lake.expire(MODEL, soon())
    with pytest.raises(SnapshotMissing):
        publisher.lake.pin(MODEL, first.snapshots, "too-late")


def test_snapshot_that_readers_were_sent_to_lately_is_kept(publisher: Publisher) -> None:
    first = publisher.publish(DAY, "a")
    before_second = datetime.now(UTC)
    publisher.publish(DAY, "b")
    # The first is older than that, but was what readers read until the second came.
    assert publisher.lake.expire(MODEL, before_second) == 0
    assert publisher.lake.scan(MODEL, "flights", first.snapshots["flights"]).read_all().num_rows == 3


def test_removing_orphans_leaves_exactly_what_snapshots_name(publisher: Publisher, settings: Settings) -> None:
    for run in "abc":
        publisher.publish(TWO_DAYS, run)
    publisher.lake.expire(MODEL, soon())
    (Path(settings.warehouse) / MODEL / "flights" / "data" / "left-by-a-dead-attempt.parquet").write_bytes(b"")
    assert publisher.lake.remove_orphans(MODEL, datetime.now(UTC) - timedelta(days=1)) == 0
    assert publisher.lake.remove_orphans(MODEL, soon()) > 0
    assert len(list(Path(settings.warehouse).rglob("*/flights/data/*.parquet"))) == publisher.files() == 1
    assert publisher.sources() == {date(2013, 4, 1): {"c"}, date(2013, 4, 2): {"c"}}
    publisher.publish(DAY, "d")
    assert publisher.sources() == {date(2013, 4, 1): {"d"}, date(2013, 4, 2): {"c"}}


def test_compaction_joins_files_and_changes_no_row(publisher: Publisher) -> None:
    days = [Interval.day(DAY.start + timedelta(days=n)) for n in range(5)]
    for n, day in enumerate(reversed(days)):
        publisher.publish(day, f"run-{n}", flights=write(flights(day, f"run-{n}")))
    before = publisher.rows()
    publication = publisher.ledger.published(MODEL, "tables")
    assert publisher.lake.compact(MODEL, many=6) == {}
    assert publisher.lake.compact(MODEL, many=5) == {"flights": 5}
    assert publisher.files() == 1
    assert publisher.rows() == before
    after = publisher.ledger.published(MODEL, "tables")
    assert publication is not None
    assert after is not None
    assert (after.id, after.hashes) == (publication.id, publication.hashes)
    # In the order of time, so that a day is found by a row group's statistics.
    moments = publisher.lake.scan(MODEL, "flights", after.snapshots["flights"], columns=["departure"]).read_all()["departure"]
    assert moments.to_pylist() == sorted(moments.to_pylist())
    publisher.publish(days[2], "again", flights=write(flights(days[2], "again")))
    assert publisher.sources()[days[2].start.date()] == {"again"}
    assert len(publisher.rows()) == len(before)


def test_compaction_gives_way_to_a_publication_that_comes_between(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, day in enumerate(_DAYS):
        publisher.publish(day, f"run-{n}", flights=write(flights(day, f"run-{n}")))
    move = Ledger.move
    late = iter(["late"])

    def publish_first(ledger: Ledger, *args: Any, **kwargs: Any) -> bool:
        for run in late:
            publisher.publish(DAY, run, flights=write(flights(DAY, run)))
        return move(ledger, *args, **kwargs)

    monkeypatch.setattr(Ledger, "move", publish_first)
    assert publisher.lake.compact(MODEL, many=3) == {"flights": 3}
    assert publisher.sources() == {date(2013, 4, 1): {"late"}, date(2013, 4, 2): {"run-1"}, date(2013, 4, 3): {"run-2"}}
    assert publisher.files() == 1


def test_old_rows_are_forgotten(publisher: Publisher) -> None:
    publisher.publish(TWO_DAYS, "a")
    assert publisher.lake.forget(MODEL, "tables", "flights", NEXT_DAY.start + timedelta(hours=8)) == 1
    assert [row["flight"] for row in publisher.rows()] == ["04-02 08:00", "04-02 16:00"]
    assert publisher.lake.forget(MODEL, "tables", "flights", DAY.start) == 0


def test_files_hold_columns_by_the_ids_that_other_engines_go_by(publisher: Publisher, settings: Settings) -> None:
    publisher.publish(DAY, "a")
    (file,) = Path(settings.warehouse).rglob("*/flights/data/*.parquet")
    assert [f.metadata[b"PARQUET:field_id"] for f in pq.read_schema(file)] == [b"1", b"2", b"3", b"4"]


# --- elsewhere -------------------------------------------------------------------------------------------------------


def test_a_lake_on_an_object_store_needs_no_other_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        address = "http://{}:{}".format(*store.get_host_and_port())
        given = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "eu-central-1", "ENDPOINT_URL": address}
        for name, value in given.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        httpx.put(f"{address}/bucket").raise_for_status()
        publisher = publisher_with(settings.model_copy(update={"warehouse": "s3://bucket/lake"}))

        publisher.publish(DAY, "a")
        publisher.publish(TWO_DAYS, "b")
        publisher.publish(DAY, "c")

        assert publisher.sources() == {date(2013, 4, 1): {"c"}, date(2013, 4, 2): {"b"}}
        # PyIceberg asks Amazon where a bucket lies, unless it is told.
        assert "region" not in caplog.text
        publisher.lake.remove_orphans(MODEL, datetime.now(UTC) + timedelta(days=1))
        assert publisher.sources() == {date(2013, 4, 1): {"c"}, date(2013, 4, 2): {"b"}}
    finally:
        store.stop()
