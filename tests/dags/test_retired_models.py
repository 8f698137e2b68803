"""A retired model leaves Airflow without a trace of failure, and the watchdog says no more of it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, Settings, read_settings
from perennial.ledger.store import Ledger
from perennial.watchdog.process import Watchdog, WatchSettings
from tests.dags.conftest import Airflow, add_model
from tests.unit.airflow_stand_in import PASSWORD, AirflowStandIn, Serving

DAY = Interval.day("2024-05-01")
STAGES = (
    "ingest", "materialize", "record", "train", "refresh", "score", "monitor", "promote", "rollback", "release", "maintain",
    "load",
)  # fmt: skip


def test_the_dags_of_a_retired_model_are_gone_and_nothing_complains_of_it(tmp_path: Path) -> None:
    models, home = tmp_path / "models", tmp_path / "airflow"
    for name in ("first", "second"):
        add_model(models, name)
    given = {
        "PERENNIAL_MODELS": str(models),
        "PERENNIAL_STATE": str(home / "var"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    airflow = Airflow(home, models)
    try:
        settings = read_settings(given)
        publish_a_day(settings)
        airflow("parse")
        assert {dag.partition(".")[0] for dag in airflow("look")["active"]} == {"first", "second"}
        assert complained_of(settings) == {"first", "second"}

        retire = [sys.executable, "-m", "perennial.cli", "retire", "first", "--reason", "nobody flies any more", "--mark"]
        environment = {**os.environ, **given, "PYTHONPATH": os.pathsep.join([str(PROJECT / "include"), str(PROJECT)])}
        done = subprocess.run(retire, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        airflow("parse")
        airflow("schedule")

        seen = airflow("look")
        assert set(seen["active"]) == {f"second.{stage}" for stage in STAGES}
        assert seen["errors"] == {}
        assert airflow("trigger", "first.ingest") == 404
        assert complained_of(settings) == {"second"}
    finally:
        airflow.close()


def publish_a_day(settings: Settings) -> None:
    """Publish one day of each model, so that the watchdog misses all days since."""
    settings.state.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.database_url)
    ledger.migrate()
    for model in ("first", "second"):
        order = ledger.next_order(model, "tables", DAY, "r")
        claim = ledger.claim(model, "tables", DAY, order=order, run_id="r")
        head = ledger.head(model, "tables")
        assert ledger.commit(claim, base=head, snapshots={"tables": 1}, hashes={}, rows={"tables": 9}, inputs={}) is not None


def complained_of(settings: Settings) -> set[str]:
    """The models of which the watchdog has something open after a week, beside an Airflow that is well."""
    now = datetime.now(UTC) + timedelta(days=7)
    dags = {f"{model}.{stage}": False for model in ("first", "second") for stage in STAGES}
    health = dict.fromkeys(("scheduler", "triggerer", "dag_processor"), ("healthy", now))
    served = Serving(AirflowStandIn(health=dict(health), dags=dags))
    try:
        watch = Watchdog(settings, WatchSettings(airflow_url=served.airflow.url, password=PASSWORD, port=0), send=lambda: None)
        # What is seen once may be over a moment later.
        for minutes in (0, 10, 20):
            watch.look(now + timedelta(minutes=minutes))
    finally:
        served.close()
    topic = "watch/models"
    return {subject.removeprefix(f"{topic}/").split("/")[0] for subject in Ledger(settings.database_url).open_subjects(topic)}
