"""Finds what is wrong. No callback runs for a process that was killed, or for a run that never started.

Every function here is pure. :mod:`perennial.watchdog.process` reads Airflow and the ledger, calls :func:`look`, and writes the
findings into the outbox; :mod:`perennial.alerts.of_operation` has the texts.

A finding is open until a later look no longer has it. If a look could not read something (Airflow does not answer), earlier
findings about it stay open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, get_args

from croniter import CroniterError, croniter

from perennial.alerts import of_operation
from perennial.alerts.alert import EVERYBODY, Alert, failure, failure_key
from perennial.core.intervals import Interval, merged
from perennial.spec.model import ModelSpec
from perennial.spec.operation import Schedules, WatchLimits
from perennial.spec.windows import last_window

if TYPE_CHECKING:
    from perennial.stack.airflow_api import DagRun, TaskInstance


#: The DAG file without a DAG, whose import error says which model folders are broken.
BROKEN_MODELS = "broken_models.py"

#: What ends within this time was a restart, or a person at work. It is not reported.
RESTART = timedelta(minutes=2)
HAND = timedelta(minutes=15)

#: Airflow calls a component unhealthy half a minute after its last heartbeat. A restart takes less than this in addition.
HEARTBEAT = timedelta(seconds=30)

#: A failed task's own callback knows the error. It has this long to report it.
CALLBACK = timedelta(seconds=30)

#: The DAG ``perennial.notify`` sends alerts every minute. The watchdog sends those that have waited for ``WAITING``. If one has
#: waited for ``STRANDED``, the watchdog reports that alerts wait.
WAITING = timedelta(minutes=15)
STRANDED = timedelta(hours=1)

#: The judge answers within minutes: it fits baselines, and the champion's recipe, on the rows of a training.
RULING = timedelta(minutes=30)

#: The repository of models is looked at twice a minute. For as long as this, it may be away.
FOLLOWED = timedelta(hours=1)

#: A stage starts within minutes of what it waits for. Scoring or monitoring a window may take this long.
STAGE = timedelta(hours=3)

#: The stages that a model lives by, as far as it has them. If one of them is on, the others should be on.
_CHAIN = ("ingest", "train", "refresh", "score", "monitor")


# --- what is known ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """An interval of a dataset that is published.

    Attributes:
        interval: what is published.
        at: when it was.
        rows: how many, of all tables.
        version: the version that made them, if they are predictions.
        too_late: by table and day, rows of tables that came later than ``late`` allows.
    """

    interval: Interval
    at: datetime
    rows: int = 0
    version: int | None = None
    too_late: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReigningChampion:
    """A model's champion.

    Attributes:
        version: its number.
        since: when it became champion.
        trained_until: end of its training data; None if that is not recorded.
        label_delay: how long labels take, as stated or as its training measured.
    """

    version: int
    since: datetime
    trained_until: datetime | None
    label_delay: timedelta = timedelta()


@dataclass(frozen=True)
class ModelState:
    """A model's state in the ledger.

    Attributes:
        spec: its spec.
        tables, features, predictions: the newest publications of each, at least 31.
        first_published_at: when the first interval of tables was published; None before.
        tables_ever, features_ever: all that was ever published of each, in as few intervals as possible; what the newest
            publications hold may be left out.
        awaited: by table, the days that are published without it because it may come late.
        told_at: by the end of its subject, when people were last told of an open finding about the model.
        refused: intervals whose data were refused recently.
        champion: None before the first.
        judged_until: end of the newest window with a drift verdict.
        measured_until: end of the newest window with a measured performance.
        tried_at: when the newest version was registered that is no refresh.
        refreshed_at: when the newest refresh was registered.
        refreshes_stopped: whether refreshes have stopped, until a person or a replacement ends that.
    """

    spec: ModelSpec
    tables: Sequence[Published] = ()
    features: Sequence[Published] = ()
    predictions: Sequence[Published] = ()
    first_published_at: datetime | None = None
    tables_ever: Sequence[Interval] = ()
    features_ever: Sequence[Interval] = ()
    awaited: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    told_at: Mapping[str, datetime] = field(default_factory=dict)
    refused: Collection[Interval] = ()
    champion: ReigningChampion | None = None
    judged_until: datetime | None = None
    measured_until: datetime | None = None
    tried_at: datetime | None = None
    refreshed_at: datetime | None = None
    refreshes_stopped: bool = False


@dataclass(frozen=True)
class FailedTask:
    """A task that failed for good.

    Attributes:
        task: the task.
        run: its run.
    """

    task: TaskInstance
    run: DagRun


@dataclass(frozen=True)
class OpenRun:
    """A run that has been queued or running for long.

    Attributes:
        run: the run.
        asks: whether it only waits for a person's approval.
    """

    run: DagRun
    asks: bool = False


@dataclass(frozen=True)
class AirflowState:
    """Airflow's state, as its REST API reports it.

    Attributes:
        components: the last heartbeat of each component that is not healthy; None if it never had one.
        import_errors: the message of each DAG file that cannot be read.
        failed_tasks: tasks that failed for good recently.
        failed_runs: runs that failed recently although none of their tasks did.
        open_runs: runs that may be stuck.
    """

    components: Mapping[str, datetime | None] = field(default_factory=dict)
    import_errors: Mapping[str, str] = field(default_factory=dict)
    failed_tasks: Sequence[FailedTask] = ()
    failed_runs: Sequence[DagRun] = ()
    open_runs: Sequence[OpenRun] = ()


@dataclass(frozen=True)
class Known:
    """Everything that a look is based on.

    Attributes:
        now: the time.
        models: by name.
        airflow: None if it does not answer.
        silence: why it does not.
        paused: by DAG id, whether the DAG is paused, as last read; None if it was never read.
        oldest_waiting: when the oldest undelivered alert was recorded; None if none waits.
        waiting: how many alerts wait.
        unruled_since: when the judge was asked for what it has not answered longest; None if nothing waits for it.
        unreadable: models whose folder is broken, so that nothing is known about them, and what is wrong with it.
        altered: what is wrong with the record of decisions.
        followed_at: when the newest commit of the models' repository was last known; None if no repository is followed.
    """

    now: datetime
    models: Mapping[str, ModelState]
    airflow: AirflowState | None
    silence: str = ""
    paused: Mapping[str, bool] | None = None
    oldest_waiting: datetime | None = None
    waiting: int = 0
    unruled_since: datetime | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    altered: Sequence[str] = ()
    followed_at: datetime | None = None


# --- what is found ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        subject: identifies it: the same in each look, and unique among findings.
        alert: the alert about it.
        lasting: how long it has to be found before it is reported.
        again: whether it has grown since people were told: then it is told again although it is open.
        key: for an event, such as a task's death, which does not end when a later look no longer finds it: the alert's key in
            the outbox, the same that the task's own callback would have used.
    """

    subject: str
    alert: Alert
    lasting: timedelta = timedelta()
    again: bool = False
    key: str | None = None


Area = Literal[
    "airflow", "components", "judge", "repository", "runs", "dags", "folders", "paused", "models", "outbox", "decisions"
]
AREAS: tuple[Area, ...] = get_args(Area)


@dataclass(frozen=True)
class Look:
    """The findings of a look.

    Attributes:
        findings: by subject, each once.
        seen: the areas that were read. A subject begins with its area; a subject there that is no longer found is over.
        unseen: models that could not be read; their name follows the area in a subject.
    """

    findings: Mapping[str, Finding]
    seen: frozenset[Area]
    unseen: frozenset[str] = frozenset()

    def is_over(self, subject: str) -> bool:
        """Whether an earlier finding about ``subject`` is over."""
        area, _, rest = subject.partition("/")
        return area in self.seen and rest.partition("/")[0] not in self.unseen and subject not in self.findings


def look(known: Known) -> Look:
    """Find what is wrong."""
    looks: dict[Area, Callable[[Known], Iterable[Finding]]] = {
        "airflow": _airflow,
        "judge": _judge,
        "repository": _repository,
        "folders": _folders,
        "outbox": _outbox,
        "decisions": _decisions,
    }
    if known.airflow is not None:
        looks |= {"components": _components, "runs": _runs, "dags": _dags}
    if known.paused is not None:
        looks |= {"paused": _paused, "models": _models}
    found = [finding for find in looks.values() for finding in find(known)]
    return Look({finding.subject: finding for finding in found}, frozenset(looks), frozenset(known.unreadable))


def confirm(
    found: Look, since: Mapping[str, datetime], open_subjects: Collection[str], now: datetime
) -> tuple[dict[str, Finding], set[str], dict[str, datetime]]:
    """What to report after a look.

    Args:
        found: the look.
        since: when each subject was first found, as the previous look returned it.
        open_subjects: subjects that were reported and are not over.
        now: the time.

    Returns:
        The findings to report, the subjects to report as over, and ``since`` for the next look.
    """
    firsts = {subject: first for subject, first in since.items() if not found.is_over(subject)}
    firsts |= {subject: now for subject in found.findings if subject not in firsts}
    told = {
        subject: finding
        for subject, finding in found.findings.items()
        if (finding.again or subject not in open_subjects) and now - firsts[subject] >= finding.lasting
    }
    return told, {subject for subject in open_subjects if found.is_over(subject)}, firsts


# --- Airflow ---------------------------------------------------------------------------------------------------------


def _airflow(known: Known) -> Iterator[Finding]:
    if known.airflow is None:
        yield Finding("airflow/api", of_operation.airflow_silent(EVERYBODY, reason=known.silence), RESTART)


def _components(known: Known) -> Iterator[Finding]:
    assert known.airflow is not None
    for name, heartbeat in sorted(known.airflow.components.items()):
        yield Finding(
            f"components/{name}", of_operation.component_down(EVERYBODY, component=name, heartbeat=heartbeat), HEARTBEAT
        )


def _judge(known: Known) -> Iterator[Finding]:
    if (since := known.unruled_since) is not None and known.now - since > RULING:
        yield Finding("judge/silent", of_operation.judge_silent(EVERYBODY, since=since))


def _repository(known: Known) -> Iterator[Finding]:
    if (since := known.followed_at) is not None and known.now - since > FOLLOWED:
        yield Finding("repository/not_followed", of_operation.models_not_followed(EVERYBODY, since=since))


def _dags(known: Known) -> Iterator[Finding]:
    assert known.airflow is not None
    errors = dict(known.airflow.import_errors)
    reports = [file for file in errors if file.rpartition("/")[2] == BROKEN_MODELS]
    said = [errors.pop(file) for file in reports]
    if errors:
        yield Finding("dags/import_errors", of_operation.import_errors(EVERYBODY, errors=errors), RESTART)
    # Airflow may be unable to read what can be read from here; or it has not read yet what was just corrected.
    if said and not known.unreadable:
        yield Finding("dags/broken_models", of_operation.broken_folder(EVERYBODY, error=said[0]), HAND)


def _folders(known: Known) -> Iterator[Finding]:
    # Sent to everybody, because the channels that the model's folder names are unknown.
    for name, error in sorted(known.unreadable.items()):
        yield Finding(f"folders/{name}", of_operation.broken_folder(EVERYBODY, broken=name, error=error), RESTART)


def _paused(known: Known) -> Iterator[Finding]:
    for name in sorted(known.models):
        chain = [stage for stage in _CHAIN if stage != "refresh" or known.models[name].spec.refreshes]
        stages = {stage: (known.paused or {}).get(f"{name}.{stage}") for stage in chain}
        off = [stage for stage, paused in stages.items() if paused]
        if off and not all(paused is not False for paused in stages.values()):
            yield Finding(f"paused/{name}", of_operation.paused(name, stages=off), HAND)


def _runs(known: Known) -> Iterator[Finding]:
    assert known.airflow is not None
    for failed in known.airflow.failed_tasks:
        task, run = failed.task, failed.run
        model = _model(known, task.dag_id)
        if model is None or (task.ended_at is not None and known.now - task.ended_at < CALLBACK):
            continue
        key = failure_key(task.dag_id, task.run_id, task.task_id, task.map_index)
        alert = of_operation.task_died(
            model,
            stage=_stage(task.dag_id),
            task=task.task_id,
            run_id=task.run_id,
            interval=_partition(run),
            subject=failure(task.dag_id, task.task_id, task.map_index),
        )
        yield Finding(f"runs/task/{key}", alert, key=key)
    for run in known.airflow.failed_runs:
        model = _model(known, run.dag_id)
        if model is None or (run.ended_at and known.now - run.ended_at < CALLBACK):
            continue
        key = f"run_failed:{run.dag_id}:{run.run_id}"
        yield Finding(
            f"runs/run/{key}",
            of_operation.run_ended(model, stage=_stage(run.dag_id), run_id=run.run_id, interval=_partition(run)),
            key=key,
        )
    for opened in known.airflow.open_runs:
        run, model = opened.run, _model(known, opened.run.dag_id)
        if model is None or opened.asks:
            continue
        state = known.models.get(model)
        limit = (state.spec.watch if state else WatchLimits()).run
        began = run.started_at or run.queued_at
        if began is not None and known.now - began > limit:
            alert = of_operation.run_stuck(
                model, stage=_stage(run.dag_id), run_id=run.run_id, state=run.state, since=began, interval=_partition(run)
            )
            yield Finding(f"runs/stuck/{run.dag_id}/{run.run_id}", alert)


def _model(known: Known, dag_id: str) -> str | None:
    """The model of a DAG; None if the DAG is not Perennial's."""
    name = dag_id.partition(".")[0]
    return name if name in known.models or name == EVERYBODY else None


def _stage(dag_id: str) -> str:
    return dag_id.partition(".")[2]


def _partition(run: DagRun) -> Interval | None:
    return Interval.day(run.partition_key) if run.partition_key else None


# --- models ----------------------------------------------------------------------------------------------------------


def expected(cron: str, moment: datetime) -> tuple[datetime, Interval] | None:
    """The newest tick of ``cron`` before ``moment``, and the UTC day that it ingests: the day of the previous tick.

    None if ``cron`` is invalid; Airflow shows that as an import error of the DAG.
    """
    try:
        tick = croniter(cron, moment).get_prev(datetime)
        before = croniter(cron, tick).get_prev(datetime)
    except CroniterError:
        return None
    return tick, Interval.day(before.date())


def _models(known: Known) -> Iterator[Finding]:
    for name, state in sorted(known.models.items()):
        on = {stage for stage in _CHAIN if (known.paused or {}).get(f"{name}.{stage}") is False}
        for stage, find in (
            ("ingest", _silent),
            ("score", _unscored),
            ("monitor", _unmonitored),
            ("train", _untrained),
            ("refresh", _unrefreshed),
        ):
            if stage in on:
                yield from find(name, state, known.now)
        if "ingest" in on:
            yield from _late(name, state, known.now)
        if "score" in on:
            yield from _stale(name, state)
        if "monitor" in on:
            yield from _unlabelled(name, state)


def _silent(name: str, state: ModelState, now: datetime) -> Iterator[Finding]:
    due = expected(state.spec.schedules.ingest, now - state.spec.watch.late)
    if due is None or state.first_published_at is None:
        return
    tick, day = due
    # Nothing was due before the model first published.
    if state.first_published_at > tick:
        return
    # A refusal has its own alert. The day is told of here if it is still missing when the next one is due.
    until = day.start if any(day.overlaps(bad) for bad in state.refused) else day.end
    missing = unpublished(state, until)
    if not missing:
        return
    told_at = state.told_at.get("silent")
    told = expected(state.spec.schedules.ingest, told_at - state.spec.watch.late) if told_at is not None else None
    # While old days are loaded, or one outage goes on, nothing is news.
    again = told is not None and missing[-1].start >= told[1].end
    alert = of_operation.silent(name, missing, tick=tick, catch_up=state.spec.schedules.catch_up)
    yield Finding(f"models/{name}/silent", alert, again=again)


def _late(name: str, state: ModelState, now: datetime) -> Iterator[Finding]:
    """Tables that no ingest looks for any more, by the days that are published; and rows that came too late."""
    told_at = state.told_at
    for table, spec in state.spec.tables.items():
        if spec.late is None:
            continue
        if missing := _given_up(state, table, spec.late, now):
            told = _given_up(state, table, spec.late, told_at[f"late/{table}"]) if f"late/{table}" in told_at else missing
            alert = of_operation.table_late(name, table=table, missing=merged(missing), late=spec.late)
            yield Finding(f"models/{name}/late/{table}", alert, again=not {*missing} <= {*told})
        for there in state.tables:
            if rows := there.too_late.get(table):
                key = f"data_late:{name}:{table}:{there.interval.key}"
                alert = of_operation.rows_late(name, there.interval, table=table, by_day=rows, late=spec.late)
                yield Finding(f"models/{name}/rows/{key}", alert, key=key)


def _given_up(state: ModelState, table: str, late: timedelta, now: datetime) -> list[Interval]:
    """The days without a table that no ingest looks for any more, as of a moment."""
    # An ingest publishes its own day first, and then what came late.
    reached = max((there.interval.end for there in state.tables if there.at <= now - HAND), default=None)
    return [day for day in state.awaited.get(table, ()) if reached is not None and day.start < reached - late]


def unpublished(state: ModelState, until: datetime) -> list[Interval]:
    """The days since the first published one that have no tables or no features, in stretches.

    Closed days (``schedules.closed``) are left out.

    Args:
        state: the model's.
        until: the end of the newest day that is due.
    """
    tables = merged([*state.tables_ever, *(there.interval for there in state.tables)])
    features = merged([*state.features_ever, *(there.interval for there in state.features)])
    if not tables:
        return [Interval(until - timedelta(days=1), until)]
    first = tables[0].start
    return merged(gap for there in (tables, features) for gap in open_gaps(there, until, state.spec.schedules, first=first))


def open_gaps(
    there: Sequence[Interval], until: datetime, schedules: Schedules, *, first: datetime | None = None
) -> list[Interval]:
    """The days that are not covered and not closed, in stretches.

    Args:
        there: what is covered, in as few intervals as possible, in order.
        until: the end of the newest day that is due.
        schedules: have the closed days.
        first: the first moment to look at; None: that of the first interval.
    """
    start = there[0].start if first is None else first
    gaps = _gaps(there, Interval(start, until)) if start < until else ()
    return merged(day for gap in gaps for day in gap.touched_days() if not schedules.is_closed(day))


def _gaps(there: Sequence[Interval], since: Interval) -> Iterator[Interval]:
    """The parts of an interval that none of the others covers; they are in order and apart from each other."""
    reached = since.start
    for interval in there:
        if interval.start >= since.end:
            break
        if interval.start > reached:
            yield Interval(reached, interval.start)
        reached = max(reached, interval.end)
    if reached < since.end:
        yield Interval(reached, since.end)


def _unscored(name: str, state: ModelState, now: datetime) -> Iterator[Finding]:
    if state.champion is None:
        return
    # History that was loaded later need not be scored; nor are predictions known that lie further back.
    scored_from = min((there.interval.start for there in state.predictions), default=None)
    late = [
        there.interval
        for there in state.features
        if there.at > state.champion.since
        and now - there.at > STAGE
        and (scored_from is None or there.interval.start >= scored_from)
        and not _covers(state.predictions, there.interval)
    ]
    if late:
        yield Finding(f"models/{name}/unscored", of_operation.unscored(name, merged(late), version=state.champion.version))


def _unmonitored(name: str, state: ModelState, now: datetime) -> Iterator[Finding]:
    window = _newest_settled(state.predictions, state.spec.schedules.monitor, state.spec.schedules.grace)
    if window is None or (state.judged_until is not None and state.judged_until >= window.end):
        return
    if now - _settled_at(state.predictions, window, state.spec.schedules.grace) > STAGE:
        yield Finding(f"models/{name}/unmonitored", of_operation.unmonitored(name, window))


def _untrained(name: str, state: ModelState, now: datetime) -> Iterator[Finding]:
    # Before the first version, a person starts the training when there is enough history.
    if state.spec.schedules.train == "never" or state.tried_at is None:
        return
    window = _newest_learnable(state, state.spec.schedules.train)
    asked = state.spec.approval.within if state.spec.promotion == "approval" else timedelta()
    if window is not None and _unused_since(state, window, state.tried_at, now, asked):
        yield Finding(f"models/{name}/untrained", of_operation.untrained(name, window, tried_at=state.tried_at))


def _unrefreshed(name: str, state: ModelState, now: datetime) -> Iterator[Finding]:
    champion = state.champion
    if not state.spec.refreshes or champion is None or state.refreshes_stopped:
        return
    window = _newest_learnable(state, state.spec.schedules.refresh)
    # A champion that has learned from these rows already needs no refresh.
    if window is None or champion.trained_until is None or window.end - champion.trained_until < timedelta(days=1):
        return
    asked = state.spec.approval.within if state.spec.asks_for_refreshes else timedelta()
    if _unused_since(state, window, state.refreshed_at, now, asked):
        yield Finding(f"models/{name}/unrefreshed", of_operation.unrefreshed(name, window, version=champion.version))


def _newest_learnable(state: ModelState, every: str) -> Interval | None:
    """The newest week or month that a scheduled training or refresh should have learned from.

    One with too few days is none: then the run has failed, and that is told.
    """
    schedules = state.spec.schedules
    window = _newest_settled(state.features, every, schedules.grace)
    if window is None or sum(_covers(state.features, day) for day in window.days()) < schedules.days_needed(window):
        return None
    return window


def _unused_since(state: ModelState, window: Interval, used_at: datetime | None, now: datetime, asked: timedelta) -> bool:
    """Whether nothing was made of a window in the day since it was there, and in the time that a person may be asked."""
    complete = _settled_at(state.features, window, state.spec.schedules.grace)
    return (used_at is None or used_at < complete) and now - complete > timedelta(days=1) + asked


def _stale(name: str, state: ModelState) -> Iterator[Finding]:
    if state.champion is None or state.champion.trained_until is None or not state.features:
        return
    newest = max(there.interval.end for there in state.features)
    # By the time of the data: scoring an old year again makes no champion stale.
    age = newest - state.champion.trained_until
    if age > state.spec.watch.champion:
        alert = of_operation.champion_stale(name, version=state.champion.version, age=age, limit=state.spec.watch.champion)
        yield Finding(f"models/{name}/stale", alert)


def _unlabelled(name: str, state: ModelState) -> Iterator[Finding]:
    if state.champion is None or state.judged_until is None:
        return
    due = state.judged_until - state.champion.label_delay - state.spec.watch.labels
    window = _newest_whole(state.predictions, state.spec.schedules.monitor, until=due)
    if window is None or (state.measured_until is not None and state.measured_until >= window.end):
        return
    there = [published for published in state.predictions if published.interval.overlaps(window)]
    # Windows that are in the version's training data, and windows of few rows, are never measured.
    learned = state.champion.trained_until
    if (
        sum(published.rows for published in there) >= state.spec.gates.min_rows
        and all(published.version == state.champion.version for published in there)
        and (learned is None or learned <= window.start)
    ):
        alert = of_operation.labels_late(
            name,
            window,
            version=state.champion.version,
            limit=state.champion.label_delay + state.spec.watch.labels,
            share=state.spec.gates.label_coverage,
        )
        yield Finding(f"models/{name}/unlabelled", alert)


def _covers(there: Iterable[Published], wanted: Interval) -> bool:
    """Whether the publications cover every moment of ``wanted``."""
    reached = wanted.start
    for interval in sorted(published.interval for published in there if published.interval.overlaps(wanted)):
        if interval.start > reached:
            return False
        reached = max(reached, interval.end)
    return reached >= wanted.end


def _newest_settled(there: Sequence[Published], window: str, grace: timedelta) -> Interval | None:
    """The newest day, week or month that is published completely, or whose missing days are no longer waited for.

    The clock is the newest day that is published, so that a replay of old days is judged like those of today.
    """
    end = max((published.interval.end for published in there), default=None)
    if end is None:
        return None
    graced = last_window(end - grace, window)
    some = graced if any(published.interval.overlaps(graced) for published in there) else None
    whole = _newest_whole(there, window)
    return max((found for found in (some, whole) if found is not None), default=None)


def _settled_at(there: Sequence[Published], window: Interval, grace: timedelta) -> datetime:
    """When the last day was published that a window waits for."""
    waited = window if _covers(there, window) else Interval(window.start, window.end + grace)
    return max(published.at for published in there if published.interval.overlaps(waited))


def _newest_whole(there: Sequence[Published], window: str, *, until: datetime | None = None) -> Interval | None:
    """The newest UTC day, week (from Monday) or month that is published completely and ends by ``until``."""
    end = max((published.interval.end for published in there), default=None)
    start = min((published.interval.start for published in there), default=None)
    if end is None or start is None:
        return None
    candidate = last_window(min(end, until) if until is not None else end, window)
    while candidate.start >= start:
        if _covers(there, candidate):
            return candidate
        candidate = last_window(candidate.start, window)
    return None


# --- the ledger ------------------------------------------------------------------------------------------------------


def _outbox(known: Known) -> Iterator[Finding]:
    if known.oldest_waiting is not None and known.now - known.oldest_waiting > STRANDED:
        yield Finding("outbox/waiting", of_operation.alerts_waiting(EVERYBODY, count=known.waiting, since=known.oldest_waiting))


def _decisions(known: Known) -> Iterator[Finding]:
    if known.altered:
        yield Finding("decisions/altered", of_operation.decisions_altered(EVERYBODY, problems=known.altered))
