"""Landing a source gives the rows of its interval, and records what was read."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from perennial.core.intervals import Interval
from perennial.ingestion.sources import Landed, land_once
from tests.unit.landing import (
    COLUMNS,
    HEADER,
    at,
    ingest,
    no_connection,
    row,
    trips,
    write,
)

WEEK = Interval.of("2013-04-01", "2013-04-08")


def test_what_was_read_is_recorded_as_it_is_stored(tmp_path: Path) -> None:
    content = (HEADER + row()).encode()
    write(tmp_path, content)

    landed = ingest(trips(tmp_path), tmp_path).landed

    digest = hashlib.sha256(content).hexdigest()
    [read] = landed.files
    assert read.pop("version")
    assert read == {"name": "trips/2013-04-01.csv", "bytes": len(content), "sha256": digest, "period": "2013-04-01"}


def test_days_of_a_week_hold_the_same_rows_one_by_one_or_at_once(tmp_path: Path) -> None:
    folder = trips(tmp_path)
    for day in range(1, 8):
        # The last row of each file is of the day after.
        content = row(f"{day}a", at(0, day)) + row(f"{day}b", at(23, day)) + row(f"{day}c", at(0, day + 1))
        write(tmp_path, HEADER + content, f"trips/2013-04-0{day}.csv")

    at_once = ingest(folder, tmp_path, WEEK)
    one_by_one = [ingest(folder, tmp_path, day) for day in WEEK.days()]

    assert at_once.published == [kept for day in one_by_one for kept in day.published]
    assert at_once.faults == {position: why for day in one_by_one for position, why in day.faults.items()}
    assert len(at_once.published) == 14
    assert len(at_once.quarantined) == 7


def test_a_part_of_a_files_period_takes_its_own_rows_alone(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", at(5)) + row("b", at(6)) + row("c", at(11)) + row("d", at(12)) + row("e", ""))

    done = ingest(
        trips(tmp_path), tmp_path, Interval.of(datetime(2013, 4, 1, 6, tzinfo=UTC), datetime(2013, 4, 1, 12, tzinfo=UTC))
    )

    assert done.column("id") == ["b", "c"]
    # It may be of this part as well as of any other.
    assert done.faults == {"trips/2013-04-01.csv:6": ["begun: missing"]}


def test_a_pattern_without_dates_gives_the_rows_of_the_interval(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", at(0, 1)) + row("b", at(0, 2)) + row("c", at(0, 3)), "trips/all.csv")
    write(tmp_path, HEADER + row("d", at(23, 2)) + row("e", "soon"), "trips/more.csv")

    done = ingest(trips(tmp_path, source={"files": "trips/*.csv"}), tmp_path, Interval.day("2013-04-02"))

    assert done.column("id") == ["b", "d"]
    assert list(done.faults) == ["trips/more.csv:3"]
    assert done.result.rows_in == 3


def test_an_attempt_leaves_what_others_landed(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())
    folder = trips(tmp_path)

    first = ingest(folder, tmp_path).landed
    second = ingest(folder, tmp_path).landed

    assert first.paths[0] != second.paths[0]
    assert first.paths[0].exists()
    assert {path.name for path in (tmp_path / "staging").glob("*.landed.parquet")} == {
        first.paths[0].name,
        second.paths[0].name,
    }


def test_the_columns_of_the_tests_are_those_of_the_file() -> None:
    assert ",".join(COLUMNS) + "\n" == HEADER


def test_files_without_dates_are_read_once_for_all_days_until_they_change(tmp_path: Path) -> None:
    folder = trips(tmp_path, source={"files": "trips/*.csv"})
    write(tmp_path, HEADER + row("a", at(1, 1)) + row("b", at(1, 2)), "trips/all.csv")

    def land(day: int) -> Landed:
        place = tmp_path / "shared"
        return land_once(folder, "trips", Interval.day(f"2013-04-0{day}"), place, data=tmp_path / "data", connect=no_connection)

    first = land(1)
    assert (first.rows, land(2)) == (2, first)
    write(tmp_path, HEADER + row("a", at(1, 1)) + row("b", at(1, 2)) + row("c", at(1, 3)), "trips/all.csv")
    assert land(3).rows == 3
    first.paths[0].unlink()
    write(tmp_path, HEADER + row("a", at(1, 1)), "trips/all.csv")
    assert land(1).rows == 1


def test_a_range_of_a_table_that_comes_whole_each_day_leaves_what_its_last_day_leaves(tmp_path: Path) -> None:
    folder = trips(tmp_path, table={"event_time": None, "known": "always"})
    for day in range(1, 8):
        write(tmp_path, HEADER + row("a", at(day, day)) + row("b", at(0, day)), f"trips/2013-04-0{day}.csv")

    at_once, last = ingest(folder, tmp_path, WEEK), ingest(folder, tmp_path, WEEK.days()[-1])

    assert at_once.published == last.published
    assert (at_once.quarantined, at_once.result.refused) == ([], False)
    assert [file["name"] for file in at_once.landed.files] == ["trips/2013-04-07.csv"]
