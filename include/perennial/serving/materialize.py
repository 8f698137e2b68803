"""Fill the online table: the features of each entity that may be asked by key.

These are the entities of the newest published day, with the features that were published for them; and those whose event comes
within ``online.horizon``, with features as of now, or as of their own ``as_of`` if that is past. The latter are computed for
themselves, without the other entities of their day. So they are left out if a feature depends on which entities are asked
(:mod:`perennial.features.independence`).

Versions whose features are made by a folder of their own have rows of their own.

Neighbours: :mod:`perennial.serving.online_table` stores the rows; :mod:`perennial.stages.materialize` runs this.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from perennial.core.errors import SnapshotMissing, SpecError, Superseded, VersionUnusable
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.features.history import gaps_of_features, refuse_gaps
from perennial.features.point_in_time import compute, feature_schema, instant, with_as_of
from perennial.features.publish import ensure_features, find_dependences, visible_to
from perennial.features.published import DATASET, TABLES, published_tables, scan
from perennial.lake.publish import Lake
from perennial.ledger.records import Publication
from perennial.registry.folders import OwnFolder, computable, own_features, own_folder, published_features
from perennial.serving.online_table import Made, OnlineTable, Part
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Materialized:
    """What the online table holds of a model.

    Attributes:
        day: the newest published day, whose entities have rows.
        publication: the newest publication that the rows were made from.
        rows: by dataset of features, the number of rows; None if the rows of this publication, or of a newer one, are there.
        soon: by dataset of features, how many of them are of entities whose event comes within ``online.horizon``.
        dependent: features that depend on which entities are asked; if there are any, no row of such an entity is made.
    """

    model: str
    day: Interval
    publication: int
    rows: dict[str, int | None] = field(default_factory=dict)
    soon: dict[str, int] = field(default_factory=dict)
    dependent: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "day": self.day.key}


def newest_day(folder: ModelFolder, lake: Lake) -> Interval:
    """The newest day of which features are published.

    Raises:
        SnapshotMissing: no features are published yet.
    """
    published = lake.ledger.publications(folder.spec.name, DATASET)
    if not published:
        name = folder.spec.name
        raise SnapshotMissing(f"{name}: no features are published yet; run {name}.ingest for a range of past days first")
    end = max(one.interval.end for one in published)
    return Interval(end - _DAY, end)


def materialize(
    folder: ModelFolder, deployment: Deployment, *, versions: Sequence[int], now: datetime, run_id: str
) -> Materialized:
    """Fill the online table with the features of the present folder, and of versions that have a folder of their own.

    It can be repeated at any time. A run that began earlier, or that is slower, does not replace what a later one has made. If
    the rows of the newest publications are there, and no entity is to come, there is nothing to do.

    Args:
        folder: the model's folder.
        deployment: ledger, lake, registry, and the address of the predictions database.
        versions: those that may be asked. One that can never be used here again is left out.
        now: the time.
        run_id: the run.

    Raises:
        SnapshotMissing, SpecError, ScoringError: the features of the present folder cannot be made.
        Superseded: an entity is being erased, and this run may hold its rows; or another run makes the features.
        ServingError: the database refused the rows.
    """
    model, lake, ledger = folder.spec.name, deployment.lake, deployment.ledger
    if folder.spec.online is None:
        raise SpecError(f"{folder.path / 'model.yaml'}: there is no section online, so {model} is not asked by key; write one")
    online = OnlineTable(deployment.settings.predictions_url)
    erasures = {one.id for one in ledger.erasures(model)}
    day = newest_day(folder, lake)

    def refuse_erased() -> None:
        if new := {one.id for one in ledger.erasures(model)} - erasures:
            raise Superseded(
                f"{model}: this run started before erasure {min(new)} (perennial forget) and may hold erased rows. It has "
                "written nothing. Start a new run"
            )

    served: dict[str, OwnFolder | None] = {DATASET: None}
    for version in versions:
        try:
            own = own_folder(deployment.registry, version, folder)
        except VersionUnusable as error:
            log.warning("version %d is left out: %s", version, error)
        else:
            served.setdefault(own.dataset, own)
    done = Materialized(
        model, day, max(head.publication_id for head in (ledger.head(model, name) for name in (TABLES, DATASET)))
    )
    kept = []
    for dataset, its_own in served.items():
        maker = folder if its_own is None else its_own.folder
        if _is_there(folder, maker, online, lake, dataset, now):
            done.rows[dataset] = None
            kept.append(maker)
            continue
        try:
            parts, made = _parts(folder, maker, its_own, online, lake, day, now=now, run_id=run_id)
        except VersionUnusable as error:
            log.warning("%s: left out: %s", dataset, error)
            continue
        done.rows[dataset] = online.replace(maker, parts, made, check=refuse_erased)
        done.soon[dataset] = sum(part.rows.num_rows for part in parts[1:])
        done.dependent.extend(name for name in made.dependent if name not in done.dependent)
        kept.append(maker)
    online.keep_only(model, kept)
    log.info("%s", done.to_json())
    return done


def _is_there(folder: ModelFolder, maker: ModelFolder, online: OnlineTable, lake: Lake, dataset: str, now: datetime) -> bool:
    """Whether the rows of a definition of features are those that would be made. The days of a range come one by one."""
    name, ledger = folder.spec.name, lake.ledger
    there = online.made(maker)
    newest = max(ledger.head(name, one).publication_id for one in (TABLES, dataset))
    # With entities to come, now or when the rows were made, they also depend on the time.
    if there is None or there.publication < newest or there.proved is not None:
        return False
    assert folder.spec.online is not None  # the caller has looked
    horizon = folder.spec.online.horizon
    tables = published_tables(folder, ledger)
    return horizon is None or not _has_entities(maker, lake, tables, Interval(now, now + horizon), now)


def _parts(
    folder: ModelFolder,
    maker: ModelFolder,
    own: OwnFolder | None,
    online: OnlineTable,
    lake: Lake,
    day: Interval,
    *,
    now: datetime,
    run_id: str,
) -> tuple[list[Part], Made]:
    """The rows of one definition of features: first those of the newest day, then those of entities to come."""
    spec, ledger = folder.spec, lake.ledger
    assert spec.online is not None  # the caller has looked
    tables = published_tables(folder, ledger)
    if own is None:
        ensure_features(folder, lake, day, run_id=run_id)
        dataset = DATASET
        snapshot = published_features(spec, lake, day, whole=False).snapshots[dataset]
    else:
        at = own_features(own, lake, day, run_id=run_id, whole=False)
        dataset, snapshot = at.dataset, at.snapshot
    source = ledger.publications(spec.name, dataset, day)[-1]
    schema = feature_schema(maker.spec)
    past = lake.scan(
        spec.name, dataset, snapshot, columns=schema.names, interval=day, event_time=spec.event_time
    ).read_all().cast(schema)  # fmt: skip
    soon, dependent, proved = None, list[str](), None
    within = Interval(now, now + spec.online.horizon) if spec.online.horizon is not None else None
    if within is not None and _has_entities(maker, lake, tables, within, now):
        before = online.made(maker)
        if before is not None and before.proved == source.id:
            dependent = before.dependent
        else:
            dependent = [one.feature for one in find_dependences(maker, lake, Interval(day.start - _DAY, day.end))]
        proved = source.id
        if dependent:
            log.warning(
                "%s: entities to come have no rows, since %s depend on which entities are asked; perennial check %s says how",
                spec.name,
                ", ".join(dependent),
                spec.name,
            )
        else:
            computed_by = maker if own is None else computable(own, lake, within)
            soon = _soon(computed_by, lake, tables, within, now)
            past = _without(past, soon, spec.entity_table.key)
    parts = [Part(past, source.published_at, _published_at(folder, lake, source), snapshot)]
    if soon is not None:
        parts.append(Part(soon, now, tables.published_at, tables.snapshots[spec.entity.table]))
    newest = max(tables.id, source.id, ledger.head(spec.name, dataset).publication_id)
    return parts, Made(newest, now, 0, proved, dependent)


def _published_at(folder: ModelFolder, lake: Lake, source: Publication) -> datetime:
    """When the tables were published that features were made from."""
    wanted = source.inputs.get("publication")
    for one in reversed(lake.ledger.publications(folder.spec.name, TABLES)):
        if one.id == wanted:
            return one.published_at
    return source.published_at


def _has_entities(folder: ModelFolder, lake: Lake, tables: Publication, within: Interval, now: datetime) -> bool:
    key, name = folder.spec.entity_table.key, folder.spec.entity.table
    with scan(folder, lake, name, tables.snapshots, columns=key, within=within, known_by=now) as rows:
        return any(batch.num_rows for batch in rows)


def _soon(folder: ModelFolder, lake: Lake, tables: Publication, within: Interval, now: datetime) -> pa.Table:
    """The features of entities whose event is to come, from what is known now."""
    as_of = f"least((\n{folder.spec.entity.as_of}\n)::TIMESTAMPTZ, {instant(now)})"
    given, visible = tables.snapshots, visible_to(folder, within)
    refuse_gaps(folder, gaps_of_features(folder, lake, given, within))
    rows = {name: scan(folder, lake, name, given, within=visible, known_by=now) for name in folder.feature_tables}
    with compute(with_as_of(folder, as_of), rows, within) as built:
        return built.reader().read_all()


def _without(rows: pa.Table, others: pa.Table, key: list[str]) -> pa.Table:
    """The rows whose key no other row has."""
    taken = set(zip(*(others[name].to_pylist() for name in key), strict=True))
    keys = zip(*(rows[name].to_pylist() for name in key), strict=True)
    return rows.filter(pa.array([one not in taken for one in keys], pa.bool_()))
