"""Measure a refresh: the champion's recipe, fitted on newer rows, beside the models before it.

Like :mod:`perennial.evaluation.contest`, this module knows neither lake nor registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perennial.core.intervals import Interval
from perennial.evaluation.contest import Contest, ContestResult, hold, probe
from perennial.evaluation.gates import unanswered
from perennial.evaluation.metrics import agreement, evaluate_metric, skill_score, summarise
from perennial.evaluation.probes import constant
from perennial.evaluation.resampling import find_blocks, resample
from perennial.evaluation.sequential import harm
from perennial.evidence.evaluation import Refit, Refresh, RollingEvidence
from perennial.model.artifacts import LoadedModel, Prediction
from perennial.model.costs import CostFunction, cost_function
from perennial.model.labels import labels_of
from perennial.spec.gates import Resampling
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS

#: How many refreshes the rolling evidence looks back.
LOOK_BACK = 4

#: Whatever the model's own blocks are, refreshes are compared day by day.
_DAILY = Resampling()


@dataclass(frozen=True)
class Stretch:
    """Days that one version served, and that neither it nor the anchor had learned from.

    Attributes:
        interval: the days.
        version: the version.
        rows: n labelled rows.
        served, anchor: the n predictions of the version, and of the anchor.
    """

    interval: Interval
    version: int
    rows: pa.Table
    served: Prediction
    anchor: Prediction


def measure_refresh(
    contest: Contest,
    *,
    champion: int,
    reference: int,
    refreshed: LoadedModel,
    refit: Refit,
    rolling: RollingEvidence | None,
) -> ContestResult:
    """Measure a refreshed model on the newest rows, and the model before it, which had not learned from them.

    Args:
        contest: its candidate is the model before, and its rows are the newest; without baselines.
        champion: the version whose recipe was fitted again.
        reference: the version that is the contest's candidate.
        refreshed: the refreshed model.
        refit: what is known of it; its agreement and digest are filled in.
        rolling: from :func:`roll`.
    """
    spec, rows, truth = contest.folder.spec, contest.rows, labels_of(contest.rows)
    result = hold(replace(contest, serves=refreshed))
    predicted = refreshed.predict(rows)
    uninformed, metric = None, result.evaluation.candidate.metrics.get(spec.primary_metric)
    if rows.num_rows:
        cost = cost_function(contest.folder)
        uninformed = evaluate_metric(spec.task, spec.primary_metric, truth, constant(spec.task, truth), cost)
    skill = None
    if metric is not None and uninformed is not None:
        skill = skill_score(spec.task, spec.primary_metric, metric, uninformed)
    before = next(iter(result.predictions.values()), None)
    refresh = Refresh(
        champion=champion,
        reference=reference,
        uninformed=uninformed,
        skill=skill,
        predictions=summarise(predicted),
        rolling=rolling,
    )
    refit = replace(
        refit,
        agreement=None if before is None else agreement(spec.task, before, predicted),
        digest=predicted.digest,
    )
    evaluation = replace(result.evaluation, refit=refit, refresh=refresh)
    if result.model is not None and before is not None and unanswered(evaluation, spec.gates):
        probes = probe(contest.folder, result.model, rows, truth, before)
        evaluation = replace(evaluation, champion_probes=probes)
    return replace(result, evaluation=evaluation)


def roll(spec: ModelSpec, anchor: int, stretches: Sequence[Stretch], cost: CostFunction | None) -> RollingEvidence | None:
    """Compare refreshes with an older version, day by day.

    Args:
        spec: names the primary metric.
        anchor: the older version.
        stretches: in the order of time.
        cost: gives the cost of each row; None if the spec defines none.

    Returns:
        The evidence; None if there is no stretch with another version than the anchor.
    """
    compared = [stretch for stretch in stretches if stretch.version != anchor]
    if not compared:
        return None
    days, worse = {}, {}
    for stretch in compared:
        differences = _by_day(spec, stretch, stretch.served, cost) - _by_day(spec, stretch, stretch.anchor, cost)
        losses = -differences if METRICS[spec.task][spec.primary_metric] else differences
        days[stretch.interval.key] = int((np.isfinite(losses) & (losses != 0)).sum())
        worse[stretch.interval.key] = int((losses > spec.gates.refresh.margin * _lead(spec, stretch, cost)).sum())
    return RollingEvidence(
        anchor=anchor,
        versions={stretch.interval.key: stretch.version for stretch in compared},
        days=days,
        worse=worse,
        evidence=harm(list(worse.values()), list(days.values())),
    )


def _lead(spec: ModelSpec, stretch: Stretch, cost: CostFunction | None) -> float:
    """How far the anchor is ahead of the best constant, in units of the primary metric; 0 if it is not, or if unknown."""
    truth, metric = labels_of(stretch.rows), spec.primary_metric
    anchor = evaluate_metric(spec.task, metric, truth, stretch.anchor, cost)
    uninformed = evaluate_metric(spec.task, metric, truth, constant(spec.task, truth), cost)
    if anchor is None or uninformed is None:
        return 0.0
    return max(anchor - uninformed if METRICS[spec.task][metric] else uninformed - anchor, 0.0)


def _by_day(spec: ModelSpec, stretch: Stretch, prediction: Prediction, cost: CostFunction | None) -> NDArray[np.float64]:
    """The primary metric of each day; NaN where it is not defined."""
    blocks = find_blocks(stretch.rows, _DAILY, event_time=spec.event_time, start=stretch.interval.start)
    metric = spec.primary_metric
    found = resample(
        spec.task, [metric], labels_of(stretch.rows), prediction, blocks, np.eye(blocks.count), cost=cost
    )  # fmt: skip
    return found.get(metric, np.full(blocks.count, np.nan))
