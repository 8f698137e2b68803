"""History: a year of daily partitions, loaded as a range, beside the same rows written at once.

The landing zone has one file per day. Each way ends with the same rows of all five tables in the lake, read, checked and
published by the functions that the tasks call, in one warm process and one after the other, without features:

- ours: the range as ``<model>.load`` cuts it, in parts of 91 days, each published on its own; the table without event
  time is read once.
- the limit: the year as one interval, one publication.
- the naive backfill: one publication per day, as ``<model>.ingest`` makes them; four weeks of the year only.

    python -m benchmarks.history                # all of it
    python -m benchmarks.history --days 14      # a small one, which is told and not kept
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from benchmarks import prepared
from benchmarks.measuring import Line, Told, apart, seconds
from benchmarks.prepared import KEPT, MODEL
from perennial.core.intervals import Interval
from perennial.demo.example_data import DAYS

#: As the form of ``<model>.load`` has it, and the most parts of a range.
DAYS_PER_PART, MOST_PARTS = 91, 64


def load(days: int, days_per_part: int) -> Callable[[], Any]:
    """The first so many days of the year, published in parts of so many."""
    from perennial.ingestion.checks import CheckResult
    from perennial.ingestion.publish import publish_interval

    state = KEPT / "history-scratch"
    shutil.rmtree(state, ignore_errors=True)
    parts = prepared.new_deployment(state, prepared.landing_zone(1))
    folder, lake, ledger = parts.model(MODEL), parts.lake, parts.ledger
    whole = Interval(DAYS.start, DAYS.start + timedelta(days=days))
    cut = whole.parts(timedelta(days=days_per_part), MOST_PARTS if days_per_part > 1 else days)

    def checked(table: str, interval: Interval) -> CheckResult:
        return prepared.land_and_check(parts, folder, table, interval, parts.settings.staging / interval.key)

    def run() -> dict[str, int]:
        timeless = [checked(name, whole) for name, table in folder.spec.tables.items() if not table.event_time]
        rows: dict[str, int] = {}
        for part in cut:
            ledger.next_order(MODEL, "tables", part, "benchmark")
            results = [checked(name, part) for name, table in folder.spec.tables.items() if table.event_time]
            # A table without event time is published with the part that ends last.
            results += timeless if part == cut[-1] else []
            names = {result.table for result in results}
            done = publish_interval(folder, lake, part, results, tables=names, run_id="benchmark")
            for name, count in done.rows.items():
                rows[name] = rows.get(name, 0) + count
        return {**rows, "publications": len(cut)}

    return run


def measure(days: int, repeat: int, days_by_day: int) -> Told:
    told = Told("history")
    at_once = apart(load, days=days, days_per_part=366, repeat=repeat)
    in_parts = apart(load, days=days, days_per_part=DAYS_PER_PART, repeat=repeat)
    flights = at_once[0].result["flights"]
    title = "a year" if days == 365 else f"{days} days"
    told.details |= {"at_once": at_once[0].result, "in_parts": in_parts[0].result}
    told.details["peak_mb"] = {"at_once": at_once[0].peak_mb, "in_parts": in_parts[0].peak_mb}
    assert _rows(in_parts[0].result) == _rows(at_once[0].result)
    told.add(
        Line(
            claim=f"load {title} of daily partitions as a range ({flights:,} flights)",
            beside="the same rows in one write",
            ours=seconds(in_parts), peer=seconds(at_once), goal=2.0,
        )
    )  # fmt: skip
    by_day = apart(load, days=days_by_day, days_per_part=1)
    beside = apart(load, days=days_by_day, days_per_part=366, repeat=repeat)
    assert _rows(by_day[0].result) == _rows(beside[0].result)
    told.details["by_day"] = by_day[0].result
    told.details["peak_mb"]["by_day"] = by_day[0].peak_mb
    told.add(
        Line(
            claim=f"load {days_by_day} days of daily partitions day by day",
            beside="the same rows in one write",
            ours=seconds(by_day), peer=seconds(beside),
        )
    )  # fmt: skip
    shutil.rmtree(KEPT / "history-scratch", ignore_errors=True)
    return told


def _rows(result: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in result.items() if name != "publications"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    done = measure(given.days, given.repeat, days_by_day=min(given.days, 28))
    if given.days == 365:
        done.write()
    else:
        print(done.details)
