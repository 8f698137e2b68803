"""Run a task's process that ends with a code, and print how its worker heard of that.

Usage: python end_task.py <coordinator | airflow> <code>
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import uuid
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

from airflow.sdk.api.datamodels._generated import TaskInstance
from airflow.sdk.execution_time.coordinator import get_coordinator_manager
from airflow.sdk.execution_time.supervisor import ActivitySubprocess

in_vain = 0


class Selector(selectors.DefaultSelector):
    """Counts how often a wait was for nothing."""

    def select(self, timeout: float | None = None) -> list[Any]:
        global in_vain
        events: list[Any] = super().select(timeout)
        in_vain += not events
        return events


def target() -> None:
    raise SystemExit(int(sys.argv[2]))


if sys.argv[1] == "airflow":
    del os.pidfd_open
# What would be told to the execution API goes nowhere.
client = MagicMock()
client.task_instances.start.return_value = SimpleNamespace(should_retry=False, start_date=None)
task = TaskInstance(
    id=uuid.uuid4(), task_id="end", dag_id="toy.score", run_id="run", try_number=1, dag_version_id=uuid.uuid4(), queue="score"
)
with patch.object(ActivitySubprocess, "start", partial(ActivitySubprocess.start, target=target, selector=Selector())):
    done = (
        get_coordinator_manager()
        .for_queue("score")
        .execute_task(
            what=task,
            dag_rel_path="dags.py",
            bundle_info=None,
            client=client,
            logger=MagicMock(),
            subprocess_logs_to_stdout=False,
        )
    )
sys.stdout.write("\n" + json.dumps({"code": done.exit_code, "state": done.final_state, "in_vain": in_vain}) + "\n")
