"""The feature store: features computed from published tables, published by interval, kept up with ``features.sql``.

Neighbours: :mod:`perennial.point_in_time` runs the query; :mod:`perennial.leaks` looks for features that know too much;
:mod:`perennial.lake` holds tables and features; training, scoring and monitoring read what is published here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from operator import itemgetter

import duckdb
import pyarrow as pa

from perennial import leaks, logs
from perennial.casting import KNOWN, published_schema, quoted
from perennial.errors import SnapshotMissing, SpecError, Superseded
from perennial.intervals import Interval
from perennial.lake import Lake, TableWrite
from perennial.leaks import Leak
from perennial.ledger import Ledger, Publication
from perennial.point_in_time import WHOLE_TYPES, BuiltFeatures, blaming, compute, mentions, needed_tables, open_database
from perennial.spec import ModelFolder

__all__ = ["BuiltFeatures", "Leak", "build_features", "ensure_features", "find_leaks", "publish_features", "read_labels"]

log = logs.get(__name__)

#: The ledger's name for what is published here, and the table's name.
DATASET = "features"
#: The ledger's name for the raw tables, see :mod:`perennial.ingestion`, whose Great Expectations takes seconds to import.
TABLES = "tables"

#: Most days that are built again as one publication.
_MOST_DAYS = 31
_DAY = timedelta(days=1)


def build_features(
    folder: ModelFolder, lake: Lake, ledger: Ledger, interval: Interval, *, snapshots: Mapping[str, int] | None = None
) -> BuiltFeatures:
    """Compute the features of an interval's entities from the lake's tables, without publishing them.

    Args:
        folder: the model's.
        lake: holds the tables.
        ledger: says which snapshots are published.
        interval: whose event times lie in it is an entity.
        snapshots: by table, what to read instead of what is published now.

    Raises:
        SnapshotMissing: a table that the features need was not published, or lacks a column of the spec.
        SpecError: see :func:`perennial.point_in_time.compute`.
    """
    given = dict(snapshots) if snapshots is not None else _published_tables(folder, ledger).snapshots
    visible = visible_to(folder, interval)
    tables = {name: _scan(folder, lake, name, given, within=visible) for name in needed_tables(folder)}
    return compute(folder, tables, interval, snapshots={name: given[name] for name in tables})


def visible_to(folder: ModelFolder, interval: Interval) -> Interval:
    """Whose event times lie in it is offered to ``features.sql`` when it computes the features of an interval."""
    return Interval(interval.start - folder.spec.features.lookback, interval.end)


def publish_features(
    folder: ModelFolder, lake: Lake, ledger: Ledger, interval: Interval, *, order: int, run_id: str
) -> Publication:
    """Compute the features of an interval and publish them, in place of those that were published for it.

    Args:
        folder: the model's.
        lake: holds the tables.
        ledger: says which snapshots are published.
        interval: its days.
        order: from :meth:`perennial.ledger.Ledger.next_order`, taken when the run started.
        run_id: the run, the same for all its attempts.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
        Superseded: a later run has published an overlapping interval.
    """
    tables = _published_tables(folder, ledger)
    with build_features(folder, lake, ledger, interval, snapshots=tables.snapshots) as built:
        return lake.publish(
            model=folder.spec.name,
            dataset=DATASET,
            interval=interval,
            tables={DATASET: TableWrite(built.reader, folder.spec.event_time, built.schema)},
            order=order,
            run_id=run_id,
            inputs={
                "tables": built.snapshots,
                "features_digest": folder.features_digest,
                "publication": tables.id,
                "reads": visible_to(folder, interval).key,
            },
        )


def ensure_features(folder: ModelFolder, lake: Lake, ledger: Ledger, interval: Interval, *, run_id: str) -> list[Publication]:
    """Build again whatever features of an interval are not what the published tables and the model folder would give now.

    Those are the days that have tables and no features; whose features an earlier ``features.sql`` or spec made; and
    whose own tables, or those of the lookback before them, were published with other rows since. Days without tables stay
    without features. When nothing is amiss, nothing is read or written.

    Args:
        folder: the model's.
        lake: holds the tables.
        ledger: says what is published.
        interval: each day that it touches is looked at.
        run_id: the run on whose behalf it is done.

    Returns:
        What was published, in the order of time.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
        Superseded: later runs keep publishing features that are amiss themselves.
    """
    done = []
    refused: Superseded | None = None
    for stretch in _stretches(_outdated(folder, ledger, interval)):
        order = ledger.next_order(folder.spec.name, DATASET, stretch, run_id)
        try:
            done.append(publish_features(folder, lake, ledger, stretch, order=order, run_id=run_id))
        except Superseded as error:
            refused = error
    # Whoever came later has mostly done the same work.
    if refused is not None and _outdated(folder, ledger, interval):
        raise refused
    if done:
        log.info("features of %s: %d stretches of days were not up to date and are built again", interval, len(done))
    return done


def read_labels(
    folder: ModelFolder,
    lake: Lake,
    snapshots: Mapping[str, int],
    interval: Interval,
    *,
    as_of: datetime,
    entities: pa.Table | None = None,
) -> pa.Table:
    """The labels of an interval's entities, as far as they were known.

    If the label table's event time has the name of the entity table's, it means the same moment, and only the interval is
    read of it. Otherwise all of it is.

    Args:
        folder: the model's.
        lake: holds the tables.
        snapshots: by table, of the entity's and the label's table.
        interval: whose event times lie in it is an entity.
        as_of: only rows known by then are used.
        entities: those of the interval, if they are read already: their key and event time, and what else is to stand
            beside their labels.

    Returns:
        Entity key, event time (and what else ``entities`` have), ``label`` (boolean, text or double, as the task has it;
        never null), ``label_known_at``; ordered by event time and key, at most one row an entity.

    Raises:
        SnapshotMissing: a table was not published, or lacks a column of the spec.
        SpecError: ``label.sql`` cannot be computed, gives what the task has no use for, or an entity has several labels.
    """
    spec = folder.spec
    key, identity = spec.entity_table.key, list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))
    with closing(open_database()) as connection:
        if entities is None:
            entities = _scan(folder, lake, spec.entity.table, snapshots, columns=identity, within=interval).read_all()
        connection.register("_entities", entities)
        same_time = spec.label_table.event_time == spec.event_time
        columns = [name for name in spec.label_table.columns if name in key or mentions(spec.label.sql, name)]
        rows = _scan(
            folder, lake, spec.label.table, snapshots,
            columns=[*columns, KNOWN], within=interval if same_time else None, known_by=as_of,
        )  # fmt: skip
        connection.register("_labels", rows)
        _select_labels(connection, folder)
        names = ", ".join(quoted(name) for name in key)
        order = ", ".join(quoted(name) for name in dict.fromkeys([spec.event_time, *key]))
        found: pa.Table = connection.sql(
            f"SELECT _entities.*, label, label_known_at FROM _entities JOIN perennial.labels USING ({names}) ORDER BY {order}"
        ).to_arrow_table()
        connection.register("_found", found)
        [(distinct,)] = connection.execute(f"SELECT count(DISTINCT ({names})) FROM _found").fetchall()
    if distinct != found.num_rows:
        raise SpecError(
            f"{folder.path / 'model.yaml'}: label.table: {found.num_rows - distinct:,} rows of {spec.label.table} in "
            f"{interval} are second labels; it is to have one row for each {', '.join(key)}"
        )
    return found


def find_leaks(folder: ModelFolder, lake: Lake, ledger: Ledger, interval: Interval, *, moments: int = 8) -> list[Leak]:
    """Look for features that change when rows change that were not known when they were asked for.

    Args:
        folder: the model's.
        lake: holds the tables.
        ledger: says which snapshots are published.
        interval: a sample; a busy day will do. The tables of its neighbouring days are read too.
        moments: at how many as-of times of the sample everything known later is changed, see :func:`perennial.leaks.find`.

    Returns:
        The leaks, none if there are none.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
    """
    snapshots = _published_tables(folder, ledger).snapshots
    wide = Interval(interval.start - folder.spec.features.lookback - leaks.MARGIN, interval.end + leaks.MARGIN)
    names = needed_tables(folder)
    tables = {name: _scan(folder, lake, name, snapshots, within=wide).read_all() for name in names}
    return leaks.find(folder, tables, interval, moments=moments)


# --- labels --------------------------------------------------------------------------------------------------------------

_LABEL_TYPES = {
    "binary_classification": ("BOOLEAN", {"BOOLEAN"} | WHOLE_TYPES, "true or false"),
    "multiclass_classification": ("VARCHAR", {"VARCHAR", "BOOLEAN", "ENUM"} | WHOLE_TYPES, "a class as text"),
    "regression": ("DOUBLE", {"FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN"} | WHOLE_TYPES, "a number"),
}


def _select_labels(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> None:
    """Make ``perennial.labels`` of what stands in ``_labels``: entity key, ``label``, ``label_known_at``."""
    spec, place = folder.spec, f"{folder.path / 'model.yaml'}: label.sql"
    wanted, allowed, words = _LABEL_TYPES[spec.task]
    selected = f"(SELECT *, (\n{spec.label.sql}\n) AS _label FROM _labels)"
    with blaming(place):
        kind = connection.sql(f"SELECT _label FROM {selected}").types[0]
        if str(kind).partition("(")[0] not in allowed:
            raise SpecError(f"{place}: gives {kind}, but {spec.task} wants {words}")
        names = ", ".join(quoted(name) for name in spec.entity_table.key)
        connection.execute(
            f"CREATE TABLE perennial.found AS SELECT {names}, _label, {KNOWN} AS label_known_at FROM {selected} "
            "WHERE _label IS NOT NULL"
        )
    if wanted == "BOOLEAN" and str(kind) != "BOOLEAN":
        odd = connection.execute("SELECT any_value(_label) FROM perennial.found WHERE _label NOT IN (0, 1)").fetchone()
        if odd and odd[0] is not None:
            raise SpecError(f"{place}: gives {odd[0]}, but {spec.task} wants {words}; compare it with something")
    connection.execute(
        f"CREATE VIEW perennial.labels AS SELECT {names}, _label::{wanted} AS label, label_known_at FROM perennial.found"
    )


# --- what is published -----------------------------------------------------------------------------------------------------


def _published_tables(folder: ModelFolder, ledger: Ledger) -> Publication:
    published = ledger.published(folder.spec.name, TABLES)
    if published is None:
        name = folder.spec.name
        raise SnapshotMissing(f"{name}: no tables are published yet; run {name}.ingest for a range of past days first")
    return published


def _scan(
    folder: ModelFolder,
    lake: Lake,
    name: str,
    snapshots: Mapping[str, int],
    *,
    columns: Sequence[str] | None = None,
    within: Interval | None = None,
    known_by: datetime | None = None,
) -> pa.RecordBatchReader:
    model, table = folder.spec.name, folder.spec.tables[name]
    again = f"run {model}.ingest once more for the days in question"
    if name not in snapshots:
        raise SnapshotMissing(f"{model}: table {name} of model.yaml was never published; {again}")
    try:
        return lake.scan(
            model,
            name,
            snapshots[name],
            columns=columns or published_schema(table).names,
            interval=within if table.event_time else None,
            event_time=table.event_time,
            known_by=known_by,
        )
    except ValueError as error:
        raise SnapshotMissing(f"{error}, though model.yaml names it; {again}") from error


def _outdated(folder: ModelFolder, ledger: Ledger, interval: Interval) -> list[Interval]:
    """The days that :func:`ensure_features` builds again."""
    lookback = folder.spec.features.lookback
    days = _days(interval)
    read = Interval(days[0].start - lookback, days[-1].end)
    tables = ledger.publications(folder.spec.name, TABLES, read)
    changes = list(_changes(folder, tables))
    with_tables = {day for publication in tables for day in _days(publication.interval)}
    features = ledger.publications(folder.spec.name, DATASET, interval)
    newest_of = {day: publication for publication in features for day in _days(publication.interval)}
    digest = folder.features_digest
    outdated = []
    for day in days:
        if day not in with_tables:
            continue
        newest = newest_of.get(day)
        if newest is None or not newest.interval.contains(day) or newest.inputs.get("features_digest") != digest:
            outdated.append(day)
            continue
        later = bisect_right(changes, newest.inputs.get("publication", 0), key=itemgetter(0))
        looks_at = Interval(day.start - lookback, day.end)
        if any(changed.overlaps(looks_at) for _, changed in changes[later:]):
            outdated.append(day)
    return outdated


def _changes(folder: ModelFolder, publications: Sequence[Publication]) -> Iterator[tuple[int, Interval]]:
    """Of publications of tables, oldest first, those that changed what features are made of.

    A table without event time is as it is at the time, for all days that are built then.
    """
    names = [name for name in needed_tables(folder) if folder.spec.tables[name].event_time]
    content: dict[Interval, dict[str, str | None]] = {}
    for publication in publications:
        now = {name: publication.hashes.get(name) for name in names}
        if content.get(publication.interval) != now:
            yield publication.id, publication.interval
        content[publication.interval] = now


def _days(interval: Interval) -> list[Interval]:
    """The UTC days that an interval touches."""
    midnight = interval.start.replace(hour=0, minute=0, second=0, microsecond=0)
    return Interval(midnight, max(interval.end + _DAY - timedelta(microseconds=1), midnight + _DAY)).days()


def _stretches(days: Sequence[Interval]) -> Iterator[Interval]:
    """Neighbouring days as one interval, up to :data:`_MOST_DAYS` of them."""
    stretch: Interval | None = None
    for day in days:
        if stretch is not None and stretch.end == day.start and stretch.length < _MOST_DAYS * _DAY:
            stretch = Interval(stretch.start, day.end)
            continue
        if stretch is not None:
            yield stretch
        stretch = day
    if stretch is not None:
        yield stretch
