"""The measurements of a candidate and its rivals. The gates decide on them, and every version keeps them.

:mod:`perennial.evaluation.metrics` measures, :mod:`perennial.evaluation.gates` decides. A part that is None or absent was
not measured, and a gate that needs it refuses. Evaluations from before a part existed are read without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from perennial.evidence.parity import Parity
from perennial.evidence.plain import Evidence, absent
from perennial.evidence.training import StoredModel
from perennial.spec.types import Task


@dataclass(frozen=True)
class PredictionSummary(Evidence):
    """A summary of a contender's predictions.

    Attributes:
        rows: number of predictions.
        not_finite: number of predictions that are NaN, infinite or missing.
        distinct: number of different values.
        minimum, mean, maximum: of the finite predictions; None for classes, or if no prediction is finite.
        digest: :attr:`perennial.model.artifacts.Prediction.digest`; equal predictions have equal digests.
    """

    rows: int
    not_finite: int
    distinct: int
    minimum: float | None = None
    mean: float | None = None
    maximum: float | None = None
    digest: str | None = None


@dataclass(frozen=True)
class ClassFigures:
    """How well a contender answers one class.

    Attributes:
        rows: number of rows that are of the class.
        precision: share of the answers of this class that are right; None if there is no such answer.
        recall: share of the rows of this class that are answered so; None if there is no such row.
        f1: harmonic mean of both, 0 if nothing is right.
    """

    rows: int
    precision: float | None
    recall: float | None
    f1: float


@dataclass(frozen=True)
class Answers(Evidence):
    """What a contender answered on the holdout, in figures that people ask for. No gate judges them.

    Attributes:
        threshold: the probability from which the answer is ``true``; None if the task is not binary.
        confusion: number of rows by actual class, then by answered class; a pair without rows is absent. Empty for regression.
        mape: mean of |error| / |label| over the rows whose label is not 0; None if there are none.
        zeros: number of rows whose label is 0, for which ``mape`` is not defined.
        pinball: mean pinball loss by quantile, such as ``0.9``; empty for classes.
    """

    threshold: float | None = None
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    mape: float | None = None
    zeros: int = 0
    pinball: dict[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """The share of right answers; None for regression."""
        rows = sum(sum(row.values()) for row in self.confusion.values())
        return sum(row.get(actual, 0) for actual, row in self.confusion.items()) / rows if rows else None

    @property
    def by_class(self) -> dict[str, ClassFigures]:
        """The figures of each class that occurs or is answered, the most frequent one first."""
        answered: dict[str, int] = {}
        for row in self.confusion.values():
            for name, count in row.items():
                answered[name] = answered.get(name, 0) + count
        found = {}
        for name in sorted({*self.confusion, *answered}):
            row = self.confusion.get(name, {})
            right, rows, said = row.get(name, 0), sum(row.values()), answered.get(name, 0)
            found[name] = ClassFigures(
                rows, right / said if said else None, right / rows if rows else None, 2 * right / (rows + said)
            )  # fmt: skip
        return dict(sorted(found.items(), key=lambda pair: -pair[1].rows))


@dataclass(frozen=True)
class Contender(Evidence):
    """One model, measured on the holdout.

    Attributes:
        name: the candidate's name in ``model.yaml``; a champion keeps the name it had as a candidate.
        role: the model's role in the comparison; a row without a role reads as ``candidate``.
        metrics: values by the names of :data:`perennial.spec.training.METRICS`; a metric that could not be computed is absent.
        rows: number of labelled rows that the model was measured on.
        rows_hash: content hash of those rows; only contenders with equal hashes may be compared.
        predictions: a summary of the predictions; None if the model could not predict.
        error: why the model could not predict.
        version: the registered version; None if the model is not registered.
        mlflow_run_id: the MLflow run that logged the model.
        trained_on: key of the interval that the training rows come from.
        intervals: low and high end of each metric's confidence interval, computed as ``gates.resampling`` says.
        unusable: why a champion can never be used again; nothing is compared with it then. None: it can be used.
        remarks: what to know about how it was measured, in sentences without a full stop, such as that its features were made
            by its own folder.
        recipe: digest of the recipe that was measured (:func:`perennial.spec.recipe.recipe_digest`): of a candidate, and of a
            champion whose recipe was fitted on the candidate's rows. Empty for a champion whose stored model was measured.
        answers: figures that no gate judges; None if it could not predict, or an earlier release measured it.
    """

    name: str
    role: Literal["candidate", "baseline", "champion"] = field(metadata=absent("candidate"))
    metrics: dict[str, float]
    rows: int
    rows_hash: str
    predictions: PredictionSummary | None
    error: str | None = None
    version: int | None = None
    mlflow_run_id: str | None = None
    trained_on: str | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    unusable: str | None = None
    remarks: list[str] = field(default_factory=list)
    recipe: str = ""
    answers: Answers | None = None


@dataclass(frozen=True)
class GainOverChampion(Evidence):
    """The candidate compared with the champion: the primary metric on the same rows and the same resamples.

    Attributes:
        gain: how much better the candidate is, in units of the metric; negative if it is worse.
        low, high: ends of the two-sided confidence interval of the gain; the decision uses these.
        lower, upper: one-sided confidence bounds of the gain: it is above ``lower``, or below ``upper``, with ``confidence``.
        identical: share of rows for which both predict the same, 0 to 1.
        blocks: number of blocks that the rows were resampled in.
        block: what a block is: a length of time, or the name of a column.
        resamples, seed, confidence: number of resamples, their seed, and the level of the bounds.
        problem: why chance could not be judged; the bounds are None in this case.
    """

    gain: float
    low: float | None
    high: float | None
    lower: float | None
    upper: float | None
    identical: float
    blocks: int
    block: str
    resamples: int
    seed: int
    confidence: float
    problem: str | None = None


@dataclass(frozen=True)
class Slice(Evidence):
    """The comparison on the rows that share a value of a column.

    Attributes:
        column, value: the column and the value; a missing value is ``missing``.
        rows: number of these rows.
        candidate, champion: the primary metric of each on these rows.
        gain: how much better the candidate is; negative if it is worse.
        error: standard error of the gain.
        blocks: number of blocks that contain these rows.
    """

    column: str
    value: str
    rows: int
    candidate: float
    champion: float
    gain: float
    error: float
    blocks: int


@dataclass(frozen=True)
class Slices(Evidence):
    """The comparisons on all slices of the rows.

    Attributes:
        judged: slices with enough rows and blocks.
        not_judged: the other slices, each with the reason.
    """

    judged: list[Slice]
    not_judged: list[str]


@dataclass(frozen=True)
class Groups(Evidence):
    """How the model treats the groups of a column.

    Attributes:
        column, rate, threshold: see :class:`perennial.spec.gates.FairnessGate`.
        rates: the rate of each group with enough rows.
        not_judged: groups with too few rows.
    """

    column: str
    rate: str
    threshold: float
    rates: dict[str, float]
    not_judged: list[str]


@dataclass(frozen=True)
class Robustness(Evidence):
    """The primary metric when the values of one feature at a time are disturbed or partly removed.

    Attributes:
        rows: number of rows that the metric was measured on.
        clean: the metric with unchanged features.
        uninformed: the metric of the best constant prediction on the same rows. The distance to ``clean`` is what the model
            has learned.
        noise, missing: the metric by feature, with noise added or values removed; a value that could not be computed is absent.
        problems: why a value could not be computed, by feature and disturbance.
    """

    rows: int
    clean: float
    uninformed: float
    noise: dict[str, float]
    missing: dict[str, float]
    problems: dict[str, str]


@dataclass(frozen=True)
class Behaved(Evidence):
    """The outcome of a behaviour test.

    Attributes:
        share: share of the rows that behaved as required, 0 to 1; None for a test in ``model.py``.
        rows: number of rows that were tried.
        problem: what is wrong, if the test reports a problem or could not run.
    """

    share: float | None
    rows: int
    problem: str | None = None


@dataclass(frozen=True)
class Operation(Evidence):
    """What a clean process measured when it loaded the stored candidate and predicted with it.

    Attributes:
        problem: why the process failed; the other values mean nothing in this case.
        rows: number of rows that were predicted.
        difference: largest difference from the prediction of the evaluating process; None if a prediction is not finite.
        same_features: whether the loaded model takes the features of ``model.yaml``, in the same order.
        latency: milliseconds for 1,000 rows, after a warm-up.
        load_seconds: seconds to load the model, including the download and the check of its files.
        artifact_mb: size of the model's files in megabytes.
    """

    problem: str | None = None
    rows: int = 0
    difference: float | None = None
    same_features: bool = False
    latency: float | None = None
    load_seconds: float | None = None
    artifact_mb: float | None = None


@dataclass(frozen=True)
class Refit(Evidence):
    """The candidate fitted once more with the same parameters, on all rows up to the end of the holdout. It is what serves.

    It cannot be measured on rows that it has not learned from. The metrics of a version are those of the candidate, and this
    says how far the two agree.

    Attributes:
        stored: its files.
        interval: key of the interval that it learned from.
        rows: number of rows that it learned from.
        content: SHA-256 of these rows, independent of their storage.
        agreement: how far it and the candidate agree on the rows of the holdout: Spearman's rank correlation of their
            predictions, or for multiclass the share of rows for which both predict the same class. None if it is not defined,
            as for constant predictions.
        digest: :attr:`perennial.model.artifacts.Prediction.digest` of its predictions for the holdout.
        operation: how it works in a clean process.
        seconds: duration of the fit.
    """

    stored: StoredModel
    interval: str
    rows: int
    content: str
    agreement: float | None = None
    digest: str = ""
    operation: Operation | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class RollingEvidence(Evidence):
    """Refreshes compared with an older version, on days that neither had learned from when it predicted them.

    Attributes:
        anchor: the version that refreshes are compared with: that in force four refreshes ago, or the first of the recipe.
        versions: the version that each stretch of days was predicted with, by key of the stretch.
        days: by key of the stretch, the number of days on which the primary metric of both differs.
        worse: the number of these days on which the refreshed version was worse by more than ``gates.refresh.margin``.
        evidence: how strongly these days speak against refreshes that do no harm: see
            :func:`perennial.evaluation.sequential.harm`.
    """

    anchor: int
    versions: dict[str, int]
    days: dict[str, int]
    worse: dict[str, int]
    evidence: float


@dataclass(frozen=True)
class Refresh(Evidence):
    """The champion's recipe was fitted on newer rows, without a search. This says what that was checked against.

    The evaluation's candidate is then the model before it, measured on the newest rows, which it had not learned from. The
    evaluation's refit is the refreshed model, which serves.

    Attributes:
        champion: the version whose recipe was fitted again.
        reference: the version that is the evaluation's candidate: the champion, or the last refresh that was refused, if that
            is better on the newest rows.
        uninformed: the primary metric of the best constant prediction on the newest rows.
        skill: skill score of the reference on the newest rows, 0 for the best constant and 1 for a perfect prediction; None if
            it is not defined.
        predictions: a summary of the refreshed model's predictions for the newest rows.
        rolling: earlier refreshes compared with an older version; None if there were none.
    """

    champion: int
    reference: int
    uninformed: float | None
    skill: float | None
    predictions: PredictionSummary | None
    rolling: RollingEvidence | None = None


@dataclass(frozen=True)
class ChampionProbes(Evidence):
    """What is measured of a candidate without a comparison, measured of the champion in the same way, on the same rows.

    For a refresh it is measured of the model before it.

    Attributes:
        groups, robustness, behaviour: as in :class:`Evaluation`.
    """

    groups: list[Groups] | None = None
    robustness: Robustness | None = None
    behaviour: dict[str, Behaved] | None = None


@dataclass(frozen=True)
class Evaluation(Evidence):
    """The candidate, all baselines and the champion, measured on the same newest rows, which no model was trained on.

    Attributes:
        task: the model's task; a row without a task reads as ``binary_classification``, for which the gates require most.
        metric: the primary metric.
        interval: key of the holdout.
        entities: number of rows that require a prediction, labelled or not.
        rows: number of these rows with a known label.
        rows_hash: content hash of the labelled rows.
        classes: labelled rows per class; empty for regression.
        not_finite_inputs: infinite values per feature; missing values are allowed.
        champion: the champion's result; None only if the model has never had a champion.
        as_of: ISO time; labels that became known later were not used.
        training_classes: labelled training rows per class; empty for regression.
        training_coverage: share of the possible training rows whose label was known in time, 0 to 1.
        comparison: candidate against champion; None without a champion, or if one of them could not predict.
        slices: the same comparison on slices of the rows.
        groups: how the candidate treats groups.
        robustness: how the candidate's metric changes with worse inputs.
        behaviour: outcomes of the behaviour tests, by name.
        operation: how the candidate works in a clean process.
        alone: the score that each feature reaches as the only feature: area under the ROC curve, or R squared.
        without_values: features that have no value in any training row; None if it was not looked at.
        refit: the model that serves; None if the candidate itself would serve.
        refresh: what a refresh of the champion was checked against; None for a candidate that would replace it.
        champion_probes: the same of the champion; measured only if such a gate refuses a refresh, or a candidate that is surely
            better.
        parity: how far what is served online equals what is published, for the candidate's definition of features; None if
            the model is not asked by key.
        disputed: where the process that trained the candidate had measured something else on the same files and rows, one
            sentence each. It is empty if the two agree, or if there was only one process.
    """

    model: str
    task: Task = field(metadata=absent("binary_classification"))
    metric: str
    interval: str
    entities: int
    rows: int
    rows_hash: str
    classes: dict[str, int]
    not_finite_inputs: dict[str, int]
    candidate: Contender
    baselines: list[Contender]
    champion: Contender | None
    run_id: str | None = None
    as_of: str | None = None
    training_classes: dict[str, int] | None = None
    training_coverage: float | None = None
    comparison: GainOverChampion | None = None
    slices: Slices | None = None
    groups: list[Groups] | None = None
    robustness: Robustness | None = None
    behaviour: dict[str, Behaved] | None = None
    operation: Operation | None = None
    alone: dict[str, float] | None = None
    without_values: list[str] | None = None
    refit: Refit | None = None
    refresh: Refresh | None = None
    champion_probes: ChampionProbes | None = None
    parity: Parity | None = None
    disputed: list[str] = field(default_factory=list)

    @property
    def label_coverage(self) -> float:
        """Share of the holdout's entities whose label is known, 0 to 1."""
        return self.rows / self.entities if self.entities else 0.0

    @property
    def champion_version(self) -> int | None:
        """The champion that the candidate was compared with. A promotion requires that it is still the champion."""
        return self.champion.version if self.champion else None

    @property
    def whose_figures(self) -> str | None:
        """Which model serves and whose the metrics are, for people; None if the measured model itself would serve."""
        refit, refresh = self.refit, self.refresh
        if refit is None:
            return None
        if refresh is not None:
            return (
                f"The version serves the recipe of version {refresh.champion}, fitted on {refit.interval} "
                f"({refit.rows:,} rows). "
                f"The metrics are those of version {refresh.reference}, the model before it, on {self.interval}, which that "
                "had not learned from."
            )
        agreement = "" if refit.agreement is None else f", with which it agrees there ({refit.agreement:.3f})"
        return (
            f"The version serves {self.candidate.name} fitted again on {refit.interval} ({refit.rows:,} rows). The metrics are "
            f"those of the model before that, which had not learned from the holdout{agreement}."
        )

    @property
    def rival(self) -> Contender | None:
        """The champion to compare the candidate with; None if there is none, or it can never be used again."""
        return None if self.champion is None or self.champion.unusable else self.champion

    @property
    def training_prior(self) -> float | None:
        """Share of true labels in the training rows; None for other tasks than binary classification, or if unknown."""
        known = self.training_classes or {}
        total = sum(known.values())
        return known.get("true", known.get("True", 0)) / total if total and self.task == "binary_classification" else None

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "label_coverage": self.label_coverage}


#: How far two measurements of the same thing may differ, by the order of floating-point sums.
_ROUNDING = 1e-6


def disputes(claimed: Evaluation, measured: Evaluation) -> list[str]:
    """Where two evaluations of the same files on the same rows differ by more than rounding, one sentence each."""
    found = []
    if (claimed.interval, claimed.rows, claimed.rows_hash) != (measured.interval, measured.rows, measured.rows_hash):
        found.append(f"claimed of {claimed.rows:,} rows of {claimed.interval}, found {measured.rows:,} of {measured.interval}")
    ours, theirs = measured.candidate.metrics, claimed.candidate.metrics
    for name in sorted({*ours, *theirs}):
        one, other = theirs.get(name), ours.get(name)
        if one is None or other is None or not math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            said, seen = ("nothing" if value is None else f"{value:.6g}" for value in (one, other))
            found.append(f"{name} claimed {said}, found {seen}")
    its, our = (evaluation.refit.agreement if evaluation.refit else None for evaluation in (claimed, measured))
    if its is not None and our is not None and not math.isclose(its, our, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        found.append(f"the agreement of the model that serves claimed {its:.6g}, found {our:.6g}")
    return found
