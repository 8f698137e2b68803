"""What a comparison found: the distance and status of each column, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from perennial.ledger.records import VerdictName

Kind = Literal["numeric", "categorical"]
Status = Literal["stable", "drifted", "left_out", "unusable"]


@dataclass(frozen=True)
class ColumnDrift:
    """What was found of one feature, or of the predictions.

    Attributes:
        score: Wasserstein distance in standard deviations of the reference (numeric) or Jensen-Shannon distance
            (categorical); None if none was taken.
        threshold: score from which the column counts as drifted.
        status: ``drifted`` by the score or by values that the reference never saw; ``left_out`` when it misses nearly all
            its values as the reference does, which says nothing either way; ``unusable`` when it could not be judged.
        missing, reference_missing: share of values that are missing or NaN.
        reason: what there is to say, in words and numbers; empty if nothing.
    """

    column: str
    kind: Kind
    score: float | None
    threshold: float
    status: Status
    missing: float
    reference_missing: float
    reason: str

    @property
    def drifted(self) -> bool:
        return self.status == "drifted"


@dataclass(frozen=True)
class DriftComparison:
    """The outcome of :func:`compare`.

    Attributes:
        reasons: in words and numbers, the weightiest first.
        columns: the predictions first, then the features.
        snapshot: Evidently's result; None if it was not asked or failed.
    """

    verdict: VerdictName
    reasons: list[str]
    columns: list[ColumnDrift] = field(default_factory=list)
    share: float | None = None
    snapshot: Any = None
