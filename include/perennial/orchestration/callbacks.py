"""Callbacks of tasks: one records an alert when a task fails for good, the other the recovery when it succeeds later.

An error in a callback is logged, and never fails the task.
"""

from __future__ import annotations

import logging

from airflow.sdk import Context

from perennial.alerts import of_operation
from perennial.alerts.alert import failure, failure_key
from perennial.core.intervals import Interval

log = logging.getLogger(__name__)


def alert_of_failure(context: Context) -> None:
    """Record an alert about the failed task in the outbox."""
    from perennial.orchestration.runs import deployment, task_links

    task, dag_run = context["ti"], context["dag_run"]
    model, _, stage = task.dag_id.partition(".")
    try:
        parts = deployment()
        alert = of_operation.run_failed(
            model,
            stage=f"{stage}, task {task.task_id}",
            run_id=dag_run.run_id,
            interval=_interval(context),
            error=str(context.get("exception") or "no message was left"),
            tries=task.try_number,
            links=task_links(parts.settings, task),
            subject=_subject(context),
        )
        key = failure_key(task.dag_id, dag_run.run_id, task.task_id, task.map_index)
        parts.ledger.record_alert(alert, key)
    except Exception:
        log.exception("the alert about task %s could not be recorded", task.task_id)


def resolve_failure(context: Context) -> None:
    """Notify everyone who was told about a failure that the task has since succeeded.

    The task may have succeeded in the same run, or in another run for the same interval.
    """
    from perennial.orchestration.runs import deployment

    task, run = context["ti"], context["dag_run"]
    # In the first try of a scheduled run, nothing can have failed for its interval before. This is by far the most common case.
    if task.try_number == 1 and run.run_type == "scheduled":
        return
    try:
        ledger, subject = deployment().ledger, failure(task.dag_id, task.task_id, task.map_index)
        same = {f"{subject}/{run.run_id}", _subject(context)}
        for found in same.intersection(ledger.open_subjects(subject)):
            ledger.resolve(found, f"Task {task.task_id} has succeeded in run {run.run_id}.")
    except Exception:
        log.exception("the recovery of task %s could not be recorded", task.task_id)


def _subject(context: Context) -> str:
    """The alert's subject: the same for all runs of an interval; a run without an interval has its own."""
    task, interval = context["ti"], _interval(context)
    what = interval.key if interval is not None else context["dag_run"].run_id
    return f"{failure(task.dag_id, task.task_id, task.map_index)}/{what}"


def _interval(context: Context) -> Interval | None:
    params, key = context["params"], context["dag_run"].partition_key
    try:
        if params.get("start") and params.get("end"):
            return Interval.of(params["start"], params["end"])
        return Interval.day(key) if key else None
    except (ValueError, TypeError):  # a wrong interval may be why the task failed
        return None
