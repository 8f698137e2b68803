"""Lineage as a tree: backward, what a prediction was made from; forward, what was made from a raw interval.

The functions are pure. :class:`ModelHistory` holds the ledger's records of a model, which :mod:`perennial.reports.traces`
reads, and the tree follows from it. Backward, a prediction leads to its version and to the features it read. Features lead to
the publications of tables that ``features.sql`` could read, and these lead to files. The version leads to its training set.
Forward, the same links are followed in the other direction.

At each moment of event time, a reader of a snapshot sees the newest publication that covers the moment and was made before the
snapshot. :meth:`ModelHistory.standing` finds these publications, so a publication that had been replaced before is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from perennial.core.intervals import Interval
from perennial.evidence.training import PARTS
from perennial.features.published import is_features

if TYPE_CHECKING:
    from perennial.ledger.records import Head, Promotion, Publication, VersionRecord


#: The ledger's names of the datasets before predictions. Any other dataset whose publications name features has predictions.
TABLES, FEATURES = "tables", "features"


@dataclass(frozen=True)
class Node:
    """A node of the tree.

    Attributes:
        kind: ``prediction``, ``version``, ``training set``, ``features``, ``table``, ``publication``, ``file``,
            ``interval``, or ``missing`` for something that should be known and is not.
        name: a name for people.
        facts: the recorded facts as plain values.
        leads_to: the children: backward, what it was made from; forward, what was made from it.
    """

    kind: str
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    leads_to: tuple[Node, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            **({"facts": dict(self.facts)} if self.facts else {}),
            **({"leads_to": [node.to_json() for node in self.leads_to]} if self.leads_to else {}),
        }

    def find(self, kind: str) -> list[Node]:
        """All nodes of a kind in this tree, including this node, in the order of the tree."""
        return [*([self] if self.kind == kind else []), *(found for node in self.leads_to for found in node.find(kind))]


def _missing(words: str) -> Node:
    return Node("missing", words)


@dataclass(frozen=True)
class PredictionRow:
    """One published prediction.

    Attributes:
        key: the entity's key, by column.
        event_time: the entity's event time.
        as_of: the time as of which its features were known.
        value: the prediction.
        version, features_snapshot, run_id, predicted_at: as recorded in the same row.
    """

    key: Mapping[str, Any]
    event_time: datetime
    as_of: datetime
    value: Any
    version: int
    features_snapshot: int
    run_id: str
    predicted_at: datetime


@dataclass(frozen=True)
class ModelHistory:
    """The ledger's records of one model that lineage needs.

    Attributes:
        model: the model's name.
        publications: by dataset, oldest first.
        revisions: by dataset, oldest first.
        versions, promotions: oldest first.
        sources: by table, the name of its source.
        timeless: tables without event time, which are replaced as a whole.
        lookback: how far before an interval features may look; used if a publication of features did not record it.
    """

    model: str
    publications: Mapping[str, Sequence[Publication]]
    revisions: Mapping[str, Sequence[Head]]
    versions: Sequence[VersionRecord]
    promotions: Sequence[Promotion]
    sources: Mapping[str, str]
    timeless: frozenset[str]
    lookback: timedelta

    def publication_at(self, dataset: str, table: str, snapshot: int) -> int | None:
        """The number of the newest publication that a reader of a table's snapshot sees.

        None if the snapshot was never in a revision.
        """
        seen = [head.publication_id for head in self.revisions.get(dataset, ()) if head.snapshots.get(table) == snapshot]
        return max(seen, default=None)

    def standing(self, dataset: str, table: str, within: Interval, upto: int | None = None) -> list[Publication]:
        """The publications that a reader sees, whole or in part, within an interval; oldest first.

        Args:
            dataset: the dataset.
            table: a table of the dataset.
            within: the interval that is read.
            upto: number of the newest publication that the reader sees; None: the reader sees all.
        """
        candidates = [
            made for made in self.publications.get(dataset, ()) if table in made.rows and (upto is None or made.id <= upto)
        ]
        if table in self.timeless:
            return [max(candidates, key=lambda made: (made.interval.end, made.order))] if candidates else []
        uncovered, found = [within], []
        for made in reversed(candidates):
            if any(made.interval.overlaps(part) for part in uncovered):
                found.append(made)
                uncovered = [rest for part in uncovered for rest in _without(part, made.interval)]
        return found[::-1]

    def read_by(self, features: Publication) -> Interval:
        """The interval of event times whose rows ``features.sql`` could read."""
        recorded = features.inputs.get("reads")
        if recorded:
            return Interval.from_key(recorded)
        return Interval(features.interval.start - self.lookback, features.interval.end)

    def lookback_of(self, features: Publication) -> timedelta:
        """How far before a day the features of that day could look."""
        return features.interval.start - self.read_by(features).start

    def tables_of(self, features: Publication, within: Interval | None = None) -> dict[str, list[Publication]]:
        """By table, the publications that features were made from.

        Args:
            features: the publication of the features.
            within: leave out rows outside this interval; tables without event time are always read whole.
        """
        upto, offered = features.inputs.get("publication"), self.read_by(features)
        span = offered if within is None else _common(offered, within)
        if upto is None or span is None:
            return {}
        return {table: self.standing(TABLES, table, span, upto) for table in features.inputs.get("tables", {})}

    @property
    def features(self) -> list[str]:
        """The datasets of features: those of the folder as it is now, and of versions that have others."""
        return sorted(dataset for dataset in self.publications if is_features(dataset))

    def version(self, number: int) -> VersionRecord | None:
        return next((record for record in self.versions if record.version == number), None)

    def scored(self) -> list[tuple[str, Publication]]:
        """Publications of predictions, including those in the shadow, each with its dataset; oldest first."""
        found = [
            (dataset, made)
            for dataset, all_made in self.publications.items()
            if dataset != TABLES and not is_features(dataset)
            for made in all_made
            if "features" in made.inputs
        ]
        return sorted(found, key=lambda pair: pair[1].id)


def _without(interval: Interval, cut: Interval) -> list[Interval]:
    """The parts of an interval that lie outside another."""
    if not interval.overlaps(cut):
        return [interval]
    parts = [(interval.start, min(cut.start, interval.end)), (max(cut.end, interval.start), interval.end)]
    return [Interval(start, end) for start, end in parts if start < end]


def _day(moment: datetime) -> Interval:
    return Interval.day(moment.replace(hour=0, minute=0, second=0, microsecond=0))


def _common(one: Interval, other: Interval) -> Interval | None:
    return Interval(max(one.start, other.start), min(one.end, other.end)) if one.overlaps(other) else None


# --- backward --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestRow:
    """One row of a request that was asked online.

    Attributes:
        request_id, row: which.
        asked_at: when.
        form: how it was asked.
        version: the version that answered.
        role: ``champion`` or ``challenger``; or ``shadow``, whose answer nobody got.
        value: what it answered.
        event_time, as_of, features_snapshot: of its entity and its features, as far as they are known.
        came: how each feature came.
        features: the features that were served.
        published: whether it is in the lake already.
    """

    request_id: str
    row: int
    asked_at: datetime
    form: str
    version: int
    role: str
    value: Any
    event_time: datetime | None
    as_of: datetime | None
    features_snapshot: int | None
    came: Mapping[str, Sequence[str]]
    features: Mapping[str, Any]
    published: bool


def trace_request(history: ModelHistory, rows: Sequence[RequestRow]) -> Node:
    """The tree from a request to the version that answered it, and to what its features were made from."""
    first = rows[0]
    facts = {"asked_at": first.asked_at.isoformat(), "form": first.form}
    return Node("request", f"request {first.request_id}", facts, tuple(_row_of(history, row) for row in rows))


def _row_of(history: ModelHistory, row: RequestRow) -> Node:
    facts = {
        "role": row.role,
        "value": row.value,
        "event_time": None if row.event_time is None else row.event_time.isoformat(),
        "as_of": None if row.as_of is None else row.as_of.isoformat(),
        **{how: list(names) for how, names in row.came.items() if names},
        "features": dict(row.features),
        "published": row.published,
    }
    moment = row.event_time or row.asked_at
    its = PredictionRow({}, moment, row.as_of or moment, row.value, row.version, row.features_snapshot or 0, "", row.asked_at)
    children = [_version_of(history, its)]
    if row.features_snapshot is not None and row.event_time is not None:
        children.append(_features_of(history, its))
    return Node("prediction", f"row {row.row}", facts, tuple(children))


def trace_back(history: ModelHistory, prediction: PredictionRow) -> Node:
    """The tree from a prediction to the files it was made from, and to the training set of its version."""
    return Node(
        "prediction",
        ", ".join(str(value) for value in prediction.key.values()),
        {
            "value": prediction.value,
            "event_time": prediction.event_time.isoformat(),
            "as_of": prediction.as_of.isoformat(),
            "predicted_at": prediction.predicted_at.isoformat(),
            "run": prediction.run_id,
        },
        (_version_of(history, prediction), _features_of(history, prediction)),
    )


def _version_of(history: ModelHistory, prediction: PredictionRow) -> Node:
    record = history.version(prediction.version)
    if record is None:
        return _missing(f"version {prediction.version}, which is not in the ledger")
    made = [one for one in history.promotions if one.version == record.version and one.completed_at is not None]
    before = [one for one in made if one.completed_at is not None and one.completed_at <= prediction.predicted_at]
    why = f"{before[-1].action} by {before[-1].actor}: {before[-1].reason}" if before else "not before this prediction"
    return Node(
        "version",
        f"version {record.version}",
        {
            "candidate": record.training.candidate,
            "mlflow_run": record.mlflow_run_id,
            "commit": record.code.commit,
            "became_champion": why,
        },
        (training_set(history, record),),
    )


def training_set(history: ModelHistory, record: VersionRecord) -> Node:
    """The training set and holdout of a version: publications of features and of the tables with labels, and files."""
    training, pinned = record.training, record.training.snapshots
    if not pinned:
        return _missing(f"the training set of version {record.version}, which was recorded without snapshots")
    window, holdout, refit = training.interval("window"), training.interval("holdout"), record.evaluation.refit
    whole = Interval(min(window.start, holdout.start), max(window.end, holdout.end))
    learned = _pinned(history, FEATURES, FEATURES, pinned.get(FEATURES), whole)
    children, fed = [_together("features", "features", learned)], {}
    for features in learned or ():
        fed.update({made.id: made for its in history.tables_of(features, history.read_by(features)).values() for made in its})
    for table in sorted(set(pinned) - {FEATURES}):
        labels = _pinned(history, TABLES, table, pinned[table], whole)
        children.append(_together("table", f"{table}, for keys and labels", labels))
        fed.update({made.id: made for made in labels or ()})
    raw = [fed[number] for number in sorted(fed)]
    files = [Node("file", file["name"], file) for file in _files_of(raw)]
    children.append(_together("table", "tables that these were made from", raw, files))
    return Node(
        "training set",
        f"{training.rows.get('window', 0):,} rows of {training.window}, judged on {training.rows.get('holdout', 0):,} of "
        f"{training.holdout}{_served(record)}",
        {
            "content": training.content if refit is None else {**training.content, "refit": refit.content},
            "snapshots": pinned,
            "run": training.run_id,
            **({"withheld": training.withheld} if training.withheld else {}),
        },
        tuple(children),
    )


def _served(record: VersionRecord) -> str:
    refit = record.evaluation.refit
    return "" if refit is None else f"; it serves a refit on {refit.rows:,} rows of {refit.interval}"


def _pinned(
    history: ModelHistory, dataset: str, table: str, snapshot: int | None, within: Interval
) -> list[Publication] | None:
    upto = None if snapshot is None else history.publication_at(dataset, table, snapshot)
    return None if upto is None else history.standing(dataset, table, within, upto)


def _together(kind: str, what: str, made: Sequence[Publication] | None, leads_to: Sequence[Node] = ()) -> Node:
    """Many publications as one node, because a version may have learned from hundreds."""
    if not made:
        return _missing(f"the publications of {what}: the ledger has no revision with the snapshot")
    first, last = min(one.interval for one in made), max(one.interval.end for one in made)
    several = f"{len(made)} publications" if len(made) > 1 else "1 publication"
    return Node(
        kind,
        f"{what}: {several} of {Interval(first.start, last).key}",
        {"publications": [one.id for one in made], "runs": sorted({one.run_id for one in made})},
        tuple(leads_to),
    )


def _features_of(history: ModelHistory, prediction: PredictionRow) -> Node:
    snapshot = prediction.features_snapshot
    moment = Interval(prediction.event_time, prediction.event_time + timedelta(microseconds=1))
    # The number of a snapshot is of one table only.
    found = [made for dataset in history.features for made in _pinned(history, dataset, dataset, snapshot, moment) or ()]
    if not found:
        return _missing(f"the features at snapshot {snapshot}: the ledger has no revision with the snapshot")
    features = found[-1]
    offered = history.read_by(features)
    # The lookback is counted from each day, see _touched. Later rows of the day are included, because some, such as schedules,
    # are known in advance.
    day = _day(prediction.event_time)
    span = Interval(day.start - history.lookback_of(features), day.end)
    by_table = history.tables_of(features, span)
    tables = [_table(history, table, made, span) for table, made in by_table.items()]
    if not tables:
        tables = [_missing("the tables they were made from: the publication did not record them")]
    facts = {
        "snapshot": snapshot,
        "publication": features.id,
        "run": features.run_id,
        "published_at": features.published_at.isoformat(),
        "content": features.hashes.get(features.dataset),
        "features_digest": features.inputs.get("features_digest"),
        "reads": offered.key,
    }
    return Node("features", f"features of {features.interval}", facts, tuple(tables))


def _table(history: ModelHistory, table: str, made: Sequence[Publication], span: Interval) -> Node:
    source = history.sources.get(table)
    within = None if table in history.timeless else span
    return Node(
        "table",
        table,
        {"source": source} if source else {},
        tuple(_publication(one, table, source, within) for one in made) or (_missing(f"{table} was never published"),),
    )


def _publication(made: Publication, table: str, source: str | None, within: Interval | None) -> Node:
    files = _files_of([made], source, within)
    if source is None:
        children = [_missing(f"the source of {table}, which model.yaml no longer names")]
    elif "files" not in made.inputs:
        children = [_missing("the files it was read from: it was published before that was recorded")]
    elif not files:
        children = [_missing(f"files: the source {source} is SQL or Python, or had no file for this time")]
    else:
        children = [Node("file", file["name"], file) for file in files]
    facts = {
        "publication": made.id,
        "run": made.run_id,
        "published_at": made.published_at.isoformat(),
        "rows": made.rows.get(table),
        "content": made.hashes.get(table),
    }
    return Node("publication", made.interval.key, facts, tuple(children))


def _files_of(made: Iterable[Publication], source: str | None = None, within: Interval | None = None) -> list[dict[str, Any]]:
    """The files that publications were read from, each once, in the order of their names."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in made:
        for name, files in one.inputs.get("files", {}).items():
            if source is not None and name != source:
                continue
            for file in files:
                period = file.get("period")
                if within is None or period is None or Interval.from_key(period).overlaps(within):
                    found[file["name"], file["sha256"]] = dict(file)
    return [found[key] for key in sorted(found)]


# --- forward ---------------------------------------------------------------------------------------------------------


def trace_forward(history: ModelHistory, interval: Interval) -> Node:
    """The tree from a raw interval to everything that may have been made from its rows."""
    made = [one for one in history.publications.get(TABLES, ()) if one.interval.overlaps(interval)]
    children = [_onward(history, one, interval) for one in made]
    return Node(
        "interval",
        f"raw rows of {interval}",
        {},
        tuple(children) or (_missing(f"publications: nothing of {interval} was ever published"),),
    )


def _onward(history: ModelHistory, raw: Publication, interval: Interval) -> Node:
    """The publication with what was made from its rows of an interval."""
    part = _common(raw.interval, interval)
    assert part is not None  # The caller passes only publications that overlap.
    now = any(raw in history.standing(TABLES, table, part) for table in raw.rows)
    children = [
        _readers(history, features, span)
        for dataset in history.features
        for features in history.publications[dataset]
        if (span := _touched(history, features, raw, part)) is not None
    ]
    children += [
        _learner(history, record, f"keys and labels, for its {' and '.join(parts)}")
        for record in history.versions
        if (parts := _labelled(history, record, raw, part))
    ]
    children += _whole_tables(history, raw)
    return Node(
        "publication",
        f"tables of {raw.interval}",
        {
            "publication": raw.id,
            "run": raw.run_id,
            "published_at": raw.published_at.isoformat(),
            "rows": dict(raw.rows),
            "standing": now,
            "files": [file["name"] for file in _files_of([raw], within=part)],
        },
        tuple(children) or (_missing("readers: nothing was made from it"),),
    )


def _touched(history: ModelHistory, features: Publication, raw: Publication, part: Interval) -> Interval | None:
    """The part of a publication of features that may have been made from the rows of ``raw`` in ``part``.

    Returns:
        That part; None if there is none. Tables without event time belong to no interval, see :func:`_whole_tables`.
    """
    fed = history.tables_of(features, part)
    if not any(raw in made for table, made in fed.items() if table not in history.timeless):
        return None
    # The features of a day are the same whether one day or a year is computed, so the lookback is counted from each day.
    return _common(features.interval, Interval(_day(part.start).start, part.end + history.lookback_of(features)))


def _whole_tables(history: ModelHistory, raw: Publication) -> list[Node]:
    """The tables without event time of a publication, each with the publications of features that could read it whole."""
    by_table = {
        table: [
            one.id
            for dataset in history.features
            for one in history.publications[dataset]
            if raw in history.tables_of(one).get(table, ())
        ]
        for table in sorted(history.timeless & raw.rows.keys())
    }
    return [
        Node("table", f"{table}, which has no event time and was read whole", {"features": ids})
        for table, ids in by_table.items()
        if ids
    ]


def _readers(history: ModelHistory, features: Publication, span: Interval) -> Node:
    """A part of a publication of features, with the versions that learned from it and the predictions made from it."""
    learners = []
    for record in history.versions:
        snapshot = record.training.snapshots.get(FEATURES)
        if parts := _parts_that_saw(history, record, FEATURES, FEATURES, snapshot, features, span):
            learners.append(_learner(history, record, f"features, for its {' and '.join(parts)}"))
    scored = [
        _predictions(dataset, made)
        for dataset, made in history.scored()
        if any(_saw(history, read, read, snapshot, features, made.interval, span) for read, snapshot in _features_read(made))
    ]
    return Node(
        "features",
        f"features of {span}" + ("" if span == features.interval else f", out of {features.interval}"),
        {
            "publication": features.id,
            "run": features.run_id,
            "published_at": features.published_at.isoformat(),
            "reads": history.read_by(features).key,
        },
        (*learners, *scored),
    )


def _features_read(made: Publication) -> list[tuple[str, int]]:
    """Dataset and snapshot of all features that predictions were made from; an earlier release had one dataset."""
    own = [(dataset, snapshot) for dataset, snapshot in made.inputs.get("own_features", ())]
    return [(made.inputs.get("features_dataset", FEATURES), made.inputs["features"]), *own]


def _saw(
    history: ModelHistory, dataset: str, table: str, snapshot: int | None, made: Publication, read: Interval, span: Interval
) -> bool:
    """Whether a reader of the interval ``read`` at a snapshot saw a publication within ``span``."""
    common = _common(read, span)
    return common is not None and made in (_pinned(history, dataset, table, snapshot, common) or ())


def _parts_that_saw(
    history: ModelHistory,
    record: VersionRecord,
    dataset: str,
    table: str,
    snapshot: int | None,
    made: Publication,
    span: Interval,
) -> list[str]:
    return [part for part in PARTS if _saw(history, dataset, table, snapshot, made, record.training.interval(part), span)]


def _labelled(history: ModelHistory, record: VersionRecord, raw: Publication, part: Interval) -> list[str]:
    """The parts of a version's training set that took keys or labels from a publication's rows in ``part``."""
    pinned = {table: snapshot for table, snapshot in record.training.snapshots.items() if table != FEATURES}
    found = [_parts_that_saw(history, record, TABLES, table, snapshot, raw, part) for table, snapshot in pinned.items()]
    return [name for name in ("window", "holdout") if any(name in parts for parts in found)]


def _learner(history: ModelHistory, record: VersionRecord, took: str) -> Node:
    """A version that learned from the traced rows, and everything it has predicted."""
    scored = [made for _, made in history.scored() if record.version in _versions(made)]
    facts: dict[str, Any] = {
        "took": took,
        "window": record.training.window,
        "holdout": record.training.holdout,
        "serves": record.learned_from,
        "promoted": any(one.version == record.version and one.completed_at is not None for one in history.promotions),
    }
    if scored:
        facts["predicted"] = {
            "publications": len(scored),
            "from": min(made.interval.start for made in scored).isoformat(),
            "until": max(made.interval.end for made in scored).isoformat(),
        }
    return Node("version", f"version {record.version}", facts)


def _versions(made: Publication) -> list[int]:
    """The versions that predicted: the champion of that time, or the versions in its shadow."""
    return list(made.inputs.get("versions") or [made.inputs.get("version")])


def _predictions(dataset: str, made: Publication) -> Node:
    return Node(
        "prediction",
        f"{dataset} of {made.interval}",
        {
            "publication": made.id,
            "versions": _versions(made),
            "rows": sum(made.rows.values()),
            "run": made.run_id,
            "published_at": made.published_at.isoformat(),
        },
    )
