"""Who predicts, what is published, and what is refused before anybody can read it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.errors import ArtifactRejected, NoChampion, ScoringError, Superseded
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.ledger.coverage import uncovered
from perennial.ledger.records import Publication
from perennial.model.artifacts import LoadedModel, Prediction
from perennial.scoring.champion import resolve_champion
from perennial.scoring.predictor import CHUNK_ROWS, predictions_schema
from perennial.scoring.sink import PredictionSink
from tests.unit.monitored import DAY, WEEK, World, as_utc, make_world


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return make_world(tmp_path, settings)


# --- who predicts ----------------------------------------------------------------------------------------------------


def test_without_a_promotion_there_is_nobody_to_predict(world: World) -> None:
    with pytest.raises(NoChampion, match=r"toy: no version has been promoted yet, .* run toy\.train"):
        resolve_champion(world.registry, world.ledger, "toy", DAY)


def test_no_version_predicts_what_it_may_have_learned_from(world: World) -> None:
    early, middle, late = (world.register(as_of) for as_of in ("2013-03-10", "2013-03-20", "2013-03-30"))
    for version in (early, middle, late):
        world.promote(version)

    def resolved(day: str) -> int:
        return resolve_champion(world.registry, world.ledger, "toy", Interval.day(day))

    assert resolved("2013-03-30") == late
    assert resolved("2013-03-29") == middle
    assert resolved("2013-03-15") == early
    # Nobody can stand in: the champion predicts rather than nobody.
    assert resolved("2013-03-01") == late
    world.registry.rollback("toy", actor="tester", reason="late was wrong")
    assert resolved("2013-04-05") == middle
    world.promote(world.register("2013-04-10"))
    # What was rolled back from does not come back by the back door.
    assert resolved("2013-04-05") == middle


@pytest.mark.parametrize(
    ("published", "gaps"),
    [
        ([], ["2013-04-01--2013-04-08"]),
        (["2013-04-01--2013-04-08"], []),
        (["2013-03-25--2013-04-03", "2013-04-02--2013-04-09"], []),
        (["2013-04-02", "2013-04-05--2013-04-07"], ["2013-04-01", "2013-04-03--2013-04-05", "2013-04-07"]),
        (["2013-04-05", "2013-04-01"], ["2013-04-02--2013-04-05", "2013-04-06--2013-04-08"]),
    ],
)
def test_days_that_nothing_covers_are_found(published: list[str], gaps: list[str]) -> None:
    publications = [
        Publication(1, "toy", "features", Interval.from_key(key), 1, {}, {}, {}, "run", DAY.start, {}) for key in published
    ]
    assert [gap.key for gap in uncovered(WEEK, publications)] == gaps


# --- what is published -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification", "regression"])
def test_each_entity_gets_one_prediction_that_says_where_it_is_from(tmp_path: Path, settings: Settings, task: str) -> None:
    world = make_world(tmp_path, settings, task)
    version = world.register()
    rows = world.publish()
    scored = world.score(version, run_id="score-1")
    published = world.predictions()
    assert [row["visit"] for row in published] == sorted(rows["visit"])
    assert list(published[0]) == predictions_schema(world.folder.spec).names
    features = world.ledger.published("toy", "features")
    assert features is not None
    assert {(row["version"], row["features_snapshot"], row["run_id"]) for row in published} == {
        (version, features.snapshots["features"], "score-1")
    }
    assert all(row["moment"] > row["as_of"] for row in published)
    loaded = world.registry.load("toy", version)
    ordered = rows.sort_values("visit")
    expected = loaded.predict(pa.Table.from_pandas(ordered[["x", "noise", "kind"]], preserve_index=False))
    assert [row["prediction"] for row in published] == expected.values.tolist()
    if task == "multiclass_classification":
        assert expected.probability is not None
        assert expected.probabilities is not None
        assert [row["probability"] for row in published] == expected.probability.tolist()
        given = [json.loads(row["probabilities"]) for row in published]
        assert [[row[name] for name in expected.classes] for row in given] == expected.probabilities.tolist()
    assert scored.rows == 60


def test_consumers_read_what_is_in_the_lake(world: World) -> None:
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    published, read = world.predictions(WEEK), world.sink()
    assert len(read) == len(published) == 420
    for ours, theirs in zip(published, read, strict=True):
        assert {**theirs, **{name: as_utc(theirs[name]) for name in ("moment", "as_of", "predicted_at")}} == ours


@pytest.mark.usefixtures("postgres")
def test_consumers_read_what_is_in_the_lake_from_postgresql(world: World, postgres: str) -> None:
    world.publish(WEEK)
    world.score(world.register(), WEEK, sink_url=postgres)
    published, read = world.predictions(WEEK), world.sink(postgres)
    for ours, theirs in zip(published, read, strict=True):
        assert {**theirs, **{name: as_utc(theirs[name]) for name in ("moment", "as_of", "predicted_at")}} == ours


def said(rows: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    return [(row["visit"], row["prediction"], row["version"]) for row in rows]


def test_scored_twice_the_rows_are_there_once(world: World) -> None:
    world.publish()
    version = world.register()
    world.score(version, run_id="a")
    first = said(world.predictions())
    world.score(version, run_id="a")
    world.score(version, run_id="b")
    assert said(world.predictions()) == said(world.sink()) == first


def test_only_the_interval_is_scored_again(world: World) -> None:
    world.publish(WEEK)
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    world.score(old, WEEK)
    world.score(new, Interval.day("2013-04-03"))
    by_day = {row["moment"].date().isoformat(): row["version"] for row in world.predictions(WEEK)}
    assert [by_day[day] for day in sorted(by_day)] == [old, old, new, old, old, old, old]
    assert said(world.sink()) == said(world.predictions(WEEK))


def test_a_run_that_was_overtaken_publishes_nothing(world: World) -> None:
    world.publish()
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    world.ledger.next_order("toy", "predictions", DAY, "slow")
    world.score(new, run_id="quick")
    with pytest.raises(Superseded):
        world.score(old, run_id="slow")
    assert {row["version"] for row in world.predictions()} == {row["version"] for row in world.sink()} == {new}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_rows_are_sent_as_they_are_predicted_and_not_read_again(
    world: World, database: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    read: list[str] = []
    scan = world.lake.scan

    def watched(model: str, table: str, *given: Any, **named: Any) -> pa.RecordBatchReader:
        read.append(table)
        return scan(model, table, *given, **named)

    monkeypatch.setattr(world.lake, "scan", watched)
    url = str(request.getfixturevalue("postgres")) if database == "postgresql" else None
    world.score(world.register(), sink_url=url)
    assert read == ["features"]
    assert said(world.sink(url)) == said(world.predictions())


def test_nothing_is_visible_in_the_sink_before_the_lake_has_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish()
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    seen: list[set[int]] = []
    staged, commit = threading.Event(), world.ledger.commit
    stage = PredictionSink._stage

    def tell(*given: Any) -> int:
        rows = stage(*given)
        staged.set()
        return rows

    def look(*given: Any, **named: Any) -> Any:
        assert staged.wait(60)
        staged.clear()
        seen.append({row["version"] for row in world.sink()})
        return commit(*given, **named)

    monkeypatch.setattr(PredictionSink, "_stage", tell)
    monkeypatch.setattr(world.ledger, "commit", look)
    world.score(old)
    world.score(new)
    assert seen == [set(), {old}]
    assert {row["version"] for row in world.sink()} == {new}


def test_a_sink_that_fails_while_rows_are_staged_is_brought_in_line_from_the_lake(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    stage = PredictionSink._stage
    failed: list[pa.RecordBatch] = []

    def fail_once(self: PredictionSink, connection: Any, rows: Any) -> int:
        if not failed:
            failed.append(next(iter(rows)))
            raise OSError("connection reset")
        return stage(self, connection, rows)

    monkeypatch.setattr(PredictionSink, "_stage", fail_once)
    world.score(world.register())
    assert failed
    assert said(world.sink()) == said(world.predictions()) != []


def test_a_sink_that_is_gone_leaves_the_publication_standing_and_the_next_run_mends_it(world: World, tmp_path: Path) -> None:
    world.publish()
    version, missing = world.register(), tmp_path / "missing"
    url = f"sqlite:///{missing / 'predictions.db'}"
    with pytest.raises(ScoringError, match=r"published in the lake\. Repair the database, then score the interval again"):
        world.score(version, run_id="first", sink_url=url)
    assert len(world.predictions()) == 60
    missing.mkdir()
    world.score(version, run_id="second", sink_url=url)
    assert said(world.sink(url)) == said(world.predictions())


def test_a_publication_of_another_run_in_between_wins(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish()
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    publish = world.lake.publish
    crossed: list[int] = []

    def cross(**named: Any) -> Publication:
        publication = publish(**named)
        if not crossed:
            crossed.append(publication.id)
            # The other one has published, and its rows are not in the predictions database yet.
            with pytest.raises(ScoringError, match="published in the lake"):
                world.score(new, run_id="quick", sink_url=f"sqlite:///{tmp_path / 'missing' / 'predictions.db'}")
        return publication

    monkeypatch.setattr(world.lake, "publish", cross)
    world.score(old, run_id="slow")
    assert {row["version"] for row in world.predictions()} == {row["version"] for row in world.sink()} == {new}


def test_predictions_that_are_refused_leave_no_trace_in_the_sink(world: World) -> None:
    world.publish()
    with pytest.raises(ScoringError):
        world.score(world.register(spoil=spoil_coefficients(np.nan)))
    with sa.create_engine(world.settings.predictions_url, poolclass=NullPool).connect() as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_an_interval_without_entities_is_scored(world: World) -> None:
    rows = world.publish()
    world.publish_features(rows.iloc[:0], DAY, run_id="none")
    scored = world.score(world.register())
    assert (scored.rows, world.predictions(), world.sink()) == (0, [], [])


def test_memory_does_not_grow_with_the_interval(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish(WEEK)
    version = world.register()
    monkeypatch.setattr("perennial.scoring.predictor.CHUNK_ROWS", 100)
    sizes: list[int] = []
    load = world.registry.load

    def watched(*arguments: Any, **named: Any) -> Any:
        model = load(*arguments, **named)
        monkeypatch.setattr(type(model), "predict", predict)
        return model

    def predict(self: LoadedModel, rows: pa.Table) -> Prediction:
        sizes.append(rows.num_rows)
        return original(self, rows)

    original = type(load("toy", version)).predict
    monkeypatch.setattr(world.registry, "load", watched)
    world.score(version, WEEK)
    assert sizes == [100, 100, 100, 100, 20]
    assert CHUNK_ROWS < 1_000_000


# --- what is refused -------------------------------------------------------------------------------------------------


def spoil_coefficients(value: float) -> Any:
    def spoil(pipeline: Any) -> None:
        pipeline[-1].coef_[:] = value

    return spoil


def make_infinite(pipeline: Any) -> None:
    pipeline[-1].intercept_ = np.inf


def make_constant(pipeline: Any) -> None:
    pipeline[-1].coef_ = np.zeros_like(pipeline[-1].coef_)


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification", "regression"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_coefficients(np.nan), r"60 of 60 predictions are NaN or infinite"),
        (make_constant, r"predicts .* for each of 60 entities"),
    ],
)
def test_predictions_of_a_spoiled_model_are_refused(
    tmp_path: Path, settings: Settings, task: str, spoil: Any, why: str
) -> None:
    world = make_world(tmp_path, settings, task)
    world.publish()
    with pytest.raises(ScoringError, match=rf"toy, 2013-04-01: version 1.*{why}.* nothing was published"):
        world.score(world.register(spoil=spoil))
    assert world.predictions() == world.sink() == []


def test_infinite_predictions_are_refused(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, "regression")
    world.publish()
    with pytest.raises(ScoringError, match="NaN or infinite"):
        world.score(world.register(spoil=make_infinite))
    assert world.predictions() == []


def test_a_refusal_leaves_the_predictions_before_as_they_are(world: World) -> None:
    world.publish()
    good, bad = world.register("2013-03-10"), world.register("2013-03-20", spoil=spoil_coefficients(np.nan))
    world.score(good)
    before = said(world.predictions())
    with pytest.raises(ScoringError):
        world.score(bad)
    assert said(world.predictions()) == said(world.sink()) == before


def test_a_few_entities_may_have_the_same_prediction(world: World) -> None:
    world.publish(rows_a_day=49)
    assert world.score(world.register(spoil=make_constant)).rows == 49


def test_a_wrong_number_of_predictions_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish()
    version = world.register()
    model = world.registry.load("toy", version)

    def one_short(_: Any, rows: pa.Table) -> Prediction:
        values = np.linspace(0, 1, rows.num_rows - 1)
        return Prediction(values, values, None, ())

    monkeypatch.setattr(type(model), "predict", one_short)
    with pytest.raises(ScoringError, match="gave 59 predictions for 60 entities; nothing was published"):
        world.score(version)
    assert world.predictions() == []


def test_days_without_features_are_refused_by_name(world: World) -> None:
    world.publish(Interval.of("2013-04-01", "2013-04-04"))
    with pytest.raises(ScoringError, match=r"no features are published for 2013-04-04--2013-04-08: run toy\.ingest"):
        world.score(world.register(), WEEK)


def test_a_model_file_that_was_changed_is_not_used(world: World, settings: Settings) -> None:
    world.publish()
    version = world.register()
    (stored,) = settings.state.rglob("model.skops")
    stored.write_bytes(stored.read_bytes() + b"x")
    with pytest.raises(ArtifactRejected):
        world.score(version)
    assert world.predictions() == []
