"""The end of a task, as its worker hears of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.core.settings import PROJECT
from perennial.orchestration.queues import LIGHT
from perennial.orchestration.queues import QUEUES as STAGES_ELSEWHERE
from perennial.stack.environment import COORDINATOR, QUEUES

PROGRAM = Path(__file__).with_name("end_task.py")


def end_task(home: Path, way: str, code: int = 0) -> dict[str, Any]:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__SDK__COORDINATORS": json.dumps({"prompt": {"classpath": COORDINATOR}}),
        "AIRFLOW__SDK__QUEUE_TO_COORDINATOR": json.dumps(dict.fromkeys(QUEUES, "prompt")),
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM), way, str(code)], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("code", "state"), [(0, "success"), (3, "failed")])
def test_a_worker_never_waits_in_vain_for_the_end_of_its_task(tmp_path: Path, code: int, state: str) -> None:
    assert end_task(tmp_path, "coordinator", code) == {"code": code, "state": state, "in_vain": 0}


def test_where_the_system_cannot_tell_of_an_end_airflow_finds_it(tmp_path: Path) -> None:
    found = end_task(tmp_path, "airflow")
    assert (found["code"], found["state"]) == (0, "success")


def test_the_tasks_of_every_queue_are_watched_so() -> None:
    assert set(QUEUES) == {"default", LIGHT, *STAGES_ELSEWHERE.values()}


def test_celery_workers_watch_their_tasks_so_too() -> None:
    variables = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())["x-airflow"]
    [(name, spec)] = json.loads(variables["AIRFLOW__SDK__COORDINATORS"]).items()
    assert spec == {"classpath": COORDINATOR}
    assert json.loads(variables["AIRFLOW__SDK__QUEUE_TO_COORDINATOR"]) == dict.fromkeys(set(QUEUES) - {"default"}, name)
