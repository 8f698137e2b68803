"""What the ledger tells: one frozen dataclass per kind of record.

What was measured and decided is of the types of :mod:`perennial.evidence`; one that a row does not hold is empty
(:attr:`perennial.evidence.plain.Evidence.is_empty`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

from perennial.alerts.outbox import OutboxEntry
from perennial.core.intervals import Interval, utc
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Evaluation, GainOverChampion
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.evidence.verdict import VerdictDetails

VerdictName = Literal["ok", "drift", "unknown"]
Action = Literal["promote", "rollback", "adopt", "override"]
Answer = Literal["approved", "refused", "expired"]


@dataclass(frozen=True)
class Publication:
    """An interval of a dataset, published.

    Attributes:
        id: grows with each publication.
        model: the model.
        dataset: ``tables``, ``features`` or ``predictions``.
        interval: what was published.
        order: rank of the run that published it, see :meth:`Ledger.next_order`.
        snapshots: for every table of the dataset, written or not, the Iceberg snapshot at which to read it.
        hashes: by table, a hash of the rows that it holds for the interval (of all its rows, for a table without event
            time), whatever their order and files.
        rows: by table, how many rows those are.
        run_id: the run that published it.
        published_at: when.
        inputs: what it was made from, as its writer told.
    """

    id: int
    model: str
    dataset: str
    interval: Interval
    order: int
    snapshots: dict[str, int]
    hashes: dict[str, str]
    rows: dict[str, int]
    run_id: str
    published_at: datetime
    inputs: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values, small enough to hand from task to task."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "interval": self.interval.key, "published_at": self.published_at.isoformat()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Publication:
        """The inverse of :meth:`to_json`."""
        return cls(**{**value, "interval": Interval.from_key(value["interval"]), "published_at": utc(value["published_at"])})


@dataclass(frozen=True)
class Claim:
    """An attempt's right to publish an interval, until another attempt of the same run claims it.

    Attributes:
        token: of the attempts of a run at an interval, the one whose token the ledger holds may commit.
    """

    model: str
    dataset: str
    interval: Interval
    order: int
    run_id: str
    token: str


@dataclass(frozen=True)
class Head:
    """Where a dataset stands.

    Attributes:
        revision: grows with each change, publication or maintenance; 0 before the first.
        publication_id: the newest publication; 0 before the first.
        snapshots: as in :class:`Publication`.
    """

    revision: int
    publication_id: int
    snapshots: dict[str, int]


@dataclass(frozen=True)
class VersionRecord:
    """What is known of a registered version.

    Attributes:
        model: the model.
        version: MLflow's number for it.
        mlflow_run_id: the run that logged it.
        spec_digest: :attr:`perennial.spec.folder.ModelFolder.digest` of what it was trained by.
        features_digest: :attr:`perennial.spec.folder.ModelFolder.features_digest`.
        manifest: SHA-256 by path for every file of the artifact.
        training: the training set: snapshots, content hash, rows, window; the candidate and its parameters.
        evaluation: metrics and slices, its own and those it was compared with.
        decision: what the gates said.
        code: commit, whether it was dirty, environment.
        created_at: when it was recorded.
    """

    model: str
    version: int
    mlflow_run_id: str
    spec_digest: str
    features_digest: str
    manifest: dict[str, str]
    training: TrainingRecord
    evaluation: Evaluation
    decision: GateDecision
    code: CodeState
    created_at: datetime


@dataclass(frozen=True)
class Promotion:
    """A change of champion, intended or completed.

    Attributes:
        id: the order of promotions.
        version: the new champion.
        previous: the champion it was decided against; None if there was none.
        action: ``promote``, ``rollback``, ``adopt`` (an alias that someone moved in MLflow, taken over) or ``override`` (a
            person's promotion of what the gates or an approver had refused).
        evidence: what the decision rested on.
        completed_at: when the registry followed; None while only intended.
        withdrawn_at: when it was given up; None otherwise.
    """

    id: int
    model: str
    version: int
    previous: int | None
    action: Action
    reason: str
    actor: str
    run_id: str | None
    evidence: dict[str, Any]
    intended_at: datetime
    completed_at: datetime | None
    withdrawn_at: datetime | None = None


@dataclass(frozen=True)
class Approval:
    """What a person answered who was asked whether a version may become champion.

    Attributes:
        answer: ``approved``, ``refused``, or ``expired`` if nobody answered in time.
        approver: who; None if it expired.
        words: theirs, for the record.
        answered_at: when.
        run_id: the run that asked.
    """

    model: str
    version: int
    answer: Answer
    approver: str | None
    words: str
    answered_at: datetime
    run_id: str

    @property
    def told(self) -> str:
        """The answer in a sentence."""
        if self.answer == "expired":
            return f"nobody answered until {self.answered_at:%Y-%m-%d %H:%M} UTC"
        return f"{self.answer} by {self.approver}: {self.words or 'no words were left'}"


@dataclass(frozen=True)
class Verdict:
    """Whether an interval drifted from what a version was trained on.

    Attributes:
        verdict: ``ok``, ``drift`` or ``unknown``.
        reasons: for people, the weightiest first.
        details: the measurements behind it.
        report: where the report lies, if one could be made.
    """

    model: str
    interval: Interval
    version: int | None
    verdict: VerdictName
    reasons: list[str]
    details: VerdictDetails
    report: str | None
    run_id: str
    recorded_at: datetime


@dataclass(frozen=True)
class Performance:
    """How a version did on an interval, once its labels were known.

    Attributes:
        metrics: by name.
        rows: labelled predictions that the metrics rest on.
        coverage: share of the predictions whose label was known by ``as_of``.
    """

    model: str
    interval: Interval
    version: int
    metrics: dict[str, float]
    rows: int
    coverage: float
    as_of: datetime
    run_id: str
    recorded_at: datetime


@dataclass(frozen=True)
class ShadowComparison:
    """What labels said of the champion and a version in its shadow, on the rows that both predicted.

    Attributes:
        promotion_id: what had made the champion champion.
        version: the one in the shadow.
        windows: monitoring windows that were mature; one look a number.
        champion: the champion's version.
        interval: from the first to the last of these windows.
        outcome: ``champion_worse``, ``no_difference`` or ``unknown``.
        reason: in words and numbers.
        rows: labelled rows that both predicted.
        metrics: by version, then by name.
        comparison: gain and bounds.
        as_of: labels known later were not used.
    """

    model: str
    promotion_id: int
    version: int
    windows: int
    champion: int
    interval: Interval
    outcome: str
    reason: str
    rows: int
    metrics: dict[str, dict[str, float]]
    comparison: GainOverChampion
    as_of: datetime
    run_id: str


@dataclass(frozen=True)
class Retraining:
    """Whether monitoring asked for a new version after a window, and why.

    Attributes:
        window_end: end of the window that was judged.
        asked: whether a training was asked for.
        cause: ``drift``, ``performance``, or why not.
    """

    model: str
    window_end: datetime
    asked: bool
    cause: str
    reason: str
    run_id: str
    recorded_at: datetime


@dataclass(frozen=True)
class Refusal:
    """An interval whose data were refused; nothing of it was published.

    Attributes:
        rows: rows read, by table.
    """

    model: str
    interval: Interval
    run_id: str
    reasons: list[str]
    rows: dict[str, int]
    recorded_at: datetime


@dataclass(frozen=True)
class Overview:
    """Where all models stand, read at one moment, each by model; a model of which nothing is known is missing.

    Attributes:
        published: by dataset, where the newest published interval ends.
        champions: the promotion that made the champion.
        versions: the champion and the newest version, by number.
        approvals: the last answer to the newest version that anybody was asked about.
        refusals: the interval that was refused last.
        verdicts: on the newest windows, oldest first.
        performances: of the newest windows, oldest first.
        alerts: the recent ones and those that wait for delivery, oldest first.
    """

    published: dict[str, dict[str, datetime]]
    champions: dict[str, Promotion]
    versions: dict[str, dict[int, VersionRecord]]
    approvals: dict[str, Approval]
    refusals: dict[str, Refusal]
    verdicts: dict[str, list[Verdict]]
    performances: dict[str, list[Performance]]
    alerts: dict[str, list[OutboxEntry]]
