"""Parse a DAG folder as Airflow does and print what came of it, as JSON. Run in a process of its own."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Any
from unittest.mock import patch

HEAVY = ("pandas", "mlflow", "great_expectations", "evidently", "sklearn", "pyarrow", "duckdb", "pyiceberg")


def _first_run(timetable: Any, since: timedelta) -> float | None:
    """Seconds from a tick to the first run of a DAG that is switched on some time after it; None if no clock starts it."""
    from airflow.sdk.timezone import coerce_datetime, utcnow
    from airflow.timetables import trigger
    from airflow.timetables.base import TimeRestriction

    if not isinstance(timetable, trigger.CronTriggerTimetable):
        return None
    tick = timetable._align_to_prev(coerce_datetime(utcnow()))
    with patch.object(trigger, "utcnow", lambda: tick + since):
        restriction = TimeRestriction(earliest=None, latest=None, catchup=False)
        following = timetable.next_dagrun_info_v2(last_dagrun_info=None, restriction=restriction)
    assert following is not None
    return float((following.run_after - tick).total_seconds())


def describe(folder: str) -> dict[str, object]:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    bag = DagBag(folder)
    dags = {}
    for dag_id, dag in bag.dags.items():
        stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        dags[dag_id] = {
            "file": dag.fileloc,
            "doc": dag.doc_md,
            "tags": sorted(dag.tags),
            "timetable": type(dag.timetable).__name__,
            "first_run": {
                "late": _first_run(stored.timetable, timedelta(hours=1)),
                "at once": _first_run(stored.timetable, timedelta(seconds=1)),
            },
            "max_active_runs": dag.max_active_runs,
            "max_active_tasks": dag.max_active_tasks,
            "run_limit": dag.dagrun_timeout.total_seconds() if dag.dagrun_timeout else None,
            "catchup": dag.catchup,
            "editors": sorted(dag.access_control or {}),
            "params": {name: dag.params.get_param(name).schema for name in dag.params},
            "tasks": {
                task.task_id: {
                    "upstream": sorted(task.upstream_task_ids),
                    "retries": task.retries,
                    "back_off": bool(task.retry_exponential_backoff),
                    "limit": task.execution_timeout.total_seconds() if task.execution_timeout else None,
                    "alerts": bool(task.on_failure_callback),
                    "mapped": task.is_mapped,
                    "pool": task.pool,
                    "priority": task.priority_weight,
                    "at_once": task.max_active_tis_per_dagrun,
                    "queue": task.queue,
                    "kind": type(task).__name__,
                }
                for task in dag.tasks
            },
        }
    return {
        "dags": dags,
        "import_errors": bag.import_errors,
        "heavy": [name for name in HEAVY if name in sys.modules],
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(describe(sys.argv[1])) + "\n")
