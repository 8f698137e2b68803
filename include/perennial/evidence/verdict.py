"""What a verdict on a monitoring window rests on: each column's distance, the estimate, and what the verdict is worth.

:mod:`perennial.drift.compare` compares columns, :mod:`perennial.monitoring.estimation` estimates,
:mod:`perennial.monitoring.impact` weighs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from perennial.evidence.plain import Evidence, absent

Kind = Literal["numeric", "categorical"]
Status = Literal["stable", "drifted", "left_out", "unusable"]
VerdictSeverity = Literal["none", "warning", "critical"]


@dataclass(frozen=True)
class ColumnDrift(Evidence):
    """What was found of one feature, or of the predictions.

    Attributes:
        kind: a row that lacks it reads as ``numeric``.
        score: Wasserstein distance in standard deviations of the reference (numeric) or Jensen-Shannon distance
            (categorical); None if none was taken.
        threshold: score from which the column counts as drifted.
        status: ``drifted`` by the score or by values that the reference never saw; ``left_out`` when it misses nearly all
            its values as the reference does, which says nothing either way; ``unusable`` when it could not be judged. A row
            that lacks it reads as ``unusable``.
        missing, reference_missing: share of values that are missing or NaN.
        reason: what there is to say, in words and numbers; empty if nothing.
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


@dataclass(frozen=True)
class Estimate(Evidence):
    """Metrics of a window whose labels are not known.

    Attributes:
        metric: the primary one.
        metrics: estimated, by name.
        confusion: binary: share of the rows that probably are ``true_positive``, and so on, at ``threshold``.
        threshold: probability from which the answer is yes.
        band: low and high end of the primary metric, as far as estimates of pieces of the reference were off.
        usual: low and high end of the realised primary metric on pieces of the reference as large as the window.
        rows, reference_rows: that it rests on.
        reason: why nothing was estimated; empty if it was.
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
    """What a verdict is worth.

    Attributes:
        severity: of the alert; ``none``: there is nothing to tell. A row that lacks it reads as ``warning``.
        persistent: whether enough of the last windows drifted, the newest among them.
        fallen: the performances that are below their bound: ``estimated``, ``realised``.
        reasons: in words and numbers.
    """

    severity: VerdictSeverity = field(metadata=absent("warning"))
    persistent: bool
    fallen: tuple[str, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "fallen": list(self.fallen), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class ComparedRows(Evidence):
    """How many rows a comparison rests on.

    Attributes:
        features, predictions: rows of the window.
        features_compared, predictions_compared: of these, what was compared: a sample, and one version's predictions.
        reference: rows of the version's training reference.
        reference_compared: of these, those that ``drift.match`` leaves; None if they did not suffice.
    """

    features: int
    predictions: int
    features_compared: int
    predictions_compared: int
    reference: int
    reference_compared: int | None = None


@dataclass(frozen=True)
class VerdictDetails(Evidence):
    """The measurements behind a verdict, as far as it got.

    Attributes:
        snapshots: Iceberg snapshot of ``predictions`` and ``features`` that was read.
        version: the one that made most of the window's predictions; None if none was found.
        rows: that were compared; None if none were read.
        share: of the features that drifted; None if they were not compared.
        share_threshold: share from which the verdict is drift.
        calibrated: when the thresholds of ``drift.yaml`` were taken; None if they are those of ``model.yaml``.
        columns: the predictions first, then the features.
        estimate: None if none was tried.
        severity: of the alert; None if the row is older than that was weighed.
        impact: what the verdict is worth; None as for ``severity``.
    """

    snapshots: dict[str, int] = field(default_factory=dict)
    version: int | None = None
    rows: ComparedRows | None = None
    share: float | None = None
    share_threshold: float | None = None
    calibrated: str | None = None
    columns: list[ColumnDrift] = field(default_factory=list)
    estimate: Estimate | None = None
    severity: VerdictSeverity | None = None
    impact: Impact | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "columns": [column.to_json() for column in self.columns],
            "impact": None if self.impact is None else self.impact.to_json(),
        }
