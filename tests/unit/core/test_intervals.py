"""How a range of days is cut into parts."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from perennial.core.intervals import Interval

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
