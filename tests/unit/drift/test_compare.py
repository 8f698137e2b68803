"""What counts as drift, what is unknown, and that neither is ever called ok."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from evidently import Report
from numpy.typing import NDArray

from perennial.core.intervals import Interval
from perennial.drift.compare import compare, match_reference
from perennial.drift.findings import DriftComparison
from perennial.evidence.verdict import ColumnDrift
from perennial.spec.monitoring import Drift, DriftThresholds
from tests.unit.monitored import WEEK

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


def nan_share(share: float) -> NDArray[np.float64]:
    values: NDArray[np.float64] = features()["n0"].copy()
    values[: int(share * ROWS)] = np.nan
    return values


def inf_share(share: float) -> NDArray[np.float64]:
    values: NDArray[np.float64] = features()["n0"].copy()
    values[: int(share * ROWS)] = np.inf
    return values


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"n0": [None] * ROWS}, "n0 had 100.0% missing values, 0.0% in the reference"),
        ({"n0": np.full(ROWS, np.nan)}, "n0 had 100.0% missing values"),
        ({"n0": nan_share(0.9)}, "n0 had 90.0% missing values"),
        ({"color": pa.array([None] * ROWS, pa.string())}, "color had 100.0% missing values"),
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


def test_a_column_that_is_absent_costs_only_itself_and_is_named_first() -> None:
    current = table({**features(), "n1": features()["n1"] + 5}).drop_columns(["city"])
    comparison = compare(POLICY, current, predictions(), reference())
    assert (comparison.verdict, comparison.reasons[:2]) == (
        "ok",
        ["1 of 5 features drifted (threshold 3)", "city is not among the published features"],
    )
    assert [found.status for found in comparison.columns].count("stable") == 4


def test_columns_that_could_have_made_it_drift_make_the_verdict_unknown() -> None:
    current = table({**features(), "n1": features()["n1"] + 5}).drop_columns(["city", "n0"])
    comparison = compare(POLICY, current, predictions(), reference())
    assert (comparison.verdict, comparison.reasons[0]) == ("unknown", "n0 is not among the published features")
    assert compare(POLICY.model_copy(update={"share": 0.8}), current, predictions(), reference()).verdict == "ok"


def test_with_calibrated_thresholds_too_few_compared_columns_are_unknown_too() -> None:
    lost = table(features()).drop_columns(["city"])
    given = calibrated()
    assert compare(Drift(), lost, predictions(), reference(), given).verdict == "ok"
    assert compare(Drift(), lost.drop_columns(["n0"]), predictions(), reference(), given).verdict == "unknown"


def test_a_column_on_which_evidently_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Report.run

    def picky(report: Report, current: Any, known: Any) -> Any:
        if "n1" in current.as_dataframe():
            raise ValueError("Too many bins")
        return run(report, current, known)

    monkeypatch.setattr(Report, "run", picky)
    comparison = judge()
    assert comparison.verdict == "ok"
    assert column(comparison, "n1").status == "unusable"
    assert comparison.reasons[1] == "n1 cannot be judged: Evidently failed, ValueError: Too many bins"
    assert [found.status for found in comparison.columns].count("stable") == 5
    assert set(comparison.shapes) >= {"n0", "n1", "prediction"}


def test_a_column_that_the_version_does_not_know_does_not_matter() -> None:
    assert judge({"brand_new": np.arange(ROWS)}).verdict == "ok"


def test_drift_elsewhere_is_told_although_a_column_cannot_be_judged() -> None:
    moved = {"n1": features()["n1"] + 5, "n2": features()["n2"] + 5, "color": ["blue"] * ROWS}
    comparison = judge({"n0": [None] * ROWS, **moved})
    assert comparison.verdict == "drift"
    assert any(reason.startswith("n0 had 100.0% missing values") for reason in comparison.reasons)


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
    assert "has 10.0% values in categories that are not in the reference (ultraviolet)" in found.reason
    values[ROWS // 100 :] = "red"
    assert "ultraviolet" in judge_column("color", values).reason


def test_a_value_where_the_reference_knows_another_one_only_is_drift_of_its_column() -> None:
    constant = np.full(ROWS, 5.0)
    assert judge_column("n0", constant, constant).status == "stable"
    assert judge_column("n0", constant + 1e-9, constant).drifted


def test_a_stray_other_value_of_a_constant_is_told_and_no_drift() -> None:
    constant = np.full(ROWS, 273.15)
    stray = constant.copy()
    stray[7] = 0
    found = judge_column("n0", stray, constant)
    assert found.status == "stable"
    assert "n0 had 0.1% values other than 273.15, the only value in the reference" in found.reason


CONSTANTS: dict[str, tuple[Any, Any]] = {
    "an integer": (5, 6), "a large integer": (2**60 + 1, 2**61), "nothing": (0.0, 1e-9), "a sum": (0.1 + 0.2, 0.31),
    "a temperature": (273.15, 274.15), "a large number": (1e9 + 1e-3, 1e9 + 1), "a huge number": (1e17, 2e17),
    "an enormous number": (1e140, 2e140), "a small number": (1e-12, 2e-12), "the least number": (5e-324, 1.0),
    "yes": (True, False), "a text": ("a", "b"), "an empty text": ("", "b"),
}  # fmt: skip


@pytest.mark.parametrize(("usual", "other"), CONSTANTS.values(), ids=list(CONSTANTS))
def test_a_constant_is_stable_as_long_as_it_stays_and_drifts_once_it_changes(usual: Any, other: Any) -> None:
    """Evidently finds no bins for such columns, which made every verdict unknown."""
    known = reference(n0=[usual] * ROWS)
    for report in (True, False):
        stayed = compare(Drift(), table({**features(), "n0": [usual] * ROWS}), predictions(), known, report=report)
        assert stayed.verdict == "ok"
        assert (column(stayed, "n0").status, column(stayed, "n0").score) == ("stable", 0.0)
    changed = compare(Drift(), table({**features(), "n0": [other] * ROWS}), predictions(), known)
    assert column(changed, "n0").drifted
    assert [found.status for found in changed.columns].count("stable") == 5
    assert column(judge({"n0": [other] * ROWS}, against=reference()), "n0").status in ("drifted", "unusable")


def test_a_constant_that_begins_to_vary_and_a_feature_that_becomes_constant_have_drifted() -> None:
    assert judge_column("n0", features()["n0"], np.full(ROWS, 3.3)).drifted
    assert judge_column("n0", np.full(ROWS, 1e9 + 0.1)).drifted


def test_a_constant_with_one_other_value_is_compared_as_any_feature() -> None:
    almost = np.full(ROWS, 0.1 + 0.2)
    almost[3] = 0.4
    assert judge_column("n0", almost, almost).status == "stable"
    assert judge_column("n0", np.full(ROWS, 0.4), almost).drifted


def test_sums_of_equal_values_in_another_order_are_one_value() -> None:
    rounded = np.where(np.arange(ROWS) % 2 == 0, 0.3, 0.1 + 0.2)
    for values in (rounded, np.full(ROWS, 0.3)):
        assert judge_column("n0", values, rounded).status == "stable"


@pytest.mark.parametrize("constant", [0.3, 0.1 + 0.2, 5.0])
def test_constant_predictions_are_judged(constant: float) -> None:
    known, now = reference(prediction=np.full(ROWS, constant)), pa.table({"prediction": np.full(ROWS, constant)})
    stayed = judge(against=known, said=now)
    assert stayed.verdict == "ok"
    assert "the predictions stayed the one number of the reference" in stayed.reasons
    assert judge(against=known, said=pa.table({"prediction": np.full(ROWS, constant + 1)})).verdict == "drift"


def test_a_model_of_constants_alone_is_judged_and_drawn() -> None:
    same = {"n0": np.full(ROWS, 273.15)}
    known = pa.table({**same, "prediction": np.full(ROWS, 0.1)})
    comparison = compare(POLICY, pa.table(same), pa.table({"prediction": np.full(ROWS, 0.1)}), known)
    assert (comparison.verdict, comparison.snapshot, set(comparison.shapes)) == ("ok", None, {"n0", "prediction"})


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
        ({"said": predictions(50)}, "50 predictions; a verdict requires at least 200"),
        ({"said": predictions(0)}, "0 predictions; a verdict requires at least 200"),
        ({"against": reference().slice(0, 100)}, "100 rows in the training reference; a verdict requires at least 200"),
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
    assert "n0 had 30.0% missing values, 0.0% in the reference (calibrated threshold 20.0%)" in found.reasons
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
    ("rows", "known", "told"),
    [
        (30, ROWS, "was left out: the window has only 30 rows, and a distance requires 50 on each side"),
        (ROWS, 30, "was left out: the reference has only 30 rows, and a distance requires 50 on each side"),
        (30, 40, "was left out: the window has only 30 rows and the reference has only 40 rows, and a distance requires 50"),
    ],
)
def test_too_few_rows_are_told_as_that_and_not_as_missing_values(rows: int, known: int, told: str) -> None:
    policy = POLICY.model_copy(update={"min_rows": 1})
    found = compare(policy, table(features(rows)), predictions(rows), reference().slice(0, known))

    about = [one.reason for one in found.columns if one.column != "prediction"]
    assert about
    assert all(told in reason for reason in about)
    assert all("missing" not in reason for reason in about)
    assert found.verdict == "unknown"


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
        "only 0 of 2,160 rows in the training reference fall into the same months as 2013-07-01--2013-07-08 (drift.match); "
        "a verdict requires at least 200"
    )
    unmarked = days_of_year(90).drop_columns(["moment"])
    assert "has no event time" in str(match_reference(Drift(match="month"), unmarked, "moment", WEEK))
