"""Attempts that are killed, put to sleep or met by others while they publish: real processes, real signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import wraps
from inspect import getattr_static
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from perennial.core.errors import Superseded
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake.catalog import Catalog
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from tests.faults.signals import send_to_itself, wait_until_stopped

MODEL = "flight_delay"
DAY = Interval.day("2013-04-01")
NEXT_DAY = Interval.day("2013-04-02")
TWO_DAYS = Interval.of("2013-04-01", "2013-04-03")

MOMENT = pa.timestamp("us", tz="UTC")
HOURLY = pa.schema([("hour", MOMENT), ("source", pa.string()), ("_known_at", MOMENT)])
FLEET = pa.schema([("tailnum", pa.string()), ("source", pa.string())])
TIMED = ("flights", "weather")

#: A process that starts with the modules loaded, as Airflow's workers do.
PROCESSES = get_context("forkserver")
SUPERSEDED = 3


def tables(interval: Interval, source: str) -> dict[str, TableWrite]:
    """Two tables with one row per hour, and one without event time, whose rows all name their source."""
    hours = [interval.start + timedelta(hours=n) for n in range(interval.length // timedelta(hours=1))]
    hourly = pa.table([hours, [source] * len(hours), hours], schema=HOURLY)
    fleet = pa.table([["N1", "N2"], [source] * 2], schema=FLEET)
    timed = {name: TableWrite(hourly.to_reader, "hour", HOURLY) for name in TIMED}
    return {**timed, "fleet": TableWrite(fleet.to_reader, None, FLEET)}


@dataclass(frozen=True)
class Fault:
    """A signal that an attempt sends itself at a step: ``before`` or ``after`` the nth call of a method."""

    step: str
    owner: type
    method: str
    when: str
    nth: int = 1
    signal: signal.Signals = signal.SIGKILL

    def set(self) -> None:
        method = getattr(self.owner, self.method)
        calls = 0

        @wraps(method)
        def faulty(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if self.when == "before" and calls == self.nth:
                send_to_itself(self.signal)
            result = method(*args, **kwargs)
            if self.when == "after" and calls == self.nth:
                send_to_itself(self.signal)
            return result

        static = isinstance(getattr_static(self.owner, self.method), staticmethod)
        setattr(self.owner, self.method, staticmethod(faulty) if static else faulty)


def run_attempt(settings: Settings, interval: Interval, run: str, order: int, fault: Fault | None, together: Any) -> None:
    """The body of an attempt's process."""
    if fault is not None:
        fault.set()
    ledger = Ledger(settings.database_url)
    lake = Lake(settings, ledger)
    if together is not None:
        together.wait(60)
    try:
        lake.publish(
            model=MODEL, dataset="tables", interval=interval, tables=tables(interval, run), order=order, run_id=run, inputs={}
        )
    except Superseded:
        os._exit(SUPERSEDED)


@dataclass
class House:
    """A deployment whose attempts are processes."""

    settings: Settings
    ledger: Ledger
    lake: Lake

    def order(self, interval: Interval, run: str) -> int:
        return self.ledger.next_order(MODEL, "tables", interval, run)

    def start(self, interval: Interval, run: str, fault: Fault | None = None, together: Any = None) -> BaseProcess:
        arguments = (self.settings, interval, run, self.order(interval, run), fault, together)
        process = PROCESSES.Process(target=run_attempt, args=arguments, daemon=True)
        process.start()
        return process

    def publish(self, interval: Interval, run: str) -> Publication:
        return self.lake.publish(
            model=MODEL, dataset="tables", interval=interval, tables=tables(interval, run), order=self.order(interval, run),
            run_id=run, inputs={},
        )  # fmt: skip

    def sources(self) -> dict[Any, str]:
        """What readers see: by day, and for the fleet, the run that all its rows come from. Fails unless each day has each
        hour once in each of its tables, from one run."""
        published = self.ledger.published(MODEL, "tables")
        if published is None:
            return {}
        seen: dict[Any, str] = {}
        by_table: list[dict[date, tuple[list[datetime], set[str]]]] = []
        for name in TIMED:
            days: dict[date, tuple[list[datetime], set[str]]] = {}
            for row in self.lake.scan(MODEL, name, published.snapshots[name]).read_all().to_pylist():
                hours, sources = days.setdefault(row["hour"].date(), ([], set()))
                hours.append(row["hour"])
                sources.add(row["source"])
            by_table.append({day: (sorted(hours), sources) for day, (hours, sources) in days.items()})
        assert by_table[0] == by_table[1]
        for day, (hours, sources) in by_table[0].items():
            assert hours == [Interval.day(day).start + timedelta(hours=n) for n in range(24)]
            (seen[day],) = sources
        fleet = self.lake.scan(MODEL, "fleet", published.snapshots["fleet"]).read_all()
        assert fleet["tailnum"].to_pylist() == ["N1", "N2"]
        (seen["fleet"],) = set(fleet["source"].to_pylist())
        return seen

    def maintain(self) -> None:
        """All of it, as if nothing were young; what one step lets go, the next removes."""
        soon = datetime.now(UTC) + timedelta(hours=1)
        self.lake.compact(MODEL, many=2)
        self.lake.remove_orphans(MODEL, soon)
        self.lake.expire(MODEL, soon)
        self.lake.remove_orphans(MODEL, soon)

    def leftovers(self) -> set[str]:
        """Refs that are neither main nor the beginning, and data files that no reader opens."""
        published = self.ledger.published(MODEL, "tables")
        assert published is not None
        catalog = Catalog(self.settings.catalog_url, self.settings.warehouse)
        found: set[str] = set()
        for name, snapshot in published.snapshots.items():
            table = catalog.load(MODEL, name)
            found |= set(table.metadata.refs) - {"main", "empty"}
            opened = {task.file.file_path.removeprefix("file://") for task in table.scan(snapshot_id=snapshot).plan_files()}
            found |= {str(path) for path in Path(self.settings.warehouse).rglob(f"*/{name}/data/*")} - opened
        return found


def make_house(settings: Settings) -> House:
    PROCESSES.set_forkserver_preload(["perennial.lake.publish", "pytest"])
    ledger = Ledger(settings.database_url)
    ledger.migrate()
    return House(settings, ledger, Lake(settings, ledger))


@pytest.fixture
def house(settings: Settings) -> House:
    return make_house(settings)


@pytest.fixture
def house_on_each_database(settings_on_each_database: Settings) -> House:
    return make_house(settings_on_each_database)


@pytest.fixture
def asleep() -> Iterator[list[BaseProcess]]:
    """Processes to be ended whatever happens to the test."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


# --- killed ----------------------------------------------------------------------------------------------------------

BEFORE_THE_LEDGER = [
    Fault("after the claim", Ledger, "claim", "after"),
    Fault("between the files of two tables", Catalog, "write", "after"),
    Fault("after all files", Catalog, "write", "after", 3),
    Fault("while a branch is made", SqlCatalog, "_write_metadata", "after"),
    Fault("between the branches of two tables", Catalog, "stage", "after"),
    Fault("before the ledger's transaction", Ledger, "commit", "before"),
    Fault("within the ledger's transaction", Ledger, "_move", "after"),
]
AFTER_THE_LEDGER = [
    Fault("after the ledger's transaction", Ledger, "commit", "after"),
    Fault("while main follows", SqlCatalog, "_write_metadata", "after", 4),
    Fault("between the mains of two tables", Lake, "_tidy", "after"),
]
FIRST_TOUCH = [
    Fault("while a table is created", SqlCatalog, "_write_metadata", "after"),
    Fault("before a table's history begins", Catalog, "_create", "after"),
    Fault("after the first table", Catalog, "ensure", "after"),
]


def check_killed_attempt(house: House, fault: Fault, published: bool) -> None:
    house.publish(DAY, "before")
    victim = house.start(DAY, "killed", fault)
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    now = "killed" if published else "before"
    day, next_day = DAY.start.date(), NEXT_DAY.start.date()
    assert house.sources() == {day: now, "fleet": now}
    # The next one that publishes does not take along what it has left.
    house.publish(NEXT_DAY, "other")
    assert house.sources() == {day: now, next_day: "other", "fleet": "other"}
    house.publish(DAY, "killed")
    after = {day: "killed", next_day: "other", "fleet": "other"}
    assert house.sources() == after
    house.maintain()
    assert house.sources() == after
    assert house.leftovers() == set()


@pytest.mark.parametrize("fault", BEFORE_THE_LEDGER, ids=lambda fault: fault.step)
def test_attempt_killed_before_the_ledger_has_published_nothing_and_its_retry_everything(house: House, fault: Fault) -> None:
    check_killed_attempt(house, fault, published=False)


@pytest.mark.parametrize("fault", AFTER_THE_LEDGER, ids=lambda fault: fault.step)
def test_attempt_killed_after_the_ledger_has_published_everything_and_its_retry_the_same(house: House, fault: Fault) -> None:
    check_killed_attempt(house, fault, published=True)


def test_attempt_killed_within_a_transaction_on_postgresql_has_published_nothing(settings: Settings, postgres: str) -> None:
    house = make_house(settings.model_copy(update={"database_url": postgres, "catalog_url": postgres}))
    check_killed_attempt(house, BEFORE_THE_LEDGER[-1], published=False)


@pytest.mark.parametrize("fault", FIRST_TOUCH, ids=lambda fault: fault.step)
def test_table_whose_creation_was_cut_short_is_usable(house: House, fault: Fault) -> None:
    victim = house.start(DAY, "killed", fault)
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    assert house.sources() == {}
    house.publish(DAY, "killed")
    assert house.sources() == {DAY.start.date(): "killed", "fleet": "killed"}


# --- asleep ----------------------------------------------------------------------------------------------------------


def wake(process: BaseProcess) -> int | None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    return process.exitcode


ASLEEP = [
    Fault("before it branches", Catalog, "stage", "before", signal=signal.SIGSTOP),
    Fault("before the ledger's transaction", Ledger, "commit", "before", signal=signal.SIGSTOP),
]


@pytest.mark.parametrize("fault", ASLEEP, ids=lambda fault: fault.step)
def test_attempt_that_slept_through_its_retry_publishes_nothing(
    house_on_each_database: House, asleep: list[BaseProcess], fault: Fault
) -> None:
    house = house_on_each_database
    asleep.append(house.start(DAY, "slow", fault))
    wait_until_stopped(asleep[0])
    retry = house.publish(DAY, "slow")
    assert wake(asleep[0]) == SUPERSEDED
    assert house.ledger.published(MODEL, "tables") == retry
    assert house.sources() == {DAY.start.date(): "slow", "fleet": "slow"}
    house.maintain()
    assert house.sources() == {DAY.start.date(): "slow", "fleet": "slow"}
    assert house.leftovers() == set()


def test_attempt_that_slept_through_a_later_run_publishes_nothing(house: House, asleep: list[BaseProcess]) -> None:
    asleep.append(house.start(TWO_DAYS, "slow", ASLEEP[1]))
    wait_until_stopped(asleep[0])
    house.publish(NEXT_DAY, "later")
    assert wake(asleep[0]) == SUPERSEDED
    assert house.sources() == {NEXT_DAY.start.date(): "later", "fleet": "later"}


def test_attempt_that_slept_through_a_publication_elsewhere_goes_on_from_there(
    house_on_each_database: House, asleep: list[BaseProcess]
) -> None:
    house = house_on_each_database
    asleep.append(house.start(DAY, "slow", ASLEEP[1]))
    wait_until_stopped(asleep[0])
    house.publish(NEXT_DAY, "other")
    assert wake(asleep[0]) == 0
    assert house.sources() == {DAY.start.date(): "slow", NEXT_DAY.start.date(): "other", "fleet": "other"}
    assert [p.run_id for p in house.ledger.publications(MODEL, "tables")] == ["other", "slow"]


def test_attempt_that_slept_until_its_files_were_removed_publishes_nothing(house: House, asleep: list[BaseProcess]) -> None:
    house.publish(DAY, "before")
    asleep.append(house.start(DAY, "slow", ASLEEP[1]))
    wait_until_stopped(asleep[0])
    house.maintain()
    assert house.leftovers() == set()
    assert wake(asleep[0]) == SUPERSEDED
    assert house.sources() == {DAY.start.date(): "before", "fleet": "before"}


# --- together --------------------------------------------------------------------------------------------------------


def test_processes_that_first_touch_the_lake_together_all_publish(house_on_each_database: House) -> None:
    house = house_on_each_database
    days = [Interval.day(DAY.start + timedelta(days=n)) for n in range(4)]
    together = PROCESSES.Barrier(len(days) + 1)
    processes = [house.start(day, f"run-{n}", together=together) for n, day in enumerate(days)]
    # One more run of a day that another publishes at the same time: it started last, so it is the one that stays.
    processes.append(house.start(days[0], "again", together=together))
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes[1:]] == [0] * len(days)
    assert processes[0].exitcode in (0, SUPERSEDED)
    expected: dict[date | str, str] = {day.start.date(): f"run-{n}" for n, day in enumerate(days)}
    assert house.sources() == {**expected, days[0].start.date(): "again", "fleet": "run-3"}
