"""Callbacks of tasks: one records an alert when a task fails for good, the other the recovery when it succeeds later.

What covers a failure's interval closes it: the same task for an interval that contains it, or what tasks of the same work have
published since, in as many parts as it took. So a day that was refused, mended and loaded with a month is well again.

An error in a callback is logged, and never fails the task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from perennial.alerts import of_operation
from perennial.alerts.alert import failure, failure_key
from perennial.core.intervals import Interval
from perennial.ledger.coverage import uncovered

if TYPE_CHECKING:
    from perennial.alerts.outbox import OutboxEntry
    from perennial.ledger.store import Ledger

log = logging.getLogger(__name__)


#: By stage, all stages that publish the same.
_SAME_WORK = {"ingest": ("ingest", "load"), "load": ("ingest", "load")}

#: By task that publishes, the dataset. The tasks whose names begin with a word of :data:`_BEFORE` come before it, and what they
#: failed to do is done once it has published.
_PUBLISHES = {"publish_tables": "tables", "build_features": "features", "predict": "predictions"}
_BEFORE = {"publish_tables": ("check_", "publish_tables"), "build_features": ("build_features",), "predict": ("predict",)}


def alert_of_failure(context: Context) -> None:
    """Record an alert about the failed task in the outbox.

    If a person has asked in a form for what cannot be done, the alert is kept and goes to nobody: the person was told.
    """
    from perennial.orchestration.runs import FormRefused, deployment, task_links

    task, dag_run = context["ti"], context["dag_run"]
    model, _, stage = task.dag_id.partition(".")
    try:
        parts = deployment()
        key = failure_key(task.dag_id, dag_run.run_id, task.task_id, task.map_index)
        error = context.get("exception")
        if isinstance(error, FormRefused):
            by = getattr(dag_run, "triggering_user_name", None) or "somebody"
            refused = of_operation.form_refused(
                model,
                stage=f"{stage}, task {task.task_id}",
                run_id=dag_run.run_id,
                by=by,
                reason=str(error),
                links=task_links(parts.settings, task),
            )
            # The watchdog, too, is silent about what is recorded under this key.
            parts.ledger.keep_alert(refused, key)
            return
        alert = of_operation.run_failed(
            model,
            stage=f"{stage}, task {task.task_id}",
            run_id=dag_run.run_id,
            interval=_interval(context),
            error=str(error or "no message was left"),
            tries=task.try_number,
            links=task_links(parts.settings, task),
            subject=_subject(context),
        )
        parts.ledger.record_alert(alert, key)
    except Exception:
        log.exception("the alert about task %s could not be recorded", task.task_id)


def resolve_failure(context: Context) -> None:
    """Notify everyone who was told about a failure that what failed has since been done.

    It may have been done in the same run, or in others, for the same interval or for more.
    """
    from perennial.orchestration.runs import deployment

    task, run = context["ti"], context["dag_run"]
    # In the first try of a scheduled run, nothing can have failed for its interval before. This is by far the most common case.
    if task.try_number == 1 and run.run_type == "scheduled":
        return
    try:
        ledger = deployment().ledger
        for subject in list(_done(ledger, context)):
            ledger.resolve(subject, f"Task {task.task_id} has succeeded in run {run.run_id}.")
    except Exception:
        log.exception("the recovery of task %s could not be recorded", task.task_id)


def _done(ledger: Ledger, context: Context) -> Iterator[str]:
    """The subjects of open failures that are mended by the success of this task."""
    task, run, mine = context["ti"], context["dag_run"], _interval(context)
    model, _, stage = task.dag_id.partition(".")
    own, step = failure(task.dag_id, task.task_id, task.map_index), _step(task.task_id)
    for same in _SAME_WORK.get(stage, (stage,)):
        for entry in ledger.opened(f"failed/{model}.{same}"):
            subject = str(entry.alert.subject)
            topic, what = _parts(subject)
            failed = _as_interval(what)
            again = what == run.run_id or (mine is not None and failed is not None and mine.contains(failed))
            if (topic == own and again) or (failed is not None and _published(ledger, model, step, topic, failed, entry)):
                yield subject


def _published(ledger: Ledger, model: str, step: str, topic: str, failed: Interval, entry: OutboxEntry) -> bool:
    """Whether publications since a failure cover all that it was for."""
    if step not in _PUBLISHES or not _step(topic.split("/")[-2]).startswith(_BEFORE[step]):
        return False
    made = ledger.publications(model, _PUBLISHES[step], failed)
    return not uncovered(failed, [one for one in made if one.published_at > entry.created_at])


def _step(task_id: str) -> str:
    """A task's name without the group that it is in."""
    return task_id.rpartition(".")[2]


def _parts(subject: str) -> tuple[str, str]:
    """What failed, as :func:`perennial.alerts.alert.failure` names it, and what it was for. A run's id may have slashes."""
    words = subject.split("/", 4)
    return "/".join(words[:4]), words[4] if len(words) > 4 else ""


def _as_interval(key: str) -> Interval | None:
    try:
        return Interval.from_key(key)
    except ValueError:  # it is a run's id
        return None


def _subject(context: Context) -> str:
    """The alert's subject: the same for all runs of an interval; a run without an interval has its own."""
    task, interval = context["ti"], _interval(context)
    what = interval.key if interval is not None else context["dag_run"].run_id
    return f"{failure(task.dag_id, task.task_id, task.map_index)}/{what}"


def _interval(context: Context) -> Interval | None:
    """The days that the task was for: its part of the run's days, or all of them."""
    params, key = context["params"], context["dag_run"].partition_key
    if (part := _part(context)) is not None:
        return part
    try:
        if params.get("start") and params.get("end"):
            return Interval.of(params["start"], params["end"])
        return Interval.day(key) if key else None
    except (ValueError, TypeError):  # a wrong interval may be why the task failed
        return None


def _part(context: Mapping[str, Any]) -> Interval | None:
    """The part that a mapped task works on, as it is called with it; None if it is not known, or the task has all days."""
    given = getattr(context.get("task"), "op_kwargs", None) or {}
    work = given.get("work")
    part = work.get("part") if isinstance(work, Mapping) else given.get("part")
    return _as_interval(part) if isinstance(part, str) else None
