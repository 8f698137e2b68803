"""A model trained by hand, on rows whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.core.intervals import Interval
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

PERIOD = Interval(synthetic.START, synthetic.START + timedelta(days=25))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Boosters on a few rows; with more threads than free cores they would wait for each other most of the time."""
    with threadpool_limits(1):
        yield


def publish(place: Path, task: str = "binary_classification", **replaced: str) -> World:
    """A deployment in which the tables of :data:`PERIOD` are published."""
    world = make_world(place, synthetic.deployment(place), task, **replaced)
    synthetic.publish_tables(world.lake, world.ledger, synthetic.make_rows(25), PERIOD)
    return world


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Its one version was trained by the command line, and is champion."""
    world = publish(tmp_path_factory.mktemp("trained"))
    with threadpool_limits(1):
        assert by_hand.train(world.settings, "toy", PERIOD.end, "the first one") == "toy version 1 is champion"
    return world
