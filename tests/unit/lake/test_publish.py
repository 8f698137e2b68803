"""What readers of the lake see; on PostgreSQL as well where the databases have a part in it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from perennial.core.errors import SnapshotMissing, Superseded
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.store import Ledger
from tests.unit.lake.publisher import DAY, FLIGHTS, MODEL, NEXT_DAY, TWO_DAYS, Publisher, fleet, flights, soon, write

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
    with pytest.raises(ValueError, match="table flights has rows whose departure is outside 2013-04-01"):
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
    with pytest.raises(SnapshotMissing, match="snapshot 1 is no longer in the lake"):
        publisher.lake.scan(MODEL, "flights", 1)
    with pytest.raises(ValueError, match="table flights has no column delay"):
        publisher.lake.scan(MODEL, "flights", publication.snapshots["flights"], columns=["delay"])
    with pytest.raises(ValueError, match="table fleet has no event time"):
        publisher.lake.scan(MODEL, "fleet", publication.snapshots["fleet"], interval=DAY)


# --- keeping ---------------------------------------------------------------------------------------------------------


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
