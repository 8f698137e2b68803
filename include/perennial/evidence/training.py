"""What a version was made from: its training set, the candidate that was fitted on it, and the code that did it.

:mod:`perennial.training.training_set` pins, :mod:`perennial.training.fit` fits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from perennial.core.intervals import Interval
from perennial.evidence.plain import Evidence
from perennial.spec.types import Task

Part = Literal["window", "holdout"]
PARTS: tuple[Part, ...] = ("window", "holdout")


@dataclass(frozen=True)
class TrainingSet(Evidence):
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
        return Interval.from_key(self.key(part))

    def key(self, part: Part) -> str:
        """Key of the part's interval."""
        return self.window if part == "window" else self.holdout

    def label_coverage(self, part: Part) -> float:
        """Share of the entities whose label was known in time, 0 to 1."""
        return self.labelled[part] / self.entities[part] if self.entities[part] else 0.0


@dataclass(frozen=True)
class TrainingRecord(TrainingSet):
    """What the ledger keeps of a training: the training set, and the version that was fitted on it.

    Attributes:
        candidate: its name in ``model.yaml``.
        params: the parameters it was fitted with.
        validation: its metrics on the validation part, by name.
        model_id: MLflow's, of the stored model.
        task: what the model predicts; None if the row does not say.
        numeric, categorical: the features it takes, in their order.
        trusted_types: of the estimator, that ``model.yaml`` trusted.
    """

    candidate: str
    params: dict[str, Any]
    validation: dict[str, float]
    model_id: str
    task: Task | None
    numeric: list[str]
    categorical: list[str]
    trusted_types: list[str]

    @property
    def features(self) -> list[str]:
        """All features it takes, the numeric ones first."""
        return [*self.numeric, *self.categorical]

    @property
    def training_set(self) -> TrainingSet:
        """The training set alone."""
        return TrainingSet(**{part.name: getattr(self, part.name) for part in fields(TrainingSet)})


@dataclass(frozen=True)
class CodeState(Evidence):
    """All that decides what a fit computes beside its rows and parameters, as far as the process that fitted could tell.

    Attributes:
        commit: of the model's folder; ``unknown`` outside a repository.
        dirty: whether anything differed from the commit; None if that is not known.
        files: SHA-256 of each of :attr:`perennial.spec.folder.ModelFolder.files`; empty if they were not kept.
        python: its version; None if that is not known.
        packages: version by name.
        machine: kind of the processor; None if that is not known.
        threads: by ``openmp`` and ``blas``, since sums that are made in another order may differ in their last bits; empty
            if they are not known.
    """

    commit: str = "unknown"
    dirty: bool | None = None
    files: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    machine: str | None = None
    threads: dict[str, int] = field(default_factory=dict)
