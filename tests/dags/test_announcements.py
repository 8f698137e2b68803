"""What follows the publication of a range of days, in Airflow's own runs: what the form names, oldest first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.orchestration.ingest import ANNOUNCED_AT_ONCE
from perennial.orchestration.score import is_monitored
from tests.dags.conftest import Airflow
from tests.unit.shop import Shop

DAYS = [f"{date(2024, 1, 1) + timedelta(days=day)}" for day in range(98)]
MONDAYS = DAYS[::7]
HISTORY = {"start": DAYS[0], "end": "2024-04-08"}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    home: Path = tmp_path_factory.mktemp("announcements")
    shop = Shop(home, schedules={"train": "week", "monitor": "week"})
    for table in ("orders", "outcomes"):
        (shop.settings.data / table).mkdir(parents=True)
        for day in DAYS:
            rows = f"id,placed,told,amount\n{table}{day},{day}T10:00:00Z,{day}T11:00:00Z,5\n"
            (shop.settings.data / table / f"{day}.csv").write_text(rows)
    given = {
        "PERENNIAL_STATE": str(shop.settings.state),
        "PERENNIAL_DATA": str(shop.settings.data),
        "PERENNIAL_DATABASE_URL": shop.settings.database_url,
        "PERENNIAL_CATALOG_URL": shop.settings.catalog_url,
        "PERENNIAL_WAREHOUSE": shop.settings.warehouse,
    }
    running = Airflow(
        home / "airflow", shop.settings.models, ["ingest.py", "load.py", "score.py", "monitor.py", "train.py"], given
    )
    running("parse")
    running("schedule")
    for stage in ("ingest", "score", "monitor", "train"):
        running("work", f"shop.{stage}")
    yield running
    running.close()


def announced(done: dict[str, Any], asset: str) -> list[str]:
    return [key for name, key in done["events"] if name == f"shop.{asset}"]


def test_a_load_announces_nothing_unless_it_is_asked_for(airflow: Airflow) -> None:
    done = airflow("run", "shop.load", HISTORY)

    assert done["states"]["build_features"] == "success"
    assert done["states"].get("announce_days", "skipped") == "skipped"
    assert done["events"] == []
    assert airflow("work", "shop.score")["keys"] == []


def test_a_load_of_many_parts_is_scored_oldest_day_first_and_trained_on_oldest_week_first(airflow: Airflow) -> None:
    announce = {"announce_scoring": True, "announce_training": True}
    done = airflow("run", "shop.load", {**HISTORY, "days_per_part": 25, **announce})

    assert len(DAYS) > ANNOUNCED_AT_ONCE.days
    assert announced(done, "features") == DAYS
    assert announced(done, "trainable") == DAYS
    assert airflow("started", "shop.score") == DAYS
    assert airflow("started", "shop.train") == MONDAYS


def test_a_load_is_scored_without_a_training_and_trained_on_without_a_scoring(airflow: Airflow) -> None:
    days = {"start": DAYS[0], "end": DAYS[14]}
    scored = airflow("run", "shop.load", {**days, "announce_scoring": True})
    assert {name for name, _ in scored["events"]} == {"shop.features"}
    assert airflow("work", "shop.score")["keys"] == DAYS[:14]
    assert airflow("work", "shop.train")["keys"] == []

    trained = airflow("run", "shop.load", {**days, "announce_training": True})
    assert {name for name, _ in trained["events"]} == {"shop.trainable"}
    assert airflow("work", "shop.score")["keys"] == []
    assert airflow("work", "shop.train")["keys"] == MONDAYS[:2]


def test_days_that_a_person_ingests_are_announced_unless_the_form_says_otherwise(airflow: Airflow) -> None:
    days = {"start": DAYS[0], "end": DAYS[7]}
    everything = airflow("run", "shop.ingest", days)
    assert announced(everything, "features") == announced(everything, "trainable") == DAYS[:7]

    corrected = airflow("run", "shop.ingest", {**days, "announce_training": False})
    assert {name for name, _ in corrected["events"]} == {"shop.features"}


# --- monitoring, which follows the scoring ---------------------------------------------------------------------------


def event(**extra: object) -> SimpleNamespace:
    return SimpleNamespace(extra=extra)


def test_days_that_are_announced_to_scoring_alone_are_not_monitored() -> None:
    assert not is_monitored({"features": [event(monitoring=False), event(monitoring=False)]})


def test_days_are_monitored_if_one_announcement_asks_for_it_or_a_person_scores_them() -> None:
    assert is_monitored({"features": [event(monitoring=False), event(monitoring=True)]})
    assert is_monitored({"due": [event(overdue=[])]})
    assert is_monitored({})
