"""The evidence of a verdict on a monitoring window: each column's distance, the estimated metrics, and the impact.

:mod:`perennial.drift.compare` compares columns, :mod:`perennial.monitoring.estimation` estimates metrics,
:mod:`perennial.monitoring.impact` judges the impact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from perennial.evidence.plain import Evidence, absent

Kind = Literal["numeric", "categorical"]
Status = Literal["stable", "drifted", "left_out", "unusable"]
VerdictSeverity = Literal["none", "warning", "critical"]
AskedVerdict = Literal["ok", "drift", "unknown", "not_judged"]


@dataclass(frozen=True)
class ColumnDrift(Evidence):
    """The comparison of one feature, or of the predictions, with the reference.

    Attributes:
        kind: kind of the column; a row without a kind reads as ``numeric``.
        score: Wasserstein distance in standard deviations of the reference (numeric) or Jensen-Shannon distance
            (categorical); None if the distance was not computed.
        threshold: score from which the column counts as drifted.
        status: ``drifted``: by the score, or by values that the reference does not contain. ``left_out``: nearly all values
            are missing, in the reference too, so nothing can be said. ``unusable``: the column could not be judged; a row
            without a status reads as this.
        missing, reference_missing: share of values that are missing or NaN.
        reason: the explanation in words and numbers; empty if there is none.
    """

    column: str
    kind: Kind = field(metadata=absent("numeric"))
    score: float | None
    threshold: float
    status: Status = field(metadata=absent("unusable"))
    missing: float
    reference_missing: float
    reason: str

    @property
    def drifted(self) -> bool:
        return self.status == "drifted"

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "drifted": self.drifted}


def uncompared(columns: Iterable[ColumnDrift]) -> list[str]:
    """Names of the columns that could not be judged."""
    return [column.column for column in columns if column.status == "unusable"]


#: What no estimate can show. Every place that shows an estimate says it.
ESTIMATE_LIMIT = (
    "An estimate cannot see concept drift: if the relation between features and label has changed, only labels show it."
)


@dataclass(frozen=True)
class Estimate(Evidence):
    """Metrics of a window whose labels are not known; :data:`ESTIMATE_LIMIT` says what they cannot show.

    Attributes:
        metric: the primary metric.
        metrics: estimated values, by name.
        confusion: for binary classification: expected share of rows that are ``true_positive``, and so on, at ``threshold``.
        threshold: probability from which the answer is yes.
        band: low and high end of the primary metric; the width is the error of such estimates on pieces of the reference.
        usual: low and high end of the realised primary metric on pieces of the reference as large as the window.
        rows, reference_rows: number of rows of the window, and of the reference, that were used.
        reason: why nothing was estimated; empty if something was.
    """

    metric: str
    metrics: dict[str, float] = field(default_factory=dict)
    confusion: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None
    band: list[float] | None = None
    usual: list[float] | None = None
    rows: int = 0
    reference_rows: int = 0
    reason: str = ""

    @property
    def value(self) -> float:
        """The primary metric; NaN if it was not estimated."""
        return self.metrics.get(self.metric, math.nan)


@dataclass(frozen=True)
class Impact(Evidence):
    """How serious a verdict is.

    Attributes:
        severity: the alert's severity; ``none``: no alert. A row without a severity reads as ``warning``.
        persistent: whether enough of the last windows drifted, including the newest.
        fallen: which performances are below their bound: ``estimated``, ``realised``; ``constant``: the realised one is surely
            worse than the same answer for every row.
        reasons: the reasons in words and numbers.
    """

    severity: VerdictSeverity = field(metadata=absent("warning"))
    persistent: bool
    fallen: tuple[str, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "fallen": list(self.fallen), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class ComparedRows(Evidence):
    """The number of rows in a comparison.

    Attributes:
        features, predictions: rows of the window.
        features_compared, predictions_compared: rows that were compared: a sample, and only one version's predictions.
        reference: rows of the version's training reference.
        reference_compared: rows of the reference that ``drift.match`` selects; None if they were too few.
    """

    features: int
    predictions: int
    features_compared: int
    predictions_compared: int
    reference: int
    reference_compared: int | None = None


@dataclass(frozen=True)
class AskedDrift(Evidence):
    """The verdict on what was asked online in a window, beside the verdict on what the batch predicted.

    Attributes:
        verdict: as for the batch; ``not_judged``: too few rows to be judged. A row without a verdict reads as ``unknown``.
        reasons: in words and numbers, the most important first. They quote no value of a request.
        version: the champion that answered most of the rows; None if none were read.
        snapshot: the Iceberg snapshot of ``online_requests`` that was read; None if none was.
        rows: rows that champions have answered.
        left_out: of these, rows that were answered without stored features (``fallback: null``).
        compared: rows that were compared: a sample of the version's.
        share: share of the features that drifted; None if the features were not compared.
        columns: the predictions first, then the features.
        severity: the alert's severity.
        report: where the report is stored; None if there is none.
    """

    verdict: AskedVerdict = field(metadata=absent("unknown"))
    reasons: list[str] = field(default_factory=list)
    version: int | None = None
    snapshot: int | None = None
    rows: int = 0
    left_out: int = 0
    compared: int = 0
    share: float | None = None
    columns: list[ColumnDrift] = field(default_factory=list)
    severity: VerdictSeverity = "none"
    report: str | None = None


@dataclass(frozen=True)
class VerdictDetails(Evidence):
    """The measurements of a verdict, as far as they were made.

    Attributes:
        snapshots: the Iceberg snapshots of ``predictions`` and ``features`` that were read.
        version: the version with the most predictions in the window; None if there are no predictions.
        rows: number of rows that were compared; None if no rows were read.
        share: share of the features that drifted; None if the features were not compared.
        share_threshold: share from which the verdict is drift.
        calibrated: when the thresholds in ``drift.yaml`` were computed; None if those of ``model.yaml`` were used.
        thresholds: the thresholds that monitoring has calibrated itself, in the form of ``drift.yaml`` (``drift.calibrate:
            auto``); None if there are none.
        columns: the predictions first, then the features.
        estimate: the estimated metrics; None if no estimate was tried.
        missing: keys of the stretches of the window without predictions.
        severity: the alert's severity; None if the row is from a release that did not judge it.
        impact: how serious the verdict is; None as for ``severity``.
        asked: the verdict on what was asked online in the window; None if nothing was.
    """

    snapshots: dict[str, int] = field(default_factory=dict)
    version: int | None = None
    rows: ComparedRows | None = None
    share: float | None = None
    share_threshold: float | None = None
    calibrated: str | None = None
    thresholds: dict[str, Any] | None = None
    columns: list[ColumnDrift] = field(default_factory=list)
    estimate: Estimate | None = None
    missing: list[str] = field(default_factory=list)
    severity: VerdictSeverity | None = None
    impact: Impact | None = None
    asked: AskedDrift | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "columns": [column.to_json() for column in self.columns],
            "impact": None if self.impact is None else self.impact.to_json(),
        }
