"""docker-compose.yaml as an operator starts it: a fresh clone, the README's three commands, containers of a real engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT
from perennial.stack.airflow_api import AirflowApi
from tests.composed import free_port
from tests.containers.engine import BASES, Engine, running_engine

MODELS = ("energy_load", "energy_other")
#: Its versions need a person's approval.
ASKED = "energy_asked"
STAGES = ("load", "train", "ingest", "score", "monitor", "rollback")
PATIENCE = 420


@dataclass
class Containers:
    """The deployment, and what an operator does with it.

    Attributes:
        engine: runs the containers.
        folder: the clone.
        ports: of the published addresses, by the variable that chooses them.
        took: seconds of each of the commands that started it.
    """

    engine: Engine
    folder: Path
    ports: dict[str, int]
    took: dict[str, float] = field(default_factory=dict)
    _checked: float = 0

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['PERENNIAL_AIRFLOW_PORT']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['PERENNIAL_MLFLOW_PORT']}"

    @property
    def secrets(self) -> dict[str, str]:
        """What ``make secrets`` wrote, and what was chosen."""
        return dict(line.split("=", 1) for line in (self.folder / ".env").read_text().splitlines())

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the clone. Returns what it printed."""
        return self.engine.run(*command, folder=self.folder, check=check)

    def compose(self, *arguments: str, check: bool = True) -> str:
        return self.run("docker", "compose", *arguments, check=check)

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's container. Returns what it printed."""
        return self.compose("exec", "--no-TTY", service, *command, check=check)

    def sql(self, query: str, database: str = "perennial") -> list[str]:
        """Ask PostgreSQL, in its container. Returns a line for each row, columns separated by ``|``."""
        psql = ("psql", "--username", "postgres", "--dbname", database, "--no-align", "--tuples-only", "--command", query)
        return self.inside("postgres", *psql).split()

    def services(self) -> dict[str, dict[str, Any]]:
        """Each container, as ``docker compose ps`` tells of it, by its service."""
        rows = [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines() if line[:1] == "{"]
        return {row["Service"]: row for row in rows}

    def check(self) -> None:
        """Raise when a service has ended, other than init, which ends when its work is done. It looks every ten seconds."""
        if time.monotonic() - self._checked < 10:
            return
        self._checked = time.monotonic()
        ended = [
            row
            for row in self.services().values()
            if row["State"] == "exited" and (row["ExitCode"] or row["Service"] != "init")
        ]
        logs = [self.compose("logs", "--tail", "40", row["Service"], check=False) for row in ended]
        assert not ended, "\n".join(logs)

    def wait_until_healthy(self, *services: str) -> None:
        """Wait until these services, or all, are healthy by their own health checks."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = {name: row["Health"] for name, row in self.services().items() if name != "init"}
            sick = [name for name in services or found if found.get(name) != "healthy"]
            if not sick:
                return
            assert time.monotonic() < deadline, (
                f"not healthy: {sick}\n{self.compose('logs', '--tail', '30', *sick, check=False)}"
            )
            time.sleep(1)

    def sign_in(self) -> AirflowApi:
        """Airflow's API, as its administrator."""
        return AirflowApi(self.airflow_url, "admin", self.secrets["AIRFLOW_ADMIN_PASSWORD"])


def _add_models(clone: Path) -> None:
    """What an operator does: commit the models that the deployment has."""
    models = clone / "include" / "models"
    for name in (*MODELS, ASKED):
        shutil.copytree(clone / "tests" / "models" / MODELS[0], models / name, dirs_exist_ok=True)
        spec = models / name / "model.yaml"
        more = "promotion: approval\napproval: {approvers: [admin]}\n" if name == ASKED else ""
        spec.write_text(spec.read_text().replace(f"name: {MODELS[0]}", f"name: {name}") + more)
    author = ("-c", "user.name=An operator", "-c", "user.email=operator@example.org")
    subprocess.run(["git", "add", "."], cwd=clone, check=True)
    subprocess.run(["git", *author, "commit", "--quiet", "--message", "Add our models"], cwd=clone, check=True)


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """The deployment, started from a fresh clone by the README's three commands, with every service healthy."""
    kept = os.environ.get("PERENNIAL_CONTAINERS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("containers")
    try:
        with running_engine(folder / "engine") as engine:
            clone = folder / "clone"
            shutil.rmtree(clone, ignore_errors=True)
            # For its owner alone, as many servers set it; then as docs/operate.md says.
            subprocess.run(["git", "clone", "--quiet", PROJECT, clone], check=True, umask=0o077)
            _add_models(clone)
            subprocess.run(["chmod", "-R", "a+rX", "dags", "plugins", "include/models", "monitoring"], cwd=clone, check=True)
            ports = {name: free_port() for name in ("PERENNIAL_AIRFLOW_PORT", "PERENNIAL_MLFLOW_PORT")}
            chosen = {
                **ports,
                **{variable: f"perennial-test/{name}" for variable, name in BASES.items()},
                "PERENNIAL_WORKER_TASKS": 2,
                "PERENNIAL_TRAINER_TASKS": 1,
                "PERENNIAL_PROMOTER_TASKS": 1,
                "PERENNIAL_TRAINING_THREADS": 1,
            }
            (clone / ".env").write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
            deployment = Containers(engine, clone, ports)
            for command in (("make", "secrets"), ("docker", "compose", "build"), ("docker", "compose", "up", "--detach")):
                began = time.monotonic()
                deployment.run(*command)
                deployment.took[" ".join(command)] = time.monotonic() - began
            began = time.monotonic()
            deployment.wait_until_healthy()
            deployment.took["until every service is healthy"] = time.monotonic() - began
            yield deployment
            deployment.compose("--profile", "*", "down", "--volumes", check=False)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
