"""A candidate is judged against the champion's recipe, fitted on the same rows, so that age decides nothing."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.evidence.evaluation import Contender
from perennial.ledger.records import VersionRecord
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList
from perennial.model.estimators import fit_estimator
from perennial.model.labels import labels_of
from perennial.reports import releases
from perennial.spec.folder import ModelFolder, read_model
from perennial.training.training_set import load_rows
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

DAYS = 34
#: As of this day version 1 was trained: on 14 days, judged on the five after them.
FIRST = synthetic.START + timedelta(days=19)
#: What version 1 has judged itself on is not yet, or no longer, the holdout.
SOON, LATER = FIRST + timedelta(days=3), FIRST + timedelta(days=10)
#: Quick, and passed by any candidate.
EASY = {
    "candidates": "search: {max_leaf_nodes: [4, 8]} => search: {max_leaf_nodes: [4]}",
    "training": "window: 20d, holdout: 5d => window: 14d, holdout: 5d",
    "gates": "gates: {min_rows: 50} => gates: {min_rows: 50, champion: {mode: not_worse, margin: 0.4}, operation: "
    "{latency: 60000}, robustness: {noise_drop: null, missing_drop: null}}",
}
ANOTHER = "max_iter: 30 => max_iter: 60"


def make_champion(place: Path, **replaced: str) -> World:
    world = make_world(place, synthetic.deployment(place), **EASY, **replaced)
    period = Interval(synthetic.START, synthetic.START + timedelta(days=DAYS))
    synthetic.publish_tables(world.lake, world.ledger, synthetic.make_rows(DAYS), period)
    assert by_hand.train(world.settings, "toy", FIRST) == "toy version 1 is champion"
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_champion(tmp_path)


def change(world: World, *, sql: str | None = None, **replaced: str) -> ModelFolder:
    """Change the model's folder."""
    folder = synthetic.write_folder(world.folder.path.parent, **EASY, **replaced)
    if sql is not None:
        (folder.path / "features.sql").write_text(sql)
    return read_model(folder.path)


def train(world: World, as_of: datetime) -> tuple[VersionRecord, Contender]:
    """Train a candidate. Its record, and the champion as it was compared with."""
    by_hand.train(world.settings, "toy", as_of)
    record = world.ledger.versions("toy")[-1]
    assert record.evaluation.champion is not None
    return record, record.evaluation.champion


def reason(record: VersionRecord) -> str:
    [found] = [result.reason for result in record.decision.results if result.gate == "champion"]
    return found


def lose_the_folder(world: World) -> None:
    """The files of version 1's folder are gone from MLflow."""
    record = world.ledger.version("toy", 1)
    assert record is not None
    [place] = world.settings.state.rglob(f"{record.mlflow_run_id}/artifacts/folder")
    shutil.rmtree(place)


def test_the_champions_recipe_learns_from_the_rows_of_the_candidate_and_meets_the_same_holdout(world: World) -> None:
    before = world.folder
    folder = change(world, another=ANOTHER)
    record, champion = train(world, SOON)

    # Its stored models, both older, have learned from a part of this holdout.
    training_set = record.training.training_set
    assert champion.trained_on == training_set.window == record.evaluation.candidate.trained_on
    rows, holdout = (load_rows(folder, world.lake, training_set, part) for part in ("window", "holdout"))
    takes = FeatureList.of(before.spec)
    estimator = fit_estimator(before, "boosting", {"max_iter": 30, "max_leaf_nodes": 4}, takes.frame(rows), labels_of(rows))
    expected = artifacts.predict("binary_classification", estimator, takes.frame(holdout))
    assert champion.predictions is not None
    assert champion.predictions.digest == expected.digest
    assert "untouched_holdout" not in record.decision.refused_by
    assert champion.remarks == [
        f"the recipe of version 1 was fitted on {training_set.window}, which ends where the candidate's rows end, so that age "
        "decides nothing"
    ]
    assert champion.remarks[0] in reason(record)
    assert champion.remarks[0] in (world.registry._version("toy", 2).description or "")
    card = world.registry.run(record.mlflow_run_id).read_files("card")
    assert any(b"age decides nothing" in text for text in card.values())
    assert world.ledger.champion("toy") == 2


def test_a_recipe_with_other_features_learns_from_those_of_its_own_folder(world: World) -> None:
    change(world, sql="SELECT visit, x, kind FROM entities\n", feature="numeric: [x, noise] => numeric: [x]")
    record, champion = train(world, LATER)
    assert champion.recipe == world.ledger.versions("toy")[0].training.recipe != record.evaluation.candidate.recipe
    assert champion.error is None
    assert champion.trained_on == record.training.window
    assert len(champion.remarks) == 2
    assert world.ledger.champion("toy") == 2


def test_a_recipe_learns_the_label_of_its_own_folder(world: World) -> None:
    change(world, label="y > 0.5 => y <= 0.5")
    record, champion = train(world, LATER)
    assert champion.metrics["roc_auc"] < 0.5 < record.evaluation.candidate.metrics["roc_auc"]
    assert world.ledger.champion("toy") == 2


def test_the_champions_own_recipe_is_refused_and_nobody_is_alerted(world: World) -> None:
    record, champion = train(world, LATER)
    assert record.decision.same_recipe
    assert champion.metrics == record.evaluation.candidate.metrics
    assert "A refresh brings the same recipe newer rows (schedules.refresh)" in reason(record)
    assert world.ledger.champion("toy") == 1
    assert [entry.alert.kind for entry in world.ledger.alerts()] == ["promoted"]
    second = world.registry._version("toy", 2)
    assert second.tags["perennial.status"] == "refused"
    assert "has the recipe of champion version 1" in second.description.partition("\n")[0]


def test_a_refresh_during_the_training_does_not_make_its_decision_stale(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    change(world, another=ANOTHER)
    real = releases.publish_pages

    def slowly(*arguments: Any) -> None:
        real(*arguments)
        if len(world.ledger.versions("toy")) == 2:
            by_hand.refresh(world.settings, "toy", LATER)

    monkeypatch.setattr(releases, "publish_pages", slowly)
    assert by_hand.train(world.settings, "toy", LATER) == "toy version 2 is champion"
    made = world.ledger.promotions("toy")
    assert [(one.action, one.version, one.previous) for one in made] == [
        ("promote", 1, None), ("refresh", 3, 1), ("promote", 2, 3),
    ]  # fmt: skip


def test_a_model_that_is_not_refreshed_is_compared_as_it_is_stored(world: World) -> None:
    change(world, another=ANOTHER, schedules="owner: testers => owner: testers\nschedules: {refresh: never}")
    record, champion = train(world, LATER)
    assert champion.trained_on == world.ledger.versions("toy")[0].training.window != record.training.window
    assert (champion.recipe, champion.remarks, record.decision.champion_recipe) == ("", [], "")


def test_if_its_recipe_cannot_be_fitted_the_stored_model_is_compared_that_has_not_learned_from_the_holdout(
    world: World,
) -> None:
    change(world, another=ANOTHER)
    lose_the_folder(world)
    record, champion = train(world, LATER)
    assert champion.trained_on == world.ledger.versions("toy")[0].training.window
    assert "the recipe of version 1 could not be fitted on" in champion.remarks[-1]
    assert "so its stored model was measured, which learned from" in champion.remarks[-1]
    assert record.decision.champion_recipe == ""
    assert world.ledger.champion("toy") == 2


def test_a_champion_that_cannot_be_compared_in_any_way_stays_until_it_can_be(world: World) -> None:
    change(world, another=ANOTHER)
    lose_the_folder(world)
    soon = FIRST - timedelta(days=2)
    record, _ = train(world, soon)
    assert "champion" in record.decision.refused_by
    when = synthetic.START + timedelta(days=19)
    assert f"Train as of {when:%Y-%m-%d} or later" in reason(record)
    assert world.ledger.champion("toy") == 1
    train(world, when)
    assert world.ledger.champion("toy") == 3
