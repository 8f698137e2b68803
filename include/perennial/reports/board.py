"""The model board: one row per model of the deployment. Models that need a person come first.

This module does no I/O. It composes the board from :meth:`perennial.ledger.store.Ledger.overview` and the model folders.
Neighbour: :mod:`perennial.orchestration.board` serves the board to people who are signed in to Airflow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from perennial.alerts.outbox import OutboxEntry
from perennial.core.errors import SpecError
from perennial.core.intervals import Interval, merged
from perennial.core.settings import mlflow_page
from perennial.ledger.coverage import Waiting, outdated
from perennial.ledger.records import (
    Action,
    Hold,
    Overview,
    Performance,
    Promotion,
    Publication,
    Refusal,
    Retraining,
    Verdict,
    VersionRecord,
    What,
)
from perennial.reports.history import in_short
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS
from perennial.watchdog.rules import open_gaps

#: A row shows this many monitoring windows of its model.
WINDOWS = 12

#: An alert that nothing closes is counted for this long after it was raised.
ALERTS_FOR = timedelta(days=7)

#: A critical alert that nothing closes keeps its model on top for this long.
_FRESH = timedelta(days=1)

#: Alerts are sent every few minutes. An alert without any attempt after this long counts as undelivered.
_SENT_WITHIN = timedelta(minutes=30)

Attention = Literal["broken", "critical", "warning", "new", "fine"]

#: The order of rows.
ATTENTION: tuple[Attention, ...] = ("broken", "critical", "warning", "new", "fine")

#: What a critical verdict means.
_HARM = {"drift": "drift that matters", "ok": "performance fell far"}

_MADE: dict[Action, str] = {
    "promote": "by",
    "rollback": "gone back to by",
    "adopt": "taken over from",
    "override": "gates overruled by",
    "refresh": "refreshed by",
}


@dataclass(frozen=True)
class ChampionCell:
    """The version that serves predictions.

    Attributes:
        version: its number.
        since: when it became champion.
        how: how it became champion, in words.
        link: its page in MLflow; None if MLflow has no address for people.
    """

    version: int
    since: datetime
    how: str
    link: str | None


@dataclass(frozen=True)
class NewestVerdict:
    """The verdict on the newest monitoring window.

    Attributes:
        severity: ``none``, ``warning`` or ``critical``, see :mod:`perennial.monitoring.impact`.
        report: page of the report; None if there is none.
        run: page of the run that judged.
        useless: whether labels show that the version is surely worse than the same answer for every row.
    """

    verdict: str
    severity: str
    window: str
    reason: str
    report: str | None
    run: str | None
    useless: bool = False


@dataclass(frozen=True)
class Window:
    """One monitoring window of the past.

    Attributes:
        estimated: the primary metric, estimated before labels arrived; None if it could not be estimated.
        realised: the primary metric, measured after labels arrived; None until then.
    """

    key: str
    verdict: str | None
    estimated: float | None
    realised: float | None


@dataclass(frozen=True)
class Outlook:
    """Performance over the newest windows, oldest first.

    Attributes:
        metric: the primary metric.
        greater_is_better: whether a greater value is better.
        windows: the newest windows, oldest first.
        usual: the range of the metric on windows like those of the champion's holdout; None if it is not known.
    """

    metric: str
    greater_is_better: bool
    windows: tuple[Window, ...]
    usual: tuple[float, float] | None

    @property
    def estimated(self) -> float | None:
        """The newest there is."""
        return next((window.estimated for window in reversed(self.windows) if window.estimated is not None), None)

    @property
    def realised(self) -> float | None:
        """The newest there is."""
        return next((window.realised for window in reversed(self.windows) if window.realised is not None), None)


@dataclass(frozen=True)
class Trained:
    """The result of the newest training.

    Attributes:
        outcome: ``champion``, ``passed`` (its gates, but it is not champion), ``waiting`` (for an approval), ``refused``.
        reason: the first reason against the version; empty if there is none.
        link: the version's page in MLflow.
        run: page of the run that trained it.
    """

    version: int
    at: datetime
    outcome: Literal["champion", "passed", "waiting", "refused"]
    reason: str
    link: str | None
    run: str | None


@dataclass(frozen=True)
class Asked:
    """The newest training that monitoring asked for.

    Attributes:
        at: end of the window after which it asked.
        reason: why, with what was expected.
        short: what was expected, and what came of it.
    """

    at: datetime
    reason: str
    short: str


@dataclass(frozen=True)
class Told:
    """Alerts.

    Attributes:
        critical, warning: number of open alerts of any age, and of alerts of the last :data:`ALERTS_FOR` that nothing closes.
        undelivered: number of alerts that should have been sent by now but have not reached every recipient.
        newest: title of the newest counted alert.
        newest_at: when that alert was raised.
        urgent: title of the newest critical alert that is open or less than a day old; empty if there is none.
    """

    critical: int = 0
    warning: int = 0
    undelivered: int = 0
    newest: str = ""
    newest_at: datetime | None = None
    urgent: str = ""


@dataclass(frozen=True)
class TableCell:
    """A raw table on the board.

    Attributes:
        until: where the newest interval with rows of it ends; None if none of the newest publications has any.
        missing: days before the end of the data that are not published or have no rows of it, in stretches; closed days are
            left out. Only the newest publications are looked at.
        awaited: the days that are published without it, since it may come late, in stretches.
        awaited_since: when the first of them was published.
    """

    table: str
    until: datetime | None
    missing: tuple[str, ...]
    awaited: tuple[str, ...] = ()
    awaited_since: datetime | None = None

    @property
    def words(self) -> str:
        """The stretches, for people."""
        return ", ".join(span(key) for key in self.missing)

    @property
    def days(self) -> int:
        return sum(len(Interval.from_key(key).days()) for key in self.missing)

    @property
    def waits(self) -> str:
        """The stretches that wait for it, for people; empty if there are none."""
        return ", ".join(span(key) for key in self.awaited)


@dataclass(frozen=True)
class Held:
    """Data that nothing learns from, or refreshes that have stopped, until a person releases them.

    Attributes:
        days: the data; for refreshes, the days that showed that they do harm.
        since: when they were held back.
        reason: why.
        release: how to release them.
        link: page of the DAG that releases them.
    """

    what: What
    days: str
    since: datetime
    reason: str
    release: str
    link: str

    @property
    def words(self) -> str:
        """What is held back, for people."""
        return f"{span(self.days)} withheld" if self.what == "data" else "refreshes stopped"

    @property
    def count(self) -> int:
        """How many days."""
        return len(Interval.from_key(self.days).touched_days())

    @property
    def told(self) -> str:
        """All that is known about it, for people."""
        return f"{self.words} on {self.since:%-d %b %Y}: {self.reason}. {self.release}"


@dataclass(frozen=True)
class Row:
    """One model on the board.

    Attributes:
        attention: how urgently the model needs a person.
        why: the reason, in a few words; empty if all is well.
        data_until, predictions_until: end of the newest published interval.
        refused: the interval that was refused last, unless its data, or newer data, are published.
        link: page of its DAGs.
        page: page of the model; None for a folder that cannot be read.
        tables: how far each raw table reaches, and what is missing of the last weeks.
        outdated: scored days of the last weeks whose features have changed since, in stretches.
        held: what is held back now, in the order of time.
    """

    model: str
    owner: str
    description: str
    attention: Attention
    why: str
    link: str
    page: str | None = None
    champion: ChampionCell | None = None
    data_until: datetime | None = None
    predictions_until: datetime | None = None
    refused: str | None = None
    judged: NewestVerdict | None = None
    outlook: Outlook | None = None
    trained: Trained | None = None
    asked: Asked | None = None
    told: Told = field(default_factory=Told)
    tables: tuple[TableCell, ...] = ()
    outdated: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()


@dataclass(frozen=True)
class Board:
    """The whole board.

    Attributes:
        at: when its data were read.
        rows: models by urgency, then by name.
    """

    at: datetime
    rows: tuple[Row, ...]

    def count(self, *kinds: Attention) -> int:
        """How many rows are of these kinds."""
        return sum(row.attention in kinds for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values. Times become ISO 8601 texts; numbers that are not finite become None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


@dataclass(frozen=True)
class Pages:
    """Addresses of the pages that the board links to.

    Attributes:
        airflow: path prefix of Airflow's pages, such as ``/``; the same server serves the board.
        reports: path prefix of reports; the report's path below the folder of reports follows.
        mlflow: MLflow's address for people; None if there is none.
    """

    airflow: str = "/"
    reports: str = "/perennial/reports/"
    mlflow: str | None = None

    def dags(self, model: str) -> str:
        return f"{self.airflow}dags?{_query(name_pattern=f'{model}.')}"

    def dag(self, dag_id: str) -> str:
        return f"{self.airflow}dags/{quote(dag_id, safe='')}"

    def run(self, dag_id: str, run_id: str) -> str:
        return f"{self.dag(dag_id)}/runs/{quote(run_id, safe='')}"

    def report(self, place: str) -> str:
        return self.reports + quote(place)

    def model(self, model: str) -> str:
        """The page of a model, which the server of the board serves."""
        return f"{self.airflow}perennial/models/{quote(model, safe='')}"

    def version(self, model: str, version: int) -> str | None:
        return mlflow_page(self.mlflow, f"models/{quote(model, safe='')}/versions/{version}")

    def mlflow_run(self, run_id: str) -> str | None:
        """The page of a run in MLflow, which finds the run's experiment."""
        return mlflow_page(self.mlflow, f"runs/{quote(run_id, safe='')}")


def compose(
    overview: Overview,
    folders: Mapping[str, ModelFolder],
    broken: Mapping[str, SpecError],
    *,
    now: datetime,
    pages: Pages,
) -> Board:
    """Compose the board.

    Args:
        overview: what the ledger knows; models without a folder have no row.
        folders: readable model folders that the viewer may see.
        broken: folders that cannot be read, with the error.
        now: the current time.
        pages: addresses for links.
    """
    rows = [_row(folder.spec, overview, now, pages) for folder in folders.values()]
    rows += [
        Row(name, "", "", "broken", _message(str(error), name), pages.dags(name), told=_told(overview, name, now))
        for name, error in broken.items()
    ]
    return Board(now, tuple(sorted(rows, key=lambda row: (ATTENTION.index(row.attention), row.model))))


def _row(spec: ModelSpec, overview: Overview, now: datetime, pages: Pages) -> Row:
    model = spec.name
    published, newest = overview.published.get(model, {}), overview.publications.get(model, {})
    champion = overview.champions.get(model)
    verdicts = overview.verdicts.get(model, [])
    data_until = published.get("tables")
    row = Row(
        model=model,
        owner=spec.owner,
        description=spec.description,
        attention="fine",
        why="",
        link=pages.dags(model),
        page=pages.model(model),
        champion=_champion(champion, pages) if champion else None,
        data_until=data_until,
        predictions_until=published.get("predictions"),
        refused=_refused(overview.refusals.get(model), data_until),
        judged=_judged(verdicts[-1], pages) if verdicts else None,
        outlook=_outlook(spec, verdicts, overview.performances.get(model, [])),
        trained=_trained(spec, overview, champion, pages),
        asked=_asked(overview.requests.get(model)),
        told=_told(overview, model, now, has_channel=bool(spec.alerts.everybody)),
        tables=_tables(spec, newest.get("tables", []), data_until),
        outdated=tuple(stretch.key for stretch in merged(outdated(newest.get("features", []), newest.get("predictions", [])))),
        held=tuple(_held(hold, pages) for hold in overview.holds.get(model, ())),
    )
    attention, why = _attention(row)
    return replace(row, attention=attention, why=why)


def _tables(spec: ModelSpec, published: Sequence[Publication], until: datetime | None) -> tuple[TableCell, ...]:
    if until is None or not published:
        return ()
    first = min(one.interval.start for one in published)
    cells = []
    waiting = Waiting(published).tables
    for name, table in spec.tables.items():
        there = merged(one.interval for one in published if one.rows.get(name) or table.checks.rows.min == 0)
        gaps = open_gaps(there, until, spec.schedules, first=first)
        reached = [one.interval.end for one in published if one.rows.get(name)]
        awaited = waiting.get(name, [])
        cells.append(
            TableCell(
                name,
                max(reached, default=None),
                tuple(gap.key for gap in gaps),
                tuple(stretch.key for stretch in merged(one.day for one in awaited)),
                min((one.since for one in awaited), default=None),
            )
        )
    return tuple(cells)


def _held(hold: Hold, pages: Pages) -> Held:
    model, dag_id = hold.model, f"{hold.model}.release"
    if hold.what == "data":
        days = f"{hold.interval.start:%Y-%m-%d} {hold.interval.end:%Y-%m-%d}"
        release = (
            f"If rows are wrong, deliver them again and run {model}.load for these days. Then, or if they are right, trigger "
            f"{dag_id}, or: perennial data release {model} {days} --reason TEXT"
        )
    else:
        release = (
            f"When the cause is known, trigger {dag_id} with Refreshes, or: perennial data release {model} --refreshes "
            "--reason TEXT. A version that replaces the champion lets them go on, too"
        )
    return Held(hold.what, hold.interval.key, hold.held_at, "; ".join(hold.reasons), release, pages.dag(dag_id))


def _refused(refusal: Refusal | None, data_until: datetime | None) -> str | None:
    """The interval of a refusal that still holds: no data of that interval or of a later one are published."""
    if refusal is None or (data_until is not None and refusal.interval.end <= data_until):
        return None
    return refusal.interval.key


def _attention(row: Row) -> tuple[Attention, str]:
    """How urgently the model needs a person, and the first reason. Critical reasons come before warnings."""
    if critical := _critical_reasons(row):
        return "critical", critical[0]
    if warnings := _warning_reasons(row):
        return "warning", warnings[0]
    if row.champion is None:
        return "new", "not trained yet" if row.data_until else "no data yet"
    return "fine", ""


def _critical_reasons(row: Row) -> list[str]:
    reasons = []
    if row.refused:
        reasons.append(f"data of {span(row.refused)} refused")
    if row.judged and row.judged.severity == "critical":
        harm = _HARM.get(row.judged.verdict, row.judged.verdict)
        reasons.append("worse than the same answer for every row" if row.judged.useless else harm)
    if row.trained and row.trained.outcome == "refused" and not row.champion:
        reasons.append("no champion")
    if row.told.urgent:
        reasons.append(row.told.urgent)
    return reasons


def _warning_reasons(row: Row) -> list[str]:
    reasons = []
    if row.judged and row.judged.verdict != "ok":
        reasons.append(f"verdict {row.judged.verdict}")
    if row.judged and row.judged.severity == "warning":
        reasons.append("performance fell")
    if row.trained and row.trained.outcome == "waiting":
        reasons.append(f"version {row.trained.version} waits for an approval")
    if row.champion and _is_behind(row.data_until, row.predictions_until):
        reasons.append("predictions are behind the data")
    reasons += [held.words for held in row.held]
    if row.told.undelivered:
        reasons.append(f"{row.told.undelivered} alerts undelivered")
    return reasons


def _is_behind(data_until: datetime | None, predictions_until: datetime | None) -> bool:
    return data_until is not None and (predictions_until is None or predictions_until < data_until)


def _champion(promotion: Promotion, pages: Pages) -> ChampionCell:
    assert promotion.completed_at is not None  # or it would be no champion
    by = promotion.actor.removeprefix("airflow:")
    # On the command line a person decides "by hand: NAME".
    who = "its gates" if by == f"{promotion.model}.train" else by.removeprefix("by hand: ")
    how = f"{_MADE[promotion.action]} {who}"
    return ChampionCell(promotion.version, promotion.completed_at, how, pages.version(promotion.model, promotion.version))


def _judged(verdict: Verdict, pages: Pages) -> NewestVerdict:
    details = verdict.details
    reasons = [*(details.impact.reasons if details.impact else ()), *verdict.reasons]
    return NewestVerdict(
        verdict=verdict.verdict,
        severity=details.severity or ("none" if verdict.verdict == "ok" else "warning"),
        window=verdict.interval.key,
        reason=reasons[0] if reasons else "",
        report=pages.report(verdict.report) if verdict.report else None,
        run=pages.run(f"{verdict.model}.monitor", verdict.run_id),
        useless=details.impact is not None and "constant" in details.impact.fallen,
    )


def _outlook(spec: ModelSpec, verdicts: Sequence[Verdict], performances: Sequence[Performance]) -> Outlook | None:
    """Estimates and measurements of the newest windows. A window needs a verdict or a measurement to be included."""
    metric = spec.primary_metric
    seen: dict[Interval, Window] = {}
    usual: tuple[float, float] | None = None
    for verdict in verdicts:
        estimate = verdict.details.estimate
        estimated = _number(estimate.metrics.get(metric)) if estimate is not None and estimate.metric == metric else None
        if estimate is not None and estimate.usual:
            low, high = estimate.usual
            usual = (low, high)
        seen[verdict.interval] = Window(verdict.interval.key, verdict.verdict, estimated, None)
    rows: dict[Interval, int] = {}
    for performance in performances:
        interval = performance.interval
        # If the champion changed within a window, the version with the most labelled rows represents the window.
        if performance.rows <= rows.get(interval, 0):
            continue
        rows[interval] = performance.rows
        before = seen.get(interval)
        seen[interval] = Window(
            interval.key,
            before.verdict if before else None,
            before.estimated if before else None,
            _number(performance.metrics.get(metric)),
        )
    if not seen:
        return None
    return Outlook(metric, METRICS[spec.task][metric], tuple(window for _, window in sorted(seen.items()))[-WINDOWS:], usual)


def _trained(spec: ModelSpec, overview: Overview, champion: Promotion | None, pages: Pages) -> Trained | None:
    versions = overview.versions.get(spec.name, {})
    if not versions:
        return None
    record = versions[max(versions)]
    decision, answer = record.decision, overview.approvals.get(spec.name)
    reasons = decision.reasons
    outcome: Literal["champion", "passed", "waiting", "refused"]
    if champion is not None and champion.version == record.version:
        outcome = "champion"
    elif not decision.promote:
        outcome = "refused"
    elif answer is not None and answer.version == record.version and answer.answer != "approved":
        outcome, reasons = "refused", [answer.told]
    else:
        outcome = "waiting" if spec.promotion == "approval" and not _was_champion(champion, record) else "passed"
    return Trained(
        version=record.version,
        at=record.created_at,
        outcome=outcome,
        reason=reasons[0] if reasons else "",
        link=pages.version(spec.name, record.version),
        run=training_run(record, pages),
    )


def _asked(request: Retraining | None) -> Asked | None:
    return None if request is None else Asked(request.window_end, request.reason, in_short(request))


def _was_champion(champion: Promotion | None, record: VersionRecord) -> bool:
    """Whether the champion took over from this version: then no approval is requested for it any more."""
    return champion is not None and champion.previous == record.version


def training_run(record: VersionRecord, pages: Pages) -> str | None:
    """Page of the run that trained a version; None if it is not known."""
    dag_id, _, run_id = record.training.run_id.partition("/")
    return pages.run(dag_id, run_id) if run_id else None


def _told(overview: Overview, model: str, now: datetime, *, has_channel: bool = False) -> Told:
    entries = overview.alerts.get(model, [])
    counted = [
        entry
        for entry in entries
        if entry.resolved_by is None
        and entry.alert.kind not in ("recovered", "form_refused")
        and (entry.alert.subject is not None or now - entry.created_at < ALERTS_FOR)
    ]
    critical = [entry for entry in counted if entry.alert.severity == "critical"]
    urgent = [entry for entry in critical if entry.alert.subject is not None or now - entry.created_at < _FRESH]

    def title(of: Sequence[OutboxEntry]) -> str:
        return of[-1].alert.title.removeprefix(f"{model}: ") if of else ""

    return Told(
        critical=len(critical),
        warning=len(counted) - len(critical),
        # A new alert waits for the sender's next run, which is normal. Without a channel, nothing is sent.
        undelivered=sum(
            entry.waits and (entry.attempts > 0 or (has_channel and now - entry.created_at > _SENT_WITHIN)) for entry in entries
        ),
        newest=title(counted),
        newest_at=counted[-1].created_at if counted else None,
        urgent=title(urgent),
    )


# --- geometry of the sparkline ----------------------------------------------------------------------------------------

#: Size of the drawing, in its own units.
WIDTH, HEIGHT, _MARGIN = 132.0, 34.0, 4.0


@dataclass(frozen=True)
class Sparkline:
    """Where the lines of an :class:`Outlook` run, in units of the drawing, the origin at the upper left. Better is higher.

    Attributes:
        realised, estimated: polylines, one for each stretch without a gap: ``x,y x,y …``.
        dots: the points of stretches that are too short for a line, and the newest realised one.
        usual: upper edge and height of the band; None if there is none.
    """

    realised: tuple[str, ...]
    estimated: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    usual: tuple[float, float] | None


def sparkline(outlook: Outlook) -> Sparkline | None:
    """The drawing of an outlook; None if there is no number in it."""
    realised = [window.realised for window in outlook.windows]
    estimated = [window.estimated for window in outlook.windows]
    known = [value for value in (*realised, *estimated) if value is not None]
    if not known:
        return None
    bounds = [*known, *(outlook.usual or ())]
    low, high = float(min(bounds)), float(max(bounds))
    span = (high - low) or 1.0
    step = WIDTH / max(len(outlook.windows), 1)

    def y(value: float) -> float:
        worse_by = high - value if outlook.greater_is_better else value - low
        return float(round(_MARGIN + worse_by / span * (HEIGHT - 2 * _MARGIN), 1))

    def stretches(values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
        found: list[list[tuple[float, float]]] = [[]]
        for number, value in enumerate(values):
            if value is None:
                found.append([])
            else:
                found[-1].append((round((number + 0.5) * step, 1), y(value)))
        return [stretch for stretch in found if stretch]

    def lines(parts: Collection[list[tuple[float, float]]]) -> tuple[str, ...]:
        return tuple(" ".join(f"{x},{height}" for x, height in part) for part in parts if len(part) > 1)

    measured, expected = stretches(realised), stretches(estimated)
    dots = [part[0] for part in (*measured, *expected) if len(part) == 1]
    if measured and measured[-1][-1] not in dots:
        dots.append(measured[-1][-1])
    usual = None
    if outlook.usual:
        upper, lower = sorted(y(value) for value in outlook.usual)
        usual = (upper, round(lower - upper, 1))
    return Sparkline(lines(measured), lines(expected), tuple(dots), usual)


# --- words -----------------------------------------------------------------------------------------------------------


def age(then: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that fits: ``3 min``, ``5 h``, ``12 d``."""
    seconds = max((now - then).total_seconds(), 0.0)
    if seconds < 3600:
        return f"{int(seconds // 60)} min"
    return f"{int(seconds // 3600)} h" if seconds < 2 * 86_400 else f"{int(seconds // 86_400):,} d"


def last_day(end: datetime) -> str:
    """The last day, or hour, before an end: for an interval that ends on the 24th at midnight, the 23rd."""
    midnight = end.hour == end.minute == end.second == 0
    return f"{end - timedelta(days=1):%-d %b %Y}" if midnight else f"{end.astimezone(UTC):%-d %b %Y %H:%M}"


def span(key: str) -> str:
    """The days of an interval's key, for people: ``17 - 23 Jun 2013``."""
    return Interval.from_key(key).in_words


def _message(text: str, folder: str) -> str:
    """The first line of an error. A path in front of it is shortened to the part below the folder of all models."""
    line = next((line for line in text.splitlines() if line.strip()), "no message")
    before, found, after = line.partition(f"/{folder}/")
    return f"{folder}/{after}" if found and " " not in before else line


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _query(**values: str) -> str:
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
