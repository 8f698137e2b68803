"""Alerts about the operation: runs, processes, silence, what is late. One function per kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from perennial.alerts.alert import EVERYBODY, Alert, as_text, clean
from perennial.core.intervals import Interval


def run_failed(
    model: str,
    *,
    stage: str,
    run_id: str,
    interval: Interval | None,
    error: str,
    tries: int = 1,
    links: Mapping[str, str] | None = None,
    subject: str | None = None,
) -> Alert:
    """A run failed for good.

    Args:
        model: the model.
        stage: the stage or task that failed, such as ``ingest``.
        run_id: the run.
        interval: what the run was for, if that is known.
        error: type and message of the error. Only its first line is told: deeper ones may quote data.
        tries: how often it was tried.
        links: addresses of the run and its log.
        subject: see :func:`failure`.
    """
    what_for = f" for {interval.key}" if interval is not None else ""
    often = f" {tries} times" if tries > 1 else ""
    first = next((line for line in error.splitlines() if line.strip()), "no message")
    return Alert(
        model=model,
        severity="critical",
        kind="run_failed",
        title=f"{model}: {stage} failed{what_for}",
        text=as_text(
            f"The run {clean(run_id)} of {stage}{what_for} failed{often} and will not be tried again:",
            [first],
            "Open its log. Once the cause is gone, clear the failed task: every stage may be run again for its interval.",
        ),
        links=dict(links or {}),
        subject=subject,
    )


def channel_lost(channel: str, *, reason: str, since: datetime, refuses: bool, waiting: int, critical: int) -> Alert:
    """A channel takes no alerts; told through the others.

    Args:
        channel: its name.
        reason: what it answers.
        since: when it began.
        refuses: whether it will not by itself, so that somebody has to mend it.
        waiting: alerts that wait for it.
        critical: how many of them are critical.
    """
    which = f"{waiting} alert{'s' if waiting > 1 else ''} {'wait' if waiting > 1 else 'waits'}, {critical} of them critical"
    todo = (
        "Mend its connection in Airflow, or the channel in model.yaml, then trigger perennial.notify. It is tried each hour."
        if refuses
        else "It is tried again by itself, at least each quarter of an hour."
    )
    return Alert(
        model=EVERYBODY,
        severity="critical",
        kind="channel_lost",
        title=f"{channel} takes no alerts",
        text=as_text(
            f"Since {since:%Y-%m-%d %H:%M} UTC nothing could be sent to {channel}; none is lost:",
            [reason, which],
            todo,
        ),
        subject=f"channel/{channel}",
    )


def airflow_silent(model: str, *, reason: str) -> Alert:
    """Airflow's API does not answer."""
    return Alert(
        model=model,
        severity="critical",
        kind="airflow_silent",
        title="Airflow does not answer",
        text=as_text(
            "Nobody can see or start runs, and whether tasks still run is not known:",
            [reason],
            "Look at the API server's log, and at its database. Runs go on by themselves once it is back.",
        ),
    )


def component_down(model: str, *, component: str, heartbeat: datetime | None) -> Alert:
    """A part of Airflow has stopped."""
    stops = {
        "scheduler": "No task starts, whatever is due.",
        "dag_processor": "Changes of DAGs and models are not seen.",
        "triggerer": "Tasks that wait without a worker do not wake up.",
        "metadatabase": "Airflow cannot read its database.",
    }
    last = f"its last heartbeat was at {heartbeat:%Y-%m-%d %H:%M:%S} UTC" if heartbeat is not None else "it has no heartbeat"
    return Alert(
        model=model,
        severity="critical",
        kind="component_down",
        title=f"Airflow's {component.replace('_', ' ')} is down",
        text=as_text(
            f"{stops.get(component, 'A part of Airflow is missing.')} What is known:",
            [last],
            "Look at the end of its log, then start it again. What was due meanwhile is made up for.",
        ),
    )


def _last_line(error: str) -> str:
    """The last line of an error that says something. Those before may quote data."""
    return next((line for line in reversed(error.splitlines()) if line.strip()), "")


def import_errors(model: str, *, errors: Mapping[str, str]) -> Alert:
    """DAG files are broken. Only the last line of each error is told.

    Args:
        errors: the error of each file.
    """
    return Alert(
        model=model,
        severity="critical",
        kind="import_errors",
        title="A DAG file cannot be read",
        text=as_text(
            "Airflow neither schedules nor triggers the DAGs of these files, of any model:",
            [f"{file}: {_last_line(text)}" for file, text in sorted(errors.items())],
            "Airflow's page of DAGs has the whole error. Correct the file; its DAGs return when Airflow has read it again.",
        ),
    )


def broken_folder(model: str, *, error: str, broken: str | None = None) -> Alert:
    """The folder of a model cannot be read.

    Args:
        error: what is wrong with it: the first line is told, or the last where it is Airflow's, which says which model it is.
        broken: name of the model; None where Airflow says it.
    """
    first = next(iter(error.splitlines()), "")
    return Alert(
        model=model,
        severity="critical",
        kind="import_errors",
        title=f"The folder of {broken} cannot be read" if broken else "Airflow cannot read a model's folder",
        text=as_text(
            f"{broken or 'The model'} has no DAGs until its folder is corrected, so it does not run. Other models run on:",
            [first if broken else _last_line(error)],
            f"`perennial check {broken or 'MODEL'}` tells everything that is wrong with it. Its DAGs return when Airflow has "
            "read it again.",
        ),
    )


def paused(model: str, *, stages: Sequence[str]) -> Alert:
    """Some of a model's DAGs are switched off while others are on."""
    return Alert(
        model=model,
        severity="warning",
        kind="paused",
        title=f"{model}: {', '.join(stages)} switched off",
        text=as_text(
            "The model's other DAGs are on and wait for these for ever:",
            [f"{model}.{stage}" for stage in stages],
            "Switch them on in Airflow; or switch all of the model's DAGs off, and nothing is expected of it.",
        ),
    )


def task_died(model: str, *, stage: str, task: str, run_id: str, interval: Interval | None, subject: str) -> Alert:
    """A task failed, and nothing was left to say why: its process was killed, or its machine was lost.

    Args:
        subject: see :func:`failure`.
    """
    what_for = f" for {interval.key}" if interval is not None else ""
    return Alert(
        model=model,
        severity="critical",
        kind="run_failed",
        title=f"{model}: {stage} failed{what_for}",
        text=as_text(
            f"The task {task} of run {clean(run_id)} failed without a word:",
            ["its process was killed (out of memory, perhaps), or the worker that ran it was lost"],
            "Look at the worker's memory and at the end of the task's log. Then clear the task: every stage may be run again.",
        ),
        subject=f"{subject}/{interval.key if interval is not None else run_id}",
    )


def run_ended(model: str, *, stage: str, run_id: str, interval: Interval | None) -> Alert:
    """A run failed although none of its tasks did: it took too long, or a person marked it."""
    subject = f" for {interval.key}" if interval is not None else ""
    return Alert(
        model=model,
        severity="critical",
        kind="run_failed",
        title=f"{model}: {stage} was ended{subject}",
        text=as_text(
            f"The run {clean(run_id)} failed:",
            ["none of its tasks did: it took longer than a run may, or somebody marked it as failed"],
            "Look at the run in Airflow, then clear what is not done: every stage may be run again.",
        ),
    )


def run_stuck(model: str, *, stage: str, run_id: str, state: str, since: datetime, interval: Interval | None) -> Alert:
    """A run has not come to an end for long."""
    subject = f" for {interval.key}" if interval is not None else ""
    return Alert(
        model=model,
        severity="warning",
        kind="run_stuck",
        title=f"{model}: {stage} does not end{subject}",
        text=as_text(
            f"The run {clean(run_id)} has not ended in the time of watch.run in model.yaml:",
            [f"it has been {state} since {since:%Y-%m-%d %H:%M} UTC"],
            "Queued: no worker takes its tasks, or an earlier run of the DAG is not over. Running: look at its task's log.",
        ),
    )


def silent(model: str, interval: Interval, *, tick: datetime, missing: Sequence[str]) -> Alert:
    """A day that was due is not published."""
    return Alert(
        model=model,
        severity="critical",
        kind="silent",
        title=f"{model}: {interval.key} is not there",
        text=as_text(
            f"Ingestion was due at {tick:%Y-%m-%d %H:%M} UTC, and {interval.key} is not published:",
            [f"{dataset} are missing" for dataset in missing],
            f"Look for the run in {model}.ingest: it failed, is stuck, or never started. Trigger it by hand for this day.",
        ),
    )


def unscored(model: str, interval: Interval, *, version: int) -> Alert:
    """Features are published, and nobody predicts."""
    return Alert(
        model=model,
        severity="critical",
        kind="unscored",
        title=f"{model}: no predictions for {interval.key}",
        text=as_text(
            f"Features of {interval.key} have been published for hours, and version {version} has not predicted:",
            ["no predictions of these days are published"],
            f"Look for the run in {model}.score; trigger it by hand for these days. History that nobody wants predicted is "
            "ingested with announce off, before the first champion.",
        ),
    )


def unmonitored(model: str, interval: Interval) -> Alert:
    """A window is scored whole, and was not judged."""
    return Alert(
        model=model,
        severity="warning",
        kind="unmonitored",
        title=f"{model}: {interval.key} was not judged",
        text=as_text(
            f"All of {interval.key} is scored, and whether it drifted is not recorded:",
            ["there is no verdict on this window"],
            f"Look for the run in {model}.monitor; trigger it by hand for this window.",
        ),
    )


def untrained(model: str, interval: Interval, *, tried_at: datetime) -> Alert:
    """A training that the calendar wanted made no version."""
    return Alert(
        model=model,
        severity="warning",
        kind="untrained",
        title=f"{model}: no training after {interval.key}",
        text=as_text(
            f"The features of {interval.key} are complete, and no version was made since:",
            [f"the newest version is of {tried_at:%Y-%m-%d %H:%M} UTC"],
            f"Look for the run in {model}.train. The champion serves on.",
        ),
    )


def champion_stale(model: str, *, version: int, age: timedelta, limit: timedelta) -> Alert:
    """The champion has not learned from anything new for long."""
    return Alert(
        model=model,
        severity="warning",
        kind="champion_stale",
        title=f"{model}: champion {version} is old",
        text=as_text(
            f"Version {version} has learned nothing of the newest data:",
            [f"they are {age.days} days newer than the end of what it was trained on; watch.champion allows {limit.days}"],
            f"Find out why newer versions were refused (`perennial explain {model} VERSION`), or why there are none.",
        ),
    )


def labels_late(model: str, interval: Interval, *, version: int, limit: timedelta, share: float) -> Alert:
    """What came of predictions should be known by now, and is not."""
    return Alert(
        model=model,
        severity="warning",
        kind="labels_late",
        title=f"{model}: labels of {interval.key} are late",
        text=as_text(
            f"How version {version} did in {interval.key} is still unknown:",
            [f"labels of {share:.0%} of the predictions were to be known {limit.days} days after (watch.labels)"],
            "Look at what the label's table received. Until labels come, drift is the only sign of trouble.",
        ),
    )


def alerts_waiting(model: str, *, count: int, since: datetime) -> Alert:
    """Alerts are not delivered."""
    return Alert(
        model=model,
        severity="warning",
        kind="alerts_waiting",
        title="Alerts wait to be sent",
        text=as_text(
            "Whoever sends alerts does not, or the channels refuse them:",
            [f"{count} wait, the oldest since {since:%Y-%m-%d %H:%M} UTC"],
            "Look at the DAG perennial.notify and its last run. The watchdog sends what it can meanwhile.",
        ),
    )


def ledger_was_silent(model: str, *, since: datetime, until: datetime) -> Alert:
    """The ledger could not be read for a while; told when it is back, for it is where alerts are written."""
    return Alert(
        model=model,
        severity="critical",
        kind="ledger_silent",
        title="The ledger did not answer",
        text=as_text(
            "Nothing could be published, promoted or told:",
            [f"from {since:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S} UTC"],
            "It answers again. Tasks that failed meanwhile have alerts of their own; look at the database's log.",
        ),
    )
