"""A fitted candidate: what training hands to evaluation, the registry and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from perennial.evidence.training import CodeState


@dataclass(frozen=True)
class Fitted:
    """A candidate, fitted and logged; small enough to hand from task to task.

    Attributes:
        candidate: its name in ``model.yaml``.
        baseline: whether it only stands for what must be beaten.
        params: the parameters it was fitted with.
        metrics: on the validation part, of the same settings fitted without it.
        score: the primary one of them; None if it is not defined there.
        greater_is_better: whether more of ``score`` is better.
        mlflow_run_id, model_id, manifest: where it was logged, and the SHA-256 of each file.
        code: of the process that fitted it.
        seconds: of the search and of the final fit.
    """

    candidate: str
    baseline: bool
    params: dict[str, Any]
    metrics: dict[str, float]
    score: float | None
    greater_is_better: bool
    mlflow_run_id: str
    model_id: str
    manifest: dict[str, str]
    code: CodeState
    seconds: dict[str, float]

    @property
    def model_uri(self) -> str:
        """What MLflow's own tools load it by."""
        return f"models:/{self.model_id}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fitted:
        return cls(**{**value, "code": CodeState.from_json(value["code"])})
