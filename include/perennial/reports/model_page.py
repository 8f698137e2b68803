"""The page of a model: what it answers, whether it is well, what to do now, and what has happened to it.

:func:`compose` is a pure function of the model's newest records and its folder. ``templates/model.html.j2`` draws what it
returns, and decides nothing. Nothing of a row of data is on the page.

Neighbours: :mod:`perennial.ledger.life` reads the records; :mod:`perennial.reports.board` says how the model is in one row,
which is the head of this page, too; :mod:`perennial.reports.drawing` places the lines of the chart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from perennial.alerts.outbox import OutboxEntry
from perennial.core.intervals import Interval
from perennial.evidence.verdict import ColumnDrift
from perennial.ledger.coverage import trained_as_of
from perennial.ledger.life import Life
from perennial.ledger.records import Action, Approval, Promotion, Refusal, Verdict, VersionRecord, judged_or_newest
from perennial.reports import board
from perennial.reports.board import Pages, Row, span
from perennial.reports.drawing import Mark, Place
from perennial.reports.history import in_short
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS

#: Windows of the charts, and of the heat map, which needs more room.
WINDOWS, HEAT = 52, 26
#: Most columns of the heat map, and days of the table of data.
_COLUMNS, _DAYS = 40, 28
#: The span that ``retraining.budget`` counts over, as in :mod:`perennial.monitoring.retraining`.
_BUDGET_SPAN = timedelta(days=30)

Outcome = Literal["champion", "former champion", "rolled back", "passed", "waits", "refused"]

#: By action of a change of champion: what it is called, and its sign in the chart.
_ACTIONS: Mapping[Action, tuple[str, str]] = {
    "promote": ("promoted", "P"),
    "refresh": ("refreshed", "F"),
    "rollback": ("rolled back to", "R"),
    "override": ("promoted over the gates", "O"),
    "adopt": ("taken over from MLflow", "A"),
}


@dataclass(frozen=True)
class Step:
    """Something to do, or that can be done.

    Attributes:
        name: what, in a few words.
        told: how, and what to fill in; empty if the name says it.
        link: where.
    """

    name: str
    told: str
    link: str


@dataclass(frozen=True)
class Question:
    """A version that waits for an approver.

    Attributes:
        asked: when the version was registered; the question came at once.
        until: when the question expires without an answer.
        gain: the gain over the champion, with its interval.
        answer: page where it is answered; None if the run is not known.
    """

    version: int
    asked: datetime
    until: datetime
    gain: str
    answer: str | None
    links: tuple[Step, ...]


@dataclass(frozen=True)
class Window:
    """A monitoring window.

    Attributes:
        words: its days, for people.
        version: who predicted.
        verdict: on drift; empty if it was not judged.
        realised, estimated: the primary metric.
        usual: low and high end of what is usual.
        baseline: what the same answer for every row reached.
        rows: labelled rows that were measured.
        coverage: share of the labels that had come, 0 to 1.
        report: page of its drift report.
    """

    key: str
    words: str
    version: int | None
    verdict: str
    realised: float | None
    estimated: float | None
    usual: tuple[float, float] | None
    baseline: float | None
    rows: int | None
    coverage: float | None
    report: str | None


@dataclass(frozen=True)
class PerformancePart:
    """How well the model does, window by window, oldest first.

    Attributes:
        places, marks: what is drawn; a place for each window.
        constant: whether a baseline is known.
    """

    metric: str
    greater_is_better: bool
    windows: tuple[Window, ...]
    places: tuple[Place, ...]
    marks: tuple[Mark, ...]

    @property
    def constant(self) -> bool:
        return any(window.baseline is not None for window in self.windows)


@dataclass(frozen=True)
class Cell:
    """A column in a window.

    Attributes:
        level: 0 to 4: how near the distance is to the threshold, see :func:`level`; None if there is no distance.
        word: what the cell shows: the ratio of distance and threshold from 1 on, or why there is none.
        told: all about it.
    """

    level: int | None
    word: str
    told: str


@dataclass(frozen=True)
class DriftWindow:
    """A window of the heat map: its verdict, and its worst column in words."""

    words: str
    label: str
    verdict: str
    drifted: int
    worst: str
    reason: str
    report: str | None


@dataclass(frozen=True)
class DriftPart:
    """Columns by windows: how far each column is from what the champion learned from.

    Attributes:
        windows: oldest first.
        columns: the name of each column with a cell per window; what drifted most recently comes first.
        left_out: how many columns are not shown.
    """

    windows: tuple[DriftWindow, ...]
    columns: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    left_out: int


@dataclass(frozen=True)
class DayOfTable:
    """A table in a published or refused interval. Numbers of rows are None where they are not known."""

    words: str
    table: str
    read: int | None
    published: int | None
    quarantined: int | None
    late: int | None
    refused: str
    docs: str
    at: datetime


@dataclass(frozen=True)
class DataPart:
    """What has come: the newest first, and what has not."""

    days: tuple[DayOfTable, ...]
    gaps: tuple[str, ...]


@dataclass(frozen=True)
class Reign:
    """A time as champion; ``until`` is None for the present one."""

    version: int
    action: str
    by: str
    why: str
    since: datetime
    until: datetime | None
    link: str | None


@dataclass(frozen=True)
class Version:
    """A version in the table of versions.

    Attributes:
        value, rival: the primary metric of the version and of the champion on the same rows.
        gain: over the champion, with its interval.
        refused_by: the gate that refused, or who did; empty if nothing refused.
        why: the reason in a sentence.
    """

    version: int
    at: datetime
    candidate: str
    value: float | None
    rival: float | None
    gain: str
    outcome: Outcome
    refused_by: str
    why: str
    links: tuple[Step, ...]


@dataclass(frozen=True)
class Told:
    """An alert; ``todo`` is what its text advises."""

    at: datetime
    severity: str
    title: str
    text: str
    todo: str
    is_open: bool
    recovers: bool
    links: tuple[Step, ...]


@dataclass(frozen=True)
class RetrainingPart:
    """What monitoring may ask for, and what it has answered, the newest first.

    Attributes:
        rules: budget, cooldown and breaker as they stand, a sentence each.
        answers: for each window: its end, what was decided, why, and what came of it.
    """

    rules: tuple[str, ...]
    answers: tuple[tuple[datetime, str, str, str], ...]


@dataclass(frozen=True)
class OnlinePart:
    """What is asked online: rows by day, the newest first, and sentences about latency and parity."""

    days: tuple[tuple[str, int], ...]
    facts: tuple[str, ...]
    parities: tuple[tuple[str, int, str, str], ...]


@dataclass(frozen=True)
class ModelPage:
    """The page. A part that has nothing to show is None or empty.

    Attributes:
        row: as on the board.
        task: what kind of answer it gives.
        state: how the model is, in a sentence.
        now: what to do now, the most urgent first.
        actions: what a person may start, by Airflow's own rights.
    """

    at: datetime
    row: Row
    task: str
    state: str
    now: tuple[Step, ...]
    actions: tuple[Step, ...]
    waiting: Question | None
    performance: PerformancePart | None
    drift: DriftPart | None
    data: DataPart
    reigns: tuple[Reign, ...]
    shadows: tuple[str, ...]
    versions: tuple[Version, ...]
    version_count: int
    alerts: tuple[Told, ...]
    retraining: RetrainingPart
    online: OnlinePart | None


def compose(life: Life, folder: ModelFolder, *, now: datetime, pages: Pages) -> ModelPage:
    """Compose the page.

    Args:
        life: the model's newest records.
        folder: its folder.
        now: the current time.
        pages: addresses for links.
    """
    spec = folder.spec
    (row,) = board.compose(life.state, {spec.name: folder}, {}, now=now, pages=pages).rows
    waiting = _question(spec, life, row, now, pages)
    return ModelPage(
        at=now,
        row=row,
        task=spec.task.replace("_", " "),
        state=_state(row, now),
        now=tuple(_todo(row, waiting, pages)),
        actions=_actions(spec, pages),
        waiting=waiting,
        performance=_performance(spec, life, pages),
        drift=_drift(life.state.verdicts.get(spec.name, []), pages),
        data=_data(spec, life, row, pages),
        reigns=_reigns(life.changes, pages),
        shadows=tuple(
            f"{one.interval.in_words}, version {one.version} beside version {one.champion}, {one.rows:,} rows: {one.reason}"
            for one in reversed(life.comparisons)
        ),
        versions=tuple(_version(record, spec, life, row, pages) for record in life.versions),
        version_count=life.version_count,
        alerts=_alerts(life.state.alerts.get(spec.name, [])),
        retraining=_retraining(spec, life, now),
        online=_online(spec, life, row),
    )


# --- the head --------------------------------------------------------------------------------------------------------


def _state(row: Row, now: datetime) -> str:
    if row.champion is None:
        return {"new": "It has no champion yet: "}.get(row.attention, "It has no champion: ") + (row.why or "train it") + "."
    serves = f"version {row.champion.version} has predicted for {board.age(row.champion.since, now)}"
    until = f", and data are there until {board.last_day(row.data_until)}" if row.data_until else ""
    if row.attention == "fine":
        return f"All is well: {serves}{until}."
    urgent = "Somebody should act now" if row.attention in ("critical", "broken") else "Somebody should look at it"
    return f"{urgent}: {row.why}. {serves[0].upper()}{serves[1:]}{until}."


def _todo(row: Row, waiting: Question | None, pages: Pages) -> Iterable[Step]:
    model = row.model
    if row.refused:
        yield Step(
            f"Data of {span(row.refused)} are refused",
            "Read why below, correct the source, then load these days again.",
            pages.dag(f"{model}.load"),
        )
    if row.judged is not None and row.judged.severity != "none":
        yield Step(
            f"Read the report on {span(row.judged.window)}",
            row.judged.reason,
            row.judged.report or row.judged.run or pages.dag(f"{model}.monitor"),
        )
    if waiting is not None:
        yield Step(f"Answer about version {waiting.version}", f"Gain {waiting.gain}.", waiting.answer or "#waiting")
    for held in row.held:
        yield Step(held.words[0].upper() + held.words[1:], f"{held.reason}. {held.release}", held.link)
    for cell in row.tables:
        if cell.missing:
            yield Step(f"Load what is missing of {cell.table}", cell.words, pages.dag(f"{model}.load"))
    if row.outdated:
        days = ", ".join(span(key) for key in row.outdated)
        yield Step("Score again", f"Features of {days} have changed since they were scored.", pages.dag(f"{model}.score"))
    if row.champion is None and row.data_until is not None:
        yield Step("Train it", "", pages.dag(f"{model}.train"))
    if row.told.undelivered:
        yield Step(
            f"{row.told.undelivered} alerts did not reach everyone",
            "Look at the channel's connection, then trigger perennial.notify.",
            pages.dag("perennial.notify"),
        )
    if row.told.urgent:
        yield Step(row.told.urgent, "See the alerts below.", "#alerts")


def _actions(spec: ModelSpec, pages: Pages) -> tuple[Step, ...]:
    def step(stage: str, name: str, told: str) -> Step:
        return Step(name, told, pages.dag(f"{spec.name}.{stage}"))

    return (
        step("train", "Train", "A new version from the newest data."),
        step("score", "Score days", "Give the first day and the end."),
        step("load", "Load days", "Give the first day and the end."),
        step("rollback", "Roll back", "Say why; without a version, to the champion before this one."),
        step("promote", "Promote", "Give the version; one that was refused needs a reason."),
        step("release", "Release", "What was held back."),
    )


def _question(spec: ModelSpec, life: Life, row: Row, now: datetime, pages: Pages) -> Question | None:
    if row.trained is None or row.trained.outcome != "waiting" or not life.versions:
        return None
    record = life.versions[0]
    # The run asks as soon as the version is registered.
    until = record.created_at + spec.approval.within
    if any(one.version == record.version for one in life.approvals) or until < now - timedelta(days=1):
        return None
    return Question(
        version=record.version,
        asked=record.created_at,
        until=until,
        gain=_gain(record),
        answer=f"{run}/tasks/ask_approval/required_actions" if (run := board.training_run(record, pages)) else None,
        links=_links(record, pages),
    )


# --- performance -----------------------------------------------------------------------------------------------------


def _performance(spec: ModelSpec, life: Life, pages: Pages) -> PerformancePart | None:
    windows = windows_of(spec, life, pages)
    if not windows:
        return None
    metric = spec.primary_metric
    places = tuple(
        Place(
            label=f"{Interval.from_key(window.key).start:%-d %b %y}",
            told=(
                f"{window.words}: {metric} {_figure(window.realised)} realised, {_figure(window.estimated)} estimated; "
                f"{window.verdict or 'not judged'}"
            ),
            realised=window.realised,
            estimated=window.estimated,
            usual=window.usual,
            reference=window.baseline,
            link=window.report,
        )
        for window in windows
    )
    return PerformancePart(metric, METRICS[spec.task][metric], tuple(windows), places, tuple(_marks(windows, life)))


def windows_of(spec: ModelSpec, life: Life, pages: Pages) -> list[Window]:
    """The windows that were judged or measured, oldest first.

    If the champion changed within a window, the version with the most labelled rows represents it.
    """
    metric, model = spec.primary_metric, spec.name
    verdicts = {verdict.interval: verdict for verdict in life.state.verdicts.get(model, [])}
    measured = {one.interval: one for one in sorted(life.state.performances.get(model, []), key=lambda one: one.rows)}
    found = []
    for interval in sorted({*verdicts, *measured})[-WINDOWS:]:
        verdict, performance = verdicts.get(interval), measured.get(interval)
        estimate = verdict.details.estimate if verdict is not None else None
        estimate = estimate if estimate is not None and estimate.metric == metric else None
        found.append(
            Window(
                key=interval.key,
                words=interval.in_words,
                version=performance.version if performance is not None else verdict.version if verdict is not None else None,
                verdict=verdict.verdict if verdict is not None else "",
                realised=_finite(performance.metrics.get(metric)) if performance is not None else None,
                estimated=_finite(estimate.metrics.get(metric)) if estimate is not None else None,
                usual=(estimate.usual[0], estimate.usual[1]) if estimate is not None and estimate.usual else None,
                baseline=_finite(performance.constant.metrics.get(metric)) if performance is not None else None,
                rows=performance.rows if performance is not None else None,
                coverage=performance.coverage if performance is not None else None,
                report=pages.report(verdict.report) if verdict is not None and verdict.report else None,
            )
        )
    return found


def _marks(windows: Sequence[Window], life: Life) -> Iterable[Mark]:
    """What happened between the windows, in the time of the data: a change of champion stands before the first window that the
    new one predicted, and a refused version at the end of what it could learn from."""
    before: int | None = None
    for number, window in enumerate(windows):
        if window.version is None or window.version == before:
            continue
        if before is not None:
            change = next(
                (one for one in reversed(life.changes) if (one.version, one.previous) == (window.version, before)),
                next((one for one in reversed(life.changes) if one.version == window.version), None),
            )
            name, sign = _ACTIONS[change.action] if change is not None else ("began to predict", "P")
            told = f"{name} v{window.version}" if name.endswith("to") else f"v{window.version} {name}"
            yield Mark(number, sign, "change" if sign != "R" else "rollback", f"before {window.words}: {told}")
        before = window.version
    ends = [Interval.from_key(window.key).end for window in windows]
    for record in life.versions:
        as_of = trained_as_of(record)
        if record.decision.promote or as_of is None or not ends or not Interval.from_key(windows[0].key).start < as_of:
            continue
        place = sum(end <= as_of for end in ends)
        why = record.decision.reasons[0] if record.decision.reasons else "no reason was kept"
        yield Mark(min(place, len(windows)), "X", "refused", f"v{record.version}, as of {as_of:%-d %b %Y}, refused: {why}")


# --- drift -----------------------------------------------------------------------------------------------------------


def level(ratio: float) -> int:
    """How near a distance is to its threshold: 0 below half of it, 1 below three quarters, 2 below it, 3 above, 4 twice it."""
    return sum(ratio >= bound for bound in (0.5, 0.75, 1.0, 2.0))


def _drift(verdicts: Sequence[Verdict], pages: Pages) -> DriftPart | None:
    shown = [verdict for verdict in verdicts if verdict.details.columns or verdict.reasons][-HEAT:]
    if not shown:
        return None
    cells: dict[str, list[Cell | None]] = {}
    ratios: dict[str, list[float]] = {}
    for number, verdict in enumerate(shown):
        for column in verdict.details.columns:
            cells.setdefault(column.column, [None] * len(shown))[number] = _cell(column, verdict)
            ratios.setdefault(column.column, []).append(_ratio(column) or 0.0)
    # What is worst now comes first, then what was.
    order = sorted(cells, key=lambda name: (-ratios[name][-1], -max(ratios[name]), name))
    windows = tuple(
        DriftWindow(
            words=verdict.interval.in_words,
            label=f"{verdict.interval.start:%-d %b}",
            verdict=verdict.verdict,
            drifted=sum(column.drifted for column in verdict.details.columns),
            worst=_worst(verdict.details.columns),
            reason=verdict.reasons[0] if verdict.reasons else "",
            report=pages.report(verdict.report) if verdict.report else None,
        )
        for verdict in shown
    )
    kept = order[:_COLUMNS]
    return DriftPart(windows, tuple((name, tuple(cells[name])) for name in kept), len(order) - len(kept))


def _cell(column: ColumnDrift, verdict: Verdict) -> Cell:
    ratio, where = _ratio(column), f"{column.column}, {verdict.interval.in_words}"
    if ratio is None:
        word = "?" if column.status == "unusable" else "!" if column.drifted else "-"
        return Cell(4 if column.drifted else None, word, f"{where}: {column.reason or column.status.replace('_', ' ')}")
    found = max(level(ratio), 3) if column.drifted else level(ratio)
    word = f"{ratio:.1f}" if ratio < 10 else f"{min(ratio, 999):.0f}"
    told = f"{where}: distance {column.score:.3g}, threshold {column.threshold:.3g}, {column.status.replace('_', ' ')}"
    return Cell(found, word if found >= 3 else "", told)


def _ratio(column: ColumnDrift) -> float | None:
    if column.score is None or not math.isfinite(column.score) or not column.threshold > 0:
        return None
    return column.score / column.threshold


def _worst(columns: Sequence[ColumnDrift]) -> str:
    known = [(ratio, column.column) for column in columns if (ratio := _ratio(column)) is not None]
    if not known:
        return ""
    ratio, name = max(known)
    return f"{name}, {ratio:.2g} times its threshold"


# --- data ------------------------------------------------------------------------------------------------------------


def _data(spec: ModelSpec, life: Life, row: Row, pages: Pages) -> DataPart:
    found: list[DayOfTable] = []
    seen: set[tuple[str, str]] = set()
    for publication in reversed(life.state.publications.get(spec.name, {}).get("tables", [])):
        key = publication.interval.key
        for table, rows in publication.rows.items():
            if (key, table) in seen:  # published again since
                continue
            seen.add((key, table))
            counted = publication.inputs.get("rows", {}).get(table, {})
            found.append(
                DayOfTable(
                    words=publication.interval.in_words,
                    table=table,
                    read=counted.get("read"),
                    published=counted.get("published", rows),
                    quarantined=counted.get("quarantined"),
                    late=counted.get("late"),
                    refused="",
                    docs=_docs(spec.name, table, key, pages),
                    at=publication.published_at,
                )
            )
    published = [(one.interval, one.published_at) for one in life.state.publications.get(spec.name, {}).get("tables", [])]
    for refusal in _standing(life.refusals, published):
        found += _refused(spec.name, refusal, pages)
    found.sort(key=lambda one: one.at, reverse=True)
    gaps = [f"{cell.table}: {cell.words} missing" for cell in row.tables if cell.missing]
    gaps += [f"{cell.table}: {cell.waits} may still come" for cell in row.tables if cell.awaited]
    gaps += [f"scored before late or corrected rows came: {', '.join(span(key) for key in row.outdated)}"] * bool(row.outdated)
    return DataPart(tuple(found[: _DAYS * max(1, len(spec.tables))]), tuple(gaps))


def _standing(refusals: Sequence[Refusal], published: Sequence[tuple[Interval, datetime]]) -> list[Refusal]:
    """The newest refusal of each interval, unless its data were published since."""
    newest = {refusal.interval: refusal for refusal in refusals}
    return [
        one
        for interval, one in newest.items()
        if not any(there.contains(interval) and at > one.recorded_at for there, at in published)
    ]


def _refused(model: str, refusal: Refusal, pages: Pages) -> list[DayOfTable]:
    """A row for each table that was read; the reasons name their table first."""
    told = {table: "; ".join(_of_table(refusal.reasons, table)) for table in refusal.rows}
    if not any(told.values()):
        told = {"": "; ".join(refusal.reasons)}
    key = refusal.interval.key
    return [
        DayOfTable(
            words=refusal.interval.in_words,
            table=table,
            read=refusal.rows.get(table),
            published=None,
            quarantined=None,
            late=None,
            refused=why or "another table was refused",
            docs=_docs(model, table, key, pages),
            at=refusal.recorded_at,
        )
        for table, why in told.items()
    ]


def _of_table(reasons: Iterable[str], table: str) -> list[str]:
    return [reason.removeprefix(f"{table}: ") for reason in reasons if reason.startswith(f"{table}: ")]


def _docs(model: str, table: str, key: str, pages: Pages) -> str:
    return pages.report(f"{model}/checks/{table}/{key}.html")


# --- champions and versions ------------------------------------------------------------------------------------------


def _reigns(changes: Sequence[Promotion], pages: Pages) -> tuple[Reign, ...]:
    found = []
    for number, change in enumerate(changes):
        assert change.completed_at is not None  # or it would be no change
        following = changes[number + 1].completed_at if number + 1 < len(changes) else None
        found.append(
            Reign(
                version=change.version,
                action=_told(change),
                by=_by(change),
                why=change.reason,
                since=change.completed_at,
                until=following,
                link=pages.version(change.model, change.version),
            )
        )
    return tuple(reversed(found))


def _told(change: Promotion) -> str:
    """What the change was, for people."""
    over = f" v{change.previous}" if change.previous is not None else ""
    if change.action == "rollback":
        return f"again, rolled back{f' from{over}' if over else ''}"
    return f"{_ACTIONS[change.action][0]}{f' in place of{over}' if over else ''}"


def _by(change: Promotion) -> str:
    by = change.actor.removeprefix("airflow:").removeprefix("by hand: ")
    automatic = {f"{change.model}.{stage}" for stage in ("train", "refresh", "monitor")}
    return "its gates" if by in automatic else by


def _version(record: VersionRecord, spec: ModelSpec, life: Life, row: Row, pages: Pages) -> Version:
    metric = record.evaluation.metric or spec.primary_metric
    rival = record.evaluation.champion
    outcome, refused_by, why = outcome_of(record, life, row)
    return Version(
        version=record.version,
        at=record.created_at,
        candidate=record.training.candidate or record.decision.candidate,
        value=_finite(record.evaluation.candidate.metrics.get(metric)),
        rival=_finite(rival.metrics.get(metric)) if rival is not None else None,
        gain=_gain(record),
        outcome=outcome,
        refused_by=refused_by,
        why=why,
        links=_links(record, pages),
    )


def outcome_of(record: VersionRecord, life: Life, row: Row) -> tuple[Outcome, str, str]:
    """What became of a version, what refused it, and why, for people; the last two are empty if nothing did."""
    version = record.version
    if row.champion is not None and row.champion.version == version:
        return "champion", "", ""
    after = [change for change in life.changes if change.previous == version]
    if after and after[-1].action == "rollback":
        return "rolled back", _by(after[-1]), after[-1].reason
    if after or any(change.version == version for change in life.changes):
        return "former champion", "", ""
    decision, answer = record.decision, _answer(life.approvals, version)
    if not decision.promote:
        gate = decision.refused_by[0] if decision.refused_by else "the gates"
        return "refused", gate, decision.reasons[0] if decision.reasons else "no reason was kept"
    if answer is not None and answer.answer != "approved":
        return "refused", answer.approver or "nobody answered", answer.told
    if row.trained is not None and (row.trained.version, row.trained.outcome) == (version, "waiting"):
        return "waits", "", "for an approval"
    return "passed", "", "passed its gates, and did not become champion"


def _answer(approvals: Sequence[Approval], version: int) -> Approval | None:
    return next((one for one in reversed(approvals) if one.version == version), None)


def _gain(record: VersionRecord) -> str:
    compared = record.evaluation.comparison
    if compared is None or not math.isfinite(compared.gain):
        return "not compared with a champion" if record.evaluation.champion is None else "not known"
    if compared.low is None or compared.high is None:
        return f"{compared.gain:+.4g}"
    return f"{compared.gain:+.4g} ({compared.low:+.4g} to {compared.high:+.4g})"


def _links(record: VersionRecord, pages: Pages) -> tuple[Step, ...]:
    found = (
        ("MLflow", pages.version(record.model, record.version)),
        ("card and report", pages.mlflow_run(record.mlflow_run_id)),
        ("run", board.training_run(record, pages)),
    )
    return tuple(Step(name, "", link) for name, link in found if link)


# --- alerts, retraining, online --------------------------------------------------------------------------------------


def _alerts(entries: Sequence[OutboxEntry]) -> tuple[Told, ...]:
    told = []
    for entry in entries:
        alert = entry.alert
        text, _, todo = alert.text.partition("\n\n")
        told.append(
            Told(
                at=entry.created_at,
                severity=alert.severity if alert.kind != "recovered" else "recovered",
                title=alert.title.removeprefix(f"{alert.model}: "),
                text=text,
                todo=todo,
                is_open=alert.subject is not None and entry.resolved_by is None,
                recovers=entry.resolved_by is not None,
                links=tuple(Step(name, "", link) for name, link in alert.links.items() if _is_page(link)),
            )
        )
    return tuple(sorted(told, key=lambda one: (not one.is_open, -one.at.timestamp())))


def _is_page(link: str) -> bool:
    return link.startswith(("http://", "https://", "/"))


def _retraining(spec: ModelSpec, life: Life, now: datetime) -> RetrainingPart:
    policy = spec.retraining
    asked = [one.window_end for one in life.requests]
    # As monitoring counts: a training that was requested has the time of its request.
    learned = [as_of for one in life.versions if not one.is_refresh and (as_of := trained_as_of(one)) is not None]
    begun = sorted({*asked, *learned})
    moment = life.decisions[-1].window_end if life.decisions else now
    recent = [one for one in begun if moment - _BUDGET_SPAN < one <= moment]
    rules = [
        f"Budget: {len(recent)} of {policy.budget} trainings in the {_BUDGET_SPAN.days} days until {board.last_day(moment)}."
    ]
    if begun:
        free = begun[-1] + policy.cooldown
        held = f"monitoring may ask again from {free:%-d %b %Y} on" if free > moment else "it is over"
        rules.append(f"Cooldown: the last training was as of {begun[-1]:%-d %b %Y}; {held}.")
    promoted = {change.version for change in life.changes}
    fruit = max((trained_as_of(one) for one in life.versions if one.version in promoted), default=None, key=_moment)
    vain = sum(fruit is None or end > fruit for end in asked)
    open_ = "it asks no more until a version is promoted" if vain >= policy.breaker else "it is closed"
    rules.append(f"Breaker: {vain} of {policy.breaker} requests in a row led to no promotion; {open_}.")
    answers = tuple(
        (one.window_end, "asked" if one.asked else "did not ask", one.reason, in_short(one) if one.asked else "")
        for one in reversed(life.decisions[-12:])
    )
    return RetrainingPart(tuple(rules), answers)


def _moment(value: datetime | None) -> float:
    return value.timestamp() if value is not None else -math.inf


def _online(spec: ModelSpec, life: Life, row: Row) -> OnlinePart | None:
    if spec.online is None and not life.asked:
        return None
    days: Counter[str] = Counter()
    order: dict[str, datetime] = {}
    newest: dict[Interval, int] = {}
    for publication in life.asked:
        newest[publication.interval] = sum(publication.rows.values())
    for interval, rows in newest.items():
        words = f"{interval.start:%-d %b %Y}"
        days[words] += rows
        order[words] = max(interval.start, order.get(words, interval.start))
    facts = []
    champion = next((one for one in life.versions if row.champion and one.version == row.champion.version), None)
    if champion is not None and (operation := champion.evaluation.operation) is not None and operation.latency is not None:
        facts.append(f"The champion predicted 1,000 rows in {operation.latency:.3g} ms when its gates were asked.")
    facts.append("How long requests take is counted by the scorers: see the dashboard Perennial, or /metrics of a scorer.")
    if (parity := judged_or_newest(life.parities)) is not None:
        told = f"{parity.measured.share:.1%} of {parity.measured.rows:,} rows served equal the published tables"
        facts.append(f"Parity: {told}; {parity.measured.bound:.1%} are required.")
    return OnlinePart(
        days=tuple((words, days[words]) for words in sorted(days, key=lambda one: order[one], reverse=True)),
        facts=tuple(facts),
        parities=tuple(
            (one.interval.in_words, one.measured.rows, f"{one.measured.share:.1%}", ", ".join(one.measured.worst[:3]))
            for one in life.parities
        ),
    )


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _figure(value: float | None) -> str:
    return "not" if value is None else f"{value:.4g}"
