"""A version is made again from its pinned rows to the last bit, whatever has been published, tidied or edited since."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.core.errors import ArtifactRejected, SnapshotMissing, TrainingError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.evidence.training import CodeState, TrainingSet
from perennial.features.publish import ensure_features
from perennial.model.boosters import LIBRARIES, installed
from perennial.operations.maintenance import maintain
from perennial.spec.folder import ModelFolder, read_model
from perennial.training.reproduce import Reproduction, _changes, reproduce
from perennial.training.training_set import content_hash, load_rows
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

DAYS = 25
PERIOD = Interval(synthetic.START, synthetic.START + timedelta(days=DAYS))
LATER = datetime.now(UTC) + timedelta(days=400)


def make_trained(place: Path, *, single_days: int = 0, **replaced: str) -> World:
    """A world with one version, trained on days of which the last ``single_days`` were published one by one."""
    settings = synthetic.deployment(place)
    world = make_world(place, settings, **replaced)
    rows = synthetic.make_rows(DAYS)
    days = PERIOD.days()[DAYS - single_days :]
    for part in [Interval(PERIOD.start, PERIOD.end - timedelta(days=single_days)), *days]:
        of_part = rows[(rows["moment"] >= part.start) & (rows["moment"] < part.end)]
        synthetic.publish_tables(world.lake, world.ledger, of_part, part, run_id=f"ingest-{part.key}")
    train(settings)
    return world


def train(settings: Settings) -> None:
    by_hand.train(settings, "toy", PERIOD.end)


def again(world: World, version: int = 1, folder: ModelFolder | None = None) -> Reproduction:
    return reproduce("toy", version, world.deployment, folder=folder or world.folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with threadpool_limits(1):
        return make_trained(tmp_path_factory.mktemp("trained"))


def test_a_version_made_again_predicts_the_same_to_the_last_bit(world: World) -> None:
    made = again(world)
    assert made.identical
    assert (made.differing, made.largest) == (0, 0.0)
    assert made.rows == 5 * 60
    assert made.notes == made.changes == []
    record = world.ledger.version("toy", 1)
    assert record is not None
    judged = record.evaluation.candidate.predictions
    assert judged is not None
    assert made.expected == judged.digest
    assert "predicts the same to the last bit on its holdout 2013-03-21--2013-03-26 (300 rows)" in made.describe()


def test_a_person_is_told_whether_it_could_be_made_again(world: World) -> None:
    told, identical = by_hand.reproduce(world.settings, "toy", 1)
    assert identical
    assert "to the last bit" in told


def test_a_late_backfill_and_maintenance_leave_the_old_training_set_as_it_was(tmp_path: Path) -> None:
    world = make_trained(tmp_path, single_days=20)
    record = world.ledger.version("toy", 1)
    assert record is not None
    pinned = record.training.training_set
    before = {part: load_rows(world.folder, world.lake, pinned, part) for part in ("window", "holdout")}

    # Rows and labels of old days come once more, and are others.
    old = Interval(PERIOD.start + timedelta(days=1), PERIOD.start + timedelta(days=4))
    rows = synthetic.make_rows(3, seed=99, start=old.start)
    synthetic.publish_tables(world.lake, world.ledger, rows, old, run_id="backfill")
    train(world.settings)
    second = world.ledger.version("toy", 2)
    assert second is not None
    assert second.training.content["window"] != pinned.content["window"]
    unchanged(world, pinned, before)

    # Compaction, expiry and removal of orphans, a year later.
    done = maintain(world.deployment, world.folder.spec, now=LATER)
    assert done["tidy_tables"]["joined"] >= 16
    assert done["tidy_tables"]["snapshots"] > 0
    assert done["tidy_tables"]["orphans"] > 0
    unchanged(world, pinned, before)
    assert again(world, 1).identical
    assert again(world, 2).identical


def unchanged(world: World, pinned: TrainingSet, before: dict[Any, Any]) -> None:
    for part, rows in before.items():
        now = load_rows(world.folder, world.lake, pinned, part)
        assert now.equals(rows)
        assert content_hash(now) == pinned.content[part]


def test_a_version_is_made_again_by_the_folder_it_was_made_by_after_that_was_edited(world: World, tmp_path: Path) -> None:
    edited = synthetic.write_folder(tmp_path, change="max_iter: 30 => max_iter: 31")
    made = again(world, folder=edited)
    assert made.identical
    assert made.notes == ["model.yaml changed since the version was made; the files logged with it were used"]
    (edited.path / "features.sql").write_text("SELECT visit, 2 * x AS x, noise, kind FROM entities\n")
    made = again(world, folder=read_model(edited.path))
    assert made.identical
    assert made.notes[0].startswith("features.sql, model.yaml changed")


def test_a_folder_that_is_gone_is_no_obstacle(world: World) -> None:
    made = reproduce("toy", 1, world.deployment, folder=None)
    assert made.identical
    assert made.notes == ["the present model folder cannot be read; the files logged with the version were used"]


def test_logged_files_that_someone_changed_are_not_used(world: World, tmp_path: Path) -> None:
    record = world.ledger.version("toy", 1)
    assert record is not None
    [logged] = world.settings.state.rglob(f"{record.mlflow_run_id}/artifacts/folder/model.yaml")
    edited, honest = synthetic.write_folder(tmp_path, change="max_iter: 30 => max_iter: 31"), logged.read_text()
    try:
        logged.write_text(honest.replace('"max_iter": 30', '"max_iter": 3'))
        with pytest.raises(ArtifactRejected, match=r"folder/model\.yaml in MLflow is not the file that the ledger records"):
            again(world, folder=edited)
        logged.unlink()
        with pytest.raises(ArtifactRejected, match=r"model\.yaml is no longer in MLflow"):
            again(world, folder=edited)
    finally:
        logged.write_text(honest)


def test_a_training_that_draws_without_a_seed_is_told_apart_row_by_row(tmp_path: Path) -> None:
    code = """
        import random
        from sklearn.ensemble import HistGradientBoostingClassifier

        def chance(**params):
            return HistGradientBoostingClassifier(max_features=0.5, random_state=random.SystemRandom().randrange(2**32))
    """
    world = make_trained(
        tmp_path,
        code=code,
        change="estimator: gradient_boosting\n    params: {max_iter: 30}\n    search: {max_leaf_nodes: [4, 8]} => "
        "estimator: model:chance",
    )
    made = again(world)
    assert not made.identical
    assert made.differing
    assert made.largest is not None
    assert 0 < made.largest < 1
    assert "likely reason: not recorded; check whether a function of model.py draws numbers without a seed" in made.describe()


def test_a_version_that_was_deleted_is_compared_by_its_hash_until_its_snapshots_are_let_go(tmp_path: Path) -> None:
    world = make_trained(tmp_path)
    client = MlflowClient(tracking_uri=world.settings.mlflow_url, registry_uri=world.settings.mlflow_url)
    client.delete_model_version("toy", "1")
    made = again(world)
    assert made.identical
    assert made.differing is None
    assert "was deleted from MLflow" in made.notes[0]

    record = world.ledger.version("toy", 1)
    assert record is not None
    rows = synthetic.make_rows(DAYS, seed=3)
    synthetic.publish_tables(world.lake, world.ledger, rows, PERIOD, run_id="again")
    ensure_features(world.folder, world.lake, PERIOD, run_id="again")
    world.lake.unpin("toy", record.training.pin)
    maintain(world.deployment, world.folder.spec, now=LATER)
    with pytest.raises(SnapshotMissing, match=r"among the newest retention\.versions \(20\)"):
        again(world)


def test_a_version_that_there_is_not_names_those_there_are(world: World) -> None:
    with pytest.raises(TrainingError, match=r"toy has no version 7 in the ledger; there are: 1"):
        again(world, 7)


def test_what_changed_since_is_named() -> None:
    then = CodeState(
        commit="aaa", dirty=True, python="3.11.1", machine="x86_64", packages={"numpy": "2.0", "scipy": "1.0"},
        threads={"openmp": 1},
    )  # fmt: skip
    assert _changes(then, replace(then, dirty=False)) == ["the code had uncommitted changes when it was made"]
    now = replace(then, commit="bbb", dirty=False, packages={"numpy": "2.1"}, threads={"openmp": 2})
    assert _changes(replace(then, dirty=False), now) == [
        "the commit was aaa, it is bbb",
        "numpy was 2.0, it is 2.1",
        "scipy was 1.0, it is gone",
        "it was computed with threads {'openmp': 1}, this process has {'openmp': 2}",
    ]
    assert _changes(CodeState(), CodeState()) == ["the number of threads that computed it is not recorded"]


def test_boosters_of_other_libraries_become_champion_and_are_made_again_to_the_last_bit(tmp_path: Path) -> None:
    booster = "estimator: gradient_boosting => estimator: xgboost"
    params = "params: {max_iter: 30}\n    search: {max_leaf_nodes: [4, 8]} => params: {n_estimators: 20}"
    other = "  boosting:\n =>   light: {estimator: lightgbm, params: {n_estimators: 2}}\n  boosting:\n"
    weight = "training: { => training: {weight: {half_life: 10d}, "
    world = make_trained(tmp_path, booster=booster, params=params, other=other, weight=weight)
    record = world.ledger.version("toy", 1)
    assert record is not None
    assert record.decision.promote, record.decision.reasons
    assert record.evaluation.candidate.name == "boosting"
    assert {library: record.code.packages.get(library) for library in LIBRARIES} == {one: installed(one) for one in LIBRARIES}
    run = MlflowClient(tracking_uri=world.settings.mlflow_url).get_run(record.mlflow_run_id)
    assert run.data.params["weight"] == "half_life: 10d"
    made = again(world)
    assert made.identical
    assert (made.differing, made.notes, made.changes) == (0, [], [])
    assert made.refit_found == made.refit_expected != ""
