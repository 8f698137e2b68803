"""Labels are mature when they have had the time to come."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.core.intervals import utc
from perennial.features.maturity import mature_until, measure_delay, passes_from, typical_delay
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from tests.unit.features.shop import SPEC, april, hours, ingest_tables, shop, table, tables_of

DAY = timedelta(days=1)


@pytest.mark.parametrize(("delay", "until"), [(0, "03-25"), (10 * DAY, "03-15"), (timedelta(hours=30), "03-23")])
def test_labels_are_mature_as_many_whole_days_ago_as_they_take(delay: Any, until: str) -> None:
    assert mature_until(utc("2024-03-25"), delay or timedelta()) == utc(f"2024-{until}")


@pytest.mark.parametrize(
    ("days", "takes"),
    [
        ({}, 0),
        ({0: 5, 1: 95}, 0),  # within a day: as if at once
        ({1: 90, 10: 10}, 10),
        ({2: 96, 300: 4}, 2),
        ({11: 100}, 11),
    ],
)
def test_the_delay_is_the_time_within_which_nearly_all_labels_came(days: dict[int, int], takes: int) -> None:
    assert typical_delay(days) == takes * DAY


@pytest.mark.parametrize("own_time", [False, True])
def test_the_delay_is_measured_from_event_to_label(tmp_path: Path, lake: Lake, ledger: Ledger, own_time: bool) -> None:
    returned = {**SPEC["tables"]["returned"], **({"event_time": "sent_back"} if own_time else {})}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    placed = [24.0 * day + 6 for day in range(20)]
    tables = tables_of(folder, placed)
    rows: list[dict[str, Any]] = [
        {"order_id": f"o{at:g}", "placed": hours(at), "sent_back": hours(at) + 9.5 * DAY, "reason": 0}
        for at in placed
        if hours(at) + 9.5 * DAY < hours(480)
    ]
    tables["returned"] = table(folder, "returned", rows, [row["sent_back"] for row in rows])
    published = ingest_tables(lake, ledger, folder, april(1, 21), tables)

    assert measure_delay(folder, lake, published.snapshots, as_of=hours(480)) == 10 * DAY
    assert measure_delay(folder, lake, published.snapshots, as_of=hours(48)) == timedelta()  # none has come


def test_a_correction_does_not_make_labels_late(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    returned = {**SPEC["tables"]["returned"], "event_time": "sent_back"}
    folder = shop(tmp_path, tables={**SPEC["tables"], "returned": returned})
    tables = tables_of(folder, [1, 2, 3, 4])
    rows: list[dict[str, Any]] = [
        {"order_id": f"o{at}", "placed": hours(at), "sent_back": hours(at + late), "reason": 0}
        for at in (1, 2, 3, 4)
        for late in (5, 480)
    ]
    tables["returned"] = table(folder, "returned", rows, [row["sent_back"] for row in rows])
    published = ingest_tables(lake, ledger, folder, april(1, 30), tables)

    assert measure_delay(folder, lake, published.snapshots, as_of=hours(696)) == timedelta()


REQUIRED: dict[str, Any] = {
    "window": 60 * DAY, "validation": 21 * DAY, "holdout": 14 * DAY, "delay": 11 * DAY, "share": 1.0, "min_rows": 50,
}  # fmt: skip


def days(first: str, count: int, rows: int = 20) -> dict[Any, int]:
    return {utc(first) + n * DAY: rows for n in range(count)}


def test_the_first_day_that_passes_is_told() -> None:
    # 22 days of window, of which 21 validate, then 11 for labels, 14 of holdout, and 11 for labels.
    assert passes_from(days("2024-01-01", 84), as_of=utc("2024-02-01"), **REQUIRED) == utc("2024-02-28")


def test_days_to_come_count_as_the_past_did() -> None:
    few = {**REQUIRED, "min_rows": 600}
    assert passes_from(days("2024-01-01", 10), as_of=utc("2024-01-11"), **few) == utc("2024-03-07")


def test_a_window_that_can_never_hold_enough_rows_has_no_such_day() -> None:
    many = {**REQUIRED, "min_rows": 60 * 20 + 1}
    assert passes_from(days("2024-01-01", 84), as_of=utc("2024-02-01"), **many) is None
    assert passes_from({}, as_of=utc("2024-02-01"), **REQUIRED) is None
