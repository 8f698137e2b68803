"""The feature store: features computed from published tables, published by interval, kept up with ``features.sql``.

Neighbours: :mod:`perennial.features.point_in_time` runs the query; :mod:`perennial.features.leaks` looks for features that
know too much; :mod:`perennial.lake.publish` holds tables and features; training, scoring and monitoring read what is
published here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from operator import itemgetter

from perennial.core import logs
from perennial.core.errors import SnapshotMissing, Superseded
from perennial.core.intervals import Interval
from perennial.features import leaks
from perennial.features.leaks import Leak
from perennial.features.point_in_time import BuiltFeatures, compute, needed_tables
from perennial.features.published import DATASET, TABLES, published_tables, scan
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder

log = logs.get(__name__)


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
        SpecError: see :func:`perennial.features.point_in_time.compute`.
    """
    given = dict(snapshots) if snapshots is not None else published_tables(folder, ledger).snapshots
    visible = visible_to(folder, interval)
    tables = {name: scan(folder, lake, name, given, within=visible) for name in needed_tables(folder)}
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
        order: from :meth:`perennial.ledger.store.Ledger.next_order`, taken when the run started.
        run_id: the run, the same for all its attempts.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
        Superseded: a later run has published an overlapping interval.
    """
    tables = published_tables(folder, ledger)
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


def find_leaks(folder: ModelFolder, lake: Lake, ledger: Ledger, interval: Interval, *, moments: int = 8) -> list[Leak]:
    """Look for features that change when rows change that were not known when they were asked for.

    Args:
        folder: the model's.
        lake: holds the tables.
        ledger: says which snapshots are published.
        interval: a sample; a busy day will do. The tables of its neighbouring days are read too.
        moments: at how many as-of times of the sample everything known later is changed, see
            :func:`perennial.features.leaks.find`.

    Returns:
        The leaks, none if there are none.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
    """
    snapshots = published_tables(folder, ledger).snapshots
    wide = Interval(interval.start - folder.spec.features.lookback - leaks.MARGIN, interval.end + leaks.MARGIN)
    names = needed_tables(folder)
    tables = {name: scan(folder, lake, name, snapshots, within=wide).read_all() for name in names}
    return leaks.find(folder, tables, interval, moments=moments)


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
    without_features = ledger.removed(folder.spec.name, DATASET, Interval(days[0].start, days[-1].end))
    without_tables = ledger.removed(folder.spec.name, TABLES, read)
    digest = folder.features_digest
    outdated = []
    for day in days:
        if day not in with_tables:
            continue
        newest = newest_of.get(day)
        if any(day.overlaps(gone) for gone in without_features):
            newest = None
        if newest is None or not newest.interval.contains(day) or newest.inputs.get("features_digest") != digest:
            outdated.append(day)
            continue
        later = bisect_right(changes, newest.inputs.get("publication", 0), key=itemgetter(0))
        looks_at = Interval(day.start - lookback, day.end)
        if any(changed.overlaps(looks_at) for _, changed in changes[later:]):
            outdated.append(day)
    lost = [day for day in outdated if any(gone.overlaps(Interval(day.start - lookback, day.end)) for gone in without_tables)]
    if lost:
        name = folder.spec.name
        raise SnapshotMissing(
            f"{name}: features of {lost[0]} to {lost[-1]} would have to be built again, and rows of tables that they need were "
            f"removed by retention (retention.tables in model.yaml): load these days again with {name}.load, or use later days"
        )
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
