"""What a version was made from: the training set, the fitted candidate, and the code.

:mod:`perennial.training.training_set` pins the rows, :mod:`perennial.training.fit` fits the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Literal

from perennial.core.intervals import Interval
from perennial.evidence.plain import Evidence
from perennial.spec.types import Task

Part = Literal["window", "holdout"]
PARTS: tuple[Part, ...] = ("window", "holdout")


@dataclass(frozen=True)
class StoredModel(Evidence):
    """The files of a model in MLflow.

    Attributes:
        model_id: MLflow's id of the stored model.
        manifest: SHA-256 by path for every file.
    """

    model_id: str
    manifest: dict[str, str]


@dataclass(frozen=True)
class TrainingSet(Evidence):
    """The rows that models are trained on and compared on; small enough to pass from task to task.

    Attributes:
        model: the model's name.
        run_id: the run that pinned the rows.
        as_of: ISO time; data that became known later were not used.
        window: key of the training interval; its labels are those known when the holdout began.
        holdout: key of the newest interval whose labels are mature, on which models are compared; its labels are those known
            at ``as_of``.
        snapshots: Iceberg snapshot by table: ``features``, and the tables that labels are read from.
        pin: name under which the lake keeps the snapshots.
        folder_digest, features_digest: digests of the model folder, see :class:`perennial.spec.folder.ModelFolder`.
        rows: labelled rows per part that are used; in the window, only the newest ``max_rows``.
        labelled, entities: rows per part whose label was known in time, and rows per part that require a prediction.
        classes: labelled rows per part and class; empty for regression.
        content: SHA-256 of the labelled rows per part, independent of their storage.
        label_delay: days that labels take, as stated or measured. The holdout ends that long before ``as_of``, and the window
            that long before the holdout.
        delay_measured: whether the delay was measured, since ``label.delay`` does not state it.
        newest_label: ISO event time of the newest row of the holdout whose label is known; empty if no label is.
        missing: keys of the stretches of window and holdout without features, after the first day that ever had any.
        without_values: features that have no value in any row of the window; None if it was not looked at.
        mean_label: for regression, the mean label of the window's rows; None otherwise, or if it was not looked at.
        withheld: keys of the intervals whose rows are left out, since a refresh that learned from them was refused.
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
    label_delay: int = field(default=0, kw_only=True)
    delay_measured: bool = field(default=False, kw_only=True)
    newest_label: str = field(default="", kw_only=True)
    missing: list[str] = field(default_factory=list, kw_only=True)
    without_values: list[str] | None = field(default=None, kw_only=True)
    mean_label: float | None = field(default=None, kw_only=True)
    withheld: list[str] = field(default_factory=list, kw_only=True)

    def interval(self, part: Part) -> Interval:
        return Interval.from_key(self.key(part))

    @property
    def withheld_intervals(self) -> list[Interval]:
        return [Interval.from_key(key) for key in self.withheld]

    def key(self, part: Part) -> str:
        """Key of the part's interval."""
        return self.window if part == "window" else self.holdout

    def newest(self, length: timedelta) -> Interval:
        """The newest part of the window, of a length; the whole window if that is shorter."""
        whole = self.interval("window")
        return Interval(max(whole.start, whole.end - length), whole.end)

    def label_coverage(self, part: Part) -> float:
        """Share of the part's entities whose label was known in time, 0 to 1."""
        return self.labelled[part] / self.entities[part] if self.entities[part] else 0.0


@dataclass(frozen=True)
class TrainingRecord(TrainingSet):
    """What the ledger keeps of a training: the training set, and the version that was fitted on it.

    Attributes:
        candidate: the candidate's name in ``model.yaml``.
        params: the parameters of the fit.
        validation: the candidate's metrics on the validation part, by name.
        model_id: MLflow's id of the stored model.
        task: the model's task; None if the row does not contain it.
        numeric, categorical: the features that the model takes, in order.
        trusted_types: the types in the estimator that ``model.yaml`` declares trusted.
        chosen_window: the length of the window that the candidate has chosen, as ``model.yaml`` names it; empty if it had no
            choice. ``window`` is that part alone.
        recipe: :func:`perennial.spec.recipe.recipe_digest` of what it was made by; empty if the row does not contain it.
    """

    candidate: str
    params: dict[str, Any]
    validation: dict[str, float]
    model_id: str
    task: Task | None
    numeric: list[str]
    categorical: list[str]
    trusted_types: list[str]
    chosen_window: str = field(default="", kw_only=True)
    recipe: str = field(default="", kw_only=True)

    @property
    def features(self) -> list[str]:
        """All features that the model takes, the numeric ones first."""
        return [*self.numeric, *self.categorical]

    @property
    def training_set(self) -> TrainingSet:
        """Only the training set."""
        return TrainingSet(**{part.name: getattr(self, part.name) for part in fields(TrainingSet)})


@dataclass(frozen=True)
class CodeState(Evidence):
    """Everything besides rows and parameters that the result of a fit depends on, as far as the fitting process knew.

    Attributes:
        commit: the commit of the model's folder; ``unknown`` outside a repository, and outside an image that was built in one.
        dirty: whether the files differed from the commit; None if unknown.
        files: SHA-256 of each of :attr:`perennial.spec.folder.ModelFolder.files`; empty if they were not kept.
        python: the version of Python; None if unknown.
        packages: version by package name.
        machine: the processor's architecture; None if unknown.
        threads: number of threads by ``openmp`` and ``blas``; empty if unknown. Another number changes the order of sums, and
            with it their last bits.
    """

    commit: str = "unknown"
    dirty: bool | None = None
    files: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    machine: str | None = None
    threads: dict[str, int] = field(default_factory=dict)
