"""What people are told when something needs them: one function for each kind of alert.

An alert is composed here, recorded by :mod:`perennial.ledger.store` in the transaction of what caused it
(:mod:`perennial.alerts.outbox`), and sent by :mod:`perennial.alerts.delivery`. It speaks of models, intervals, versions,
counts and reasons; it never carries a row of data, an address with a password, or a traceback. ``docs/alerts.md`` says for
each kind what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from perennial.alerts.alert import Alert, Severity, as_text, clean, judged, refused_data, reign
from perennial.core.intervals import Interval


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

    ``critical`` if that lasts, or performance falls with it (:mod:`perennial.monitoring.impact`).
    """
    return Alert(
        model=model,
        severity=severity,
        kind="drift",
        title=f"{model}: {'lasting or harmful ' if severity == 'critical' else ''}drift in {interval.key}",
        text=as_text(
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
        text=as_text(
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
        text=as_text(
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
        text=as_text(
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
        text=as_text(
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
        text=as_text(
            f"Version {version} was promoted {before} by {clean(actor)}:",
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
        text=as_text(
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
        text=as_text(
            f"Version {version} is champion again{instead}, by {clean(actor)}:",
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
        text=as_text(
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
        text=as_text(f"On mature labels version {champion} does worse than version {version}, {which}:", [reason], advice),
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
        text=as_text(
            f"The alias champion was moved to version {version} in MLflow; it {back}:",
            [reason],
            f"If you know better, say why: perennial promote {model} {version} --override REASON, or the DAG {model}.promote.",
        ),
        links=dict(links or {}),
    )
