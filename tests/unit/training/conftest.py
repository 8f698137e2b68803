"""Trainings of a few rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Boosters on a few rows; with more threads than free cores they would wait for each other most of the time."""
    with threadpool_limits(1):
        yield
