"""A fitted candidate: what training hands to evaluation, the registry and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from perennial.evidence.training import CodeState, StoredModel


@dataclass(frozen=True)
class Fitted:
    """A candidate that was fitted and logged. It is small enough to pass from task to task.

    Attributes:
        candidate: its name in ``model.yaml``.
        baseline: whether it is only a baseline that other candidates must beat.
        params: the parameters it was fitted with.
        metrics: metrics on the validation part, of a model with the same settings that was fitted without this part.
        score: the primary metric of ``metrics``; None if it is not defined there.
        greater_is_better: whether a greater ``score`` is better.
        mlflow_run_id: its MLflow run.
        model_id: its model in MLflow.
        manifest: SHA-256 of each of its files.
        code: the code and packages of the process that fitted it.
        seconds: duration of the search and of the final fit.
        window: the length of the training window that it has chosen, as ``model.yaml`` names it; empty if it had no choice.
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
    window: str = ""

    @property
    def stored(self) -> StoredModel:
        """Its files in MLflow."""
        return StoredModel(self.model_id, self.manifest)

    @property
    def model_uri(self) -> str:
        """The address by which MLflow's own tools load it."""
        return f"models:/{self.model_id}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fitted:
        return cls(**{**value, "code": CodeState.from_json(value["code"])})
