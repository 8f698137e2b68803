"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import pytest


@pytest.fixture
def children() -> Iterator[list[BaseProcess]]:
    """Processes that a test has started; none of them outlives it."""
    started: list[BaseProcess] = []
    yield started
    for child in started:
        if child.is_alive():
            child.kill()
        child.join()
