"""The champion gets newer rows, and what is held back is released, by real Airflow runs in the real stack."""

from __future__ import annotations

from typing import Any

import pytest

from perennial.core.intervals import Interval
from perennial.stack.airflow_api import DagRun
from tests.living import FRESH, PATIENCE, Living

pytestmark = pytest.mark.stack

QUIET = {"announce_scoring": False, "announce_monitoring": False, "announce_training": False}


def run(living: Living, stage: str, conf: dict[str, Any]) -> DagRun:
    living.api.unpause(f"{FRESH}.{stage}")
    started = living.api.trigger(f"{FRESH}.{stage}", conf=conf)
    return living.api.wait(started, patience=PATIENCE, check=living.stack.check)


def states(living: Living, of: DagRun) -> dict[str, str]:
    return {task.task_id: str(task.state) for task in living.api.task_instances(of)}


def test_a_champion_is_refreshed_and_what_is_held_back_is_released(living: Living) -> None:
    ledger, registry = living.deployment.ledger, living.deployment.registry
    assert run(living, "ingest", {"start": "2024-01-01", "end": "2024-01-17", **QUIET}).state == "success"
    nothing = run(living, "refresh", {"as_of": "2024-01-17"})
    assert set(states(living, nothing).values()) == {"skipped"}, "there is no champion to refresh"
    assert run(living, "train", {"as_of": "2024-01-17"}).state == "success"
    assert registry.champion(FRESH) == 1
    assert run(living, "ingest", {"start": "2024-01-17", "end": "2024-01-20", **QUIET}).state == "success"

    assert run(living, "refresh", {"as_of": "2024-01-20"}).state == "success"

    assert registry.champion(FRESH) == 2
    record = ledger.version(FRESH, 2)
    assert record is not None
    assert record.is_refresh
    assert record.learned_from.endswith("2024-01-20")
    assert ledger.promotions(FRESH)[-1].action == "refresh"

    days = Interval.of("2024-01-17", "2024-01-20")
    ledger.hold(FRESH, "data", days, version=2, reasons=["the labels are inverted"], run_id="test")
    released = run(living, "release", {"start": "2024-01-17", "end": "2024-01-20", "reason": "they are right"})
    assert states(living, released) == {"release": "success"}
    assert ledger.withheld(FRESH) == []
    assert ledger.holds(FRESH)[0].release_reason == "they are right"
    assert states(living, run(living, "release", {"refreshes": True, "reason": "again"})) == {"release": "skipped"}
