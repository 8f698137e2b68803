"""The alert: its kind, severity, subject and links, and the subjects that resolve it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from perennial.core.redaction import redact

Severity = Literal["critical", "warning"]

#: All kinds of alerts. ``docs/alerts.md`` has a row for each.
Kind = Literal[
    "airflow_silent",
    "alerts_waiting",
    "alias_put_back",
    "approval_wanted",
    "breaker",
    "champion_stale",
    "champion_unusable",
    "channel_lost",
    "component_down",
    "data_late",
    "drift",
    "evidence_mismatch",
    "form_refused",
    "import_errors",
    "interval_refused",
    "judge_silent",
    "labels_late",
    "ledger_silent",
    "decisions_altered",
    "models_not_followed",
    "not_served",
    "online_differs",
    "paused",
    "performance_fell",
    "promoted",
    "promotion_refused",
    "recovered",
    "refresh_refused",
    "refreshes_stopped",
    "rollback",
    "run_failed",
    "run_stuck",
    "shadow_better",
    "silent",
    "unknown_verdict",
    "unmonitored",
    "unrefreshed",
    "unscored",
    "untrained",
]

#: The model of alerts that concern no single model.
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
        severity: ``critical``: predictions are missing or cannot be trusted until someone acts. ``warning``: look at it.
        kind: for routing, for digests, and for ``docs/alerts.md``.
        title: one line.
        text: what happened and why; then, after an empty line, what to do. Plain text of a few lines.
        links: name to address, such as ``{"Drift report": "http://…"}``.
        subject: what is wrong while the alert is open, its parts separated by slashes; once it has recovered,
            :meth:`perennial.ledger.store.Ledger.resolve` reports that. None: nothing recovers, the alert is news.
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
    """Add these links to every alert that is recorded inside, such as the page of the current run."""
    token = _links.set({**(_links.get() or {}), **links})
    try:
        yield
    finally:
        _links.reset(token)


def linked(alert: Alert) -> Alert:
    """The alert, with the links of the :func:`linking` around it."""
    return replace(alert, links={**alert.links, **(_links.get() or {})})


# A subject ends with its interval, if it concerns one.


def refused_data(model: str, dataset: str) -> str:
    """Intervals whose data were refused; recovered once the interval is published."""
    return f"refused/{model}/{dataset}"


def judged(model: str, what: Literal["unknown", "drift", "performance"]) -> str:
    """Monitoring windows with a bad verdict; recovered once that window, or a later one, gets a good one."""
    return f"judged/{model}/{what}"


def judged_asked(model: str, what: Literal["unknown", "drift"]) -> str:
    """Likewise, windows with a bad verdict on what was asked online; also recovered once nothing was asked in a window."""
    return f"judged/{model}/asked/{what}"


def reign(model: str, what: Literal["breaker", "shadow", "unusable"]) -> str:
    """What holds as long as a champion is champion; recovered with the next champion."""
    return f"reign/{model}/{what}"


def served_online(model: str) -> str:
    """The champion that the ledger names does not answer online; recovered once it does."""
    return f"serving/{model}"


def online_parity(model: str) -> str:
    """What is served online differs from what the published tables give; recovered once a later measure is well."""
    return f"parity/{model}"


def failure(dag_id: str, task_id: str, map_index: int | None) -> str:
    """Failures of a task for an interval or a run; recovered once the task succeeds for the same one."""
    return f"failed/{dag_id}/{task_id}/{_UNMAPPED if map_index is None else map_index}"


def failure_key(dag_id: str, run_id: str, task_id: str, map_index: int | None) -> str:
    """The key of a failed task's alert; the same from the task's callback and, if the task was killed, from the watchdog."""
    return f"run_failed:{dag_id}:{run_id}:{task_id}:{_UNMAPPED if map_index is None else map_index}"


def recovered(told: Sequence[Alert], *, since: datetime, cause: str) -> Alert:
    """The alert that says that something has recovered.

    Args:
        told: the alerts that were open, oldest first.
        since: when the first of them was recorded.
        cause: what ended it, as a sentence.
    """
    first = told[0]
    what = first.title.removeprefix(f"{first.model}: ")
    wrong, _, _ = first.text.partition("\n\n")
    times = f", reported {len(told)} times" if len(told) > 1 else ""
    return Alert(
        model=first.model,
        severity="warning",
        kind="recovered",
        title=f"{first.model}: recovered: {what}",
        text=f"{clean(cause)}\n\nWhat was wrong since {since:%Y-%m-%d %H:%M} UTC{times}: {what}.\n{wrong}",
        links=dict(told[-1].links),
    )


def as_text(opening: str, reasons: Sequence[str], advice: str) -> str:
    shown = [f"- {clean(reason)}" for reason in reasons[:_MAX_REASONS]]
    if len(reasons) > _MAX_REASONS:
        shown.append(f"- and {len(reasons) - _MAX_REASONS} more")
    return "\n".join([opening, *(shown or ["- no reason was given"]), "", advice])


def clean(text: str) -> str:
    """One line of bounded length, without credentials, control characters or marks that reorder text."""
    text = _SECRET.sub(r"\g<name>***", redact(_CONTROL.sub(" ", text))).strip()
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"
