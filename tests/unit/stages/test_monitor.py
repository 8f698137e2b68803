"""What monitoring does about a window, from the measurement to the request for a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perennial.core.settings import Settings
from perennial.stages.monitor import Monitored, monitor
from perennial.stages.run import StageRun
from tests.unit.monitored import WEEK, World, make_world

#: What the training rows of a version told: two of five labels are true.
KNOWN = {"classes": {"window": {"false": 60, "true": 40}, "holdout": {}}}


def turn_around(pipeline: Any) -> None:
    """What was likely is unlikely."""
    pipeline[-1].coef_ = -pipeline[-1].coef_


def monitored(world: World, *, spoil: Any = None) -> Monitored:
    """Monitor a week of one champion, trained a day before."""
    world.publish(WEEK)
    version = world.register("2013-03-31", spoil=spoil, known=KNOWN)
    world.promote(version)
    world.score(version, WEEK)
    return monitor(StageRun(world.folder, world.deployment, "monitor", "toy.monitor/monitor"), WEEK, training_under_way=False)


def test_a_champion_that_does_harm_is_told_and_asks_for_a_training_after_one_week(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings)
    found = monitored(world, spoil=turn_around)
    assert found.verdict.details.severity == "critical"
    assert found.request is not None
    assert "performance: Retraining: the champion does harm: roc_auc of 2013-04-01--2013-04-08 is 0." in found.request.cause
    assert "What it will gain is not known" in found.request.cause
    (alert,) = (entry.alert for entry in world.ledger.alerts() if entry.alert.kind == "performance_fell")
    assert alert.severity == "critical"
    assert "the same answer for every row" in alert.title


def test_a_champion_that_is_good_asks_for_nothing(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings)
    found = monitored(world)
    assert (found.request, found.verdict.details.severity) == (None, "none")
