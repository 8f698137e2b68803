"""Compare candidate and champion on the same rows: the certainty of the difference, overall and by slice, and group rates.

Neighbours: :mod:`perennial.evaluation.resampling` draws the resamples. :mod:`perennial.evaluation.contest` calls this module.
:mod:`perennial.evaluation.gates` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.core.intervals import Interval
from perennial.evaluation.resampling import FEWEST_BLOCKS, Blocks, Floats, draw, find_blocks, resample, spread, too_few
from perennial.evidence.evaluation import GainOverChampion, Groups, Slice, Slices
from perennial.model.artifacts import Prediction
from perennial.model.costs import CostFunction, answer_threshold
from perennial.spec.gates import FairnessGate
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS

#: The most slices to name that could not be judged.
_MOST_NAMED = 20


@dataclass(frozen=True)
class Arena:
    """The rows of a comparison, and the resamples that all metrics share.

    Attributes:
        spec: says what is compared, and how.
        rows: n labelled rows, with features, key and event time.
        truth: n labels.
        blocks: the blocks of the rows.
        weights: resamples + 1 by blocks. The first row counts every block once. The others are the resamples.
        cost: gives the cost of each row; None if the spec defines none.
    """

    spec: ModelSpec
    rows: pa.Table
    truth: NDArray[np.generic]
    blocks: Blocks
    weights: Floats
    cost: CostFunction | None

    @classmethod
    def of(
        cls, spec: ModelSpec, rows: pa.Table, truth: NDArray[np.generic], interval: Interval, cost: CostFunction | None
    ) -> Arena:
        resampling = spec.gates.resampling
        blocks = find_blocks(rows, resampling, event_time=spec.event_time, start=interval.start)
        weights = np.vstack([np.ones(blocks.count), draw(blocks, resampling)])
        return cls(spec, rows, truth, blocks, weights, cost)

    def metrics(self, prediction: Prediction) -> dict[str, Floats]:
        """All metrics of the task by name: first on the rows themselves, then in each resample."""
        return resample(
            self.spec.task, list(METRICS[self.spec.task]), self.truth, prediction, self.blocks, self.weights, cost=self.cost
        )

    def gain(self, candidate: Floats, champion: Floats) -> Floats:
        """How much better the candidate is, in units of the primary metric. It is negative if the candidate is worse."""
        return candidate - champion if METRICS[self.spec.task][self.spec.primary_metric] else champion - candidate


def intervals(arena: Arena, resampled: dict[str, Floats]) -> dict[str, list[float]]:
    """The confidence interval of each metric, low and high. A metric without an interval is absent."""
    confidence = arena.spec.gates.resampling.confidence
    found = {metric: spread(values[1:], arena.blocks.occupied, confidence) for metric, values in resampled.items()}
    return {metric: [bounds.low, bounds.high] for metric, bounds in found.items() if bounds is not None}


def compare(
    arena: Arena,
    candidate: Prediction,
    champion: Prediction,
    resampled: tuple[dict[str, Floats], dict[str, Floats]],
) -> tuple[GainOverChampion, Floats]:
    """Compare candidate and champion, paired, by the primary metric.

    Args:
        arena: the rows that both predicted.
        candidate, champion: their n predictions.
        resampled: the result of :meth:`Arena.metrics` for each of them.

    Returns:
        The comparison, and the gain in each resample.
    """
    resampling, metric = arena.spec.gates.resampling, arena.spec.primary_metric
    ours, its = (found.get(metric, np.full(len(arena.weights), np.nan)) for found in resampled)
    gain = arena.gain(ours, its)
    problem = too_few(arena.blocks)
    bounds = None if problem else spread(gain[1:], arena.blocks.occupied, resampling.confidence)
    if bounds is None and problem is None:
        problem = f"{metric} is undefined in too many resamples, for example because one block holds all labels of a class"
    return (
        GainOverChampion(
            gain=float(gain[0]),
            low=bounds.low if bounds else None,
            high=bounds.high if bounds else None,
            lower=bounds.lower if bounds else None,
            upper=bounds.upper if bounds else None,
            identical=_identical(candidate, champion),
            blocks=arena.blocks.occupied,
            block=arena.blocks.kind,
            resamples=resampling.resamples,
            seed=resampling.seed,
            confidence=resampling.confidence,
            problem=problem,
        ),
        gain[1:],
    )


def _identical(candidate: Prediction, champion: Prediction) -> float:
    if candidate.probabilities is not None and champion.probabilities is not None and candidate.classes == champion.classes:
        return float(np.mean((candidate.probabilities == champion.probabilities).all(axis=1)))
    return float(np.mean(candidate.values == champion.values))


def compare_slices(arena: Arena, candidate: Prediction, champion: Prediction) -> Slices:
    """Compare candidate and champion within each slice: the rows of one value of a column in ``gates.slices``."""
    rule, metric = arena.spec.gates.slices, arena.spec.primary_metric
    judged, left_out = [], []
    for column in rule.columns:
        for value, rows in split(arena.rows, column):
            name = f"{column} {value}"
            if len(rows) < rule.min_rows:
                left_out.append(f"{name} ({len(rows):,} rows)")
                continue
            blocks = arena.blocks.select(rows)
            ours, its = (
                resample(
                    arena.spec.task,
                    [metric],
                    arena.truth[rows],
                    prediction[rows],
                    blocks,
                    arena.weights,
                    cost=arena.cost,
                ).get(metric)
                for prediction in (candidate, champion)
            )
            gain = None if ours is None or its is None else arena.gain(ours, its)
            bounds = None if gain is None else spread(gain[1:], blocks.occupied, arena.spec.gates.resampling.confidence)
            if blocks.occupied < FEWEST_BLOCKS:
                left_out.append(f"{name} ({blocks.occupied} blocks of {blocks.kind})")
            elif ours is None or its is None or gain is None or bounds is None or not np.isfinite(gain[0]):
                left_out.append(f"{name} ({metric} is not defined)")
            else:
                judged.append(
                    Slice(
                        column, value, len(rows), float(ours[0]), float(its[0]), float(gain[0]), bounds.error, blocks.occupied
                    )
                )
    more = [f"{len(left_out) - _MOST_NAMED} more"] if len(left_out) > _MOST_NAMED else []
    return Slices(judged, [*left_out[:_MOST_NAMED], *more])


def rate_groups(spec: ModelSpec, rows: pa.Table, truth: NDArray[np.bool_], probability: Floats) -> list[Groups]:
    """The rates of each group for each gate in ``gates.fairness``. Only for binary classification."""
    return [_rate_groups(spec, gate, rows, truth, probability) for gate in spec.gates.fairness]


def _rate_groups(spec: ModelSpec, gate: FairnessGate, rows: pa.Table, truth: NDArray[np.bool_], probability: Floats) -> Groups:
    threshold = answer_threshold(spec) if gate.threshold is None else gate.threshold
    yes = probability >= threshold
    counts = {"selection_rate": np.ones(len(yes), bool), "true_positive_rate": truth, "false_positive_rate": ~truth}[gate.rate]
    rates, left_out = {}, []
    for value, group in split(rows, gate.column):
        base = int(np.count_nonzero(counts[group]))
        if base < gate.min_rows:
            left_out.append(f"{value} ({base:,} rows)")
        else:
            rates[value] = float(np.count_nonzero(yes[group] & counts[group]) / base)
    return Groups(gate.column, gate.rate, threshold, rates, left_out[:_MOST_NAMED])


def split(rows: pa.Table, column: str) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Each value of a column with its row numbers, most frequent first. Values are texts; ``missing`` stands for null."""
    encoded = pc.dictionary_encode(pc.fill_null(pc.cast(rows.column(column), pa.string()), "missing")).combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=len(encoded.dictionary))
    members = np.split(order, np.cumsum(sizes)[:-1])
    for code in np.argsort(-sizes, kind="stable"):
        yield encoded.dictionary[int(code)].as_py(), members[code]
