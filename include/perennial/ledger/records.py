"""The ledger's records: one frozen dataclass per kind.

Measurements and decisions have the types of :mod:`perennial.evidence`. If a row has none, the value is empty
(:attr:`perennial.evidence.plain.Evidence.is_empty`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

from perennial.alerts.outbox import OutboxEntry
from perennial.core.intervals import Interval, utc
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import Evaluation, GainOverChampion
from perennial.evidence.monitoring import Audit, Constant, Expectation
from perennial.evidence.parity import Parity
from perennial.evidence.training import CodeState, StoredModel, TrainingRecord
from perennial.evidence.verdict import VerdictDetails

VerdictName = Literal["ok", "drift", "unknown"]
Action = Literal["promote", "rollback", "adopt", "override", "refresh"]
Answer = Literal["approved", "refused", "expired"]
What = Literal["data", "refreshes"]


@dataclass(frozen=True)
class Publication:
    """A published interval of a dataset.

    Attributes:
        id: grows with each publication.
        model: the model.
        dataset: ``tables``, ``features`` or ``predictions``.
        interval: the published interval.
        order: rank of the run that published it, see :meth:`Ledger.next_order`.
        snapshots: by table, the Iceberg snapshot to read, for every table of the dataset, written or not.
        hashes: by table, a hash of its rows for the interval, or of all its rows if it has no event time. The order of rows
            and the files do not matter.
        rows: by table, the number of these rows.
        run_id: the run that published it.
        published_at: when it was published.
        inputs: what it was made from, as recorded by its writer.
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
        """Plain values, small enough to pass from task to task."""
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
        token: identifies the attempt. Only the attempt whose token is in the ledger may commit.
    """

    model: str
    dataset: str
    interval: Interval
    order: int
    run_id: str
    token: str


@dataclass(frozen=True)
class Head:
    """The newest revision of a dataset, which readers read.

    Attributes:
        revision: grows with each publication and each maintenance; 0 before the first.
        publication_id: the newest publication; 0 before the first.
        snapshots: as in :class:`Publication`.
    """

    revision: int
    publication_id: int
    snapshots: dict[str, int]


@dataclass(frozen=True)
class VersionRecord:
    """The record of a registered version.

    Attributes:
        model: the model.
        version: MLflow's number for it.
        mlflow_run_id: the run that logged it.
        spec_digest: :attr:`perennial.spec.folder.ModelFolder.digest` of the folder that it was trained with.
        features_digest: :attr:`perennial.spec.folder.ModelFolder.features_digest`.
        manifest: SHA-256 by path for every file of the model that was judged.
        training: the training set: snapshots, content hash, rows, window; the candidate and its parameters.
        evaluation: its metrics and slices, and those of the versions it was compared with.
        decision: the gates' decision.
        code: the commit, whether there were uncommitted changes, and the environment.
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

    @property
    def judged(self) -> StoredModel:
        """The model that was measured on the holdout. The version's metrics are its metrics."""
        return StoredModel(self.training.model_id, self.manifest)

    @property
    def served(self) -> StoredModel:
        """The model that predicts: the judged one, or that fitted again on newer rows."""
        return self.evaluation.refit.stored if self.evaluation.refit is not None else self.judged

    @property
    def is_refresh(self) -> bool:
        """Whether it is the recipe of the champion before it, fitted on newer rows."""
        return self.evaluation.refresh is not None

    @property
    def learned_from(self) -> str:
        """Key of the interval that the model that predicts learned from."""
        return self.evaluation.refit.interval if self.evaluation.refit is not None else self.training.window


@dataclass(frozen=True)
class Promotion:
    """A change of champion, intended or completed.

    Attributes:
        id: grows with each promotion.
        version: the new champion.
        previous: the champion that the decision was made against; None if there was none.
        action: ``promote``, ``rollback``, ``adopt`` (someone moved the alias in MLflow, and the ledger follows) or ``override``
            (a person promoted a version that the gates or an approver had refused), or ``refresh`` (the champion's recipe with
            newer rows).
        evidence: the evidence for the decision.
        completed_at: when the registry's alias had been moved; None before that.
        withdrawn_at: when the promotion was given up; None otherwise.
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
    """A person's answer to the question whether a version may become champion.

    Attributes:
        answer: ``approved``, ``refused``, or ``expired`` if nobody answered in time.
        approver: the person; None if the question expired.
        words: the person's comment.
        answered_at: the time of the answer, or of expiry.
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
        return f"{self.answer} by {self.approver}: {self.words or 'no comment'}"


@dataclass(frozen=True)
class Verdict:
    """Whether an interval drifted from what a version was trained on.

    Attributes:
        verdict: ``ok``, ``drift`` or ``unknown``.
        reasons: for people, the most important first.
        details: the measurements.
        report: where the report is stored; None if none could be made.
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
    """The performance of a version on an interval, measured after its labels became known.

    Attributes:
        metrics: by name.
        rows: the number of labelled predictions that were measured.
        coverage: the share of predictions whose label was known by ``as_of``, 0 to 1.
        as_of: labels that became known later are not used.
        constant: what the same answer for every row would have reached; empty in rows of earlier releases.
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
    constant: Constant


@dataclass(frozen=True)
class ShadowComparison:
    """A comparison of the champion with a version in its shadow, on the labelled rows that both predicted.

    Attributes:
        promotion_id: the promotion that made the champion.
        version: the version in the shadow.
        windows: the number of mature monitoring windows that were compared. There is one comparison per number.
        champion: the champion's version.
        interval: from the first to the last of these windows.
        outcome: ``champion_worse``, ``challenger_worse``, ``no_difference`` or ``unknown``.
        reason: the outcome in words and numbers.
        rows: the number of labelled rows that both predicted.
        metrics: by version, then by name.
        comparison: the gain and its bounds.
        as_of: labels that became known later are not used.
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
        asked: whether a training was requested.
        cause: ``drift`` or ``performance``; if no training was requested, why not.
        expectation: what a requested training was expected to gain.
        audit: what came of it.
    """

    model: str
    window_end: datetime
    asked: bool
    cause: str
    reason: str
    run_id: str
    recorded_at: datetime
    expectation: Expectation
    audit: Audit


@dataclass(frozen=True)
class ParityRecord:
    """The parity of a definition of features on a day.

    Attributes:
        definition: :attr:`perennial.spec.folder.ModelFolder.features_digest` of the features that were served.
        interval: the day that the served features are of.
        measured: what was measured.
    """

    model: str
    definition: str
    interval: Interval
    measured: Parity
    run_id: str
    recorded_at: datetime


def judged_or_newest(records: Iterable[ParityRecord]) -> ParityRecord | None:
    """The newest record with enough rows to be judged; without one, the newest.

    Args:
        records: the newest first.
    """
    found = list(records)
    return next((one for one in found if one.measured.is_judged), found[0] if found else None)


@dataclass(frozen=True)
class Refusal:
    """An interval whose data a run refused. The run published nothing of it.

    Attributes:
        rows: by table, the number of rows that were read.
    """

    model: str
    interval: Interval
    run_id: str
    reasons: list[str]
    rows: dict[str, int]
    recorded_at: datetime


@dataclass(frozen=True)
class Hold:
    """Something that is, or was, held back.

    Attributes:
        what: ``data`` of the interval, which nothing learns from; or all ``refreshes`` of the model.
        interval: the data; for refreshes, the days that showed that they do harm.
        version: the refresh that was refused or undone.
        reasons: why, for people.
        run_id: the run that decided.
        released_at, released_by, release_reason: when, by whom and why it was released; None while it is held back.
    """

    id: int
    model: str
    what: What
    interval: Interval
    version: int
    reasons: list[str]
    run_id: str
    held_at: datetime
    released_at: datetime | None
    released_by: str | None
    release_reason: str | None


@dataclass(frozen=True)
class Overview:
    """The state of all models, read at one moment. Each attribute maps a model to its value; a model without one is absent.

    Attributes:
        published: by dataset, the end of the newest published interval.
        champions: the promotion that made the champion.
        versions: the champion and the newest version, by number.
        approvals: the last answer on the newest version that had an approval.
        refusals: the interval that was refused last.
        verdicts: the verdicts on the newest windows, oldest first.
        performances: the performance on the newest windows, oldest first.
        alerts: recent alerts and alerts that wait for delivery, oldest first.
        publications: by dataset, the newest publications of tables, features and predictions, oldest first.
        requests: the newest decision by which monitoring asked for a training.
        holds: what is held back now, in the order of time.
        parities: what was measured of parity on the newest days, the newest first; empty unless it was asked for.
    """

    published: dict[str, dict[str, datetime]]
    champions: dict[str, Promotion]
    versions: dict[str, dict[int, VersionRecord]]
    approvals: dict[str, Approval]
    refusals: dict[str, Refusal]
    verdicts: dict[str, list[Verdict]]
    performances: dict[str, list[Performance]]
    alerts: dict[str, list[OutboxEntry]]
    publications: dict[str, dict[str, list[Publication]]]
    requests: dict[str, Retraining]
    holds: dict[str, list[Hold]]
    parities: dict[str, list[ParityRecord]]
