"""What was red goes away once it is mended, in Airflow's own runs; and each run has a note that says what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perennial.ledger.store import Ledger
from perennial.orchestration.notes import LONGEST, compose
from tests.dags.conftest import trigger_dags
from tests.unit.shop import Shop


@dataclass(frozen=True)
class Days:
    """What came of a day that was refused, mended, and loaded with the days after it."""

    refused: dict[str, Any]
    loaded: dict[str, Any]
    notes: list[list[str | None]]
    ledger: Ledger


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    home: Path = tmp_path_factory.mktemp("mended")
    shop = Shop(home)
    settings = shop.settings
    for day in "123":
        shop.deliver("outcomes", day, f"o{day} {day}T10 {day}T11 1")
    for day in "23":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
    mended = shop.deliver("orders", "1", "a1 1T10 1T11 5").rename(settings.data / "mended.csv")
    empty = shop.deliver("orders", "1")
    given = {
        "PERENNIAL_STATE": str(settings.state),
        "PERENNIAL_DATA": str(settings.data),
        "PERENNIAL_DATABASE_URL": settings.database_url,
        "PERENNIAL_CATALOG_URL": settings.catalog_url,
        "PERENNIAL_WAREHOUSE": settings.warehouse,
    }
    requests: list[dict[str, Any]] = [
        {"run": ["shop.ingest", None, {"start": "2024-01-01", "end": "2024-01-02"}]},
        {"move": [str(mended), str(empty)]},
        # The day and the one after it are one part.
        {"run": ["shop.load", None, {"start": "2024-01-01", "end": "2024-01-04", "days_per_part": 2}]},
        {"notes": ["shop.ingest"]},
        {"notes": ["shop.load"]},
    ]
    (refused, _, loaded, *notes), _ = trigger_dags(home, requests, given)
    return Days(refused, loaded, [one["notes"] for one in notes], shop.deployment.ledger)


def test_a_day_that_was_refused_and_loaded_with_others_is_well_again(days: Days) -> None:
    assert {task for task, state in days.refused.items() if state == "failed"} == {"check_orders", "publish_tables"}
    assert "failed" not in days.loaded.values()
    entries = days.ledger.alerts()
    red = [entry for entry in entries if entry.alert.subject is not None]
    assert sorted(entry.alert.kind for entry in red) == ["interval_refused", "run_failed", "run_failed"]
    assert [entry.alert.title for entry in red if entry.resolved_by is None] == []
    assert sum(entry.alert.kind == "recovered" for entry in entries) == 3


def test_each_run_has_a_note_of_what_came_of_it(days: Days) -> None:
    [[refused], [loaded]] = days.notes
    assert refused is not None
    assert refused.startswith("shop, 2024-01-01: nothing of the interval is published")
    assert loaded == "1 - 2 Jan 2024: orders 2, outcomes 2 rows; 3 Jan 2024: orders 1, outcomes 1 rows"


def test_a_note_is_what_the_last_task_said_with_all_its_parts() -> None:
    assert compose([]) == ""
    assert compose([("decide", "v3 passed"), ("promote", "v3 is champion")]) == "v3 is champion"
    parts = [("publish", f"part {number}") for number in range(6)]
    assert compose([("split", "6 parts"), *parts]) == "part 0; part 1; part 2; part 3; and 2 more"
    assert len(compose([("a", "x" * 5000)])) == LONGEST
