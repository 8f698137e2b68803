"""Alerts about models: one function per kind.

An alert is composed here, recorded by :mod:`perennial.ledger.store` in the transaction of its cause
(:mod:`perennial.alerts.outbox`), and sent by :mod:`perennial.alerts.delivery`. It names models, intervals, versions, counts and
reasons. It never holds a row of data, an address with a password, or a traceback. ``docs/alerts.md`` says for each kind what to
do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from perennial.alerts.alert import (
    Alert,
    Severity,
    as_text,
    clean,
    judged,
    judged_asked,
    online_parity,
    refused_data,
    reign,
    served_online,
)
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

    ``critical`` if the drift lasts, or performance falls with it (:mod:`perennial.monitoring.impact`).
    """
    return Alert(
        model=model,
        severity=severity,
        kind="drift",
        title=f"{model}: {'lasting or harmful ' if severity == 'critical' else ''}drift in {interval.key}",
        text=as_text(
            f"The data that version {version} predicted on in {interval.key} differ from its training data:",
            reasons,
            "Open the report. If the change is a fault of the data, repair the data. Otherwise you need not act: if enough "
            "windows drift, the model is retrained automatically, as its policy says.",
        ),
        links=dict(links or {}),
        subject=f"{judged(model, 'drift')}/{interval.key}",
    )


def asked_drift(
    model: str,
    interval: Interval,
    *,
    version: int,
    reasons: Sequence[str],
    severity: Severity = "warning",
    links: Mapping[str, str] | None = None,
) -> Alert:
    """What was asked online in an interval differs from what the champion was trained on; ``critical`` if that lasts."""
    return Alert(
        model=model,
        severity=severity,
        kind="drift",
        title=f"{model}: {'lasting ' if severity == 'critical' else ''}drift of online requests in {interval.key}",
        text=as_text(
            f"The rows that version {version} was asked online in {interval.key} differ from its training data:",
            reasons,
            "Open the report. If clients send wrong values, or too few, correct that. No training follows from this alone, "
            "since it learns from the published tables: if these have changed too, the verdict on the batch says so.",
        ),
        links=dict(links or {}),
        subject=f"{judged_asked(model, 'drift')}/{interval.key}",
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
        title=f"{model}: version {version} performed worse in {interval.key}",
        text=as_text(
            f"The inputs in {interval.key} resemble the training data of version {version}, but its predictions are worse:",
            reasons,
            "The relation between features and label has changed, or labels are wrong. Check the labels, then train again.",
        ),
        links=dict(links or {}),
        subject=f"{judged(model, 'performance')}/{interval.key}",
    )


def worse_than_constant(
    model: str, interval: Interval, *, version: int, reasons: Sequence[str], links: Mapping[str, str] | None = None
) -> Alert:
    """Labels show that the champion is surely worse than the same answer for every row."""
    return Alert(
        model=model,
        severity="critical",
        kind="performance_fell",
        title=f"{model}: version {version} is worse than the same answer for every row",
        text=as_text(
            f"The predictions of version {version} do harm: without a model, the answer that its training rows told would have "
            "been better.",
            reasons,
            f"Check the labels and the features of these days. If they are right, trigger {model}.rollback, or promote a newer "
            "version. Monitoring requests a training at once, unless retraining.on_performance is never.",
        ),
        links=dict(links or {}),
        subject=f"{judged(model, 'performance')}/{interval.key}",
    )


def unknown_verdict(
    model: str, interval: Interval, *, version: int | None, reasons: Sequence[str], links: Mapping[str, str] | None = None
) -> Alert:
    """Drift could not be judged. That never counts as no drift."""
    text = _unknown(model, f"the data of {interval.key}", version, reasons)
    return _not_judged(model, interval, interval.key, text, topic=judged(model, "unknown"), links=links)


def not_compared(
    model: str,
    interval: Interval,
    columns: Sequence[str],
    *,
    version: int,
    reasons: Sequence[str],
    links: Mapping[str, str] | None = None,
) -> Alert:
    """Nothing drifted in an interval, but some columns could not be judged."""
    text, what = _partly(model, f"The data of {interval.key}", version, reasons), f"{_named(columns)} in {interval.key}"
    return _not_judged(model, interval, what, text, topic=judged(model, "unknown"), links=links)


def asked_not_compared(
    model: str,
    interval: Interval,
    columns: Sequence[str],
    *,
    version: int,
    reasons: Sequence[str],
    links: Mapping[str, str] | None = None,
) -> Alert:
    """Nothing drifted in what was asked online, but some columns could not be judged."""
    text = _partly(model, f"The rows that were asked online in {interval.key}", version, reasons)
    what = f"{_named(columns)} in online requests in {interval.key}"
    return _not_judged(model, interval, what, text, topic=judged_asked(model, "unknown"), links=links)


def _named(columns: Sequence[str]) -> str:
    return ", ".join(columns[:3]) + (f" and {len(columns) - 3} more" if len(columns) > 3 else "")


def _partly(model: str, rows: str, version: int, reasons: Sequence[str]) -> str:
    return as_text(
        f"{rows} resemble the training data of version {version}, as far as they could be compared:",
        reasons,
        f"Repair the columns, then run {model}.monitor for this window again. If a column is gone for good, train again.",
    )


def unknown_asked(
    model: str, interval: Interval, *, version: int | None, reasons: Sequence[str], links: Mapping[str, str] | None = None
) -> Alert:
    """Drift of what was asked online could not be judged. That never counts as no drift."""
    text = _unknown(model, f"the rows that were asked online in {interval.key}", version, reasons)
    what = f"online requests in {interval.key}"
    return _not_judged(model, interval, what, text, topic=judged_asked(model, "unknown"), links=links)


def _not_judged(model: str, interval: Interval, what: str, told: str, *, topic: str, links: Mapping[str, str] | None) -> Alert:
    return Alert(
        model=model,
        severity="warning",
        kind="unknown_verdict",
        title=f"{model}: drift of {what} could not be judged",
        text=told,
        links=dict(links or {}),
        subject=f"{topic}/{interval.key}",
    )


def _unknown(model: str, rows: str, version: int | None, reasons: Sequence[str]) -> str:
    trained = f"version {version}" if version is not None else "the champion"
    return as_text(
        f"It is unknown whether {rows} resemble the training data of {trained}:",
        reasons,
        f"Repair the cause, then run {model}.monitor for this window again. Until then it is neither drift nor ok.",
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
            f"No data of {interval.key} were published; earlier publications stay. Rows read: {read}. Reasons:",
            reasons,
            "Correct the source, or the check in model.yaml if that is wrong. Then run ingest for this interval again.",
        ),
        links=dict(links or {}),
        subject=f"{refused_data(model, 'tables')}/{interval.key}",
    )


def _stays(champion: int | None) -> str:
    return f"Version {champion} stays champion" if champion is not None else "The model still has no champion"


def promotion_refused(
    model: str, *, version: int, champion: int | None, reasons: Sequence[str], links: Mapping[str, str] | None = None
) -> Alert:
    """A trained version did not pass the gates; the champion stays."""
    return Alert(
        model=model,
        severity="warning" if champion is not None else "critical",
        kind="promotion_refused",
        title=f"{model}: version {version} was not promoted",
        text=as_text(
            f"{_stays(champion)}. Version {version} did not pass its gates:",
            reasons,
            "Compare both versions in MLflow. The next training uses newer data.",
        ),
        links=dict(links or {}),
    )


def evidence_mismatch(
    model: str, *, version: int, champion: int | None, reasons: Sequence[str], links: Mapping[str, str] | None = None
) -> Alert:
    """What a training claims of a version is not what its files give on its rows; the champion stays."""
    return Alert(
        model=model,
        severity="critical",
        kind="evidence_mismatch",
        title=f"{model}: the evidence for version {version} does not match",
        text=as_text(
            f"{_stays(champion)}. The process that decides has measured version {version} again, from its files and its rows:",
            reasons,
            "Two processes with the same code and data find the same. Look at who may write on the workers: their code, their "
            "packages, their storage. If all is in order, predictions of this model may change from run to run: see model.py.",
        ),
        links=dict(links or {}),
    )


def refresh_refused(
    model: str,
    *,
    version: int,
    champion: int | None,
    reasons: Sequence[str],
    withheld: Interval | None,
    links: Mapping[str, str] | None = None,
) -> Alert:
    """A refresh of the champion did not pass its gates; the champion stays as it is.

    Args:
        model: the model.
        version: the refresh.
        champion: the champion.
        reasons: of the gates that refused it.
        withheld: the rows that nothing learns from until a person releases them; None if no rows are at fault.
        links: addresses of pages about the version.
    """
    held = f" The rows of {withheld.key} are withheld from later trainings." if withheld else ""
    release = (
        f"Look at the data of {withheld.key}. If they are right, release them: perennial data release {model} "
        f"{withheld.start:%Y-%m-%d} {withheld.end:%Y-%m-%d} --reason TEXT, or trigger {model}.release. If they are wrong, "
        "correct them, ingest them again, and release them then. The next refresh goes on without them."
        if withheld
        else "The next refresh tries again with newer rows."
    )
    return Alert(
        model=model,
        severity="warning",
        kind="refresh_refused",
        title=f"{model}: version {champion} was not refreshed",
        text=as_text(
            f"Version {champion} stays champion, with the rows that it has learned from.{held} Version {version}, its refresh, "
            "did not pass:",
            reasons,
            release,
        ),
        links=dict(links or {}),
    )


def refreshes_stopped(model: str, *, version: int, reason: str, links: Mapping[str, str] | None = None) -> Alert:
    """Refreshes did harm: an older version is champion again, and nothing is refreshed until a person says so."""
    return Alert(
        model=model,
        severity="critical",
        kind="refreshes_stopped",
        title=f"{model}: refreshes were undone and have stopped",
        text=as_text(
            f"Version {version} is champion again:",
            [reason],
            f"Find out what newer rows teach the model that is wrong (the board and {model}.monitor show what has changed). "
            f"Then release refreshes: perennial data release {model} --refreshes --reason TEXT, or trigger {model}.release. A "
            "version that replaces the champion releases them, too.",
        ),
        links=dict(links or {}),
    )


def champion_unusable(model: str, *, version: int, reason: str, links: Mapping[str, str] | None = None) -> Alert:
    """The champion can never be used again: its files, or what its features are made of, are gone."""
    return Alert(
        model=model,
        severity="critical",
        kind="champion_unusable",
        title=f"{model}: version {version}, the champion, can no longer be used",
        text=as_text(
            f"Version {version} cannot predict, so days stay without predictions until another version is champion:",
            [reason],
            f"Nothing is stuck: the next training promotes a candidate that passes the gates that need no champion. Trigger "
            f"{model}.train to have it now, or {model}.rollback if a former champion can be used. The new champion scores the "
            f"missing days, as far back as schedules.catch_up; for older ones trigger {model}.score.",
        ),
        links=dict(links or {}),
        subject=reign(model, "unusable"),
    )


def not_served(model: str, *, version: int, previous: int | None, reason: str, links: Mapping[str, str] | None = None) -> Alert:
    """The champion cannot answer online: it cannot be loaded, or answers otherwise than when it was stored."""
    meanwhile = f"Version {previous} goes on answering." if previous is not None else "Requests for this model are refused."
    return Alert(
        model=model,
        severity="warning" if previous is not None else "critical",
        kind="not_served",
        title=f"{model}: version {version}, the champion, does not answer online",
        text=as_text(
            f"The scorer cannot use version {version}. {meanwhile}",
            [reason],
            f"Correct the cause, or make another version champion: trigger {model}.rollback. The scorer tries again every 15 "
            "seconds.",
        ),
        links=dict(links or {}),
        subject=served_online(model),
    )


def online_differs(
    model: str,
    *,
    day: str,
    compared: int,
    share: float,
    bound: float,
    worst: Sequence[str],
    links: Mapping[str, str] | None = None,
) -> Alert:
    """What was served online differs from what the published tables give for the same moment.

    Args:
        model: the model.
        day: the day that the served features are of.
        compared: recorded rows that were computed again.
        share: the share of them that is equal, and ``bound``: how large it must be (``online.parity``).
        bound: see there.
        worst: the features that are not always equal, the worst first, with what is wrong.
        links: where to read about it.
    """
    return Alert(
        model=model,
        severity="warning",
        kind="online_differs",
        title=f"{model}: what is served online differs from what it learns from",
        text=as_text(
            f"Of {compared:,} rows that were answered online with features of {day}, {share:.1%} had the features that the "
            f"published tables give for the same moment; online.parity requires {bound:.1%}. Features that differ:",
            worst,
            "Usually rows are published later than they say they were known: push them as they happen, or correct "
            f"tables.known. perennial parity {model} shows each feature. Until it is well, no candidate with these features "
            "is promoted.",
        ),
        links=dict(links or {}),
        subject=online_parity(model),
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
            f"The next scoring run uses it. To make the previous champion champion again, trigger {model}.rollback.",
        ),
        links=dict(links or {}),
    )


def breaker(model: str, interval: Interval, *, reason: str) -> Alert:
    """Monitoring requests no more retrainings, because the previous ones led to no promotion."""
    return Alert(
        model=model,
        severity="critical",
        kind="breaker",
        title=f"{model}: retraining has stopped",
        text=as_text(
            f"After {interval.key}:",
            [reason],
            "The champion stays in service. Find out why the gates refused the versions "
            f"(`perennial explain {model} VERSION`), then change the model or trigger a training. After the next promotion, "
            "monitoring requests retrainings again.",
        ),
        subject=reign(model, "breaker"),
    )


def rollback(
    model: str, *, version: int, previous: int | None, reason: str, actor: str, links: Mapping[str, str] | None = None
) -> Alert:
    """An earlier version became champion again."""
    instead = f" instead of version {previous}" if previous is not None else ""
    return Alert(
        model=model,
        severity="warning",
        kind="rollback",
        title=f"{model}: rolled back to version {version}",
        text=as_text(
            f"Version {version} is champion again{instead}, by {clean(actor)}:",
            [reason],
            f"Predictions of the replaced version stay published. To replace them, trigger {model}.score for their intervals.",
        ),
        links=dict(links or {}),
    )


def approval_wanted(
    model: str, *, version: int, champion: int | None, until: datetime, links: Mapping[str, str] | None = None
) -> Alert:
    """A version passed its gates, and a person has to decide whether it becomes champion."""
    stays = f"version {champion} stays champion" if champion is not None else "there still is no champion"
    return Alert(
        model=model,
        severity="warning",
        kind="approval_wanted",
        title=f"{model}: version {version} waits for approval",
        text=as_text(
            f"Version {version} passed its gates. A person has to approve it before it becomes champion:",
            [f"without an answer until {until:%Y-%m-%d %H:%M} UTC, {stays}"],
            "Answer in Airflow under Required Actions, where both versions are compared.",
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
    """Labels show that the champion performs significantly worse than a shadow version.

    Args:
        model: the model.
        champion: its champion.
        version: the shadow version.
        former: whether that is the previous champion rather than a refused candidate.
        rolls_back: whether the model's spec lets monitoring roll back.
        reason: the comparison, in words and numbers.
        links: where to read about the version.
    """
    if not former:
        advice = f"To promote it: perennial promote {model} {version} --override REASON, or trigger {model}.promote."
    elif rolls_back:
        advice = f"Monitoring makes version {version} champion again, because shadow.rollback is on in model.yaml."
    else:
        advice = (
            f"To make it champion again, trigger {model}.rollback. "
            "That is not done automatically, because shadow.rollback is off in model.yaml."
        )
    which = "the previous champion" if former else "a refused candidate"
    return Alert(
        model=model,
        severity="critical" if former else "warning",
        kind="shadow_better",
        title=f"{model}: champion {champion} performs worse than version {version}",
        text=as_text(f"On mature labels, version {champion} performs worse than version {version}, {which}:", [reason], advice),
        links=dict(links or {}),
        subject=reign(model, "shadow"),
    )


def alias_put_back(
    model: str, *, version: int, champion: int | None, by: str | None, reason: str, links: Mapping[str, str] | None = None
) -> Alert:
    """Somebody moved the alias in MLflow to a version that may not be champion, and Perennial moved it back."""
    who = "Somebody" if by is None else by
    back = f"moved it back to version {champion}" if champion is not None else "removed it, because there is no champion yet"
    return Alert(
        model=model,
        severity="warning",
        kind="alias_put_back",
        title=f"{model}: version {version} was not made champion in MLflow",
        text=as_text(
            f"{who} moved the alias champion to version {version} in MLflow. Perennial {back}:",
            [reason],
            f"To promote it all the same: perennial promote {model} {version} --override REASON, or trigger {model}.promote.",
        ),
        links=dict(links or {}),
    )
