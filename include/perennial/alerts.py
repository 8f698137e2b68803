"""What people are told when something needs them: one function for each kind of alert.

An alert is composed here, recorded by :mod:`perennial.ledger` in the transaction of what caused it
(:mod:`perennial.outbox`), and sent by :mod:`perennial.delivery`. It speaks of models, intervals, versions, counts and
reasons; it never carries a row of data, an address with a password, or a traceback. ``docs/alerts.md`` says for each kind
what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from perennial.intervals import Interval
from perennial.redaction import redact

Severity = Literal["critical", "warning"]

#: Every kind there is; each has its line in ``docs/alerts.md``.
Kind = Literal[
    "airflow_silent",
    "alerts_waiting",
    "alias_put_back",
    "approval_wanted",
    "breaker",
    "champion_stale",
    "channel_lost",
    "component_down",
    "drift",
    "import_errors",
    "interval_refused",
    "labels_late",
    "ledger_silent",
    "paused",
    "performance_fell",
    "promoted",
    "promotion_refused",
    "recovered",
    "rollback",
    "run_failed",
    "run_stuck",
    "shadow_better",
    "silent",
    "unknown_verdict",
    "unmonitored",
    "unscored",
    "untrained",
]

#: Whose alerts those are that concern no single model.
EVERYBODY = "perennial"

#: Airflow's map index of a task that is not mapped.
_UNMAPPED = -1

#: Most reasons that are spelled out; the report has the rest.
_MAX_REASONS = 8
_MAX_LENGTH = 300
_SECRET = re.compile(
    r"(?i)(?P<name>\b[\w-]*(?:password|passwd|secret|token|api[_-]?key|authorization)[\w-]*\"?'?\s*[=:]\s*)"
    r"(?:bearer\s+|basic\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s,;&]+)"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")


@dataclass(frozen=True)
class Alert:
    """Something a person should know.

    Attributes:
        model: the model it is about.
        severity: ``critical``: predictions are missing or not to be trusted until someone acts. ``warning``: look at it.
        kind: for routing, for digests, and for ``docs/alerts.md``.
        title: one line.
        text: what happened and why; then, after an empty line, what to do. Plain text of a few lines.
        links: name to address, such as ``{"Drift report": "http://…"}``.
        subject: what is wrong while the alert is open, its parts separated by slashes; once that is well again,
            :meth:`perennial.ledger.Ledger.resolve` says so. None: there is nothing to be waited for.
    """

    model: str
    severity: Severity
    kind: Kind
    title: str
    text: str
    links: dict[str, str] = field(default_factory=dict)
    subject: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Alert:
        """The inverse of :meth:`to_json`."""
        return cls(**value)


_links: ContextVar[Mapping[str, str] | None] = ContextVar("perennial_alert_links", default=None)


@contextmanager
def linking(links: Mapping[str, str]) -> Iterator[None]:
    """Let each alert that is recorded inside lead to these addresses too, such as the page of the run at work."""
    token = _links.set({**(_links.get() or {}), **links})
    try:
        yield
    finally:
        _links.reset(token)


def linked(alert: Alert) -> Alert:
    """The alert with the links of :func:`linking`."""
    return replace(alert, links={**alert.links, **(_links.get() or {})})


# --- what is open under which subject --------------------------------------------------------------------------------

# A subject ends with the interval that it is about, where it is about one.


def refused_data(model: str, dataset: str) -> str:
    """Intervals whose data were refused; well again once the interval is published."""
    return f"refused/{model}/{dataset}"


def judged(model: str, what: Literal["unknown", "drift", "performance"]) -> str:
    """Monitoring windows that were judged badly; well again once that window, or one after it, is judged well."""
    return f"judged/{model}/{what}"


def reign(model: str, what: Literal["breaker", "shadow"]) -> str:
    """What stands while a champion is champion; well again with the next one."""
    return f"reign/{model}/{what}"


def failure(dag_id: str, task_id: str, map_index: int | None) -> str:
    """Failures of a task, by the interval or the run it was for; well again once the task succeeds for the same."""
    return f"failed/{dag_id}/{task_id}/{_UNMAPPED if map_index is None else map_index}"


def failure_key(dag_id: str, run_id: str, task_id: str, map_index: int | None) -> str:
    """The key of the alert of a failed task, whoever tells of it: its own callback, or the watchdog if it was killed."""
    return f"run_failed:{dag_id}:{run_id}:{task_id}:{_UNMAPPED if map_index is None else map_index}"


# --- one function a kind ---------------------------------------------------------------------------------------------


def drift(
    model: str,
    interval: Interval,
    *,
    version: int,
    reasons: Sequence[str],
    severity: Severity = "warning",
    links: Mapping[str, str] | None = None,
) -> Alert:
    """The inputs or predictions of an interval differ from what the champion was trained on.

    ``critical`` if that lasts, or performance falls with it (:mod:`perennial.impact`).
    """
    return Alert(
        model=model,
        severity=severity,
        kind="drift",
        title=f"{model}: {'lasting or harmful ' if severity == 'critical' else ''}drift in {interval.key}",
        text=_text(
            f"What version {version} saw in {interval.key} differs from what it was trained on:",
            reasons,
            "Open the report. Retraining is asked for by the model's policy, if enough windows agree; nothing has to be done "
            "unless the change is a fault of the data.",
        ),
        links=dict(links or {}),
        subject=f"{judged(model, 'drift')}/{interval.key}",
    )


def performance_fell(
    model: str,
    interval: Interval,
    *,
    version: int,
    reasons: Sequence[str],
    severity: Severity,
    links: Mapping[str, str] | None = None,
) -> Alert:
    """Labels show that a version is worse than it was on its holdout, although its inputs are as they were."""
    return Alert(
        model=model,
        severity=severity,
        kind="performance_fell",
        title=f"{model}: version {version} does worse, seen in {interval.key}",
        text=_text(
            f"Inputs in {interval.key} resemble what version {version} was trained on, yet its predictions are worse:",
            reasons,
            "What the features mean for the label has changed, or labels are wrong. Look at the labels first, then train anew.",
        ),
        links=dict(links or {}),
        subject=f"{judged(model, 'performance')}/{interval.key}",
    )


def unknown_verdict(
    model: str, interval: Interval, *, version: int | None, reasons: Sequence[str], links: Mapping[str, str] | None = None
) -> Alert:
    """Drift could not be judged, which is never the same as no drift."""
    subject = f"version {version}" if version is not None else "the champion"
    return Alert(
        model=model,
        severity="warning",
        kind="unknown_verdict",
        title=f"{model}: drift of {interval.key} could not be judged",
        text=_text(
            f"Whether {interval.key} resembles what {subject} was trained on is unknown:",
            reasons,
            "Repair what is named, then run the monitor again for this window. Until then it counts as neither.",
        ),
        links=dict(links or {}),
        subject=f"{judged(model, 'unknown')}/{interval.key}",
    )


def interval_refused(
    model: str, interval: Interval, *, reasons: Sequence[str], rows: Mapping[str, int], links: Mapping[str, str] | None = None
) -> Alert:
    """An interval's data broke a critical check and was not published.

    Args:
        model: the model.
        interval: what was refused.
        reasons: the checks that failed, with counts.
        rows: rows read, by table.
        links: addresses of the Data Docs and the run.
    """
    read = ", ".join(f"{table} {count:,}" for table, count in sorted(rows.items())) or "none"
    return Alert(
        model=model,
        severity="critical",
        kind="interval_refused",
        title=f"{model}: the data of {interval.key} were refused",
        text=_text(
            f"Nothing of {interval.key} was published; what was published before stays. Rows read: {read}. Reasons:",
            reasons,
            "Correct the source and run ingest again for this interval, or change the check in model.yaml if it is wrong.",
        ),
        links=dict(links or {}),
        subject=f"{refused_data(model, 'tables')}/{interval.key}",
    )


def promotion_refused(
    model: str, *, version: int, champion: int | None, reasons: Sequence[str], links: Mapping[str, str] | None = None
) -> Alert:
    """A trained version did not pass the gates; the champion stays."""
    stays = f"Version {champion} stays champion" if champion is not None else "The model still has no champion"
    return Alert(
        model=model,
        severity="warning" if champion is not None else "critical",
        kind="promotion_refused",
        title=f"{model}: version {version} was not promoted",
        text=_text(
            f"{stays}. Version {version} did not pass:",
            reasons,
            "Compare the two in MLflow. The next training tries again on newer data.",
        ),
        links=dict(links or {}),
    )


def promoted(
    model: str, *, version: int, previous: int | None, reason: str, actor: str, links: Mapping[str, str] | None = None
) -> Alert:
    """A version became champion."""
    before = f"in place of version {previous}" if previous is not None else "as the first champion"
    return Alert(
        model=model,
        severity="warning",
        kind="promoted",
        title=f"{model}: version {version} is champion",
        text=_text(
            f"Version {version} was promoted {before} by {_clean(actor)}:",
            [reason],
            "The next scoring run uses it. If it misbehaves, the rollback DAG brings the version before it back.",
        ),
        links=dict(links or {}),
    )


def breaker(model: str, interval: Interval, *, reason: str) -> Alert:
    """Monitoring asks for no more retrainings, since the ones before led to no promotion."""
    return Alert(
        model=model,
        severity="critical",
        kind="breaker",
        title=f"{model}: retraining has stopped",
        text=_text(
            f"After {interval.key}:",
            [reason],
            "The champion serves on. Find out why the gates refuse (`perennial explain` tells for each version), then change "
            "the model or train by hand; the next promotion lets monitoring ask again.",
        ),
        subject=reign(model, "breaker"),
    )


def rollback(
    model: str, *, version: int, previous: int | None, reason: str, actor: str, links: Mapping[str, str] | None = None
) -> Alert:
    """An earlier version was made champion again."""
    instead = f" instead of version {previous}" if previous is not None else ""
    return Alert(
        model=model,
        severity="warning",
        kind="rollback",
        title=f"{model}: rolled back to version {version}",
        text=_text(
            f"Version {version} is champion again{instead}, by {_clean(actor)}:",
            [reason],
            "Predictions made meanwhile keep the version that made them; score their intervals again if they must change.",
        ),
        links=dict(links or {}),
    )


def approval_wanted(
    model: str, *, version: int, champion: int | None, until: datetime, links: Mapping[str, str] | None = None
) -> Alert:
    """A version passed its gates, and a person has to say whether it becomes champion."""
    stays = f"version {champion} stays champion" if champion is not None else "there still is no champion"
    return Alert(
        model=model,
        severity="warning",
        kind="approval_wanted",
        title=f"{model}: shall version {version} become champion?",
        text=_text(
            f"Version {version} passed its gates and waits for an approval:",
            [f"without an answer until {until:%Y-%m-%d %H:%M} UTC, {stays}"],
            "Answer in Airflow, where both are compared.",
        ),
        links=dict(links or {}),
    )


def shadow_better(
    model: str,
    *,
    champion: int,
    version: int,
    former: bool,
    rolls_back: bool,
    reason: str,
    links: Mapping[str, str] | None = None,
) -> Alert:
    """Labels show that the champion does surely worse than a version in its shadow.

    Args:
        model: the model.
        champion: its champion.
        version: the one in the shadow.
        former: whether that is the champion before, rather than a refused candidate.
        rolls_back: whether the model's spec lets monitoring roll back.
        reason: in words and numbers.
        links: where to read about the version.
    """
    if not former:
        advice = f"If you agree: perennial promote {model} {version} --override REASON, or the DAG {model}.promote."
    elif rolls_back:
        advice = f"Version {version} is made champion again, as shadow.rollback in model.yaml says."
    else:
        advice = f"If you agree, trigger {model}.rollback; nothing is done by itself, see shadow.rollback in model.yaml."
    which = "the champion before it" if former else "a candidate that was refused"
    return Alert(
        model=model,
        severity="critical" if former else "warning",
        kind="shadow_better",
        title=f"{model}: champion {champion} does worse than version {version}",
        text=_text(f"On mature labels version {champion} does worse than version {version}, {which}:", [reason], advice),
        links=dict(links or {}),
        subject=reign(model, "shadow"),
    )


def alias_put_back(
    model: str, *, version: int, champion: int | None, reason: str, links: Mapping[str, str] | None = None
) -> Alert:
    """Somebody moved the alias in MLflow to a version that may not be champion, and it was put back."""
    back = f"points to version {champion} again" if champion is not None else "was removed, since there is no champion yet"
    return Alert(
        model=model,
        severity="warning",
        kind="alias_put_back",
        title=f"{model}: version {version} was not made champion in MLflow",
        text=_text(
            f"The alias champion was moved to version {version} in MLflow; it {back}:",
            [reason],
            f"If you know better, say why: perennial promote {model} {version} --override REASON, or the DAG {model}.promote.",
        ),
        links=dict(links or {}),
    )


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
        text=_text(
            f"The run {_clean(run_id)} of {stage}{what_for} failed{often} and will not be tried again:",
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
        text=_text(
            f"Since {since:%Y-%m-%d %H:%M} UTC nothing could be sent to {channel}; none is lost:",
            [reason, which],
            todo,
        ),
        subject=f"channel/{channel}",
    )


def recovered(told: Sequence[Alert], *, since: datetime, cause: str) -> Alert:
    """What people were told of is well again.

    Args:
        told: the alerts that were open, oldest first.
        since: when the first of them was recorded.
        cause: what made it well.
    """
    first = told[0]
    what = first.title.removeprefix(f"{first.model}: ")
    wrong, _, _ = first.text.partition("\n\n")
    times = f", told {len(told)} times" if len(told) > 1 else ""
    return Alert(
        model=first.model,
        severity="warning",
        kind="recovered",
        title=f"{first.model}: well again: {what}",
        text=f"{_clean(cause)}\n\nWhat was wrong since {since:%Y-%m-%d %H:%M} UTC{times}: {what}.\n{wrong}",
        links=dict(told[-1].links),
    )


# --- what the watchdog finds (perennial.watch) -----------------------------------------------------------------------


def airflow_silent(model: str, *, reason: str) -> Alert:
    """Airflow's API does not answer."""
    return Alert(
        model=model,
        severity="critical",
        kind="airflow_silent",
        title="Airflow does not answer",
        text=_text(
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
        text=_text(
            f"{stops.get(component, 'A part of Airflow is missing.')} What is known:",
            [last],
            "Look at the end of its log, then start it again. What was due meanwhile is made up for.",
        ),
    )


def import_errors(model: str, *, errors: Mapping[str, str]) -> Alert:
    """DAG files, or model folders they read, are broken. Only the last line of each error is told."""
    said = {file: next((line for line in reversed(text.splitlines()) if line.strip()), "") for file, text in errors.items()}
    return Alert(
        model=model,
        severity="critical",
        kind="import_errors",
        title="A DAG or a model folder cannot be read",
        text=_text(
            "What is named here has no DAGs, and does not run:",
            [f"{file}: {line}" for file, line in sorted(said.items())],
            "`perennial check MODEL` shows what is wrong with a model's folder; the other models are not touched.",
        ),
    )


def paused(model: str, *, stages: Sequence[str]) -> Alert:
    """Some of a model's DAGs are switched off while others are on."""
    return Alert(
        model=model,
        severity="warning",
        kind="paused",
        title=f"{model}: {', '.join(stages)} switched off",
        text=_text(
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
        text=_text(
            f"The task {task} of run {_clean(run_id)} failed without a word:",
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
        text=_text(
            f"The run {_clean(run_id)} failed:",
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
        text=_text(
            f"The run {_clean(run_id)} has not ended in the time of watch.run in model.yaml:",
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
        text=_text(
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
        text=_text(
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
        text=_text(
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
        text=_text(
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
        text=_text(
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
        text=_text(
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
        text=_text(
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
        text=_text(
            "Nothing could be published, promoted or told:",
            [f"from {since:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S} UTC"],
            "It answers again. Tasks that failed meanwhile have alerts of their own; look at the database's log.",
        ),
    )


def _text(opening: str, reasons: Sequence[str], advice: str) -> str:
    shown = [f"- {_clean(reason)}" for reason in reasons[:_MAX_REASONS]]
    if len(reasons) > _MAX_REASONS:
        shown.append(f"- and {len(reasons) - _MAX_REASONS} more")
    return "\n".join([opening, *(shown or ["- no reason was given"]), "", advice])


def _clean(text: str) -> str:
    """One line of bounded length, without credentials, control characters or marks that reorder text."""
    text = _SECRET.sub(r"\g<name>***", redact(_CONTROL.sub(" ", text))).strip()
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"
