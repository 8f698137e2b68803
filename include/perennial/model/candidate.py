"""A training set and a fitted candidate, as training passes them to evaluation, the registry and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from perennial.core.intervals import Interval


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
        """The address by which MLflow's own tools load it."""
        return f"models:/{self.model_id}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fitted:
        return cls(**value)


Part = Literal["window", "holdout"]


@dataclass(frozen=True)
class TrainingSet:
    """The rows that a training fits and evaluates on. It is small enough to pass from task to task.

    Attributes:
        model: name of the model.
        run_id: the run that pinned it.
        as_of: ISO time. Nothing that was known later was used.
        window: key of the interval to train on. Its labels are those known when the holdout began.
        holdout: key of the newest interval, on which models are compared. Its labels are those known at ``as_of``.
        snapshots: Iceberg snapshots by table: ``features``, and the tables that labels are read from.
        pin: name under which the lake keeps the snapshots.
        folder_digest, features_digest: digests of the model folder, see :class:`perennial.spec.folder.ModelFolder`.
        rows: used rows per part: the labelled rows, at most the newest ``max_rows`` of the window.
        labelled: rows per part whose label was known in time.
        entities: rows per part, labelled or not.
        classes: labelled rows per part and class; empty for regression.
        content: SHA-256 per part over the labelled rows, independent of how they are stored.
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
