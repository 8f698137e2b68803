"""Pictures for people who compare models in MLflow.

The functions write PNG files. They hold no state, so several processes and threads may draw at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import auc, confusion_matrix, precision_recall_curve, roc_curve

from perennial.evaluation.resampling import CALIBRATION_BINS, calibration_bins
from perennial.evidence.evaluation import Evaluation
from perennial.model.artifacts import Prediction
from perennial.spec.types import Task

#: The most points of a scatter plot. More points would only hide each other.
_MAX_POINTS = 5_000
#: The most points of a curve. More points would not be visible.
_MAX_CURVE = 500
#: Bars of a histogram, and the largest number that a picture shows.
_BARS, _FARTHEST = 40, 1e300
#: Width of a letter of a label, inches.
_LETTER = 0.09
GREY = "0.6"


def draw_predictions(
    task: Task, truth: NDArray[Any], predictions: Mapping[str, Prediction], directory: Path, *, rows: str
) -> list[Path]:
    """Draw the pictures of a task, with one curve per model.

    Args:
        task: for binary classification, ROC, precision-recall and calibration; for multiclass, the confusion matrix of the
            first model; for regression, the residuals of the first model.
        truth: n labels.
        predictions: n predictions by the name of their model. The model of interest comes first.
        directory: folder for the PNG files.
        rows: describes the rows in the titles.

    Returns:
        The files; none if there are no rows, or only labels of one class.
    """
    finite = {name: found for name, found in predictions.items() if _is_finite(found)}
    if len(truth) == 0 or not finite:
        return []
    if task == "regression":
        return [_draw_residuals(truth, finite, directory, rows)]
    if task == "multiclass_classification":
        return [_draw_confusion(truth, finite, directory, rows)]
    truth = truth.astype(bool)
    if truth.all() or not truth.any():
        return []
    return [draw(truth, finite, directory, rows) for draw in (_draw_roc, _draw_precision_recall, _draw_calibration)]


def draw_importance(importance: Mapping[str, float], directory: Path, *, metric: str, rows: str, most: int = 25) -> Path:
    """Draw bars for the features whose shuffling lowers the metric most.

    Args:
        importance: drop of the metric by feature, largest first.
        directory: folder for the PNG file.
        metric: name of the metric.
        rows: describes the rows in the title.
        most: the most features to show.

    Returns:
        The file.
    """
    shown = list(importance.items())[:most][::-1]
    figure, axes = _named(name for name, _ in shown)
    axes.barh([name for name, _ in shown], [drop for _, drop in shown], color="C0")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(title=f"Permutation importance, {rows}", xlabel=f"drop of {metric} when the feature is shuffled")
    return save(figure, directory / "importance.png")


def draw_comparison(
    evaluation: Evaluation, gains: NDArray[np.float64] | None, directory: Path, *, rows: str, most: int = 30
) -> list[Path]:
    """Draw the certainty of the candidate's gain over the champion, and the gain by slice.

    Args:
        evaluation: the evidence.
        gains: the gain in each resample; None without a comparison.
        directory: folder for the PNG files.
        rows: describes the rows in the titles.
        most: the most slices to show. Those with the largest losses are shown.

    Returns:
        The files; none without a champion.
    """
    found, files = evaluation.comparison, []
    if found is not None and gains is not None and np.isfinite(gains).any():
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.subplots(gridspec_kw={"left": 0.11, "right": 0.97, "bottom": 0.14, "top": 0.91})
        axes.hist(*_bars(gains), color="C0")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axvline(found.gain, color="C1", label=f"gain {found.gain:.4g}")
        if found.low is not None and found.high is not None:
            label = f"{found.low:.4g} to {found.high:.4g} with confidence {found.confidence:g}"
            axes.axvspan(found.low, found.high, color="C1", alpha=0.15, label=label)
        what = f"gain of {evaluation.metric} over champion version {evaluation.champion_version}"
        axes.set(title=f"{found.resamples:,} resamples, {rows}", xlabel=f"{what}, more is better", ylabel="resamples")
        axes.legend()
        files.append(save(figure, directory / "gain.png"))
    if evaluation.slices is not None and evaluation.slices.judged:
        shown = sorted(evaluation.slices.judged, key=lambda one: one.gain)[:most][::-1]
        names = [f"{one.column} {one.value} ({one.rows:,})" for one in shown]
        figure, axes = _named(names)
        errors = [one.error for one in shown]
        axes.errorbar([one.gain for one in shown], names, xerr=errors, fmt="o", color="C0", markersize=4)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set(title=f"Slices, {rows}", xlabel=f"gain of {evaluation.metric} and its standard error, more is better")
        files.append(save(figure, directory / "slices.png"))
    return files


def _is_finite(prediction: Prediction) -> bool:
    numbers = prediction.values if prediction.probabilities is None else prediction.probabilities
    return bool(np.isfinite(numbers).all())


def _named(rows: Iterable[str]) -> tuple[Figure, Any]:
    """A figure with a row for each name, which stands to the left of it."""
    # A layout engine would take longer than the drawing, here and below.
    names = [len(name) for name in rows]
    height, name = 1.2 + 0.28 * len(names), 0.2 + _LETTER * max(names, default=0)
    figure = Figure(figsize=(4.8 + name, height))
    margins = {"left": name / (4.8 + name), "right": 0.97, "bottom": 0.5 / height, "top": 1 - 0.35 / height}
    return figure, figure.subplots(gridspec_kw=margins)


def _square() -> tuple[Figure, Any]:
    # Margins for numbers between 0 and 1.
    figure = Figure(figsize=(5, 4.6))
    return figure, figure.subplots(gridspec_kw={"left": 0.12, "right": 0.97, "bottom": 0.11, "top": 0.93})


def _thin(*curve: NDArray[Any]) -> list[NDArray[Any]]:
    """At most :data:`_MAX_CURVE` points of a curve, its ends included."""
    keep = np.unique(np.linspace(0, len(curve[0]) - 1, _MAX_CURVE).astype(int))
    return [values[keep] for values in curve]


def _draw_roc(truth: NDArray[np.bool_], predictions: Mapping[str, Prediction], directory: Path, rows: str) -> Path:
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for name, prediction in predictions.items():
        false_positives, true_positives, _ = roc_curve(truth, prediction.values)
        axes.plot(*_thin(false_positives, true_positives), label=f"{name} ({auc(false_positives, true_positives):.3f})")
    axes.set(title=f"ROC, {rows}", xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right", title="area under the curve")
    return save(figure, directory / "roc.png")


def _draw_precision_recall(truth: NDArray[np.bool_], predictions: Mapping[str, Prediction], directory: Path, rows: str) -> Path:
    figure, axes = _square()
    axes.axhline(truth.mean(), color=GREY, linewidth=0.8, linestyle="--", label=f"share of true ({truth.mean():.3f})")
    for name, prediction in predictions.items():
        precision, recall, _ = precision_recall_curve(truth, prediction.values)
        axes.plot(*_thin(recall, precision), label=name)
    axes.set(title=f"Precision and recall, {rows}", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    axes.legend(loc="upper right")
    return save(figure, directory / "precision_recall.png")


def _draw_calibration(truth: NDArray[np.bool_], predictions: Mapping[str, Prediction], directory: Path, rows: str) -> Path:
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", label="calibrated")
    for name, prediction in predictions.items():
        # The same bins as those of the calibration error, so that the picture explains the number.
        bin_of = calibration_bins(prediction.values)
        count = np.bincount(bin_of, minlength=CALIBRATION_BINS)
        used = count > 0
        promised = np.bincount(bin_of, weights=prediction.values, minlength=CALIBRATION_BINS)[used] / count[used]
        came_true = np.bincount(bin_of, weights=truth.astype(float), minlength=CALIBRATION_BINS)[used] / count[used]
        axes.plot(promised, came_true, marker="o", markersize=3, label=name)
    axes.set(title=f"Calibration, {rows}", xlabel="mean predicted probability", ylabel="share that came true")
    axes.legend(loc="upper left")
    return save(figure, directory / "calibration.png")


def _draw_confusion(truth: NDArray[Any], predictions: Mapping[str, Prediction], directory: Path, rows: str) -> Path:
    name, prediction = next(iter(predictions.items()))
    labels = sorted({*prediction.classes, *(str(label) for label in truth)})
    shares = confusion_matrix(truth.astype(str), prediction.values.astype(str), labels=labels).astype(float)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    side = min(10.0, 3.2 + 0.35 * len(labels))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(title=f"{name}, {rows}", xlabel="predicted", ylabel="true (rows sum to 1)")
    if len(labels) <= 12:
        for row, column in np.ndindex(shares.shape):
            share = shares[row, column]
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
    return save(figure, directory / "confusion.png")


def _draw_residuals(truth: NDArray[Any], predictions: Mapping[str, Prediction], directory: Path, rows: str) -> Path:
    name, prediction = next(iter(predictions.items()))
    shown = np.unique(np.linspace(0, len(truth) - 1, _MAX_POINTS).astype(int))
    with np.errstate(over="ignore"):
        predicted, residual = (
            np.clip(numbers[shown], -_FARTHEST, _FARTHEST) for numbers in (prediction.values, truth - prediction.values)
        )
    figure = Figure(figsize=(8, 4))
    margins = {"left": 0.11, "right": 0.97, "bottom": 0.13, "top": 0.92, "wspace": 0.3}
    scatter, histogram = figure.subplots(1, 2, width_ratios=[2, 1], gridspec_kw=margins)
    scatter.scatter(predicted, residual, s=4, alpha=0.4, linewidths=0)
    scatter.axhline(0, color=GREY, linewidth=0.8)
    scatter.set(title=f"{name}, {rows}", xlabel="predicted", ylabel="true minus predicted")
    histogram.hist(*_bars(residual), orientation="horizontal", color="C0")
    histogram.set(xlabel="rows")
    return save(figure, directory / "residuals.png")


def _bars(values: NDArray[Any]) -> tuple[NDArray[np.float64], list[float]]:
    """Numbers that a histogram can show, and the edges of its bars, also where all of them are the same but for rounding."""
    shown = np.clip(values[np.isfinite(values)].astype(np.float64), -_FARTHEST, _FARTHEST)
    low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 0.0)
    least = 1e-6 * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        low, high = low - least, high + least
    return shown, np.linspace(low, high, _BARS + 1).tolist()


def save(figure: Figure, file: Path) -> Path:
    """Write a figure as PNG, and return the path."""
    FigureCanvasAgg(figure)  # Agg draws without a display, and without pyplot's global list of figures
    figure.savefig(file, format="png", dpi=90)
    return file
