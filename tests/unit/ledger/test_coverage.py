"""What published days still wait for."""

from __future__ import annotations

from typing import Any

from perennial.core.intervals import Interval, utc
from perennial.ledger.coverage import Awaited, Waiting
from perennial.ledger.records import Publication

FIRST, SECOND = Interval.day("2024-01-01"), Interval.day("2024-01-02")
BOTH = Interval(FIRST.start, SECOND.end)


def published(number: int, interval: Interval, rows: dict[str, int], **inputs: Any) -> Publication:
    at = utc(f"2024-01-05T{number:02}:00:00Z")
    return Publication(number, "shop", "tables", interval, number, {}, {}, rows, "r", at, inputs)


def without(number: int, interval: Interval, *days: Interval, rows: int = 0) -> Publication:
    """A publication without the outcomes of some days."""
    return published(number, interval, {"orders": 5, "outcomes": rows}, awaited={"outcomes": [day.key for day in days]})


def days(waiting: Waiting) -> list[Interval]:
    return [one.day for one in waiting.tables["outcomes"]]


def test_a_day_waits_for_a_table_since_it_was_first_published_without_it() -> None:
    waiting = Waiting([without(1, FIRST, FIRST), published(2, SECOND, {"orders": 5, "outcomes": 5}), without(3, FIRST, FIRST)])

    assert waiting.tables == {"outcomes": [Awaited(FIRST, utc("2024-01-05T01:00:00Z"))]}


def test_rows_that_come_late_end_the_waiting_of_their_day_and_table_alone() -> None:
    waiting = Waiting([without(1, FIRST, FIRST), without(2, SECOND, SECOND)])
    waiting.add(published(3, FIRST, {"orders": 6}, late={"orders": 1}))
    assert days(waiting) == [FIRST, SECOND]

    waiting.add(published(4, FIRST, {"outcomes": 4}, late={"outcomes": 4}))
    assert days(waiting) == [SECOND]


def test_an_ingest_of_the_day_with_its_table_ends_the_waiting_also_if_it_is_part_of_a_range() -> None:
    assert Waiting([without(1, FIRST, FIRST), published(2, BOTH, {"orders": 9, "outcomes": 9})]).tables == {}

    half = Waiting([without(1, FIRST, FIRST), without(2, BOTH, SECOND, rows=4)])
    assert days(half) == [SECOND]


def test_a_table_that_was_not_written_keeps_what_it_had() -> None:
    late = published(2, FIRST, {"outcomes": 4}, late={"outcomes": 4})
    again = published(3, FIRST, {"orders": 5}, awaited={"outcomes": [FIRST.key]})

    assert Waiting([without(1, FIRST, FIRST), late, again]).tables == {}
