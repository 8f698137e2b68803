"""Checks part rows into published and quarantined ones, or refuse the interval whole."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
import pyarrow as pa
import pytest

from perennial.core.errors import IntervalRefused
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.demo.example_data import write_landing_zone
from perennial.ingestion import judge
from perennial.ingestion.checks import QUARANTINE_SCHEMA, check, ingest_writes
from perennial.ingestion.sources import land
from perennial.spec.folder import read_model
from tests.unit.landing import DAY, HEADER, Ingested, ingest, no_connection, row, trips, write

FILE = "trips/2013-04-01.csv"


def checked(path: Path, *rows: str, **model: Any) -> Ingested:
    write(path, HEADER + "".join(rows))
    return ingest(trips(path, **model), path)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_warning_tells_and_publishes(tmp_path: Path) -> None:
    columns = {"n": {"type": "integer", "min": 5, "severity": "warning"}, "x": {"type": "float", "severity": "warning"}}

    done = checked(tmp_path, row("a", n="1"), row("b", n="2", x=""), row("c", n="", x="1"), columns=columns)

    assert [(kept["n"], kept["x"]) for kept in done.published] == [(1, 0.5), (2, None), (None, 1.0)]
    assert done.quarantined == []
    assert done.result.warnings == [
        f"{FILE}:4: n: missing",
        f"2 times, first {FILE}:2: n: 1 is below 5",
        f"{FILE}:3: x: missing",
    ]


def test_a_value_that_cannot_be_cast_is_critical_whatever_the_severity(tmp_path: Path) -> None:
    columns = {"n": {"type": "integer", "nullable": True, "severity": "warning"}}

    done = checked(tmp_path, row("a"), row("b", n="?"), columns=columns)

    assert done.faults == {f"{FILE}:3": ["n: '?' is not a plain whole number"]}


def test_a_row_without_key_or_time_is_not_published_whatever_the_severity(tmp_path: Path) -> None:
    columns = {"id": {"type": "string", "nullable": True, "severity": "warning"}}

    done = checked(tmp_path, row("a"), row(""), columns=columns)

    assert done.faults == {f"{FILE}:3": ["id: missing"]}


def test_a_row_that_is_known_at_no_moment_is_quarantined(tmp_path: Path) -> None:
    known = "begun + to_minutes(n)"

    done = checked(tmp_path, row("a", n="30"), row("b", n=""), row("c", n="9223372036854775807"), table={"known": known})

    assert done.column("_known_at") == [datetime(2013, 4, 1, 6, 30, tzinfo=UTC)]
    assert done.faults == {
        f"{FILE}:3": ["known: begun + to_minutes(n) gives no moment for this row"],
        f"{FILE}:4": ["known: begun + to_minutes(n) cannot be computed for this row"],
    }


def test_a_row_known_at_no_moment_is_quarantined_though_what_is_missing_is_but_a_warning(tmp_path: Path) -> None:
    columns = {"n": {"type": "integer", "severity": "warning"}}

    done = checked(tmp_path, row("a"), row("b", n=""), table={"known": "begun + to_minutes(n)"}, columns=columns)

    assert done.faults == {f"{FILE}:3": ["known: begun + to_minutes(n) gives no moment for this row"]}


def test_always_known_rows_may_be_used_at_any_time(tmp_path: Path) -> None:
    done = checked(tmp_path, row(), table={"known": "always"})

    assert done.column("_known_at") == [datetime(1900, 1, 1, tzinfo=UTC)]


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["line feed", "carriage return"])
def test_a_pattern_does_not_overlook_a_line_break_at_the_end(ending: str, tmp_path: Path) -> None:
    columns = {"place": {"type": "string", "matches": "^[A-Z]{3}$"}}

    done = checked(tmp_path, row("a"), row("b", place=f'"LGA{ending}"'), columns=columns)

    assert done.column("id") == ["a"]
    assert list(done.faults) == [f"{FILE}:3"]


def test_a_pattern_holds_from_the_beginning(tmp_path: Path) -> None:
    done = checked(
        tmp_path, row("a", place="EWR2"), row("b", place="xEWR"), columns={"place": {"type": "string", "matches": "EWR|LGA"}}
    )

    assert done.column("id") == ["a"]


def test_bounds_are_inclusive(tmp_path: Path) -> None:
    rows = [row(str(n), n=str(n)) for n in range(5)]

    done = checked(tmp_path, *rows, columns={"n": {"type": "integer", "min": 1, "max": 3}})

    assert done.column("n") == [1, 2, 3]


def test_of_rows_that_are_the_same_one_is_kept(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), row("b"), row("a"), row("a", n="01"))

    assert done.column("id") == ["a", "b"]
    assert done.faults == {
        f"{FILE}:4": [f"key: the row repeats {FILE}:2"],
        f"{FILE}:5": [f"key: the row repeats {FILE}:2"],  # another text, the same row
    }


def test_of_rows_that_share_a_key_and_differ_none_is_kept(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), row("b"), row("a", n="2"))

    assert done.column("id") == ["b"]
    assert done.faults == {f"{FILE}:{line}": ["key: 2 rows are a, and they differ"] for line in (2, 4)}


def test_a_key_of_several_columns_is_one_key(tmp_path: Path) -> None:
    rows = [row("a", place="EWR"), row("a", place="LGA"), row("b", place="LGA"), row("b", place="LGA", n="2")]

    done = checked(tmp_path, *rows, table={"key": ["id", "place"]})

    assert [(kept["id"], kept["place"]) for kept in done.published] == [("a", "EWR"), ("a", "LGA")]
    assert done.faults == {f"{FILE}:{line}": ["key: 2 rows are b, LGA, and they differ"] for line in (4, 5)}


@pytest.mark.parametrize("key", [["id"], ["id", "place"]], ids=["one column", "two columns"])
def test_a_key_has_the_verdict_of_great_expectations_own_uniqueness(key: list[str], tmp_path: Path) -> None:
    rows = [{"id": str(n * n % 97), "place": "EWR" if n % 3 else "LGA", "n": str(n)} for n in range(60)]
    frame = pd.DataFrame(rows, index=[f"{FILE}:{n}" for n in range(2, 62)])

    done = checked(tmp_path, *(row(**given) for given in rows), table={"key": key, "tolerance": 1.0})

    unique = (
        gx.expectations.ExpectColumnValuesToBeUnique(column="id")
        if len(key) == 1
        else gx.expectations.ExpectCompoundColumnsToBeUnique(column_list=key)
    )
    assert 0 < len(done.faults) < 60
    assert set(done.faults) == great_expectations_fails(frame, unique)


def test_a_value_that_many_rows_have_is_judged_as_in_each_row(tmp_path: Path) -> None:
    places, numbers, floats = ["EWR", "ewr", "LGA", "E\u00e9R", ""], ["1", "7", "-1", "", "3"], ["0.5", "-0.0", "9.5", "", "2"]
    rows = [{"id": str(n), "place": places[n % 5], "n": numbers[n // 5 % 5], "x": floats[n // 25 % 5]} for n in range(125)]
    frame = pd.DataFrame(rows, index=[f"{FILE}:{n}" for n in range(2, 127)]).replace("", None)
    frame = frame.astype({"n": float, "x": float})
    columns = {
        "place": {"type": "string", "matches": "^[A-Z]{3}$", "nullable": True},
        "n": {"type": "integer", "min": 0, "max": 5},
        "x": {"type": "float", "min": 0, "max": 9, "nullable": True},
    }

    done = checked(tmp_path, *(row(**given) for given in rows), columns=columns, table={"tolerance": 1.0})

    assert set(done.faults) == great_expectations_fails(
        frame,
        gx.expectations.ExpectColumnValuesToMatchRegex(column="place", regex="^[A-Z]{3}$"),
        gx.expectations.ExpectColumnValuesToNotBeNull(column="n"),
        gx.expectations.ExpectColumnValuesToBeBetween(column="n", min_value=0, max_value=5),
        gx.expectations.ExpectColumnValuesToBeBetween(column="x", min_value=0, max_value=9),
    )


def great_expectations_fails(frame: pd.DataFrame, *expectations: Any) -> set[str]:
    """The labels of the rows that fail when Great Expectations itself is given all of them."""
    asset = gx.get_context(mode="ephemeral", project_config=judge._in_memory()).data_sources.add_pandas("p")
    batch = asset.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    result = batch.get_batch({"dataframe": frame.rename_axis("label").reset_index()}).validate(
        gx.ExpectationSuite(name="rows", expectations=list(expectations)),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["label"]},
    )
    return {item["label"] for one in result.results for item in one.result.get("unexpected_index_list") or ()}


def test_rows_are_judged_the_same_in_batches_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(str(n % 17), n=str(n % 3), place="?" * (n % 5 == 0) + "EWR") for n in range(30)]
    columns = {"place": {"type": "string", "matches": "^[A-Z]+$"}, "n": {"type": "integer", "max": 1, "severity": "warning"}}

    at_once = checked(tmp_path / "1", *rows, columns=columns, table={"tolerance": 1.0})
    monkeypatch.setattr(judge, "BATCH_ROWS", 7)
    in_batches = checked(tmp_path / "2", *rows, columns=columns, table={"tolerance": 1.0})

    assert in_batches.published == at_once.published
    assert in_batches.faults == at_once.faults
    assert in_batches.result.warnings == at_once.result.warnings
    assert in_batches.result.reasons == at_once.result.reasons
    assert 0 < len(at_once.published) < 30


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
    assert two.result.reasons == ["2013-04-02: 0 rows came in where at least 2 are wanted"]


def test_a_part_of_a_day_need_not_bring_a_days_rows(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a") + row("b"))
    folder = trips(tmp_path, table={"checks": {"rows": {"min": 8}}})

    quarter = ingest(folder, tmp_path, Interval.of("2013-04-01T06:00:00Z", "2013-04-01T12:00:00Z"))
    half = ingest(folder, tmp_path, Interval.of("2013-04-01T06:00:00Z", "2013-04-01T18:00:00Z"))

    assert not quarter.result.refused
    assert half.result.reasons == ["2013-04-01: 2 rows came in where at least 4 are wanted"]


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), row("b"), row("c"), table={"checks": {"rows": {"max": 2}}})

    assert done.result.reasons == ["2013-04-01: 3 rows came in where at most 2 are wanted"]


def test_a_count_that_only_warns_publishes(tmp_path: Path) -> None:
    done = checked(tmp_path, row("a"), table={"checks": {"rows": {"min": 2, "severity": "warning"}}})

    assert done.column("id") == ["a"]
    assert done.result.warnings == ["2013-04-01: 1 rows came in where at least 2 are wanted"]


def test_events_must_reach_near_the_end(tmp_path: Path) -> None:
    fresh = checked(tmp_path / "1", row(begun="2013-04-01T23:00:00Z"), table={"checks": {"freshness": {"within": "1h"}}})
    stale = checked(tmp_path / "2", row(begun="2013-04-01T22:59:00Z"), table={"checks": {"freshness": {"within": "1h"}}})
    none = checked(tmp_path / "3", table={"checks": {"freshness": {"within": "1h"}, "rows": {"min": 0}}})

    assert not fresh.result.refused
    assert stale.result.reasons == [
        "the newest event is of 2013-04-01 22:59 UTC, more than 1:00:00 before the end of 2013-04-01"
    ]
    assert none.result.reasons == ["there is no event at all, so none within 1:00:00 of the end of 2013-04-01"]


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

    assert done.result.reasons == ["2 sound rows a day differ by more than 10% from the 900 of the past 28 days"]


def test_a_table_without_event_time_counts_as_one_day(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", begun="1999-01-01") + row("b", begun="2050-01-01"), "trips/all.csv")
    table = {"event_time": None, "known": "always", "checks": {"rows": {"min": 2}}}
    folder = trips(tmp_path, source={"files": "trips/all.csv"}, table=table)

    done = ingest(folder, tmp_path, Interval.of("2013-04-01", "2013-05-01"))
    write(tmp_path, HEADER, "trips/all.csv")
    empty = ingest(folder, tmp_path)

    assert done.column("id") == ["a", "b"]
    assert empty.result.reasons == ["2013-04-01: 0 rows came in where at least 2 are wanted"]
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


# --- quarantine and Data Docs ----------------------------------------------------------------------------------------


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

    with pytest.raises(IntervalRefused, match="trips: table trips: 2013-04-01: 0 rows came in where at least 1 are wanted"):
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


def test_data_docs_lie_at_one_place_a_table_and_interval_and_quote_nothing_raw(tmp_path: Path) -> None:
    columns = {"place": {"type": "string", "matches": "^[A-Z]{3}$"}}
    rows = [row("a"), row("b", place="<script>alert(1)</script>"), row("c", place="<img src=x onerror=alert(1)>")]

    first = checked(tmp_path, *rows, columns=columns)
    second = checked(tmp_path, row("a"), columns=columns)

    page = tmp_path / "docs" / "trips" / "2013-04-01.html"
    assert first.result.data_docs == second.result.data_docs == str(page)
    assert "alert(1)" not in page.read_text()
    assert [file.name for file in page.parent.iterdir()] == [page.name]
    checked(tmp_path, *rows, columns=columns)
    text = page.read_text()
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert(1)" not in text
    assert "<img src=x" not in text
    # Nobody else learns who reads which page when.
    assert not re.search(r"(src|href)=.https?://(?!greatexpectations)|<script|url\(", text)
    assert "default-src 'none'" in text


def test_nothing_is_written_but_the_results_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    done = checked(tmp_path, row("a"), row("b", n="?"))

    assert list((tmp_path / "cwd").iterdir()) == []
    assert {path.name.partition(".")[2] for path in (tmp_path / "staging").iterdir()} == {
        "landed.parquet", "published.parquet", "quarantined.parquet",
    }  # fmt: skip
    assert done.result.rows_in == 2


def test_great_expectations_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        checked(tmp_path, row("a"))

    assert capfd.readouterr() == ("", "")
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("perennial")] == []


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
