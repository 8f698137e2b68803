"""A model that lives in the real stack: history ingested, a champion trained, days scored and judged, all by Airflow runs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT
from perennial.deployment import Deployment
from perennial.stack.airflow_api import AirflowApi, DagRun
from perennial.stack.embedded import Stack

MODEL = "energy_load"
STAGES = ("load", "ingest", "train", "score", "monitor", "promote", "rollback", "release", "maintain")
PATIENCE = 300
#: Copies of the model that need a person's approval: one waits for the answer, the other gives up after a minute.
ASKING = {"energy_asked": "{approvers: [admin]}", "energy_hasty": "{within: 1m}"}
#: A copy whose champion is refreshed each week.
FRESH = "energy_fresh"


@dataclass(frozen=True)
class Living:
    """The stack and what a person does with it.

    Attributes:
        stack: the running stack.
        api: Airflow's, signed in.
        deployment: the same ledger, lake and registry that the tasks use.
    """

    stack: Stack
    api: AirflowApi
    deployment: Deployment

    def trigger(self, stage: str, conf: dict[str, Any] | None = None, *, partition: str | None = None) -> DagRun:
        """Start a run of the model's stage, and wait until it and every run that it started have ended."""
        run = self.api.trigger(f"{MODEL}.{stage}", conf=conf, partition_key=partition)
        ended = self.api.wait(run, patience=PATIENCE, check=self.stack.check)
        if conf is None or conf.get("announce_scoring", True) or conf.get("announce_training", True):
            self.settle()
        return ended

    def settle(self) -> None:
        """Wait until no run of the model is left, and none has followed for as long as Airflow takes to start one."""
        quiet_since, deadline = time.monotonic(), time.monotonic() + PATIENCE
        while time.monotonic() - quiet_since < 3:
            self.stack.check()
            assert time.monotonic() < deadline, f"runs of {MODEL} do not end: {self.api.runs(f'{MODEL}.')}"
            if any(not run.ended for run in self.api.runs(f"{MODEL}.")):
                quiet_since = time.monotonic()
            time.sleep(0.3)

    def runs(self, stage: str) -> list[DagRun]:
        """The stage's runs, the oldest first."""
        return [run for run in self.api.runs(f"{MODEL}.") if run.dag_id == f"{MODEL}.{stage}"]


def run_stage(
    api: AirflowApi,
    models: Sequence[str],
    stage: str,
    conf: dict[str, Any],
    *,
    check: Callable[[], None],
    patience: float = 420,
) -> None:
    """Start a stage of each model, and wait until these runs and all that they led to have ended.

    Args:
        api: of the stack.
        models: their names.
        stage: of which a run is started.
        conf: of the run.
        check: raises when the stack is no longer whole.
        patience: longest time for each of the waits, in seconds.
    """
    for run in [api.trigger(f"{model}.{stage}", conf=conf) for model in models]:
        ended = api.wait(run, patience=patience, check=check)
        assert ended.state == "success", api.failure(run)
    quiet_since, deadline = time.monotonic(), time.monotonic() + patience
    while time.monotonic() - quiet_since < 4:
        assert time.monotonic() < deadline
        if any(not other.ended for model in models for other in api.runs(f"{model}.")):
            quiet_since = time.monotonic()
        time.sleep(0.5)


@pytest.fixture(scope="session")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    """``energy_load`` after seventeen days of history, a training, and three days as they came in."""
    folder = tmp_path_factory.mktemp("living")
    state, models = folder / "var", folder / "models"
    shutil.copytree(PROJECT / "tests" / "models", models)
    for name, approval in ASKING.items():
        _copy_model(models, name, f"promotion: approval\napproval: {approval}\n")
    _copy_model(models, FRESH, "")
    fresh = models / FRESH / "model.yaml"
    fresh.write_text(fresh.read_text().replace("refresh: never", "refresh: week"))
    given = {**os.environ, "PERENNIAL_MODELS": str(models), **free_ports()}
    with Stack(state, given, say=lambda _: None) as stack, AirflowApi(stack.airflow_url, "admin", stack.password) as api:
        dags = [f"{MODEL}.{stage}" for stage in STAGES]
        api.wait_for_dags(dags, check=stack.check)
        for dag in dags:
            api.unpause(dag)
        life = Living(stack, api, Deployment(stack.settings))
        life.trigger("load", {"start": "2024-01-01", "end": "2024-01-17", "days_per_part": 6})
        life.trigger("train", {"as_of": "2024-01-17"})
        life.trigger("ingest", {"start": "2024-01-17", "end": "2024-01-20"})
        yield life


def _copy_model(models: Path, name: str, more: str) -> None:
    """A model like :data:`MODEL`, of another name and with more lines in its ``model.yaml``."""
    shutil.copytree(models / MODEL, models / name)
    spec = models / name / "model.yaml"
    spec.write_text(spec.read_text().replace(f"name: {MODEL}", f"name: {name}") + more)


def free_ports() -> dict[str, str]:
    import socket

    names = ("PERENNIAL_AIRFLOW_PORT", "PERENNIAL_MLFLOW_PORT", "PERENNIAL_WATCH_PORT", "PERENNIAL_SERVE_PORT")
    with ExitStack() as open_probes:
        probes = [open_probes.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: str(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}


def sink_rows(life: Living) -> list[Any]:
    """The predictions as a person reads them from the database."""
    import sqlalchemy as sa

    engine = sa.create_engine(life.deployment.settings.predictions_url)
    with engine.connect() as connection:
        query = f"SELECT meter, hour, prediction, version, run_id FROM {MODEL}_predictions ORDER BY hour, meter"
        return list(connection.execute(sa.text(query)))


def report_file(life: Living, relative: str) -> Path:
    """The file of a report that the ledger names."""
    return life.deployment.settings.reports / relative
