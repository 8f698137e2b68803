"""docker-compose.yaml as an operator starts it: a fresh clone, the README's three commands, containers of a real engine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import PROJECT
from perennial.stack.airflow_api import AirflowApi
from tests.certificates import write_certificate
from tests.composed import free_port
from tests.containers.engine import BASES, Engine, running_engine
from tests.living import run_stage

MODELS = ("energy_load", "energy_other")
#: It can be asked by key.
BY_KEY = MODELS[1]
#: Its versions need a person's approval.
ASKED = "energy_asked"
STAGES = ("load", "train", "ingest", "score", "monitor", "rollback")
METERS, HOURS = 5, 24
PATIENCE = 420
#: What docs/deploy.md says about a checkout that is for its owner alone.
READABLE = ("chmod", "-R", "a+rX", "dags", "plugins", "include/models", "monitoring", "deploy")
AUTHOR = ("-c", "user.name=An operator", "-c", "user.email=operator@example.org")


@dataclass
class Containers:
    """The deployment, and what an operator does with it.

    Attributes:
        engine: runs the containers.
        folder: the clone.
        ports: of the published addresses, by the variable that chooses them.
        next_day: the first day of 2024 that no model has ingested yet.
    """

    engine: Engine
    folder: Path
    ports: dict[str, int]
    next_day: date = date(2024, 1, 19)
    _checked: float = 0
    _limits: ExitStack = field(default_factory=ExitStack)

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['PERENNIAL_AIRFLOW_PORT']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['PERENNIAL_MLFLOW_PORT']}"

    @property
    def scorer_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['PERENNIAL_SCORER_PORT']}"

    @property
    def secrets(self) -> dict[str, str]:
        """What ``make secrets`` wrote, and what was chosen."""
        return dict(line.split("=", 1) for line in (self.folder / ".env").read_text().splitlines())

    def run(self, *command: str, check: bool = True, given: str = "") -> str:
        """Run a command in the clone, which reads what it is given. Returns what it printed."""
        return self.engine.run(*command, folder=self.folder, check=check, given=given)

    def compose(self, *arguments: str, check: bool = True, given: str = "") -> str:
        return self.run("docker", "compose", *arguments, check=check, given=given)

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's container. Returns what it printed."""
        return self.compose("exec", "--no-TTY", service, *command, check=check)

    def sql(self, query: str, database: str = "perennial") -> list[str]:
        """Ask PostgreSQL, in its container. Returns a line for each row, columns separated by ``|``."""
        psql = ("psql", "--username", "postgres", "--dbname", database, "--no-align", "--tuples-only", "--command", query)
        return self.inside("postgres", *psql).split()

    def services(self) -> dict[str, dict[str, Any]]:
        """A container of each service, as ``docker compose ps`` tells of it: of several ones, one that is not healthy."""
        rows = [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines() if line[:1] == "{"]
        return {row["Service"]: row for row in sorted(rows, key=lambda row: str(row["Health"]) != "healthy")}

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

    def make_token(self, name: str, *models: str) -> str:
        """A token for a client of the scorers, as docs/deploy.md says."""
        its = [word for model in models for word in ("--model", model)]
        return self.compose("run", "--rm", "--no-TTY", "token", "make", name, *its).split()[-1]

    def rotate(self, names: Sequence[str]) -> None:
        """Remove secrets from ``.env`` and have others made, as docs/operate.md says; the services do not have them yet."""
        self.forget(*names)
        self.run("make", "secrets")

    def forget(self, *names: str) -> None:
        """Remove lines of ``.env``."""
        file = self.folder / ".env"
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if line.partition("=")[0] not in names))

    def set_password_of_postgres(self) -> None:
        """The other way to rotate a secret: the superuser's password, as docs/operate.md says."""
        password = secrets.token_hex(24)
        psql = ("psql", "--username", "postgres", "--command", r"\password postgres")
        self.compose("exec", "--no-TTY", "postgres", *psql, given=f"{password}\n{password}\n")
        file = self.folder / ".env"
        file.write_text(file.read_text().replace(self.secrets["POSTGRES_PASSWORD"], password))

    def choose(self, **chosen: object) -> None:
        """Add lines to ``.env``."""
        with (self.folder / ".env").open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in chosen.items())

    def publish(self, host: str) -> None:
        """Prepare the profile ``proxy`` as docs/operate.md says: three names, and an authority of one's own."""
        port, folder = free_port(), self.folder / "tls"
        write_certificate(folder, f"airflow.{host}", f"mlflow.{host}", f"scorer.{host}")
        os.chown(folder / "key.pem", 101, 101)
        (folder / "key.pem").chmod(0o400)
        (folder / "certificate.pem").chmod(0o644)
        self.choose(PERENNIAL_PUBLIC_HOST=f"{host}:{port}", PERENNIAL_PUBLIC_PORT=port)

    def volume(self, name: str) -> Path:
        """The folder of a volume."""
        return Path(self.engine.docker("volume", "inspect", "--format", "{{.Mountpoint}}", f"perennial_{name}").strip())

    def limit(self, volume: str, *, megabytes: int) -> None:
        """Give a volume that no container uses a file system of its own, with so much room beside what it holds."""
        folder = self.volume(volume)
        held = folder.rename(folder.with_name("held"))
        folder.mkdir()
        used = int(self.run("du", "--summarize", "--block-size", "M", str(held)).split("M")[0])
        self.run("mount", "--types", "tmpfs", "--options", f"size={used + megabytes}m", "tmpfs", str(folder))
        # Of a volume that was removed, the file system is gone.
        self._limits.callback(self.engine.run, "umount", str(folder), check=False)
        self.run("cp", "--archive", f"{held}/.", str(folder))

    def remove(self) -> None:
        """Remove the containers, then the volumes with all that they hold."""
        self.compose("--profile", "*", "down", "--remove-orphans", check=False)
        self._limits.close()
        self.compose("--profile", "*", "down", "--volumes", check=False)

    def sign_in(self) -> AirflowApi:
        """Airflow's API, as its administrator."""
        return AirflowApi(self.airflow_url, "admin", self.secrets["AIRFLOW_ADMIN_PASSWORD"])

    def live(self, api: AirflowApi, stage: str, conf: dict[str, object]) -> None:
        """Run a stage of the models, and all that follows from it."""
        run_stage(api, MODELS, stage, conf, check=self.check, patience=PATIENCE)

    def begin_lives(self) -> None:
        """Switch the models on, load their history, train them, and let them score the two days before :attr:`next_day`."""
        with self.sign_in() as api:
            dags = [f"{model}.{stage}" for model in MODELS for stage in STAGES] + [f"{ASKED}.ingest", f"{ASKED}.train"]
            dags.append(f"{BY_KEY}.materialize")
            api.wait_for_dags(dags, patience=PATIENCE)
            for dag in dags:
                api.unpause(dag)
            self.live(api, "load", {"start": "2024-01-01", "end": "2024-01-17", "days_per_part": 8})
            self.live(api, "train", {"as_of": "2024-01-17"})
            self.live(api, "ingest", {"start": "2024-01-17", "end": "2024-01-19"})

    @property
    def coming_day(self) -> dict[str, object]:
        """What a run of ``ingest`` is asked for, of the next day."""
        return {"start": f"{self.next_day}", "end": f"{self.next_day + timedelta(days=1)}"}

    def live_a_day(self, api: AirflowApi) -> None:
        """Let the models score the next day, and see each of its predictions once."""
        self.live(api, "ingest", self.coming_day)
        self.next_day += timedelta(days=1)
        days = (self.next_day - date(2024, 1, 17)).days
        assert [self.predictions(model) for model in MODELS] == [days * METERS * HOURS] * len(MODELS)

    def predictions(self, model: str) -> int:
        """How many predictions are in the table that a model fills."""
        table = f"predictions.{model}_predictions"
        [counted] = self.sql(f"SELECT count(*) || '|' || count(DISTINCT (meter, hour)) FROM {table}")
        rows, different = counted.split("|")
        assert rows == different, f"{model} has {rows} predictions of {different} rows"
        return int(rows)

    def verify(self) -> None:
        """Ledger, lake, MLflow and predictions agree."""
        told = self.inside("judge", "perennial", "verify", check=False)
        assert "PROBLEM" not in told, told


def _add_models(clone: Path) -> None:
    """What an operator does: commit the models that the deployment has."""
    models = clone / "include" / "models"
    for name in (*MODELS, ASKED):
        shutil.copytree(clone / "tests" / "models" / MODELS[0], models / name, dirs_exist_ok=True)
        spec = models / name / "model.yaml"
        more = {ASKED: "promotion: approval\napproval: {approvers: [admin]}\n", BY_KEY: "online: {}\n"}.get(name, "")
        spec.write_text(spec.read_text().replace(f"name: {MODELS[0]}", f"name: {name}") + more)
    subprocess.run(["git", "add", "."], cwd=clone, check=True)
    subprocess.run(["git", *AUTHOR, "commit", "--quiet", "--message", "Add our models"], cwd=clone, check=True)


def clone(folder: Path, commit: str = "HEAD") -> None:
    """A fresh clone, for its owner alone, as many servers set it, with the operator's models and choices in it."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", PROJECT, folder], check=True, umask=0o077)
    subprocess.run(["git", "checkout", "--quiet", "-B", "deployed", commit], cwd=folder, check=True, umask=0o077)
    _add_models(folder)
    subprocess.run(READABLE, cwd=folder, check=True)


def choices(ports: dict[str, int]) -> str:
    """What an operator writes into ``.env``: the images of this machine, and as few processes as it has cores."""
    images = {variable: f"perennial-test/{name}" for variable, name in BASES.items()}
    tasks = {"PERENNIAL_WORKER_TASKS": 2, "PERENNIAL_TRAINER_TASKS": 1, "PERENNIAL_JUDGE_AT_ONCE": 1}
    chosen = {**ports, **images, **tasks, "PERENNIAL_TRAINING_THREADS": 1}
    return "".join(f"{name}={value}\n" for name, value in chosen.items())


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that can make the base images."""
    kept = os.environ.get("PERENNIAL_CONTAINERS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("containers")
    try:
        with running_engine(folder / "engine") as engine:
            yield engine
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def containers(engine: Engine) -> Iterator[Containers]:
    """The deployment, started from a fresh clone by the README's three commands, with every service healthy."""
    folder = engine.folder.parent / "clone"
    clone(folder)
    ports = {f"PERENNIAL_{name}_PORT": free_port() for name in ("AIRFLOW", "MLFLOW", "SCORER")}
    (folder / ".env").write_text(choices(ports))
    deployment = Containers(engine, folder, ports)
    engine.make_base("python")
    # The build mostly waits for packages, and needs no other image.
    with ThreadPoolExecutor() as pool:
        others = pool.map(engine.make_base, [name for name in BASES.values() if name != "python"])
        for command in (("make", "secrets"), ("docker", "compose", "build")):
            with engine.timed(" ".join(command)):
                deployment.run(*command)
        list(others)
    try:
        with engine.timed("docker compose up --detach"):
            deployment.compose("up", "--detach")
        with engine.timed("until every service is healthy"):
            deployment.wait_until_healthy()
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(scope="session")
def lived(containers: Containers) -> Containers:
    """The deployment after the history, the training and two days of two models."""
    with containers.engine.timed("the lives of two models"):
        containers.begin_lives()
    return containers


@pytest.fixture
def api(lived: Containers) -> Iterator[AirflowApi]:
    """Airflow's API, after the models have lived."""
    with lived.sign_in() as api:
        yield api
