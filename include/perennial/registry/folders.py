"""A version's own folder: the model folder that a version was made by. Through it the version predicts and is measured.

Each version keeps the files of its folder with its MLflow run. Mostly they say what the model's folder says now, and the
version reads the features that are published for all. Where the present folder makes features in another way (one was removed
or renamed, ``features.sql`` was changed), the version's features are made from the published tables by its own folder, and
are published as a dataset of their own, for the days that somebody needs.

What the version needs may be gone for good: a column of the tables, its files, its folder. Then :class:`VersionUnusable` says
so. That something does not answer is another error.

Neighbours: :mod:`perennial.features.publish` makes and publishes features. :mod:`perennial.registry.versions` loads the stored
model.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import (
    ArtifactRejected,
    ScoringError,
    SnapshotMissing,
    SpecError,
    TrainingError,
    VersionUnusable,
)
from perennial.core.intervals import Interval
from perennial.features.point_in_time import faults_without_rows
from perennial.features.publish import ensure_features, outdated_days, visible_to
from perennial.features.published import DATASET, TABLES, dataset_of, published_tables
from perennial.lake.publish import Lake
from perennial.ledger.coverage import uncovered
from perennial.ledger.records import Publication, VersionRecord
from perennial.model.artifacts import FeatureList
from perennial.registry.runs import Runs
from perennial.spec.data import Table
from perennial.spec.folder import ModelFolder, read_model
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

#: The folder of an MLflow run's artifacts that keeps the model folder's files.
FOLDER = "folder"

_DAY = timedelta(days=1)


@contextmanager
def open_folder(record: VersionRecord, folder: ModelFolder | None, registry: Runs, notes: list[str]) -> Iterator[ModelFolder]:
    """The model folder that a version was made with: the present one if it is the same, or else the copy logged with its run.

    Args:
        record: the version's record.
        folder: the model's folder as it is now; None if there is none.
        registry: contains the logged files.
        notes: gets a note if the present folder is not used.

    Raises:
        TrainingError: the folder has changed since, and no copy of it was kept.
        VersionUnusable: the copy is gone, or its hashes are not those in the ledger.
        SpecError: this release cannot read the copy.
    """
    if folder is not None and folder.digest == record.spec_digest:
        yield folder
        return
    name, kept = f"{record.model} version {record.version}", record.code.files
    if not kept:
        raise TrainingError(
            f"{name} was made with another model folder than the present one, and no copy of that folder was kept: check out "
            f"commit {record.code.commit} of the folder and try again"
        )
    with tempfile.TemporaryDirectory(prefix="perennial-folder-") as scratch:
        place = Path(scratch) / record.model
        place.mkdir()
        for file, text in registry.files_of_run(record.mlflow_run_id, FOLDER).items():
            if file not in kept or hashlib.sha256(text).hexdigest() != kept[file]:
                raise VersionUnusable(f"{name}: {FOLDER}/{file} in MLflow is not the file that the ledger records")
            (place / file).write_bytes(text)
        if missing := sorted(file for file in kept if not (place / file).exists()):
            raise VersionUnusable(f"{name}: {', '.join(missing)} is no longer in MLflow, in the folder {FOLDER}/ of its run")
        its = read_model(place)
        if folder is None:
            notes.append("the present model folder cannot be read; the files logged with the version were used")
        elif its.digest == folder.digest:
            # A release since has added keys to model.yaml. Both folders have their defaults, and so the same meaning.
            its = folder
        else:
            changed = sorted(file for file in {**its.files, **folder.files} if its.files.get(file) != folder.files.get(file))
            notes.append(f"{', '.join(changed)} changed since the version was made; the files logged with it were used")
        yield its


# --- its own folder --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnFolder:
    """A version, and the folder through which it predicts.

    Attributes:
        record: the version's record.
        folder: the folder that makes its features: its own, or the present one if that makes the same features.
        current: the model's folder as it is now.
        dataset: the dataset that its features are published in, and the table's name.
        registry: keeps the files of its own folder.
    """

    record: VersionRecord
    folder: ModelFolder
    current: ModelFolder
    dataset: str
    registry: Runs

    @cached_property
    def made_by(self) -> ModelFolder:
        """The folder that the version was made by. Its files are fetched once at most, and only if the present ones differ.

        Raises:
            TrainingError, VersionUnusable, SpecError: see :func:`open_folder`.
        """
        if self.folder is not self.current:
            return self.folder
        with open_folder(self.record, self.current, self.registry, []) as opened:
            if opened is self.current:
                return opened
            # Errors name the file as people know it; the copy does not outlive this block.
            return opened.model_copy(update={"path": Path(f"{self.name}, its own folder")})

    @property
    def is_current(self) -> bool:
        """Whether its features are those of the present folder."""
        return self.dataset == DATASET

    @property
    def name(self) -> str:
        return f"{self.record.model} version {self.record.version}"


@dataclass(frozen=True)
class FeaturesAt:
    """Where a version's features are read.

    Attributes:
        dataset: the dataset, and the table's name.
        snapshot: the snapshot of the table.
        publication: the newest publication of the present folder's features that they are as new as; None if that is not known.
    """

    dataset: str
    snapshot: int
    publication: int | None = None


def own_folder(registry: Runs, version: int, current: ModelFolder) -> OwnFolder:
    """The folder through which a version predicts.

    Args:
        registry: knows the version, and keeps the files of its folder.
        version: the version's number.
        current: the model's folder as it is now.

    Raises:
        VersionUnusable: the model is now asked for something else, or the version's folder is gone.
        ArtifactRejected: the ledger does not know the version.
    """
    spec = current.spec
    record = registry.record(spec.name, version)
    name = f"{spec.name} version {version}"
    if (task := record.training.task) is not None and task != spec.task:
        raise VersionUnusable(f"{name} was trained for the task {task}, and model.yaml now has {spec.task}")
    as_now = OwnFolder(record, current, current, DATASET, registry)
    if current.digest == record.spec_digest or record.features_digest in current.features_digests:
        return as_now
    try:
        own = as_now.made_by
    except TrainingError:
        _take_present_for_its_own(record, current)
        return as_now
    except SpecError as error:
        raise VersionUnusable(f"{name}: the folder that it was made by cannot be read by this release: {error}") from error
    if (its := _entity(own.spec)) != (now := _entity(spec)):
        raise VersionUnusable(f"{name} predicts {its}, and model.yaml now asks for {now}")
    dataset = dataset_of(own.features_digest, current.features_digest)
    return as_now if dataset == DATASET else OwnFolder(record, own, current, dataset, registry)


def _take_present_for_its_own(record: VersionRecord, current: ModelFolder) -> None:
    """Take the present folder for that of a version of a release that kept none; digests of its time say nothing today.

    Raises:
        VersionUnusable: the present folder does not make all its features.
    """
    name, kinds = f"{record.model} version {record.version}", FeatureList.of(current.spec)
    gone = [feature for feature in record.training.numeric if feature not in kinds.numeric]
    gone += [feature for feature in record.training.categorical if feature not in kinds.categorical]
    if gone:
        raise VersionUnusable(
            f"{name} needs {', '.join(gone)}, which the model folder no longer makes, and no copy of its own folder was kept"
        )
    log.warning("%s: no copy of its own folder was kept; the present one makes its features", name)


def _entity(spec: ModelSpec) -> str:
    """What a model predicts one value for, in words; predictions of different entities cannot stand side by side."""
    table = spec.entity_table
    key = ", ".join(f"{name} ({table.columns[name].type})" for name in table.key)
    return f"the rows of {spec.entity.table} by {key} at {spec.event_time}"


def changed_label(own: OwnFolder) -> str | None:
    """What to tell people if the present label is not the one that the version was trained for; None if it is.

    Both are measured by the present label: it is what the model is now asked for.
    """
    record, current = own.record, own.current
    if record.spec_digest == current.digest:
        return None
    try:
        its = own.made_by.spec
    except (TrainingError, ArtifactRejected, SpecError):
        return f"whether version {record.version} was trained for the present label is unknown: its own folder is not kept"
    then, now = (f"{spec.label.sql} of {spec.label.table}" for spec in (its, current.spec))
    if then == now:
        return None
    return f"version {record.version} was trained for the label {then}; all are measured by the present label, {now}"


# --- its features ----------------------------------------------------------------------------------------------------


def own_features(own: OwnFolder, lake: Lake, interval: Interval, *, run_id: str, whole: bool = True) -> FeaturesAt:
    """Where a version's features of an interval are read, after those that are missing or out of date are made.

    Args:
        own: from :func:`own_folder`.
        lake: has tables and features.
        interval: the interval of the entities' event times.
        run_id: the run that requires the features.
        whole: whether all days of the interval must have features; otherwise one of them is sufficient.

    Raises:
        ScoringError: no tables, and so no features, are published for some days.
        VersionUnusable: the tables no longer have what its features are made of.
        SnapshotMissing, SpecError: the features of the present folder cannot be made.
        Superseded: a later run took over, and its features are out of date too.
    """
    seen = lake.ledger.head(own.current.spec.name, DATASET).publication_id
    if own.is_current:
        _refuse_removed(own.current.spec, lake, interval)
        ensure_features(own.folder, lake, interval, run_id=run_id)
    else:
        _ensure_own(own, lake, interval, run_id=run_id)
    publication = published_features(own.current.spec, lake, interval, dataset=own.dataset, whole=whole)
    return FeaturesAt(own.dataset, publication.snapshots[own.dataset], publication.id if own.is_current else seen)


def _refuse_removed(spec: ModelSpec, lake: Lake, interval: Interval) -> None:
    """Refuse days whose features retention has removed; those of other definitions are made again whenever they are needed."""
    if removed := lake.ledger.removed(spec.name, DATASET, interval):
        raise ScoringError(
            f"{spec.name}, {interval}: the features of {', '.join(part.key for part in removed)} were removed by retention "
            f"(retention.features in model.yaml): run {spec.name}.load for these days first"
        )


def _ensure_own(own: OwnFolder, lake: Lake, interval: Interval, *, run_id: str) -> None:
    digest = own.folder.features_digest
    try:
        days = outdated_days(own.folder, lake.ledger, interval, dataset=own.dataset, digest=digest)
        if not days:
            return
        folder = computable(own, lake, Interval(days[0].start, days[-1].end))
        log.info("%s: its features of %s are made by its own folder, as %s", own.name, interval, own.dataset)
        ensure_features(folder, lake, interval, run_id=run_id, dataset=own.dataset, digest=digest)
    except (SnapshotMissing, SpecError) as error:
        # DuckDB says the same of the same rows each time; what it says of memory or an interrupt is another error.
        raise VersionUnusable(f"{own.name}: its features of {interval} cannot be made by its own folder: {error}") from error


def published_features(
    spec: ModelSpec, lake: Lake, interval: Interval, *, dataset: str = DATASET, whole: bool = True
) -> Publication:
    """Return the publication at whose snapshots the features of an interval are read.

    Raises:
        ScoringError: some days of the interval have no features; if ``whole`` is false, none of them has.
    """
    ledger = lake.ledger
    newest, made = ledger.published(spec.name, dataset), ledger.publications(spec.name, dataset, interval)
    if newest is not None and made and not whole:
        return newest
    gaps = uncovered(interval, made)
    if newest is None or gaps:
        raise ScoringError(
            f"{spec.name}, {interval}: no features are published for {', '.join(gap.key for gap in gaps)}: run "
            f"{spec.name}.ingest for these days first"
        )
    return newest


def computable(own: OwnFolder, lake: Lake | None, interval: Interval | None) -> ModelFolder:
    """The version's own folder, with the tables that its features can be made from now.

    The present folder decides what the tables get. A column that it no longer names is null in new rows, and a null would be
    read without a word. So its ``features.sql`` must do without such a column, or all days in question must still have it.

    Args:
        own: from :func:`own_folder`.
        lake: has the tables; None: only what the present folder says counts.
        interval: the days whose features are made.

    Raises:
        VersionUnusable: a table or column that it needs is gone.
    """
    present = own.current.spec.tables
    gone = _gone(own.folder, present)
    if not gone:
        return own.folder
    without = _without(own.folder, gone)
    faults = faults_without_rows(without) if without is not None else ["without it there are no entities"]
    if without is not None and not faults:
        return without
    if lake is not None and interval is not None and _all_have(own.folder, lake, visible_to(own.folder, interval), gone):
        return own.folder
    named = ", ".join(f"{table}.{column}" if column else table for table, column in gone)
    raise VersionUnusable(f"{own.name} needs what the tables of model.yaml no longer have ({named}): {faults[0]}")


def _gone(folder: ModelFolder, present: Mapping[str, Table]) -> list[tuple[str, str | None]]:
    """Tables that a query may read and that are gone, each with None; and columns of the others that are gone."""
    found: list[tuple[str, str | None]] = []
    for name in folder.feature_tables:
        if name not in present:
            found.append((name, None))
        else:
            found += [(name, column) for column in folder.spec.tables[name].columns if column not in present[name].columns]
    return found


def _without(folder: ModelFolder, gone: list[tuple[str, str | None]]) -> ModelFolder | None:
    """The folder without some tables and columns; None if it has no entities then."""
    tables = dict(folder.spec.tables)
    for name, column in gone:
        if column is None:
            del tables[name]
        else:
            columns = {other: said for other, said in tables[name].columns.items() if other != column}
            tables[name] = tables[name].model_copy(update={"columns": columns})
    entity = tables.get(folder.spec.entity.table)
    if entity is None or not {*entity.key, entity.event_time} <= entity.columns.keys():
        return None
    return folder.model_copy(update={"spec": folder.spec.model_copy(update={"tables": tables})})


def _all_have(folder: ModelFolder, lake: Lake, visible: Interval, gone: list[tuple[str, str | None]]) -> bool:
    """Whether each published day of an interval has values in all columns that later days no longer get."""
    snapshots = published_tables(folder, lake.ledger).snapshots
    published = lake.ledger.publications(folder.spec.name, TABLES, visible)
    days = [day for day in visible.touched_days() if any(one.interval.overlaps(day) for one in published)]
    for name, column in gone:
        table = folder.spec.tables[name]
        if table.event_time is None or name not in snapshots:
            return False  # a table without event time is replaced as a whole: it is as it is now
        asked = [column or table.event_time, table.event_time]
        rows = lake.scan(
            folder.spec.name, name, snapshots[name], columns=list(dict.fromkeys(asked)), interval=visible,
            event_time=table.event_time,
        ).read_all()  # fmt: skip
        known = rows.filter(pc.is_valid(rows.column(asked[0])))
        there = set(pc.unique(pc.cast(pc.floor_temporal(known.column(table.event_time), unit="day"), pa.int64())).to_pylist())
        if any(int(day.start.timestamp()) * 1_000_000 not in there for day in days):
            return False
    return True


def with_own_features(own: OwnFolder, lake: Lake, interval: Interval, rows: pa.Table, *, run_id: str) -> pa.Table:
    """The same rows, in the same order, with the features of a version.

    Args:
        own: from :func:`own_folder`.
        lake: has tables and features.
        interval: the interval of the rows.
        rows: with the entity's key and event time, and the features of the present folder.
        run_id: the run that requires the features.

    Raises:
        ScoringError: a row has no features of the version.
        VersionUnusable: see :func:`own_features`.
    """
    if own.is_current:
        return rows
    spec, record = own.current.spec, own.record
    # Days that are missing are missing for all; below, each row must have its features.
    at = own_features(own, lake, interval, run_id=run_id, whole=False)
    identity = list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))
    features = lake.scan(
        spec.name, at.dataset, at.snapshot, columns=list(dict.fromkeys([*identity, *record.training.features])),
        interval=interval, event_time=spec.event_time,
    ).read_all()  # fmt: skip
    places = rows.select(identity).append_column("_place", pa.array(range(rows.num_rows), pa.int64()))
    joined = places.join(features, keys=identity, join_type="inner").sort_by("_place").combine_chunks()
    if joined.num_rows != rows.num_rows:
        raise ScoringError(
            f"{own.name}: its own folder makes features for {joined.num_rows:,} of {rows.num_rows:,} rows of {interval}"
        )
    return joined.drop_columns(["_place"])


def differences(own: OwnFolder) -> list[str]:
    """What the version's own folder makes otherwise than the present one, in words for people."""
    its, now = own.record.training, FeatureList.of(own.current.spec)
    gone = [name for name in its.features if name not in now.names]
    new = [name for name in now.names if name not in its.features]
    kinds = [name for name in its.numeric if name in now.categorical]
    kinds += [name for name in its.categorical if name in now.numeric]
    told = [
        f"needs the feature{'s' if len(names) > 1 else ''} {', '.join(names)}, {what}"
        for names, what in (
            (gone, "which this folder no longer computes"),
            (kinds, "of the other kind, numeric or categorical, than this folder computes"),
        )
        if names
    ]
    if not told and new:
        told.append(f"does not know the feature{'s' if len(new) > 1 else ''} {', '.join(new)}")
    return told or ["has features that this folder computes in another way"]
