"""Realised metrics: only of mature labels, only of rows that the version had not learned from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings
from perennial.evaluation.metrics import evaluate
from perennial.evidence.evaluation import Refresh
from perennial.evidence.monitoring import Constant
from perennial.features.labels import read_labels
from perennial.monitoring.performance import Realised, judged_windows, measure_performance, recipe_of, trainings_of
from perennial.spec.training import METRICS
from tests.unit.monitored import WEEK, World, make_world

NEXT_WEEK = Interval.of("2013-04-08", "2013-04-15")
LATE = utc("2013-06-01")


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return make_world(tmp_path, settings)


def measure(world: World, interval: Interval = WEEK, as_of: datetime = LATE) -> list[Realised]:
    return measure_performance(world.folder, world.deployment, interval, as_of=as_of, run_id="monitor")


def known_after(days: float) -> Callable[[pd.DataFrame], None]:
    """Labels of every fourth row come that many days late."""

    def change(rows: pd.DataFrame) -> None:
        rows["known_after"] = timedelta(hours=1)
        rows.loc[::4, "known_after"] = timedelta(days=days)

    return change


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification", "regression"])
def test_a_window_is_measured_in_the_metrics_of_the_holdout(tmp_path: Path, settings: Settings, task: str) -> None:
    world = make_world(tmp_path, settings, task)
    rows = world.publish(WEEK).sort_values("visit")
    version = world.register()
    world.score(version, WEEK)
    (realised,) = measure(world)
    assert (realised.interval, realised.version, realised.rows, realised.coverage) == (WEEK, version, 420, 1.0)
    assert set(realised.metrics) == set(METRICS[task]) - {"cost"}
    published = world.predictions(WEEK)
    truth = {
        "binary_classification": (rows["y"] > 0.5).to_numpy(),
        "multiclass_classification": np.where(rows["y"] < -0.5, "low", np.where(rows["y"] < 0.7, "middle", "high")),
        "regression": rows["y"].to_numpy(),
    }[task]
    probabilities: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if task == "multiclass_classification":
        given = [json.loads(row["probabilities"]) for row in published]
        classes = tuple(given[0])
        probabilities = np.array([[row[name] for name in classes] for row in given])
    said = np.array([row["prediction"] for row in published], dtype=object if probabilities is not None else None)
    assert realised.metrics == pytest.approx(
        evaluate(world.folder.spec.task, truth, said, probabilities=probabilities, classes=classes)
    )
    (recorded,) = world.ledger.performances("toy")
    assert (recorded.metrics, recorded.rows, recorded.coverage) == (realised.metrics, 420, 1.0)
    assert Realised.from_json(json.loads(json.dumps(realised.to_json()))) == realised


def test_a_window_waits_until_enough_labels_are_known(world: World) -> None:
    world.publish(WEEK, change=known_after(20))
    world.score(world.register(), WEEK)
    assert measure(world, as_of=WEEK.end + timedelta(days=1)) == []
    assert world.ledger.performances("toy") == []
    (realised,) = measure(world, NEXT_WEEK, as_of=LATE)
    assert (realised.interval, realised.coverage) == (WEEK, 1.0)


def test_a_window_is_measured_by_a_later_run_once_its_labels_are_mature(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, delay="label: {table: outcomes, => label: {delay: 60d, table: outcomes,")
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    # Labels are there, but the first ones do not stand for those that come in 60 days.
    assert measure(world, as_of=WEEK.end + timedelta(days=59)) == []
    later = Interval(WEEK.start + timedelta(days=63), WEEK.end + timedelta(days=63))
    (realised,) = measure(world, later, as_of=later.end)
    assert realised.interval == WEEK
    assert measure(world, later, as_of=later.end) == []


def test_labels_known_later_are_not_used_and_measured_when_they_come(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, gates="gates: {min_rows: 50} => gates: {min_rows: 50, label_coverage: 0.7}")
    world.publish(WEEK, change=known_after(20))
    world.score(world.register(), WEEK)
    early = WEEK.end + timedelta(days=1)
    (first,) = measure(world, as_of=early)
    assert (first.rows, first.coverage) == (315, 0.75)
    assert measure(world, as_of=early) == []
    (second,) = measure(world)
    assert (second.rows, second.coverage) == (420, 1.0)
    assert measure(world) == []
    (recorded,) = world.ledger.performances("toy")
    assert recorded.rows == 420


def test_too_few_labels_are_not_measured(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, gates="gates: {min_rows: 50} => gates: {min_rows: 421}")
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    assert measure(world) == []


def test_predictions_of_rows_that_the_version_may_have_learned_from_are_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.publish(WEEK)
    version = world.register("2013-04-03")
    world.score(version, WEEK)
    with caplog.at_level("INFO"):
        (realised,) = measure(world)
    assert (realised.rows, realised.in_sample, realised.coverage) == (300, 120, 1.0)
    assert "120 of 420 predictions of version 1 are left out" in caplog.text


def test_a_window_of_nothing_but_learned_rows_is_not_measured(world: World) -> None:
    world.publish(WEEK)
    world.score(world.register("2013-04-09"), WEEK)
    assert measure(world) == []


def test_each_version_is_measured_on_what_it_predicted(world: World) -> None:
    world.publish(WEEK)
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    world.score(old, WEEK)
    world.score(new, Interval.of("2013-04-01", "2013-04-03"))
    assert {found.version: found.rows for found in measure(world)} == {old: 300, new: 120}


def test_windows_before_the_one_that_is_monitored_are_caught_up_with(world: World) -> None:
    both = Interval(WEEK.start, NEXT_WEEK.end)
    world.publish(both)
    world.score(world.register(), both)
    assert [found.interval for found in measure(world, NEXT_WEEK)] == [WEEK, NEXT_WEEK]
    assert measure(world, NEXT_WEEK) == []


def test_days_are_measured_where_days_are_monitored(tmp_path: Path, settings: Settings) -> None:
    world = make_world(
        tmp_path, settings,
        gates="gates: {min_rows: 50} => gates: {min_rows: 50}\nschedules: {monitor: day}",
    )  # fmt: skip
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    assert [found.interval for found in measure(world, WEEK.days()[2])] == WEEK.days()[:3]


def test_a_range_that_is_no_whole_week_is_measured_by_whole_weeks(world: World) -> None:
    both = Interval(WEEK.start, NEXT_WEEK.end)
    world.publish(both)
    world.score(world.register(), both)
    assert [found.interval for found in measure(world, Interval.of("2013-04-03", "2013-04-12"))] == [WEEK]


def test_predictions_that_were_made_anew_are_measured_anew(world: World) -> None:
    rows = world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    (first,) = measure(world)
    rows["x"] = -rows["x"]
    world.publish_features(rows, WEEK, run_id="corrected")
    world.score(version, WEEK, run_id="again")
    # What was known earlier does not replace what is known now.
    assert measure(world, as_of=WEEK.end + timedelta(days=1)) == []
    (second,) = measure(world)
    assert second.rows == first.rows
    assert second.metrics["roc_auc"] < first.metrics["roc_auc"]
    assert measure(world) == []
    assert world.ledger.performances("toy")[0].metrics == second.metrics


def test_windows_that_have_nothing_new_are_not_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Interval(WEEK.start, NEXT_WEEK.end)
    world.publish(both, change=known_after(4))
    world.score(world.register(), both)
    asked: list[Interval] = []

    def watched(*arguments: Any, **named: Any) -> pa.Table:
        asked.append(arguments[3])
        return read_labels(*arguments, **named)

    monkeypatch.setattr("perennial.monitoring.performance.read_labels", watched)
    # Some labels of the next week are not known yet.
    assert [found.coverage for found in measure(world, NEXT_WEEK, as_of=NEXT_WEEK.end)] == [1.0, pytest.approx(0.857, abs=0.01)]
    assert [found.interval for found in measure(world, NEXT_WEEK)] == [NEXT_WEEK]
    assert measure(world, NEXT_WEEK) == []
    assert asked == [WEEK, NEXT_WEEK, NEXT_WEEK]


def test_nothing_is_measured_before_anything_is_scored(world: World) -> None:
    assert measure(world) == []


# --- the same answer for every row -----------------------------------------------------------------------------------

KNOWN: dict[str, dict[str, Any]] = {
    "binary_classification": {"classes": {"window": {"false": 60, "true": 40}, "holdout": {}}},
    "multiclass_classification": {"classes": {"window": {"low": 50, "middle": 30, "high": 20}, "holdout": {}}},
    "regression": {"mean_label": 0.5},
}


@pytest.mark.parametrize("task", list(KNOWN))
def test_a_window_is_also_measured_with_the_same_answer_for_every_row(tmp_path: Path, settings: Settings, task: str) -> None:
    world = make_world(tmp_path, settings, task)
    world.publish(WEEK)
    world.score(world.register(known=KNOWN[task]), WEEK)
    (realised,) = measure(world)
    (recorded,) = world.ledger.performances("toy")
    assert recorded.constant == realised.constant
    metric, found = world.folder.spec.primary_metric, realised.constant
    assert (realised.metrics[metric] > found.metrics[metric]) is METRICS[world.folder.spec.task][metric]
    assert found.comparison is None
    assert Realised.from_json(json.loads(json.dumps(realised.to_json()))) == realised


def turn_around(pipeline: Any) -> None:
    """What was likely is unlikely."""
    pipeline[-1].coef_ = -pipeline[-1].coef_


def test_a_version_that_is_worse_than_the_same_answer_is_compared_with_it_by_resamples(world: World) -> None:
    world.publish(WEEK)
    world.score(world.register(spoil=turn_around, known=KNOWN["binary_classification"]), WEEK)
    (realised,) = measure(world)
    found = realised.constant
    assert found.metrics["roc_auc"] == 0.5
    assert found.comparison is not None
    assert found.comparison.gain == pytest.approx(realised.metrics["roc_auc"] - 0.5)
    assert found.comparison.high is not None
    assert found.comparison.high < 0
    assert world.ledger.performances("toy")[0].constant == found
    assert Realised.from_json(json.loads(json.dumps(realised.to_json()))) == realised


def test_a_version_whose_training_rows_are_not_known_has_nothing_beside_it(world: World) -> None:
    world.publish(WEEK)
    world.score(world.register(spoil=turn_around), WEEK)
    (realised,) = measure(world)
    assert realised.constant == Constant()


# --- which windows are judged ----------------------------------------------------------------------------------------


def test_the_windows_of_a_recipe_are_judged_whichever_of_its_versions_served(world: World) -> None:
    first, second = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    for version in (first, second):
        world.promote(version)
    for version, window in ((first, WEEK), (second, NEXT_WEEK)):
        world.ledger.record_performance(
            model="toy",
            interval=window,
            version=version,
            metrics={"roc_auc": 0.7},
            rows=400,
            coverage=1.0,
            as_of=LATE,
            run_id="m",
        )
    spec, ledger = world.folder.spec, world.ledger
    found = judged_windows(spec, ledger, second, until=LATE)
    assert [(window.interval, window.version) for window in found] == [(WEEK, first), (NEXT_WEEK, second)]
    assert judged_windows(spec, ledger, second, until=WEEK.end) == found[:1]
    assert judged_windows(spec, ledger, None, until=LATE) == []

    # A training that was promoted since has answered the windows before it.
    third = world.register("2013-04-08", seed=7)
    assert len(judged_windows(spec, ledger, second, until=LATE)) == 2
    world.promote(third)
    assert [window.interval for window in judged_windows(spec, ledger, third, until=LATE)] == [NEXT_WEEK]


def test_withheld_windows_are_marked(world: World) -> None:
    version = world.register()
    world.ledger.record_performance(
        model="toy", interval=WEEK, version=version, metrics={"roc_auc": 0.7}, rows=400, coverage=1.0, as_of=LATE, run_id="m"
    )
    world.ledger.hold("toy", "data", WEEK, version=9, reasons=["labels differ"], run_id="refresh")
    (window,) = judged_windows(world.folder.spec, world.ledger, version, until=LATE)
    assert window.withheld


def test_a_refresh_is_no_training_and_shares_the_recipe_of_its_champion(world: World) -> None:
    number = world.register()
    record = world.ledger.version("toy", number)
    assert record is not None
    refresh = Refresh.from_json({"champion": number, "reference": number})
    refreshed = dataclasses.replace(record, version=2, evaluation=dataclasses.replace(record.evaluation, refresh=refresh))
    other = dataclasses.replace(record, version=3, training=dataclasses.replace(record.training, recipe="another"))
    unknown = dataclasses.replace(record, version=4, training=dataclasses.replace(record.training, recipe=""))
    versions = [record, refreshed, other, unknown]
    assert [found.version for found in trainings_of(versions)] == [1, 3, 4]
    assert [recipe_of(versions, version) for version in (1, 2, 3, 4, None)] == [{1, 2}, {1, 2}, {3}, {4}, set()]
