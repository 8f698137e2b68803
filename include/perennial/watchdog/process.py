"""The watchdog: a separate process that checks Airflow and the ledger every half minute and reports what is wrong.

It calls Airflow's REST API as a read-only user, and writes its findings into the ledger's outbox. While the ledger does not
answer it waits, and reports that afterwards.

Neighbours: :mod:`perennial.watchdog.rules` decides what is wrong, :mod:`perennial.watchdog.figures` shows figures to
Prometheus. ``perennial watch`` runs this, beside the embedded stack and as a service of the deployed one.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from perennial.alerts import of_operation
from perennial.alerts.alert import EVERYBODY, Alert
from perennial.alerts.outbox import Backlog
from perennial.core.errors import PerennialError, SettingsError, SpecError, StackError
from perennial.core.intervals import Interval, merged
from perennial.core.settings import Settings, settings_of
from perennial.ledger.coverage import Waiting, label_delay
from perennial.ledger.records import Overview, Publication, VersionRecord
from perennial.ledger.store import Ledger
from perennial.spec.commit import FOLLOWED_FILE
from perennial.spec.folder import THRESHOLDS_FILE, model_folders, read_model
from perennial.spec.model import ModelSpec
from perennial.stack.airflow_api import AirflowApi, DagRun
from perennial.watchdog.figures import Exhibition, Figures, Past, trained_until
from perennial.watchdog.rules import (
    RESTART,
    WAITING,
    AirflowState,
    FailedTask,
    Known,
    Look,
    ModelState,
    OpenRun,
    Published,
    ReigningChampion,
    confirm,
    expected,
    look,
    open_gaps,
)

log = logging.getLogger(__name__)


#: The watchdog's user in Airflow, who may only read.
USER = "watchdog"

#: Not done at each look, but at this interval: reading which DAGs are paused, and sending overdue alerts.
SELDOM = timedelta(minutes=5)

#: How often the record of decisions is checked: ten thousand entries take seconds.
CHECKED = timedelta(hours=1)

#: How far back the first look goes, and by how much each look overlaps with the previous one.
FIRST = timedelta(days=1)
OVERLAP = timedelta(minutes=10)

#: After this long without the ledger the process exits. Compose and the embedded stack restart it.
GIVE_UP = timedelta(minutes=10)

#: Longest time of sending, in seconds.
_SENDING = 120

#: Publications kept per dataset: two months of days, and some that were published again.
_KEPT = 100

#: Publications that are read again at each look: one with a lower number may become visible after one with a higher number.
_AGAIN = 100

#: Publications per query.
_PAGE = 1000

#: Most versions of a model that are looked through for its newest training and its newest refresh.
_LOOKED_BACK = 60

#: Most runs whose tasks are read in one look, with one call each; and the age from which an open run's tasks are read.
_LOOKED_INTO = 20
_OLD = timedelta(hours=1)

#: The components of Airflow that are watched.
COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")

#: What the watchdog's subjects begin with in the outbox.
_TOPIC = "watch"


class WatchSettings(BaseModel):
    """The watchdog's settings, from the environment.

    Attributes:
        airflow_url: of Airflow's REST API.
        password: of the user ``watchdog`` there.
        every: seconds from one look to the next.
        host, port: where metrics and health are shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    airflow_url: str = Field(pattern=r"^https?://[^\s@]+$")
    password: str = Field(min_length=1)
    every: float = Field(default=30, gt=0, le=3600)
    host: str = "127.0.0.1"
    port: int = Field(default=9464, ge=0, le=65535)


_VARIABLES = {
    "airflow_url": "PERENNIAL_AIRFLOW_URL",
    "password": "AIRFLOW_WATCHDOG_PASSWORD",
    "every": "PERENNIAL_WATCH_EVERY",
    "host": "PERENNIAL_WATCH_HOST",
    "port": "PERENNIAL_WATCH_PORT",
}


def read_watch_settings(environment: Mapping[str, str]) -> WatchSettings:
    """The watchdog's settings.

    Raises:
        SettingsError: a variable is missing or unusable; the message names it and quotes no value.
    """
    return settings_of(WatchSettings, _VARIABLES, environment, who="the watchdog")


class Watchdog:
    """The watchdog.

    Args:
        settings: of the deployment: where models and ledger are.
        given: of the watchdog.
        send: sends overdue alerts; by default a separate process does.

    Raises:
        SettingsError: its port is taken.
    """

    def __init__(self, settings: Settings, given: WatchSettings, *, send: Callable[[], None] | None = None) -> None:
        self._given = given
        self._send = send or _send
        self._sent_at: datetime | None = None
        self._ledger = Ledger(settings.database_url, settings.state)
        self._altered: list[str] = []
        self._checked_at: datetime | None = None
        self._airflow = _Airflow(AirflowApi(given.airflow_url, USER, given.password, patience=20))
        self._models = settings.models
        self._folders = _Folders(settings.models)
        self._past = _Past()
        self._versions = _Versions()
        self._since: dict[str, datetime] = {}
        self._told: set[str] = set()
        self._ledger_lost_at: datetime | None = None
        self._stopping = threading.Event()
        try:
            self._exhibition = Exhibition(given.host, given.port, fresh=3 * given.every + _SENDING)
        except OSError as error:
            raise SettingsError(
                f"the watchdog cannot show metrics on {given.host}:{given.port}: {error.strerror}; set another port with "
                f"{_VARIABLES['port']}"
            ) from error

    @property
    def port(self) -> int:
        """Where metrics and health are shown."""
        return self._exhibition.port

    def run(self) -> None:
        """Look repeatedly until :meth:`stop` is called.

        Raises:
            StackError: the ledger has not answered for ten minutes.
        """
        log.info("checking %s every %g s; metrics on port %d", self._given.airflow_url, self._given.every, self.port)
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                self.look(datetime.now(UTC))
                self._stopping.wait(max(0.0, self._given.every - (time.monotonic() - began)))
        finally:
            self._exhibition.close()

    def stop(self) -> None:
        """End after the current look."""
        self._stopping.set()

    def look(self, now: datetime) -> None:
        """Look once, report what is wrong and what is over, and show figures.

        Raises:
            StackError: the ledger has not answered for ten minutes.
        """
        began = time.monotonic()
        specs, unreadable = self._folders.read()
        airflow = self._airflow.read(specs, now)
        overview, backlog, open_subjects = None, None, frozenset[str]()
        try:
            self._past.read(self._ledger)
            overview = self._ledger.overview(windows=1, alerts_since=now, publications=False, parities=True)
            backlog = self._backlog(now)
            self._check_decisions(now)
            known = Known(
                now=now,
                models={
                    name: self._past.state(spec, overview, self._versions.read(self._ledger, spec, overview))
                    for name, spec in specs.items()
                },
                airflow=airflow,
                silence=self._airflow.silence,
                paused=self._airflow.paused,
                waiting=backlog.count,
                oldest_waiting=backlog.since,
                unruled_since=self._ledger.unruled_since(),
                unreadable=unreadable,
                altered=self._altered,
                followed_at=_followed_at(self._models),
            )
            open_subjects = self._tell(look(known), now)
            self._ledger_answers(now)
        except (sa.exc.SQLAlchemyError, PerennialError) as error:
            self._ledger_is_silent(now, error)
        self._exhibition.show(
            Figures(
                looked_at=now,
                look_seconds=time.monotonic() - began,
                metrics={name: spec.primary_metric for name, spec in specs.items()},
                past=self._past.figures,
                missing=_missing_days(specs, self._past.figures, now),
                overview=overview,
                backlog=backlog,
                seconds=self._airflow.seconds,
                components={name: name not in airflow.components for name in COMPONENTS} if airflow else {},
                airflow=airflow is not None,
                incidents=Counter(subject.partition("/")[0] for subject in open_subjects),
            )
        )

    def _tell(self, found: Look, now: datetime) -> frozenset[str]:
        """Write what is new and what is over into the outbox. Returns the subjects that are open afterwards."""
        before = frozenset(subject.removeprefix(f"{_TOPIC}/") for subject in self._ledger.open_subjects(_TOPIC))
        told, over, self._since = confirm(found, self._since, before, now)
        happened = {finding.key for finding in told.values() if finding.key is not None}
        self._told &= happened
        if happened - self._told:
            # What a task's own callback has reported is not reported again, also if it has recovered since.
            self._told |= happened & {entry.key for entry in self._ledger.alerts(since=now - FIRST - OVERLAP)}
        for subject, finding in told.items():
            if finding.key is None:
                # An alert that grew has a key of its own: without one, nothing is recorded while its subject is open.
                key = f"{_TOPIC}/{subject}/{now.isoformat()}" if finding.again else None
                self._record(replace(finding.alert, subject=f"{_TOPIC}/{subject}"), key)
            elif finding.key not in self._told:
                self._record(finding.alert, finding.key)
        self._told |= happened
        for subject in over:
            self._ledger.resolve(f"{_TOPIC}/{subject}", "The watchdog no longer finds it.")
            log.info("%s is over", subject)
        return (before | {subject for subject, finding in told.items() if finding.key is None}) - over

    def _record(self, alert: Alert, key: str | None) -> None:
        if self._ledger.record_alert(alert, key):
            log.warning("%s", alert.title)

    def _backlog(self, now: datetime) -> Backlog:
        """What waits to be sent, after overdue alerts were sent."""
        backlog = self._ledger.outbox.backlog()
        overdue = backlog.since is not None and now - backlog.since > WAITING
        if overdue and (self._sent_at is None or now - self._sent_at >= SELDOM):
            self._sent_at = now
            self._send()
            backlog = self._ledger.outbox.backlog()
        return backlog

    def _check_decisions(self, now: datetime) -> None:
        if self._checked_at is None or now - self._checked_at >= CHECKED:
            self._altered, self._checked_at = self._ledger.check_decisions().problems, now

    def _ledger_answers(self, now: datetime) -> None:
        since, self._ledger_lost_at = self._ledger_lost_at, None
        if since is not None and now - since > RESTART:
            alert = of_operation.ledger_was_silent(EVERYBODY, since=since, until=now)
            self._ledger.record_alert(alert, f"{alert.kind}/{since.isoformat()}")

    def _ledger_is_silent(self, now: datetime, error: Exception) -> None:
        self._ledger_lost_at = self._ledger_lost_at or now
        # Its text may name the address.
        log.warning("the ledger does not answer: %s", type(error).__name__)
        if now - self._ledger_lost_at > GIVE_UP:
            raise StackError(f"the ledger has not answered since {self._ledger_lost_at.isoformat()}") from error


def _missing_days(specs: Mapping[str, ModelSpec], past: Past, now: datetime) -> dict[tuple[str, str], int]:
    """By model and table, how many days that were due have no rows of it."""
    found = {}
    for name, spec in specs.items():
        due = expected(spec.schedules.ingest, now - spec.watch.late)
        for table in spec.tables if due is not None else ():
            assert due is not None
            # A published day without rows is not missing if the table may have none.
            counts = [past.covered.get((name, table), []), past.published.get(name, [])]
            there = counts[spec.tables[table].checks.rows.min == 0]
            missing = open_gaps(there, due[1].end, spec.schedules) if there else []
            found[name, table] = sum(len(stretch.days()) for stretch in missing)
    return found


def _send() -> None:
    command = [sys.executable, "-m", "perennial.orchestration.stand_in"]
    try:
        subprocess.run(command, timeout=_SENDING, check=True, stdin=subprocess.DEVNULL)  # noqa: S603 - our own module
    except (OSError, subprocess.SubprocessError) as error:
        log.error("alerts are overdue and could not be sent: %s", type(error).__name__)


# --- what is read ----------------------------------------------------------------------------------------------------


class _Folders:
    """The model folders, read again when a file of theirs has changed."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._read: dict[str, tuple[tuple[int, ...], ModelSpec | SpecError]] = {}

    def read(self) -> tuple[dict[str, ModelSpec], dict[str, str]]:
        """The specs of sound folders without those of retired models, and what is wrong with each broken one."""
        found: dict[str, tuple[tuple[int, ...], ModelSpec | SpecError]] = {}
        try:
            folders = model_folders(self._models)
        except SpecError as error:
            return {}, dict.fromkeys(self._read, str(error))
        for folder in folders:
            stamp = tuple(_changed(folder / name) for name in ("model.yaml", "features.sql", "model.py", THRESHOLDS_FILE))
            before = self._read.get(folder.name)
            found[folder.name] = before if before is not None and before[0] == stamp else (stamp, _read_spec(folder))
        self._read = found
        specs = {name: spec for name, (_, spec) in found.items() if isinstance(spec, ModelSpec) and not spec.retired}
        return specs, {name: str(error) for name, (_, error) in found.items() if isinstance(error, SpecError)}


def _followed_at(models: Path) -> datetime | None:
    """When a service last followed the repository of the models, by a file beside their link (perennial.operations.follow)."""
    try:
        return datetime.fromtimestamp((models.parent / FOLLOWED_FILE).stat().st_mtime, UTC) if models.is_symlink() else None
    except OSError:
        return None


def _changed(file: Path) -> int:
    try:
        # Not the time of writing, which stays the same when the permission to read the file changes.
        return file.stat().st_ctime_ns
    except OSError:
        return 0


def _read_spec(folder: Path) -> ModelSpec | SpecError:
    try:
        return read_model(folder).spec
    except SpecError as error:
        return error


class _Airflow:
    """Reads Airflow, and remembers what it needs for the next look.

    Attributes:
        paused: by DAG id, whether the DAG is paused, as last read; None before.
        seconds: by DAG, how long its newest successful run took.
        silence: why Airflow did not answer the last time.
    """

    def __init__(self, api: AirflowApi) -> None:
        self.paused: dict[str, bool] | None = None
        self.seconds: dict[str, float] = {}
        self.silence = ""
        self._api = api
        self._paused_at: datetime | None = None
        self._since: datetime | None = None
        self._without_failed_task: dict[DagRun, bool] = {}

    def read(self, models: Collection[str], now: datetime) -> AirflowState | None:
        """Airflow's state now; None if it does not answer."""
        try:
            if self._paused_at is None or now - self._paused_at >= SELDOM:
                self.paused, self._paused_at = self._api.paused(), now
            since = self._since or now - FIRST
            state = AirflowState(
                components=self._api.unhealthy(),
                import_errors=self._api.import_errors(),
                open_runs=self._open_runs(now),
                **self._failures({*models, EVERYBODY}, since),
            )
            for run in self._api.runs_in(["success"], changed_since=since):
                self.seconds[run.dag_id] = run.seconds
        except StackError as error:
            self.silence = str(error)
            return None
        self._since = now - OVERLAP
        return state

    def _failures(self, ours: Collection[str], since: datetime) -> dict[str, Any]:
        runs = {(run.dag_id, run.run_id): run for run in self._api.runs_in(["failed"], changed_since=since)}
        runs = {key: run for key, run in runs.items() if key[0].partition(".")[0] in ours}
        tasks = []
        for task in self._api.failed_tasks(since):
            if task.dag_id.partition(".")[0] in ours:
                key = task.dag_id, task.run_id
                runs[key] = runs.get(key) or self._api.run(*key)
                tasks.append(FailedTask(task, runs[key]))
        told = {(failed.task.dag_id, failed.task.run_id) for failed in tasks}
        for run in [run for key, run in runs.items() if key not in told and run not in self._without_failed_task][
            :_LOOKED_INTO
        ]:
            self._without_failed_task[run] = not any(task.state == "failed" for task in self._api.task_instances(run))
        self._without_failed_task = {run: bare for run, bare in self._without_failed_task.items() if run in runs.values()}
        return {"failed_tasks": tasks, "failed_runs": [run for run, bare in self._without_failed_task.items() if bare]}

    def _open_runs(self, now: datetime) -> list[OpenRun]:
        """Runs that have been open for an hour; for running ones, whether they only wait for a person."""
        old = [run for run in self._api.runs_in(["running", "queued"]) if now - (run.started_at or run.queued_at or now) > _OLD]
        asking = {run.dag_id for run in [run for run in old if run.started_at][:_LOOKED_INTO] if self._asks(run)}
        # A run that is queued behind such a run waits for the same person.
        return [OpenRun(run, asks=run.dag_id in asking) for run in old]

    def _asks(self, run: DagRun) -> bool:
        states = {task.state for task in self._api.task_instances(run)}
        return "awaiting_input" in states and not states & {"running", "queued", "scheduled"}


class _Versions:
    """When each model was last trained, and when it was last refreshed. Each version is read once."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, Mapping[bool, datetime]]] = {}

    def read(self, ledger: Ledger, spec: ModelSpec, overview: Overview) -> Mapping[bool, datetime]:
        """When the newest refresh was registered (True), and the newest version that is none (False).

        The overview has the newest version alone, and with refreshes that is mostly one of them.
        """
        versions = overview.versions.get(spec.name, {})
        newest = max(versions, default=0)
        seen, before = self._seen.get(spec.name, (0, {}))
        wanted = 2 if spec.refreshes else 1
        found: dict[bool, datetime] = {}
        for number in range(newest, max(seen, newest - _LOOKED_BACK), -1):
            record: VersionRecord | None = versions.get(number) or ledger.version(spec.name, number)
            if record is not None:
                found.setdefault(record.is_refresh, record.created_at)
            if len(found) == wanted and False in found:
                break
        self._seen[spec.name] = newest, {**before, **found}
        return self._seen[spec.name][1]


class _Past:
    """All publications: the newest ones of each dataset, and totals of all.

    Attributes:
        figures: rows so far, and when each dataset was last published.
    """

    def __init__(self) -> None:
        self.figures = Past()
        self._newest: dict[tuple[str, str], list[Published]] = {}
        self._first: dict[str, datetime] = {}
        self._ever: dict[tuple[str, str], list[Interval]] = {}
        self._last = 0
        self._seen: set[int] = set()

    def read(self, ledger: Ledger) -> None:
        """Read what has been published since the last time."""
        number = max(0, self._last - _AGAIN)
        while page := ledger.publications_after(number, _PAGE):
            for publication in page:
                if publication.id not in self._seen:
                    self._add(publication)
            number = page[-1].id
            if len(page) < _PAGE:
                break
        self._last = max(self._last, number)
        self._seen = {seen for seen in self._seen if seen > self._last - _AGAIN}

    def _add(self, publication: Publication) -> None:
        self._seen.add(publication.id)
        self.figures.add(publication)
        if publication.dataset in ("tables", "features"):
            kept = publication.model, publication.dataset
            self._ever[kept] = merged([*self._ever.get(kept, ()), publication.interval])
        if publication.dataset == "tables":
            first = self._first.get(publication.model, publication.published_at)
            self._first[publication.model] = min(first, publication.published_at)
        newest = self._newest.setdefault((publication.model, publication.dataset), [])
        newest.append(
            Published(
                publication.interval,
                publication.published_at,
                sum(publication.rows.values()),
                publication.inputs.get("version"),
                publication.inputs.get("too_late", {}),
            )
        )
        if len(newest) > 2 * _KEPT:
            newest.sort(key=lambda published: published.interval.end)
            del newest[:-_KEPT]

    def state(self, spec: ModelSpec, overview: Overview, made_at: Mapping[bool, datetime]) -> ModelState:
        """A model's state in the ledger; ``made_at`` is that of :class:`_Versions`."""
        name = spec.name
        made, versions = overview.champions.get(name), overview.versions.get(name, {})
        verdicts, measured = overview.verdicts.get(name, []), overview.performances.get(name, [])
        refusal = overview.refusals.get(name)
        champion = None
        if made is not None and made.completed_at is not None:
            champion = ReigningChampion(
                made.version,
                made.completed_at,
                trained_until(overview, name),
                label_delay(spec.label, versions.get(made.version)),
            )
        return ModelState(
            spec=spec,
            tables=self._newest.get((name, "tables"), ()),
            features=self._newest.get((name, "features"), ()),
            predictions=self._newest.get((name, "predictions"), ()),
            first_published_at=self._first.get(name),
            tables_ever=self._ever.get((name, "tables"), ()),
            features_ever=self._ever.get((name, "features"), ()),
            awaited={
                table: [one.day for one in awaited]
                for table, awaited in self.figures.waiting.get(name, Waiting()).tables.items()
            },
            # Oldest first: the newest of a subject stays.
            told_at={
                entry.alert.subject.removeprefix(f"{_TOPIC}/models/{name}/"): entry.created_at
                for entry in overview.alerts.get(name, ())
                if entry.resolved_by is None and entry.alert.subject is not None
            },
            refused=[] if refusal is None else [refusal.interval],
            champion=champion,
            judged_until=max((verdict.interval.end for verdict in verdicts), default=None),
            measured_until=max((window.interval.end for window in measured), default=None),
            tried_at=made_at.get(False),
            refreshed_at=made_at.get(True),
            refreshes_stopped=any(hold.what == "refreshes" for hold in overview.holds.get(name, ())),
        )
