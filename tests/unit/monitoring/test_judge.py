"""What counts as drift, what is unknown, and that the two are never called ok."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from evidently import Report
from mlflow import MlflowClient

from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.drift.compare import compare, match_reference
from perennial.drift.findings import ColumnDrift, DriftComparison
from perennial.drift.sampling import take_sample
from perennial.monitoring import estimation
from perennial.monitoring.estimation import Estimate
from perennial.monitoring.judge import DriftVerdict, judge_drift, performance_bound, read_outlook
from perennial.spec.model import ModelSpec
from perennial.spec.monitoring import Drift, DriftThresholds
from tests.unit.monitored import WEEK, World, make_world
from tests.unit.synthetic import MODEL

# Evidently, once :mod:`perennial.drift.compare` has imported it without its warnings.
from evidently.core.report import Snapshot  # isort: skip

#: Two of the five features may drift, three may not.
POLICY = Drift(sample=2_000, share=0.5)
ROWS = 1_500


def features(rows: int = ROWS, seed: int = 1) -> dict[str, Any]:
    """Three numeric and two categorical features, all stable from seed to seed."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"n{number}": rng.normal(10 * number, 2, rows) for number in range(3)}
    columns["color"] = rng.choice(["red", "green", "blue"], rows, p=[0.6, 0.3, 0.1])
    columns["city"] = rng.choice([f"city {number}" for number in range(20)], rows)
    return columns


def table(columns: dict[str, Any]) -> pa.Table:
    return pa.table(
        {
            name: values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
            for name, values in columns.items()
        }
    )


def reference(**changed: Any) -> pa.Table:
    rows = len(next(iter(changed.values()))) if changed else ROWS
    rng = np.random.default_rng(7)
    said = rng.beta(2, 5, rows)
    # Rows that were learned from carry no prediction.
    said[: rows // 2] = np.nan
    return table({**features(rows, seed=2), "label": rng.random(rows) < 0.3, "prediction": said, **changed})


def predictions(rows: int = ROWS, shift: float = 0.0) -> pa.Table:
    return pa.table({"prediction": np.random.default_rng(3).beta(2, 5, rows) + shift, "version": np.full(rows, 4)})


def judge(
    changed: dict[str, Any] | None = None,
    *,
    against: pa.Table | None = None,
    said: pa.Table | None = None,
    policy: Drift = POLICY,
) -> DriftComparison:
    current = table({**features(), **(changed or {})})
    return compare(policy, current, predictions() if said is None else said, reference() if against is None else against)


def column(comparison: DriftComparison, name: str) -> ColumnDrift:
    return next(found for found in comparison.columns if found.column == name)


def judge_alone(name: str, values: Any, known: Any = None) -> DriftComparison:
    """A comparison of one feature."""
    against = reference(**({} if known is None else {name: known})).select([name, "prediction"])
    return compare(POLICY, table({name: values}), predictions(), against)


def judge_column(name: str, values: Any, known: Any = None) -> ColumnDrift:
    return column(judge_alone(name, values, known), name)


def test_what_looks_like_the_reference_is_ok() -> None:
    comparison = judge()
    assert comparison.verdict == "ok"
    assert [found.status for found in comparison.columns] == ["stable"] * 6
    assert all(found.score is not None and found.score < found.threshold for found in comparison.columns)
    assert comparison.reasons[0] == "0 of 5 features drifted (threshold 3)"


def test_drift_of_enough_features_is_drift_and_the_farthest_is_told_first() -> None:
    moved = {"n0": features()["n0"] + 1, "n1": features()["n1"] + 3, "color": ["blue"] * ROWS}
    comparison = judge(moved)
    assert comparison.verdict == "drift"
    assert comparison.reasons[0] == "3 of 5 features drifted (threshold 3)"
    told = [reason.split()[0] for reason in comparison.reasons[2:5]]
    assert told == ["n1", "color", "n0"]
    assert column(comparison, "n1").score == pytest.approx(1.5, abs=0.1)


def test_drift_of_too_few_features_is_ok() -> None:
    comparison = judge({"n0": features()["n0"] + 3, "n1": features()["n1"] + 3})
    assert comparison.verdict == "ok"
    assert column(comparison, "n0").drifted


def test_drifted_predictions_suffice_alone() -> None:
    comparison = judge(said=predictions(shift=0.2))
    assert comparison.verdict == "drift"
    assert comparison.reasons[0].startswith("the predictions moved by 1.")


def test_predicted_classes_are_compared_as_categories() -> None:
    rng = np.random.default_rng(5)
    labels = rng.choice(["a", "b"], ROWS)
    known = reference(prediction=labels)
    same = pa.table({"prediction": rng.choice(["a", "b"], ROWS)})
    other = pa.table({"prediction": rng.choice(["a", "b"], ROWS, p=[0.95, 0.05])})
    assert judge(against=known, said=same).verdict == "ok"
    assert judge(against=known, said=other).verdict == "drift"


# --- what Evidently gets wrong ---------------------------------------------------------------------------------------


def nan_share(share: float) -> np.ndarray:
    values: np.ndarray = features()["n0"].copy()
    values[: int(share * ROWS)] = np.nan
    return values


def inf_share(share: float) -> np.ndarray:
    values: np.ndarray = features()["n0"].copy()
    values[: int(share * ROWS)] = np.inf
    return values


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"n0": [None] * ROWS}, "n0 misses 100.0% of its values, 0.0% in the reference"),
        ({"n0": np.full(ROWS, np.nan)}, "n0 misses 100.0% of its values"),
        ({"n0": nan_share(0.9)}, "n0 misses 90.0% of its values"),
        ({"color": pa.array([None] * ROWS, pa.string())}, "color misses 100.0% of its values"),
        ({"n0": [str(value) for value in features()["n0"]]}, "n0 was double in training and is string now"),
        ({"color": np.arange(ROWS)}, "color was string in training and is int64 now"),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_judged_makes_the_verdict_unknown(changed: dict[str, Any], reason: str) -> None:
    ((name, values),) = changed.items()
    comparison = judge_alone(name, values)
    assert comparison.verdict == "unknown"
    assert comparison.reasons[0].startswith(reason)
    assert column(comparison, name).status == "unusable"


def test_a_column_that_is_absent_makes_the_verdict_unknown() -> None:
    current = table(features()).drop_columns(["city"])
    comparison = compare(POLICY, current, predictions(), reference())
    assert (comparison.verdict, comparison.reasons[0]) == ("unknown", "city is not among the published features")


def test_a_column_that_the_version_does_not_know_does_not_matter() -> None:
    assert judge({"brand_new": np.arange(ROWS)}).verdict == "ok"


def test_drift_elsewhere_is_told_although_a_column_cannot_be_judged() -> None:
    moved = {"n1": features()["n1"] + 5, "n2": features()["n2"] + 5, "color": ["blue"] * ROWS}
    comparison = judge({"n0": [None] * ROWS, **moved})
    assert comparison.verdict == "drift"
    assert any(reason.startswith("n0 misses 100.0%") for reason in comparison.reasons)


def test_missing_values_below_the_limit_are_left_out() -> None:
    comparison = judge({"n0": nan_share(0.3)})
    assert comparison.verdict == "ok"
    assert column(comparison, "n0").missing == pytest.approx(0.3)


def test_a_column_as_empty_as_its_reference_is_left_out() -> None:
    empty = pa.array([None] * ROWS, pa.float64())
    comparison = judge({"n0": empty}, against=reference(n0=empty))
    assert comparison.verdict == "ok"
    assert column(comparison, "n0").status == "left_out"


def test_a_column_that_was_empty_in_the_reference_and_is_filled_has_drifted() -> None:
    assert judge_column("n0", features()["n0"], pa.array([None] * ROWS, pa.float64())).drifted


def test_nothing_but_empty_columns_is_unknown() -> None:
    empty = pa.array([None] * ROWS, pa.float64())
    known = pa.table({"n0": empty, "prediction": reference().column("prediction")})
    comparison = compare(POLICY, pa.table({"n0": empty}), predictions(), known)
    assert (comparison.verdict, comparison.reasons[0]) == ("unknown", "no feature has enough values to be judged")


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_infinite_values_are_drift_of_their_column(value: float) -> None:
    values = features()["n0"].copy()
    values[: ROWS // 2] = value
    found = judge_column("n0", values)
    assert found.drifted
    assert "has 50.0% infinite values (0.0% in the reference)" in found.reason


def test_a_stray_infinite_value_is_left_out_and_told() -> None:
    values = features()["n0"].copy()
    values[0] = math.inf
    found = judge_column("n0", values)
    assert found.status == "stable"
    assert "infinite" in found.reason


def test_categories_that_the_reference_never_saw_are_drift_of_their_column() -> None:
    values = np.array(features()["color"], dtype=object)
    values[: ROWS // 10] = "ultraviolet"
    found = judge_column("color", values)
    assert found.drifted
    assert "has 10.0% values in categories that the reference never saw (ultraviolet)" in found.reason
    values[ROWS // 100 :] = "red"
    assert "ultraviolet" in judge_column("color", values).reason


def test_a_value_where_the_reference_knows_another_one_only_is_drift_of_its_column() -> None:
    constant = np.full(ROWS, 5.0)
    assert judge_column("n0", constant, constant).status == "stable"
    assert judge_column("n0", constant + 1e-9, constant).drifted


def test_small_numbers_drift_as_large_ones_do() -> None:
    """Evidently divides by at least 0.001, and so finds every change of a small rate to be none."""
    rate, same, higher = (
        np.random.default_rng(seed).normal(5e-6 + shift, 1e-6, ROWS) for seed, shift in ((1, 0), (2, 0), (3, 1e-6))
    )
    assert judge_column("n0", same, rate).status == "stable"
    found = judge_column("n0", higher, rate)
    assert found.score == pytest.approx(1.0, abs=0.15)
    assert found.drifted


def test_thousands_of_stable_categories_are_no_drift() -> None:
    """Two samples of 1,500 out of 4,000 categories share few of them, and lie 0.6 apart for that reason alone."""
    rng = np.random.default_rng(9)
    weights = 1 / np.arange(1, 4_001)
    names = np.array([f"tail {number}" for number in range(4_000)], dtype=object)
    known, current = (rng.choice(names, 20_000, p=weights / weights.sum()), rng.choice(names, ROWS, p=weights / weights.sum()))
    policy = Drift(max_new_categories=0.5)
    said = pa.array(np.linspace(0, 1, 20_000))
    comparison = compare(policy, table({"city": current}), predictions(), table({"city": known, "prediction": said}))
    assert column(comparison, "city").status == "stable"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"said": predictions(50)}, "50 predictions, fewer than the 200 a verdict may rest on"),
        ({"said": predictions(0)}, "0 predictions, fewer than the 200"),
        ({"against": reference().slice(0, 100)}, "100 rows in the training reference, fewer than the 200"),
        ({"against": pa.table({})}, "0 rows in the training reference"),
    ],
)
def test_too_few_rows_are_unknown(arguments: dict[str, Any], reason: str) -> None:
    comparison = judge(**arguments)
    assert comparison.verdict == "unknown"
    assert comparison.reasons[0].startswith(reason)


@pytest.mark.parametrize("change", [lambda known: known.drop_columns(["prediction"]), lambda known: known.slice(0, ROWS // 2)])
def test_a_reference_without_predictions_is_unknown(change: Callable[[pa.Table], pa.Table]) -> None:
    comparison = judge(against=change(reference()))
    assert comparison.verdict == "unknown"
    assert comparison.reasons[0].startswith("the predictions ")


def test_an_error_inside_evidently_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(Report, "run", broken)
    comparison = judge({"color": ["violet"] * ROWS})
    assert comparison.verdict == "unknown"
    assert comparison.reasons == ["Evidently failed, ZeroDivisionError: inside"]
    assert not any(found.drifted for found in comparison.columns)


@pytest.mark.parametrize("kept", [["n0"], ["color"], ["n0", "color"]])
def test_a_model_of_few_features_is_judged(kept: list[str]) -> None:
    known = reference().select([*kept, "prediction"])
    comparison = compare(POLICY, table(features()), predictions(), known)
    assert comparison.verdict == "ok"


def test_methods_and_thresholds_do_not_depend_on_the_size_of_the_data() -> None:
    for rows in (300, 5_000):
        known = reference(**features(rows, seed=2))
        comparison = compare(POLICY, table(features(rows)), predictions(rows), known)
        assert {found.threshold for found in comparison.columns if found.kind == "numeric"} == {0.25, 0.35}
        configured = [metric["config"] for metric in comparison.snapshot.dict()["metrics"]]
        assert {config["method"] for config in configured} == {"wasserstein", "jensenshannon"}
        assert len(configured) == 6


# --- calibrated thresholds ---------------------------------------------------------------------------------------------


def calibrated(**distances: float) -> DriftThresholds:
    names = ("n0", "n1", "n2", "color", "city", "prediction")
    columns = {name: {"distance": distances.get(name, 5.0), "missing": 0.2} for name in names}
    return DriftThresholds.model_validate(
        {
            "computed_at": "2013-04-01T00:00:00Z", "history": "2013-01-01--2013-04-01", "window": "week", "replays": 300,
            "seed": 1, "false_alarms": 1.0, "expected": 0.9, "columns": columns,
        }
    )  # fmt: skip


def judge_calibrated(changed: dict[str, Any], *, policy: Drift, **distances: float) -> DriftComparison:
    return compare(policy, table({**features(), **changed}), predictions(), reference(), calibrated(**distances))


def test_one_feature_beyond_its_calibrated_threshold_suffices() -> None:
    policy = Drift(sample=2_000)
    moved = {"n0": features()["n0"] + 1}
    assert judge(moved, policy=policy).verdict == "ok"
    found = judge_calibrated(moved, policy=policy, n0=0.3)
    assert (found.verdict, found.reasons[0]) == ("drift", "1 of 5 features drifted (threshold 1)")
    assert judge_calibrated(moved, policy=policy, n0=0.7).verdict == "ok"


def test_a_share_that_the_spec_gives_holds_for_calibrated_thresholds_too() -> None:
    moved = {"n0": features()["n0"] + 1}
    assert judge_calibrated(moved, policy=POLICY, n0=0.3).verdict == "ok"


def test_values_that_are_lost_are_drift_from_the_calibrated_threshold_on() -> None:
    found = judge_calibrated({"n0": nan_share(0.3)}, policy=Drift(sample=2_000))
    assert found.verdict == "drift"
    assert "n0 misses 30.0% of its values, 0.0% in the reference (calibrated threshold 20.0%)" in found.reasons
    assert judge_calibrated({"n0": nan_share(0.1)}, policy=Drift(sample=2_000)).verdict == "ok"


@pytest.mark.parametrize("seed", range(2))
def test_the_verdict_is_the_same_without_the_report(seed: int) -> None:
    current = table({**features(seed=seed), "color": ["blue"] * ROWS, "n0": nan_share(0.3)})
    with_report, without = (compare(POLICY, current, predictions(), reference(), report=report) for report in (True, False))
    assert with_report.snapshot is not None
    assert without.snapshot is None
    assert with_report.reasons == without.reasons
    assert [found.score for found in with_report.columns] == pytest.approx([found.score for found in without.columns])


# --- the matched reference ---------------------------------------------------------------------------------------------


def days_of_year(days: int) -> pa.Table:
    moments = pd.date_range("2013-01-01", periods=days * 24, freq="h", tz="UTC")
    return pa.table({"moment": pa.array(moments, pa.timestamp("us", "UTC")), "n0": np.arange(days * 24.0)})


@pytest.mark.parametrize(
    ("match", "days", "rows"),
    [("none", "2013-05-06", 100 * 24), ("weekday", "2013-05-06", 14 * 24), ("month", "2013-03-15", 31 * 24)],
)
def test_a_reference_is_matched_as_the_spec_says(match: Any, days: str, rows: int) -> None:
    policy = Drift(match=match, min_rows=10)
    found = match_reference(policy, days_of_year(100), "moment", Interval.day(days))
    assert isinstance(found, pa.Table)
    assert found.num_rows == rows


def test_a_week_has_all_weekdays() -> None:
    found = match_reference(Drift(match="weekday"), days_of_year(100), "moment", WEEK)
    assert isinstance(found, pa.Table)
    assert found.num_rows == 100 * 24


def test_too_few_matched_rows_are_a_reason() -> None:
    found = match_reference(Drift(match="month"), days_of_year(90), "moment", Interval.of("2013-07-01", "2013-07-08"))
    assert found == (
        "only 0 of 2,160 rows in the training reference fall into the same months as 2013-07-01--2013-07-08 (drift.match), "
        "fewer than the 200 a verdict may rest on"
    )
    unmarked = days_of_year(90).drop_columns(["moment"])
    assert "does not say when its rows were" in str(match_reference(Drift(match="month"), unmarked, "moment", WEEK))


# --- what a fall is measured from --------------------------------------------------------------------------------------


def test_the_bound_is_the_surest_there_is() -> None:
    binary = make_spec()
    holdout = {"candidate": {"metrics": {"roc_auc": 0.8}, "intervals": {"roc_auc": [0.77, 0.83]}}}
    without = {"candidate": {"metrics": {"roc_auc": 0.8}}}
    asked = make_spec("retraining: {on_performance: 0.05}")
    known = Estimate("roc_auc", usual=[0.7, 0.9])

    def value(*arguments: Any) -> float | None:
        found = performance_bound(*arguments)
        return None if found is None else round(found.value, 6)

    assert value(asked, holdout, known) == 0.77
    assert value(asked, without, known) == 0.75
    assert value(binary, without, known) == 0.7
    assert value(binary, without, None) is None
    assert value(asked, {"candidate": {"metrics": {"roc_auc": math.nan}}}, None) is None


# --- the sample ------------------------------------------------------------------------------------------------------


def reader(table: pa.Table, chunk: int) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=chunk))


def test_the_sample_is_the_same_in_whatever_order_and_files_the_rows_come() -> None:
    rows = pa.table({"id": [f"flight {number}" for number in range(5_000)], "value": np.arange(5_000)})
    shuffled = rows.take(np.random.default_rng(0).permutation(5_000))
    first, total = take_sample(reader(rows, 700), ["id"], size=300, seed=1)
    again, _ = take_sample(reader(shuffled, 13), ["id"], size=300, seed=1)
    other, _ = take_sample(reader(rows, 700), ["id"], size=300, seed=2)
    assert total == 5_000
    assert first.num_rows == 300
    assert first.equals(again)
    assert not first.equals(other)
    assert first.column_names == ["id", "value"]


def test_the_sample_is_spread_over_all_rows() -> None:
    rows = pa.table({"id": np.arange(50_000), "value": np.arange(50_000.0)})
    sample, _ = take_sample(reader(rows, 4_000), ["id"], size=2_000, seed=1)
    assert np.mean(sample.column("value").to_numpy()) == pytest.approx(25_000, rel=0.05)


def test_a_sample_of_nothing_is_empty() -> None:
    empty = pa.table({"id": pa.array([], pa.string())})
    sample, total = take_sample(reader(empty, 10), ["id"], size=10, seed=1)
    assert (sample.num_rows, total) == (0, 0)


# --- an interval: from the lake to the ledger ------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return make_world(tmp_path, settings)


def judge_interval(world: World, interval: Interval = WEEK) -> DriftVerdict:
    return judge_drift(
        world.folder, world.lake, world.ledger, world.registry, interval, directory=world.settings.reports, run_id="monitor"
    )


def make_spec(more: str = "") -> ModelSpec:
    text = MODEL.format(
        task="binary_classification", label="y > 0.5", baseline="logistic: {estimator: logistic_regression, baseline: true}"
    )
    return ModelSpec.model_validate(yaml.safe_load(f"{text}{more}"))


def alerts(world: World) -> list[str]:
    told = world.ledger.alerts()
    return [entry.alert.kind for entry in told if entry.alert.kind != "promoted"]


def move(rows: pd.DataFrame) -> None:
    rows["x"] += 3


def test_a_stable_week_is_recorded_as_ok_with_its_report(world: World) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.version) == ("ok", version)
    (recorded,) = world.ledger.verdicts("toy")
    assert (recorded.verdict, recorded.version, recorded.reasons) == ("ok", version, verdict.reasons)
    assert recorded.details["rows"]["features"] == recorded.details["rows"]["predictions"] == 420
    found = {column["column"]: column for column in recorded.details["columns"]}
    assert set(found) == {"prediction", "x", "noise", "kind"}
    assert all(isinstance(column["score"], float) and not column["drifted"] for column in found.values())
    assert verdict.report == recorded.report == "toy/drift/2013-04-01--2013-04-08/report.html"
    folder = (world.settings.reports / verdict.report).parent
    assert {path.name for path in folder.iterdir()} == {"report.html", "evidently.json", "verdict.json"}
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "ok"
    assert Snapshot.load(folder / "evidently.json").dict()["metrics"]
    assert alerts(world) == []
    assert DriftVerdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_a_drifted_week_is_recorded_and_people_are_told(world: World) -> None:
    world.publish(WEEK, change=move)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.verdict == world.ledger.verdicts("toy")[0].verdict == "drift"
    assert any(reason.startswith("x moved by 3.") for reason in verdict.reasons)
    assert alerts(world) == ["drift"]
    judge_interval(world)
    assert len(world.ledger.verdicts("toy")) == 1
    assert alerts(world) == ["drift"]


def test_the_report_says_the_verdict_and_is_kept_with_the_version_in_mlflow(world: World) -> None:
    world.publish(WEEK, change=move)
    version = world.register()
    world.score(version, WEEK)
    verdict = judge_interval(world)
    page = (world.settings.reports / str(verdict.report)).read_text()
    assert '<span style="color:#b35900">drift</span>' in page
    assert "x moved by" in page
    record = world.ledger.version("toy", version)
    assert record is not None
    client = MlflowClient(tracking_uri=world.settings.mlflow_url)
    logged = client.list_artifacts(record.mlflow_run_id, "drift/2013-04-01--2013-04-08")
    assert "drift/2013-04-01--2013-04-08/report.html" in [file.path for file in logged]


def test_values_in_the_data_cannot_run_in_the_browser_of_whoever_opens_the_report(world: World) -> None:
    attack = "</script><script>alert(1)</script>"
    world.publish(WEEK, change=lambda rows: rows.__setitem__("kind", attack))
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    page = (world.settings.reports / str(verdict.report)).read_text()
    assert "script" in " ".join(verdict.reasons)
    assert "<script>alert(1)" not in page


def test_the_version_that_predicted_is_the_one_compared_with(world: World) -> None:
    world.publish(WEEK)
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6)
    world.promote(new)
    world.score(old, WEEK)
    assert judge_interval(world).version == old
    world.score(new, Interval.of("2013-04-02", "2013-04-08"), run_id="again")
    verdict = judge_interval(world)
    assert verdict.version == new
    assert f"compared with version {new}, which made 86% of the predictions; the others, by version {old}, were left out" in (
        verdict.reasons
    )


def test_a_feature_that_was_never_published_makes_the_verdict_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    model = world.registry.load("toy", version)
    takes = dataclasses.replace(model.takes, numeric=(*model.takes.numeric, "gone"))
    sample = model.sample.append_column("gone", pa.array(np.arange(float(model.sample.num_rows))))
    wider = dataclasses.replace(model, takes=takes, sample=sample)
    monkeypatch.setattr(world.registry, "load", lambda *_: wider)
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.reasons[0]) == ("unknown", "gone is not among the published features")


def test_a_week_of_fewer_days_says_so(world: World) -> None:
    part = Interval.of("2013-04-01", "2013-04-06")
    world.publish(part)
    world.score(world.register(), part)
    verdict = judge_interval(world)
    assert verdict.verdict == "ok"
    assert verdict.reasons[-1] == "no predictions are published for 2013-04-06--2013-04-08"


def test_a_week_without_predictions_is_unknown_and_people_are_told(world: World) -> None:
    world.publish(WEEK)
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.version, verdict.report) == ("unknown", None, None)
    assert verdict.reasons == ["no predictions are published for 2013-04-01--2013-04-08"]
    assert world.ledger.verdicts("toy")[0].verdict == "unknown"
    assert alerts(world) == ["unknown_verdict"]


def test_whatever_fails_makes_the_verdict_unknown(world: World) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    assert judge_interval(world).verdict == "ok"
    (stored,) = world.settings.state.rglob("reference.parquet")
    stored.unlink()
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.version, verdict.report) == ("unknown", version, None)
    assert verdict.reasons[0].startswith("the comparison failed, ArtifactRejected: toy version 1: reference.parquet is missing")
    assert world.ledger.verdicts("toy")[0].verdict == "unknown"
    # The report of the verdict before would say something else.
    assert not list(world.settings.reports.rglob("report.html"))


def test_a_report_that_cannot_be_kept_takes_nothing_from_the_verdict(world: World) -> None:
    world.publish(WEEK, change=move)
    world.score(world.register(), WEEK)
    world.settings.reports.write_text("a file where the folder should be")
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.report) == ("drift", None)
    assert alerts(world) == ["drift"]


def severities(world: World) -> list[str]:
    told = world.ledger.alerts()
    return [entry.alert.severity for entry in told if entry.alert.kind == "drift"]


def test_drift_is_a_warning_at_first_and_critical_once_it_lasts(world: World) -> None:
    second = Interval.of("2013-04-08", "2013-04-15")
    version = world.register()
    for week, seed in ((WEEK, 11), (second, 12)):
        world.publish(week, change=move, seed=seed)
        world.score(version, week)
    first, then = judge_interval(world), judge_interval(world, second)
    assert (first.details["severity"], then.details["severity"]) == ("warning", "critical")
    assert severities(world) == ["warning", "critical"]
    assert "<b>Critical</b>: 2 of the last 3 windows drifted" in (world.settings.reports / str(then.report)).read_text()


def test_performance_is_estimated_before_labels_and_drawn_beside_what_came(world: World) -> None:
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    verdict = judge_interval(world)
    estimate = verdict.details["estimate"]
    assert estimate["reason"] == ""
    assert 0.5 < estimate["metrics"]["roc_auc"] <= 1
    assert {"log_loss", "brier", "average_precision"} <= set(estimate["metrics"])
    assert "Estimated before labels: roc_auc" in (world.settings.reports / str(verdict.report)).read_text()
    (window,) = read_outlook(world.folder.spec, world.ledger)
    assert (window.estimated, window.realised, window.verdict) == (estimate["metrics"]["roc_auc"], None, "ok")
    record = world.ledger.version("toy", version)
    assert record is not None
    logged = MlflowClient(tracking_uri=world.settings.mlflow_url).list_artifacts(record.mlflow_run_id, "performance")
    assert [file.path for file in logged] == ["performance/performance.png"]


def test_an_estimate_that_fails_takes_nothing_from_the_verdict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(estimation, "estimate", broken)
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.verdict == "ok"
    assert verdict.details["estimate"]["reason"] == "the estimate failed, ZeroDivisionError: inside"


def test_a_regression_says_that_nothing_is_estimated(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, "regression")
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.verdict in ("ok", "drift")
    assert verdict.details["estimate"]["reason"].startswith("a regression does not say how sure it is")


def test_realised_performance_that_fell_is_told_although_nothing_drifted(world: World) -> None:
    before = Interval.of("2013-03-25", "2013-04-01")
    world.publish(WEEK)
    version = world.register()
    world.score(version, WEEK)
    world.ledger.record_performance(
        model="toy", interval=before, version=version, metrics={"roc_auc": 0.2}, rows=400, coverage=1.0,
        as_of=WEEK.end, run_id="monitor",
    )  # fmt: skip
    verdict = judge_interval(world)
    assert (verdict.verdict, verdict.details["severity"]) == ("ok", "warning")
    assert alerts(world) == ["performance_fell"]


def test_links_lead_to_the_run_and_its_report(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings.model_copy(update={"mlflow_public_url": "https://mlflow.example.org/"}))
    world.publish(WEEK)
    world.score(world.register(), WEEK)
    verdict = judge_interval(world)
    assert verdict.run_url is not None
    assert verdict.run_url.startswith("https://mlflow.example.org/#/experiments/")
    assert verdict.report_url == f"{verdict.run_url}/artifacts/drift/2013-04-01--2013-04-08/report.html"
