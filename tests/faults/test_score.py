"""Scoring that is killed or put to sleep at any step leaves the predictions of one version, and at last of the right one."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from perennial.core import bulk
from perennial.core.errors import Superseded
from perennial.core.settings import Settings
from perennial.ledger.store import Ledger
from perennial.model.artifacts import LoadedModel
from perennial.scoring.sink import PredictionSink
from tests.faults.signals import processes, trap, wait_until_stopped
from tests.unit.monitored import World, make_world, open_world

#: What scoring does, in order: which function, and whether the trap lies before or behind it.
STEPS = {
    "while it predicts": (LoadedModel, "predict", "before"),
    "before the ledger commits": (Ledger, "commit", "before"),
    "after the ledger commits": (Ledger, "commit", "after"),
    "before rows are staged": (PredictionSink, "_stage", "before"),
    "when rows are staged": (PredictionSink, "_stage", "after"),
    "before rows are inserted": (PredictionSink, "_replace", "before"),
    "before rows are swapped": (PredictionSink, "_swap", "before"),
    "when rows are swapped": (PredictionSink, "_swap", "after"),
    "when all is done": (PredictionSink, "write", "after"),
}
_SUPERSEDED = 3
_PATIENCE = 60


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return make_world(tmp_path, settings)


@pytest.fixture
def on_postgres(tmp_path: Path, settings: Settings, postgres: str) -> World:
    """A world whose consumers read from PostgreSQL."""
    return make_world(tmp_path, settings.model_copy(update={"predictions_url": postgres}))


def _score(place: Path, settings: Settings, version: int, step: str, signal_number: int, idle_limit: Any) -> None:
    """In a child: score, and send itself a signal at the step."""
    trap(*STEPS[step], signal_number)
    if idle_limit is not None:
        bulk.IDLE_LIMIT = idle_limit
    try:
        open_world(place, settings).score(version, run_id="slow")
    except Superseded:
        sys.exit(_SUPERSEDED)


def start(
    children: list[BaseProcess], place: Path, world: World, version: int, step: str, number: int, idle_limit: Any = None
) -> BaseProcess:
    child = processes.Process(target=_score, args=(place, world.settings, version, step, number, idle_limit))
    child.start()
    children.append(child)
    return child


def versions(rows: list[dict[str, Any]]) -> set[int]:
    """The versions that predicted, if every entity has one prediction."""
    assert len(rows) == len({row["visit"] for row in rows}) == 60
    return {row["version"] for row in rows}


def kill_and_retry(step: str, world: World, place: Path, children: list[BaseProcess]) -> None:
    world.publish()
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    world.score(old)
    child = start(children, place, world, new, step, signal.SIGKILL)
    child.join(_PATIENCE)
    assert child.exitcode == -signal.SIGKILL
    # Between the two, the lake may be ahead of the predictions database; neither ever holds a mixture.
    assert versions(world.predictions()) in ({old}, {new})
    assert versions(world.sink()) in ({old}, {new})
    world.score(new, run_id="slow")
    assert versions(world.predictions()) == versions(world.sink()) == {new}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_one_version_and_the_retry_finishes(
    step: str, world: World, tmp_path: Path, children: list[BaseProcess]
) -> None:
    kill_and_retry(step, world, tmp_path, children)


@pytest.mark.parametrize("step", ["when rows are staged", "before rows are swapped", "when rows are swapped"])
def test_a_kill_while_postgresql_is_written_leaves_one_version_and_the_retry_finishes(
    step: str, on_postgres: World, tmp_path: Path, children: list[BaseProcess]
) -> None:
    kill_and_retry(step, on_postgres, tmp_path, children)


@pytest.mark.parametrize("step", ["while it predicts", "before rows are staged", "before the ledger commits"])
def test_a_sleeper_that_was_overtaken_publishes_nothing(
    step: str, world: World, tmp_path: Path, children: list[BaseProcess]
) -> None:
    world.publish()
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    sleeper = start(children, tmp_path, world, old, step, signal.SIGSTOP)
    wait_until_stopped(sleeper)
    world.score(new, run_id="quick")
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    sleeper.join(_PATIENCE)
    assert sleeper.exitcode == _SUPERSEDED
    assert versions(world.predictions()) == versions(world.sink()) == {new}


@pytest.mark.parametrize("step", ["after the ledger commits", "before rows are inserted"])
def test_a_sleeper_that_had_published_does_not_bring_old_rows_back(
    step: str, world: World, tmp_path: Path, children: list[BaseProcess]
) -> None:
    world.publish()
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    sleeper = start(children, tmp_path, world, old, step, signal.SIGSTOP)
    wait_until_stopped(sleeper)
    assert versions(world.predictions()) == {old}
    world.score(new, run_id="quick")
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    sleeper.join(_PATIENCE)
    assert sleeper.exitcode == 0
    assert versions(world.predictions()) == versions(world.sink()) == {new}


@pytest.mark.parametrize("step", ["before rows are swapped", "when rows are swapped"])
def test_a_sleeper_that_holds_the_lock_is_cut_off_by_postgresql(
    step: str, on_postgres: World, tmp_path: Path, children: list[BaseProcess]
) -> None:
    world = on_postgres
    world.publish()
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    sleeper = start(children, tmp_path, world, old, step, signal.SIGSTOP, idle_limit=timedelta(seconds=1))
    wait_until_stopped(sleeper)
    world.score(new, run_id="quick")
    os.kill(sleeper.pid or 0, signal.SIGCONT)
    sleeper.join(_PATIENCE)
    # It brings the database in line with what is published by now.
    assert sleeper.exitcode == 0
    assert versions(world.predictions()) == versions(world.sink()) == {new}
