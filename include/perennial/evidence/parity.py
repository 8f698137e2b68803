"""How far what was served online equals what the published tables give for the same moment.

:mod:`perennial.serving.parity` measures it; :mod:`perennial.evaluation.gates` decides by it.

References:
    Chronon's documentation of online/offline consistency: logged online values are compared with values that are computed
    again offline, and counted by column as missing, extra or different.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from perennial.evidence.plain import Evidence

#: Fewest rows whose parity is judged.
FEWEST = 20


@dataclass(frozen=True)
class Consistency(Evidence):
    """One feature in the compared rows.

    Attributes:
        equal: rows in which both values are the same, to the last bit, or both are missing.
        missing: rows in which it was served as missing, and the tables give a value.
        extra: rows in which it was served with a value, and the tables give none.
        different: rows in which the values differ.
    """

    equal: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0

    @property
    def unequal(self) -> int:
        return self.missing + self.extra + self.different

    @property
    def words(self) -> str:
        """What is unequal, such as ``12 different, 3 missing``."""
        told = {"different": self.different, "missing": self.missing, "extra": self.extra}
        return ", ".join(f"{count:,} {what}" for what, count in told.items() if count)


@dataclass(frozen=True)
class Parity(Evidence):
    """The parity of one definition of features on one day.

    Attributes:
        bound: smallest share of equal rows (``online.parity``), 0 to 1.
        interval: key of the day that the served features are of; empty if nothing was measured.
        rows: recorded rows that were computed again.
        equal: those of them in which every feature that was not given by the client is equal.
        features: by feature.
        unchecked: features that cannot be computed for some entities alone, so they were left out.
        damaged: why what was measured cannot be read; None if it can.
    """

    bound: float = math.nan
    interval: str = ""
    rows: int = 0
    equal: int = 0
    features: dict[str, Consistency] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    damaged: str | None = None

    @property
    def share(self) -> float:
        """The share of equal rows, 0 to 1; NaN without rows."""
        return self.equal / self.rows if self.rows else math.nan

    @property
    def is_judged(self) -> bool:
        """Whether there are enough rows."""
        return self.rows >= FEWEST

    @property
    def is_below(self) -> bool:
        """Whether there are enough rows, and too few of them are equal."""
        return self.is_judged and not self.share >= self.bound

    @property
    def worst(self) -> list[str]:
        """The features that are not always equal, the worst first, with what is wrong."""
        unequal = [(one.unequal, name) for name, one in self.features.items() if one.unequal]
        return [f"{name} ({self.features[name].words})" for _, name in sorted(unequal, key=lambda pair: (-pair[0], pair[1]))]
