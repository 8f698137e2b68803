"""Resampled metrics are scikit-learn's, and bounds cover what they say, with few blocks too."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from perennial.core.intervals import Interval
from perennial.evaluation.metrics import evaluate_prediction
from perennial.evaluation.resampling import FEWEST_BLOCKS, Blocks, draw, find_blocks, resample, spread, too_few
from perennial.model.artifacts import Prediction
from perennial.spec.gates import Resampling
from perennial.spec.training import METRICS

CLASSES = ("a", "b", "c")


def rows_of(task: str, seed: int, rows: int, ties: int) -> tuple[Any, Prediction]:
    """Labels and predictions, with many of the same value where ``ties`` is small."""
    generator = np.random.default_rng(seed)
    if task == "regression":
        truth = generator.normal(1e4, 3, size=rows)
        return truth, Prediction(np.round(truth + generator.normal(size=rows)), None, None, ())
    if task == "binary_classification":
        late = generator.random(rows) < 0.4
        probability = np.round(np.clip(0.3 * late + 0.7 * generator.random(rows), 0, 1) * ties) / ties
        return late, Prediction(probability, probability, np.column_stack([1 - probability, probability]), ("False", "True"))
    probabilities = generator.dirichlet(np.ones(3), rows)
    truth = np.array([*CLASSES, "never seen"], dtype=object)[generator.choice(4, rows, p=[0.4, 0.3, 0.29, 0.01])]
    values = np.array(CLASSES, dtype=object)[probabilities.argmax(axis=1)]
    return truth, Prediction(values, probabilities.max(axis=1), probabilities, CLASSES)


def by_scikit_learn(task: str, metric: str, truth: Any, prediction: Prediction, weight: Any, cost: Any) -> float:
    """The metric of rows that count ``weight`` times; NaN where it is not defined."""
    values = prediction.values
    if metric == "cost":
        return float(np.average(cost(truth, values), weights=weight))
    if metric in ("roc_auc", "average_precision") and len(np.unique(truth[weight > 0])) < 2:
        return np.nan
    if task == "regression":
        of = {"rmse": sk.root_mean_squared_error, "mae": sk.mean_absolute_error, "r2": sk.r2_score}
        return float(of[metric](truth, values, sample_weight=weight))
    if task == "multiclass_classification":
        if metric == "accuracy":
            return float(sk.accuracy_score(truth.astype(str), values.astype(str), sample_weight=weight))
        if metric == "balanced_accuracy":
            seen = np.unique(truth[weight > 0].astype(str))
            return float(
                sk.recall_score(
                    truth.astype(str), values.astype(str), labels=seen, average="macro", sample_weight=weight, zero_division=0
                )
            )
        assert prediction.probabilities is not None
        padded = np.hstack([prediction.probabilities, np.zeros((len(truth), 1))])
        return float(sk.log_loss(truth.astype(str), padded, labels=[*CLASSES, "never seen"], sample_weight=weight))
    if metric == "log_loss":
        return float(sk.log_loss(truth, values, labels=[False, True], sample_weight=weight))
    if metric == "brier":
        return float(sk.brier_score_loss(truth, values, pos_label=True, sample_weight=weight))
    if metric == "calibration_error":
        repeated = np.repeat(np.arange(len(truth)), weight.astype(int))
        return evaluate_prediction("binary_classification", truth[repeated], _select(prediction, repeated))[metric]
    return float({"roc_auc": sk.roc_auc_score, "average_precision": sk.average_precision_score}[metric](
        truth, values, sample_weight=weight
    ))  # fmt: skip


def _select(prediction: Prediction, rows: Any) -> Prediction:
    assert prediction.probabilities is not None
    return Prediction(prediction.values[rows], prediction.values[rows], prediction.probabilities[rows], prediction.classes)


@given(
    task=st.sampled_from(sorted(METRICS)),
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 120),
    blocks=st.integers(1, 12),
    resamples=st.sampled_from([3, 40]),
    ties=st.sampled_from([3, 50, 10_000]),
)
@settings(max_examples=40)
def test_every_metric_is_scikit_learns_with_the_weights_of_the_resample(
    task: Any, seed: int, rows: int, blocks: int, resamples: int, ties: int
) -> None:
    # Three resamples of twelve blocks go the way of many blocks, forty that of few.
    truth, prediction = rows_of(task, seed, rows, ties)
    generator = np.random.default_rng(seed)
    drawn = Blocks(generator.integers(blocks, size=rows), blocks, "1d")
    weights = np.vstack([np.ones(blocks), draw(drawn, Resampling(seed=seed, resamples=200))])[:resamples]

    def cost(truth: Any, predicted: Any) -> Any:
        return np.arange(len(truth), dtype=float)

    found = resample(task, list(METRICS[task]), truth, prediction, drawn, weights, cost=cost)
    assert set(found) == set(METRICS[task])
    for metric, values in found.items():
        for value, weight in zip(values, weights[:, drawn.of], strict=True):
            if not weight.any():
                continue  # no row was drawn
            if metric == "r2" and np.ptp(truth[weight > 0]) == 0:
                assert not np.isfinite(value)
                continue
            expected = by_scikit_learn(task, metric, truth, prediction, weight, cost)
            assert value == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True), metric


def test_an_unknown_metric_is_an_error() -> None:
    truth, prediction = rows_of("regression", 1, 10, 3)
    with pytest.raises(ValueError, match="regression has no metric roc_auc"):
        resample("regression", ["roc_auc"], truth, prediction, Blocks(np.zeros(10, int), 1, "1d"), np.ones((1, 1)))


# --- blocks ----------------------------------------------------------------------------------------------------------

HOLDOUT = Interval.of("2013-04-01", "2013-04-08")


def table(hours: list[float], group: list[str | None] | None = None) -> pa.Table:
    moments = [HOLDOUT.start + timedelta(hours=hour) for hour in hours]
    return pa.table(
        {"moment": pa.array(moments, pa.timestamp("us", "UTC")), "who": pa.array(group or ["a"] * len(hours), pa.string())}
    )


def test_blocks_of_time_begin_with_the_holdout_and_those_without_rows_are_no_blocks() -> None:
    found = find_blocks(table([0, 23.9, 24, 100]), Resampling(), event_time="moment", start=HOLDOUT.start)
    assert found.of.tolist() == [0, 0, 1, 2]
    assert (found.count, found.kind) == (3, "1d")
    shorter = Resampling(block=timedelta(hours=6))
    assert find_blocks(table([0, 5, 7]), shorter, event_time="moment", start=HOLDOUT.start).of.tolist() == [0, 0, 1]


def test_a_group_is_a_block_and_rows_without_one_are_a_block_too() -> None:
    rows = table([0, 1, 2, 3], ["x", None, "y", "x"])
    found = find_blocks(rows, Resampling(group="who"), event_time="moment", start=HOLDOUT.start)
    assert found.of[0] == found.of[3]
    assert (found.count, found.kind) == (3, "who")


def test_the_same_seed_draws_the_same_and_every_resample_counts_as_many_blocks() -> None:
    blocks = Blocks(np.arange(9), 9, "1d")
    one, other = draw(blocks, Resampling(seed=7)), draw(blocks, Resampling(seed=7))
    assert (one == other).all()
    assert (one != draw(blocks, Resampling(seed=8))).any()
    assert (one.sum(axis=1) == 9).all()


def test_too_few_blocks_say_nothing_and_tell_what_to_change() -> None:
    few = Blocks(np.repeat(np.arange(FEWEST_BLOCKS - 1), 50), FEWEST_BLOCKS - 1, "1d")
    assert "gates.resampling.block shorter or training.holdout longer" in (too_few(few) or "")
    assert spread(np.linspace(0, 1, 1_000), FEWEST_BLOCKS - 1, 0.95) is None
    assert too_few(Blocks(np.arange(FEWEST_BLOCKS), FEWEST_BLOCKS, "1d")) is None


def test_a_metric_that_is_often_undefined_has_no_bounds() -> None:
    values = np.linspace(0, 1, 1_000)
    assert spread(np.where(np.arange(1_000) < 5, np.nan, values), 20, 0.95) is not None
    assert spread(np.where(np.arange(1_000) < 50, np.nan, values), 20, 0.95) is None
    assert spread(np.full(1_000, np.nan), 20, 0.95) is None


@pytest.mark.parametrize("count", [5, 7, 14, 28])
def test_one_sided_bounds_are_passed_about_as_often_as_they_say(count: int) -> None:
    # Means of blocks whose true value is nought; rows of a block err together.
    generator, beyond, plain, trials = np.random.default_rng(count), 0, 0, 1_500
    resampling = Resampling(resamples=400)
    weights = draw(Blocks(np.arange(count), count, "1d"), resampling) / count
    for _ in range(trials):
        values = weights @ generator.normal(size=count)
        bounds = spread(values, count, 0.95)
        assert bounds is not None
        beyond += int(bounds.lower > 0)
        plain += int(np.quantile(values, 0.05) > 0)
    assert beyond / trials < 0.07
    assert plain / trials > beyond / trials
    assert count > 7 or plain / trials > 0.08  # what the plain percentile would do


def test_the_interval_holds_the_bounds_of_one_sided_decisions() -> None:
    bounds = spread(np.random.default_rng(1).normal(size=5_000), 30, 0.9)
    assert bounds is not None
    assert bounds.low < bounds.lower < 0 < bounds.upper < bounds.high
    assert bounds.error == pytest.approx(1, rel=0.05)
