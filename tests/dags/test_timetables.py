"""Which day follows which, by the timetable as the scheduler reads it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from airflow.sdk.timezone import coerce_datetime
from airflow.timetables import trigger
from airflow.timetables.base import DagRunInfo, TimeRestriction

from perennial.orchestration import timetables
from perennial.orchestration.assets import each_day

NOW = coerce_datetime(datetime(2026, 11, 20, 12, tzinfo=UTC))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trigger, timetables):
        monkeypatch.setattr(module, "utcnow", lambda: NOW)


def following(last_tick: str | None, *, catch_up: timedelta = timedelta(days=30)) -> str | None:
    """The day of the run after that of a tick."""
    made = each_day("0 2 * * *", catch_up=catch_up)
    stored = timetables.EachDay.deserialize(made.serialize())
    last = None
    if last_tick is not None:
        ran = coerce_datetime(datetime.fromisoformat(f"{last_tick}T02:00:00+00:00"))
        last = DagRunInfo(run_after=ran, data_interval=None, partition_date=None, partition_key=None)
    found = stored.next_dagrun_info_v2(last_dagrun_info=last, restriction=TimeRestriction(None, None, catchup=False))
    assert found is not None
    return found.partition_key


@pytest.mark.parametrize(
    ("last_tick", "catch_up", "day"),
    [
        ("2026-11-20", 30, "2026-11-20"),  # nothing was missed: tomorrow's tick is next
        ("2026-11-19", 30, "2026-11-19"),
        ("2026-11-10", 30, "2026-11-10"),
        ("2026-11-10", 3, "2026-11-17"),  # the tick of the 18th is the oldest of the last three days
        ("2026-11-10", 1, "2026-11-19"),
        ("2024-01-01", 30, "2026-10-21"),
    ],
)
def test_the_next_day_is_the_oldest_missed_one_within_the_bound(last_tick: str, catch_up: int, day: str) -> None:
    assert following(last_tick, catch_up=timedelta(days=catch_up)) == day


def test_the_newest_day_is_never_left_out() -> None:
    assert following("2026-11-10", catch_up=timedelta(hours=1)) == "2026-11-19"


def test_a_dag_that_never_ran_makes_up_for_nothing() -> None:
    assert following(None) == "2026-11-20"
