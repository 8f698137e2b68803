"""The ledger: the one place where it is decided what is published and what is champion.

A SQL database (SQLite embedded, PostgreSQL deployed) that holds publications, versions and promotions, verdicts,
performance, retraining requests, refusals, and alerts (:mod:`perennial.outbox`). Iceberg and MLflow cannot commit two things at
once; a row here can, so readers believe the ledger: an interval is published when a row of it says so
(:mod:`perennial.lake` writes it), and the champion is what its newest completed promotion says
(:mod:`perennial.registry` brings MLflow's alias in line).

Every method is one transaction. Writers of the same thing queue for a lock, so that what they read still holds when
they write.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from perennial import alerts, migrations, outbox
from perennial.alerts import Alert
from perennial.database import Database
from perennial.errors import ArtifactRejected, SchemaMismatch, StaleDecision, Superseded
from perennial.intervals import Interval, utc
from perennial.outbox import Outbox, OutboxEntry
from perennial.schema import insert
from perennial.schema import json_value as _json
from perennial.schema import metadata as metadata
from perennial.schema import number as _number
from perennial.schema import number_itself as _id
from perennial.schema import table as _table
from perennial.schema import text as _text
from perennial.schema import time as _time
from perennial.succession import in_force

VerdictName = Literal["ok", "drift", "unknown"]
Action = Literal["promote", "rollback", "adopt", "override"]
Answer = Literal["approved", "refused", "expired"]

# --- what the ledger tells -------------------------------------------------------------------------------------------


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
        spec_digest: :attr:`perennial.spec.ModelFolder.digest` of what it was trained by.
        features_digest: :attr:`perennial.spec.ModelFolder.features_digest`.
        manifest: SHA-256 by path for every file of the artifact.
        training: the training set: snapshots, content hash, rows, window.
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
    training: dict[str, Any]
    evaluation: dict[str, Any]
    decision: dict[str, Any]
    code: dict[str, Any]
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
    details: dict[str, Any]
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
        comparison: gain and bounds, see :class:`perennial.evidence.Comparison`.
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
    comparison: dict[str, Any]
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


# --- how it is stored ------------------------------------------------------------------------------------------------


_orders = _table(
    "orders",
    _id(),
    _text("model"), _text("dataset"), _time("start"), _time("end"), _text("run_id"),
    sa.UniqueConstraint("model", "dataset", "start", "end", "run_id"),
)  # fmt: skip

_claims = _table(
    "claims",
    _text("model", key=True), _text("dataset", key=True), _time("start", key=True), _time("end", key=True),
    _text("run_id", key=True),
    _text("token"), _time("claimed_at"),
)  # fmt: skip

_publications = _table(
    "publications",
    _id(),
    _text("model"), _text("dataset"), _time("start"), _time("end"),
    _number("order"), _text("run_id"), _time("published_at"),
    _json("snapshots"), _json("hashes"), _json("rows"), _json("inputs"),
    sa.Index("perennial_publications_by_time", "model", "dataset", "end"),
)  # fmt: skip

# What readers read, one row a change: publication or maintenance. The highest revision is now.
_revisions = _table(
    "revisions",
    _text("model", key=True), _text("dataset", key=True), _number("revision", key=True),
    _number("publication_id"), _json("snapshots"), _time("since"),
)  # fmt: skip

_versions = _table(
    "versions",
    _text("model", key=True), _number("version", key=True),
    _text("mlflow_run_id"), _text("spec_digest"), _text("features_digest"),
    _json("manifest"), _json("training"), _json("evaluation"), _json("decision"), _json("code"),
    _time("created_at"),
)  # fmt: skip

_promotions = _table(
    "promotions",
    _id(),
    _text("model"), _number("version"), _number("previous", null=True),
    _text("action"), _text("reason"), _text("actor"), _text("run_id", null=True), _json("evidence"),
    _time("intended_at"), _time("completed_at", null=True), _time("withdrawn_at", null=True),
    sa.UniqueConstraint("model", "run_id", "version"),
)  # fmt: skip

# Who is moving the alias, or died or fell asleep while doing so: MLflow does not tell who moved it.
_alias_moves = _table(
    "alias_moves",
    _id(),
    _text("model"), _number("version"), _number("promotion_id"), _time("began_at"),
)  # fmt: skip

_approvals = _table(
    "approvals",
    _text("model", key=True), _number("version", key=True), _time("answered_at", key=True),
    _text("answer"), _text("approver", null=True), _text("words"), _text("run_id"),
)  # fmt: skip

_verdicts = _table(
    "verdicts",
    _text("model", key=True), _time("start", key=True), _time("end", key=True),
    _number("version", null=True), _text("verdict"), _json("reasons"), _json("details"), _text("report", null=True),
    _text("run_id"), _time("recorded_at"),
)  # fmt: skip

_performances = _table(
    "performances",
    _text("model", key=True), _time("start", key=True), _time("end", key=True), _number("version", key=True),
    _json("metrics"), _number("rows"), sa.Column("coverage", sa.Double, nullable=False),
    _time("as_of"), _text("run_id"), _time("recorded_at"),
)  # fmt: skip

_shadow_comparisons = _table(
    "shadow_comparisons",
    _text("model", key=True), _number("promotion_id", key=True), _number("version", key=True), _number("windows", key=True),
    _number("champion"), _time("start"), _time("end"), _text("outcome"), _text("reason"), _number("rows"),
    _json("metrics"), _json("comparison"), _time("as_of"), _text("run_id"),
)  # fmt: skip

_retrainings = _table(
    "retrainings",
    _text("model", key=True), _time("window_end", key=True),
    sa.Column("asked", sa.Boolean, nullable=False), _text("cause"), _text("reason"), _text("run_id"), _time("recorded_at"),
)  # fmt: skip

_refusals = _table(
    "refusals",
    _text("model", key=True), _time("start", key=True), _time("end", key=True), _text("run_id", key=True),
    _json("reasons"), _json("rows"), _time("recorded_at"),
)  # fmt: skip

_T = TypeVar("_T")


def _now() -> datetime:
    return datetime.now(UTC)


def _as(kind: type[_T], row: Mapping[str, Any] | sa.RowMapping) -> _T:
    """A row as the dataclass of the same columns, its bounds made an interval."""
    values: dict[str, Any] = dict(row)
    if "start" in values:
        values["interval"] = Interval(values.pop("start"), values.pop("end"))
    return kind(**values)


_W = TypeVar("_W", Verdict, Performance)


def _by_model(found: Sequence[_W]) -> dict[str, list[_W]]:
    grouped: dict[str, list[_W]] = {}
    for one in sorted(found, key=lambda one: one.interval):
        grouped.setdefault(one.model, []).append(one)
    return grouped


def _newest(
    table: sa.Table, *order: sa.Column[Any], number: int = 1, where: sa.ColumnElement[bool] | None = None
) -> sa.Select[Any]:
    """Of each model the ``number`` rows that come last by ``order``."""
    rank = sa.func.row_number().over(partition_by=table.c.model, order_by=[column.desc() for column in order])
    ranked = sa.select(table, rank.label("rank"))
    if where is not None:
        ranked = ranked.where(where)
    rows = ranked.subquery()
    return sa.select(*(rows.c[column.name] for column in table.c)).where(rows.c.rank <= number)


def _matches(table: sa.Table, key: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in key.items()]


class Ledger:
    """The operational database.

    Holds no open connection between calls, so it may be shared by threads and survives a fork.

    Args:
        url: SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url, check=migrations.check)

    def migrate(self) -> None:
        """Bring the tables to what this code needs, see :mod:`perennial.migrations`. Several processes may call it at once.

        Raises:
            SchemaMismatch: a newer release has been here.
        """
        try:
            with self._database.reading():
                return
        except (SchemaMismatch, sa.exc.OperationalError):  # of an older release, or no such file yet
            with self._database.changing_tables() as connection:
                migrations.upgrade(connection)

    def migrate_own(self) -> None:
        """As :meth:`migrate`, but only where nobody else is at work: on SQLite. The tables of PostgreSQL, which many
        processes share, are left to the init job; the first use tells if that is missing."""
        if self._database.is_sqlite:
            self.migrate()

    # --- publications ------------------------------------------------------------------------------------------------

    def next_order(self, model: str, dataset: str, interval: Interval, run_id: str) -> int:
        """The rank of a run that is about to publish an interval; to be taken when the run starts to read its input.

        Of two runs that publish overlapping intervals, the one with the higher order wins whichever ends first. A run
        keeps its order when it asks again, so its retries do not overtake a run that started after it.
        """
        key = {"model": model, "dataset": dataset, "start": interval.start, "end": interval.end, "run_id": run_id}
        with self._database.writing("orders") as connection:
            found = connection.execute(sa.select(_orders.c.id).where(*_matches(_orders, key))).scalar_one_or_none()
            if found is None:
                found = connection.execute(sa.insert(_orders).values(key).returning(_orders.c.id)).scalar_one()
            return int(found)

    def claim(self, model: str, dataset: str, interval: Interval, *, order: int, run_id: str) -> Claim:
        """Take over a run's publishing of an interval from whatever attempt of it went before."""
        key = {"model": model, "dataset": dataset, "start": interval.start, "end": interval.end, "run_id": run_id}
        # Drawn, not counted: a claim that was revoked must not come back to life with the next one's number.
        token = uuid.uuid4().hex
        with self._database.writing(model, dataset) as connection:
            self._replace(connection, _claims, key, {"token": token, "claimed_at": _now()})
        return Claim(model, dataset, interval, order, run_id, token)

    def head(self, model: str, dataset: str) -> Head:
        """Where a dataset stands now."""
        with self._database.reading() as connection:
            return self._head(connection, model, dataset)

    def commit(
        self,
        claim: Claim,
        *,
        base: Head,
        snapshots: Mapping[str, int],
        hashes: Mapping[str, str],
        rows: Mapping[str, int],
        inputs: Mapping[str, Any],
    ) -> Publication | None:
        """Publish: from this row on, readers see ``snapshots``.

        Args:
            claim: the attempt's claim.
            base: the head that ``snapshots`` were derived from.
            snapshots: of every table of the dataset, those that were not written included.
            hashes: see :class:`Publication`.
            rows: see :class:`Publication`.
            inputs: see :class:`Publication`.

        Returns:
            The publication, or None if the dataset has moved on from ``base``: derive from the new head and try again.

        Raises:
            Superseded: another attempt of the run has claimed the interval, or a later run has published it.
        """
        model, dataset, interval = claim.model, claim.dataset, claim.interval
        with self._database.writing(model, dataset) as connection:
            self._check(connection, claim)
            head = self._head(connection, model, dataset)
            if head.revision != base.revision:
                return None
            published_at = _now()
            stored: dict[str, Any] = {
                "model": model, "dataset": dataset, "order": claim.order, "run_id": claim.run_id,
                "snapshots": dict(snapshots), "hashes": dict(hashes), "rows": dict(rows), "inputs": dict(inputs),
                "published_at": published_at,
            }  # fmt: skip
            number = connection.execute(
                sa.insert(_publications).values(**stored, start=interval.start, end=interval.end).returning(_publications.c.id)
            ).scalar_one()
            self._move(connection, model, dataset, Head(head.revision + 1, number, dict(snapshots)))
            for subject in outbox.open_subjects(connection, alerts.refused_data(model, dataset)):
                if interval.contains(Interval.from_key(subject.rpartition("/")[2])):
                    outbox.resolve(connection, subject, f"{interval.key} is published, by run {claim.run_id}.")
            return Publication(id=number, interval=interval, **stored)

    def check(self, claim: Claim) -> None:
        """Raise what :meth:`commit` would raise now, to spare an attempt that has lost already its work.

        Raises:
            Superseded: as in :meth:`commit`.
        """
        with self._database.reading() as connection:
            self._check(connection, claim)

    def move(self, model: str, dataset: str, *, base: Head, snapshots: Mapping[str, int]) -> bool:
        """Let readers read the same rows at other snapshots, as after a compaction.

        Returns:
            Whether it was done; False if the dataset has moved on from ``base``.
        """
        with self._database.writing(model, dataset) as connection:
            head = self._head(connection, model, dataset)
            if head.revision != base.revision or head.revision == 0:
                return False
            self._move(connection, model, dataset, Head(head.revision + 1, head.publication_id, dict(snapshots)))
            return True

    def published(self, model: str, dataset: str) -> Publication | None:
        """The newest publication of a dataset; its ``snapshots`` are what readers read. None before the first."""
        with self._database.reading() as connection:
            head = self._head(connection, model, dataset)
            row = connection.execute(
                sa.select(_publications).where(_publications.c.id == head.publication_id)
            ).mappings().one_or_none()  # fmt: skip
        # Maintenance moves the head and leaves the publication's own snapshots as they were.
        return None if row is None else _as(Publication, {**row, "snapshots": head.snapshots})

    def publications(self, model: str, dataset: str, interval: Interval | None = None) -> list[Publication]:
        """Publications of a dataset, oldest first, each with the snapshots it was published at.

        Args:
            model: the model.
            dataset: the dataset.
            interval: leave out those that do not overlap with it.
        """
        query = sa.select(_publications).where(_publications.c.model == model, _publications.c.dataset == dataset)
        if interval is not None:
            query = query.where(_publications.c.start < interval.end, _publications.c.end > interval.start)
        return self._list(Publication, query.order_by(_publications.c.id))

    def publications_after(self, number: int, limit: int) -> list[Publication]:
        """Publications of all models with a higher number than this one, at most ``limit`` of them, the lowest first.

        One with a lower number may become visible after one with a higher: whoever follows them looks back a little.
        """
        return self._list(
            Publication,
            sa.select(_publications).where(_publications.c.id > number).order_by(_publications.c.id).limit(limit),
        )

    def revisions(self, model: str, dataset: str) -> list[Head]:
        """Where a dataset has stood, oldest first: what readers were sent to by each publication and each maintenance."""
        query = sa.select(_revisions).where(_revisions.c.model == model, _revisions.c.dataset == dataset)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(_revisions.c.revision))
            return [Head(row.revision, row.publication_id, row.snapshots) for row in rows]

    def models(self) -> list[str]:
        """The models that anything was published, registered or promoted of."""
        query = sa.union(*(sa.select(table.c.model) for table in (_revisions, _versions, _promotions))).order_by("model")
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def datasets(self, model: str) -> list[str]:
        """The datasets of a model that something was published in."""
        query = sa.select(_revisions.c.dataset).where(_revisions.c.model == model).distinct().order_by(_revisions.c.dataset)
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def snapshots_since(self, model: str, dataset: str, since: datetime) -> dict[str, set[int]]:
        """By table, the snapshots that readers were sent to at ``since`` or later."""
        query = (
            sa.select(_revisions.c.snapshots, _revisions.c.since)
            .where(_revisions.c.model == model, _revisions.c.dataset == dataset)
            .order_by(_revisions.c.revision.desc())
        )
        found: dict[str, set[int]] = {}
        with self._database.reading() as connection:
            for row in connection.execute(query.execution_options(yield_per=100)):
                for table, snapshot in row.snapshots.items():
                    found.setdefault(table, set()).add(snapshot)
                # Readers were sent here until the revision after this one came.
                if row.since < since:
                    break
        return found

    def revoke_claims(self, model: str, before: datetime) -> None:
        """Let no attempt commit that claimed its interval before ``before``: what it wrote is about to be removed."""
        stale = (_claims.c.model == model, _claims.c.claimed_at < before)
        with self._database.reading() as connection:
            datasets = connection.execute(sa.select(_claims.c.dataset).where(*stale).distinct()).scalars().all()
        for dataset in datasets:
            # Under the lock that a commit holds while it looks for its claim.
            with self._database.writing(model, dataset) as connection:
                connection.execute(sa.delete(_claims).where(*stale, _claims.c.dataset == dataset))

    def latest(self, model: str, dataset: str, table: str) -> Publication | None:
        """Of the publications that hold ``table``, the one whose interval ends last, of several the highest in order."""
        query = (
            sa.select(_publications)
            .where(_publications.c.model == model, _publications.c.dataset == dataset)
            .order_by(_publications.c.end.desc(), _publications.c.order.desc(), _publications.c.id.desc())
        )
        with self._database.reading() as connection:
            for row in connection.execute(query.execution_options(yield_per=20)).mappings():
                if table in row["rows"]:
                    return _as(Publication, row)
        return None

    def _head(self, connection: sa.Connection, model: str, dataset: str) -> Head:
        row = connection.execute(
            sa.select(_revisions.c.revision, _revisions.c.publication_id, _revisions.c.snapshots)
            .where(_revisions.c.model == model, _revisions.c.dataset == dataset)
            .order_by(_revisions.c.revision.desc())
            .limit(1)
        ).one_or_none()
        return Head(0, 0, {}) if row is None else Head(row.revision, row.publication_id, row.snapshots)

    def _check(self, connection: sa.Connection, claim: Claim) -> None:
        model, dataset, interval = claim.model, claim.dataset, claim.interval
        key = {"model": model, "dataset": dataset, "start": interval.start, "end": interval.end, "run_id": claim.run_id}
        token = connection.execute(sa.select(_claims.c.token).where(*_matches(_claims, key))).scalar_one_or_none()
        if token != claim.token:
            raise Superseded(
                f"{model}: {dataset} of {interval}: another attempt of run {claim.run_id} has taken over, or this one was "
                "given up as dead; it has published nothing. If no other attempt is running, clear the task"
            )
        later = connection.execute(
            sa.select(_publications.c.run_id, _publications.c.start, _publications.c.end)
            .where(
                _publications.c.model == model,
                _publications.c.dataset == dataset,
                _publications.c.start < interval.end,
                _publications.c.end > interval.start,
                _publications.c.order > claim.order,
            )
            .limit(1)
        ).one_or_none()
        if later is not None:
            raise Superseded(
                f"{model}: {dataset} of {interval}: run {later.run_id}, which started after run {claim.run_id}, has published "
                f"{Interval(later.start, later.end)}; to publish this interval once more, start a new run for it"
            )

    def _move(self, connection: sa.Connection, model: str, dataset: str, head: Head) -> None:
        connection.execute(
            sa.insert(_revisions).values(
                model=model, dataset=dataset, revision=head.revision, publication_id=head.publication_id,
                snapshots=head.snapshots, since=_now(),
            )
        )  # fmt: skip

    # --- versions and promotions -------------------------------------------------------------------------------------

    def record_version(self, record: VersionRecord) -> None:
        """Record a version. Recording it again changes nothing that is recorded, and fills in what was empty.

        Raises:
            ArtifactRejected: the version is recorded with another run or other files, as when MLflow's database was
                replaced under the ledger and counts from 1 again.
        """
        key = {"model": record.model, "version": record.version}
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        with self._database.writing(record.model) as connection:
            row = connection.execute(sa.select(_versions).where(*_matches(_versions, key))).mappings().one_or_none()
            if row is None:
                connection.execute(sa.insert(_versions).values(values))
                return
            for name in ("mlflow_run_id", "manifest"):
                if row[name] and values[name] and row[name] != values[name]:
                    raise ArtifactRejected(
                        f"{record.model}: version {record.version} is recorded with another {name}: the registry does not "
                        "belong to this ledger. Restore the two from backups of the same time"
                    )
            if empty := {name: value for name, value in values.items() if value and not row[name]}:
                connection.execute(sa.update(_versions).where(*_matches(_versions, key)).values(empty))

    def record_decision(self, model: str, version: int, evaluation: Mapping[str, Any], decision: Mapping[str, Any]) -> bool:
        """Replace what a version was judged by, as when it is compared anew because the champion changed meanwhile.

        Returns:
            Whether it was done; False once the version was to be promoted, since that rested on the first word.
        """
        with self._database.writing(model) as connection:
            if self._promotions(connection, model, _promotions.c.version == version):
                return False
            connection.execute(
                sa.update(_versions)
                .where(_versions.c.model == model, _versions.c.version == version)
                .values(evaluation=dict(evaluation), decision=dict(decision))
            )
            return True

    def version(self, model: str, version: int) -> VersionRecord | None:
        """What is recorded of a version."""
        found = self._list(
            VersionRecord, sa.select(_versions).where(_versions.c.model == model, _versions.c.version == version)
        )
        return found[0] if found else None

    def versions(self, model: str) -> list[VersionRecord]:
        """All recorded versions of a model, oldest first."""
        return self._list(VersionRecord, sa.select(_versions).where(_versions.c.model == model).order_by(_versions.c.version))

    def intend_promotion(
        self,
        *,
        model: str,
        version: int,
        expected: int | None,
        action: Action,
        reason: str,
        actor: str,
        run_id: str | None,
        evidence: Mapping[str, Any],
    ) -> Promotion:
        """Say that a version is about to become champion; :meth:`complete_promotion` follows once the registry agrees.

        A run that says it again gets the same promotion back, whatever became of it.

        Args:
            model: the model.
            version: the new champion.
            expected: the champion the decision was made against; None if there was none.
            action: what kind of change it is.
            reason: for people.
            actor: who or what decided.
            run_id: the run that decided; None when a person did by hand.
            evidence: what the decision rested on.

        Raises:
            StaleDecision: the champion is not ``expected``, or another promotion is open.
        """
        with self._database.writing(model) as connection:
            if run_id is not None:
                same = self._promotions(connection, model, _promotions.c.run_id == run_id, _promotions.c.version == version)
                if same:
                    return same[0]
            if intents := self._promotions(
                connection, model, _promotions.c.completed_at.is_(None), _promotions.c.withdrawn_at.is_(None)
            ):
                raise StaleDecision(
                    f"{model}: version {version} cannot be promoted while the promotion of version {intents[0].version} "
                    f"(number {intents[0].id}) is open: complete or withdraw it first"
                )
            champion = self._champion(connection, model)
            if champion != expected:
                raise StaleDecision(
                    f"{model}: version {version} was decided against champion {expected or 'none'}, but the champion is "
                    f"{champion or 'none'}: decide again"
                )
            values = {
                "model": model, "version": version, "previous": expected, "action": action, "reason": reason,
                "actor": actor, "run_id": run_id, "evidence": dict(evidence), "intended_at": _now(),
                "completed_at": None, "withdrawn_at": None,
            }  # fmt: skip
            number = connection.execute(sa.insert(_promotions).values(values).returning(_promotions.c.id)).scalar_one()
            return Promotion(id=number, **values)  # type: ignore[arg-type]

    def complete_promotion(self, promotion_id: int, alert: Alert | None = None) -> None:
        """Say that the registry followed: the version is champion from now on. Saying it twice is the same as once.

        Raises:
            StaleDecision: there is no such promotion, or it was withdrawn.
        """
        self._close_promotion(promotion_id, "completed_at", alert)

    def withdraw_promotion(self, promotion_id: int) -> None:
        """Give up a promotion that cannot be completed, as when its version was deleted from the registry.

        Raises:
            StaleDecision: there is no such promotion, or it was completed.
        """
        self._close_promotion(promotion_id, "withdrawn_at", None)

    def _close_promotion(self, promotion_id: int, how: Literal["completed_at", "withdrawn_at"], alert: Alert | None) -> None:
        with self._database.reading() as connection:
            model = connection.execute(
                sa.select(_promotions.c.model).where(_promotions.c.id == promotion_id)
            ).scalar_one_or_none()
        if model is None:
            raise StaleDecision(f"there is no promotion {promotion_id}")
        with self._database.writing(model) as connection:
            row = connection.execute(sa.select(_promotions).where(_promotions.c.id == promotion_id)).mappings().one()
            other = "withdrawn_at" if how == "completed_at" else "completed_at"
            if row[other] is not None:
                raise StaleDecision(
                    f"{model}: promotion {promotion_id} of version {row['version']} was {other.removesuffix('_at')}"
                )
            if row[how] is None:
                connection.execute(sa.update(_promotions).where(_promotions.c.id == promotion_id).values({how: _now()}))
                if how == "completed_at":
                    for subject in (alerts.reign(model, "breaker"), alerts.reign(model, "shadow")):
                        outbox.resolve(connection, subject, f"Version {row['version']} is champion now ({row['action']}).")
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/promotion-{promotion_id}")

    def begin_move(self, promotion: Promotion, *, lease: timedelta) -> int | None:
        """Take the right to move the registry's alias to a promotion's version; one process at a time has it.

        Args:
            promotion: open or completed.
            lease: whoever took the right longer ago than this has died or sleeps, and others may take it.

        Returns:
            What :meth:`end_move` ends; None while another process has the right.

        Raises:
            StaleDecision: the promotion was withdrawn, or is no longer the newest.
        """
        model = promotion.model
        with self._database.writing(model) as connection:
            standing = self._promotions(connection, model, _promotions.c.withdrawn_at.is_(None))
            if not standing or standing[-1].id != promotion.id:
                raise StaleDecision(
                    f"{model}: promotion {promotion.id} of version {promotion.version} is not the newest any more"
                )
            now = _now()
            busy = sa.select(_alias_moves.c.id).where(_alias_moves.c.model == model, _alias_moves.c.began_at > now - lease)
            if connection.execute(busy.limit(1)).first() is not None:
                return None
            values = {"model": model, "version": promotion.version, "promotion_id": promotion.id, "began_at": now}
            return int(connection.execute(sa.insert(_alias_moves).values(values).returning(_alias_moves.c.id)).scalar_one())

    def end_move(self, model: str, move: int) -> None:
        """Give back what :meth:`begin_move` gave: the alias is where it belongs."""
        with self._database.writing(model) as connection:
            connection.execute(sa.delete(_alias_moves).where(_alias_moves.c.id == move))

    def unended_moves(self, model: str, since: datetime) -> set[int]:
        """Versions that a process has begun to move the alias to since then, and never said that it was done."""
        query = sa.select(_alias_moves.c.version).where(_alias_moves.c.model == model, _alias_moves.c.began_at > since)
        with self._database.reading() as connection:
            return set(connection.execute(query).scalars())

    def promotion(self, promotion_id: int) -> Promotion:
        """One promotion.

        Raises:
            StaleDecision: there is no such promotion.
        """
        found = self._list(Promotion, sa.select(_promotions).where(_promotions.c.id == promotion_id))
        if not found:
            raise StaleDecision(f"there is no promotion {promotion_id}")
        return found[0]

    def promotions(self, model: str) -> list[Promotion]:
        """All promotions of a model in their order, open and withdrawn ones too."""
        with self._database.reading() as connection:
            return self._promotions(connection, model)

    def champion_at(self, model: str, moment: datetime) -> Promotion | None:
        """Who was champion at a moment, and with it why, on what evidence, over which champion and by whom.

        Returns:
            The change that was in force; None before the first champion.
        """
        return in_force(self.promotions(model), utc(moment))

    def record_approval(self, approval: Approval) -> None:
        """Record what a person answered; the same answer twice is recorded once."""
        values = {field.name: getattr(approval, field.name) for field in fields(approval)}
        key = {name: values[name] for name in ("model", "version", "answered_at")}
        with self._database.writing(approval.model) as connection:
            self._replace(connection, _approvals, key, {name: values[name] for name in values if name not in key})

    def approvals(self, model: str, version: int | None = None) -> list[Approval]:
        """What people answered who were asked about the model's versions, or one of them, oldest first."""
        query = sa.select(_approvals).where(_approvals.c.model == model)
        if version is not None:
            query = query.where(_approvals.c.version == version)
        return self._list(Approval, query.order_by(_approvals.c.answered_at))

    def champion(self, model: str) -> int | None:
        """The champion's version; None if nothing was ever promoted."""
        with self._database.reading() as connection:
            return self._champion(connection, model)

    def _promotions(self, connection: sa.Connection, model: str, *where: sa.ColumnElement[bool]) -> list[Promotion]:
        query = sa.select(_promotions).where(_promotions.c.model == model, *where).order_by(_promotions.c.id)
        return [_as(Promotion, row) for row in connection.execute(query).mappings()]

    def _champion(self, connection: sa.Connection, model: str) -> int | None:
        # Only one promotion is open at a time, so the order of ids is the order of completion.
        return connection.execute(
            sa.select(_promotions.c.version)
            .where(_promotions.c.model == model, _promotions.c.completed_at.is_not(None))
            .order_by(_promotions.c.id.desc())
            .limit(1)
        ).scalar_one_or_none()

    # --- verdicts, performance, retraining, refusals -----------------------------------------------------------------

    def record_verdict(
        self,
        *,
        model: str,
        interval: Interval,
        version: int | None,
        verdict: VerdictName,
        reasons: Sequence[str],
        details: Mapping[str, Any],
        report: str | None,
        run_id: str,
        alert: Alert | None = None,
    ) -> None:
        """Record whether an interval drifted, in place of what was recorded for it before."""
        key = {"model": model, "start": interval.start, "end": interval.end}
        values = {
            "version": version, "verdict": verdict, "reasons": list(reasons), "details": dict(details), "report": report,
            "run_id": run_id, "recorded_at": _now(),
        }  # fmt: skip
        with self._database.writing(model) as connection:
            self._replace(connection, _verdicts, key, values)
            said = f"The verdict on {interval.key} is {verdict}."
            if verdict != "unknown":
                self._resolve_judged(connection, alerts.judged(model, "unknown"), interval, said)
            if verdict == "ok":
                self._resolve_judged(connection, alerts.judged(model, "drift"), interval, said)
                if alert is None:
                    self._resolve_judged(connection, alerts.judged(model, "performance"), interval, said)
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/{interval.key}/version-{version}")

    def verdicts(self, model: str, *, before: datetime | None = None, limit: int = 100) -> list[Verdict]:
        """Verdicts of a model, those on the newest intervals first.

        Args:
            model: the model.
            before: leave out intervals that end after this.
            limit: most that are returned.
        """
        query = sa.select(_verdicts).where(_verdicts.c.model == model)
        if before is not None:
            query = query.where(_verdicts.c.end <= before)
        return self._list(Verdict, query.order_by(_verdicts.c.end.desc(), _verdicts.c.start.desc()).limit(limit))

    def record_performance(
        self,
        *,
        model: str,
        interval: Interval,
        version: int,
        metrics: Mapping[str, float],
        rows: int,
        coverage: float,
        as_of: datetime,
        run_id: str,
    ) -> None:
        """Record how a version did on an interval, in place of what was recorded for the two before."""
        key = {"model": model, "start": interval.start, "end": interval.end, "version": version}
        values = {
            "metrics": dict(metrics), "rows": rows, "coverage": coverage, "as_of": as_of, "run_id": run_id,
            "recorded_at": _now(),
        }  # fmt: skip
        with self._database.writing(model) as connection:
            self._replace(connection, _performances, key, values)

    def performances(self, model: str) -> list[Performance]:
        """Realised performance of a model's versions, oldest interval first."""
        query = sa.select(_performances).where(_performances.c.model == model)
        return self._list(Performance, query.order_by(_performances.c.start, _performances.c.end, _performances.c.version))

    def record_shadow_comparison(self, record: ShadowComparison, alert: Alert | None = None) -> None:
        """Record what was seen of a champion and a version in its shadow; the first look at a number of windows stands.

        Args:
            record: what was seen.
            alert: what people are told of the pair, once.
        """
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        interval: Interval = values.pop("interval")
        with self._database.writing(record.model) as connection:
            connection.execute(
                insert(connection, _shadow_comparisons)
                .values(**values, start=interval.start, end=interval.end)
                .on_conflict_do_nothing(index_elements=["model", "promotion_id", "version", "windows"])
            )
            if alert is not None:
                key = f"{alert.kind}/{record.model}/promotion-{record.promotion_id}/version-{record.version}"
                outbox.record(connection, alert, key)

    def shadow_comparisons(
        self, model: str, *, promotion: int | None = None, version: int | None = None
    ) -> list[ShadowComparison]:
        """What was seen of champions and versions in their shadows, in the order of promotions, versions and looks.

        Args:
            model: the model.
            promotion: only in the shadow of the champion that this one made.
            version: only of this version.
        """
        table = _shadow_comparisons
        query = sa.select(table).where(table.c.model == model)
        if promotion is not None:
            query = query.where(table.c.promotion_id == promotion)
        if version is not None:
            query = query.where(table.c.version == version)
        return self._list(ShadowComparison, query.order_by(table.c.promotion_id, table.c.version, table.c.windows))

    def record_retraining(
        self,
        *,
        model: str,
        window_end: datetime,
        asked: bool,
        cause: str,
        reason: str,
        run_id: str,
        after: int | None = None,
        alert: Alert | None = None,
    ) -> Retraining:
        """Record whether monitoring asks for a retraining after a window.

        Args:
            model: the model.
            window_end: end of the window.
            asked, cause, reason: the decision.
            run_id: the run.
            after: how many decisions on other windows it was made in the knowledge of; None: that does not matter.
            alert: recorded with it, once for the same cause until a version is promoted.

        Returns:
            What stands: the first word on a window, whoever says another one later.

        Raises:
            StaleDecision: other windows were decided meanwhile, so cooldown and budget must be looked at again.
        """
        key = {"model": model, "window_end": utc(window_end)}
        values = {"asked": asked, "cause": cause, "reason": reason, "run_id": run_id, "recorded_at": _now()}
        with self._database.writing(model) as connection:
            row = connection.execute(sa.select(_retrainings).where(*_matches(_retrainings, key))).mappings().one_or_none()
            if row is not None:
                return _as(Retraining, row)
            if after is not None:
                made = connection.execute(
                    sa.select(sa.func.count()).select_from(_retrainings).where(_retrainings.c.model == model)
                ).scalar_one()
                if made != after:
                    raise StaleDecision(
                        f"{model}: {made - after} other windows were decided while that to {utc(window_end)} was: decide again"
                    )
            connection.execute(sa.insert(_retrainings).values(key | values))
            if alert is not None:
                champion = self._champion(connection, model)
                outbox.record(connection, alert, f"{alert.kind}/{model}/champion-{champion}")
            return _as(Retraining, key | values)

    def retrainings(self, model: str, since: datetime | None = None) -> list[Retraining]:
        """What was decided on retraining a model, oldest window first.

        Args:
            model: the model.
            since: leave out windows that end before this.
        """
        query = sa.select(_retrainings).where(_retrainings.c.model == model)
        if since is not None:
            query = query.where(_retrainings.c.window_end >= since)
        return self._list(Retraining, query.order_by(_retrainings.c.window_end))

    def record_refusal(
        self,
        *,
        model: str,
        interval: Interval,
        run_id: str,
        reasons: Sequence[str],
        rows: Mapping[str, int],
        alert: Alert | None = None,
    ) -> None:
        """Record that a run refused an interval's data, in place of what the run recorded for it before."""
        key = {"model": model, "start": interval.start, "end": interval.end, "run_id": run_id}
        values = {"reasons": list(reasons), "rows": dict(rows), "recorded_at": _now()}
        with self._database.writing(model) as connection:
            self._replace(connection, _refusals, key, values)
            if alert is not None:
                outbox.record(connection, alert, f"{alert.kind}/{model}/{interval.key}/{run_id}")

    def refusals(self, model: str) -> list[Refusal]:
        """Refused intervals of a model, oldest first."""
        query = sa.select(_refusals).where(_refusals.c.model == model)
        return self._list(Refusal, query.order_by(_refusals.c.start, _refusals.c.end, _refusals.c.recorded_at))

    # --- the outbox --------------------------------------------------------------------------------------------------

    @property
    def outbox(self) -> Outbox:
        """What those who send alerts work with."""
        return Outbox(self._database)

    def record_alert(self, alert: Alert, key: str | None = None) -> bool:
        """Put an alert into the outbox.

        Args:
            alert: what people are told.
            key: of the event; the same one is told once, until it is resolved. None: the alert's subject is told of once
                for as long as it is open, as befits what is found again at each look.

        Returns:
            Whether it was put there.
        """
        if key is None and alert.subject is None:
            raise ValueError(f"an alert without a key needs a subject: {alert.title}")
        with self._database.writing("outbox") as connection:
            if key is None and alert.subject is not None:
                if outbox.is_open(connection, alert.subject):
                    return False
                key = f"{alert.subject}/{_now().isoformat()}"
            return outbox.record(connection, alert, str(key))

    def resolve(self, subject: str, cause: str) -> bool:
        """Say that what was wrong is well again, to whom it was told; nothing happens if no alert of it is open.

        Args:
            subject: of the alerts, see :class:`perennial.alerts.Alert`.
            cause: what made it well, for people.

        Returns:
            Whether there was anything to resolve.
        """
        with self._database.reading() as connection:
            if not outbox.is_open(connection, subject):
                return False
        with self._database.writing("outbox") as connection:
            return outbox.resolve(connection, subject, cause)

    def open_subjects(self, topic: str) -> list[str]:
        """The subjects below ``topic``, or it itself, of which an alert is open."""
        with self._database.reading() as connection:
            return outbox.open_subjects(connection, topic)

    def alerts(self, *, since: datetime | None = None) -> list[OutboxEntry]:
        """All alerts, oldest first, and what has become of each; with ``since``, older ones only if they wait or are open."""
        with self._database.reading() as connection:
            return outbox.entries(connection, since=since)

    @staticmethod
    def _resolve_judged(connection: sa.Connection, topic: str, by: Interval, cause: str) -> None:
        """Resolve what was said of windows that ended no later than ``by``: an older window says nothing of a newer one."""
        for subject in outbox.open_subjects(connection, topic):
            if Interval.from_key(subject.rpartition("/")[2]).end <= by.end:
                outbox.resolve(connection, subject, cause)

    # --- all models at once ------------------------------------------------------------------------------------------

    def overview(self, *, windows: int, alerts_since: datetime) -> Overview:
        """Where all models stand; as many queries for a hundred models as for one.

        Args:
            windows: the newest monitoring windows of a model that are told of.
            alerts_since: leave out older alerts, unless they wait for delivery.
        """
        newest_version = sa.select(_versions.c.model, sa.func.max(_versions.c.version)).group_by(_versions.c.model)
        ends = sa.select(_publications.c.model, _publications.c.dataset, sa.func.max(_publications.c.end).label("end"))
        published: dict[str, dict[str, datetime]] = {}
        told: dict[str, list[OutboxEntry]] = {}
        with self._database.reading() as connection:
            for row in connection.execute(ends.group_by(_publications.c.model, _publications.c.dataset)):
                published.setdefault(row.model, {})[row.dataset] = row.end
            made = _newest(_promotions, _promotions.c.id, where=_promotions.c.completed_at.is_not(None))
            champions = {row["model"]: _as(Promotion, row) for row in connection.execute(made).mappings()}
            kept = {(model, promotion.version) for model, promotion in champions.items()}
            kept |= {(row[0], row[1]) for row in connection.execute(newest_version)}
            known = sa.select(_versions).where(sa.tuple_(_versions.c.model, _versions.c.version).in_(sorted(kept)))
            versions = [_as(VersionRecord, row) for row in connection.execute(known).mappings()]
            answered = connection.execute(_newest(_approvals, _approvals.c.version, _approvals.c.answered_at)).mappings()
            approvals = {row["model"]: _as(Approval, row) for row in answered}
            refused = connection.execute(_newest(_refusals, _refusals.c.recorded_at)).mappings()
            refusals = {row["model"]: _as(Refusal, row) for row in refused}
            judged = connection.execute(_newest(_verdicts, _verdicts.c.end, _verdicts.c.start, number=windows)).mappings()
            verdicts = [_as(Verdict, row) for row in judged]
            # A window in which the champion changed has a row for each version.
            measured = _newest(_performances, _performances.c.end, _performances.c.version, number=2 * windows)
            performances = [_as(Performance, row) for row in connection.execute(measured).mappings()]
            for entry in outbox.entries(connection, since=alerts_since):
                told.setdefault(entry.alert.model, []).append(entry)
        by_model: dict[str, dict[int, VersionRecord]] = {}
        for record in versions:
            by_model.setdefault(record.model, {})[record.version] = record
        return Overview(published, champions, by_model, approvals, refusals, _by_model(verdicts), _by_model(performances), told)

    # --- shared ------------------------------------------------------------------------------------------------------

    def _list(self, kind: type[_T], query: sa.Select[Any]) -> list[_T]:
        with self._database.reading() as connection:
            return [_as(kind, row) for row in connection.execute(query).mappings()]

    def _replace(self, connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        connection.execute(sa.delete(table).where(*_matches(table, key)))
        connection.execute(sa.insert(table).values({**key, **values}))
