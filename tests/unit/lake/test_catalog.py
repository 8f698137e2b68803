"""Tables of the catalog keep their columns, their types and their main branch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from perennial.core.errors import SnapshotMissing, SpecError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake.publish import TableWrite
from tests.unit.lake.publisher import (
    DAY,
    MODEL,
    MOMENT,
    NEXT_DAY,
    TWO_DAYS,
    Publisher,
    catalog,
    flights,
    publisher_with,
    soon,
    write,
)


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
    with pytest.raises(SpecError, match="column source of table flights is of type string in the lake and int64 now"):
        publisher.publish(DAY, "b", flights=write(other))
    assert publisher.sources() == {date(2013, 4, 1): {"a"}}


WIDER: dict[str, tuple[pa.Array, pa.DataType, list[Any]]] = {
    "an integer, to a float": (pa.array([1, None, 2**53]), pa.float64(), [1.0, None, 2.0**53]),
    "true or false, to an integer": (pa.array([True, None, False]), pa.int64(), [1, None, 0]),
    "true or false, to a float": (pa.array([True, None, False]), pa.float64(), [1.0, None, 0.0]),
    "a date, to a moment": (
        pa.array([date(2013, 4, 1), None, date(1969, 12, 31)]),
        pa.timestamp("us", "UTC"),
        [datetime(2013, 4, 1, tzinfo=UTC), None, datetime(1969, 12, 31, tzinfo=UTC)],
    ),
}


def in_order(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=str)


def with_value(rows: pa.Table, value: pa.Array) -> pa.Table:
    return rows.append_column("value", value)


@pytest.mark.parametrize("change", WIDER)
def test_a_column_gets_a_wider_type_and_keeps_its_published_values(publisher: Publisher, change: str) -> None:
    held, wider, wanted = WIDER[change]
    before = publisher.publish(DAY, "a", flights=write(with_value(flights(DAY, "a"), held)))
    after = publisher.publish(NEXT_DAY, "b", flights=write(with_value(flights(NEXT_DAY, "b"), pa.nulls(3, wider))))

    values = [row["value"] for row in publisher.rows(interval=DAY)]
    assert in_order(values) == in_order(wanted)
    assert [row["value"] for row in publisher.rows(interval=NEXT_DAY)] == [None] * 3
    lake = publisher.lake
    assert all(lake.holds(one, "flights", after.snapshots["flights"]) for one in (before, after))
    assert "value" in lake.columns(MODEL, "flights", after.snapshots["flights"])
    assert set(publisher.rows()[0]) == {"flight", "departure", "source", "_known_at", "value"}
    # The days without a value are those that had none, not those with the earlier type.
    assert lake.without_values(
        MODEL, "flights", after.snapshots["flights"], {"value": None}, interval=Interval(DAY.start, NEXT_DAY.end),
        event_time="departure",
    ) == {"value": [DAY, NEXT_DAY]}  # fmt: skip
    # Old snapshots, and files that are joined, have the values too.
    early = lake.scan(MODEL, "flights", before.snapshots["flights"], columns=["value"]).read_all().column("value")
    assert in_order(early.to_pylist()) == in_order(wanted)
    lake.compact(MODEL, many=2)
    assert in_order(row["value"] for row in publisher.rows(interval=DAY)) == in_order(wanted)


@pytest.mark.parametrize(
    ("held", "narrower"),
    [
        (pa.array([1.0, 2.0, 3.0]), pa.array([1, 2, 3])),
        (pa.array(["1", "2", "3"]), pa.array([1, 2, 3])),
        # Texts such as 007 became 7, and nobody knows any more which were.
        (pa.array([1, 2, 3]), pa.array(["1", "2", "3"])),
    ],
)
def test_a_type_that_published_values_may_not_fit_is_refused_with_what_to_do(
    publisher: Publisher, held: pa.Array, narrower: pa.Array
) -> None:
    publisher.publish(DAY, "a", flights=write(with_value(flights(DAY, "a"), held)))

    with pytest.raises(SpecError, match=r"column value of table flights.*Keep its type, add a column of another name"):
        publisher.publish(NEXT_DAY, "b", flights=write(with_value(flights(NEXT_DAY, "b"), narrower)))


def derived(rows: pa.Table) -> TableWrite:
    return replace(write(rows), derived=frozenset({"value"}))


def numbers(interval: Interval, run: str) -> TableWrite:
    rows = flights(interval, run)
    return derived(with_value(rows, pa.array([1.0] * rows.num_rows)))


def texts(interval: Interval, run: str) -> TableWrite:
    rows = flights(interval, run)
    return derived(with_value(rows, pa.array(["one"] * rows.num_rows)))


def test_a_derived_column_changes_its_type_and_no_earlier_row_is_read_as_null(publisher: Publisher) -> None:
    before = publisher.publish(TWO_DAYS, "a", flights=numbers(TWO_DAYS, "a"))
    after = publisher.publish(NEXT_DAY, "b", flights=texts(NEXT_DAY, "b"))

    assert [row["value"] for row in publisher.rows(interval=NEXT_DAY)] == ["one"] * 3
    for interval in (DAY, TWO_DAYS):
        with pytest.raises(SnapshotMissing, match=r"rows of flights have value as double and not yet as string: .*built again"):
            publisher.rows(interval=interval)
    # Who reads other columns is not concerned, and a snapshot from before has what it had.
    assert len(publisher.rows(columns=["flight"])) == 6
    lake = publisher.lake
    then = lake.scan(MODEL, "flights", before.snapshots["flights"]).read_all()
    assert then.column("value").to_pylist() == [1.0] * 6
    assert lake.holds(before, "flights", before.snapshots["flights"])
    assert lake.holds(after, "flights", after.snapshots["flights"])
    assert set(publisher.rows(interval=NEXT_DAY)[0]) == {"flight", "departure", "source", "_known_at", "value"}


def test_files_that_are_joined_do_not_forget_that_a_row_has_the_earlier_type(publisher: Publisher) -> None:
    publisher.publish(DAY, "a", flights=numbers(DAY, "a"))
    publisher.publish(NEXT_DAY, "b", flights=texts(NEXT_DAY, "b"))
    assert publisher.lake.compact(MODEL, many=2) == {"flights": 2}
    assert [row["value"] for row in publisher.rows(interval=NEXT_DAY)] == ["one"] * 3
    with pytest.raises(SnapshotMissing, match="value as double and not yet as string"):
        publisher.rows(interval=DAY)
    publisher.publish(DAY, "c", flights=texts(DAY, "c"))
    assert {row["value"] for row in publisher.rows()} == {"one"}


def test_a_derived_column_can_change_back_and_forth(publisher: Publisher, settings: Settings) -> None:
    kinds = [numbers, texts, numbers, texts]
    made = [publisher.publish(DAY, f"run {n}", flights=kind(DAY, f"run {n}")) for n, kind in enumerate(kinds)]
    read = [
        set(publisher.lake.scan(MODEL, "flights", one.snapshots["flights"], columns=["value"]).read_all()["value"].to_pylist())
        for one in made
    ]
    assert read == [{1.0}, {"one"}, {1.0}, {"one"}]
    columns = [field.name for field in catalog(settings).load(MODEL, "flights").schema().fields]
    assert sorted(columns) == ["_float_value", "_known_at", "departure", "flight", "source", "value"]


def test_what_a_change_of_type_does_is_said_before_it_is_done(publisher: Publisher) -> None:
    publisher.publish(DAY, "a", flights=numbers(DAY, "a"))
    wanted = texts(DAY, "b").schema
    assert publisher.lake.check_types(MODEL, "flights", wanted, derived={"value"}) == ["value"]
    with pytest.raises(SpecError, match="column value of table flights"):
        publisher.lake.check_types(MODEL, "flights", wanted)
    assert publisher.lake.check_types(MODEL, "no table yet", wanted) == []
    assert {row["value"] for row in publisher.rows()} == {1.0}


def test_readers_from_outside_find_what_is_published_on_main(publisher: Publisher, settings: Settings) -> None:
    publisher.publish(DAY, "a")
    publication = publisher.publish(NEXT_DAY, "b")
    for name in ("flights", "fleet"):
        table = catalog(settings).load(MODEL, name)
        assert table.metadata.current_snapshot_id == publication.snapshots[name]
        assert set(table.metadata.refs) == {"main", "empty"}


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
