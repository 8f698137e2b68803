"""What Airflow adds to a task: seconds from queued to end of one that imports what a real task needs, and does nothing.

Ours is the embedded stack that ``make up`` starts. Beside it stands Airflow as its documentation sets it up: each component a
command of its own (``api-server``, ``scheduler``, ``dag-processor``, ``triggerer``), LocalExecutor, PostgreSQL as metadata
database, which the documentation wants for anything but a trial, and no other setting touched but that examples are not loaded.
Both run the same DAG file: a chain of tasks, so that there is one at a time. Moments are those of the REST API.

    python -m benchmarks.task_overhead
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import Line, Told
from benchmarks.stacks import Client, TaskTimes, free_ports, stack_ports
from perennial.airflow_api import AirflowApi
from perennial.settings import PROJECT
from perennial.stack.embedded import Stack

#: Tasks in the chain.
OURS, STOCK = 30, 9
LIMIT = 0.5

DAG_FILE = '''
from airflow.sdk import DAG, chain, task


@task
def nothing():
    """Imports what the tasks of ingest, train, score and monitor import."""
    import evidently, great_expectations, mlflow.sklearn
    from perennial import checks, drift, features, ingestion, monitoring, performance, scoring, sources, training
    from perennial.deployment import Deployment
    from perennial.settings import settings

    Deployment(settings())


with DAG("overhead", schedule=None):
    chain(*(nothing.override(task_id=f"nothing_{number}")() for number in range(%d)))
'''


def write_dag(folder: Path, tasks: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "overhead.py").write_text(DAG_FILE % tasks)
    return folder


def measure(url: str, password: str, *, check: Any = lambda: None) -> list[TaskTimes]:
    """The chain's tasks, without the first, which may pay for what is done once."""
    with AirflowApi(url, "admin", password) as api, Client(url, password) as client:
        api.wait_for_dags(["overhead"], check=check)
        api.unpause("overhead")
        run = api.wait(api.trigger("overhead"), patience=900, check=check)
        assert run.state == "success", api.failure(run)
        return client.tasks(run)[1:]


def ours(scratch: Path) -> list[TaskTimes]:
    dags, state = write_dag(scratch / "our dags", OURS), scratch / "ours"
    with Stack(state, {**os.environ, **stack_ports()}, dags=dags, say=lambda _: None) as stack:
        return measure(stack.airflow_url, stack.password, check=stack.check)


def stock(scratch: Path) -> list[TaskTimes]:
    from tests.conftest import postgres_server

    home, password = scratch / "stock", "benchmark"
    port = free_ports(["api"])["api"]
    dags = write_dag(home / "dags", STOCK)
    (home / "passwords.json").write_text(json.dumps({"admin": password}))
    with postgres_server("airflow") as database:
        given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {
            **given,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "NO_PROXY": "127.0.0.1,localhost",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.render_as_string(hide_password=False),
            "AIRFLOW__API__PORT": port,
            # Each component would make one of its own otherwise, and refuse the others' tokens.
            "AIRFLOW__API_AUTH__JWT_SECRET": "a secret that nobody outside this benchmark has to keep, and is long enough",
            "PERENNIAL_STATE": str(scratch / "stock state"),
        }
        subprocess.run(["airflow", "db", "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        with components(environment, home):
            wait_until_healthy(url)
            return measure(url, password)


@contextmanager
def components(environment: dict[str, str], logs: Path) -> Iterator[None]:
    """Airflow's four components, ended with what they have started."""
    running = []
    try:
        for component in ("api-server", "scheduler", "dag-processor", "triggerer"):
            with (logs / f"{component}.log").open("w") as log:
                running.append(
                    subprocess.Popen(
                        ["airflow", component], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip
        yield
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_until_healthy(url: str, patience: float = 180) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            health = httpx.get(f"{url}/api/v2/monitor/health", trust_env=False, timeout=10).json()
            if all(part["status"] == "healthy" for part in health.values()):
                return
        except (httpx.TransportError, ValueError):
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"Airflow is not healthy after {patience:.0f} s")
        time.sleep(0.5)


def main() -> None:
    assert (PROJECT / "dags").exists()
    told = Told("task_overhead")
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = ours(Path(folder)), stock(Path(folder))
    for name, tasks in {"ours": mine, "stock": theirs}.items():
        told.details[name] = {
            "queued_to_started": [round(task.waited, 3) for task in tasks],
            "queued_to_ended": [round(task.seconds, 3) for task in tasks],
        }
    seconds = [task.seconds for task in mine]
    claim = "a task that imports the domain and does nothing, from queued to end"
    told.add(Line(claim, "the limit we set ourselves", seconds, [LIMIT], goal=1.0))
    told.add(Line(
        claim, "stock LocalExecutor on PostgreSQL", seconds, [task.seconds for task in theirs], goal=12.0, faster=True,
    ))  # fmt: skip
    told.write()


if __name__ == "__main__":
    main()
