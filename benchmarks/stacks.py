"""What benchmarks of whole systems share: environments of peers, an Airflow as its documentation sets it up, free ports, and
when each task of a run was queued, started and ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from benchmarks import prepared
from perennial.stack.airflow_api import DagRun

HOST = "127.0.0.1"
#: Of the user ``admin`` of a plain Airflow.
PASSWORD = "benchmark"


def free_ports(names: list[str]) -> dict[str, str]:
    """A free port for each name, all of them different."""
    probes = {name: socket.socket() for name in names}
    for probe in probes.values():
        probe.bind((HOST, 0))
    ports = {name: str(probe.getsockname()[1]) for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports


def stack_ports() -> dict[str, str]:
    """Variables that give an embedded stack free ports."""
    return free_ports([f"PERENNIAL_{server}_PORT" for server in ("AIRFLOW", "MLFLOW", "WATCH")])


def inherited(programs: Path = Path(sys.executable).parent) -> dict[str, str]:
    """This process's variables, for processes that run the programs of a folder and keep what they compile."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**given, "PATH": os.pathsep.join((str(programs), os.environ["PATH"]))}


def environment(name: str, requirements: Path) -> Path:
    """A peer's environment, made if it is not there or its requirements have changed."""

    def make(folder: Path) -> None:
        python = str(folder / "bin" / "python")
        subprocess.run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        install = [str(uv), "pip", "install", "--quiet", "--python", python, "--compile-bytecode", "-r", str(requirements)]
        subprocess.run(install, check=True)
        (folder / "requirements.txt").write_text(requirements.read_text())

    uv, kept = Path(sys.executable).with_name("uv"), prepared.KEPT / "peers"
    kept.mkdir(parents=True, exist_ok=True)
    made = kept / name / "requirements.txt"
    if made.exists() and made.read_text() != requirements.read_text():
        (kept / f"{name}.made").unlink(missing_ok=True)
    return prepared.made(f"peers/{name}", make)


# --- an Airflow without us -------------------------------------------------------------------------------------------


def plain_airflow(home: Path, dags: Path) -> dict[str, str]:
    """Variables of an Airflow as its documentation sets it up, with LocalExecutor, for :func:`running`.

    It listens on this machine alone, has a user ``admin``, and tells nobody of its use; the rest is as it comes.

    Args:
        home: where it keeps its files; made if it is not there.
        dags: folder of DAG files.
    """
    home.mkdir(parents=True, exist_ok=True)
    passwords, port = home / "passwords.json", free_ports(["api"])["api"]
    passwords.write_text(json.dumps({"admin": PASSWORD}))
    return {
        "NO_PROXY": f"{HOST},localhost",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": port,
        # Each component would make one of its own otherwise, and refuse the others' tokens.
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret that nobody outside this benchmark has to keep, and is long enough",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


@contextmanager
def running(environment: Mapping[str, str]) -> Iterator[str]:
    """The URL of an Airflow whose database is there and whose four components run, each by a command of its own.

    They are ended with what they have started. What they said is in ``<component>.log`` of their home.

    Args:
        environment: all variables, those of :func:`plain_airflow` among them.
    """
    subprocess.run(["airflow", "db", "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    components = []
    try:
        for name in ("api-server", "scheduler", "dag-processor", "triggerer"):
            with (Path(environment["AIRFLOW_HOME"]) / f"{name}.log").open("w") as log:
                components.append(
                    subprocess.Popen(
                        ["airflow", name], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip
        url = f"http://{HOST}:{environment['AIRFLOW__API__PORT']}"
        _wait_until_healthy(url)
        yield url
    finally:
        for process in components:
            os.killpg(process.pid, signal.SIGTERM)
        for process in components:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_healthy(url: str, patience: float = 180) -> None:
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


# --- of any Airflow --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskTimes:
    """When a task of a run was queued, started and ended; those that never were are left out by :meth:`Client.tasks`."""

    dag_id: str
    task_id: str
    state: str
    queued: datetime
    started: datetime
    ended: datetime

    @property
    def waited(self) -> float:
        return (self.started - self.queued).total_seconds()

    @property
    def seconds(self) -> float:
        """From queued to end."""
        return (self.ended - self.queued).total_seconds()


class Client:
    """Airflow's REST API, signed in, for what :class:`perennial.stack.airflow_api.AirflowApi` does not ask."""

    def __init__(self, url: str, password: str) -> None:
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=120)
        answer = self.http.post("/auth/token", json={"username": "admin", "password": password})
        token = answer.raise_for_status().json()["access_token"]
        self.http.headers["Authorization"] = f"Bearer {token}"
        self.http.cookies.set("_token", token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()

    def tasks(self, run: DagRun) -> list[TaskTimes]:
        """The tasks of a run that a worker has worked on, in the order in which they ended."""
        path = f"/api/v2/dags/{run.dag_id}/dagRuns/{quote(run.run_id, safe='')}/taskInstances"
        found: list[dict[str, Any]] = self.http.get(path, params={"limit": 100}).raise_for_status().json()["task_instances"]
        times = [
            TaskTimes(
                task["dag_id"], task["task_id"], task["state"],
                *(datetime.fromisoformat(task[moment]) for moment in ("queued_when", "start_date", "end_date")),
            )
            for task in found
            if task["queued_when"] and task["start_date"] and task["end_date"]
        ]  # fmt: skip
        return sorted(times, key=lambda task: task.ended)
