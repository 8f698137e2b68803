"""Where a prediction came from, and where a raw interval went: a tree of what the ledger says, backward or forward.

Pure: :class:`ModelHistory` is what the ledger tells of a model, read by :mod:`perennial.reports.traces`, and everything
here follows from it. Backward, a prediction leads to its version and to the features it read, features to the publications
of tables that were offered to ``features.sql``, those to files, and the version to its own training set. Forward, a raw
interval leads the same way down.

A reader of a snapshot sees, of each moment, the newest publication made before it that covers the moment. That is what
:meth:`History.standing` works out, so that a publication replaced in time has no part in what was made later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from perennial.core.intervals import Interval
from perennial.evidence.training import PARTS

if TYPE_CHECKING:
    from perennial.ledger.records import Head, Promotion, Publication, VersionRecord


#: The ledger's names of what leads from raw rows to features. Whatever else names the features it read is predictions.
TABLES, FEATURES = "tables", "features"


@dataclass(frozen=True)
class Node:
    """Something that was made, and what it was made from (or what was made from it).

    Attributes:
        kind: ``prediction``, ``version``, ``training set``, ``features``, ``table``, ``publication``, ``file``,
            ``interval`` or ``missing``, which stands for what should be known and is not.
        name: of it, for people.
        facts: what is known of it, plain values.
        leads_to: the next ones.
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
        """All nodes of a kind, itself included, in the order of the tree."""
        return [*([self] if self.kind == kind else []), *(found for node in self.leads_to for found in node.find(kind))]


def _missing(words: str) -> Node:
    return Node("missing", words)


@dataclass(frozen=True)
class PredictionRow:
    """One published prediction.

    Attributes:
        key: of the entity, by column.
        event_time, as_of: its moments.
        value: what was predicted.
        version, features_snapshot, run_id, predicted_at: as it was recorded with it.
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
    """What the ledger tells of one model, as far as lineage needs it.

    Attributes:
        model: its name.
        publications: by dataset, oldest first.
        revisions: by dataset, oldest first.
        versions, promotions: oldest first.
        sources: source by table.
        timeless: tables without event time, which are replaced as a whole.
        lookback: how far before an interval features may look, for features that did not record what they read.
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
        """The newest publication that a reader of a table's snapshot sees; None if no reader was ever sent there."""
        seen = [head.publication_id for head in self.revisions.get(dataset, ()) if head.snapshots.get(table) == snapshot]
        return max(seen, default=None)

    def standing(self, dataset: str, table: str, within: Interval, upto: int | None = None) -> list[Publication]:
        """Publications of which a reader sees something within an interval, oldest first.

        Args:
            dataset: the dataset.
            table: a table of it.
            within: what is read.
            upto: the newest publication that the reader sees; None: all there are.
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
        """Whose event times lie in it was offered to ``features.sql``."""
        recorded = features.inputs.get("reads")
        if recorded:
            return Interval.from_key(recorded)
        return Interval(features.interval.start - self.lookback, features.interval.end)

    def lookback_of(self, features: Publication) -> timedelta:
        """How far before a day its features could look."""
        return features.interval.start - self.read_by(features).start

    def tables_of(self, features: Publication, within: Interval | None = None) -> dict[str, list[Publication]]:
        """By table, the publications that features were made from.

        Args:
            features: their publication.
            within: leave out what was offered outside; tables without event time are offered whole.
        """
        upto, offered = features.inputs.get("publication"), self.read_by(features)
        span = offered if within is None else _common(offered, within)
        if upto is None or span is None:
            return {}
        return {table: self.standing(TABLES, table, span, upto) for table in features.inputs.get("tables", {})}

    def version(self, number: int) -> VersionRecord | None:
        return next((record for record in self.versions if record.version == number), None)

    def scored(self) -> list[tuple[str, Publication]]:
        """Publications of predictions, those in the shadow too, each with its dataset; oldest first."""
        found = [
            (dataset, made)
            for dataset, all_made in self.publications.items()
            if dataset not in (TABLES, FEATURES)
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


def trace_back(history: ModelHistory, prediction: PredictionRow) -> Node:
    """From a prediction to the files it came from, and to what its version learned from."""
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
        return _missing(f"version {prediction.version}, of which the ledger knows nothing")
    made = [one for one in history.promotions if one.version == record.version and one.completed_at is not None]
    before = [one for one in made if one.completed_at is not None and one.completed_at <= prediction.predicted_at]
    why = f"{before[-1].action} by {before[-1].actor}: {before[-1].reason}" if before else "never, by then"
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
    """What a version learned from and was judged on: publications of features, and of the tables with labels, and files."""
    training, pinned = record.training, record.training.snapshots
    if not pinned:
        return _missing(f"the training set of version {record.version}, which was recorded without snapshots")
    window, holdout = training.interval("window"), training.interval("holdout")
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
    children.append(_together("table", "tables of which all that was made", raw, files))
    return Node(
        "training set",
        f"{training.rows.get('window', 0):,} rows of {training.window}, judged on {training.rows.get('holdout', 0):,} of "
        f"{training.holdout}",
        {"content": training.content, "snapshots": pinned, "run": training.run_id},
        tuple(children),
    )


def _pinned(
    history: ModelHistory, dataset: str, table: str, snapshot: int | None, within: Interval
) -> list[Publication] | None:
    upto = None if snapshot is None else history.publication_at(dataset, table, snapshot)
    return None if upto is None else history.standing(dataset, table, within, upto)


def _together(kind: str, what: str, made: Sequence[Publication] | None, leads_to: Sequence[Node] = ()) -> Node:
    """Many publications as one node: a version may have learned from a hundred."""
    if not made:
        return _missing(f"which publications of {what} it was: the ledger knows no reader of the snapshot")
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
    found = _pinned(history, FEATURES, FEATURES, snapshot, moment)
    if not found:
        return _missing(f"the features at snapshot {snapshot}: the ledger knows no reader of it")
    features = found[-1]
    offered = history.read_by(features)
    # Each day looks back for itself, see _touched. Later rows of the day may have been known already, as schedules are.
    day = _day(prediction.event_time)
    span = Interval(day.start - history.lookback_of(features), day.end)
    by_table = history.tables_of(features, span)
    tables = [_table(history, table, made, span) for table, made in by_table.items()]
    if not tables:
        tables = [_missing("the tables they were made from: the publication does not say")]
    facts = {
        "snapshot": snapshot,
        "publication": features.id,
        "run": features.run_id,
        "published_at": features.published_at.isoformat(),
        "content": features.hashes.get(FEATURES),
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
        children = [_missing("what it was read from: it was published before that was recorded")]
    elif not files:
        children = [_missing(f"files: the source {source} is SQL or Python, or brought no file for this time")]
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
    """Files that publications were read from, each once, in the order of their names."""
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
    """From a raw interval to all that may have been made from its rows."""
    made = [one for one in history.publications.get(TABLES, ()) if one.interval.overlaps(interval)]
    children = [_onward(history, one, interval) for one in made]
    return Node(
        "interval",
        f"raw rows of {interval}",
        {},
        tuple(children) or (_missing(f"nothing of {interval} was ever published"),),
    )


def _onward(history: ModelHistory, raw: Publication, interval: Interval) -> Node:
    """What was made from the rows that a publication brought for an interval."""
    part = _common(raw.interval, interval)
    assert part is not None  # the caller chose it by that
    now = any(raw in history.standing(TABLES, table, part) for table in raw.rows)
    children = [
        _readers(history, features, span)
        for features in history.publications.get(FEATURES, ())
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
    """The part of a publication of features that may have been made from what another brought for a part of its interval.

    Returns:
        None if it had no part in any of them. Tables without event time are not of any interval, see :func:`_whole_tables`.
    """
    fed = history.tables_of(features, part)
    if not any(raw in made for table, made in fed.items() if table not in history.timeless):
        return None
    # Features of a day are the same whether it is computed alone or in a year, so each day looks back for itself.
    return _common(features.interval, Interval(_day(part.start).start, part.end + history.lookback_of(features)))


def _whole_tables(history: ModelHistory, raw: Publication) -> list[Node]:
    """Tables without event time that came with a publication, and which features they were offered to, whole."""
    by_table = {
        table: [one.id for one in history.publications.get(FEATURES, ()) if raw in history.tables_of(one).get(table, ())]
        for table in sorted(history.timeless & raw.rows.keys())
    }
    return [
        Node("table", f"{table}, which has no event time and was offered whole", {"features": ids})
        for table, ids in by_table.items()
        if ids
    ]


def _readers(history: ModelHistory, features: Publication, span: Interval) -> Node:
    """Who read a part of a publication of features: versions that learned from it, predictions that were made from it."""
    learners = []
    for record in history.versions:
        snapshot = record.training.snapshots.get(FEATURES)
        if parts := _parts_that_saw(history, record, FEATURES, FEATURES, snapshot, features, span):
            learners.append(_learner(history, record, f"features, for its {' and '.join(parts)}"))
    scored = [
        _predictions(dataset, made)
        for dataset, made in history.scored()
        if _saw(history, FEATURES, FEATURES, made.inputs.get("features"), features, made.interval, span)
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


def _saw(
    history: ModelHistory, dataset: str, table: str, snapshot: int | None, made: Publication, read: Interval, span: Interval
) -> bool:
    """Whether a reader of an interval at a snapshot saw a publication within a span."""
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
    """The parts of a version's training set that took keys or labels from what a publication brought."""
    pinned = {table: snapshot for table, snapshot in record.training.snapshots.items() if table != FEATURES}
    found = [_parts_that_saw(history, record, TABLES, table, snapshot, raw, part) for table, snapshot in pinned.items()]
    return [name for name in ("window", "holdout") if any(name in parts for parts in found)]


def _learner(history: ModelHistory, record: VersionRecord, took: str) -> Node:
    """A version that took something of what is traced, and all that it predicted."""
    scored = [made for _, made in history.scored() if record.version in _versions(made)]
    facts: dict[str, Any] = {
        "took": took,
        "window": record.training.window,
        "holdout": record.training.holdout,
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
    """Who predicted: the champion of the time, or the several versions in its shadow."""
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
