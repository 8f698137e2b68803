"""What is held back stays so until somebody releases it."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.core.intervals import Interval
from perennial.ledger.store import Ledger

WEEK, NEXT = Interval.of("2013-04-01", "2013-04-08"), Interval.of("2013-04-08", "2013-04-15")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.migrate()
    return ledger


def hold(ledger: Ledger, week: Interval, version: int = 3) -> None:
    ledger.hold("toy", "data", week, version=version, reasons=["the labels are inverted"], run_id="run")


def test_data_are_withheld_until_they_are_released(ledger: Ledger) -> None:
    hold(ledger, NEXT)
    hold(ledger, WEEK)
    assert ledger.withheld("toy") == [WEEK, NEXT]
    assert ledger.withheld("other") == []
    [released] = ledger.release("toy", "data", WEEK, actor="a person", reason="they are right")
    assert released.interval == WEEK
    assert ledger.withheld("toy") == [NEXT]
    [first, last] = ledger.holds("toy")
    assert (first.released_at, last.released_by, last.release_reason) == (None, "a person", "they are right")


def test_what_is_held_back_already_is_not_held_back_twice(ledger: Ledger) -> None:
    hold(ledger, WEEK)
    hold(ledger, WEEK, version=4)
    assert [one.version for one in ledger.holds("toy")] == [3]


def test_what_was_released_can_be_held_back_again(ledger: Ledger) -> None:
    hold(ledger, WEEK)
    ledger.release("toy", "data", None, actor="a person", reason="a try")
    hold(ledger, WEEK, version=4)
    assert ledger.withheld("toy") == [WEEK]
    assert ledger.release("toy", "data", NEXT, actor="a person", reason="of other days") == []


def test_a_run_that_is_repeated_does_not_hold_back_again_what_was_released(ledger: Ledger) -> None:
    hold(ledger, WEEK)
    ledger.release("toy", "data", None, actor="a person", reason="they are right")
    hold(ledger, WEEK)
    assert ledger.withheld("toy") == []


def test_a_version_that_replaces_the_champion_lets_refreshes_go_on(ledger: Ledger) -> None:
    ledger.hold("toy", "refreshes", WEEK, version=3, reasons=["harm"], run_id="run")
    stopped = ledger.stopped_refreshes("toy")
    assert stopped is not None
    assert stopped.reasons == ["harm"]
    made = ledger.intend_promotion(
        model="toy", version=4, expected=None, action="rollback", reason="back", actor="a person", run_id=None, evidence={}
    )
    ledger.complete_promotion(made.id)
    assert ledger.stopped_refreshes("toy") is not None
    made = ledger.intend_promotion(
        model="toy", version=5, expected=4, action="promote", reason="better", actor="gates", run_id=None, evidence={}
    )
    ledger.complete_promotion(made.id)
    assert ledger.stopped_refreshes("toy") is None
    # The refresh that stopped them is tried again, and then a later one does harm, too.
    ledger.hold("toy", "refreshes", WEEK, version=3, reasons=["harm"], run_id="run")
    assert ledger.stopped_refreshes("toy") is None
    ledger.hold("toy", "refreshes", NEXT, version=9, reasons=["harm again"], run_id="run")
    stopped = ledger.stopped_refreshes("toy")
    assert stopped is not None
    assert stopped.reasons == ["harm again"]
