"""A version predicts and is measured through the folder that it was made by, whatever has become of the model's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.cli.main import main
from perennial.core.errors import (
    ArtifactRejected,
    LineageError,
    ModelRenamed,
    ScoringError,
    SnapshotMissing,
    SpecError,
    VersionUnusable,
)
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.evidence.evaluation import Contender
from perennial.features.publish import ensure_features
from perennial.ledger.records import VersionRecord
from perennial.operations.retention import remove_old_rows
from perennial.registry.folders import FOLDER, computable, own_features, own_folder
from perennial.spec.folder import ModelFolder, read_model
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

#: The version learned from days before; these come after it.
NEXT = Interval.of("2013-03-22", "2013-03-29")
LATER = Interval.of("2013-03-29", "2013-03-31")
BEFORE = Interval.of("2013-03-14", "2013-03-22")

#: Small and quick: two linear candidates, a short window.
QUICK = {
    "candidates": "\n  boosting:\n    estimator: gradient_boosting\n    params: {max_iter: 30}\n    "
    "search: {max_leaf_nodes: [4, 8]} => \n  ridge: {estimator: linear_regression}",
    "baseline": "linear: {estimator: linear_regression, baseline: true} => linear: {estimator: linear_regression}",
    "training": "window: 20d, holdout: 5d, validation: 5d => window: 7d, holdout: 7d, validation: 2d",
    "gates": "gates: {min_rows: 50} => gates: {min_rows: 50, leak: 1.0, operation: {latency: 60000}, resampling: {block: 1d}, "
    "champion: {mode: not_worse, margin: 1}, robustness: {noise_drop: null, missing_drop: null}}",
}
#: Another event time, which has the values of the one that it replaces.
HELD = "moment: {type: timestamp}\n      held: {type: timestamp, from: [moment]}"
WITHOUT_NOISE = "numeric: [x, noise] => numeric: [x]"
#: The feature noise is a category instead of a number.
IN_WORDS = "SELECT visit, x, CASE WHEN noise > 0 THEN 'up' ELSE 'down' END AS noise, kind FROM entities\n"
A_CATEGORY = {"number": WITHOUT_NOISE, "category": "categorical: [kind] => categorical: [kind, noise]"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Version 1, which takes x, noise and kind, is champion; tables have come since, and nobody needed their features."""
    world = make_world(tmp_path, synthetic.deployment(tmp_path), "regression", **QUICK)
    for part in (BEFORE, NEXT, LATER):
        bring(world, part)
    world.promote(world.register("2013-03-22"))
    return world


def bring(world: World, part: Interval, **replaced: Any) -> None:
    """Publish the tables of some days."""
    rows = synthetic.make_rows(len(part.days()), seed=part.start.day, start=part.start).assign(**replaced)
    synthetic.publish_tables(world.lake, world.ledger, rows, part, run_id=f"ingest-{part.key}-{sorted(replaced)}")


def change(world: World, sql: str, **replaced: str) -> ModelFolder:
    """Change the model's folder."""
    folder = synthetic.write_folder(world.folder.path.parent, "regression", **QUICK, **replaced)
    (folder.path / "features.sql").write_text(sql)
    return read_model(folder.path)


def predicted(world: World, interval: Interval) -> list[tuple[str, float, int]]:
    return [(row["visit"], row["prediction"], row["version"]) for row in world.predictions(interval)]


def rescored(world: World, interval: Interval) -> list[tuple[str, float, int]]:
    by_hand.score(world.settings, "toy", interval)
    return predicted(world, interval)


def newest(world: World) -> VersionRecord:
    return world.ledger.versions("toy")[-1]


def champion_in(record: VersionRecord) -> Contender:
    assert record.evaluation.champion is not None
    return record.evaluation.champion


@pytest.mark.parametrize(
    ("sql", "spec"),
    [
        pytest.param("SELECT visit, x, kind FROM entities\n", {"feature": WITHOUT_NOISE}, id="removed"),
        pytest.param(
            "SELECT visit, x, noise AS hum, kind FROM entities\n",
            {"feature": "numeric: [x, noise] => numeric: [x, hum]"},
            id="renamed",
        ),
        pytest.param("SELECT visit, 7 * x AS x, noise, kind FROM entities\n", {}, id="computed in another way"),
        pytest.param(IN_WORDS, A_CATEGORY, id="given another type"),
    ],
)
def test_a_champion_scores_by_its_own_folder_after_a_feature_was(world: World, sql: str, spec: dict[str, str]) -> None:
    before = rescored(world, NEXT)
    changed = change(world, sql, **spec)
    assert rescored(world, NEXT) == before
    assert rescored(world, LATER)[0][2] == 1
    own = own_folder(world.registry, 1, changed)
    [publication] = world.ledger.publications("toy", own.dataset, LATER)
    assert own.dataset == f"features_{publication.inputs['features_digest'][:12]}"
    assert own.dataset in world.ledger.datasets("toy")


def test_old_and_new_are_compared_on_the_same_rows_each_with_its_own_features(world: World) -> None:
    change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE)
    told = by_hand.train(world.settings, "toy", NEXT.end)
    assert told == "toy version 2 is champion"
    second = newest(world)
    champion = champion_in(second)
    assert (champion.version, champion.unusable, champion.error) == (1, None, None)
    assert champion.rows == second.evaluation.candidate.rows == 7 * 60
    assert second.evaluation.comparison is not None
    [reason] = [result.reason for result in second.decision.results if result.gate == "champion"]
    assert "version 1 needs the feature noise, which this folder no longer computes: its own folder made its features" in reason
    # Days before version 2 learned are scored by version 1, those after by version 2, which reads what all read.
    assert {version for _, _, version in rescored(world, NEXT)} == {1}
    assert {version for _, _, version in rescored(world, LATER)} == {2}
    [scored] = world.ledger.publications("toy", "predictions", LATER)
    assert scored.inputs["features_dataset"] == "features"


def test_a_feature_changes_its_type_and_the_model_goes_on(world: World) -> None:
    scored = rescored(world, NEXT)
    former = world.folder
    changed = change(world, IN_WORDS, **A_CATEGORY)
    told, in_order = by_hand.inspect(world.settings, "toy")
    assert in_order
    assert "noise becomes categorical in the published features: each day is built again before it is read" in told
    assert "version 1, the champion, needs the feature noise, of the other kind, numeric or categorical" in told

    assert by_hand.train(world.settings, "toy", NEXT.end) == "toy version 2 is champion"
    # The window of the training was built again; a day that nobody needed is not read as if it had no values.
    ensure_features(changed, world.lake, NEXT, run_id="now")
    assert set(noise(world, NEXT)) == {"up", "down"}
    assert {row["version"] for row in world.predictions(NEXT)} == {1}
    assert predicted(world, NEXT) == scored
    assert {version for _, _, version in rescored(world, LATER)} == {2}

    # Back again: each version still reads what it was trained on.
    change(world, (former.features_sql))
    assert "noise becomes numeric" in by_hand.inspect(world.settings, "toy")[0]
    ensure_features(former, world.lake, LATER, run_id="back")
    assert {type(value) for value in noise(world, LATER)} == {float, type(None)}
    with pytest.raises(SnapshotMissing, match=r"features have noise as string and not yet as double.*toy\.load"):
        noise(world, NEXT)
    assert {version for _, _, version in rescored(world, LATER)} == {2}
    assert by_hand.reproduce(world.settings, "toy", 2)[1]


def noise(world: World, interval: Interval) -> list[Any]:
    """The feature noise as it is published now."""
    newest = world.ledger.published("toy", "features")
    assert newest is not None
    columns = world.lake.scan("toy", "features", newest.snapshots["features"], columns=["noise"], interval=interval)
    found: list[Any] = columns.read_all()["noise"].to_pylist()
    return found


def test_a_champion_that_says_the_same_is_told_to_be_the_same(world: World) -> None:
    """Features in another order of columns and another text of the query: the same values, so the same predictions."""
    change(world, "SELECT visit, kind, noise, x FROM entities -- in another order\n")
    by_hand.train(world.settings, "toy", NEXT.end)
    champion = champion_in(newest(world))
    assert champion.remarks[:-1] == [
        "toy version 1 has features that this folder computes in another way: its own folder made its features"
    ]
    assert "age decides nothing" in champion.remarks[-1]


def test_a_window_is_judged_by_the_features_of_the_version_that_predicted(world: World) -> None:
    change(world, "SELECT visit, 100 * x AS x, noise, kind FROM entities\n")
    rescored(world, NEXT)
    by_hand.monitor(world.settings, "toy", NEXT)
    verdict = world.ledger.verdicts("toy")[-1]
    assert (verdict.version, verdict.verdict) == (1, "ok"), verdict.reasons
    assert {one.column for one in verdict.details.columns} == {"x", "noise", "kind", "prediction"}


def test_a_former_champion_scores_in_the_shadow_by_its_own_folder(world: World) -> None:
    change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE)
    by_hand.train(world.settings, "toy", NEXT.end)
    told = by_hand.score(world.settings, "toy", LATER)
    assert told == f"toy, {LATER}: 120 predictions by version 2, 120 by its shadow versions 1"


def test_another_label_is_told_and_both_are_measured_by_it(world: World) -> None:
    change(world, "SELECT visit, x, noise, kind FROM entities\n", label='sql: "y"} => sql: "2 * y"}')
    by_hand.train(world.settings, "toy", NEXT.end)
    second = newest(world)
    assert champion_in(second).remarks[:-1] == [
        "version 1 was trained for the label y of outcomes; all are measured by the present label, 2 * y of outcomes"
    ]
    assert champion_in(second).metrics["rmse"] > second.evaluation.candidate.metrics["rmse"]
    assert world.ledger.champion("toy") == 2


# --- what can no longer be made --------------------------------------------------------------------------------------


def without_column(world: World) -> ModelFolder:
    """The table no longer has what the feature noise is made of."""
    return change(
        world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE,
        column="\n      noise: {type: float, nullable: true} => ",
    )  # fmt: skip


def test_a_champion_whose_column_is_gone_is_unusable_and_another_takes_its_place(world: World) -> None:
    bring(world, NEXT, noise=None)
    bring(world, LATER, noise=None)
    without_column(world)
    with pytest.raises(VersionUnusable, match=r"needs what the tables of model.yaml no longer have \(visits.noise\)"):
        by_hand.score(world.settings, "toy", LATER)
    [alert] = [entry for entry in world.ledger.alerts() if entry.alert.kind == "champion_unusable"]
    assert (alert.alert.severity, alert.resolved_by) == ("critical", None)
    told = by_hand.train(world.settings, "toy", NEXT.end)
    assert told == "toy version 2 is champion"
    decision = newest(world).decision
    assert decision.champion == 1
    assert "visits.noise" in (decision.champion_unusable or "")
    [change] = by_hand.history(world.settings, "toy")[1:]
    assert change["why"] == "by hand; not compared with version 1, which can never be used again"
    assert "visits.noise" in change["evidence"]["champion_unusable"]
    assert {version for _, _, version in rescored(world, LATER)} == {2}
    [alert] = [entry for entry in world.ledger.alerts() if entry.alert.kind == "champion_unusable"]
    assert alert.resolved_by is not None


def test_nobody_rolls_back_to_a_version_that_can_no_longer_score(world: World) -> None:
    bring(world, NEXT, noise=None)
    without_column(world)
    assert by_hand.train(world.settings, "toy", NEXT.end) == "toy version 2 is champion"
    for back in (None, 1):
        with pytest.raises(VersionUnusable, match=r"needs what the tables of model.yaml no longer have \(visits.noise\)"):
            by_hand.rollback(world.settings, "toy", back, "it was better")
    with pytest.raises(VersionUnusable):
        by_hand.promote(world.settings, "toy", 1, "it was better")
    assert world.ledger.champion("toy") == 2


def test_a_candidate_that_is_no_better_than_a_baseline_does_not_replace_an_unusable_champion(world: World) -> None:
    bring(world, NEXT, noise=None)
    without_column(world)
    text = (world.folder.path / "model.yaml").read_text()
    (world.folder.path / "model.yaml").write_text(text.replace("gates: {", "gates: {baseline_margin: 9, "))
    told = by_hand.train(world.settings, "toy", NEXT.end)
    assert told.startswith("toy version 2 is refused: ")
    assert world.ledger.champion("toy") == 1
    assert newest(world).decision.refused_by == ["baseline"]


def test_days_that_still_have_the_column_are_scored_by_the_version_that_needs_it(world: World) -> None:
    bring(world, LATER, noise=None)
    without_column(world)
    assert {version for _, _, version in rescored(world, NEXT)} == {1}
    with pytest.raises(VersionUnusable):
        by_hand.score(world.settings, "toy", LATER)


def test_a_column_that_features_do_not_need_may_go(world: World) -> None:
    changed = change(
        world, "SELECT visit, x AS x, noise, kind FROM entities\n",
        column="\n      kind: {type: string, nullable: true} => \n      kind: {type: string, nullable: true}",
    )  # fmt: skip
    own = own_folder(world.registry, 1, changed)
    assert computable(own, None, None) is own.folder


def test_a_missing_day_does_not_keep_a_champion_with_its_own_folder_from_being_measured(world: World) -> None:
    after_a_gap = Interval.of("2013-04-01", "2013-04-02")
    bring(world, after_a_gap)
    change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE)
    assert by_hand.train(world.settings, "toy", after_a_gap.end) == "toy version 2 is champion"
    second = newest(world)
    assert second.training.missing == ["2013-03-31"]
    assert (champion_in(second).error, champion_in(second).rows) == (None, 6 * 60)


def test_predictions_of_another_task_are_not_measured(world: World) -> None:
    rescored(world, NEXT)
    synthetic.write_folder(world.folder.path.parent, "binary_classification")
    assert "\n0 windows measured" in by_hand.monitor(world.settings, "toy", NEXT)
    assert world.ledger.performances("toy") == []


def test_a_task_whose_predictions_cannot_stand_beside_the_published_ones_is_refused_before_a_training(world: World) -> None:
    rescored(world, NEXT)
    synthetic.write_folder(world.folder.path.parent, "multiclass_classification")
    told, sound = by_hand.inspect(world.settings, "toy")
    refused = "toy: multiclass_classification gives classes, and the predictions that are published are of the other kind"
    assert refused in told
    assert not sound
    with pytest.raises(SpecError, match=f"{refused}. Describe it as a model with another name"):
        by_hand.train(world.settings, "toy", NEXT.end)
    assert len(world.ledger.versions("toy")) == 1


@pytest.mark.parametrize(
    ("sql", "edits"),
    [
        (
            "SELECT ticket, x, noise, kind FROM entities\n",
            [("key: [visit]", "key: [ticket]"), ("visit: {type: string}", "ticket: {type: string, from: [visit]}")],
        ),
        (
            "SELECT visit, x, noise, kind FROM entities\n",
            [("event_time: moment", "event_time: held"), ("moment: {type: timestamp}", HELD), ("moment -", "held -")],
        ),
    ],
    ids=["key", "event time"],
)
def test_a_model_that_is_asked_for_other_entities_is_told_so_everywhere(
    world: World, sql: str, edits: list[tuple[str, str]]
) -> None:
    rescored(world, NEXT)
    text = (world.folder.path / "model.yaml").read_text()
    for old, new in edits:
        text = text.replace(old, new)
    (world.folder.path / "model.yaml").write_text(text + "retention: {tables: 30d, predictions: 30d, features: 30d}\n")
    (world.folder.path / "features.sql").write_text(sql)
    told, sound = by_hand.inspect(world.settings, "toy")
    assert "version 1, the champion, is unusable: toy version 1 predicts the rows of visits by visit (string) at moment" in told
    assert "ingest them again: perennial ingest toy 2013-03-17 2013-03-31" in told
    assert not sound
    assert "\n0 windows measured" in by_hand.monitor(world.settings, "toy", NEXT)
    assert "version 1, the champion, is unusable" in by_hand.tidy(world.settings, "toy")
    with pytest.raises(LineageError, match=r"the published predictions were made for entities without (ticket|held)"):
        by_hand.lineage(world.settings, "toy", prediction=["v1"], at=None, interval=None)
    with pytest.raises(SnapshotMissing, match=r"run toy.ingest again|ingest them again"):
        by_hand.train(world.settings, "toy", NEXT.end)


def test_a_label_table_that_was_never_published_is_told(world: World) -> None:
    rescored(world, NEXT)
    text = (world.folder.path / "model.yaml").read_text()
    (world.folder.path / "model.yaml").write_text(
        text.replace("outcomes:\n", "results:\n").replace("table: outcomes", "table: results")
    )
    told, sound = by_hand.inspect(world.settings, "toy")
    assert "No labels are published yet, in table results" in told
    assert sound
    assert "\n0 windows measured" in by_hand.monitor(world.settings, "toy", NEXT)
    with pytest.raises(SnapshotMissing, match=r"table results of model.yaml was never published"):
        by_hand.train(world.settings, "toy", NEXT.end)


def test_days_without_tables_are_no_fault_of_the_version(world: World) -> None:
    changed = change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE)
    own = own_folder(world.registry, 1, changed)
    with pytest.raises(ScoringError, match="no features are published"):
        own_features(own, world.lake, Interval(LATER.end, LATER.end + timedelta(days=1)), run_id="asked")


# --- what is gone from MLflow ----------------------------------------------------------------------------------------


def delete_version(client: MlflowClient, record: VersionRecord) -> None:
    client.delete_model_version("toy", str(record.version))


def delete_model(client: MlflowClient, record: VersionRecord) -> None:
    client.delete_registered_model("toy")


def delete_stored_model(client: MlflowClient, record: VersionRecord) -> None:
    client.delete_logged_model(record.training.model_id)


def delete_files(client: MlflowClient, record: VersionRecord) -> None:
    shutil.rmtree(client.get_logged_model(record.training.model_id).artifact_location.removeprefix("file://"))


def change_a_file(client: MlflowClient, record: VersionRecord) -> None:
    place = Path(client.get_logged_model(record.training.model_id).artifact_location.removeprefix("file://"))
    (place / "model.skops").write_bytes(b"broken")


@pytest.mark.parametrize("remove", [delete_version, delete_model, delete_stored_model, delete_files, change_a_file])
def test_a_version_that_is_gone_from_mlflow_or_changed_there_is_unusable(world: World, remove: Any) -> None:
    client = MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url)
    remove(client, newest(world))
    with pytest.raises(VersionUnusable):
        by_hand.score(world.settings, "toy", LATER)


def test_a_deleted_model_is_replaced_under_a_number_that_no_version_had(world: World) -> None:
    client = MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url)
    delete_model(client, newest(world))
    assert by_hand.train(world.settings, "toy", NEXT.end) == "toy version 2 is champion"
    assert (
        newest(world).decision.champion_unusable
        == "toy version 1 was deleted from MLflow; roll back to another version or train a new one"
    )
    assert int(client.get_model_version_by_alias("toy", "champion").version) == 2
    assert [int(found.version) for found in client.search_model_versions("name = 'toy'")] == [2]
    assert {version for _, _, version in rescored(world, LATER)} == {2}


def test_a_champion_whose_run_was_removed_for_good_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url)
    [first] = world.ledger.versions("toy")
    client.delete_model_version("toy", "1")
    # What `mlflow gc` leaves: MLflow answers that it has no such run.
    asked = MlflowClient.get_run

    def get_run(self: MlflowClient, run_id: str) -> Any:
        if run_id == first.mlflow_run_id:
            raise MlflowException(f"Run with id={run_id} not found", RESOURCE_DOES_NOT_EXIST)
        return asked(self, run_id)

    monkeypatch.setattr(MlflowClient, "get_run", get_run)
    assert by_hand.train(world.settings, "toy", NEXT.end) == "toy version 2 is champion"


def test_a_command_says_that_mlflow_does_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("API request to http://mlflow failed: Connection refused")

    monkeypatch.setattr(MlflowClient, "get_registered_model", refuse)
    for name, value in (("MODELS", world.settings.models), ("STATE", world.settings.state)):
        monkeypatch.setenv(f"PERENNIAL_{name}", str(value))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.settings.mlflow_url)
    with pytest.raises(SystemExit) as ended:
        main(["score", "toy", "2013-03-22", "2013-03-29"])
    assert str(ended.value.code).startswith("MLflow at sqlite:///")
    assert "does not answer as it should: API request to http://mlflow failed" in str(ended.value.code)


def test_nothing_is_done_by_hand_for_a_model_that_its_folder_calls_retired(world: World) -> None:
    file = world.folder.path / "model.yaml"
    file.write_text(f"{file.read_text()}retired: true\n")
    for stage in (by_hand.score, by_hand.monitor, by_hand.ingest):
        with pytest.raises(SpecError, match=r"toy is retired: to bring it back, remove `retired: true`"):
            stage(world.settings, "toy", NEXT)
    with pytest.raises(SpecError, match="toy is retired"):
        by_hand.train(world.settings, "toy", NEXT.end)


def test_a_champion_whose_own_folder_is_gone_is_unusable_only_if_it_needs_it(world: World) -> None:
    client = MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url)
    run = client.get_run(newest(world).mlflow_run_id)
    shutil.rmtree(Path(run.info.artifact_uri.removeprefix("file://")) / FOLDER)
    assert {version for _, _, version in rescored(world, LATER)} == {1}
    change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE)
    with pytest.raises(VersionUnusable, match="is no longer in MLflow, in the folder folder/ of its run"):
        by_hand.score(world.settings, "toy", LATER)
    assert by_hand.train(world.settings, "toy", NEXT.end) == "toy version 2 is champion"


# --- what is not gone ------------------------------------------------------------------------------------------------


def test_a_renamed_model_is_told_and_nothing_is_changed_until_it_has_its_name_back(world: World) -> None:
    client = MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url)
    client.rename_registered_model("toy", "shop")
    for attempt in (
        lambda: by_hand.score(world.settings, "toy", LATER),
        lambda: by_hand.train(world.settings, "toy", NEXT.end),
        lambda: world.registry.load("toy", 1),
    ):
        with pytest.raises(ModelRenamed, match="was renamed to shop in MLflow, and nothing was changed: rename it back to toy"):
            attempt()
    assert world.registry.reconcile("toy") == 1
    assert [found.name for found in client.search_registered_models()] == ["shop"]
    assert [entry.alert.kind for entry in world.ledger.alerts()] == ["promoted"]
    client.rename_registered_model("shop", "toy")
    assert {version for _, _, version in rescored(world, LATER)} == {1}
    assert world.registry.alias("toy") == 1


def test_a_promotion_that_was_open_when_the_model_was_renamed_waits(world: World) -> None:
    second = world.register("2013-03-23", seed=6)
    world.ledger.intend_promotion(
        model="toy",
        version=second,
        expected=1,
        action="promote",
        reason="it is better",
        actor="tester",
        run_id=None,
        evidence={},
    )
    client = MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url)
    client.rename_registered_model("toy", "shop")
    with pytest.raises(ModelRenamed):
        world.registry.reconcile("toy")
    client.rename_registered_model("shop", "toy")
    assert world.registry.reconcile("toy") == second


def test_a_store_that_does_not_answer_makes_nothing_unusable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Deployment(world.settings.model_copy(update={"mlflow_url": "http://127.0.0.1:9", "may_promote": False}))
    with pytest.raises(MlflowException) as raised:
        away.registry.load("toy", 1)
    assert not isinstance(raised.value, VersionUnusable)
    with pytest.raises(MlflowException):
        own_folder(away.registry, 1, change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE))


def test_files_that_cannot_be_fetched_now_make_no_version_unusable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has them, and reading them fails: a file stands where the copy is to go."""
    record = newest(world)
    place = world.registry._client.get_logged_model(record.training.model_id).artifact_location
    (Path(place.removeprefix("file://")) / "more").symlink_to("/proc/self/mem")
    with pytest.raises(ArtifactRejected, match="cannot be fetched") as raised:
        world.registry.load("toy", 1)
    assert not isinstance(raised.value, VersionUnusable)


# --- what becomes of the features ------------------------------------------------------------------------------------


def test_features_of_another_definition_are_removed_once_nobody_needs_them_and_made_again(world: World) -> None:
    changed = change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE)
    before = rescored(world, LATER)
    dataset = own_folder(world.registry, 1, changed).dataset
    now = datetime.now(UTC)
    remove = partial(remove_old_rows, world.settings.predictions_url, world.lake, world.ledger, changed.spec)
    assert remove(now=now) == {}
    assert remove(now=now + changed.spec.retention.snapshots + timedelta(days=1)) == {dataset: 120}
    assert rescored(world, LATER) == before


def test_a_prediction_is_traced_to_the_features_that_its_version_read(world: World) -> None:
    change(world, "SELECT visit, x, kind FROM entities\n", feature=WITHOUT_NOISE)
    [(visit, _, _), *_] = rescored(world, LATER)
    node = by_hand.lineage(world.settings, "toy", prediction=[visit], at=None, interval=None)
    assert node.find("features")[-1].facts["content"] is not None
    assert [found.name for found in node.find("table") if found.name == "visits"] == ["visits"]
    forward = by_hand.lineage(world.settings, "toy", prediction=None, at=None, interval=LATER)
    assert f"predictions of {LATER}" in [found.name for found in forward.find("prediction")]
