"""A broken model folder takes down its own DAGs and no others: in Airflow's tables, not only in what is parsed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perennial.core.settings import PROJECT
from perennial.watchdog.rules import BROKEN_MODELS
from tests.dags.conftest import Airflow, add_model, parse

STAGES = {
    "ingest", "materialize", "record", "train", "refresh", "score", "monitor", "promote", "rollback", "release", "maintain",
    "load",
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("first", "second", "third"):
        add_model(tmp_path / "models", name)
    return tmp_path / "models"


@pytest.fixture
def airflow(models: Path, tmp_path: Path) -> Iterator[Airflow]:
    running = Airflow(tmp_path / "airflow", models)
    yield running
    running.close()


def dags_of(*models: str) -> set[str]:
    return {f"{model}.{stage}" for model in models for stage in STAGES}


def test_other_models_are_scheduled_and_triggered_while_one_is_broken_until_it_returns(airflow: Airflow, models: Path) -> None:
    spec = models / "third" / "model.yaml"
    sound = spec.read_text()
    airflow("parse")
    assert airflow("look") == {"active": sorted(dags_of("first", "second", "third")), "scheduled": [], "errors": {}}

    spec.write_text(sound.replace("owner:", "ownr:"))
    # Whoever opens it waits for a writer.
    (models / "fourth").mkdir()
    os.mkfifo(models / "fourth" / "model.yaml")
    airflow("parse")
    airflow("schedule")

    seen = airflow("look")
    assert set(seen["active"]) == dags_of("first", "second")
    assert seen["scheduled"] == ["first.ingest", "first.maintain", "second.ingest", "second.maintain"]
    assert list(seen["errors"]) == [BROKEN_MODELS]
    message = seen["errors"][BROKEN_MODELS]
    assert "third/model.yaml:" in message
    assert "ownr: unknown key" in message
    assert "fourth/model.yaml: not a regular file" in message
    assert message.splitlines()[-1].endswith("cannot be read: fourth, third. All other models run on.")
    assert [airflow("trigger", f"{model}.ingest") for model in ("first", "second", "third")] == [200, 200, 404]

    spec.write_text(sound)
    shutil.rmtree(models / "fourth")
    airflow("parse")
    airflow("schedule")

    seen = airflow("look")
    assert set(seen["active"]) == dags_of("first", "second", "third")
    assert seen["errors"] == {}
    assert {"third.ingest", "third.maintain"} <= set(seen["scheduled"])
    assert airflow("trigger", "third.ingest") == 200


#: What Airflow or its database would refuse, in a ``model.yaml`` that is sound otherwise.
REFUSED = {
    "a schedule that is none": "schedules: {ingest: 99 99 * * *}",
    "a schedule that never comes": "schedules: {ingest: 0 0 30 2 *}",
    "a schedule of chance": "schedules: {maintain: R R * * *}",
    "a NUL character": 'card: {intended_use: "a\\0b"}',
    "half a surrogate pair": 'card: {intended_use: "a\\ud800b"}',
}


def test_what_airflow_would_refuse_is_an_error_of_its_folder_alone(models: Path, tmp_path: Path) -> None:
    for n, line in enumerate(REFUSED.values()):
        spec = add_model(models, f"refused_{n}")
        lines = [kept for kept in spec.read_text().splitlines() if not kept.startswith(line.partition(":")[0] + ":")]
        spec.write_text("\n".join([*lines, line, ""]))

    parsed = parse(PROJECT / "dags", models, tmp_path / "airflow")

    assert set(parsed["dags"]) == dags_of("first", "second", "third")
    [(file, message)] = parsed["import_errors"].items()
    assert Path(file).name == BROKEN_MODELS
    assert all(f"refused_{n}/model.yaml:" in message for n in range(len(REFUSED))), message
