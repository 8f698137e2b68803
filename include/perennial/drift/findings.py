"""What a comparison found: each column's distance and status, and the verdict they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perennial.evidence.verdict import ColumnDrift
from perennial.ledger.records import VerdictName


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
