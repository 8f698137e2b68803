"""An HTTP server that answers as Airflow's REST API does, for what the watchdog and the judge ask of it.

Every path, parameter and answer is held to the OpenAPI document that Airflow ships: what is not in it fails the test.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import yaml

USER, PASSWORD, TOKEN = "watchdog", "only looks", "a token"


@lru_cache
def _api() -> dict[str, Any]:
    package = find_spec("airflow")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "api_fastapi" / "core_api" / "openapi" / "v2-rest-api-generated.yaml"
    # C's reader takes 2 s for it, Python's own 20.
    api: dict[str, Any] = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return api


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


@dataclass
class AirflowStandIn:
    """What it answers. Change it while it runs.

    Attributes:
        health: the status and the last heartbeat of each component.
        dags: whether each is paused.
        errors: message by DAG file.
        runs: answers of the runs, made by :meth:`add_run`.
        tasks: answers of the task instances, made by :meth:`add_task`.
        questions: what people have answered, by DAG, run and task, made by :meth:`add_question`.
        user, password: who may sign in.
        broken: answer 500 to everything.
        asked: every path with its query, in order.
        signed_in: who has signed in, in order.
        complaints: what was asked or answered that Airflow's own document does not allow.
    """

    health: dict[str, tuple[str, datetime | None]] = field(default_factory=dict)
    dags: dict[str, bool] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    questions: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    user: str = USER
    password: str = PASSWORD
    broken: bool = False
    signed_in: list[str] = field(default_factory=list)
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    url: str = ""

    def add_run(self, dag_id: str, run_id: str, state: str, **more: Any) -> None:
        given = {"queued_at": None, "start_date": None, "end_date": None, **more}
        run = _example("DAGRunResponse") | {"dag_id": dag_id, "dag_run_id": run_id, "state": state, "partition_key": None}
        self.runs.append(run | {name: _iso(value) if isinstance(value, datetime) else value for name, value in given.items()})

    def add_task(self, dag_id: str, run_id: str, task_id: str, state: str, ended: datetime | None = None) -> None:
        task = _example("TaskInstanceResponse") | {"dag_id": dag_id, "dag_run_id": run_id, "task_id": task_id, "state": state}
        self.tasks.append(task | {"map_index": -1, "end_date": _iso(ended)})

    def add_question(self, dag_id: str, run_id: str, task_id: str, **said: Any) -> None:
        self.questions[dag_id, run_id, task_id] = _example("HITLDetail") | {"options": ["Approve", "Reject"], **said}

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[str, Any]:
        """The path as the document has it, and the answer."""
        parts = [unquote(part) for part in path.split("/")]
        states = query.get("state", [])
        match parts:
            case ["monitor", "health"]:
                health: dict[str, Any] = {"metadatabase": {"status": "healthy"}}
                for name, (status, beat) in self.health.items():
                    health[name] = {"status": status, f"latest_{name}_heartbeat": _iso(beat)}
                return "/api/v2/monitor/health", health
            case ["dags"]:
                dags = [_example("DAGResponse") | {"dag_id": dag, "is_paused": paused} for dag, paused in self.dags.items()]
                return "/api/v2/dags", self._page("dags", dags, query)
            case ["importErrors"]:
                found = [
                    _example("ImportErrorResponse") | {"filename": file, "stack_trace": text}
                    for file, text in self.errors.items()
                ]
                return "/api/v2/importErrors", self._page("import_errors", found, query)
            case ["dags", "~", "dagRuns"]:
                runs = [run for run in self.runs if run["state"] in states]
                return "/api/v2/dags/{dag_id}/dagRuns", self._page("dag_runs", runs[::-1], query)
            case ["dags", dag_id, "dagRuns", run_id]:
                [run] = [run for run in self.runs if (run["dag_id"], run["dag_run_id"]) == (dag_id, run_id)]
                return "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}", run
            case ["dags", dag_id, "dagRuns", run_id, "taskInstances"]:
                tasks = [task for task in self.tasks if not states or task["state"] in states]
                if dag_id != "~":
                    tasks = [task for task in tasks if (task["dag_id"], task["dag_run_id"]) == (dag_id, run_id)]
                name = "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances"
                return name, self._page("task_instances", tasks, query)
            case ["dags", dag_id, "dagRuns", run_id, "taskInstances", task_id, "-1", "hitlDetails"]:
                name = "/api/v2/dags/{dag_id}/dagRuns/{dag_run_id}/taskInstances/{task_id}/{map_index}/hitlDetails"
                return name, self.questions[dag_id, run_id, task_id]
        raise KeyError(path)

    def _page(self, name: str, everything: list[dict[str, Any]], query: dict[str, list[str]]) -> dict[str, Any]:
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        return {name: everything[offset : offset + limit], "total_entries": len(everything)}

    def check(self, path: str, query: dict[str, list[str]], body: Any) -> None:
        """Hold a question and its answer to Airflow's document."""
        operation = _api()["paths"][path]["get"]
        allowed = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"}
        if unknown := set(query) - allowed:
            self.complaints.append(f"{path} knows no {unknown}")
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        for error in jsonschema.Draft202012Validator({**schema, "components": _api()["components"]}).iter_errors(body):
            self.complaints.append(f"{path}: {error.json_path}: {error.message}")


def _example(name: str) -> dict[str, Any]:
    """The least that Airflow's document allows for an answer."""
    return {key: _value(part) for key, part in _api()["components"]["schemas"][name]["properties"].items()}


def _value(schema: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _value(_api()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    options = schema.get("anyOf", [])
    if any(option.get("type") == "null" for option in options):
        return None
    if options:
        return _value(options[0])
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("format") == "date-time":
        return "2024-01-01T00:00:00Z"
    if schema.get("type") == "object":
        return {key: _value(part) for key, part in schema.get("properties", {}).items()}
    return {"array": [], "boolean": False, "integer": 0, "number": 0.0}.get(schema.get("type", "string"), "text")


class Serving:
    """The stand-in behind a port of its own, which can be closed and opened again."""

    def __init__(self, airflow: AirflowStandIn) -> None:
        self.airflow = airflow
        self.open()

    def open(self) -> None:
        port = int(self.airflow.url.rpartition(":")[2]) if self.airflow.url else 0
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self.airflow))
        self.airflow.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(airflow: AirflowStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if given == {"username": airflow.user, "password": airflow.password}:
                airflow.signed_in.append(airflow.user)
                self._send(201, {"access_token": TOKEN})
            else:
                self._send(401, {"detail": "Invalid credentials"})

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            query = parse_qs(address.query)
            path = address.path.removeprefix("/api/v2/")
            airflow.asked.append((path, query))
            if airflow.broken:
                self._send(500, {"detail": "database is locked"})
            elif path != "monitor/health" and self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._send(401, {"detail": "Not authenticated"})
            else:
                name, body = airflow.answer(path, query)
                airflow.check(name, query, body)
                self._send(200, body)

        def _send(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
            pass

    return Handler
