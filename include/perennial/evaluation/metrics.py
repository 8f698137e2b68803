"""How good a model is on given rows: the metrics of :data:`perennial.spec.training.METRICS`, by scikit-learn.

The same functions measure a candidate on its validation rows (:mod:`perennial.training.fit`), all contenders on the holdout
(:mod:`perennial.evaluation.contest`), and the champion once labels arrive (:mod:`perennial.monitoring.performance`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn import metrics as sk

from perennial.evaluation.resampling import CALIBRATION_BINS, Blocks, calibration_bins, resample
from perennial.evidence.evaluation import Answers, PredictionSummary
from perennial.model.artifacts import Prediction
from perennial.model.costs import CostFunction
from perennial.spec.training import METRICS
from perennial.spec.types import Task

__all__ = [
    "CALIBRATION_BINS",
    "QUANTILES",
    "agreement",
    "answers",
    "calibration_error",
    "count_not_finite",
    "evaluate",
    "evaluate_metric",
    "evaluate_prediction",
    "skill_score",
    "summarise",
]

#: For which quantiles the pinball loss of a regression is told, and up to how many classes what was answered for which.
QUANTILES, MOST_CLASSES = (0.1, 0.5, 0.9), 100


def evaluate(
    task: Task,
    truth: NDArray[Any],
    predicted: NDArray[Any],
    *,
    probabilities: NDArray[np.float64] | None = None,
    classes: Sequence[str] = (),
    cost: CostFunction | None = None,
) -> dict[str, float]:
    """The metrics of a task.

    Args:
        task: decides which metrics are computed.
        truth: n labels: booleans (binary), texts (multiclass) or numbers (regression).
        predicted: n predictions: the probability of true (binary), a class (multiclass), a number (regression).
        probabilities: for multiclass, n by len(classes). Each row sums to 1. Without them ``log_loss`` is absent.
        classes: the classes of ``probabilities``' columns, in order.
        cost: gives the cost of each row, see :func:`perennial.model.costs.cost_function`. Without it ``cost`` is absent.

    Returns:
        Metrics by name. A metric that is undefined or not finite is absent, never NaN. A rank metric is undefined if all
        labels are of one class. All metrics are undefined without rows, or if a prediction is not finite.

    Raises:
        ValueError: ``truth`` and ``predicted`` differ in length.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(predicted)} predictions for {len(truth)} labels")
    if len(truth) == 0 or count_not_finite(predicted):
        return {}
    if task == "binary_classification":
        found = _binary(truth.astype(bool), predicted)
    elif task == "regression":
        found = _regression(truth, predicted)
    else:
        found = _multiclass(truth, predicted, probabilities, classes)
    if cost is not None:
        found["cost"] = float(np.mean(cost(truth, predicted)))
    return {name: float(found[name]) for name in METRICS[task] if name in found and math.isfinite(found[name])}


def answers(task: Task, truth: NDArray[Any], prediction: Prediction, threshold: float) -> Answers | None:
    """What a model answered, in figures that no gate judges.

    Args:
        task: decides which figures there are.
        truth: n labels.
        prediction: n predictions.
        threshold: the probability from which the answer to a binary question is yes.

    Returns:
        The figures; None without rows, if a prediction is not finite, or if there are more than :data:`MOST_CLASSES` classes,
        for which nobody reads them, and a table of all pairs would be large.

    References:
        Koenker, Bassett: Regression Quantiles. Econometrica 46 (1978): the pinball loss.
    """
    if len(truth) == 0 or count_not_finite(prediction.values):
        return None
    if task == "regression":
        error, size = truth - prediction.values, np.abs(truth)
        known = size > 0
        return Answers(
            mape=float(np.mean(np.abs(error[known]) / size[known])) if known.any() else None,
            zeros=int(np.count_nonzero(~known)),
            pinball={f"{q:g}": float(np.mean(np.maximum(q * error, (q - 1) * error))) for q in QUANTILES},
        )
    if task == "binary_classification":
        actual, said = (np.where(yes, "true", "false") for yes in (truth.astype(bool), prediction.values >= threshold))
    else:
        actual, said = truth.astype(str), prediction.values.astype(str)
        if len(np.unique(np.concatenate([actual, said]))) > MOST_CLASSES:
            return None
    pairs, counts = np.unique(np.stack([actual, said]), axis=1, return_counts=True)
    confusion: dict[str, dict[str, int]] = {}
    for (one, other), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        confusion.setdefault(one, {})[other] = count
    return Answers(threshold=threshold if task == "binary_classification" else None, confusion=confusion)


def agreement(task: Task, one: Prediction, other: Prediction) -> float | None:
    """How far two models agree on the same rows, whatever is true.

    Args:
        task: the task of both.
        one, other: n predictions each.

    Returns:
        Spearman's rank correlation of the predictions, -1 to 1; for multiclass the share of rows for which both predict the
        same class, 0 to 1. None if it is not defined: a prediction is not finite, or one model predicts a constant.
    """
    if not len(one) or count_not_finite(one.values) or count_not_finite(other.values):
        return None
    if task == "multiclass_classification":
        return float(np.mean(one.values == other.values))
    if np.ptp(one.values) == 0 or np.ptp(other.values) == 0:
        return None
    return float(spearmanr(one.values, other.values).statistic)


def skill_score(task: Task, metric: str, value: float, constant: float) -> float | None:
    """How much of the way from the best constant prediction to a perfect one a model has gone.

    Args:
        task, metric: the metric of both values.
        value: the model's.
        constant: that of the best constant prediction on the same rows.

    Returns:
        0 for the constant, 1 for a perfect prediction, negative if the constant is better. None if it is not defined.

    References:
        Murphy: Skill Scores Based on the Mean Square Error and Their Relationships to the Correlation Coefficient. Monthly
        Weather Review 116 (1988), equation 4.
    """
    greater_is_better = METRICS[task][metric]
    way = (1.0 - constant) if greater_is_better else abs(constant)
    gone = value - constant if greater_is_better else constant - value
    return gone / way if way > 0 and math.isfinite(gone) else None


def evaluate_prediction(
    task: Task, truth: NDArray[Any], prediction: Prediction, cost: CostFunction | None = None
) -> dict[str, float]:
    """:func:`evaluate` for the prediction of a model, with its probabilities of classes."""
    return evaluate(
        task, truth, prediction.values, probabilities=prediction.probabilities, classes=prediction.classes, cost=cost
    )


def evaluate_metric(
    task: Task, metric: str, truth: NDArray[Any], prediction: Prediction, cost: CostFunction | None = None
) -> float | None:
    """One metric, faster than :func:`evaluate` and equal to its value; None if :func:`evaluate` leaves it out."""
    if len(truth) == 0 or count_not_finite(prediction.values):
        return None
    everything = Blocks(np.zeros(len(truth), dtype=np.intp), 1, "all")
    found = resample(task, [metric], truth, prediction, everything, np.ones((1, 1)), cost=cost).get(metric)
    return float(found[0]) if found is not None and math.isfinite(found[0]) else None


def count_not_finite(values: NDArray[Any]) -> int:
    """The number of values that are NaN, infinite or missing."""
    if values.dtype.kind == "f":
        return int(np.count_nonzero(~np.isfinite(values)))
    if values.dtype.kind == "O":
        return sum(value is None or value != value for value in values)
    return 0


def _binary(truth: NDArray[np.bool_], predicted: NDArray[np.float64]) -> dict[str, float]:
    found = {
        "log_loss": sk.log_loss(truth, predicted, labels=[False, True]),
        "brier": sk.brier_score_loss(truth, predicted, pos_label=True),
        "calibration_error": calibration_error(truth, predicted),
    }
    if truth.any() and not truth.all():
        found["roc_auc"] = sk.roc_auc_score(truth, predicted)
        found["average_precision"] = sk.average_precision_score(truth, predicted)
    return found


def _multiclass(
    truth: NDArray[Any], predicted: NDArray[Any], probabilities: NDArray[np.float64] | None, classes: Sequence[str]
) -> dict[str, float]:
    # scikit-learn cannot distinguish object arrays of texts from mixed ones.
    truth, predicted = truth.astype(str), predicted.astype(str)
    seen = np.unique(truth)
    found = {
        "accuracy": sk.accuracy_score(truth, predicted),
        # Balanced accuracy is the mean recall of the classes that occur. This form does not warn about the others.
        "balanced_accuracy": sk.recall_score(truth, predicted, labels=seen, average="macro", zero_division=0),
    }
    if probabilities is not None and np.isfinite(probabilities).all():
        # A class that the model does not know gets the probability 0, and so the highest loss.
        unknown = [label for label in seen if label not in classes]
        labels = np.array([*classes, *unknown])
        padded = np.hstack([probabilities, np.zeros((len(truth), len(unknown)))])
        order = np.argsort(labels)
        found["log_loss"] = sk.log_loss(truth, padded[:, order], labels=labels[order])
    return found


def _regression(truth: NDArray[Any], predicted: NDArray[np.float64]) -> dict[str, float]:
    found = {"rmse": sk.root_mean_squared_error(truth, predicted), "mae": sk.mean_absolute_error(truth, predicted)}
    if len(truth) > 1:
        found["r2"] = sk.r2_score(truth, predicted)
    return found


def calibration_error(truth: NDArray[np.bool_], probability: NDArray[np.float64], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of a binary model: how far its probabilities lie from the observed shares of true labels.

    It is the mean over equal-width bins of |share of true labels - mean probability|, weighted by rows, 0 to 1. The
    probability is that of true, not that of the more likely class, so that a model is judged by the number that it
    publishes.

    Args:
        truth: n labels.
        probability: n probabilities of true.
        bins: number of bins.

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks. ICML 2017, equation 3.
    """
    bin_of = calibration_bins(probability, bins)
    came_true = np.bincount(bin_of, weights=truth.astype(np.float64), minlength=bins)
    promised = np.bincount(bin_of, weights=probability, minlength=bins)
    return float(np.abs(came_true - promised).sum() / len(truth))


def summarise(prediction: Prediction) -> PredictionSummary:
    """Summarise predictions, for the gate that judges whether they are plausible."""
    values = prediction.values
    if values.dtype.kind != "f":
        present = [value for value in values if value is not None]
        return PredictionSummary(len(values), len(values) - len(present), len(set(present)))
    finite = values[np.isfinite(values)]
    minimum, mean, maximum = (float(of(finite)) for of in (np.min, np.mean, np.max)) if len(finite) else (None, None, None)
    return PredictionSummary(len(values), len(values) - len(finite), len(np.unique(finite)), minimum, mean, maximum)
