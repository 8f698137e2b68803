"""What published days still wait for, and which predictions are older than their features."""

from __future__ import annotations

import dataclasses
from typing import Any

from perennial.core.intervals import Interval, utc
from perennial.ledger.coverage import Awaited, Waiting, outdated
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


# --- predictions that are older than their features ------------------------------------------------------------------


def features(number: int, interval: Interval, content: str, digest: str = "d") -> Publication:
    one = published(number, interval, {"features": 1}, features_digest=digest)
    return dataclasses.replace(one, dataset="features", hashes={"features": content})


def scored(number: int, interval: Interval, **inputs: int) -> Publication:
    return dataclasses.replace(published(number, interval, {"predictions": 1}, **inputs), dataset="predictions")


def test_a_day_is_outdated_while_its_features_changed_after_it_was_scored() -> None:
    made = [features(1, FIRST, "a"), features(2, SECOND, "b"), features(5, FIRST, "c")]
    day_by_day = [scored(3, FIRST), scored(4, SECOND)]

    assert outdated(made, day_by_day) == [FIRST]
    assert outdated(made, [*day_by_day, scored(6, FIRST)]) == []


def test_features_that_are_built_again_with_the_same_rows_outdate_nothing() -> None:
    assert outdated([features(1, FIRST, "a"), features(3, FIRST, "a")], [scored(2, FIRST)]) == []
    # Several days at once cannot be compared with one.
    assert outdated([features(1, FIRST, "a"), features(3, BOTH, "a")], [scored(2, FIRST)]) == [FIRST]


def test_another_definition_of_features_outdates_nothing() -> None:
    made = [features(1, FIRST, "a"), features(3, FIRST, "b", digest="another")]
    assert outdated(made, [scored(2, FIRST)]) == []
    assert outdated([*made, features(4, FIRST, "c", digest="another")], [scored(2, FIRST)]) == [FIRST]


def test_predictions_that_were_published_after_features_that_they_did_not_see_are_outdated() -> None:
    made = [features(1, FIRST, "a"), features(2, FIRST, "b")]
    assert outdated(made, [scored(3, FIRST, features_publication=1)]) == [FIRST]
    assert outdated(made, [scored(3, FIRST, features_publication=2)]) == []
