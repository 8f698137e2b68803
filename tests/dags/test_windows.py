"""What Airflow's scheduler makes of days that are published, of a day that is not, and of what is overdue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dags.conftest import Airflow, add_model

WEEK = [f"2026-11-{day:02}" for day in range(2, 9)]  # from a Monday


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    home: Path = tmp_path_factory.mktemp("windows")
    add_model(home / "models", "shop", "schedules: {train: month, monitor: week}")
    running = Airflow(home / "airflow", home / "models", ["ingest.py", "score.py", "monitor.py", "train.py"])
    running("parse")
    running("schedule")
    for stage in ("ingest", "score", "monitor", "train"):
        running("work", f"shop.{stage}")
    yield running
    running.close()


def publish(airflow: Airflow, asset: str, *days: str) -> None:
    for day in days:
        airflow("publish", asset, day)


def test_a_week_is_monitored_once_all_its_days_are_scored(airflow: Airflow) -> None:
    publish(airflow, "shop.predictions", *WEEK[:6])
    assert airflow("work", "shop.monitor")["keys"] == []
    assert airflow("waiting", "shop.monitor") == [WEEK[0]]

    publish(airflow, "shop.predictions", WEEK[6])
    assert airflow("work", "shop.monitor")["keys"] == [WEEK[0]]
    assert airflow("waiting", "shop.monitor") == []


def test_an_overdue_week_is_monitored_once_and_nothing_keeps_waiting_for_its_missing_day(airflow: Airflow) -> None:
    publish(airflow, "shop.predictions", *(f"2026-11-{day:02}" for day in (9, 10, 12, 13, 14, 15)))
    assert airflow("work", "shop.monitor")["keys"] == []

    publish(airflow, "shop.monitor.due", "2026-11-09")

    assert airflow("work", "shop.monitor")["keys"] == ["2026-11-09"]
    assert airflow("waiting", "shop.monitor") == []


def test_an_overdue_month_is_trained_on_and_an_overdue_day_is_scored(airflow: Airflow) -> None:
    publish(airflow, "shop.features", "2026-10-01", "2026-10-02")
    publish(airflow, "shop.trainable", "2026-10-01", "2026-10-02")
    assert airflow("work", "shop.train")["keys"] == []
    assert airflow("work", "shop.score")["keys"] == ["2026-10-01", "2026-10-02"]

    publish(airflow, "shop.train.due", "2026-10-01")
    publish(airflow, "shop.score.due", "2026-10-07")

    assert airflow("work", "shop.train")["keys"] == ["2026-10-01"]
    assert airflow("work", "shop.score")["keys"] == ["2026-10-07"]
    assert airflow("waiting", "shop.train") == []
