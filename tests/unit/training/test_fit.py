"""From published rows to a measured candidate: the same rows each time, no look at the holdout, and errors that help."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from perennial.core.errors import TrainingError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.evaluation.gates import decide
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.training import CodeState, TrainingSet
from perennial.lake.publish import Lake
from perennial.model.candidate import Fitted
from perennial.model.estimators import combinations, fit_estimator, make_estimator
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder
from perennial.spec.recipe import recipe_digest
from perennial.spec.training import METRICS
from perennial.training import fit
from perennial.training.evaluate import choose, evaluate_training
from perennial.training.fit import fit_candidate
from perennial.training.reproduce import reproduce
from perennial.training.training_set import build_training_set, content_hash, features_without_values, load_rows, narrowed
from tests.unit import synthetic

DAYS = 25
PERIOD = Interval(synthetic.START, synthetic.START + timedelta(days=DAYS))
AS_OF = PERIOD.end
#: A day in the middle that does not come, and three that have not come yet.
GAP = Interval.day(PERIOD.start + timedelta(days=10))
AHEAD = Interval(PERIOD.end, PERIOD.end + timedelta(days=3))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make_template(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def deployment(settings: Settings, empty_store: Path) -> Deployment:
    synthetic.copy_store(empty_store, settings)
    deployment = Deployment(settings)
    deployment.ledger.migrate()
    return deployment


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return synthetic.write_folder(tmp_path / "models")


@pytest.fixture
def rows() -> pd.DataFrame:
    return synthetic.make_rows(DAYS)


def build(folder: ModelFolder, deployment: Deployment, run_id: str = "run-1", staging: Path | None = None) -> TrainingSet:
    return build_training_set(folder, deployment, as_of=AS_OF, run_id=run_id, staging=staging)


def publish(deployment: Deployment, rows: pd.DataFrame, interval: Interval = PERIOD, run_id: str = "ingest") -> None:
    synthetic.publish_tables(deployment.lake, deployment.ledger, rows, interval, run_id=run_id)


def fit_all(folder: ModelFolder, deployment: Deployment, training_set: TrainingSet, run_id: str = "run-1") -> list[Fitted]:
    return [fit_candidate(folder, candidate, training_set, deployment, run_id=run_id) for candidate in folder.spec.candidates]


@dataclass(frozen=True)
class Trained:
    """A deployment in which one training has led to the first champion."""

    folder: ModelFolder
    deployment: Deployment
    training_set: TrainingSet
    fitted: list[Fitted]
    evaluation: Evaluation
    decision: GateDecision
    version: int

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.deployment.settings.mlflow_url, registry_uri=self.deployment.settings.mlflow_url)

    @property
    def lake(self) -> Lake:
        return self.deployment.lake

    @property
    def registry(self) -> Registry:
        return self.deployment.registry

    def evaluate(self, fitted: list[Fitted], run_id: str = "run-2") -> Evaluation:
        return evaluate_training(self.folder, self.deployment, self.training_set, fitted, run_id=run_id)


def train(state: Path, empty_store: Path, task: str) -> Trained:
    """Go the whole way, from rows to a champion."""
    settings = synthetic.deployment(state)
    synthetic.copy_store(empty_store, settings)
    deployment = Deployment(settings)
    registry = deployment.registry
    folder = synthetic.write_folder(settings.models, task)
    publish(deployment, synthetic.make_rows(DAYS))
    training_set = build(folder, deployment)
    fitted = fit_all(folder, deployment, training_set)
    evaluation = evaluate_training(folder, deployment, training_set, fitted, run_id="run-1")
    decision = decide(evaluation, folder.spec.gates)
    version = registry.register(folder, training_set, choose(fitted), evaluation, decision, run_id="run-1")
    registry.promote(
        "toy", version, expected=evaluation.champion_version, reason="", actor="", run_id="run-1", evidence=decision.to_json()
    )
    return Trained(folder, deployment, training_set, fitted, evaluation, decision, version)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Trained:
    """For tests that leave it as it is, or only add to it."""
    with threadpool_limits(1):
        return train(tmp_path_factory.mktemp("trained"), empty_store, "binary_classification")


# --- the training set ------------------------------------------------------------------------------------------------


def test_window_and_holdout_meet_and_labels_are_those_known_in_time(trained: Trained) -> None:
    training_set = trained.training_set
    assert (training_set.window, training_set.holdout) == ("2013-03-01--2013-03-21", "2013-03-21--2013-03-26")
    assert training_set.entities == {"window": 20 * 60, "holdout": 5 * 60}
    # Rows come every 20 minutes until 19:40, and the label an hour later: all are known by midnight.
    assert training_set.rows == training_set.labelled == training_set.entities
    assert sum(training_set.classes["window"].values()) == training_set.rows["window"]
    assert set(training_set.snapshots) == {"features", "visits", "outcomes"}


def test_rows_are_the_same_each_time_and_in_the_same_order(trained: Trained) -> None:
    first, again = (load_rows(trained.folder, trained.lake, trained.training_set, "window") for _ in range(2))
    assert first.equals(again)
    assert first.column_names == ["visit", "moment", "x", "noise", "kind", "label"]
    assert first["moment"].to_pylist() == sorted(first["moment"].to_pylist())
    assert content_hash(first) == trained.training_set.content["window"]


def test_a_changed_model_folder_does_not_go_on_with_an_old_training_set(trained: Trained, tmp_path: Path) -> None:
    changed = synthetic.write_folder(tmp_path, change="max_iter: 30 => max_iter: 31")
    with pytest.raises(TrainingError, match="changed after the training set of run run-1 was pinned"):
        load_rows(changed, trained.lake, trained.training_set, "window")


def test_other_rows_than_the_pinned_ones_are_noticed(trained: Trained) -> None:
    other = replace(trained.training_set, content={**trained.training_set.content, "window": "0" * 64})
    with pytest.raises(TrainingError, match="are not those that run run-1 pinned"):
        load_rows(trained.folder, trained.lake, other, "window")


def test_rows_that_a_run_has_left_need_not_be_read_again(trained: Trained, lake: Lake, tmp_path: Path) -> None:
    from_lake = load_rows(trained.folder, trained.lake, trained.training_set, "window")
    training_set = build(trained.folder, trained.deployment, staging=tmp_path / "left")
    nothing_published = lake
    assert load_rows(trained.folder, nothing_published, training_set, "window", tmp_path / "left").equals(from_lake)


@pytest.mark.parametrize("harm", ["other rows", "half a file", "no file"])
def test_what_was_left_is_only_learned_from_if_it_is_what_was_pinned(trained: Trained, tmp_path: Path, harm: str) -> None:
    training_set = build(trained.folder, trained.deployment, staging=tmp_path)
    holdout, file = (tmp_path / f"training-{part}.arrow" for part in ("holdout", "window"))
    match harm:
        case "other rows":
            shutil.copyfile(holdout, file)
        case "half a file":
            os.truncate(file, file.stat().st_size // 2)
        case "no file":
            file.unlink()
    from_lake = load_rows(trained.folder, trained.lake, training_set, "window")
    assert load_rows(trained.folder, trained.lake, training_set, "window", tmp_path).equals(from_lake)


def test_a_run_that_can_leave_nothing_reads_its_rows_again(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    training_set = build(trained.folder, trained.deployment, staging=tmp_path / "file" / "below")
    assert load_rows(trained.folder, trained.lake, training_set, "window", tmp_path / "file" / "below").num_rows == 1_200


def test_an_error_while_rows_are_left_is_an_error_of_the_training_set(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise pa.ArrowNotImplementedError("no such type in a file")

    monkeypatch.setattr(pa.ipc, "new_file", fail)
    with pytest.raises(pa.ArrowNotImplementedError, match="no such type"):
        build(trained.folder, trained.deployment, staging=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_label_that_came_after_the_border_is_not_learned_from(
    tmp_path: Path, deployment: Deployment, rows: pd.DataFrame
) -> None:
    # Labels take 23 hours: those of the window's last day are known in the holdout only.
    folder = synthetic.write_folder(tmp_path / "models")
    rows["known_after"] = timedelta(hours=23)
    publish(deployment, rows)
    training_set = build(folder, deployment)
    assert training_set.rows["window"] < training_set.entities["window"] == 20 * 60
    window = load_rows(folder, deployment.lake, training_set, "window")
    assert max(window["moment"].to_pylist()) + timedelta(hours=23) <= training_set.interval("holdout").start
    holdout = load_rows(folder, deployment.lake, training_set, "holdout")
    assert max(holdout["moment"].to_pylist()) + timedelta(hours=23) <= AS_OF
    assert training_set.label_coverage("holdout") == pytest.approx(holdout.num_rows / 300)


def test_the_hash_depends_on_the_rows_and_not_on_how_they_came(
    folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame
) -> None:
    publish(deployment, rows)
    whole = build(folder, deployment)
    # The same rows once more, shuffled, a few days at a time, the later ones first.
    for first in (20, 10, 0):
        days = Interval(PERIOD.start + timedelta(days=first), PERIOD.start + timedelta(days=min(first + 10, DAYS)))
        part = rows[(rows["moment"] >= days.start) & (rows["moment"] < days.end)].sample(frac=1, random_state=1)
        publish(deployment, part, days, run_id=f"again-{first}")
    again = build(folder, deployment, "run-2")
    assert again.snapshots != whole.snapshots
    assert again.content == whole.content
    rows.loc[7:7, "x"] += 1e-9
    publish(deployment, rows, run_id="corrected")
    assert build(folder, deployment, "run-3").content["window"] != whole.content["window"]


def test_a_training_set_is_read_as_it_was_pinned_after_newer_rows_are_published(
    folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame
) -> None:
    publish(deployment, rows)
    training_set = build(folder, deployment)
    before = load_rows(folder, deployment.lake, training_set, "window")
    publish(deployment, rows.assign(x=0.0, y=-rows["y"]), run_id="later")
    assert build(folder, deployment, "run-2").content != training_set.content
    assert load_rows(folder, deployment.lake, training_set, "window").equals(before)
    assert training_set.pin in deployment.lake.pins("toy")


def test_the_newest_rows_are_kept_when_there_are_more_than_max_rows(
    tmp_path: Path, deployment: Deployment, rows: pd.DataFrame
) -> None:
    folder = synthetic.write_folder(tmp_path / "models", change="min_rows: 100 => min_rows: 100, max_rows: 300")
    publish(deployment, rows)
    training_set = build(folder, deployment)
    window = load_rows(folder, deployment.lake, training_set, "window")
    assert window.num_rows == training_set.rows["window"] == 300
    assert min(window["moment"].to_pylist()) >= training_set.interval("window").end - timedelta(days=5)


def test_nothing_published_says_what_to_run(folder: ModelFolder, deployment: Deployment) -> None:
    with pytest.raises(TrainingError, match=r"run toy\.ingest"):
        build(folder, deployment)


def test_a_training_says_which_days_it_had_to_do_without(
    folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame
) -> None:
    for days in (Interval(PERIOD.start, GAP.start), Interval(GAP.end, PERIOD.end)):
        within = rows[(rows["moment"] >= days.start) & (rows["moment"] < days.end)]
        publish(deployment, within, days, run_id=f"ingest-{days.key}")
    week = Interval(GAP.start - timedelta(days=4), GAP.start + timedelta(days=3))

    made = build_training_set(folder, deployment, as_of=AS_OF, run_id="r", calendar=week)
    assert made.missing == [GAP.key]

    with pytest.raises(
        TrainingError, match=rf"4 of the 7 days of .* have features, and 5 are required .* Missing: {AHEAD.key}\."
    ):
        build_training_set(
            folder, deployment, as_of=AS_OF, run_id="r", calendar=Interval(AHEAD.start - timedelta(days=4), AHEAD.end)
        )


def test_too_few_rows_say_how_many_and_what_to_do(folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame) -> None:
    publish(deployment, rows.iloc[::60].reset_index(drop=True))
    with pytest.raises(
        TrainingError,
        match=r"2013-03-01--2013-03-21 has 20 labelled rows, of 20 rows, but training\.min_rows is 100: ingest",
    ):
        build(folder, deployment)


def test_labels_of_one_class_say_which(folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame) -> None:
    publish(deployment, rows.assign(y=0.0))
    with pytest.raises(TrainingError, match=r"all 1,200 labels in 2013-03-01--2013-03-21 are false"):
        build(folder, deployment)


def test_a_number_that_is_no_label_is_an_error(tmp_path: Path, deployment: Deployment, rows: pd.DataFrame) -> None:
    infinite = 'sql: "y" => sql: "CASE WHEN y > 1 THEN y / 0 ELSE y END"'
    folder = synthetic.write_folder(tmp_path / "models", "regression", change=infinite)
    publish(deployment, rows)
    with pytest.raises(TrainingError, match=r"\d+ labels in 2013-03-01--2013-03-21 are NaN or infinite"):
        build(folder, deployment)


def test_a_regression_keeps_the_mean_label_of_its_window(
    tmp_path: Path, deployment: Deployment, rows: pd.DataFrame, trained: Trained
) -> None:
    folder = synthetic.write_folder(tmp_path / "models", "regression")
    publish(deployment, rows)
    training_set = build(folder, deployment)
    labels = load_rows(folder, deployment.lake, training_set, "window").column("label")
    assert training_set.mean_label == pytest.approx(np.mean(labels.to_numpy()))
    assert trained.training_set.mean_label is None


def test_the_hash_tells_null_from_nought_and_one_text_from_two() -> None:
    def hashed(values: Any, kind: pa.DataType) -> str:
        return content_hash(pa.table({"a": pa.array(values, kind)}))

    assert hashed([None, 1.0], pa.float64()) != hashed([0.0, 1.0], pa.float64())
    assert hashed([None, "a"], pa.string()) != hashed(["", "a"], pa.string())
    assert hashed(["ab", "c"], pa.string()) != hashed(["a", "bc"], pa.string())
    assert hashed([True, False], pa.bool_()) != hashed([False, True], pa.bool_())
    assert hashed([1, 2], pa.int64()) != hashed([1.0, 2.0], pa.float64())
    pieces = pa.table({"a": pa.chunked_array([["a"], [None, "b"]])})
    assert (
        content_hash(pieces)
        == content_hash(pieces.combine_chunks())
        == content_hash(pa.table({"a": ["z", "a", None, "b"]}).slice(1))
    )
    other_nan = pa.array(np.array([0x7FF8000000000001], dtype=np.uint64).view(np.float64))
    assert content_hash(pa.table({"a": other_nan})) == hashed([np.nan], pa.float64())


# --- estimators ------------------------------------------------------------------------------------------------------

CODE = """
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline

    def trees(**params):
        return ExtraTreesClassifier(**params)

    def whole(**params):
        return make_pipeline(make_column_transformer((SimpleImputer(), ["x", "noise"])), DummyClassifier())

    def nothing(**params):
        return 42

    def broken(**params):
        raise RuntimeError("no such machine")
"""


def with_estimator(models: Path, estimator: str) -> ModelFolder:
    return synthetic.write_folder(models, code=CODE, change=f"estimator: gradient_boosting => estimator: {estimator}")


def test_an_estimator_of_model_py_is_given_what_it_can_take_and_the_seed(tmp_path: Path) -> None:
    folder = with_estimator(tmp_path / "models", "model:trees")
    made = make_estimator(folder, "boosting", {"n_estimators": 5})
    assert [type(step).__name__ for _, step in made.steps] == ["ColumnTransformer", "ExtraTreesClassifier"]
    assert made[-1].random_state == folder.spec.training.seed
    assert made[0].transformers[0][1] == "passthrough"
    whole = make_estimator(with_estimator(tmp_path / "models", "model:whole"), "boosting", {})
    assert [type(step).__name__ for _, step in whole.steps] == ["ColumnTransformer", "DummyClassifier"]


@pytest.mark.parametrize(
    ("estimator", "word"),
    [("model:nothing", "gave a int"), ("model:broken", "no such machine"), ("linear_regression", "numbers")],
)
def test_what_gives_no_estimator_is_an_error_that_names_the_candidate(estimator: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=word):
        make_estimator(with_estimator(tmp_path / "models", estimator), "boosting", {})


def test_parameters_that_do_not_fit_are_an_error(folder: ModelFolder) -> None:
    with pytest.raises(TrainingError, match="candidate boosting cannot be made with leaves=3"):
        make_estimator(folder, "boosting", {"leaves": 3})


@pytest.mark.parametrize("task", METRICS)
def test_every_built_in_estimator_takes_missing_and_unknown_values(task: str, tmp_path: Path) -> None:
    folder = synthetic.write_folder(tmp_path / "models", task)
    frame = pd.DataFrame({"x": [1.0, np.nan, 3.0, 4.0] * 10, "noise": 1.0, "kind": ["a", None, "b", "a"] * 10})
    truth: Any = {
        "binary_classification": np.array([True, False] * 20),
        "multiclass_classification": np.array(["a", "b"] * 20, dtype=object),
        "regression": np.arange(40.0),
    }[task]
    later = pd.DataFrame({"x": [np.nan], "noise": [np.nan], "kind": ["never seen"]})
    nothing = frame.assign(noise=np.nan, kind=None)
    for name in folder.spec.candidates:
        fitted = make_estimator(folder, name, {}).fit(frame, truth)
        assert isinstance(fitted, Pipeline)
        assert len(fitted.predict(later)) == 1
        assert len(fit_estimator(folder, name, {}, nothing, truth).predict(later)) == 1


def test_a_small_search_space_is_tried_whole_and_a_large_one_by_seeded_draws(tmp_path: Path) -> None:
    small = synthetic.write_folder(tmp_path / "small")
    assert combinations(small, "boosting") == [{"max_iter": 30, "max_leaf_nodes": leaves} for leaves in (4, 8)]
    assert combinations(small, "prior") == [{}]
    large = synthetic.write_folder(
        tmp_path / "large", change=f"max_leaf_nodes: [4, 8] => max_leaf_nodes: {list(range(2, 40))}, max_depth: [1, 2, 3]"
    )
    drawn = combinations(large, "boosting")
    assert len(drawn) == large.spec.training.trials == 8
    assert len({json.dumps(params) for params in drawn}) == 8
    assert drawn == combinations(large, "boosting")


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_a_candidate_is_one_run_that_answers_what_it_came_from(trained: Trained) -> None:
    client, fitted = trained.client, choose(trained.fitted)
    query = "tags.`perennial.run_id` = 'run-1' and tags.`perennial.candidate` = 'boosting'"
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], query)
    assert run.inputs is not None
    assert run.outputs is not None
    assert run.info.run_id == fitted.mlflow_run_id
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"boosting, until {trained.training_set.as_of[:10]}"
    leaves = str(fitted.params["max_leaf_nodes"])
    assert run.data.params == {"estimator": "gradient_boosting", "max_iter": "30", "max_leaf_nodes": leaves}
    assert run.data.metrics["validation_roc_auc"] == pytest.approx(fitted.score)
    assert run.data.metrics["trials"] == 2
    assert run.data.tags["perennial.spec_digest"] == trained.folder.digest
    assert json.loads(run.data.tags["perennial.snapshots"]) == trained.training_set.snapshots
    assert run.data.tags["mlflow.source.git.commit"] == fitted.code.commit
    hashes = {json.loads(given.dataset.source)["content_hash"] for given in run.inputs.dataset_inputs}
    refit = trained.evaluation.refit
    assert refit is not None
    assert hashes == {*trained.training_set.content.values(), refit.content}
    assert {output.model_id for output in run.outputs.model_outputs} == {fitted.model_id, refit.stored.model_id}
    names = ("roc.png", "precision_recall.png", "calibration.png", "importance.png", "importance.json", "trials.json")
    files = {file.path for file in client.list_artifacts(run.info.run_id, "validation")}
    assert files == {f"validation/{name}" for name in names}


def test_only_the_chosen_candidate_becomes_a_version(trained: Trained) -> None:
    versions = trained.client.search_model_versions("name = 'toy'")
    assert [found.run_id for found in versions] == [choose(trained.fitted).mlflow_run_id]


def test_the_importance_of_features_is_measured(trained: Trained, tmp_path: Path) -> None:
    run_id = choose(trained.fitted).mlflow_run_id
    file = trained.client.download_artifacts(run_id, "validation/importance.json", str(tmp_path))
    importance = json.loads(Path(file).read_text())
    assert next(iter(importance)) == "x"
    assert importance["x"] > 0.1 > abs(importance["noise"])


def test_a_training_set_names_the_features_that_have_no_value(trained: Trained) -> None:
    spec, columns = trained.folder.spec, {name: [None, 1.0] for name in trained.folder.spec.features.names}
    rows = pa.table({**columns, spec.features.names[0]: pa.nulls(2, pa.float64())})

    assert trained.training_set.without_values == []
    assert features_without_values(spec, rows) == spec.features.names[:1]


def test_the_same_training_gives_the_same_model(trained: Trained) -> None:
    folder, training_set, registry = trained.folder, trained.training_set, trained.registry
    first = choose(trained.fitted)
    again = fit_candidate(folder, "boosting", training_set, trained.deployment, run_id="once more")
    assert first.mlflow_run_id != again.mlflow_run_id
    assert first.params == again.params
    assert first.score == again.score
    holdout = load_rows(folder, trained.lake, training_set, "holdout")
    one, other = (registry.load_fitted(folder.spec, training_set, fitted).predict(holdout) for fitted in (first, again))
    assert (one.values == other.values).all()


def test_a_retry_takes_what_an_earlier_attempt_of_its_run_has_logged(trained: Trained) -> None:
    first = choose(trained.fitted)
    again = fit_candidate(trained.folder, "boosting", trained.training_set, trained.deployment, run_id="run-1")
    assert again == first


def test_the_search_takes_the_best_on_the_validation_rows_and_refits_on_all(
    folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(deployment, rows)
    training_set = build(folder, deployment)
    seen: list[tuple[dict[str, Any], int]] = []
    real = fit_estimator

    def counting(folder: ModelFolder, name: str, params: Any, frame: pd.DataFrame, truth: Any, weight: Any) -> Any:
        seen.append((dict(params), len(frame)))
        return real(folder, name, params, frame, truth, weight)

    monkeypatch.setattr(fit, "fit_estimator", counting)
    fitted = fit_candidate(folder, "boosting", training_set, deployment, run_id="run-1")
    assert [size for _, size in seen] == [15 * 60, 15 * 60, 20 * 60]
    assert seen[-1][0] == fitted.params
    assert fitted.score is not None
    assert fitted.score > 0.8


WINDOWS = "window: 20d => window: [20d, 8d]"


def turned(rows: pd.DataFrame, until: int) -> pd.DataFrame:
    """The world before a day was the opposite of what it is since: what was learned from then is wrong."""
    before = rows["moment"] < synthetic.START + timedelta(days=until)
    return rows.assign(y=rows["y"].where(~before, 1 - rows["y"]))


def test_each_candidate_takes_the_window_with_which_it_validates_best(
    tmp_path: Path, deployment: Deployment, rows: pd.DataFrame
) -> None:
    folder = synthetic.write_folder(tmp_path / "models", change=WINDOWS)
    publish(deployment, turned(rows, 12))
    training_set = build(folder, deployment)
    assert training_set.window == "2013-03-01--2013-03-21"  # the longest is pinned
    fitted = fit_all(folder, deployment, training_set)
    chosen = choose(fitted)
    assert (chosen.candidate, chosen.window) == ("boosting", "8d")
    [prior] = [one for one in fitted if one.candidate == "prior"]
    assert prior.window == "20d"  # both validate the same, so it takes the one that is named first

    evaluation = evaluate_training(folder, deployment, training_set, fitted, run_id="run-1")
    part = "2013-03-13--2013-03-21"
    assert evaluation.candidate.trained_on == part
    assert [one.trained_on for one in evaluation.baselines if one.name == "prior"] == [training_set.window]
    assert evaluation.refit is not None
    assert evaluation.refit.interval == "2013-03-13--2013-03-26"
    learned = narrowed(folder, deployment.lake, training_set, chosen.window)
    assert (learned.window, learned.rows["window"], learned.holdout) == (part, 8 * 60, training_set.holdout)
    decision = decide(evaluation, folder.spec.gates)
    version = deployment.registry.register(folder, learned, chosen, evaluation, decision, run_id="run-1")
    record = deployment.ledger.version("toy", version)
    assert record is not None
    assert (record.training.window, record.training.chosen_window) == (part, "8d")
    assert record.training.recipe == recipe_digest(folder, "boosting", chosen.params, "8d")
    assert record.training.recipe != recipe_digest(folder, "boosting", chosen.params, "20d")
    assert reproduce("toy", version, deployment, folder=folder).identical


def test_what_says_all_learns_from_everything_that_is_there(tmp_path: Path, deployment: Deployment, rows: pd.DataFrame) -> None:
    folder = synthetic.write_folder(tmp_path / "models", change="window: 20d => window: all")
    publish(deployment, rows)
    training_set = build_training_set(folder, deployment, as_of=AS_OF - timedelta(days=3), run_id="run-1")
    assert training_set.window == "2013-03-01--2013-03-18"
    assert fit_candidate(folder, "prior", training_set, deployment, run_id="run-1").window == "all"


def test_with_too_little_history_for_two_windows_only_the_first_is_tried(
    tmp_path: Path, deployment: Deployment, rows: pd.DataFrame
) -> None:
    folder = synthetic.write_folder(tmp_path / "models", change="window: 20d => window: [60d, all, 90d]")
    publish(deployment, rows)
    training_set = build(folder, deployment)
    fitted = fit_candidate(folder, "boosting", training_set, deployment, run_id="run-1")
    assert fitted.window == "60d"
    files = deployment.registry.run(fitted.mlflow_run_id).read_files("validation")
    assert len(json.loads(files["trials.json"])) == 2


def test_the_reference_has_predictions_only_for_rows_the_model_had_not_seen(
    tmp_path: Path, deployment: Deployment, rows: pd.DataFrame
) -> None:
    folder = synthetic.write_folder(
        tmp_path / "models", change="gates: {min_rows: 50} => drift: {sample: 400}\ngates: {min_rows: 50}"
    )
    publish(deployment, rows)
    training_set = build(folder, deployment)
    fitted = fit_candidate(folder, "boosting", training_set, deployment, run_id="run-1")
    reference = deployment.registry.load_fitted(folder.spec, training_set, fitted).reference()
    assert reference.num_rows == 400
    assert reference.column_names == ["x", "noise", "kind", "label", "moment", "prediction"]
    predicted = 400 - reference["prediction"].null_count
    assert 60 < predicted < 140  # about a quarter of the window is validation


@pytest.mark.parametrize("task", METRICS)
def test_every_task_goes_from_rows_to_a_champion(
    task: str, tmp_path: Path, empty_store: Path, request: pytest.FixtureRequest
) -> None:
    if task == "binary_classification":
        done: Trained = request.getfixturevalue("trained")
    else:
        done = train(tmp_path, empty_store, task)
    evaluation, folder, chosen = done.evaluation, done.folder, choose(done.fitted)
    assert done.decision.promote, done.decision.reasons
    assert evaluation.candidate.name == "boosting"
    assert [baseline.name for baseline in evaluation.baselines] == [
        name for name in folder.spec.candidates if name != "boosting"
    ]
    assert set(evaluation.candidate.metrics) == set(METRICS[task]) - {"cost"}
    assert evaluation.champion is None
    assert done.registry.champion("toy") == done.version
    loaded = done.registry.load("toy", done.version, spec=folder.spec)
    holdout = load_rows(folder, done.lake, done.training_set, "holdout")
    assert len(loaded.predict(holdout)) == holdout.num_rows
    probabilities = ["probabilities"] if task == "multiclass_classification" else []
    assert loaded.reference().column_names == ["x", "noise", "kind", "label", "moment", *probabilities, "prediction"]
    # The next training meets it, on the same rows.
    again = done.evaluate(done.fitted)
    assert again.champion is not None
    assert again.champion.version == done.version
    assert again.champion.metrics == again.candidate.metrics
    assert {contender.rows_hash for contender in [again.candidate, *again.baselines, again.champion]} == {again.rows_hash}
    assert not decide(again, folder.spec.gates).promote  # the same model is no better
    logged = done.client.get_run(chosen.mlflow_run_id).data.metrics
    metric = folder.spec.primary_metric
    assert logged[f"holdout_{metric}"] == logged[f"champion_{metric}"] == pytest.approx(evaluation.candidate.metrics[metric])
    files = {file.path for file in done.client.list_artifacts(chosen.mlflow_run_id, "holdout")}
    assert "holdout/evaluation.json" in files
    assert any(file.endswith(".png") for file in files)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("max_iter: 30 => max_iter: -1", "failed with every combination"),
        ("estimator: gradient_boosting => estimator: model:broken", "no such machine"),
    ],
)
def test_a_candidate_that_cannot_be_fitted_says_why_and_leaves_no_run(
    change: str,
    word: str,
    tmp_path: Path,
    deployment: Deployment,
    rows: pd.DataFrame,
) -> None:
    folder = synthetic.write_folder(tmp_path / "models", code=CODE, change=change)
    publish(deployment, rows)
    training_set = build(folder, deployment)
    with pytest.raises(TrainingError, match=word):
        fit_candidate(folder, "boosting", training_set, deployment, run_id="run-1")
    registry = deployment.registry
    assert registry._client.search_runs([registry._experiment("toy")]) == []


def test_a_combination_that_fails_does_not_end_the_search(tmp_path: Path, deployment: Deployment, rows: pd.DataFrame) -> None:
    folder = synthetic.write_folder(tmp_path / "models", change="max_leaf_nodes: [4, 8] => max_leaf_nodes: [-4, 8]")
    publish(deployment, rows)
    fitted = fit_candidate(folder, "boosting", build(folder, deployment), deployment, run_id="run-1")
    assert fitted.params["max_leaf_nodes"] == 8


def test_a_validation_part_that_cannot_validate_says_what_to_change(
    folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame
) -> None:
    validation = (rows["moment"] >= PERIOD.start + timedelta(days=15)) & (rows["moment"] < PERIOD.start + timedelta(days=20))
    publish(deployment, rows.assign(y=rows["y"].where(~validation, 0.0)))
    with pytest.raises(
        TrainingError, match=r"all 300 labels of the training window from 2013-03-16 on are False.*training\.validation longer"
    ):
        fit_candidate(folder, "boosting", build(folder, deployment), deployment, run_id="run-1")


# --- choosing and evaluating -----------------------------------------------------------------------------------------


def fitted_of(name: str, score: float | None, *, baseline: bool = False, greater_is_better: bool = True) -> Fitted:
    return Fitted(name, baseline, {}, {}, score, greater_is_better, "run", "m-1", {}, CodeState(), {})


def test_the_best_by_validation_is_chosen_and_never_a_baseline() -> None:
    given = [fitted_of("prior", 0.9, baseline=True), fitted_of("a", 0.7), fitted_of("b", 0.8), fitted_of("c", None)]
    assert choose(given).candidate == "b"
    lower = [fitted_of("a", 0.7, greater_is_better=False), fitted_of("b", 0.8, greater_is_better=False)]
    assert choose(lower).candidate == "a"
    assert choose([fitted_of("first", 0.7), fitted_of("second", 0.7)]).candidate == "first"
    with pytest.raises(TrainingError, match="no candidate has a validation score"):
        choose([fitted_of("prior", 0.9, baseline=True), fitted_of("c", None)])


def test_a_champion_whose_files_are_gone_leaves_the_decision_to_the_other_gates_which_say_so(trained: Trained) -> None:
    again = fit_all(trained.folder, trained.deployment, trained.training_set, "run-2")
    artifacts = trained.deployment.settings.state / "mlflow-artifacts"
    assert trained.evaluation.refit is not None
    [file] = artifacts.rglob(f"{trained.evaluation.refit.stored.model_id}/artifacts/model.skops")
    content = file.read_bytes()
    file.unlink()
    try:
        evaluation = trained.evaluate(again)
    finally:
        file.write_bytes(content)
    assert evaluation.champion is not None
    decision = decide(evaluation, trained.folder.spec.gates)
    assert decision.promote
    assert decision.champion == trained.version
    assert decision.champion_unusable == "toy version 1: model.skops is missing"
    [compared] = [result for result in decision.results if result.gate == "champion"]
    assert "model.skops is missing" in compared.reason


def test_a_candidate_whose_artifact_was_changed_is_not_evaluated(trained: Trained) -> None:
    forged = [replace(candidate, manifest={**candidate.manifest, "model.skops": "0" * 64}) for candidate in trained.fitted]
    evaluation = trained.evaluate(forged)
    assert evaluation.candidate.predictions is None
    assert not decide(evaluation, trained.folder.spec.gates).promote


def test_infinite_features_of_the_holdout_are_refused_by_the_gates(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmed(*arguments: Any) -> pa.Table:
        # The feature store refuses infinite values; a table that someone else wrote may hold them.
        loaded = load_rows(*arguments)
        noise = loaded["noise"].to_numpy().copy()
        noise[:7] = np.inf
        return loaded.set_column(loaded.column_names.index("noise"), "noise", pa.array(noise))

    monkeypatch.setattr("perennial.training.evaluate.load_rows", harmed)
    evaluation = trained.evaluate(trained.fitted)
    assert evaluation.not_finite_inputs == {"noise": 7}
    decision = decide(evaluation, trained.folder.spec.gates)
    assert not decision.promote
    assert any("noise in 7 rows" in reason for reason in decision.reasons)


def test_what_is_handed_between_tasks_survives_json_and_is_small(trained: Trained) -> None:
    plain = json.dumps(trained.training_set.to_json())
    assert TrainingSet.from_json(json.loads(plain)) == trained.training_set
    assert len(plain) < 2_000
    for fitted in trained.fitted:
        plain = json.dumps(fitted.to_json())
        assert Fitted.from_json(json.loads(plain)) == fitted
        assert len(plain) < 4_000
    plain = json.dumps(trained.evaluation.to_json())
    assert Evaluation.from_json(json.loads(plain)) == trained.evaluation
    assert len(plain) < 8_000


def test_a_holdout_without_labels_is_refused_by_the_gates(
    folder: ModelFolder, deployment: Deployment, rows: pd.DataFrame
) -> None:
    rows["known_after"] = timedelta(hours=1)
    late = rows["moment"] >= PERIOD.start + timedelta(days=20)
    rows.loc[late, "known_after"] = timedelta(days=30)
    publish(deployment, rows)
    training_set = build(folder, deployment)
    fitted = fit_all(folder, deployment, training_set)
    evaluation = evaluate_training(folder, deployment, training_set, fitted, run_id="run-1")
    assert evaluation.rows == 0
    decision = decide(evaluation, folder.spec.gates)
    assert not decision.promote
    assert "labels are known for 0 of 300 rows" in decision.reasons[0]


# --- labels that come late -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [True, False])
def test_the_holdout_is_the_newest_interval_whose_labels_are_mature(
    tmp_path: Path, deployment: Deployment, stated: bool
) -> None:
    delay = {"delay": "label: {table: outcomes, => label: {delay: 3d, table: outcomes,"} if stated else {}
    folder = synthetic.write_folder(tmp_path, **delay)
    rows = synthetic.make_rows(25)
    rows["known_after"] = timedelta(days=2, hours=12)
    publish(deployment, rows)

    made = build(folder, deployment)

    # Three days of labels before the as-of time, three more before the holdout: it was learned what was known by then.
    assert (made.window, made.holdout) == ("2013-02-23--2013-03-15", "2013-03-18--2013-03-23")
    assert made.labelled == made.entities
    assert (made.label_delay, made.delay_measured) == (3, not stated)
    assert made.newest_label == "2013-03-22T19:40:00+00:00"
    assert load_rows(folder, deployment.lake, made, "holdout").num_rows == made.rows["holdout"]


def test_a_training_that_lacks_history_says_from_which_day_on_it_passes(tmp_path: Path, deployment: Deployment) -> None:
    folder = synthetic.write_folder(tmp_path, change="label: {table: outcomes, => label: {delay: 20d, table: outcomes,")
    publish(deployment, synthetic.make_rows(25))

    with pytest.raises(TrainingError, match=r"training passes as of 2013-04-\d\d, since labels take 20 days"):
        build(folder, deployment)
