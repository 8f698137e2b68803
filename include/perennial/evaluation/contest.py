"""Measure all contenders on the same holdout rows. The result is the evidence that the gates decide on.

This module knows neither lake nor registry: an entrant is anything that can load a model. So candidates of a training
(:mod:`perennial.training.evaluate`), negative controls (:mod:`perennial.evaluation.controls`) and benchmarks are judged in
the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.core.errors import ModelRenamed, PerennialError, VersionUnusable
from perennial.core.intervals import Interval
from perennial.evaluation.comparison import Arena, compare, compare_slices, intervals, rate_groups
from perennial.evaluation.gates import unanswered
from perennial.evaluation.metrics import answers, evaluate_metric, evaluate_prediction, summarise
from perennial.evaluation.probes import probe_behaviour, probe_robustness, score_alone
from perennial.evidence.evaluation import ChampionProbes, Contender, Evaluation
from perennial.evidence.training import TrainingSet
from perennial.model.artifacts import LoadedModel, Prediction
from perennial.model.costs import CostFunction, answer_threshold, cost_function
from perennial.model.labels import count_classes, labels_of
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec


@dataclass(frozen=True)
class Entrant:
    """A model that takes part in a contest.

    Attributes:
        blank: who it is, without metrics, which the contest fills in.
        load: loads the model. It may raise any error of loading.
        rows: the contest's rows, in their order, with the features that this model takes. It may raise any error of features.
            None: it takes those of the contest.
    """

    blank: Contender
    load: Callable[[], LoadedModel]
    rows: Callable[[pa.Table], pa.Table] | None = None


@dataclass(frozen=True)
class Contest:
    """The models to compare, and the rows to compare them on.

    Attributes:
        folder: the model's folder.
        interval: the holdout.
        rows: its n labelled rows: key, event time, features, ``label``.
        rows_hash: content hash of the rows.
        entities: number of rows of the holdout, labelled or not.
        as_of: ISO time. Labels that were known later are not used.
        training_classes, training_coverage: see :class:`perennial.evidence.evaluation.Evaluation`.
        candidate: the model that may become champion.
        baselines: models that it must beat.
        champion: the model that it would replace; None if there is none.
        run_id: the run of the orchestration.
        without_values: features that have no value in any training row; None if it was not looked at.
        serves: the model that would serve instead of the candidate. The probes and the rates of groups are its; None: those of
            the candidate.
    """

    folder: ModelFolder
    interval: Interval
    rows: pa.Table
    rows_hash: str
    entities: int
    as_of: str
    training_classes: dict[str, int]
    training_coverage: float
    candidate: Entrant
    baselines: list[Entrant]
    champion: Entrant | None
    run_id: str | None = None
    without_values: list[str] | None = None
    serves: LoadedModel | None = None

    @classmethod
    def on_holdout(
        cls,
        folder: ModelFolder,
        training_set: TrainingSet,
        rows: pa.Table,
        *,
        candidate: Entrant,
        baselines: list[Entrant],
        champion: Entrant | None,
        run_id: str | None,
    ) -> Contest:
        """A contest on the holdout of a training set; ``rows`` are the holdout's, the rest is as for the class."""
        return cls(
            folder=folder,
            interval=training_set.interval("holdout"),
            rows=rows,
            rows_hash=training_set.content["holdout"],
            entities=training_set.entities["holdout"],
            as_of=training_set.as_of,
            training_classes=training_set.classes["window"],
            training_coverage=training_set.label_coverage("window"),
            candidate=candidate,
            baselines=baselines,
            champion=champion,
            run_id=run_id,
            without_values=training_set.without_values,
        )


@dataclass(frozen=True)
class ContestResult:
    """The result of a contest.

    Attributes:
        evaluation: the evidence.
        truth: n labels.
        predictions: n predictions by name of the model, the candidate first. A model that could not predict is absent.
        gains: the candidate's gain over the champion in each resample; None without a comparison.
        model: the candidate's model; None if it could not be loaded.
    """

    evaluation: Evaluation
    truth: NDArray[np.generic]
    predictions: dict[str, Prediction]
    gains: NDArray[np.float64] | None
    model: LoadedModel | None


@dataclass(frozen=True)
class _Measured:
    contender: Contender
    model: LoadedModel | None = None
    prediction: Prediction | None = None
    rows: pa.Table | None = None

    @property
    def finite(self) -> Prediction | None:
        """The prediction; None if no metric could be computed from it."""
        return self.prediction if self.contender.metrics else None


def hold(contest: Contest) -> ContestResult:
    """Measure all models, and collect the evidence for the candidate's gates.

    Only the evidence of operation is missing. :mod:`perennial.evaluation.readiness` gives it from a new process.

    Raises:
        SpecError: the folder's cost function is broken.
    """
    folder, spec = contest.folder, contest.folder.spec
    truth, cost = labels_of(contest.rows), cost_function(contest.folder)
    entrants = [contest.candidate, *([contest.champion] if contest.champion else []), *contest.baselines]
    measured = [_measure(entrant, contest.rows, truth, spec, cost) for entrant in entrants]
    candidate, champion = measured[0], measured[1] if contest.champion else None
    baselines = measured[2 if contest.champion else 1 :]
    evaluation = Evaluation(
        model=spec.name,
        task=spec.task,
        metric=spec.primary_metric,
        interval=contest.interval.key,
        entities=contest.entities,
        rows=len(truth),
        rows_hash=contest.rows_hash,
        classes=count_classes(spec, contest.rows),
        not_finite_inputs=_count_infinite(spec, contest.rows),
        candidate=candidate.contender,
        baselines=[baseline.contender for baseline in baselines],
        champion=champion.contender if champion else None,
        run_id=contest.run_id,
        as_of=contest.as_of,
        training_classes=contest.training_classes,
        training_coverage=contest.training_coverage,
        alone=score_alone(spec, contest.rows, truth),
        without_values=contest.without_values,
    )
    evaluation, gains = _compare(contest, evaluation, candidate, champion, truth, cost)
    if candidate.model is not None and candidate.finite is not None:
        score = partial(evaluate_metric, spec.task, spec.primary_metric, cost=cost)
        probed = contest.serves or candidate.model
        evaluation = replace(
            evaluation,
            robustness=probe_robustness(spec, probed, contest.rows, truth, score),
            behaviour=probe_behaviour(folder, probed, contest.rows),
        )
        if champion is not None and champion.finite is not None and unanswered(evaluation, spec.gates):
            assert champion.model is not None  # it predicted
            probes = probe(folder, champion.model, champion.rows or contest.rows, truth, champion.finite)
            evaluation = replace(evaluation, champion_probes=probes)
    predictions = {_name(one.contender): one.prediction for one in measured if one.prediction is not None}
    return ContestResult(evaluation, truth, predictions, gains, candidate.model)


def probe(
    folder: ModelFolder, model: LoadedModel, rows: pa.Table, truth: NDArray[np.generic], prediction: Prediction
) -> ChampionProbes:
    """Measure of a model what the gates ask for that need no comparison.

    Args:
        folder: says what the gates ask for.
        model: the model.
        rows: n rows of the holdout, with the features that the model takes, and the columns of groups.
        truth: n labels.
        prediction: the model's n predictions.
    """
    spec = folder.spec
    score = partial(evaluate_metric, spec.task, spec.primary_metric, cost=cost_function(folder))
    binary = spec.task == "binary_classification"
    return ChampionProbes(
        groups=rate_groups(spec, rows, np.asarray(truth, dtype=bool), prediction.values) if binary else None,
        robustness=probe_robustness(spec, model, rows, truth, score),
        behaviour=probe_behaviour(folder, model, rows),
    )


def _name(contender: Contender) -> str:
    return f"champion, version {contender.version}" if contender.role == "champion" else contender.name


def _measure(
    entrant: Entrant, rows: pa.Table, truth: NDArray[np.generic], spec: ModelSpec, cost: CostFunction | None
) -> _Measured:
    """Measure one entrant on the holdout. If it cannot predict, it has the reason as ``error``, and no metrics.

    A champion that can never be used again has the reason as ``unusable``, too.
    """
    try:
        model = entrant.load()
        its = rows if entrant.rows is None else entrant.rows(rows)
        prediction = model.predict(its)
    except ModelRenamed:
        raise  # nothing may be decided until it has its name back
    except VersionUnusable as error:
        unusable = str(error) if entrant.blank.role == "champion" else None
        return _Measured(replace(entrant.blank, error=str(error), unusable=unusable))
    except PerennialError as error:
        return _Measured(replace(entrant.blank, error=str(error)))
    blank = replace(
        entrant.blank,
        metrics=evaluate_prediction(spec.task, truth, prediction, cost),
        predictions=replace(summarise(prediction), digest=prediction.digest),
        answers=answers(spec.task, truth, prediction, answer_threshold(spec)),
    )
    return _Measured(blank, model, prediction, its)


def _compare(
    contest: Contest,
    evaluation: Evaluation,
    candidate: _Measured,
    champion: _Measured | None,
    truth: NDArray[np.generic],
    cost: CostFunction | None,
) -> tuple[Evaluation, NDArray[np.float64] | None]:
    """The evaluation with confidence intervals, group rates, the comparison with the champion, and slices."""
    ours = candidate.finite
    if ours is None:
        return evaluation, None
    spec, rows = contest.folder.spec, contest.rows
    arena = Arena.of(spec, rows, truth, contest.interval, cost)
    own = arena.metrics(ours)
    evaluation = replace(evaluation, candidate=replace(evaluation.candidate, intervals=intervals(arena, own)))
    if spec.task == "binary_classification":
        rated = ours if contest.serves is None else contest.serves.predict(rows)
        groups = rate_groups(spec, rows, np.asarray(truth, dtype=bool), rated.values)
        evaluation = replace(evaluation, groups=groups)
    if champion is None or (its := champion.finite) is None or evaluation.champion is None:
        return evaluation, None
    rival = arena.metrics(its)
    compared, gains = compare(arena, ours, its, (own, rival))
    evaluation = replace(
        evaluation,
        champion=replace(evaluation.champion, intervals=intervals(arena, rival)),
        comparison=compared,
        slices=compare_slices(arena, ours, its),
    )
    return evaluation, gains


def _count_infinite(spec: ModelSpec, rows: pa.Table) -> dict[str, int]:
    counts = {name: pc.sum(pc.is_inf(pc.cast(rows.column(name), pa.float64()))).as_py() or 0 for name in spec.features.numeric}
    return {name: int(count) for name, count in counts.items() if count}
