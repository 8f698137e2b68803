"""What a comparison found: the distance and status of each column, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perennial.drift.shapes import Shape
from perennial.evidence.verdict import ColumnDrift
from perennial.ledger.records import VerdictName


@dataclass(frozen=True)
class DriftComparison:
    """The outcome of :func:`compare`.

    Attributes:
        reasons: in words and numbers, the most important first.
        columns: the predictions first, then the features.
        snapshot: Evidently's result; None if it was not called or failed.
        shapes: the distributions of the columns that Evidently was called for, by name.
    """

    verdict: VerdictName
    reasons: list[str]
    columns: list[ColumnDrift] = field(default_factory=list)
    share: float | None = None
    snapshot: Any = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)
