"""What happens when a task has failed for good: a row in the outbox, from which alerts are sent."""

from __future__ import annotations

import logging

from airflow.sdk import Context


def alert_of_failure(context: Context) -> None:
    """Put an alert of the failed task into the outbox; a failure to do so is logged and never raised."""
    from perennial import alerts
    from perennial.intervals import Interval
    from perennial.orchestration.runs import deployment

    task, dag_run = context["ti"], context["dag_run"]
    model, _, stage = task.dag_id.partition(".")
    try:
        alert = alerts.run_failed(
            model,
            stage=f"{stage}, task {task.task_id}",
            run_id=dag_run.run_id,
            interval=Interval.day(dag_run.partition_key) if dag_run.partition_key else None,
            error=str(context.get("exception") or "no message was left"),
        )
        key = f"run_failed:{task.dag_id}:{dag_run.run_id}:{task.task_id}:{task.map_index}"
        deployment().ledger.record_alert(alert, key=key)
    except Exception:
        logging.getLogger(__name__).exception("the alert of %s could not be recorded", task.task_id)
