"""What monitoring measured beside a version's own metrics: how good the same answer for every row would have been.

:mod:`perennial.monitoring.performance` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perennial.evidence.evaluation import GainOverChampion
from perennial.evidence.plain import Evidence


@dataclass(frozen=True)
class Constant(Evidence):
    """The best prediction without a model: the same one for every row, as the version's training rows told it.

    For classification it is the share of each class, for regression the mean label.

    Attributes:
        metrics: its metrics on the rows on which the version was measured, by name; empty if the training does not tell it.
        comparison: the version against it, if the version's primary metric is worse: ``gain`` is negative, and the version is
            surely worse if ``high`` is, too. None if the version is not worse.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    comparison: GainOverChampion | None = None
