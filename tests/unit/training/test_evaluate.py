"""A process that decides measures again, and believes nothing that the process that trained says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.core.errors import PromotionRefused, StaleDecision, TrainingError
from perennial.core.intervals import Interval
from perennial.evaluation.confined import Confinement
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.training import TrainingSet
from perennial.model.authors_code import running_in
from perennial.model.candidate import Fitted
from perennial.stages import refresh, train
from perennial.stages.promote import decided_of, promote_champion
from perennial.stages.run import StageRun
from perennial.training.refresh import Refreshed
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

HISTORY = Interval(synthetic.START, synthetic.START + timedelta(days=25))
WEEK = Interval(HISTORY.end, HISTORY.end + timedelta(weeks=1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("confirmed")
    made = make_world(place, synthetic.deployment(place))
    synthetic.publish_tables(made.lake, made.ledger, synthetic.make_rows(25), HISTORY)
    with threadpool_limits(1):
        by_hand.train(made.settings, "toy", HISTORY.end)
    rows = synthetic.make_rows(7, seed=1, start=WEEK.start)
    synthetic.publish_tables(made.lake, made.ledger, rows, WEEK, run_id="ingest-2")
    return made


def run_of(world: World, name: str) -> StageRun:
    return StageRun(world.folder, world.deployment, name, f"toy.train/{name}")


Trained = tuple[StageRun, TrainingSet, list[Fitted], Evaluation]


@pytest.fixture(scope="module")
def trained(world: World) -> Trained:
    """What the tasks of a worker hand to the one that decides."""
    run = run_of(world, "train-2")
    with threadpool_limits(1):
        training_set = train.build_training_set(run, as_of=WEEK.end)
        fitted = [train.fit_candidate(run, candidate, training_set) for candidate in world.folder.spec.candidates]
        return run, training_set, fitted, train.evaluate_candidates(run, training_set, fitted)


@pytest.fixture(scope="module")
def refreshed(world: World) -> Refreshed:
    with threadpool_limits(1):
        return refresh.fit_refresh(run_of(world, "refresh-1"), as_of=WEEK.end)


def confirm_training(
    run: StageRun, training_set: TrainingSet, fitted: list[Fitted], claimed: Evaluation
) -> tuple[TrainingSet, Evaluation]:
    with Confinement() as place, running_in(place):
        return train.confirm(run, training_set, fitted, claimed)


def confirm_refresh(run: StageRun, claimed: Refreshed) -> Refreshed:
    with Confinement() as place, running_in(place):
        return refresh.confirm(run, claimed)


def measured(evaluation: Evaluation) -> object:
    """What two processes must find alike; durations differ."""
    refit = evaluation.refit
    return (
        evaluation.candidate, evaluation.baselines, evaluation.champion, evaluation.comparison, evaluation.robustness,
        evaluation.rows_hash, evaluation.training_classes, evaluation.training_coverage, evaluation.refresh,
        (refit.agreement, refit.digest, refit.content, refit.rows) if refit else None,
    )  # fmt: skip


def test_an_honest_training_is_found_as_it_says_to_the_last_bit(trained: Trained) -> None:
    run, training_set, fitted, claimed = trained
    counted, found = confirm_training(run, training_set, fitted, claimed)
    assert found.disputed == []
    assert counted == training_set
    assert measured(found) == measured(claimed)


def test_an_honest_refresh_is_found_as_it_says_to_the_last_bit(world: World, refreshed: Refreshed) -> None:
    found = confirm_refresh(run_of(world, "refresh-1"), refreshed)
    assert found.evaluation.disputed == []
    assert found.training_set == refreshed.training_set
    assert found.fitted == refreshed.fitted
    assert measured(found.evaluation) == measured(refreshed.evaluation)


def test_a_coin_flip_does_not_become_champion_by_a_claim(world: World, trained: Trained) -> None:
    run, training_set, fitted, claimed = trained
    prior = next(one for one in fitted if one.baseline)
    # Its files are those of the prior, and all else is said of it.
    coin = [
        replace(one, model_id=prior.model_id, manifest=prior.manifest) if not one.baseline else one for one in fitted
    ]  # fmt: skip
    boast = replace(claimed, candidate=replace(claimed.candidate, metrics={**claimed.candidate.metrics, "roc_auc": 0.999}))
    counted, found = confirm_training(run, training_set, coin, boast)
    assert found.candidate.metrics["roc_auc"] == 0.5
    assert any("roc_auc claimed 0.999, found 0.5" in one for one in found.disputed)
    decided = train.decide_promotion(replace(run, qualified_id="toy.train/coin"), counted, coin, found)
    assert {"evidence", "baseline"} <= set(decided.decision.refused_by)
    outcome = promote_champion(run, decided, cause="mine", actor="me")
    assert (outcome.became, world.ledger.champion("toy")) == ("refused", 1)
    [alert] = [entry.alert for entry in world.ledger.alerts() if entry.alert.kind == "evidence_mismatch"]
    assert alert.severity == "critical"
    assert "the evidence does not match: " in alert.text


def test_what_must_be_beaten_is_not_taken_from_the_one_who_must_beat_it(trained: Trained) -> None:
    run, training_set, fitted, claimed = trained
    best = next(one for one in fitted if not one.baseline)
    # Baselines with somebody else's files, and counts that flatter.
    forged = [one if not one.baseline else replace(one, model_id=best.model_id, manifest=best.manifest) for one in fitted]
    flattered = replace(training_set, classes={"window": {"True": 1, "False": 1}, "holdout": {"True": 1, "False": 1}})
    counted, found = confirm_training(run, flattered, forged, replace(claimed, champion=None, comparison=None))
    assert counted == training_set
    assert found.baselines == claimed.baselines
    assert found.champion == claimed.champion


def test_rows_that_are_not_the_pinned_ones_stop_it(trained: Trained) -> None:
    run, training_set, fitted, claimed = trained
    other = replace(training_set, content={**training_set.content, "holdout": "0" * 64})
    with pytest.raises(TrainingError, match="says it has pinned"):
        confirm_training(run, other, fitted, claimed)


def test_rows_and_versions_of_another_run_are_not_taken(world: World, trained: Trained) -> None:
    run, training_set, fitted, claimed = trained
    with pytest.raises(TrainingError, match="the training set is of run"):
        confirm_training(run_of(world, "other"), training_set, fitted, claimed)
    # The champion has passed its gates, but in another run.
    with pytest.raises(PromotionRefused, match="version 1 was not made by run"):
        decided_of(run_of(world, "other"), 1)
    with pytest.raises(PromotionRefused, match="version 99 was not made"):
        decided_of(run, 99)


def test_a_refresh_with_other_files_is_refused(world: World, trained: Trained, refreshed: Refreshed) -> None:
    prior = next(one for one in trained[2] if one.baseline)
    assert refreshed.evaluation.refit is not None
    other = replace(refreshed.evaluation.refit, stored=prior.stored)
    claimed = replace(refreshed, evaluation=replace(refreshed.evaluation, refit=other))
    found = confirm_refresh(run_of(world, "refresh-1"), claimed)
    assert found.evaluation.refit is not None
    assert found.evaluation.refit.agreement != refreshed.evaluation.refit.agreement
    decided = refresh.decide_refresh(replace(run_of(world, "refresh-1"), qualified_id="toy.refresh/other"), found)
    assert "refresh.agreement" in decided.decision.refused_by


def test_a_refresh_of_another_version_than_the_champion_is_stale(world: World, refreshed: Refreshed) -> None:
    assert refreshed.evaluation.refresh is not None
    of_another = replace(refreshed.evaluation, refresh=replace(refreshed.evaluation.refresh, champion=99))
    with pytest.raises(StaleDecision, match="the champion is version 1"):
        confirm_refresh(run_of(world, "refresh-1"), replace(refreshed, evaluation=of_another))


def test_a_version_that_became_champion_keeps_its_decision_when_its_run_is_repeated(tmp_path: Path) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    synthetic.publish_tables(world.lake, world.ledger, synthetic.make_rows(25), HISTORY)
    run = run_of(world, "train-1")
    training_set = train.build_training_set(run, as_of=HISTORY.end)
    fitted = [train.fit_candidate(run, candidate, training_set) for candidate in world.folder.spec.candidates]
    claimed = train.evaluate_candidates(run, training_set, fitted)
    for _ in range(2):
        counted, found = confirm_training(run, training_set, fitted, claimed)
        decided = train.decide_promotion(run, counted, fitted, found)
        assert decided.decision.promote
        assert promote_champion(run, decided, cause="test", actor="test").became == "champion"
    assert len(world.ledger.promotions("toy")) == 1
