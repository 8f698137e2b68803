"""Thresholds keep the budget of false alarms on what history was like, and the file they are kept in is read strictly."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.cli import command, main, questions
from perennial.core.errors import CalibrationError, NoChampion, SpecError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings, read_settings
from perennial.drift.distances import prepare_all
from perennial.drift.thresholds import Geometry, StableHistory, calibrate, draw, read_history, write
from perennial.monitoring.verdicts import judge_drift
from perennial.spec.folder import ModelFolder, read_model
from perennial.spec.monitoring import Drift, DriftThresholds
from tests.unit.monitored import WEEK, World, make_world

DAYS, ROWS = 140, 60
START = np.datetime64("2013-01-01T00:00:00", "us")
GEOMETRY = Geometry(window=7, reference=56, unseen=14, gap=(7, 14))
POLICY = Drift(min_rows=50)


def history(days: int = DAYS, *, seed: int = 1, wander: float = 0.3, columns: int = 6, **more: Any) -> StableHistory:
    """Days that differ from each other, as real ones do: the mean of each column wanders from day to day."""
    random = np.random.default_rng(seed)
    moments = START + (np.repeat(np.arange(days), ROWS) * 24 * 60 + np.tile(np.arange(ROWS), days) * 20).astype(
        "timedelta64[m]"
    )
    day = np.repeat(np.arange(days), ROWS)
    table: dict[str, Any] = {
        f"n{number}": random.normal(size=days * ROWS) + (wander * random.normal(size=days))[day] for number in range(columns)
    }
    table["kind"] = random.choice(["a", "b", "c"], days * ROWS, p=[0.6, 0.3, 0.1])
    table["prediction"] = random.beta(2, 5, days * ROWS)
    table.update(more)
    return StableHistory(pa.table(table), moments, Interval.of("2013-01-01", "2013-05-21"), 7, 3)


def alarms(found: Any, policy: Drift, fresh: StableHistory, *, windows: int = 100) -> float:
    """Share of windows of a history that thresholds of another one call drift."""
    again = prepare_all(fresh.rows, fresh.rows.column_names)
    day = (fresh.moments - fresh.moments[0]).astype("timedelta64[D]").astype(int)
    random = np.random.default_rng(99)
    raised = 0
    for _ in range(windows):
        drawn = draw(int(day.max()) + 1, GEOMETRY, random)
        window, reference, unseen = (part[day].astype(float) for part in (drawn.window, drawn.reference, drawn.unseen))
        beyond = {
            name: again[name].distance(window, unseen if name == "prediction" else reference) >= one.distance
            for name, one in found.columns.items()
        }
        wanted = policy.features_wanted(len(beyond) - 1, calibrated=True)
        raised += beyond.pop("prediction") or sum(beyond.values()) >= wanted
    return raised / windows


# --- the replays -------------------------------------------------------------------------------------------------------


@given(days=st.integers(60, 400), seed=st.integers(0, 2**32 - 1), window=st.sampled_from([1, 7]), least=st.integers(1, 20))
def test_a_window_and_its_reference_share_no_day(days: int, seed: int, window: int, least: int) -> None:
    drawn = draw(days, Geometry(window, 56, 14, (least, least + 7)), np.random.default_rng(seed))
    assert drawn.window.sum() == window
    assert drawn.reference.sum() == min(56, days - window)
    assert drawn.unseen.sum() == 14
    assert not ((drawn.window > 0) & ((drawn.reference > 0) | (drawn.unseen > 0))).any()


def test_a_reference_is_drawn_in_blocks() -> None:
    random = np.random.default_rng(1)
    geometry = Geometry(window=20, reference=100, unseen=10, gap=(0, 0))
    neighbours = []
    for _ in range(50):
        counted = draw(300, geometry, random).reference > 0
        neighbours.append((counted & np.roll(counted, 1)).sum() / counted.sum())
    # Single days drawn with replacement would be next to another one in 63 % of the cases.
    assert np.mean(neighbours) > 0.85


def test_where_a_window_lies_is_as_the_schedules_say(world: World) -> None:
    spec = world.folder.spec
    assert Geometry.of(spec) == Geometry(window=7, reference=25, unseen=7, gap=(0, 7))
    never = spec.model_copy(update={"schedules": spec.schedules.model_copy(update={"refresh": "never"})})
    assert Geometry.of(never) == Geometry(window=7, reference=25, unseen=5, gap=(0, 7))
    monthly = spec.model_copy(update={"schedules": spec.schedules.model_copy(update={"refresh": "month"})})
    assert Geometry.of(monthly) == Geometry(window=7, reference=25, unseen=28, gap=(0, 31))
    # A version that serves what was judged has learned from nothing in its holdout.
    judged = spec.training.model_copy(update={"refit": False})
    assert Geometry.of(spec.model_copy(update={"training": judged})) == Geometry(window=7, reference=20, unseen=5, gap=(5, 12))


# --- the thresholds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 30])
def test_stable_windows_raise_about_as_many_alarms_as_the_budget_however_many_columns_there_are(columns: int) -> None:
    policy = POLICY.model_copy(update={"false_alarms": 5.0})
    found = calibrate(policy, GEOMETRY, history(columns=columns), seed=1, replays=300)
    assert found.expected <= 5.2
    # On histories that it has not seen: a tenth of the windows is the budget. Thirty columns, each held to its own quantile,
    # would alarm in nine of ten windows.
    rate = np.mean([alarms(found, policy, history(seed=seed, columns=columns)) for seed in (2, 3, 4)])
    assert rate <= 0.18


def test_more_columns_mean_higher_thresholds_for_each() -> None:
    one, many = (calibrate(POLICY, GEOMETRY, history(columns=columns), seed=1, replays=300) for columns in (1, 30))
    assert many.columns["n0"].distance > one.columns["n0"].distance


def test_what_differs_from_week_to_week_by_nature_may_differ_more() -> None:
    random = np.random.default_rng(3)
    day = np.repeat(np.arange(DAYS), ROWS)
    season = random.normal(size=DAYS * ROWS) + 2 * np.sin(day / DAYS * 2 * np.pi)
    found = calibrate(POLICY, GEOMETRY, history(season=season), seed=1, replays=300)
    assert found.columns["season"].distance > 1.5 * found.columns["n0"].distance


def test_a_larger_budget_lowers_thresholds() -> None:
    strict, lax = (
        calibrate(POLICY.model_copy(update={"false_alarms": budget}), GEOMETRY, history(), seed=1, replays=300)
        for budget in (1.0, 12.0)
    )
    assert all(lax.columns[name].distance <= one.distance for name, one in strict.columns.items())


def test_a_share_of_the_features_is_heeded() -> None:
    one, half = (
        calibrate(POLICY.model_copy(update={"share": share}), GEOMETRY, history(), seed=1, replays=300) for share in (0.01, 0.5)
    )
    assert half.columns["n0"].distance < one.columns["n0"].distance
    assert half.expected <= 1


def test_missing_values_have_a_threshold_of_their_own() -> None:
    random = np.random.default_rng(5)
    day = np.repeat(np.arange(DAYS), ROWS)
    gaps = np.where(random.random(DAYS * ROWS) < random.uniform(0, 0.4, DAYS)[day], np.nan, 1.0 * day)
    found = calibrate(POLICY, GEOMETRY, history(gaps=pa.array(gaps, from_pandas=True)), seed=1, replays=300)
    assert found.columns["n0"].missing < found.columns["gaps"].missing < 0.5


def test_the_same_seed_gives_the_same_thresholds() -> None:
    first, again, other = (calibrate(POLICY, GEOMETRY, history(), seed=seed, replays=200).columns for seed in (1, 1, 2))
    assert first == again != other


def test_history_that_is_too_short_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"history has 50 days; thresholds need at least 56"):
        calibrate(POLICY, GEOMETRY, history(50), seed=1, replays=200)


def test_history_of_too_few_rows_is_refused() -> None:
    with pytest.raises(CalibrationError, match="only 0 of 200 windows"):
        calibrate(POLICY.model_copy(update={"min_rows": 1_000}), GEOMETRY, history(), seed=1, replays=200)


def test_history_in_which_each_week_has_new_categories_is_refused_with_the_column() -> None:
    weekly = [f"batch {number // 7}" for number in np.repeat(np.arange(DAYS), ROWS)]
    with pytest.raises(CalibrationError, match=r"batch 100\.0%.*raise drift.max_new_categories"):
        calibrate(POLICY, GEOMETRY, history(batch=weekly), seed=1, replays=200)


def test_constants_and_thresholds_too_wide_to_alarm_are_named() -> None:
    rows = DAYS * ROWS
    weeks = np.repeat(np.arange(DAYS), ROWS) // 7
    # Whole weeks at one end or the other: no window can differ more than windows of history do.
    found = calibrate(
        POLICY,
        GEOMETRY,
        history(columns=2, flat=np.full(rows, 0.1 + 0.2), switch=(weeks % 2).astype(float)),
        seed=1,
        replays=200,
    )
    assert found.constant == ["flat"]
    assert found.wide == ["switch"]


def test_a_constant_takes_nothing_from_the_thresholds_of_others() -> None:
    """Its deviation is that of rounding, not 0, so its distances were astronomical."""
    alone = calibrate(POLICY, GEOMETRY, history(columns=2), seed=1, replays=200).columns
    beside = calibrate(POLICY, GEOMETRY, history(columns=2, flat=np.full(DAYS * ROWS, 273.15)), seed=1, replays=200).columns
    assert {name: beside[name] for name in alone} == alone
    assert beside["flat"].distance < 0.1


def test_a_window_is_compared_with_its_own_weekdays_where_the_spec_says_so() -> None:
    weekday = np.repeat(np.arange(DAYS), ROWS) % 7
    geometry = Geometry(window=1, reference=56, unseen=14, gap=(1, 7))
    plain = calibrate(Drift(min_rows=20), geometry, history(weekday=weekday), seed=1, replays=300)
    matched = calibrate(Drift(min_rows=20, match="weekday"), geometry, history(weekday=weekday), seed=1, replays=300)
    assert plain.columns["weekday"].distance > 1
    assert matched.columns["weekday"].distance < 0.1


# --- the file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return make_world(tmp_path, settings)


def kept(folder: ModelFolder) -> str:
    columns = {name: {"distance": 0.5, "missing": 0.1} for name in ("x", "noise", "kind", "prediction")}
    found = DriftThresholds.model_validate(
        {
            "computed_at": "2013-04-01T00:00:00Z", "history": "2013-01-01--2013-04-01", "window": "week", "replays": 300,
            "seed": 1, "false_alarms": 1.0, "expected": 0.9, "columns": columns,
        }
    )  # fmt: skip
    return write(folder, found).read_text()


def test_what_is_written_is_read_and_changes_nothing_else(world: World) -> None:
    kept(world.folder)
    again = read_model(world.folder.path)
    assert again.thresholds is not None
    assert again.thresholds.columns["x"].distance == 0.5
    assert again.digest == world.folder.digest
    assert again.features_digest == world.folder.features_digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  x: {", "  y: {", r"drift.yaml:\d+: columns.y: y is no feature; delete the file and run `perennial calibrate toy`"),
        ("  x: {", "  y: {", r"columns: x has no threshold; delete the file"),
        ("window: week", "window: day", r"drift.yaml:\d+: window: thresholds are for day, but schedules.monitor .* is week"),
        ("distance: 0.5", "distance: -0.5", r"drift.yaml:\d+: columns.x.distance: must be greater than 0"),
        ("distance: 0.5", "distance: .nan", "must be a finite number"),
        ("distance: 0.5", "distanse: 0.5", r"columns.x.distanse: unknown key"),
        ("missing: 0.1", "missing: 2", "less than or equal to 1"),
        ("seed: 1", "seed: 1\nseed: 2", "the key seed is given twice"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_its_line(world: World, old: str, new: str, message: str) -> None:
    text = kept(world.folder)
    assert old in text
    (world.folder.path / "drift.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(SpecError) as refused:
        read_model(world.folder.path)
    assert re.search(message, str(refused.value)), refused.value


# --- from the lake -----------------------------------------------------------------------------------------------------


def test_history_is_read_as_the_champion_predicts_it(world: World) -> None:
    span = Interval.of("2013-04-01", "2013-05-27")
    with pytest.raises(CalibrationError, match="no features are published"):
        read_history(world.folder, world.deployment)
    world.publish(span, rows_a_day=20)
    with pytest.raises(NoChampion):
        read_history(world.folder, world.deployment)
    version = world.register()
    world.promote(version)
    found = read_history(world.folder, world.deployment)
    assert (found.rows.num_rows, found.interval, found.version) == (56 * 20, span, version)
    assert found.rows.column_names == ["x", "noise", "kind", "prediction"]
    assert (np.diff(found.moments) >= np.timedelta64(0)).all()
    policy = world.folder.spec.drift.model_copy(update={"min_rows": 50})
    columns = calibrate(policy, Geometry.of(world.folder.spec), found, seed=1, replays=200).columns
    assert all(0 < one.distance < 1.5 for one in columns.values())


def test_the_commands_set_thresholds_and_show_what_was_expected_and_came(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {
        "PERENNIAL_MODELS": world.folder.path.parent,
        "PERENNIAL_STATE": world.settings.state,
        "PERENNIAL_DATABASE_URL": world.settings.database_url,
        "PERENNIAL_CATALOG_URL": world.settings.catalog_url,
        "PERENNIAL_WAREHOUSE": world.settings.warehouse,
        "PERENNIAL_PREDICTIONS_URL": world.settings.predictions_url,
        "MLFLOW_TRACKING_URI": world.settings.mlflow_url,
    }
    for name, value in named.items():
        monkeypatch.setenv(name, str(value))
    for module in (command, questions):
        monkeypatch.setattr(module, "settings", lambda: read_settings(os.environ))

    def say(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main.main(arguments)
        assert left.value.code in (0, None), left.value.code
        return capsys.readouterr().out

    world.publish(Interval.of("2013-04-01", "2013-06-03"))
    version = world.register()
    world.promote(version)
    assert "no window of toy has been judged or measured yet" in say("performance", "toy")

    said = say("calibrate", "toy", "--replays", "200")
    assert "On windows like those of 2013-04-01--2013-06-03, expect " in said
    assert " verdicts of drift per year (budget 1; 200 replays)" in said
    folder = read_model(world.folder.path)
    assert folder.thresholds is not None
    assert folder.thresholds.version == version

    world.score(version, WEEK)
    judged = judge_drift(folder, world.deployment, WEEK, directory=world.settings.reports, run_id="monitor")
    assert judged.details.calibrated == folder.thresholds.computed_at
    found = {column.column: column.threshold for column in judged.details.columns}
    assert found["x"] == folder.thresholds.columns["x"].distance
    assert re.search(r"2013-04-01--2013-04-08 +1 +0\.\d+ ±0\.\d+ +ok", say("performance", "toy"))
