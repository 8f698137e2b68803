"""How a range of days is cut into parts, days and weeks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from perennial.core.intervals import Interval, merged, window_start

DAY = timedelta(days=1)


@given(days=st.integers(1, 8000), length=st.integers(1, 366), most=st.integers(1, 100))
def test_parts_are_the_range_without_gap_or_overlap(days: int, length: int, most: int) -> None:
    whole = Interval.of("2013-01-01", Interval.day("2013-01-01").start + days * DAY)
    parts = whole.parts(length * DAY, most)
    assert (parts[0].start, parts[-1].end) == (whole.start, whole.end)
    assert all(before.end == after.start for before, after in pairwise(parts))
    assert len(parts) <= most
    assert all(len(part.days()) * DAY == part.length for part in parts)


def test_a_day_is_one_part() -> None:
    assert Interval.day("2013-04-01").parts(28 * DAY, 64) == [Interval.day("2013-04-01")]


def test_parts_are_longer_than_asked_for_where_there_would_be_too_many() -> None:
    year = Interval.of("2013-01-01", "2014-01-01")
    assert [part.key for part in year.parts(28 * DAY, 64)][:2] == ["2013-01-01--2013-01-29", "2013-01-29--2013-02-26"]
    assert {part.length for part in year.parts(DAY, 64)[:-1]} == {6 * DAY}


@given(hours=st.integers(-600_000, 1_200_000))
def test_a_week_begins_on_the_monday_before(hours: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
    start = window_start(moment, 7 * DAY)
    assert start.weekday() == 0
    assert start <= moment < start + 7 * DAY
    assert start.isocalendar()[:2] == moment.isocalendar()[:2]
    assert window_start(moment, DAY) == datetime(moment.year, moment.month, moment.day, tzinfo=UTC)


def test_windows_are_the_whole_weeks_inside() -> None:
    month = Interval.of("2013-04-02", "2013-04-29")
    assert [week.key for week in month.windows(7 * DAY)] == [
        "2013-04-08--2013-04-15",
        "2013-04-15--2013-04-22",
        "2013-04-22--2013-04-29",
    ]
    assert Interval.of("2013-04-02", "2013-04-08").windows(7 * DAY) == []
    assert Interval.of("2013-04-01T06:00:00Z", "2013-04-03T06:00:00Z").windows(DAY) == [Interval.day("2013-04-02")]


def test_touched_days_are_whole_days() -> None:
    assert Interval.of("2013-04-01", "2013-04-03").touched_days() == Interval.of("2013-04-01", "2013-04-03").days()
    part = Interval.of("2013-04-01T23:59:00Z", "2013-04-02T00:00:01Z")
    assert part.touched_days() == [Interval.day("2013-04-01"), Interval.day("2013-04-02")]


def test_adjacent_days_are_one_range() -> None:
    days = [Interval.day(f"2013-04-{day:02}") for day in (1, 2, 3, 5, 7, 8)]

    assert [part.key for part in merged(days)] == ["2013-04-01--2013-04-04", "2013-04-05", "2013-04-07--2013-04-09"]
    assert merged([]) == []
