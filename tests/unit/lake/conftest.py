"""A publisher with a lake and a ledger of its own."""

from __future__ import annotations

import pytest

from perennial.core.settings import Settings
from tests.unit.lake.publisher import Publisher, publisher_with


@pytest.fixture
def publisher(settings: Settings) -> Publisher:
    return publisher_with(settings)


@pytest.fixture
def publisher_on_each_database(settings_on_each_database: Settings) -> Publisher:
    return publisher_with(settings_on_each_database)
