"""What the gates said of a candidate. :mod:`perennial.evaluation.gates` decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from perennial.evidence.plain import Evidence


@dataclass(frozen=True)
class GateResult(Evidence):
    """One gate's word: ``reason`` says what was seen and what was wanted, whether it passed or not."""

    gate: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateDecision(Evidence):
    """Whether a candidate may become champion. One that lacks ``promote`` says no.

    Attributes:
        promote: every gate passed.
        results: of all gates, in order; none is left out because an earlier one refused.
        candidate: its name in ``model.yaml``.
        champion: the version the candidate was compared with.
    """

    promote: bool
    results: list[GateResult]
    candidate: str
    champion: int | None

    @property
    def reasons(self) -> list[str]:
        """Why it was refused; empty if it was not."""
        return [result.reason for result in self.results if not result.passed]

    @property
    def refused_by(self) -> list[str]:
        """The gates that refused."""
        return [result.gate for result in self.results if not result.passed]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "reasons": self.reasons}
