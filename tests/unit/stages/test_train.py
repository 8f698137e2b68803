"""A training leaves the same behind whether the DAG's tasks do its steps or a person at a terminal."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from perennial.cli import by_hand
from perennial.core.errors import PromotionRefused, StaleDecision
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.training import TrainingSet
from perennial.ledger.records import VersionRecord
from perennial.model.candidate import Fitted
from perennial.reports import releases
from perennial.stages import promote, train
from perennial.stages.run import StageRun
from tests.unit.monitored import World
from tests.unit.stages.conftest import PERIOD, publish


def as_handed_on(value: Any) -> Any:
    """What the next task gets of a task's result."""
    return json.loads(json.dumps(value.to_json()))


def train_as_the_dag_does(world: World, *, cause: str, actor: str) -> promote.Outcome:
    """Each step with a run of its own, and what the one before handed on."""

    def run() -> StageRun:
        return StageRun(world.deployment.model("toy"), world.deployment, "manual", "toy.train/manual")

    training_set = as_handed_on(train.build_training_set(run(), as_of=PERIOD.end))
    fitted = [
        as_handed_on(train.fit_candidate(run(), candidate, TrainingSet.from_json(training_set)))
        for candidate in world.folder.spec.candidates
    ]

    def candidates() -> list[Fitted]:
        return [Fitted.from_json(candidate) for candidate in fitted]

    evaluation = as_handed_on(train.evaluate_candidates(run(), TrainingSet.from_json(training_set), candidates()))
    decided = as_handed_on(
        train.decide_promotion(run(), TrainingSet.from_json(training_set), candidates(), Evaluation.from_json(evaluation))
    )
    return promote.promote_champion(run(), promote.Decided.from_json(decided), cause=cause, actor=actor)


def left_behind(world: World) -> dict[str, Any]:
    """What the ledger holds of the training, without what each run has of its own: names, times, speeds."""
    [version] = world.ledger.versions("toy")
    [promotion] = world.ledger.promotions("toy")
    return {
        "training": known(version, "training", {"run_id", "pin", "snapshots", "seconds", "model_id"}),
        "metrics": version.evaluation.candidate.metrics,
        "predictions": version.evaluation.candidate.predictions,
        "gates": [(result.gate, result.passed) for result in version.decision.results],
        "promotion": (
            promotion.version,
            promotion.previous,
            promotion.action,
            promotion.reason,
            promotion.completed_at is None,
        ),
        "evidence": sorted(promotion.evidence),
        "alerts": [(entry.alert.kind, entry.alert.title) for entry in world.ledger.alerts()],
        "pinned": len(world.lake.pins("toy")),
        "card": sorted(world.registry.run(version.mlflow_run_id).read_files("card")),
    }


def known(version: VersionRecord, part: str, own: set[str]) -> dict[str, Any]:
    return {name: value for name, value in asdict(version)[part].items() if name not in own}


def test_by_hand_and_step_by_step_leave_the_same_in_the_ledger(trained: World, tmp_path: Path) -> None:
    other = publish(tmp_path)
    outcome = train_as_the_dag_does(other, cause="the first one", actor="airflow:toy.train")

    assert (outcome.version, outcome.became) == (1, "champion")
    assert left_behind(other) == left_behind(trained)
    [by_a_person], [by_the_dag] = (world.ledger.promotions("toy") for world in (trained, other))
    assert by_a_person.actor == f"by hand: {getpass.getuser()}"
    assert by_the_dag.actor == "airflow:toy.train"
    assert by_a_person.reason == "the first one"


def test_a_version_that_wants_an_approval_waits_for_it_by_hand(tmp_path: Path) -> None:
    world = publish(tmp_path, approval="owner: testers => owner: testers\npromotion: approval")

    told = by_hand.train(world.settings, "toy", PERIOD.end)

    assert told.startswith("toy version 1 passed its gates and waits for an approval, which toy.train asks for in Airflow")
    assert "perennial promote toy 1 --override REASON" in told
    assert world.ledger.champion("toy") is None
    assert world.ledger.promotions("toy") == []
    with pytest.raises(PromotionRefused, match="nobody has approved it yet"):
        by_hand.promote(world.settings, "toy", 1, None)
    assert by_hand.promote(world.settings, "toy", 1, "I looked at it") == (
        "toy version 1 is champion (override: I looked at it)"
    )
    [made] = world.ledger.promotions("toy")
    assert made.evidence["overridden"] == "nobody has approved it yet"


def test_a_champion_that_changed_meanwhile_is_told_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = publish(tmp_path)
    rival = world.register()
    real = releases.publish_pages

    def slowly(*arguments: Any) -> None:
        real(*arguments)
        world.promote(rival)

    monkeypatch.setattr(releases, "publish_pages", slowly)
    with pytest.raises(StaleDecision, match="The evaluation of version 2 is stale, so it was not promoted: train again"):
        by_hand.train(world.settings, "toy", PERIOD.end)

    assert world.ledger.champion("toy") == rival
    assert [record.version for record in world.ledger.versions("toy")] == [rival, 2]
