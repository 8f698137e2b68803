"""What benchmarks of whole Airflows share: free ports, and when each task of a run was queued, started and ended."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from perennial.airflow_api import DagRun


def free_ports(names: list[str]) -> dict[str, str]:
    """A free port for each name, all of them different."""
    probes = {name: socket.socket() for name in names}
    for probe in probes.values():
        probe.bind(("127.0.0.1", 0))
    ports = {name: str(probe.getsockname()[1]) for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports


def stack_ports() -> dict[str, str]:
    """Variables that give an embedded stack free ports."""
    return free_ports([f"PERENNIAL_{server}_PORT" for server in ("AIRFLOW", "MLFLOW", "WATCH")])


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
    """Airflow's REST API, signed in, for what :class:`perennial.airflow_api.AirflowApi` does not ask."""

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
