"""Estimates the champion's performance before labels arrive.

**Classification**, by confidence-based performance estimation (CBPE, :func:`estimate`). A calibrated probability tells how
often it will be wrong. So the probabilities of a version are calibrated on the rows of its training reference that it had not
seen. Then each row of a window counts once per possible label, weighted by the calibrated probability of that label, and the
metrics are computed on these weighted rows.

**Regression**, by direct loss estimation (DLE, :func:`estimate_loss`). A regression does not say how sure it is. So a second
model learns the loss of a row from the row's features and prediction, on the same rows of the reference. The mean of its
predictions on a window is the window's expected loss.

An estimate is valid only while the relation between features and label stays the same. It shows a change of the features
(covariate shift). It cannot show a change of the relation (concept drift), which only labels show
(:mod:`perennial.monitoring.performance`): :data:`perennial.evidence.verdict.ESTIMATE_LIMIT`. :func:`beside_realised` pairs
both for comparison.

References:
    Kivimäki, Białek, Nurminen, Kuberski: Confidence-based Estimators for Predictive Performance in Model Monitoring. 2024,
        arXiv:2407.08649.
    NannyML, documentation of release 0.13: Confidence-based Performance Estimation; Direct Loss Estimation.
    Niculescu-Mizil, Caruana: Predicting Good Probabilities with Supervised Learning. ICML 2005. Isotonic regression from
        about a thousand rows on, Platt's sigmoid below.
    Zadrozny, Elkan: Transforming Classifier Scores into Accurate Multiclass Probability Estimates. KDD 2002. One against
        the rest, normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn import metrics as sk
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from perennial.core.intervals import Interval
from perennial.evidence.verdict import Estimate, VerdictDetails
from perennial.model.costs import CostFunction
from perennial.monitoring.retraining import WindowVerdict
from perennial.monitoring.usual import MeasuredWindow
from perennial.spec.training import METRICS
from perennial.spec.types import Task

#: The smallest number of unseen reference rows for a calibration.
FEWEST_ROWS = 200
#: From this number of rows, calibrate with isotonic regression; below it, with a sigmoid.
_ISOTONIC_ROWS = 1_000
#: The number of samples of the reference on which the error of the estimate is measured.
_PIECES = 60
#: The parts of the reference, each of whole days, of which one is estimated from the others.
_FOLDS = 5
#: The share of these samples that lies within a band.
CONFIDENCE = 0.95

Floats = NDArray[np.float64]
#: The band of an estimate, and the usual range: low and high end each; None if they are not known.
Bands = tuple[list[float] | None, list[float] | None]


@dataclass(frozen=True)
class PredictedOutcomes:
    """A version's predictions for n rows, and their labels.

    Attributes:
        probabilities: n by k, one column per class.
        classes: k names; ``False`` and ``True`` for a binary task.
        labels: n class numbers; None if they are not known.
        days: n numbers, equal for rows of the same day, because errors of one day are correlated; None: not known.
    """

    probabilities: Floats
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None = None
    days: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.probabilities)


def estimate(
    task: Task,
    metric: str,
    reference: PredictedOutcomes,
    window: PredictedOutcomes,
    *,
    seed: int,
    threshold: float = 0.5,
    cost: CostFunction | None = None,
) -> Estimate:
    """Estimate the metrics of a window.

    Args:
        task: the model's task, a classification.
        metric: the primary metric.
        reference: labelled rows that the version had not seen when it predicted them.
        window: rows without labels; their classes are those of the version.
        seed: for the random samples that bands are computed from.
        threshold: for a binary answer, see :func:`perennial.model.costs.answer_threshold`.
        cost: the cost function of the spec; None if it has none.

    Returns:
        The estimate. If none can be made, it holds the reason and no metrics.
    """

    def none(reason: str) -> Estimate:
        return Estimate(metric, rows=len(window), reference_rows=len(reference), reason=reason)

    if reference.labels is None or len(reference) < FEWEST_ROWS:
        return none(_too_few(len(reference)))
    if len(np.unique(reference.labels)) < 2:
        return none("all labels of the reference are the same")
    if not (np.isfinite(window.probabilities).all() and np.isfinite(reference.probabilities).all()) or not len(window):
        return none("there are no predictions, or some are not finite")
    if unknown := sorted(set(window.classes) - set(reference.classes)):
        return none(f"the reference has no probabilities for {', '.join(unknown)}")
    # Put the reference's classes in the order of the window's classes.
    order = [reference.classes.index(name) for name in window.classes]
    known = reference.probabilities[:, order]
    position = {place: number for number, place in enumerate(order)}
    labels = np.array([position.get(int(label), -1) for label in reference.labels])
    known, labels = known[labels >= 0], labels[labels >= 0]
    days = None if reference.days is None else reference.days[np.isin(reference.labels, order)]
    scoring = _Scoring(task, window.classes, threshold, cost)
    weights = _Calibrator(known, labels).weigh(window.probabilities)
    metrics = {
        name: value for name in METRICS[task] if math.isfinite(value := scoring.metric(name, window.probabilities, weights))
    }
    band = usual = None
    if metric in metrics:
        band, usual = _bands_of_classes(scoring, metric, metrics[metric], known, labels, days, window, seed)
    return Estimate(
        metric=metric,
        metrics=metrics,
        confusion=scoring.confusion(window.probabilities, weights),
        threshold=threshold if task == "binary_classification" else None,
        band=band,
        usual=usual,
        rows=len(window),
        reference_rows=len(known),
        reason="" if metric in metrics else f"{metric} cannot be estimated from probabilities",
    )


class _Calibrator:
    """Maps a version's probabilities to the frequencies of labels in the reference."""

    def __init__(self, probabilities: Floats, labels: NDArray[np.int64]) -> None:
        classes = probabilities.shape[1]
        # With two classes, one probability gives the other.
        self._of = [1] if classes == 2 else list(range(classes))
        self._maps = [_calibrate(probabilities[:, number], labels == number) for number in self._of]

    def weigh(self, probabilities: Floats) -> Floats:
        """The calibrated probability of each label of each row, n by k."""
        found = np.column_stack([apply(probabilities[:, number]) for number, apply in zip(self._of, self._maps, strict=True)])
        if found.shape[1] < probabilities.shape[1]:
            return np.column_stack([1 - found, found])
        total = found.sum(axis=1, keepdims=True)
        # If calibration makes all classes impossible, keep the model's probabilities.
        return np.where(total > 0, found / np.where(total > 0, total, 1), probabilities)


def _calibrate(probability: Floats, true: NDArray[np.bool_]) -> Any:
    if true.all() or not true.any():
        share = float(true.mean())
        return lambda given: np.full(len(given), share)
    if len(true) >= _ISOTONIC_ROWS:
        return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probability, true).predict

    def scores(given: Floats) -> Floats:
        return np.asarray(logit(np.clip(given, 1e-6, 1 - 1e-6)), dtype=np.float64).reshape(-1, 1)

    sigmoid = LogisticRegression(C=1e6).fit(scores(probability), true)
    return lambda given: sigmoid.predict_proba(scores(given))[:, 1]


@dataclass(frozen=True)
class _Scoring:
    """Metrics of rows with weighted labels: row i has label j with the weight ``w[i, j]``."""

    task: Task
    classes: tuple[str, ...]
    threshold: float
    cost: CostFunction | None

    def metric(self, name: str, said: Floats, weights: Floats) -> float:
        """The metric; NaN if it is not defined, or not for weighted rows."""
        if name == "cost":
            return self._cost(said, weights)
        if self.task == "binary_classification":
            return self._binary(name, said[:, 1], weights)
        return self._multiclass(name, said, weights)

    def _binary(self, name: str, probability: Floats, weights: Floats) -> float:
        measure = _BINARY.get(name)
        true, false = weights[:, 1], weights[:, 0]
        if measure is None or min(true.sum(), false.sum()) <= 0:
            return math.nan
        truth = np.repeat([True, False], len(probability))
        return float(measure(truth, np.tile(probability, 2), sample_weight=np.concatenate([true, false])))

    def _multiclass(self, name: str, said: Floats, weights: Floats) -> float:
        answer = said.argmax(axis=1)
        right = weights[np.arange(len(said)), answer]
        total = weights.sum()
        if name == "log_loss":
            return float(-(weights * np.log(np.clip(said, np.finfo(said.dtype).eps, 1))).sum() / total)
        if name == "accuracy":
            return float(right.sum() / total)
        if name == "balanced_accuracy":
            there = weights.sum(axis=0)
            hit = np.bincount(answer, weights=right, minlength=len(there))
            return float((hit[there > 0] / there[there > 0]).mean())
        return math.nan

    def _cost(self, said: Floats, weights: Floats) -> float:
        if self.cost is None:
            return math.nan
        if self.task == "binary_classification":
            labels: list[Any] = [False, True]
            answers: NDArray[Any] = said[:, 1]
        else:
            labels, answers = list(self.classes), np.array(self.classes, dtype=object)[said.argmax(axis=1)]
        costs = [
            self.cost(np.full(len(said), label, dtype=object if isinstance(label, str) else bool), answers) for label in labels
        ]
        return float((np.column_stack(costs) * weights).sum() / weights.sum())

    def confusion(self, said: Floats, weights: Floats) -> dict[str, float]:
        if self.task != "binary_classification":
            return {}
        yes, total = said[:, 1] >= self.threshold, weights.sum()
        return {
            "true_positive": float(weights[yes, 1].sum() / total),
            "false_positive": float(weights[yes, 0].sum() / total),
            "false_negative": float(weights[~yes, 1].sum() / total),
            "true_negative": float(weights[~yes, 0].sum() / total),
        }


def _log_loss(truth: NDArray[np.bool_], probability: Floats, *, sample_weight: Floats) -> float:
    return float(sk.log_loss(truth, probability, sample_weight=sample_weight, labels=[False, True]))


def _brier(truth: NDArray[np.bool_], probability: Floats, *, sample_weight: Floats) -> float:
    return float(sk.brier_score_loss(truth, probability, sample_weight=sample_weight, pos_label=True))


#: The calibration error is not among them: the estimate assumes that calibration removed it.
_BINARY = {
    "roc_auc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "log_loss": _log_loss,
    "brier": _brier,
}


def _bands_of_classes(
    scoring: _Scoring,
    metric: str,
    value: float,
    probabilities: Floats,
    labels: NDArray[np.int64],
    days: NDArray[np.int64] | None,
    window: PredictedOutcomes,
    seed: int,
) -> Bands:
    groups = _groups(days, len(labels))
    if groups is None:
        return None, None
    weights = np.empty_like(probabilities)
    for fitted, other in GroupKFold(_FOLDS).split(probabilities, groups=groups):
        weights[other] = _Calibrator(probabilities[fitted], labels[fitted]).weigh(probabilities[other])
    truth = np.eye(probabilities.shape[1])[labels]
    return _bands(
        value,
        groups,
        lambda rows, times: scoring.metric(metric, probabilities[rows], weights[rows] * times[:, None]),
        lambda rows, times: scoring.metric(metric, probabilities[rows], truth[rows] * times[:, None]),
        size=len(window),
        span=_span(days, window.days),
        seed=seed,
    )


def _groups(days: NDArray[np.int64] | None, rows: int) -> NDArray[np.int64] | None:
    """For each row the number of its day, or of itself if days are not known; None if there are too few for folds."""
    groups = np.arange(rows) if days is None else np.unique(days, return_inverse=True)[1]
    return groups if groups.max() + 1 >= _FOLDS else None


def _span(of_reference: NDArray[np.int64] | None, of_window: NDArray[np.int64] | None) -> int | None:
    """The number of days of the window; None if days are not known."""
    return None if of_reference is None or of_window is None else len(np.unique(of_window))


def _bands(
    value: float,
    groups: NDArray[np.int64],
    estimated: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
    realised: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
    *,
    size: int,
    span: int | None,
    seed: int,
) -> Bands:
    """The band around the estimate ``value``, and the usual range of the metric on the reference.

    Both come from random samples of the reference. A sample has as many rows as the window, drawn from as many days. What its
    estimate needs was fitted on other days, as it is for the window.

    Args:
        value: the estimate for the window.
        groups: for each row of the reference the number of its day.
        estimated, realised: the metric of a sample; they take the numbers of its rows, and how often it has each.
        size: rows of the window.
        span: days of the window; None: as many as the reference.
        seed: for the samples.

    Returns:
        The band, from the errors of the samples' estimates, and the range of the samples' realised metrics: ``[low, high]``
        each. None for both if the metric is not defined on a sample.
    """
    random = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    off, real = [], []
    for _ in range(_PIECES):
        drawn = np.bincount(random.integers(count, size=span or count), minlength=count)
        chances = drawn[groups].astype(np.float64)
        counts = random.multinomial(size, chances / chances.sum())
        rows = np.flatnonzero(counts)
        real.append(realised(rows, counts[rows]))
        off.append(estimated(rows, counts[rows]) - real[-1])
    if not (np.isfinite(off).all() and np.isfinite(real).all()):
        return None, None
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(off, tails)
    return [value - float(high), value - float(low)], [float(end) for end in np.quantile(real, tails)]


# --- regression --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictedNumbers:
    """A version's predictions of a regression for n rows, and their labels.

    Attributes:
        predictions: n numbers.
        inputs: n by d, the features as numbers; NaN where a value is missing.
        labels: n numbers; None if they are not known.
        days: as in :class:`PredictedOutcomes`.
    """

    predictions: Floats
    inputs: Floats
    labels: Floats | None = None
    days: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.predictions)


def estimate_loss(
    metric: str, reference: PredictedNumbers, window: PredictedNumbers, *, seed: int, cost: CostFunction | None = None
) -> Estimate:
    """Estimate the metrics of a regression's window.

    ``r2`` is not estimated: it compares with the spread of the labels, which are not there.

    Args:
        metric: the primary metric.
        reference: labelled rows that the version had not seen when it predicted them.
        window: rows without labels, with the same inputs.
        seed: for the second model, and for the random samples that bands are computed from.
        cost: the cost function of the spec; None if it has none.

    Returns:
        The estimate. If none can be made, it holds the reason and no metrics.
    """

    def none(reason: str) -> Estimate:
        return Estimate(metric, rows=len(window), reference_rows=len(reference), reason=reason)

    if reference.labels is None or len(reference) < FEWEST_ROWS:
        return none(_too_few(len(reference)))
    if not len(window):
        return none("no prediction of the window has features")
    if not (np.isfinite(window.predictions).all() and np.isfinite(reference.predictions).all()):
        return none("some predictions are not finite")
    error = reference.labels - reference.predictions
    losses = {"rmse": error**2, "mae": np.abs(error)}
    if cost is not None:
        losses["cost"] = cost(reference.labels, reference.predictions)
    known, asked = (np.column_stack([rows.inputs, rows.predictions]) for rows in (reference, window))

    def learn(name: str, rows: Any) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            max_iter=40, learning_rate=0.2, max_leaf_nodes=8, max_bins=64, early_stopping=False, random_state=seed
        ).fit(known[rows], losses[name][rows])

    def of_mean(name: str, loss: Floats, times: NDArray[np.int64] | None = None) -> float:
        mean = float(np.average(loss, weights=times))
        return {"rmse": math.sqrt(max(mean, 0.0)), "mae": max(mean, 0.0)}.get(name, mean)

    metrics = {name: of_mean(name, learn(name, slice(None)).predict(asked)) for name in losses}
    groups = _groups(reference.days, len(reference))
    band = usual = None
    if metric in metrics and groups is not None:
        learned = np.empty(len(reference))
        for fitted, other in GroupKFold(_FOLDS).split(known, groups=groups):
            learned[other] = learn(metric, fitted).predict(known[other])
        band, usual = _bands(
            metrics[metric],
            groups,
            lambda rows, times: of_mean(metric, learned[rows], times),
            lambda rows, times: of_mean(metric, losses[metric][rows], times),
            size=len(window),
            span=_span(reference.days, window.days),
            seed=seed,
        )
    return Estimate(
        metric=metric,
        metrics=metrics,
        band=band,
        usual=usual,
        rows=len(window),
        reference_rows=len(reference),
        reason="" if metric in metrics else f"{metric} cannot be estimated from the losses of single rows",
    )


def _too_few(rows: int) -> str:
    return f"the reference has {rows:,} rows that the version had not seen; {FEWEST_ROWS:,} are needed"


# --- estimated and realised, side by side -----------------------------------------------------------------------------


class EstimatedWindow(WindowVerdict, Protocol):
    """The attributes of a drift verdict that this module reads. The estimate is in its details."""

    @property
    def details(self) -> VerdictDetails: ...


class RealisedWindow(MeasuredWindow, Protocol):
    """The attributes of a performance record that this module reads."""

    @property
    def coverage(self) -> float: ...


@dataclass(frozen=True)
class WindowOutlook:
    """Estimated and realised performance of a version in one window.

    Attributes:
        estimated, band: the estimate of the primary metric before labels, and its band; None if there is no estimate.
        realised: the primary metric on the labels that have arrived; None if there are too few.
        coverage: share of the predictions whose label has arrived, 0 to 1; None if nothing was measured.
        rows: the number of labelled predictions.
        mature: whether enough labels have arrived for the measurement to be final.
        verdict: the drift verdict; None if the window was not judged for this version.
        severity: the severity of that verdict.
    """

    interval: Interval
    version: int
    estimated: float | None = None
    band: tuple[float, float] | None = None
    realised: float | None = None
    coverage: float | None = None
    rows: int = 0
    mature: bool = False
    verdict: str | None = None
    severity: str | None = None


def beside_realised(
    verdicts: Iterable[EstimatedWindow], performances: Iterable[RealisedWindow], metric: str, *, label_coverage: float
) -> list[WindowOutlook]:
    """Estimated and realised performance of each window and version, oldest window first.

    Args:
        verdicts: drift verdicts, with the estimate in their details.
        performances: realised performance.
        metric: the primary metric.
        label_coverage: a measurement is mature when at least this share of predictions has a label, 0 to 1.
    """
    found: dict[tuple[Interval, int], WindowOutlook] = {}
    for verdict in verdicts:
        if verdict.version is None:
            continue
        said = verdict.details.estimate
        value = said.metrics.get(metric) if said is not None and said.metric == metric else None
        band = said.band if said is not None and value is not None else None
        found[verdict.interval, verdict.version] = WindowOutlook(
            verdict.interval,
            verdict.version,
            estimated=value,
            band=(band[0], band[1]) if band else None,
            verdict=verdict.verdict,
            severity=verdict.details.severity,
        )
    for measured in performances:
        key = measured.interval, measured.version
        before = found.get(key, WindowOutlook(*key))
        value = measured.metrics.get(metric)
        found[key] = WindowOutlook(
            **{
                **vars(before),
                "realised": value if value is not None and math.isfinite(value) else None,
                "coverage": measured.coverage,
                "rows": measured.rows,
                "mature": measured.coverage >= label_coverage,
            }
        )
    return [found[key] for key in sorted(found, key=lambda key: (key[0].start, key[0].end, key[1]))]


def from_binary(
    probability: Floats, labels: NDArray[Any] | None = None, days: NDArray[np.int64] | None = None
) -> PredictedOutcomes:
    """Make outcomes of a binary task from the probabilities of true, and labels that are true or false."""
    return PredictedOutcomes(
        np.column_stack([1 - probability, probability]),
        ("False", "True"),
        None if labels is None else labels.astype(bool).astype(np.int64),
        days,
    )


def from_classes(
    probabilities: Floats, classes: Sequence[str], labels: NDArray[Any] | None = None, days: NDArray[np.int64] | None = None
) -> PredictedOutcomes:
    """Make outcomes from the probabilities of several classes, and labels that are class names. An unknown name becomes -1."""
    place = {name: number for number, name in enumerate(classes)}
    numbers = None if labels is None else np.array([place.get(str(label), -1) for label in labels], dtype=np.int64)
    return PredictedOutcomes(probabilities, tuple(classes), numbers, days)
