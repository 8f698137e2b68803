"""The uncertainty of a metric, by the paired block bootstrap.

Errors in rows of one day, or of one customer, are correlated. So rows are not drawn one by one, but in whole blocks, with
replacement: block ``b`` counts ``weights[r, b]`` times in resample ``r``. All models and all metrics use the same draws, which
pairs them. No row is copied. Each metric of this module takes the weights directly, mostly in one matrix product, and equals
scikit-learn's metric with ``sample_weight``.

With few blocks the plain percentile interval is too short, by about a third for seven days. So the bounds here are those of
the expanded percentile interval. Its quantiles are moved outwards until the interval is as wide as Student's interval with
its ``sqrt(n / (n - 1))``. With fewer than :data:`FEWEST_BLOCKS` blocks there are no bounds.

Neighbours: :mod:`perennial.evaluation.comparison` and :mod:`perennial.evaluation.metrics` call this module.

References:
    Carlstein: The Use of Subseries Values for Estimating the Variance of a General Statistic from a Stationary Sequence.
        Annals of Statistics 14 (1986). Blocks that do not overlap.
    Cameron, Gelbach, Miller: Bootstrap-Based Improvements for Inference with Clustered Errors. Review of Economics and
        Statistics 90 (2008). Groups as blocks.
    Hesterberg: What Teachers Should Know About the Bootstrap. The American Statistician 69 (2015), section 5.3. The expanded
        percentile interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from perennial.model.artifacts import Prediction
from perennial.model.costs import CostFunction
from perennial.spec.gates import Resampling
from perennial.spec.training import METRICS
from perennial.spec.types import Task

#: The fewest blocks for which the uncertainty is computed.
FEWEST_BLOCKS = 5

#: Number of bins of the calibration error, as in the experiments of Guo and others.
CALIBRATION_BINS = 15

#: A metric has no bounds if it is undefined in more than this share of resamples, for example without true labels.
_MOST_UNDEFINED = 0.01

#: The most numbers in a temporary matrix: 64 MB.
_CHUNK = 8_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Blocks:
    """The block of each row.

    Attributes:
        of: n block numbers from 0 to ``count - 1``.
        count: number of blocks.
        kind: what a block is, for people: ``1d`` or the name of a column.
    """

    of: NDArray[np.intp]
    count: int
    kind: str

    def select(self, rows: NDArray[np.intp]) -> Blocks:
        """The blocks of some of the rows. Numbers and ``count`` stay the same, so that the same weights apply."""
        return Blocks(self.of[rows], self.count, self.kind)

    @property
    def occupied(self) -> int:
        """The number of blocks that have rows."""
        return int(np.count_nonzero(np.bincount(self.of, minlength=self.count)))


def find_blocks(rows: pa.Table, resampling: Resampling, *, event_time: str, start: datetime) -> Blocks:
    """The blocks of rows that the spec defines: by a column, or by time.

    Args:
        rows: n rows with their event time, or with the column that groups them.
        resampling: the column, or the length of a block.
        event_time: name of the event time column.
        start: the moment at which the first block begins.
    """
    if resampling.group is not None:
        encoded = pc.dictionary_encode(pc.cast(rows.column(resampling.group), pa.string()), null_encoding="encode")
        found = encoded.combine_chunks().indices.to_numpy(zero_copy_only=False)
        kind = resampling.group
    else:
        moments = pc.cast(rows.column(event_time), pa.timestamp("us", "UTC")).combine_chunks()
        microseconds = pc.cast(moments, pa.int64()).to_numpy(zero_copy_only=False) - int(start.timestamp() * 1_000_000)
        found = microseconds // int(resampling.block.total_seconds() * 1_000_000)
        kind = str(resampling.model_dump(mode="json")["block"])
    seen, numbers = np.unique(found, return_inverse=True)
    return Blocks(numbers.astype(np.intp), len(seen), kind)


def draw(blocks: Blocks, resampling: Resampling) -> Floats:
    """Draw how often each block counts in each resample: resamples by ``blocks.count``. Each row sums to ``blocks.count``."""
    generator = np.random.default_rng(resampling.seed)
    count = blocks.count
    return generator.multinomial(count, np.full(count, 1 / count), size=resampling.resamples).astype(np.float64)


def too_few(blocks: Blocks) -> str | None:
    """Why there are too few blocks, and what to change; None if there are enough."""
    if blocks.occupied >= FEWEST_BLOCKS:
        return None
    return (
        f"the rows are in {blocks.occupied} blocks of {blocks.kind}, and the uncertainty requires at least {FEWEST_BLOCKS}: "
        "make gates.resampling.block shorter or training.holdout longer"
    )


# --- bounds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """The uncertainty of a number.

    Attributes:
        low, high: bounds of the two-sided confidence interval.
        lower, upper: the one-sided bounds. The number lies above ``lower`` with the given confidence, and below ``upper`` with
            the same confidence.
        error: standard error.
    """

    low: float
    high: float
    lower: float
    upper: float
    error: float


def spread(values: Floats, blocks: int, confidence: float) -> Spread | None:
    """The bounds of a number, from its values in the resamples.

    Args:
        values: one value per resample; NaN where it is undefined.
        blocks: number of blocks with rows.
        confidence: confidence of each one-sided bound, and of the interval, between 0 and 1.

    Returns:
        None if the number is undefined too often, or if there are too few blocks.
    """
    defined = values[np.isfinite(values)]
    if blocks < FEWEST_BLOCKS or len(values) - len(defined) > _MOST_UNDEFINED * len(values):
        return None
    wider = np.sqrt(blocks / (blocks - 1))
    tails = np.array([(1 - confidence) / 2, 1 - confidence])
    expanded = ndtr(wider * stdtrit(blocks - 1, tails))
    # The outer one of two order statistics. With few resamples the bound is then too wide, never too narrow.
    low, lower = np.quantile(defined, expanded, method="lower")
    high, upper = np.quantile(defined, 1 - expanded, method="higher")
    return Spread(float(low), float(high), float(lower), float(upper), float(defined.std(ddof=1) * wider))


# --- metrics by weights ----------------------------------------------------------------------------------------------


def resample(
    task: Task,
    metrics: Sequence[str],
    truth: NDArray[np.generic],
    prediction: Prediction,
    blocks: Blocks,
    weights: Floats,
    *,
    cost: CostFunction | None = None,
) -> dict[str, Floats]:
    """Compute metrics in each resample.

    Args:
        task: the task of the model.
        metrics: names from :data:`perennial.spec.training.METRICS`.
        truth: n labels, see :func:`perennial.evaluation.metrics.evaluate`.
        prediction: n finite predictions.
        blocks: the blocks of the n rows.
        weights: resamples by ``blocks.count``.
        cost: gives the costs for the metric ``cost``.

    Returns:
        By metric, one value per resample: scikit-learn's value with ``sample_weight`` ``weights[r, blocks.of]``. NaN where
        the metric is undefined, for example a rank metric if all labels are equal.

    Raises:
        ValueError: the task has no such metric.
    """
    unknown = [metric for metric in metrics if metric not in METRICS[task]]
    if unknown:
        raise ValueError(f"{task} has no metric {', '.join(unknown)}")
    rows = _Rows(blocks, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        if task == "binary_classification":
            found = _binary(metrics, np.asarray(truth, dtype=bool), prediction.values, rows)
        elif task == "regression":
            found = _regression(metrics, np.asarray(truth, dtype=np.float64), prediction.values, rows)
        else:
            found = _multiclass(metrics, truth.astype(str), prediction, rows)
        if "cost" in metrics and cost is not None:
            found["cost"] = rows.mean(cost(truth, prediction.values))
    return found


@dataclass(frozen=True)
class _Rows:
    blocks: Blocks
    weights: Floats

    def sums(self, values: Floats | NDArray[np.bool_]) -> Floats:
        """The weighted sum of n values in each resample."""
        return self.weights @ np.bincount(self.blocks.of, weights=values, minlength=self.blocks.count)

    @property
    def total(self) -> Floats:
        return self.weights @ np.bincount(self.blocks.of, minlength=self.blocks.count)

    def mean(self, values: Floats | NDArray[np.bool_]) -> Floats:
        return self.sums(values) / self.total

    def tabulate(self, columns: NDArray[np.intp], values: Floats | None, count: int) -> Floats:
        """Weighted sums by column, resamples by ``count``. Each row adds its value, or 1, to its column."""
        cells = self.blocks.of * count + columns
        table = np.bincount(cells, weights=values, minlength=self.blocks.count * count).reshape(self.blocks.count, count)
        return self.weights @ table


def _binary(metrics: Sequence[str], truth: NDArray[np.bool_], probability: Floats, rows: _Rows) -> dict[str, Floats]:
    by_name: Mapping[str, Callable[[], Floats]] = {
        "log_loss": lambda: rows.mean(_log_loss(np.where(truth, probability, 1 - probability))),
        "brier": lambda: rows.mean((probability - truth) ** 2),
        "calibration_error": lambda: _calibration_error(truth, probability, rows),
        "roc_auc": lambda: _roc_auc(truth, probability, rows),
        "average_precision": lambda: _average_precision(truth, probability, rows),
    }
    return {metric: by_name[metric]() for metric in metrics if metric in by_name}


def _log_loss(probability: Floats) -> Floats:
    """The loss of each row, from the probability of its true label. Probabilities are clipped as in scikit-learn."""
    epsilon = np.finfo(np.float64).eps
    return -np.log(np.clip(probability, epsilon, 1 - epsilon))


def _calibration_error(truth: NDArray[np.bool_], probability: Floats, rows: _Rows) -> Floats:
    bins = calibration_bins(probability)
    surplus = rows.tabulate(bins, truth - probability, CALIBRATION_BINS)
    error: Floats = np.abs(surplus).sum(axis=1) / rows.total
    return error


def calibration_bins(probability: Floats, bins: int = CALIBRATION_BINS) -> NDArray[np.intp]:
    """The equal-width bin of each probability."""
    return np.clip((probability * bins).astype(np.intp), 0, bins - 1)


def _regression(metrics: Sequence[str], truth: Floats, predicted: Floats, rows: _Rows) -> dict[str, Floats]:
    residual = truth - predicted
    found: dict[str, Floats] = {}
    if "mae" in metrics:
        found["mae"] = rows.mean(np.abs(residual))
    if "rmse" in metrics or "r2" in metrics:
        squares = rows.sums(residual**2)
        if "rmse" in metrics:
            found["rmse"] = np.sqrt(squares / rows.total)
        if "r2" in metrics:
            # Centred first: squares of large numbers would leave few digits of the difference.
            centred = truth - truth.mean()
            around = rows.sums(centred**2) - rows.sums(centred) ** 2 / rows.total
            found["r2"] = np.where(around > 1e-9 * np.maximum(rows.sums(centred**2), 1e-300), 1 - squares / around, np.nan)
    return found


def _multiclass(metrics: Sequence[str], truth: NDArray[np.str_], prediction: Prediction, rows: _Rows) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    right = truth == prediction.values.astype(str)
    if "accuracy" in metrics:
        found["accuracy"] = rows.mean(right)
    if "balanced_accuracy" in metrics:
        seen, column = np.unique(truth, return_inverse=True)
        of_class = rows.tabulate(column, None, len(seen))
        recall = rows.tabulate(column, right.astype(np.float64), len(seen)) / of_class
        found["balanced_accuracy"] = np.nansum(recall, axis=1) / np.count_nonzero(of_class, axis=1)
    if "log_loss" in metrics and prediction.probabilities is not None:
        order = np.argsort(prediction.classes)
        known = np.array(prediction.classes)[order]
        place = np.clip(np.searchsorted(known, truth), 0, len(known) - 1)
        probability = prediction.probabilities[np.arange(len(truth)), order[place]]
        # A class that the model does not know has the probability 0.
        found["log_loss"] = rows.mean(_log_loss(np.where(known[place] == truth, probability, 0.0)))
    return found


# --- metrics of ranks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranking:
    """Rows in the order of their scores.

    Attributes:
        order: row numbers, lowest score first.
        first, last: for each row in this order, the start (inclusive) and the end (exclusive) of the rows with its score.
    """

    order: NDArray[np.intp]
    first: NDArray[np.intp]
    last: NDArray[np.intp]


def _rank(score: Floats) -> _Ranking:
    order = np.argsort(score)
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    return _Ranking(order, np.repeat(starts, lengths), np.repeat(starts + lengths, lengths))


def _roc_auc(truth: NDArray[np.bool_], score: Floats, rows: _Rows) -> Floats:
    """The share of pairs of a true and a false row that are in the right order. Ties count half.

    A matrix U counts, for all blocks b and c, the pairs in the right order of a true row of b and a false row of c. The share
    in a resample with weights w is w'Uw / ((w'P)(w'N)), where P and N are the numbers of true and false rows by block.
    """
    positive, negative = rows.sums(truth), rows.sums(~truth)
    blocks, weights = rows.blocks, rows.weights
    ranking = _rank(score)
    ordered_truth, ordered_block = truth[ranking.order], blocks.of[ranking.order]
    first, last = ranking.first[ordered_truth], ranking.last[ordered_truth]
    block_of_true = ordered_block[ordered_truth]
    won = np.zeros(len(weights))
    if blocks.count <= len(weights):
        below = np.zeros(len(truth) + 1)
        for block in range(blocks.count):
            np.cumsum(~ordered_truth & (ordered_block == block), out=below[1:])
            if below[-1]:
                pairs = np.bincount(block_of_true, weights=(below[first] + below[last]) / 2, minlength=blocks.count)
                won += (weights @ pairs) * weights[:, block]
    else:
        for some, weight in _in_chunks(weights, ordered_block):
            below = _cumulate(np.where(ordered_truth, 0.0, weight))
            won[some] = np.einsum("rp,rp->r", weight[:, ordered_truth], below[:, first] + below[:, last]) / 2
    return won / (positive * negative)


def _average_precision(truth: NDArray[np.bool_], score: Floats, rows: _Rows) -> Floats:
    """The mean over true rows of the precision among all rows with at least the same score."""
    blocks, weights = rows.blocks, rows.weights
    ranking = _rank(-score)
    ordered_truth, ordered_block = truth[ranking.order], blocks.of[ranking.order]
    last, block_of_true = ranking.last[ordered_truth], ordered_block[ordered_truth]
    summed = np.zeros(len(weights))
    if blocks.count <= len(weights):
        # By block, the number of rows that rank at least as high as each true row. A matrix product gives the resamples.
        above = np.zeros((2, blocks.count, len(last)), dtype=np.float32)
        below = np.zeros(len(truth) + 1)
        for block in range(blocks.count):
            inside = ordered_block == block
            for counted, rows_counted in zip(above[:, block], (inside, inside & ordered_truth), strict=True):
                np.cumsum(rows_counted, out=below[1:])
                counted[:] = below[last]
        single = weights.astype(np.float32)  # whole numbers, which are exact up to 16 million rows
        step = max(1, _CHUNK // len(weights))
        for block in range(blocks.count):
            of_block = np.flatnonzero(block_of_true == block)
            for start in range(0, len(of_block), step):
                some = of_block[start : start + step]
                precision = single @ above[1][:, some]
                precision /= np.maximum(single @ above[0][:, some], 1)
                summed += precision.sum(axis=1, dtype=np.float64) * weights[:, block]
    else:
        for resamples, weight in _in_chunks(weights, ordered_block):
            everything, among_true = _cumulate(weight), _cumulate(np.where(ordered_truth, weight, 0.0))
            precision = among_true[:, last] / everything[:, last]
            summed[resamples] = np.einsum("rp,rp->r", weight[:, ordered_truth], np.nan_to_num(precision, copy=False))
    # As in perennial.evaluation.metrics, it is undefined if all labels are equal.
    return np.where(rows.sums(~truth) > 0, summed / rows.sums(truth), np.nan)


def _in_chunks(weights: Floats, block: NDArray[np.intp]) -> Iterator[tuple[slice, Floats]]:
    """A few resamples at a time: their slice, and their weights by row."""
    step = max(1, _CHUNK // max(1, len(block)))
    for start in range(0, len(weights), step):
        some = slice(start, start + step)
        yield some, weights[some][:, block]


def _cumulate(values: Floats) -> Floats:
    """Cumulative sums along each row, with a leading 0."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums
