"""The gates' decision on a candidate. :mod:`perennial.evaluation.gates` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from perennial.evidence.plain import Evidence


@dataclass(frozen=True)
class GateResult(Evidence):
    """The result of one gate. ``reason`` says what was measured and what is required, also if the gate passed."""

    gate: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateDecision(Evidence):
    """Whether a candidate may become champion. A row without ``promote`` reads as no.

    Attributes:
        promote: whether every gate passed.
        results: the results of all gates, in order; later gates are asked even if an earlier one refused.
        candidate: the candidate's name in ``model.yaml``.
        champion: the champion that the decision was made against; None if there was none.
        champion_unusable: why the candidate was not compared with that champion: it can never be used again, so only the gates
            that need no champion were asked. None if it was compared.
        champion_recipe: digest of the champion's recipe if the candidate was compared with it, and not with a stored model. The
            decision then holds for every version of this recipe.
        same_recipe: whether the candidate was refused only because it is the champion's own recipe: nothing is wrong with it.
    """

    promote: bool
    results: list[GateResult]
    candidate: str
    champion: int | None
    champion_unusable: str | None = None
    champion_recipe: str = ""
    same_recipe: bool = False

    @property
    def reasons(self) -> list[str]:
        """Why the candidate was refused; empty if it was not."""
        return [result.reason for result in self.results if not result.passed]

    @property
    def refused_by(self) -> list[str]:
        """The gates that refused."""
        return [result.gate for result in self.results if not result.passed]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "reasons": self.reasons}
