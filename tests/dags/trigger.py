"""Trigger the project's DAGs as people do, over Airflow's own REST API, or run one. In a process of its own.

Reads requests from its standard input, a JSON list, and prints what came of each after all that was logged. ``{"post":
[dag_id, body]}`` triggers; ``{"run": [dag_id, task_id, conf]}`` runs that task, and tells its state. Without a task it
runs all of them. ``{"move": [source, target]}`` moves a file. ``{"notes": [dag_id]}`` tells the notes of a DAG's runs, oldest
first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    from airflow.api_fastapi.app import create_app
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.utils.db import initdb
    from fastapi.testclient import TestClient

    initdb()
    DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]  # Airflow gives it no types.
    folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
    bag = BundleDagBag(dag_folder=folder, bundle_path=Path(folder), bundle_name="dags-folder")
    sync_bag_to_db(bag, "dags-folder", None)
    client = TestClient(create_app(apps="core"), base_url="http://testserver", raise_server_exceptions=False)
    token = client.post("/auth/token", json={"username": "admin", "password": "admin"}).json()["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"

    def post(dag_id: str, body: Any) -> dict[str, Any]:
        content = body if isinstance(body, str) else json.dumps(body)
        answer = client.post(f"/api/v2/dags/{dag_id}/dagRuns", content=content, headers={"Content-Type": "application/json"})
        return {"status": answer.status_code, "text": answer.text[:2000]}

    def run(dag_id: str, task_id: str | None, conf: Any) -> dict[str, Any]:
        dag = bag.dags[dag_id]
        done = (dag if task_id is None else dag.partial_subset(task_id, include_upstream=False)).test(run_conf=conf)
        return {task.task_id: str(task.state) for task in done.get_task_instances()}

    def move(source: str, target: str) -> dict[str, Any]:
        return {"moved": str(Path(source).rename(target))}

    def notes(dag_id: str) -> dict[str, Any]:
        found = client.get(f"/api/v2/dags/{dag_id}/dagRuns", params={"order_by": "id"}).json()["dag_runs"]
        return {"notes": [one["note"] for one in found]}

    kinds: dict[str, Callable[..., dict[str, Any]]] = {"post": post, "run": run, "move": move, "notes": notes}
    answers = []
    for request in json.loads(sys.stdin.read()):
        ((kind, arguments),) = request.items()
        answers.append(kinds[kind](*arguments))
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
