"""What serves is the judged recipe, fitted again on the newest rows; its figures are those of the model that was judged."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.evaluation.gates import decide
from perennial.evidence.evaluation import Refit
from perennial.evidence.training import PARTS
from perennial.ledger.records import VersionRecord
from perennial.training.evaluate import choose
from perennial.training.refit import refit_candidate
from perennial.training.training_set import load_all_rows, load_rows
from tests.unit import synthetic
from tests.unit.monitored import World, make_world
from tests.unit.training.test_fit import Trained, build, train

PERIOD = Interval(synthetic.START, synthetic.START + timedelta(days=25))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with threadpool_limits(1):
        return train(
            tmp_path_factory.mktemp("trained"),
            synthetic.make_template(tmp_path_factory.mktemp("mlflow")),
            "binary_classification",
        )


def refit_of(trained: Trained) -> Refit:
    assert trained.evaluation.refit is not None
    return trained.evaluation.refit


def record_of(trained: Trained) -> VersionRecord:
    record = trained.deployment.ledger.version("toy", trained.version)
    assert record is not None
    return record


def test_what_serves_has_learned_from_all_rows_up_to_the_end_of_the_holdout(trained: Trained) -> None:
    refit, training_set = refit_of(trained), trained.training_set
    whole = Interval(training_set.interval("window").start, training_set.interval("holdout").end)
    assert refit.interval == whole.key == record_of(trained).learned_from
    assert refit.rows == sum(training_set.rows[part] for part in PARTS)
    assert trained.registry.load("toy", trained.version).trained_on == whole.key
    assert trained.registry.load_judged("toy", trained.version).trained_on == training_set.window


def test_the_figures_of_a_version_are_those_of_the_judged_model(trained: Trained) -> None:
    holdout = load_rows(trained.folder, trained.lake, trained.training_set, "holdout")
    judged = trained.registry.load_judged("toy", trained.version).predict(holdout)
    served = trained.registry.load("toy", trained.version).predict(holdout)
    measured = trained.evaluation.candidate.predictions
    assert measured is not None
    assert judged.digest == measured.digest
    assert served.digest == refit_of(trained).digest != judged.digest


def test_the_champion_is_compared_by_the_model_that_has_not_learned_from_the_holdout(trained: Trained) -> None:
    again = trained.evaluate(trained.fitted)
    assert again.champion is not None
    assert again.champion.trained_on == trained.training_set.window
    assert again.champion.metrics == trained.evaluation.candidate.metrics
    assert "untouched_holdout" not in decide(again, trained.folder.spec.gates).refused_by


def test_mlflow_serves_the_refit_and_says_whose_the_metrics_are(trained: Trained) -> None:
    found = trained.client.get_model_version("toy", str(trained.version))
    refit = refit_of(trained)
    assert found.source == trained.client.get_logged_model(refit.stored.model_id).artifact_location
    assert f"has learned from {refit.interval}." in (found.description or "")
    assert "The metrics are those of the model before that" in (found.description or "")
    assert trained.client.get_logged_model(refit.stored.model_id).name == "toy_refit"


def test_its_reference_has_predictions_of_the_judged_model_for_the_holdout_alone(trained: Trained) -> None:
    reference = trained.registry.load("toy", trained.version).reference().to_pandas()
    start = trained.training_set.interval("holdout").start
    assert len(reference) == refit_of(trained).rows
    assert (reference["moment"] >= start).equals(reference["prediction"].notna())
    holdout = load_rows(trained.folder, trained.lake, trained.training_set, "holdout")
    judged = trained.registry.load_judged("toy", trained.version).predict(holdout)
    assert np.array_equal(np.sort(reference["prediction"].dropna()), np.sort(judged.values))


def test_a_retry_takes_the_refit_of_the_first_attempt(trained: Trained) -> None:
    chosen, holdout = choose(trained.fitted), load_rows(trained.folder, trained.lake, trained.training_set, "holdout")
    judged = trained.registry.load_judged("toy", trained.version).predict(holdout)
    again = refit_candidate(trained.folder, trained.deployment, trained.training_set, chosen, holdout, judged)
    assert again == trained.evaluation.refit
    [run] = trained.client.search_runs([experiment_of(trained)], f"attributes.run_id = '{chosen.mlflow_run_id}'")
    assert run.outputs is not None
    assert {output.model_id for output in run.outputs.model_outputs} == {chosen.model_id, again.stored.model_id}


def experiment_of(trained: Trained) -> str:
    experiment = trained.client.get_experiment_by_name("toy")
    assert experiment is not None
    return str(experiment.experiment_id)


def test_a_candidate_that_the_gates_refuse_is_not_fitted_again(trained: Trained) -> None:
    again = trained.evaluate(trained.fitted)  # the same model is no better than the champion
    assert not decide(again, trained.folder.spec.gates).promote
    assert again.refit is None


def test_without_refit_the_judged_model_serves(tmp_path: Path) -> None:
    world = world_of(tmp_path, "training: {window: 20d, => training: {refit: false, window: 20d,")
    by_hand.train(world.settings, "toy", PERIOD.end)
    record = world.ledger.version("toy", 1)
    assert record is not None
    assert record.evaluation.refit is None
    assert record.served == record.judged
    assert record.learned_from == record.training.window
    assert world.registry.load("toy", 1).trained_on == record.training.window


def test_a_refit_learns_from_the_rows_whose_labels_were_not_mature_when_the_holdout_began(tmp_path: Path) -> None:
    world = world_of(tmp_path, "label: {table: outcomes, => label: {delay: 2d, table: outcomes,", known_after=timedelta(days=2))
    training_set = build(world.folder, world.deployment)
    window, holdout = training_set.interval("window"), training_set.interval("holdout")
    assert holdout.start - window.end == timedelta(days=2)
    whole, rows = load_all_rows(world.folder, world.lake, training_set)
    moments = rows.column("moment").to_pylist()
    assert whole == Interval(window.start, holdout.end)
    assert sum(window.end <= moment < holdout.start for moment in moments) == 2 * 60
    assert max(moments) < holdout.end


def world_of(place: Path, change: str, *, known_after: timedelta | None = None) -> World:
    world = make_world(place, synthetic.deployment(place), change=change)
    rows = synthetic.make_rows(25)
    if known_after is not None:
        rows["known_after"] = known_after
    synthetic.publish_tables(world.lake, world.ledger, rows, PERIOD)
    return world


def test_both_models_of_a_version_stay_loadable_after_rows_were_erased_from_their_samples(tmp_path: Path) -> None:
    world = world_of(tmp_path, "min_rows: 100 => min_rows: 50")
    by_hand.train(world.settings, "toy", PERIOD.end)
    models = {"served": world.registry.load, "judged": world.registry.load_judged}
    gone = models["judged"]("toy", 1).reference().slice(0, 2)
    intended: list[dict[str, dict[str, str]]] = []
    rewritten = world.registry.erase_samples("toy", gone, "moment", pending={}, intend=intended.append)
    record = world.ledger.version("toy", 1)
    assert record is not None
    assert rewritten == [1]
    assert set(intended[-1]) == {record.judged.model_id, record.served.model_id}
    for load in models.values():
        left = load("toy", 1).reference()
        assert not set(gone["moment"].to_pylist()) & set(left["moment"].to_pylist())
    # An attempt that died after it had written the files.
    assert world.registry.erase_samples("toy", gone, "moment", pending=intended[-1], intend=intended.append) == [1]


def test_an_erasure_that_an_older_release_began_is_taken_up(tmp_path: Path) -> None:
    """It named the version instead of the stored model."""
    world = world_of(tmp_path, "training: {window: 20d, => training: {refit: false, window: 20d,")
    by_hand.train(world.settings, "toy", PERIOD.end)
    gone = world.registry.load("toy", 1).reference().slice(0, 2)
    intended: list[dict[str, dict[str, str]]] = []
    world.registry.erase_samples("toy", gone, "moment", pending={}, intend=intended.append)
    [files] = intended[-1].values()
    assert world.registry.erase_samples("toy", gone, "moment", pending={"1": files}, intend=intended.append) == [1]
    assert world.registry.load("toy", 1)
