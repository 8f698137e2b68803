"""What monitoring keeps with a measurement, and with a request for a training.

:mod:`perennial.monitoring.performance` measures, :mod:`perennial.monitoring.expectation` expects and audits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True)
class Expectation(Evidence):
    """What a requested training is expected to gain if its version is promoted.

    Attributes:
        gain: in units of the primary metric, positive if the new version is better; None if nothing is known.
        deviation: standard deviation of the gain; None if it is not known.
        replacements: number of earlier replacements that this comes from.
        words: the same for people; empty in rows of earlier releases.
    """

    gain: float | None = None
    deviation: float | None = None
    replacements: int = 0
    words: str = ""

    @property
    def figure(self) -> str:
        """The gain and its deviation; empty if nothing is known."""
        if self.gain is None:
            return ""
        return f"{self.gain:+.2g}" + ("" if self.deviation is None else f" ± {self.deviation:.2g}")


@dataclass(frozen=True)
class Audit(Evidence):
    """What came of a requested training.

    Attributes:
        outcome: ``measured``: its version was promoted and compared with the one that it replaced; ``unmeasured``: it was
            promoted, but could not be compared; ``refused``: it was not promoted; ``none``: there is no version; ``open``: it
            is too early to say.
        version: the version; None if there is none.
        gain: in units of the primary metric, positive if the version was better; None unless it was measured.
        low, high: ends of the gain's confidence interval; None if there is none.
        words: the same for people; empty if it is too early to say.
    """

    outcome: Literal["open", "measured", "unmeasured", "refused", "none"] = "open"
    version: int | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    words: str = ""
