"""What was measured of a candidate and its rivals: the evidence that gates decide on, kept with every version.

:mod:`perennial.evaluation.metrics` measures, :mod:`perennial.evaluation.gates` decides. A part that is None or absent was
not measured, and what needs it is refused; evaluations made before a part existed read back without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from perennial.evidence.plain import Evidence, absent
from perennial.spec.types import Task


@dataclass(frozen=True)
class PredictionSummary(Evidence):
    """What a contender's predictions look like.

    Attributes:
        rows: how many there are.
        not_finite: how many are NaN, infinite or missing.
        distinct: how many different values they take.
        minimum, mean, maximum: of the finite ones; None for classes, or if there are none.
        digest: :attr:`perennial.model.artifacts.Prediction.digest`, by which the same predictions are known again.
    """

    rows: int
    not_finite: int
    distinct: int
    minimum: float | None = None
    mean: float | None = None
    maximum: float | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Contender(Evidence):
    """One model, measured on the holdout.

    Attributes:
        name: of the candidate in ``model.yaml``; the champion keeps the one it had.
        role: what it stands for in the comparison; a row that lacks it reads as ``candidate``.
        metrics: by the names of :data:`perennial.spec.training.METRICS`; one that could not be computed is absent.
        rows: labelled rows it was measured on.
        rows_hash: content hash of those rows; only equal hashes may be compared.
        predictions: None if it could not predict.
        error: why it could not predict.
        version: registered version, if it has one.
        mlflow_run_id: MLflow's run that logged it.
        trained_on: key of the interval whose rows it learned from.
        intervals: low and high end of each metric's confidence interval, by ``gates.resampling``.
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


@dataclass(frozen=True)
class GainOverChampion(Evidence):
    """Candidate against champion by the primary metric, on the same rows, in the same resamples.

    Attributes:
        gain: how much better the candidate is, in units of the metric; negative if it is worse.
        low, high: between which the true gain lies with ``confidence``; the decision rests on these.
        lower, upper: above which, and below which, it lies with ``confidence``.
        identical: share of rows for which both predict the very same, 0 to 1.
        blocks: how many blocks rows were drawn in.
        block: what a block is: a length of time or the name of a column.
        resamples, seed, confidence: of the draws.
        problem: why chance could not be judged; the bounds are None then.
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
    """The comparison within the rows that share a value.

    Attributes:
        column, value: which rows; a missing value is ``missing``.
        rows: how many.
        candidate, champion: the primary metric of each.
        gain: how much better the candidate is; negative if it is worse.
        error: standard error of the gain.
        blocks: how many blocks the rows lie in.
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
    """All comparisons within parts of the rows.

    Attributes:
        judged: those with enough rows and blocks.
        not_judged: the others, each with its reason.
    """

    judged: list[Slice]
    not_judged: list[str]


@dataclass(frozen=True)
class Groups(Evidence):
    """How the groups of a column are treated.

    Attributes:
        column, rate, threshold: see :class:`perennial.spec.gates.FairnessGate`.
        rates: by group with enough rows.
        not_judged: groups with too few rows.
    """

    column: str
    rate: str
    threshold: float
    rates: dict[str, float]
    not_judged: list[str]


@dataclass(frozen=True)
class Robustness(Evidence):
    """The primary metric when one feature at a time gets worse.

    Attributes:
        rows: how many it was measured on.
        clean: with the features as they are.
        uninformed: of the best constant prediction on the same rows; what lies between is what the model knows.
        noise, missing: by feature whose values were disturbed, or partly removed; absent where it could not be computed.
        problems: why not, by feature and what was done to it.
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
        share: of the rows that behaved, 0 to 1; None for a test of ``model.py``.
        rows: how many were tried.
        problem: what is wrong, if the test itself says so or could not be run.
    """

    share: float | None
    rows: int
    problem: str | None = None


@dataclass(frozen=True)
class Operation(Evidence):
    """What a clean process found when it put the stored candidate to work.

    Attributes:
        problem: why it could not; the rest says nothing then.
        rows: how many it answered.
        difference: largest difference of an answer from the one given here; None if one of them is not finite.
        same_features: whether the loaded model takes the features of ``model.yaml``, in their order.
        latency: milliseconds that 1,000 rows take, warm.
        load_seconds: of loading, download and check of its files included.
        artifact_mb: megabytes of its files.
    """

    problem: str | None = None
    rows: int = 0
    difference: float | None = None
    same_features: bool = False
    latency: float | None = None
    load_seconds: float | None = None
    artifact_mb: float | None = None


@dataclass(frozen=True)
class Evaluation(Evidence):
    """A candidate, all baselines and the champion on the same newest, untouched rows.

    Attributes:
        task: of the model; a row that lacks it reads as ``binary_classification``, of which gates ask most.
        metric: the primary one.
        interval: key of the holdout.
        entities: rows that a prediction is due for, labelled or not.
        rows: those whose label is known.
        rows_hash: content hash of the labelled rows.
        classes: labelled rows a class; empty for regression.
        not_finite_inputs: infinite values a feature; missing values are no fault.
        champion: None only while the model has never had one.
        as_of: ISO time; labels that were known later were not used.
        training_classes: labelled rows a class of what the candidate learned from; empty for regression.
        training_coverage: share of what it could have learned from whose label was known in time, 0 to 1.
        comparison: candidate against champion; None without a champion, or if one of them could not predict.
        slices: the same within parts of the rows.
        groups: how groups are treated.
        robustness: how the candidate takes worse inputs.
        behaviour: outcomes of the behaviour tests, by name.
        operation: how it works in a clean process.
        alone: score that each feature reaches alone: area under the ROC curve, or R squared.
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

    @property
    def label_coverage(self) -> float:
        """Share of the holdout's entities whose label is known, 0 to 1."""
        return self.rows / self.entities if self.entities else 0.0

    @property
    def champion_version(self) -> int | None:
        """The champion it was compared with; a promotion must expect this one to be champion still."""
        return self.champion.version if self.champion else None

    @property
    def training_prior(self) -> float | None:
        """Share of true labels among what the candidate learned from; None if the task has none, or it is not known."""
        known = self.training_classes or {}
        total = sum(known.values())
        return known.get("true", known.get("True", 0)) / total if total and self.task == "binary_classification" else None

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "label_coverage": self.label_coverage}
