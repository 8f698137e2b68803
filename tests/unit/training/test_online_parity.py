"""A candidate is judged by the parity of its own definition of features, and only by what was measured lately."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from perennial.core.intervals import Interval
from perennial.evidence.parity import FEWEST, Parity
from perennial.ledger.store import Ledger
from perennial.training.online_parity import online_parity
from tests.unit.features.shop import shop


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.migrate()
    return ledger


def record(ledger: Ledger, definition: str, day: str, rows: int, equal: int) -> None:
    measured = Parity(bound=0.99, interval=day, rows=rows, equal=equal)
    ledger.record_parity(
        model="returns", definition=definition, interval=Interval.day(day), measured=measured, run_id="requests"
    )


def test_the_newest_day_with_enough_rows_of_the_own_definition_counts(tmp_path: Path, ledger: Ledger) -> None:
    folder = shop(tmp_path, online={"parity": 0.8})
    assert online_parity(shop(tmp_path / "other"), ledger) is None
    assert online_parity(folder, ledger) == Parity(bound=0.8)
    record(ledger, "0" * 64, "2013-04-09", 100, 0)
    assert online_parity(folder, ledger) == Parity(bound=0.8)

    record(ledger, folder.features_digest, "2013-04-05", 100, 50)
    record(ledger, folder.features_digest, "2013-04-06", 100, 90)
    record(ledger, folder.features_digest, "2013-04-07", FEWEST - 1, 0)

    assert online_parity(folder, ledger) == Parity(bound=0.8, interval="2013-04-06", rows=100, equal=90)


def test_what_was_measured_long_ago_does_not_count(tmp_path: Path, ledger: Ledger) -> None:
    folder = shop(tmp_path, online={})
    record(ledger, folder.features_digest, "2013-04-06", 100, 0)
    change(tmp_path, "recorded_at", (datetime.now(UTC) - timedelta(days=31)).replace(tzinfo=None))
    assert online_parity(folder, ledger) == Parity(bound=0.99)


def test_a_record_that_cannot_be_read_is_told_to_the_gate(tmp_path: Path, ledger: Ledger) -> None:
    folder = shop(tmp_path, online={})
    record(ledger, folder.features_digest, "2013-04-06", 100, 100)
    change(tmp_path, "measured", "{torn")
    found = online_parity(folder, ledger)
    assert found is not None
    assert found.damaged is not None


def change(tmp_path: Path, column: str, value: object) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE perennial_parities SET {column} = :value"), {"value": value})
