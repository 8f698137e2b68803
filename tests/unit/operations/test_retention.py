"""Rows go when their time is over, never those that are still needed, and nobody takes them for a gap."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import ScoringError, SnapshotMissing, TrainingError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.features.publish import ensure_features
from perennial.ingestion.pushed import PushedRow, PushedRows
from perennial.operations.agreement import verify
from perennial.operations.maintenance import tidy_lake
from perennial.operations.retention import removable, remove_old_rows
from perennial.operations.retire import retire
from perennial.training.training_set import build_training_set
from tests.unit import synthetic
from tests.unit.monitored import World, make_world
from tests.unit.synthetic import write_folder

HISTORY = Interval.of("2013-01-01", "2013-04-11")
STATED = "gates: {min_rows: 50} => gates: {min_rows: 50}\nretention: {tables: 10d, features: 10d, predictions: 10d}"
NOW = utc("2013-04-12")
#: The training window and the holdout before the newest day; tables a lookback earlier.
FEATURES, TABLES = utc("2013-03-17"), utc("2013-03-15")


def history(place: Path, settings: Settings, **replaced: str) -> World:
    """A hundred days, published in four parts, the last ten days of them scored."""
    world = make_world(place, settings, **replaced)
    for start, end in (("2013-01-01", "2013-02-01"), ("2013-02-01", "2013-03-01"), ("2013-03-01", "2013-04-01")):
        world.publish(Interval.of(start, end), rows_a_day=10, seed=int(start[6]))
    world.publish(Interval.of("2013-04-01", "2013-04-11"), rows_a_day=10, seed=9)
    return world


def remove(world: World, now: Any = NOW) -> dict[str, int]:
    return remove_old_rows(world.settings.predictions_url, world.lake, world.ledger, world.folder.spec, now=now)


def first(world: World, table: str, dataset: str) -> Any:
    snapshot = world.ledger.head("toy", dataset).snapshots[table]
    return min(world.lake.scan("toy", table, snapshot, columns=["moment"]).read_all()["moment"].to_pylist())


def test_everything_is_kept_unless_a_duration_is_stated(tmp_path: Path, settings: Settings) -> None:
    world = history(tmp_path, settings)
    assert removable(world.ledger, world.folder.spec, now=NOW + timedelta(days=9_000)) == {}
    assert remove(world, NOW + timedelta(days=9_000)) == {}
    assert first(world, "features", "features") == HISTORY.start


def test_what_removes_rows_changes_no_model(tmp_path: Path) -> None:
    plain, stated = write_folder(tmp_path / "one"), write_folder(tmp_path / "other", change=STATED)
    assert plain.digest == stated.digest


def test_pushed_rows_go_with_those_of_tables_and_with_their_model(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, retention="gates: {min_rows: 50} => gates: {min_rows: 50}\nretention: {tables: 1d}")
    world.publish()
    pushed = PushedRows(settings.predictions_url)
    before = min(removable(world.ledger, world.folder.spec, now=NOW).values())
    moments = (before - timedelta(days=1), before, NOW)
    pushed.keep("toy", "visits", [PushedRow(one, str(one), str(one), "{}") for one in moments], NOW)
    pushed.keep("other", "visits", [PushedRow(one, str(one), str(one), "{}") for one in moments], NOW)

    assert remove(world)["pushed_rows"] == 1
    told = retire(world.deployment, "toy", actor="tester", reason="over")

    assert "2 rows that clients pushed are removed" in told
    [left] = pushed.find("other", lambda rows: pa.repeat(True, rows.num_rows))
    assert left.num_rows == 3
    assert list(pushed.find("toy", lambda rows: pa.repeat(True, rows.num_rows))) == []


def test_old_rows_go_from_tables_features_and_predictions_and_it_is_told(tmp_path: Path, settings: Settings) -> None:
    world = history(tmp_path, settings, retention=STATED)
    version = world.register("2013-04-01")
    world.score(version, Interval.of("2013-02-01", "2013-02-15"))
    world.score(version, Interval.of("2013-04-01", "2013-04-11"))
    # The synthetic version says that it learned from 1 March on.
    done = tidy_lake(Deployment(settings), world.folder.spec, now=NOW)["remove_old_rows"]
    assert done == {"visits": 570, "outcomes": 570, "features": 590, "predictions": 140, "toy_predictions": 140}
    assert first(world, "features", "features") == utc("2013-03-01")
    assert first(world, "visits", "tables") == utc("2013-02-27")
    assert first(world, "predictions", "predictions") == utc("2013-04-01")
    assert min(row["moment"] for row in world.sink()) >= "2013-04-01"
    assert [(one.dataset, one.before, one.rows) for one in world.ledger.removals("toy", "features")] == [
        ("features", utc("2013-03-01"), {"features": 590})
    ]
    assert remove(world) == {}, "twice is the same as once"
    assert verify(Deployment(settings)).problems == []


def test_what_a_kept_version_learned_from_and_the_next_training_will_stays(tmp_path: Path, settings: Settings) -> None:
    world = history(tmp_path, settings, retention=STATED)
    # Without versions, the next training decides: 20 days and a holdout of 5, up to 11 April.
    found = removable(world.ledger, world.folder.spec, now=NOW)
    assert (found["features"], found["tables"]) == (FEATURES, TABLES)
    world.register("2013-03-26")
    found = removable(world.ledger, world.folder.spec, now=NOW)
    assert (found["features"], found["tables"]) == (utc("2013-03-01"), utc("2013-02-27"))
    # A long one is as it is stated.
    long = "gates: {min_rows: 50} => gates: {min_rows: 50}\nretention: {features: 60d}"
    spec = write_folder(tmp_path / "long", change=long).spec
    assert removable(world.ledger, spec, now=NOW) == {"features": utc("2013-02-11")}


def test_days_that_were_removed_are_no_gap_and_say_what_they_are(tmp_path: Path, settings: Settings) -> None:
    world = history(tmp_path, settings, retention=STATED)
    remove(world)
    gone = Interval.of("2013-01-10", "2013-01-12")
    assert world.ledger.removed("toy", "features", Interval.of("2012-12-01", "2013-06-01")) == [
        Interval(HISTORY.start, FEATURES)
    ]
    with pytest.raises(SnapshotMissing, match=r"2013-01-10.*removed by retention.*toy.load"):
        ensure_features(world.folder, world.lake, gone, run_id="r")
    with pytest.raises(ScoringError, match="removed by retention"):
        world.score(world.register(), gone)
    # The rows are there again once they are loaded again.
    again = synthetic.make_rows(4, 10, seed=1, start=utc("2013-01-08"))
    span = Interval.of("2013-01-08", "2013-01-12")
    synthetic.publish_tables(world.lake, world.ledger, again, span, run_id="load")
    assert ensure_features(world.folder, world.lake, gone, run_id="r")
    assert world.ledger.removed("toy", "features", gone) == []


def test_a_training_on_days_that_were_removed_says_so(tmp_path: Path, settings: Settings) -> None:
    world = history(tmp_path, settings, retention=STATED)
    only_features = "gates: {min_rows: 50} => gates: {min_rows: 50}\nretention: {features: 10d}"
    folder = write_folder(tmp_path / "models", change=only_features)
    remove_old_rows(settings.predictions_url, world.lake, world.ledger, folder.spec, now=NOW)
    # Their tables are there, so their features are built again.
    made = build_training_set(folder, Deployment(settings), as_of=utc("2013-02-10"), run_id="r")
    assert made.rows["holdout"] == 50
    remove(world)
    with pytest.raises((TrainingError, SnapshotMissing), match="removed by retention"):
        build_training_set(world.folder, Deployment(settings), as_of=utc("2013-02-10"), run_id="late")
    assert build_training_set(world.folder, Deployment(settings), as_of=utc("2013-04-11"), run_id="now").rows
