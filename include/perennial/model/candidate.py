"""A training set and a fitted candidate: what training hands to evaluation, the registry and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from perennial.core.intervals import Interval


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
        code: of the process that fitted it, see :func:`code_state`.
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
    code: dict[str, Any]
    seconds: dict[str, float]

    @property
    def model_uri(self) -> str:
        """What MLflow's own tools load it by."""
        return f"models:/{self.model_id}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fitted:
        return cls(**value)


Part = Literal["window", "holdout"]


@dataclass(frozen=True)
class TrainingSet:
    """Which rows a training learns from and is judged on; small enough to hand from task to task.

    Attributes:
        model: its name.
        run_id: the run that pinned it.
        as_of: ISO time; nothing known later was used.
        window: key of the interval that is learned from. Its labels are those known when the holdout began.
        holdout: key of the newest interval, which models are compared on. Its labels are those known at ``as_of``.
        snapshots: Iceberg snapshot by table: ``features``, and the tables that labels are read from.
        pin: name under which the lake keeps the snapshots.
        folder_digest, features_digest: of the model folder, see :class:`perennial.spec.folder.ModelFolder`.
        rows: rows a part that are used: the labelled ones, of the window the newest ``max_rows``.
        labelled, entities: rows a part whose label was known in time, and rows that have a prediction due.
        classes: labelled rows a class a part; empty for regression.
        content: SHA-256 a part over the labelled rows, independent of how they are stored.
    """

    model: str
    run_id: str
    as_of: str
    window: str
    holdout: str
    snapshots: dict[str, int]
    pin: str
    folder_digest: str
    features_digest: str
    rows: dict[str, int]
    labelled: dict[str, int]
    entities: dict[str, int]
    classes: dict[str, dict[str, int]]
    content: dict[str, str]

    def interval(self, part: Part) -> Interval:
        return Interval.from_key(self.window if part == "window" else self.holdout)

    def label_coverage(self, part: Part) -> float:
        """Share of the entities whose label was known in time, 0 to 1."""
        return self.labelled[part] / self.entities[part] if self.entities[part] else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingSet:
        return cls(**value)
