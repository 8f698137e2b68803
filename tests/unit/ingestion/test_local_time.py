"""Local times become moments, or they are told: clocks show an hour twice when they are set back, and skip one later."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.pool import NullPool

from perennial.core.errors import SourceError, SpecError
from perennial.core.intervals import Interval
from perennial.ingestion.local_time import add_macros, strictly, zone_of
from tests.unit.landing import HEADER, PARQUET, ingest, rejects, row, sqlite, trips, typed, write, write_parquet

NEW_YORK = "America/New_York"
LOCAL = {"files": "trips/%Y-%m-%d.csv", "time_zone": NEW_YORK}
ZONES = [NEW_YORK, "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata", "America/Havana", "Pacific/Apia"]


@pytest.fixture(scope="module")
def database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    add_macros(connection)
    return connection


def moments(zone: str, shown: datetime) -> list[datetime]:
    """By Python's own rules: the moments at which the clocks of a zone show a time."""
    found = {shown.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC) for fold in (0, 1)}
    return sorted(moment for moment in found if moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == shown)


CHANGES = [
    "2024-11-03 01:30", "2024-11-02 01:30", "2024-11-04 01:30", "2024-03-10 02:30", "2024-03-09 02:30", "2024-03-11 02:30",
    "2024-04-07 01:45", "2024-10-06 02:15", "2011-12-30 09:00", "2024-11-03 00:30", "2024-10-27 02:30",
]  # fmt: skip
# Zones' rules of later years differ between releases of the time zone database.
DATETIMES = st.datetimes(datetime.fromisoformat("1995-01-01"), datetime.fromisoformat("2024-12-31"))


@given(zone=st.sampled_from(ZONES), shown=DATETIMES | st.sampled_from(CHANGES).map(datetime.fromisoformat))
def test_a_time_has_as_many_moments_as_python_finds(zone: str, shown: datetime, database: duckdb.DuckDBPyConnection) -> None:
    shown = shown.replace(fold=0)
    expected = moments(zone, shown)

    [(times, moment)] = database.execute(
        "SELECT local_times($zone, $shown::TIMESTAMP), local_moment($zone, $shown::TIMESTAMP)", {"zone": zone, "shown": shown}
    ).fetchall()

    assert times == len(expected)
    assert moment == (expected[0] if len(expected) == 1 else None)


# --- naive times of a source with a zone -----------------------------------------------------------------------------

TWICE = "begun: '{}' is shown twice by the clocks of America/New_York, at {} and {} UTC; deliver it with its offset from UTC"


def test_naive_times_are_of_the_sources_zone(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", "2013-04-01 00:00:00") + row("b", "2013-04-01T23:59:59") + row("c", "2013-04-01T12:00Z"))

    done = ingest(trips(tmp_path, source=LOCAL), tmp_path, Interval.of("2013-04-01T04:00Z", "2013-04-02T04:00Z"))

    assert done.column("begun") == [
        datetime(2013, 4, 1, 4, tzinfo=UTC), datetime(2013, 4, 2, 3, 59, 59, tzinfo=UTC), datetime(2013, 4, 1, 12, tzinfo=UTC)
    ]  # fmt: skip


def test_an_hour_that_is_shown_twice_is_told_apart_by_offsets_or_quarantined(tmp_path: Path) -> None:
    rows = [
        row("before", "2013-11-03 00:59:59"), row("first", "2013-11-03 01:30:00-04:00"),
        row("second", "2013-11-03 01:30:00-05:00"), row("unclear", "2013-11-03 01:30:00"),
        row("after", "2013-11-03 02:00:00"),
    ]  # fmt: skip
    write(tmp_path, HEADER + "".join(rows), "trips/2013-11-03.csv")

    done = ingest(trips(tmp_path, source=LOCAL), tmp_path, Interval.of("2013-11-03T04:00Z", "2013-11-04T04:00Z"))

    assert {kept["id"]: f"{kept['begun']:%H:%M:%S}" for kept in done.published} == {
        "before": "04:59:59", "first": "05:30:00", "second": "06:30:00", "after": "07:00:00",
    }  # fmt: skip
    assert done.faults == {"trips/2013-11-03.csv:5": [TWICE.format("2013-11-03 01:30:00", "05:30", "06:30")]}


def test_an_hour_that_is_skipped_is_quarantined(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", "2013-03-10 02:30:00") + row("b", "2013-03-10 03:00:00"), "trips/2013-03-10.csv")

    done = ingest(trips(tmp_path, source=LOCAL), tmp_path, Interval.of("2013-03-10T05:00Z", "2013-03-11T04:00Z"))

    assert done.column("begun") == [datetime(2013, 3, 10, 7, tzinfo=UTC)]
    assert done.faults == {
        "trips/2013-03-10.csv:2": [
            "begun: '2013-03-10 02:30:00' does not exist in America/New_York, whose clocks were set forward; if the times "
            "are of another zone, correct time_zone of the source"
        ]
    }


def test_typed_times_without_a_zone_are_of_the_sources_zone(tmp_path: Path) -> None:
    naive = [datetime(2013, 11, 3, 1, 30), datetime(2013, 11, 3, 12), None]  # noqa: DTZ001
    write_parquet(
        tmp_path,
        typed(begun=[datetime(2013, 11, 3, 18, n, tzinfo=UTC) for n in range(3)], seen=pa.array(naive, pa.timestamp("ns"))),
        "trips/2013-11-03.parquet",
    )
    day = {"type": "date", "sql": "date_trunc('day', begun AT TIME ZONE 'America/New_York')"}
    columns = {"seen": {"type": "timestamp", "nullable": True}, "day": day}

    done = ingest(
        trips(tmp_path, source={**PARQUET, "time_zone": NEW_YORK}, columns=columns), tmp_path,
        Interval.of("2013-11-03T04:00Z", "2013-11-04T05:00Z"),
    )  # fmt: skip

    assert done.column("seen") == [datetime(2013, 11, 3, 17, tzinfo=UTC), None]
    assert [f"{day}" for day in done.column("day")] == ["2013-11-03", "2013-11-03"]
    [[reason]] = done.faults.values()
    assert reason == TWICE.format("2013-11-03 01:30:00", "05:30", "06:30").replace("begun", "seen").replace("'", "")


def test_hours_that_clocks_show_twice_do_not_refuse_their_day(tmp_path: Path) -> None:
    half_hours = [datetime(2013, 11, 3, 4, tzinfo=UTC) + n * timedelta(minutes=30) for n in range(50)]
    shown = [moment.astimezone(ZoneInfo(NEW_YORK)) for moment in half_hours]
    rows = [row(f"{n}", f"{at:%Y-%m-%d %H:%M:%S}") for n, at in enumerate(shown)]
    write(tmp_path, HEADER + "".join(rows), "trips/2013-11-03.csv")

    folder = trips(tmp_path, source=LOCAL, table={"tolerance": 0.05})
    done = ingest(folder, tmp_path, Interval.of("2013-11-03T04:00Z", "2013-11-04T05:00Z"))

    assert not done.result.refused
    assert done.column("begun") == [moment for moment in half_hours if not 5 <= moment.hour < 7 or moment.day != 3]
    assert len(done.quarantined) == 4


# --- files of local days ---------------------------------------------------------------------------------------------


def local_days(path: Path, first: datetime, days: int) -> None:
    """A file for each local day of New York, with a row for each half hour by its offset, and one that cannot be read."""
    for n in range(days):
        day = (first + timedelta(days=n)).date()
        start = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(NEW_YORK)).astimezone(UTC)
        moments = [start + timedelta(minutes=30 * half) for half in range(52)]
        shown = [moment.astimezone(ZoneInfo(NEW_YORK)) for moment in moments]
        rows = [row(f"{at.timestamp():.0f}", at.isoformat()) for at in shown if at.date() == day]
        write(path, HEADER + "".join(rows) + row(f"{day}", "soon"), f"trips/{day}.csv")


@pytest.mark.parametrize(
    "first", [datetime(2013, 11, 1, tzinfo=UTC), datetime(2013, 3, 8, tzinfo=UTC)], ids=["set back", "set forward"]
)
def test_days_in_utc_are_read_from_the_local_files_that_they_touch(first: datetime, tmp_path: Path) -> None:
    local_days(tmp_path, first, 5)
    folder = trips(tmp_path, source=LOCAL)
    interval = Interval(first + timedelta(days=1), first + timedelta(days=5))

    at_once = ingest(folder, tmp_path, interval)
    one_by_one = [ingest(folder, tmp_path, day) for day in interval.days()]

    assert [len(day.published) for day in one_by_one] == [48] * 4
    assert at_once.published == [kept for day in one_by_one for kept in day.published]
    # A row that cannot be placed is told of once, where the local day of its file begins.
    assert list(at_once.faults) == [position for day in one_by_one for position in day.faults]
    assert len(at_once.faults) == 4
    assert [len(day.landed.files) for day in one_by_one] == [2] * 4


def test_a_row_of_another_local_day_is_told_with_the_zone(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", "2013-04-02 00:00:00"))

    done = ingest(trips(tmp_path, source=LOCAL), tmp_path, Interval.of("2013-04-01T04:00Z", "2013-04-02T04:00Z"))

    assert done.faults == {
        "trips/2013-04-01.csv:2": [
            "begun: 2013-04-02 04:00:00+00 lies outside the period of its file, by the clocks of America/New_York"
        ]
    }


def test_a_local_file_that_is_missing_is_named_with_its_zone(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())

    rejects(tmp_path, "trips/2013-03-31.csv: there is no such file", source=LOCAL)
    rejects(tmp_path, "T04:00:00.000000Z, by the clocks of America/New_York); deliver it", source=LOCAL)


def test_a_closed_day_is_the_local_day_for_files_and_the_day_in_utc_for_rows(tmp_path: Path) -> None:
    model = trips(tmp_path, source=LOCAL, closed=["2013-04-02"])
    evening = row("a", "2013-04-01T21:00:00")  # 01:00 of the next day in UTC
    write(tmp_path, HEADER + row("b", "2013-04-01T10:00:00") + evening)
    write(tmp_path, HEADER + row("c", "2013-04-03T00:30:00"), "trips/2013-04-03.csv")  # 04:30 in UTC

    # The file of the closed local day is missing from both days in UTC that it belongs to.
    closed, after = Interval.day("2013-04-02"), Interval.day("2013-04-03")
    assert ingest(model, tmp_path, closed).column("id") == ["a"]
    write(tmp_path, HEADER + row("d", "2013-04-04T12:00:00"), "trips/2013-04-04.csv")
    assert ingest(model, tmp_path, after).column("id") == ["c"]
    # The files of the days beside it are still needed, and rows are required of each day but the closed one.
    write(tmp_path, HEADER)
    write(tmp_path, HEADER, "trips/2013-04-03.csv")
    assert not ingest(model, tmp_path, closed).result.refused
    assert ingest(model, tmp_path, after).result.refused
    (tmp_path / "data" / "trips" / "2013-04-01.csv").unlink()
    with pytest.raises(SourceError, match=r"trips/2013-04-01\.csv: there is no such file"):
        ingest(model, tmp_path, closed)


def test_the_time_of_a_dated_file_is_of_the_sources_clock(tmp_path: Path) -> None:
    columns = {"begun": {"type": "timestamp", "from": ["file_time"]}}
    for day in (1, 2):
        write(tmp_path, f"id,place,n,x\n{day},EWR,1,0.5\n", f"trips/2013-04-0{day}.csv")
    done = ingest(
        trips(tmp_path, source=LOCAL, columns=columns), tmp_path, Interval.of("2013-04-01T04:00Z", "2013-04-03T04:00Z")
    )
    assert done.column("begun") == [datetime(2013, 4, day, 4, tzinfo=UTC) for day in (1, 2)]


@pytest.mark.parametrize("zone", ["America/Nowhere", "/etc/localtime", "../UTC"])
def test_a_zone_that_does_not_exist_is_refused(zone: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no time zone; write a name such as America/New_York"):
        trips(tmp_path, source={**LOCAL, "time_zone": zone})


# --- expressions that convert local times ----------------------------------------------------------------------------

BY_SQL = {"begun": {"type": "timestamp", "sql": "begun::TIMESTAMP AT TIME ZONE 'America/New_York'"}}


def test_an_expression_that_converts_local_times_merges_no_hour_in_silence(tmp_path: Path) -> None:
    rows = [row(f"{n}", f"2013-11-03 0{n // 2}:{n % 2 * 3}0:00") for n in range(8)]
    write(tmp_path, HEADER + "".join(rows), "trips/all.csv")
    folder = trips(tmp_path, source={"files": "trips/*.csv"}, columns=BY_SQL)

    done = ingest(folder, tmp_path, Interval.day("2013-11-03"))

    assert [f"{moment:%H:%M}" for moment in done.column("begun")] == ["04:00", "04:30", "07:00", "07:30", "08:00", "08:30"]
    assert list(done.faults) == ["trips/all.csv:4", "trips/all.csv:5"]
    [reason] = done.faults["trips/all.csv:4"]
    assert reason.endswith(
        "cannot be computed for this row: a time that the clocks of America/New_York show twice, or skip, is no single moment; "
        "deliver it with its offset from UTC"
    )
    # Other days do not tell of it.
    assert ingest(folder, tmp_path, Interval.day("2013-11-04")).faults == {}


STRICT: dict[str, Any] = {
    "begun::TIMESTAMP AT TIME ZONE 'America/New_York'": NEW_YORK,
    "timezone('America/New_York', begun::TIMESTAMP)": NEW_YORK,
    "CASE WHEN true THEN strptime(begun, '%Y') AT TIME ZONE 'Europe/Berlin' -- so\n END": "Europe/Berlin",
}


@pytest.mark.parametrize("sql", STRICT)
def test_a_conversion_is_found_wherever_it_stands(sql: str) -> None:
    assert "strict_timezone" in strictly(sql)
    assert zone_of(sql) == STRICT[sql]


@pytest.mark.parametrize(
    "sql", ["upper(place)", "begun::TIMESTAMP WITH TIME ZONE", "begun::TIMESTAMP AT TIME ZONE 'UTC'", "'time zone' ||"]
)
def test_other_expressions_stay_as_they_are(sql: str) -> None:
    assert strictly(sql) == sql


# --- databases -------------------------------------------------------------------------------------------------------

QUERY = {"sql": "SELECT * FROM trips WHERE begun >= :start AND begun < :end ORDER BY id", "connection": "shop"}
CREATE = "CREATE TABLE trips (id varchar(9), begun {}, place varchar(9), n integer, x double precision)"
SHOWN = ["2013-11-02 20:00:00", "2013-11-03 00:30:00", "2013-11-03 01:30:00", "2013-11-03 18:59:59", "2013-11-03 19:00:00"]


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    if request.param == "sqlite":
        return sqlite(tmp_path)
    return sa.create_engine(request.getfixturevalue("postgres"), poolclass=NullPool)


def test_naive_times_of_a_database_are_of_the_sources_zone(engine: sa.Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(CREATE.format("text" if engine.dialect.name == "sqlite" else "timestamp"))
        for n, shown in enumerate(SHOWN):
            connection.exec_driver_sql(f"INSERT INTO trips VALUES ('r{n}', '{shown}.000000', 'EWR', 1, 1)")
    connect: Callable[[str], sa.Engine] = {"shop": engine}.__getitem__
    folder = trips(tmp_path, source={**QUERY, "time_zone": NEW_YORK})

    done = ingest(folder, tmp_path, Interval.day("2013-11-03"), connect=connect)

    assert done.column("id") == ["r0", "r1", "r3"]
    assert [f"{moment:%d %H:%M}" for moment in done.column("begun")] == ["03 00:00", "03 04:30", "03 23:59"]
    [[reason]] = done.faults.values()
    assert "is shown twice by the clocks of America/New_York, at 05:30 and 06:30 UTC" in reason
    after = ingest(folder, tmp_path, Interval.day("2013-11-04"), connect=connect)
    assert (after.column("id"), after.faults) == (["r4"], {})
