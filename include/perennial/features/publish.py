"""The feature store: compute features from published tables, publish them by interval, and keep them up to date.

Neighbours: :mod:`perennial.features.point_in_time` runs the query. :mod:`perennial.features.leaks` looks for features that
use what was not known, :mod:`perennial.features.independence` for those that depend on which entities are asked.
:mod:`perennial.lake.publish` holds tables and features. Training, scoring and monitoring read the features that are published
here.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from operator import itemgetter

from perennial.core.errors import SnapshotMissing, Superseded
from perennial.core.intervals import Interval
from perennial.features import independence, leaks
from perennial.features.history import gaps_of_features, refuse_gaps
from perennial.features.independence import Dependence
from perennial.features.leaks import Leak
from perennial.features.point_in_time import BuiltFeatures, compute
from perennial.features.published import DATASET, TABLES, published_tables, scan
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)


#: The most days that are rebuilt in one publication.
_MOST_DAYS = 31
_DAY = timedelta(days=1)


def build_features(
    folder: ModelFolder, lake: Lake, interval: Interval, *, snapshots: Mapping[str, int] | None = None
) -> BuiltFeatures:
    """Compute the features of an interval's entities from the lake's tables, without publishing them.

    Args:
        folder: the model's folder.
        lake: has the tables; its ledger says which snapshots are published.
        interval: the interval of the entities' event times.
        snapshots: by table, the snapshots to read; by default those that are published now.

    Raises:
        SnapshotMissing: a required table was not published, or rows lack a value that the spec requires.
        SpecError: see :func:`perennial.features.point_in_time.compute`.
    """
    given = dict(snapshots) if snapshots is not None else published_tables(folder, lake.ledger).snapshots
    refuse_gaps(folder, gaps_of_features(folder, lake, given, interval))
    visible = visible_to(folder, interval)
    tables = {name: scan(folder, lake, name, given, within=visible) for name in folder.feature_tables}
    return compute(folder, tables, interval, snapshots={name: given[name] for name in tables})


def visible_to(folder: ModelFolder, interval: Interval) -> Interval:
    """The interval of event times that ``features.sql`` sees when it computes the features of an interval."""
    return Interval(interval.start - folder.spec.features.lookback, interval.end)


def publish_features(
    folder: ModelFolder,
    lake: Lake,
    interval: Interval,
    *,
    order: int,
    run_id: str,
    dataset: str = DATASET,
    digest: str | None = None,
) -> Publication:
    """Compute the features of an interval and publish them. They replace the features that were published for it.

    Args:
        folder: the model's folder.
        lake: has the tables; its ledger says which snapshots are published.
        interval: the interval.
        order: from :meth:`perennial.ledger.store.Ledger.next_order`, taken when the run started.
        run_id: the run. It is the same for all attempts of the run.
        dataset: where they are published, see :func:`perennial.features.published.dataset_of`; also the table's name.
        digest: the definition that they are recorded as; by default the folder's.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
        Superseded: a later run has published an overlapping interval.
    """
    tables = published_tables(folder, lake.ledger)
    with build_features(folder, lake, interval, snapshots=tables.snapshots) as built:
        return lake.publish(
            model=folder.spec.name,
            dataset=dataset,
            interval=interval,
            tables={
                dataset: TableWrite(built.reader, folder.spec.event_time, built.schema, frozenset(folder.spec.features.names))
            },
            order=order,
            run_id=run_id,
            inputs={
                "tables": built.snapshots,
                "features_digest": digest or folder.features_digest,
                "publication": tables.id,
                "reads": visible_to(folder, interval).key,
            },
        )


def ensure_features(
    folder: ModelFolder,
    lake: Lake,
    interval: Interval,
    *,
    run_id: str,
    dataset: str = DATASET,
    digest: str | None = None,
) -> list[Publication]:
    """Rebuild the features of an interval that are out of date.

    A day is out of date if it has tables and no features, if its features were made by an earlier ``features.sql`` or spec,
    or if tables of the day or of the lookback before it were published again with other rows. Days without tables stay
    without features. If all days are up to date, nothing is read or written.

    Args:
        folder: the model's folder.
        lake: has the tables; its ledger says what is published.
        interval: every UTC day that it touches is checked.
        run_id: the run that requires the features.
        dataset, digest: see :func:`publish_features`.

    Returns:
        The new publications, oldest first.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
        Superseded: a later run took over, and its features are out of date too.
    """
    done = []
    refused: Superseded | None = None
    outdated = outdated_days(folder, lake.ledger, interval, dataset=dataset, digest=digest)
    if outdated:
        # All days at once. Otherwise each attempt would name the days of one stretch.
        snapshots = published_tables(folder, lake.ledger).snapshots
        refuse_gaps(folder, gaps_of_features(folder, lake, snapshots, Interval(outdated[0].start, outdated[-1].end)))
    for stretch in _stretches(outdated):
        order = lake.ledger.next_order(folder.spec.name, dataset, stretch, run_id)
        try:
            done.append(publish_features(folder, lake, stretch, order=order, run_id=run_id, dataset=dataset, digest=digest))
        except Superseded as error:
            refused = error
    # The later run has usually done the same work.
    if refused is not None and outdated_days(folder, lake.ledger, interval, dataset=dataset, digest=digest):
        raise refused
    if done:
        log.info("features of %s: %d ranges of days were out of date and were rebuilt", interval, len(done))
    return done


def find_leaks(folder: ModelFolder, lake: Lake, interval: Interval, *, moments: int = 8) -> list[Leak]:
    """Look for features that change if rows change that were not known at the entity's ``as_of``.

    Args:
        folder: the model's folder.
        lake: has the tables; its ledger says which snapshots are published.
        interval: the sample. One busy day is enough. The tables of the days around it are read too.
        moments: number of moments after which rows are changed, see :func:`perennial.features.leaks.find`.

    Returns:
        The leaks; empty if there are none.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
    """
    snapshots = published_tables(folder, lake.ledger).snapshots
    wide = Interval(interval.start - folder.spec.features.lookback - leaks.MARGIN, interval.end + leaks.MARGIN)
    names = folder.feature_tables
    tables = {name: scan(folder, lake, name, snapshots, within=wide).read_all() for name in names}
    return leaks.find(folder, tables, interval, moments=moments)


def find_dependences(folder: ModelFolder, lake: Lake, interval: Interval) -> list[Dependence]:
    """Look for features that change if fewer entities are asked.

    Args:
        folder: the model's folder.
        lake: has the tables; its ledger says which snapshots are published.
        interval: the sample. Two busy days are enough.

    Raises:
        SnapshotMissing, SpecError: see :func:`build_features`.
    """
    snapshots = published_tables(folder, lake.ledger).snapshots
    visible = visible_to(folder, interval)
    tables = {name: scan(folder, lake, name, snapshots, within=visible).read_all() for name in folder.feature_tables}
    return independence.find(folder, tables, interval)


def outdated_days(
    folder: ModelFolder, ledger: Ledger, interval: Interval, *, dataset: str = DATASET, digest: str | None = None
) -> list[Interval]:
    """The days that :func:`ensure_features` rebuilds, see there.

    Raises:
        SnapshotMissing: retention has removed rows that they need.
    """
    lookback = folder.spec.features.lookback
    days = interval.touched_days()
    read = Interval(days[0].start - lookback, days[-1].end)
    tables = ledger.publications(folder.spec.name, TABLES, read)
    changes = list(_changes(folder, tables))
    with_tables = {day for publication in tables for day in publication.interval.touched_days()}
    features = ledger.publications(folder.spec.name, dataset, interval)
    newest_of = {day: publication for publication in features for day in publication.interval.touched_days()}
    without_features = ledger.removed(folder.spec.name, dataset, Interval(days[0].start, days[-1].end))
    without_tables = ledger.removed(folder.spec.name, TABLES, read)
    alike = folder.features_digests if digest is None else {digest}
    outdated = []
    for day in days:
        if day not in with_tables:
            continue
        newest = newest_of.get(day)
        if any(day.overlaps(gone) for gone in without_features):
            newest = None
        if newest is None or not newest.interval.contains(day) or newest.inputs.get("features_digest") not in alike:
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
            f"{name}: features of {lost[0]} to {lost[-1]} must be built again, but rows of tables that they need were "
            f"removed by retention (retention.tables in model.yaml): load these days again with {name}.load, or use later days"
        )
    return outdated


def _changes(folder: ModelFolder, publications: Sequence[Publication]) -> Iterator[tuple[int, Interval]]:
    """The publications that changed rows that features are made of, as id and interval, oldest first.

    Tables without event time do not count. Features use their content at the time of the build.
    """
    names = [name for name in folder.feature_tables if folder.spec.tables[name].event_time]
    content: dict[Interval, dict[str, str]] = {}
    for publication in publications:
        before = content.setdefault(publication.interval, {})
        # A publication of late rows has only the tables that they changed.
        now = {name: publication.hashes[name] for name in names if name in publication.hashes}
        if not now.items() <= before.items():
            yield publication.id, publication.interval
        before.update(now)
        # A publication of other days than these replaces rows of theirs.
        for interval, other in content.items():
            if interval != publication.interval and interval.overlaps(publication.interval):
                other.clear()


def _stretches(days: Sequence[Interval]) -> Iterator[Interval]:
    """Adjacent days joined to intervals of at most :data:`_MOST_DAYS` days."""
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
