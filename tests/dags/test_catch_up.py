"""After a pause, Airflow's own scheduler makes up for the missed days: all of them, oldest first, up to the model's bound."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.dags.conftest import Airflow, add_model


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    home: Path = tmp_path_factory.mktemp("catch_up")
    # A tick at each midnight: what is due does not depend on the hour at which this runs.
    add_model(home / "models", "usual", "schedules: {ingest: 0 0 * * *, train: week}")
    add_model(home / "models", "bounded", "schedules: {ingest: 0 0 * * *, train: week, catch_up: 3d}")
    running = Airflow(home / "airflow", home / "models", ["ingest.py"])
    running("parse")
    yield running
    running.close()


def days_ago(*numbers: int) -> list[str]:
    today = datetime.now(UTC)
    return [f"{today - timedelta(days=number):%Y-%m-%d}" for number in numbers]


def test_a_pause_of_ten_days_loses_none_of_them(airflow: Airflow) -> None:
    airflow("ran", "usual.ingest", 11)

    assert airflow("work", "usual.ingest") == {"keys": days_ago(*range(10, 0, -1)), "most": 1}


def test_after_a_longer_pause_than_the_bound_the_days_within_it_are_made_up_for(airflow: Airflow) -> None:
    airflow("ran", "bounded.ingest", 11)

    # The tick of the day before yesterday, for the day before it, is the oldest that is no more than three days ago.
    assert airflow("work", "bounded.ingest")["keys"] == days_ago(3, 2, 1)


def test_what_has_been_made_up_for_is_not_run_again(airflow: Airflow) -> None:
    airflow("parse")

    assert airflow("work", "usual.ingest")["keys"] == []
