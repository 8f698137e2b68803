"""What happens when a task has failed for good, and when one succeeds that had: rows in the outbox, from which alerts are sent.

Neither ever fails the task.
"""

from __future__ import annotations

from airflow.sdk import Context

from perennial.alerts import of_operation
from perennial.alerts.alert import failure, failure_key
from perennial.core import logs
from perennial.core.intervals import Interval

log = logs.get(__name__)


def alert_of_failure(context: Context) -> None:
    """Put an alert of the failed task into the outbox."""
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
        log.exception("the alert of %s could not be recorded", task.task_id)


def resolve_failure(context: Context) -> None:
    """Tell whom a failure was told that the task has succeeded since, in this run or in another one for the same interval."""
    from perennial.orchestration.runs import deployment

    task, run = context["ti"], context["dag_run"]
    # Nearly every task: the first try of a run of the calendar, before which nothing can have failed for its interval.
    if task.try_number == 1 and run.run_type == "scheduled":
        return
    try:
        ledger, subject = deployment().ledger, failure(task.dag_id, task.task_id, task.map_index)
        same = {f"{subject}/{run.run_id}", _subject(context)}
        for found in same.intersection(ledger.open_subjects(subject)):
            ledger.resolve(found, f"{task.task_id} has succeeded, in run {run.run_id}.")
    except Exception:
        log.exception("that %s succeeded could not be recorded", task.task_id)


def _subject(context: Context) -> str:
    """The same for each run that does the same: by the interval, if the run has one."""
    task, interval = context["ti"], _interval(context)
    what = interval.key if interval is not None else context["dag_run"].run_id
    return f"{failure(task.dag_id, task.task_id, task.map_index)}/{what}"


def _interval(context: Context) -> Interval | None:
    params, key = context["params"], context["dag_run"].partition_key
    try:
        if params.get("start") and params.get("end"):
            return Interval.of(params["start"], params["end"])
        return Interval.day(key) if key else None
    except (ValueError, TypeError):  # it may be what the task failed for
        return None
