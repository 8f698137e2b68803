"""A real scorer on a free port of this machine, for models that are trained on a few rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from perennial.serving.service import Scorer, ServeSettings
from tests.unit import synthetic
from tests.unit.monitored import World, make_world


@contextmanager
def running(world: World, **given: Any) -> Iterator[tuple[Scorer, httpx.Client]]:
    """A scorer of a deployment, and a client of it."""
    # A busy machine takes longer than the default.
    scorer = Scorer(world.deployment, ServeSettings(**{"port": 0, "deadline": 60, **given}))
    thread = threading.Thread(target=scorer.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not scorer.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with httpx.Client(base_url=f"http://127.0.0.1:{scorer.port}", trust_env=False, timeout=30) as client:
            yield scorer, client
    finally:
        scorer.stop()
        thread.join(30)
        assert not thread.is_alive()


def champion_of(place: Path, task: str = "binary_classification") -> World:
    """A deployment whose model has a champion."""
    world = make_world(place, synthetic.deployment(place), task)
    world.promote(world.register())
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return champion_of(tmp_path)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """A deployment for each task, which tests do not change."""
    tasks = ("binary_classification", "multiclass_classification", "regression")
    return {task: champion_of(tmp_path_factory.mktemp(task), task) for task in tasks}


@pytest.fixture(scope="session")
def clients(worlds: dict[str, World]) -> Iterator[dict[str, httpx.Client]]:
    """A client of a running scorer for each task."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield {task: stack.enter_context(running(world))[1] for task, world in worlds.items()}
