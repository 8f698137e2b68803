"""The life of two models in the deployed stack: the services of docker-compose.yaml, as processes, with real PostgreSQL,
Redis, Celery workers, and MLflow behind its sign-in."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from perennial.airflow_api import AirflowApi, DagRun
from perennial.ledger import Ledger
from perennial.settings import PROJECT
from perennial.stack.deployed import WORKER
from tests.composed import Composed, compose
from tests.conftest import _without, postgres_server

pytestmark = [pytest.mark.stack, pytest.mark.postgres]

MODELS = ("energy_load", "energy_other")
STAGES = ("ingest", "train", "score", "monitor")
SERVICES = ("mlflow", "api", "execution", "scheduler", "dag-processor", "triggerer", "worker", "trainer")
METERS, HOURS = 5, 24
PATIENCE = 420


@dataclass(frozen=True)
class Deployed:
    composed: Composed
    api: AirflowApi
    database: sa.Engine

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.database.url.render_as_string(hide_password=False))

    def run(self, dag_id: str, conf: dict[str, Any]) -> DagRun:
        """Start a run, and wait until it and all it led to have ended."""
        run = self.api.wait(self.api.trigger(dag_id, conf=conf), patience=PATIENCE)
        quiet_since, deadline = time.monotonic(), time.monotonic() + PATIENCE
        while time.monotonic() - quiet_since < 4:
            assert time.monotonic() < deadline
            if any(not other.ended for model in MODELS for other in self.api.runs(f"{model}.")):
                quiet_since = time.monotonic()
            time.sleep(0.5)
        return run


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    if shutil.which("redis-server") is None:
        _without("Redis")
    folder = tmp_path_factory.mktemp("deployed")
    models = tmp_path_factory.mktemp("models")
    for name in MODELS:
        shutil.copytree(PROJECT / "tests" / "models" / MODELS[0], models / name)
        spec = models / name / "model.yaml"
        spec.write_text(spec.read_text().replace(f"name: {MODELS[0]}", f"name: {name}"))
    chosen = {"PERENNIAL_WORKER_TASKS": "2", "PERENNIAL_TRAINER_TASKS": "1", "PERENNIAL_TRAINING_THREADS": "1"}
    with (
        postgres_server("postgres") as server,
        compose(
            folder, models, postgres_port=int(server.port or 0), postgres_password=str(server.password), chosen=chosen
        ) as stack,
    ):
        assert stack.run("init") == 0, stack.last_words("init")
        for service in SERVICES:
            stack.start(service)
        for service in SERVICES:
            stack.wait_until_healthy(service)
        database = sa.create_engine(stack.environment("worker")["PERENNIAL_DATABASE_URL"])
        with AirflowApi(stack.airflow_url, "admin", stack.secrets["AIRFLOW_ADMIN_PASSWORD"]) as api:
            dags = [f"{model}.{stage}" for model in MODELS for stage in STAGES]
            api.wait_for_dags(dags)
            for dag in dags:
                api.unpause(dag)
            life = Deployed(stack, api, database)
            for model in MODELS:
                life.run(f"{model}.ingest", {"start": "2024-01-01", "end": "2024-01-17", "announce": False})
            for model in MODELS:
                life.run(f"{model}.train", {"as_of": "2024-01-17"})
            for model in MODELS:
                life.run(f"{model}.ingest", {"start": "2024-01-17", "end": "2024-01-19"})
            yield life
        database.dispose()


@pytest.mark.parametrize("model", MODELS)
def test_a_model_lives_through_celery_workers(deployed: Deployed, model: str) -> None:
    states = {stage: {run.state for run in deployed.api.runs(f"{model}.{stage}")} for stage in STAGES}
    assert states == {stage: {"success"} for stage in STAGES}

    assert deployed.ledger.champion(model) == 1
    with deployed.database.connect() as connection:
        rows = connection.execute(sa.text(f"SELECT version, count(*) FROM {model}_predictions GROUP BY version")).all()
    assert rows == [(1, 2 * METERS * HOURS)]


def test_trainings_run_on_workers_of_their_own(deployed: Deployed) -> None:
    [run] = deployed.api.runs(f"{MODELS[0]}.train")
    fits = [task for task in deployed.api.task_instances(run) if task.task_id == "fit_candidate"]
    assert fits
    trainer, worker = (deployed.composed.log(service).read_text(errors="replace") for service in ("trainer", "worker"))
    assert run.run_id in trainer
    assert run.run_id not in worker


def test_nobody_reads_without_signing_in(deployed: Deployed) -> None:
    assert httpx.get(f"{deployed.composed.airflow_url}/api/v2/dags").status_code == 401
    address = f"{deployed.composed.mlflow_url}/api/2.0/mlflow/registered-models/get?name={MODELS[0]}"
    assert httpx.get(address).status_code == 401
    signed_in = httpx.get(address, auth=(WORKER, deployed.composed.secrets["MLFLOW_WORKER_PASSWORD"]))
    assert signed_in.json()["registered_model"]["aliases"] == [{"alias": "champion", "version": "1"}]


def test_roles_of_the_database_cannot_read_each_others(deployed: Deployed) -> None:
    own = deployed.database.url
    with pytest.raises(sa.exc.OperationalError, match="permission denied for database"):
        sa.create_engine(own.set(database="airflow")).connect()


def test_no_secret_is_in_a_log(deployed: Deployed) -> None:
    files = [*deployed.composed.folder.glob("*.log"), *(deployed.composed.folder / "logs").rglob("*.log")]
    assert len(files) > len(SERVICES)
    for file in files:
        text = file.read_text(errors="replace")
        leaked = [name for name, secret in deployed.composed.secrets.items() if secret in text]
        assert not leaked, f"{leaked} in {file.relative_to(deployed.composed.folder)}"


def test_secrets_are_in_no_argument_of_a_process(deployed: Deployed) -> None:
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = arguments.read_bytes().decode(errors="replace")
        except OSError:
            continue
        assert not [name for name, secret in deployed.composed.secrets.items() if secret in text], text[:80]


def test_init_can_be_run_again(deployed: Deployed) -> None:
    assert deployed.composed.run("init") == 0, deployed.composed.last_words("init")
    assert deployed.ledger.champion(MODELS[0]) == 1


def test_a_weak_secret_stops_init(deployed: Deployed) -> None:
    import subprocess

    environment = {**deployed.composed.environment("init"), "REDIS_PASSWORD": "changeme"}
    done = subprocess.run(["perennial", "deploy", "init"], env=environment, capture_output=True, text=True, cwd=os.getcwd())
    assert done.returncode == 1
    assert "REDIS_PASSWORD: too weak for a secret" in done.stderr
