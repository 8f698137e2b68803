"""Airflow's public REST API, as far as Perennial uses it from outside: start a run, watch it, report what failed.

Neighbours: :mod:`perennial.demo.replay` drives the demo with it, :mod:`perennial.watchdog.process` looks for trouble.
Tasks use Airflow's Task SDK instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

import httpx

from perennial.core.errors import StackError
from perennial.core.intervals import utc

_PAGE = 100


@dataclass(frozen=True)
class DagRun:
    """A run of a DAG, at the time of the request.

    Attributes:
        dag_id, run_id: identify it.
        state: ``queued``, ``running``, ``success`` or ``failed``.
        run_type: ``manual``, ``scheduled``, ``asset_triggered``, ``backfill``, …
        partition_key: of a run of a partition.
        queued_at, started_at, ended_at: None until then.
        triggered_by: what started it: ``ui``, ``rest_api``, ``operator``, ``timetable``, …
        user: who started it. A run that a task has started has the user of the task's own run.
        conf: the fields of the form that were filled in.
    """

    dag_id: str
    run_id: str
    state: str
    run_type: str
    partition_key: str | None
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    triggered_by: str | None = None
    user: str | None = None
    conf: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def ended(self) -> bool:
        return self.state in ("success", "failed")

    @property
    def seconds(self) -> float:
        """How long it ran; 0 unless it has ended."""
        return (self.ended_at - self.started_at).total_seconds() if self.started_at and self.ended_at else 0.0


@dataclass(frozen=True)
class TaskInstance:
    """A task of a run, at the time of the request; ``map_index`` is -1 unless the task is mapped."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    try_number: int
    ended_at: datetime | None = None


@dataclass(frozen=True)
class Answer:
    """The end of a question to people.

    Attributes:
        user: who answered; None if nobody did in time.
        chosen: the chosen options.
        words: what the person wrote.
        answered_at: when.
        subject, body: the question, as the person has read it.
    """

    user: str | None
    chosen: list[str]
    words: str
    answered_at: datetime
    subject: str
    body: str


class AirflowApi:
    """Airflow's REST API, signed in.

    Args:
        url: of the API server, such as ``http://127.0.0.1:8080``.
        user, password: exchanged for a token, and again when the token has expired.
        patience: longest time for an answer, in seconds.
    """

    def __init__(self, url: str, user: str, password: str, *, patience: float = 60) -> None:
        self.url = url.rstrip("/")
        self._user = user
        self._password = password
        # A proxy of the environment cannot reach this machine.
        self._client = httpx.Client(base_url=self.url, timeout=patience, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def dag_ids(self) -> set[str]:
        """The DAGs that Airflow has found."""
        return {dag["dag_id"] for dag in self._pages("/dags", "dags", {})}

    def import_errors(self) -> dict[str, str]:
        """The message of each DAG file that cannot be read."""
        return {error["filename"]: error["stack_trace"] for error in self._pages("/importErrors", "import_errors", {})}

    def paused(self) -> dict[str, bool]:
        """Of each DAG that Airflow has found, whether it is paused."""
        return {dag["dag_id"]: bool(dag["is_paused"]) for dag in self._pages("/dags", "dags", {})}

    def unhealthy(self) -> dict[str, datetime | None]:
        """The last heartbeat of each component that is not healthy; None if it never had one."""
        health: dict[str, dict[str, str | None]] = self._call("GET", "/monitor/health")
        # A component that has never run has no status.
        bad = {name: part for name, part in health.items() if part and part["status"] == "unhealthy"}
        beats = {name: part.get(f"latest_{name}_heartbeat") for name, part in bad.items()}
        return {name: utc(beat) if beat else None for name, beat in beats.items()}

    def unpause(self, dag_id: str) -> None:
        """Let the DAG's runs start."""
        self._call("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Let no run of the DAG start."""
        self._call("PATCH", f"/dags/{dag_id}", json={"is_paused": True})

    def trigger(
        self,
        dag_id: str,
        *,
        conf: Mapping[str, Any] | None = None,
        partition_key: str | None = None,
        run_id: str | None = None,
        note: str | None = None,
    ) -> DagRun:
        """Start a run.

        Raises:
            StackError: Airflow refuses: the DAG is unknown, the run exists, or ``conf`` does not fit the DAG's params.
        """
        body = {
            "logical_date": None,
            "conf": dict(conf or {}),
            "partition_key": partition_key,
            "dag_run_id": run_id,
            "note": note,
        }
        return _run(self._call("POST", f"/dags/{dag_id}/dagRuns", json=body))

    def run(self, dag_id: str, run_id: str) -> DagRun:
        """The run as it is now."""
        return _run(self._call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"))

    def answer(self, dag_id: str, run_id: str, task_id: str) -> Answer | None:
        """The answer to the question that a task asks people; None if there is none yet."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/-1/hitlDetails"
        found = self._call("GET", path)
        if not found["response_received"]:
            return None
        user, given = found["responded_by_user"], found["params_input"] or {}
        name = None if user is None else str(user["name"])
        return Answer(
            name, list(found["chosen_options"] or []), str(given.get("words") or ""), utc(found["responded_at"]),
            str(found["subject"]), str(found["body"] or ""),
        )  # fmt: skip

    def delete(self, run: DagRun) -> None:
        """Remove the run and everything that Airflow stores about it."""
        self._call("DELETE", f"/dags/{run.dag_id}/dagRuns/{quote(run.run_id, safe='')}")

    def runs(self, prefix: str, since: datetime | None = None) -> list[DagRun]:
        """The runs of all DAGs whose id begins with ``prefix``, made since then, the oldest first."""
        query = {"dag_id_prefix_pattern": prefix, "order_by": "id"}
        if since is not None:
            query["run_after_gte"] = since.isoformat()
        return [_run(found) for found in self._pages("/dags/~/dagRuns", "dag_runs", query)]

    def runs_in(self, states: Sequence[str], *, changed_since: datetime | None = None, most: int = 500) -> list[DagRun]:
        """The runs of all DAGs that are in one of these states; of more than ``most`` of them, the newest. The oldest first."""
        query: dict[str, Any] = {"state": list(states), "order_by": "-id"}
        if changed_since is not None:
            query["updated_at_gte"] = changed_since.isoformat()
        return [_run(found) for found in reversed(self._pages("/dags/~/dagRuns", "dag_runs", query, most))]

    def task_instances(self, run: DagRun) -> list[TaskInstance]:
        """The run's tasks."""
        path = f"/dags/{run.dag_id}/dagRuns/{quote(run.run_id, safe='')}/taskInstances"
        return [_task(found) for found in self._pages(path, "task_instances", {})]

    def failed_tasks(self, since: datetime, most: int = 500) -> list[TaskInstance]:
        """Tasks of all DAGs that have failed for good and changed since then; of more than ``most`` of them, the newest."""
        query = {"state": "failed", "updated_at_gte": since.isoformat(), "order_by": "-id"}
        return [_task(found) for found in self._pages("/dags/~/dagRuns/~/taskInstances", "task_instances", query, most)]

    def error(self, task: TaskInstance) -> str:
        """The last error in the task's log; its last line if it has no error."""
        path = (
            f"/dags/{task.dag_id}/dagRuns/{quote(task.run_id, safe='')}/taskInstances/{quote(task.task_id, safe='')}"
            f"/logs/{task.try_number}"
        )
        content = self._call("GET", path, params={"map_index": task.map_index, "full_content": True})["content"]
        lines = [line for line in content if isinstance(line, dict)]
        for line in reversed(lines):
            if line.get("error_detail"):
                last = line["error_detail"][-1]
                return f"{last.get('exc_type')}: {last.get('exc_value')}"
        errors = [line for line in lines if line.get("level") in ("error", "critical")] or lines[-1:]
        return str(errors[-1].get("event")) if errors else "its log is empty"

    def log_url(self, task: TaskInstance) -> str:
        """Where a person reads the task's log."""
        mapped = f"/mapped/{task.map_index}" if task.map_index >= 0 else ""
        return f"{self.url}/dags/{task.dag_id}/runs/{quote(task.run_id, safe='')}/tasks/{task.task_id}{mapped}"

    def wait_for_dags(self, dag_ids: Iterable[str], *, patience: float = 120, check: Callable[[], None] = lambda: None) -> None:
        """Wait until Airflow has found these DAGs.

        Raises:
            StackError: it has not within ``patience`` seconds; with the errors of the DAG files.
        """
        wanted = set(dag_ids)
        deadline = time.monotonic() + patience
        while missing := wanted - self.dag_ids():
            check()
            if time.monotonic() > deadline:
                errors = (
                    "; ".join(f"{file}: {text}" for file, text in self.import_errors().items()) or "no DAG file has an error"
                )
                raise StackError(f"Airflow has no DAG {', '.join(sorted(missing))}: {errors}")
            time.sleep(0.2)

    def wait(self, run: DagRun, *, patience: float = 3600, check: Callable[[], None] = lambda: None) -> DagRun:
        """The run as it has ended.

        Args:
            run: what is waited for.
            patience: seconds.
            check: called between two requests; raises to end the wait.

        Raises:
            StackError: it has not ended within ``patience`` seconds.
        """
        began = time.monotonic()
        while not (now := self.run(run.dag_id, run.run_id)).ended:
            check()
            if (waited := time.monotonic() - began) > patience:
                raise StackError(f"run {run.run_id} of {run.dag_id} is {now.state} after {patience:.0f} s")
            # The longer the run takes, the fewer requests are needed, and each costs the server that does the work.
            time.sleep(min(1.0, 0.1 + waited / 50))
        return now

    def failure(self, run: DagRun) -> str:
        """The failed tasks of a run, each with its error and the address of its log."""
        failed = [task for task in self.task_instances(run) if task.state == "failed"]
        told = [f"{task.task_id} failed: {self.error(task)}\n  log: {self.log_url(task)}" for task in failed]
        return "\n".join([f"{run.dag_id}, run {run.run_id}, failed", *told])

    def _pages(self, path: str, name: str, query: Mapping[str, Any], most: int | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self._call("GET", path, params={**query, "limit": _PAGE, "offset": len(found)})
            found += page[name]
            if not page[name] or len(found) >= page["total_entries"] or (most is not None and len(found) >= most):
                return found[:most]

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._client.request(method, f"/api/v2{path}", **arguments)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                self._sign_in()
                answer = self._client.request(method, f"/api/v2{path}", **arguments)
        except httpx.TransportError as error:
            raise StackError(f"Airflow at {self.url} does not answer: {error}") from error
        if answer.is_error:
            raise StackError(f"Airflow answers {answer.status_code} to {method} {path}: {_detail(answer)}")
        return answer.json() if answer.content else None

    def _sign_in(self) -> None:
        answer = self._client.post("/auth/token", json={"username": self._user, "password": self._password})
        if answer.is_error:
            raise StackError(f"Airflow at {self.url} refused the sign-in of {self._user}: {_detail(answer)}")
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]


def _task(found: Mapping[str, Any]) -> TaskInstance:
    return TaskInstance(
        dag_id=found["dag_id"],
        run_id=found["dag_run_id"],
        task_id=found["task_id"],
        map_index=found["map_index"],
        state=found["state"],
        try_number=found["try_number"],
        ended_at=utc(found["end_date"]) if found["end_date"] else None,
    )


def _run(found: Mapping[str, Any]) -> DagRun:
    def moment(name: str) -> datetime | None:
        return utc(found[name]) if found[name] else None

    return DagRun(
        dag_id=found["dag_id"],
        run_id=found["dag_run_id"],
        state=found["state"],
        run_type=found["run_type"],
        partition_key=found["partition_key"],
        queued_at=moment("queued_at"),
        started_at=moment("start_date"),
        ended_at=moment("end_date"),
        triggered_by=found["triggered_by"],
        user=found["triggering_user_name"],
        conf=found["conf"] or {},
    )
