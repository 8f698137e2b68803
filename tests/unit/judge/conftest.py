"""A deployment in which two versions were champion, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import synthetic
from tests.unit.monitored import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Version 1 was champion before version 2; both were made by runs of ``toy.train``."""
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    for seed in (5, 6):
        world.promote(world.register(seed=seed), run_id=f"promotion {seed}")
    return world
