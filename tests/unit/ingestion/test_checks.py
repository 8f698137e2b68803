"""An interval is published, quarantined in part, or refused whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import IntervalRefused, SourceError
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.demo.example_data import write_landing_zone
from perennial.ingestion.checks import QUARANTINE_SCHEMA, check, ingest_writes
from perennial.ingestion.sources import land
from perennial.spec.folder import read_model
from tests.unit.landing import (
    DAY,
    FILE,
    HEADER,
    checked,
    ingest,
    no_connection,
    row,
    trips,
    write,
)


def test_published_rows_have_the_specs_types_and_nothing_else(tmp_path: Path) -> None:
    columns = {"flag": {"type": "boolean", "sql": "n"}, "day": {"type": "date", "sql": "left(begun, 10)"}}
    write(tmp_path, HEADER + row())
    folder = trips(tmp_path, columns=columns)
    landed = land(folder, "trips", DAY, tmp_path / "out", data=tmp_path / "data", connect=no_connection)
    result = check(folder, landed, DAY, tmp_path / "out", past_rows_per_day=None, docs=tmp_path / "docs", run_id="r")

    moment = pa.timestamp("us", "UTC")
    write_ = ingest_writes(folder, [result])["trips"]

    assert write_.event_time == "begun"
    assert write_.schema == pa.schema(
        [("id", pa.string()), ("begun", moment), ("place", pa.string()), ("n", pa.int64()), ("x", pa.float64()),
         ("flag", pa.bool_()), ("day", pa.date32()), ("_known_at", moment)]
    )  # fmt: skip
    assert write_.data().schema == write_.schema
    # The lake reads again when it meets a conflict.
    assert write_.data().read_all() == write_.data().read_all()


# --- the interval ----------------------------------------------------------------------------------------------------


def test_beyond_the_tolerance_the_interval_is_refused_whole(tmp_path: Path) -> None:
    rows = [row(str(n), n="?" if n < 3 else "1") for n in range(10)]

    tolerated = checked(tmp_path / "1", *rows, table={"tolerance": 0.3})
    refused = checked(tmp_path / "2", *rows, table={"tolerance": 0.29})

    assert not tolerated.result.refused
    assert len(tolerated.published) == 7
    assert refused.result.refused
    assert refused.result.reasons == [
        "3 of 10 rows (30.0%) fail a critical check, more than the tolerance of 29.0%",
        f"3 times, first {FILE}:2: n: '?' is not a plain whole number",
    ]
    assert refused.result.rows_published == 0
    assert len(refused.quarantined) == 3
    assert list((tmp_path / "2" / "staging").glob("*.published.parquet")) == []


def test_each_day_must_bring_its_rows(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a") + row("b"), "trips/all.csv")
    folder = trips(tmp_path, source={"files": "trips/all.csv"}, table={"checks": {"rows": {"min": 2, "max": 2}}})
    three = Interval.of("2013-04-01", "2013-04-03")

    one = ingest(folder, tmp_path, DAY)
    two = ingest(folder, tmp_path, three)

    assert not one.result.refused
    assert two.result.refused
    assert two.result.reasons == [
        "2013-04-02: 0 rows arrived; at least 2 are required (schedules.closed in model.yaml names days without data)"
    ]


def test_a_part_of_a_day_need_not_bring_a_days_rows(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a") + row("b"))
    folder = trips(tmp_path, table={"checks": {"rows": {"min": 8}}})

    quarter = ingest(folder, tmp_path, Interval.of("2013-04-01T06:00:00Z", "2013-04-01T12:00:00Z"))
    half = ingest(folder, tmp_path, Interval.of("2013-04-01T06:00:00Z", "2013-04-01T18:00:00Z"))

    assert not quarter.result.refused
    assert half.result.reasons == ["2013-04-01: 2 rows arrived; at least 4 are required"]


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), row("b"), row("c"), table={"checks": {"rows": {"max": 2}}})

    assert done.result.reasons == ["2013-04-01: 3 rows arrived; at most 2 are required"]


def test_a_count_that_only_warns_publishes(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), table={"checks": {"rows": {"min": 2, "severity": "warning"}}})

    assert done.column("id") == ["a"]
    assert done.result.warnings == ["2013-04-01: 1 rows arrived; at least 2 are required"]


def test_events_must_reach_near_the_end(tmp_path: Path) -> None:
    fresh = checked(tmp_path / "1", row(begun="2013-04-01T23:00:00Z"), table={"checks": {"freshness": {"within": "1h"}}})
    stale = checked(tmp_path / "2", row(begun="2013-04-01T22:59:00Z"), table={"checks": {"freshness": {"within": "1h"}}})
    none = checked(tmp_path / "3", table={"checks": {"freshness": {"within": "1h"}, "rows": {"min": 0}}})

    assert not fresh.result.refused
    assert stale.result.reasons == [
        "the newest event is of 2013-04-01 22:59 UTC, more than 1:00:00 before the end of 2013-04-01"
    ]
    assert none.result.reasons == ["there is no event, so there is none within 1:00:00 of the end of 2013-04-01"]


@pytest.mark.parametrize(
    ("past", "told"),
    [(None, False), (2.0, False), (4.0, False), (4.1, True), (1.34, False), (1.3, True)],
)
def test_volume_is_compared_with_the_past_if_there_is_one(past: float | None, told: bool, tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a") + row("b"))
    folder = trips(tmp_path, table={"checks": {"volume": {"tolerance": 0.5}}})

    done = ingest(folder, tmp_path, past_rows_per_day=past)

    assert not done.result.refused
    assert bool(done.result.warnings) == told


def test_a_volume_that_is_critical_refuses(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a") + row("b"))
    folder = trips(tmp_path, table={"checks": {"volume": {"tolerance": 0.1, "severity": "critical"}}})

    done = ingest(folder, tmp_path, past_rows_per_day=900)

    assert done.result.reasons == ["2 valid rows per day differ by more than 10% from the 900 per day of the past 28 days"]


def test_a_table_without_event_time_counts_as_one_day(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", begun="1999-01-01") + row("b", begun="2050-01-01"), "trips/all.csv")
    table = {"event_time": None, "known": "always", "checks": {"rows": {"min": 2}}}
    folder = trips(tmp_path, source={"files": "trips/all.csv"}, table=table)

    done = ingest(folder, tmp_path, Interval.of("2013-04-01", "2013-05-01"))
    write(tmp_path, HEADER, "trips/all.csv")
    empty = ingest(folder, tmp_path)

    assert done.column("id") == ["a", "b"]
    assert empty.result.reasons == [
        "2013-04-01: 0 rows arrived; at least 2 are required (schedules.closed in model.yaml names days without data)"
    ]
    assert ingest_writes(folder, [done.result])["trips"].event_time is None


def test_a_check_that_cannot_be_judged_refuses(tmp_path: Path) -> None:
    # A pattern that Python compiles and pandas cannot use: no check that fails to run may count as passed.
    columns = {"place": {"type": "string", "matches": "E"}}
    write(tmp_path, HEADER + row())
    folder = trips(tmp_path, columns=columns)
    column = folder.spec.tables["trips"].columns["place"]
    object.__setattr__(column, "matches", "(")

    done = ingest(folder, tmp_path)

    assert done.result.refused
    assert done.published == []
    assert "expect_column_values_to_match_regex of place could not be judged" in done.result.reasons[0]


# --- the quarantine --------------------------------------------------------------------------------------------------


def test_tables_of_an_interval_are_written_with_one_quarantine(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a") + row("b", n="?"))
    folder = trips(tmp_path, table={"event_time": None, "known": "always"})
    results = [ingest(folder, tmp_path, table=table).result for table in ("trips",)]
    results.append(ingest(_tolerant(folder), tmp_path, table="asked").result)

    writes = ingest_writes(folder, results)

    assert list(writes) == ["trips", "asked", "quarantine"]
    assert writes["quarantine"].event_time == "_event_time"
    held = writes["quarantine"].data().read_all()
    assert held.schema == QUARANTINE_SCHEMA
    assert held.column("table").to_pylist() == ["trips", "asked"]
    # One has an event time that can be read; a table without one has the interval's start.
    assert held.column("_event_time").to_pylist() == [DAY.start, datetime(2013, 4, 1, 6, tzinfo=UTC)]


def _tolerant(folder: Any) -> Any:
    tables = {name: table.model_copy(update={"tolerance": 1.0}) for name, table in folder.spec.tables.items()}
    return folder.model_copy(update={"spec": folder.spec.model_copy(update={"tables": tables})})


def test_a_refused_table_is_not_written(tmp_path: Path) -> None:
    write(tmp_path, HEADER)
    folder = trips(tmp_path)
    result = ingest(folder, tmp_path).result

    with pytest.raises(IntervalRefused, match="trips: table trips: 2013-04-01: 0 rows arrived; at least 1 are required"):
        ingest_writes(folder, [result])


def test_the_raw_row_of_a_typed_source_is_kept_as_json(tmp_path: Path) -> None:
    code = """
import pyarrow as pa
def rows(start, end):
    places, n, x = ["x", 'say "no"'], [1, 2], [0.5, float("inf")]
    return pa.table({"id": ["a", "b"], "begun": [start, start], "place": places, "n": n, "x": x})
"""
    done = ingest(trips(tmp_path, source={"python": "model:rows"}, code=code), tmp_path)

    [held] = done.quarantined
    assert held["position"] == "files:2"
    assert json.loads(held["row"])["place"] == 'say "no"'
    assert json.loads(held["row"])["n"] == 2


def test_nothing_is_written_but_the_results_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    done = checked(tmp_path, row("a"), row("b", n="?"))

    assert list((tmp_path / "cwd").iterdir()) == []
    assert {path.name.partition(".")[2] for path in (tmp_path / "staging").iterdir()} == {
        "landed.parquet", "published.parquet", "quarantined.parquet",
    }  # fmt: skip
    assert done.result.rows_in == 2


# --- the example -----------------------------------------------------------------------------------------------------


def test_a_real_week_of_flights_is_published_but_for_what_is_impossible(tmp_path: Path) -> None:
    folder = read_model(PROJECT / "include" / "models" / "flight_delay")
    week = Interval.of("2013-02-11", "2013-02-18")
    write_landing_zone(tmp_path / "data", week)

    done = {name: ingest(folder, tmp_path, week, table=name) for name in folder.spec.tables}

    weather = done.pop("weather")
    assert all(d.result.rows_in > 3000 and not d.result.refused and d.quarantined == [] for d in done.values())
    assert weather.result.rows_in == 504
    # A gust of a thousand miles an hour at Newark.
    assert weather.faults == {"weather/2013-02-12.csv.gz:10": ["wind_speed: 1048.36058 is above 100"]}


def test_every_key_duplicated_is_refused(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row() + row("b") + row(n="2") + row("b", n="2"))

    done = ingest(trips(tmp_path, table={"tolerance": 0.2}), tmp_path)

    assert done.result.refused
    assert done.result.reasons[0] == "4 of 4 rows (100.0%) fail a critical check, more than the tolerance of 20.0%"
    assert done.faults[f"{FILE}:3"] == ["key: 2 rows are b, and they differ"]


def test_two_columns_swapped_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "id,begun,n,place,x\n" + "".join(row(str(n)) for n in range(20)))

    done = ingest(trips(tmp_path, table={"tolerance": 0.2}), tmp_path)

    assert done.result.refused
    assert done.published == []
    assert any("20 times, first trips/2013-04-01.csv:2: n: 'EWR' is not a plain whole number" in r for r in done.result.reasons)


def test_a_decimal_comma_after_semicolons_is_refused_rather_than_shifted(tmp_path: Path) -> None:
    write(tmp_path, "id;begun;place;n;x\n" + "".join(f"{n};2013-04-01T06:00:00Z;EWR;1;0,5\n" for n in range(20)))
    source = {"files": "trips/%Y-%m-%d.csv", "delimiter": ";"}

    refused = ingest(trips(tmp_path, source=source, table={"tolerance": 0.2}), tmp_path)
    columns = {"x": {"type": "float", "sql": "replace(x, ',', '.')"}}
    meant = ingest(trips(tmp_path, source=source, columns=columns), tmp_path)

    assert refused.result.refused
    assert meant.column("x") == [0.5] * 20


def test_a_day_of_nothing_but_a_header_is_refused_unless_the_spec_allows_it(tmp_path: Path) -> None:
    write(tmp_path, HEADER)

    refused = ingest(trips(tmp_path), tmp_path)
    allowed = ingest(trips(tmp_path, table={"checks": {"rows": {"min": 0}}}), tmp_path)

    assert refused.result.refused
    assert refused.result.reasons == [
        "2013-04-01: 0 rows arrived; at least 1 are required (schedules.closed in model.yaml names days without data)"
    ]
    assert not allowed.result.refused
    assert allowed.published == []


# --- closed days -----------------------------------------------------------------------------------------------------

MONDAY = "2013-04-01"  # the day of :data:`DAY`
STRICT = {
    "checks": {
        "rows": {"min": 2},
        "freshness": {"within": "1h"},
        "volume": {"tolerance": 0.1, "severity": "critical"},
    }
}


def test_a_closed_day_of_which_no_file_comes_is_published_empty(tmp_path: Path) -> None:
    result = ingest(trips(tmp_path, table=STRICT, closed=[MONDAY]), tmp_path, past_rows_per_day=500.0).result

    assert not result.refused
    assert result.published is not None
    assert (result.rows_in, result.rows_published, result.rows_quarantined) == (0, 0, 0)


@pytest.mark.parametrize("rows", [[], [row()]], ids=["a header alone", "fewer rows than usual"])
def test_a_closed_day_needs_no_rows_and_loses_none_that_come(tmp_path: Path, rows: list[str]) -> None:
    write(tmp_path, HEADER + "".join(rows))

    found = ingest(trips(tmp_path, table=STRICT, closed=["monday"]), tmp_path, past_rows_per_day=500.0)

    assert not found.result.refused, found.result.reasons
    assert found.column("id") == ["a"] * len(rows)


def test_rows_of_a_closed_day_are_checked_like_others(tmp_path: Path) -> None:
    found = checked(tmp_path, row("a"), row("b", n="?"), closed=[MONDAY])

    assert found.column("id") == ["a"]
    assert len(found.quarantined) == 1


def test_in_a_range_the_closed_day_alone_needs_no_file(tmp_path: Path) -> None:
    three = Interval.of("2013-04-01", "2013-04-04")
    model = trips(tmp_path, closed=["2013-04-02"])
    for day in (1, 3):
        write(tmp_path, HEADER + row(str(day), f"2013-04-0{day}T06:00:00Z"), f"trips/2013-04-0{day}.csv")

    assert ingest(model, tmp_path, three).column("id") == ["1", "3"]

    (tmp_path / "data" / "trips" / "2013-04-03.csv").unlink()
    with pytest.raises(SourceError, match=r"trips/2013-04-03\.csv: there is no such file"):
        ingest(model, tmp_path, three)


def test_closed_days_do_not_lower_the_mean_that_the_volume_is_compared_with(tmp_path: Path) -> None:
    volume = {"checks": {"volume": {"tolerance": 0.1, "severity": "critical"}}}
    write(tmp_path, HEADER + "".join(row(str(n)) for n in range(10)))
    write(tmp_path, HEADER, "trips/2013-04-02.csv")
    two = Interval.of("2013-04-01", "2013-04-03")

    assert ingest(trips(tmp_path, table=volume), tmp_path, two, past_rows_per_day=10.0).result.refused
    assert not ingest(trips(tmp_path, table=volume, closed=["04-02"]), tmp_path, two, past_rows_per_day=10.0).result.refused


def test_a_table_of_which_a_day_may_have_no_rows_is_published_empty(tmp_path: Path) -> None:
    assert checked(tmp_path / "1").result.refused
    assert not checked(tmp_path / "2", table={"checks": {"rows": {"min": 0}}}).result.refused
