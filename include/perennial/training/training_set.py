"""The rows that models are trained on and compared on, pinned so that they can be read again.

A training set consists of snapshot ids, two intervals and content hashes. :func:`build_training_set` makes one.
:func:`load_rows` reads its rows, and gives the same rows each time. Neighbour: :mod:`perennial.training.fit`.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import TrainingError
from perennial.core.files import replacing
from perennial.core.intervals import Interval, merged, utc
from perennial.deployment import Deployment
from perennial.evidence.training import Part, TrainingSet
from perennial.features.history import gaps_of_training, refuse_gaps
from perennial.features.labels import read_labels
from perennial.features.maturity import mature_until, measure_delay, passes_from
from perennial.features.publish import ensure_features, outdated_days
from perennial.features.published import DATASET, is_features, snapshot_of
from perennial.lake.publish import Lake
from perennial.ledger.coverage import uncovered
from perennial.ledger.store import Ledger
from perennial.model.labels import LABEL, count_classes
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.types import ALL

log = logging.getLogger(__name__)

#: The column with the position of a label's entity in the features that were read.
_PLACE = "_place"


def build_training_set(
    folder: ModelFolder,
    deployment: Deployment,
    *,
    as_of: datetime,
    run_id: str,
    staging: Path | None = None,
    calendar: Interval | None = None,
) -> TrainingSet:
    """Pin the rows of a training, as they were known at ``as_of``.

    Args:
        folder: the model's folder.
        deployment: contains the rows; the snapshots are pinned in its lake.
        as_of: only labels known by then are used. The holdout ends where labels were mature by then.
        run_id: the run; the pin's name is derived from it.
        staging: folder that the rows are also written to, for :func:`load_rows`; None: they are not written to a folder.
        calendar: the week or month whose end started the training; None if something else did.

    Raises:
        TrainingError: too few days of ``calendar`` are there, nothing is published, there are too few rows, or only labels of
            one class; the message says what to do.
        SnapshotMissing: published rows lack what the spec requires; the message names the days to ingest again.
    """
    spec, lake, ledger, as_of = folder.spec, deployment.lake, deployment.ledger, utc(as_of)
    delay, tables = delay_of_labels(folder, deployment, as_of), ledger.published(spec.name, "tables")
    window, holdout = _parts(spec, ledger, as_of, delay)
    if tables is not None:
        refuse_gaps(folder, gaps_of_training(folder, lake, tables.snapshots, Interval(window.start, holdout.end)))
    # Features that an earlier features.sql made are built again.
    ensure_features(folder, lake, Interval(window.start, holdout.end), run_id=run_id)
    if removed := ledger.removed(spec.name, "features", Interval(window.start, holdout.end)):
        raise TrainingError(
            f"{spec.name}: features of {', '.join(part.key for part in removed)} were removed by retention (retention.features "
            f"in model.yaml), and the training needs them: load these days again with {spec.name}.load, or train as of a "
            "later day"
        )
    snapshots = pinned_snapshots(folder, ledger)
    gaps = missing_days(spec, ledger, Interval(window.start, holdout.end), calendar)
    withheld = [part for part in ledger.withheld(spec.name) if part.overlaps(Interval(window.start, holdout.end))]
    asked: dict[Part, tuple[Interval, datetime]] = {"window": (window, holdout.start), "holdout": (holdout, as_of)}
    parts: dict[Part, PinnedRows] = {}
    leaving: list[Future[None]] = []
    with ThreadPoolExecutor(1) as beside:  # writes rows to the staging folder while others are read or hashed
        for part, (interval, known_by) in asked.items():
            parts[part] = _read(folder, lake, snapshots, part, interval, known_by, withheld)
            if staging is not None:
                leave = partial(_leave, parts[part].rows, _staged(staging, part))
                leaving.append(beside.submit(copy_context().run, leave))
        training_set = pinned(folder, parts, snapshots, as_of=as_of, run_id=run_id, missing=gaps, withheld=withheld)
    for left in leaving:
        left.result()
    _check_window(folder, lake, training_set, parts["window"].rows, delay)
    lake.pin(spec.name, snapshots, training_set.pin)
    log.info(
        "the training set has %s rows of %s and %s of the holdout %s; labels are known for %.1f %% and %.1f %%",
        f"{training_set.rows['window']:,}",
        window,
        f"{training_set.rows['holdout']:,}",
        holdout,
        100 * training_set.label_coverage("window"),
        100 * training_set.label_coverage("holdout"),
    )
    return training_set


def read_training_set(
    folder: ModelFolder, deployment: Deployment, *, as_of: datetime
) -> tuple[TrainingSet, dict[Part, pa.Table]]:
    """The training set of a training as of a moment, for people to look at. Nothing is built, pinned or written.

    Args:
        folder: the model's folder.
        deployment: contains the rows.
        as_of: as in :func:`build_training_set`.

    Returns:
        What the rows are, and the rows of window and holdout.

    Raises:
        TrainingError: nothing is published, or features must be built again before a training can read them.
    """
    spec, lake, ledger, as_of = folder.spec, deployment.lake, deployment.ledger, utc(as_of)
    snapshots = pinned_snapshots(folder, ledger)
    window, holdout = _parts(spec, ledger, as_of, delay_of_labels(folder, deployment, as_of))
    whole = Interval(window.start, holdout.end)
    if outdated := merged(outdated_days(folder, ledger, whole)):
        raise TrainingError(
            f"{spec.name}: features of {', '.join(stretch.key for stretch in outdated)} were made by another features.sql, or "
            f"of other rows, and a training builds them again: run {spec.name}.ingest for these days, or ask for the rows of a "
            "version"
        )
    withheld = [part for part in ledger.withheld(spec.name) if part.overlaps(whole)]
    parts: dict[Part, PinnedRows] = {
        "window": _read(folder, lake, snapshots, "window", window, holdout.start, withheld),
        "holdout": _read(folder, lake, snapshots, "holdout", holdout, as_of, withheld),
    }
    gaps = missing_days(spec, ledger, whole, None)
    found = pinned(folder, parts, snapshots, as_of=as_of, run_id="", missing=gaps, withheld=withheld)
    return found, {part: one.rows for part, one in parts.items()}


def _parts(spec: ModelSpec, ledger: Ledger, as_of: datetime, delay: timedelta) -> tuple[Interval, Interval]:
    """Window and holdout of a training as of a moment, if labels take that long."""
    end = mature_until(as_of, delay)
    holdout = Interval(end - spec.training.holdout, end)
    # What is learned from had mature labels when the holdout began, as it will have when the version is in use.
    border = mature_until(holdout.start, delay)
    return Interval(window_start(spec, ledger, border, spec.training.longest), border), holdout


@dataclass(frozen=True)
class PinnedRows:
    """The rows of a part of a training set.

    Attributes:
        interval: of their event times.
        rows: the labelled rows that are used.
        labelled, entities: how many rows of the interval have a label, and how many there are, before ``training.max_rows``
            cuts any.
    """

    interval: Interval
    rows: pa.Table
    labelled: int
    entities: int


def pinned(
    folder: ModelFolder,
    parts: Mapping[Part, PinnedRows],
    snapshots: Mapping[str, int],
    *,
    as_of: datetime,
    run_id: str,
    missing: Sequence[Interval],
    withheld: Sequence[Interval],
) -> TrainingSet:
    """The training set that consists of these rows. The lake does not keep its snapshots yet.

    Args:
        folder: the folder by whose features and label the rows were read.
        parts: window and holdout.
        snapshots: by table, which ones the rows were read from.
        as_of: what became known later was not used.
        run_id: the run; the pin's name is derived from it.
        missing, withheld: see :class:`perennial.evidence.training.TrainingSet`.
    """
    spec, holdout = folder.spec, parts["holdout"]
    newest_label = pc.max(holdout.rows.column(spec.event_time)).as_py()
    return _of_window(
        spec,
        TrainingSet(
            model=spec.name,
            run_id=run_id,
            as_of=as_of.isoformat(),
            window="",
            holdout=holdout.interval.key,
            snapshots=dict(snapshots),
            pin=f"training-{hashlib.sha256(run_id.encode()).hexdigest()[:16]}",
            folder_digest=folder.digest,
            features_digest=folder.features_digest,
            rows={"holdout": holdout.rows.num_rows},
            labelled={"holdout": holdout.labelled},
            entities={"holdout": holdout.entities},
            classes={"holdout": count_classes(spec, holdout.rows)},
            content={"holdout": content_hash(holdout.rows)},
            label_delay=(as_of - holdout.interval.end).days,
            delay_measured=spec.label.delay is None,
            newest_label=newest_label.isoformat() if newest_label else "",
            missing=[gap.key for gap in missing],
            withheld=[part.key for part in withheld],
        ),
        parts["window"],
    )


def _of_window(spec: ModelSpec, training_set: TrainingSet, window: PinnedRows) -> TrainingSet:
    """A training set with another window."""
    return replace(
        training_set,
        window=window.interval.key,
        rows={"window": window.rows.num_rows, "holdout": training_set.rows["holdout"]},
        labelled={"window": window.labelled, "holdout": training_set.labelled["holdout"]},
        entities={"window": window.entities, "holdout": training_set.entities["holdout"]},
        classes={"window": count_classes(spec, window.rows), "holdout": training_set.classes["holdout"]},
        content={"window": content_hash(window.rows), "holdout": training_set.content["holdout"]},
        without_values=features_without_values(spec, window.rows),
        mean_label=mean_label(spec, window.rows),
    )


def delay_of_labels(folder: ModelFolder, deployment: Deployment, as_of: datetime) -> timedelta:
    """How long labels take: as ``label.delay`` states, else as the published labels tell; zero before there are any."""
    spec, tables = folder.spec, deployment.ledger.published(folder.spec.name, "tables")
    if spec.label.delay is not None:
        return spec.label.delay
    delay = measure_delay(folder, deployment.lake, tables.snapshots, as_of=as_of) if tables is not None else timedelta()
    log.info("labels take %d days, measured from those that came (label.delay in model.yaml states it)", delay.days)
    return delay


def missing_days(spec: ModelSpec, ledger: Ledger, interval: Interval, calendar: Interval | None) -> list[Interval]:
    """The stretches of an interval without features, after the first day that ever had any.

    Raises:
        TrainingError: fewer days of ``calendar`` have features than ``schedules.min_days`` requires.
    """
    published = ledger.publications(spec.name, "features")
    if calendar is not None:
        days, needed = calendar.days(), spec.schedules.days_needed(calendar)
        missing = uncovered(calendar, published)
        there = sum(not any(day.overlaps(gap) for gap in missing) for day in days)
        if there < needed:
            raise TrainingError(
                f"{spec.name}: {there} of the {len(days)} days of {calendar} have features, and {needed} are required "
                f"(schedules.min_days in model.yaml). Missing: {', '.join(gap.key for gap in missing)}. Ingest these days with "
                f"{spec.name}.load, or declare them under schedules.closed and clear their runs of {spec.name}.ingest; then "
                f"clear this run"
            )
    first = min(publication.interval.start for publication in published)
    return uncovered(Interval(max(first, interval.start), interval.end), published) if first < interval.end else []


def _read(
    folder: ModelFolder,
    lake: Lake,
    snapshots: Mapping[str, int],
    part: Part,
    interval: Interval,
    labels_known_by: datetime,
    withheld: Sequence[Interval],
) -> PinnedRows:
    """The rows of an interval, as a part of a training set uses them; the arguments are those of :func:`read_rows`."""
    rows, entities = read_rows(folder, lake, snapshots, interval, labels_known_by=labels_known_by, withheld=withheld)
    return PinnedRows(interval, _newest(folder.spec, rows, part), rows.num_rows, entities)


def _read_part(
    folder: ModelFolder, lake: Lake, training_set: TrainingSet, part: Part, interval: Interval | None = None
) -> PinnedRows:
    """A part of a training set that is pinned; of another interval than its own if one is given."""
    known_by = training_set.interval("holdout").start if part == "window" else utc(training_set.as_of)
    within, withheld = interval or training_set.interval(part), training_set.withheld_intervals
    return _read(folder, lake, training_set.snapshots, part, within, known_by, withheld)


def load_rows(folder: ModelFolder, lake: Lake, training_set: TrainingSet, part: Part, staging: Path | None = None) -> pa.Table:
    """The labelled rows of a part: entity key, event time, features, ``label``; ordered by event time and key.

    Args:
        folder: the model's folder.
        lake: contains the rows.
        training_set: says which rows.
        part: window or holdout.
        staging: folder that :func:`build_training_set` wrote the rows to. They are read from it if their hash is that of the
            pinned rows, since this is faster. Otherwise they are read from the lake, for example by a worker on another
            machine.

    Raises:
        TrainingError: the model folder has changed since the rows were pinned, or the lake's rows are not the pinned rows.
    """
    name = training_set.model
    if folder.digest != training_set.folder_digest:
        raise TrainingError(
            f"{name}: the model folder changed after the training set of run {training_set.run_id} was pinned; start a new run"
        )
    if staging is not None and (left := _left(_staged(staging, part))) is not None:
        if content_hash(left) == training_set.content[part]:
            return left
        log.warning("the rows in the staging folder %s are not the pinned rows, so they are read from the lake", staging)
    rows = _read_part(folder, lake, training_set, part).rows
    if content_hash(rows) != training_set.content[part]:
        raise TrainingError(
            f"{name}: the rows of {training_set.interval(part)} are not those that run {training_set.run_id} pinned, although "
            "the snapshots are the same: somebody changed the lake's files by hand. Start a new run"
        )
    return rows


def count_again(folder: ModelFolder, lake: Lake, named: TrainingSet) -> tuple[TrainingSet, dict[Part, pa.Table]]:
    """Read the pinned rows from the lake, and say of them what they are, whatever the training set says.

    Returns:
        The training set, and the rows of window and holdout as :func:`load_rows` gives them.

    Raises:
        TrainingError: the lake's rows are not the pinned rows.
    """
    parts: dict[Part, PinnedRows] = {
        "window": _read_part(folder, lake, named, "window"),
        "holdout": _read_part(folder, lake, named, "holdout"),
    }
    return pinned_again(folder, parts, named), {part: of_part.rows for part, of_part in parts.items()}


def pinned_again(folder: ModelFolder, parts: Mapping[Part, PinnedRows], named: TrainingSet) -> TrainingSet:
    """The training set that consists of these rows, which another one names; the arguments are those of :func:`pinned`.

    Raises:
        TrainingError: the rows are not those that it names.
    """
    counted = pinned(
        folder, parts, named.snapshots, as_of=utc(named.as_of), run_id=named.run_id,
        missing=[Interval.from_key(key) for key in named.missing], withheld=named.withheld_intervals,
    )  # fmt: skip
    if counted.content != named.content:
        raise TrainingError(
            f"{named.model}: the rows of {named.window} and {named.holdout} are not those that run {named.run_id} says it has "
            "pinned"
        )
    return counted


def load_all_rows(folder: ModelFolder, lake: Lake, training_set: TrainingSet) -> tuple[Interval, pa.Table]:
    """What a refit learns from: all labelled rows from the window's beginning to the holdout's end, as known at the as-of time.

    They include the rows between window and holdout, whose labels were not mature when the holdout began. They are ordered by
    event time and key; of more than ``training.max_rows``, the newest are taken.

    Args:
        folder: the model's folder.
        lake: contains the rows.
        training_set: says which snapshots, and which interval.

    Returns:
        The interval and its rows: key, event time, features, ``label``.
    """
    whole = Interval(training_set.interval("window").start, training_set.interval("holdout").end)
    as_of, withheld = utc(training_set.as_of), training_set.withheld_intervals
    return whole, _read(folder, lake, training_set.snapshots, "window", whole, as_of, withheld).rows


def narrowed(folder: ModelFolder, lake: Lake, training_set: TrainingSet, window: str) -> TrainingSet:
    """The training set with the part of the window alone that a candidate has chosen to learn from.

    Args:
        folder: the model's folder.
        lake: contains the rows.
        training_set: has the longest window that ``model.yaml`` names.
        window: the chosen length, :attr:`perennial.model.candidate.Fitted.window`.
    """
    part = training_set.newest(folder.spec.training.length(window))
    if part == training_set.interval("window"):
        return training_set
    return _of_window(folder.spec, training_set, _read_part(folder, lake, training_set, "window", part))


def window_start(spec: ModelSpec, ledger: Ledger, end: datetime, length: timedelta) -> datetime:
    """Where a window of a length begins that ends at a moment. That of everything begins with the first published day.

    Days whose features were removed by retention are no part of everything.
    """
    if length != ALL:
        return end - length
    first = min((one.interval.start for one in ledger.publications(spec.name, "tables")), default=end)
    removed = ledger.removed(spec.name, DATASET, Interval(end - ALL, end))
    first = max([first, *(part.end for part in removed)]).replace(hour=0, minute=0, second=0, microsecond=0)
    return min(first, end - spec.training.validation - timedelta(days=1))


def _staged(staging: Path, part: Part) -> Path:
    return staging / f"training-{part}.arrow"


def _leave(rows: pa.Table, file: Path) -> None:
    """Write rows to a file for the run's other tasks; a file is never partial. If the write fails, only a warning is logged."""
    try:
        with replacing(file) as draft, pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
    except OSError as error:
        log.warning("the rows cannot be written to %s, so each task reads them from the lake: %s", file.parent, error)


def _left(file: Path) -> pa.Table | None:
    """Rows that :func:`_leave` wrote to a file, memory-mapped; None if they cannot be read."""
    try:
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid):  # also if there is no file
        return None


def content_hash(rows: pa.Table) -> str:
    """SHA-256 of a table's values and column names; it does not depend on chunks or storage."""
    digest = hashlib.sha256()
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        digest.update(f"{name}\0{column.type}\0{len(column)}\0".encode())
        values = column.combine_chunks()
        digest.update(np.packbits(values.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(values.type):
            texts = pc.fill_null(values, "")
            digest.update(pc.binary_length(texts).to_numpy(zero_copy_only=False).tobytes())
            _, offsets, content = texts.buffers()
            if content is not None:
                bounds = np.frombuffer(offsets, dtype=np.int32)[[texts.offset, texts.offset + len(texts)]]
                digest.update(memoryview(content)[bounds[0] : bounds[1]])
        else:
            # The bytes below a null are arbitrary, and NaN has many bit patterns. Both are made uniform.
            plain = pc.fill_null(values, pa.scalar(0).cast(values.type)) if values.null_count else values
            numbers = plain.to_numpy(zero_copy_only=False)
            if numbers.dtype.kind == "f" and (missing := np.isnan(numbers)).any():
                numbers = np.where(missing, np.nan, numbers)
            digest.update(np.ascontiguousarray(numbers).view(np.uint8).data)
    return digest.hexdigest()


def mean_label(spec: ModelSpec, rows: pa.Table) -> float | None:
    """The mean label of the rows for a regression; None for other tasks, or without rows."""
    return pc.mean(rows.column(LABEL)).as_py() if spec.task == "regression" else None


def features_without_values(spec: ModelSpec, rows: pa.Table) -> list[str]:
    """The features that have no value in any of the rows."""
    return [name for name in spec.features.names if rows.column(name).null_count == rows.num_rows]


def pinned_snapshots(folder: ModelFolder, ledger: Ledger, dataset: str = DATASET) -> dict[str, int]:
    """The present snapshots of a dataset of features, and of the tables that labels are read from.

    Raises:
        TrainingError: nothing is published.
    """
    spec = folder.spec
    features, tables = ledger.published(spec.name, dataset), ledger.published(spec.name, "tables")
    if features is None or tables is None:
        raise TrainingError(f"{spec.name}: nothing is published yet; run {spec.name}.ingest for a range of past days first")
    needed = {name: snapshot_of(folder, name, tables.snapshots) for name in sorted({spec.label.table, spec.entity.table})}
    return {dataset: features.snapshots[dataset], **needed}


def read_rows(
    folder: ModelFolder,
    lake: Lake,
    snapshots: Mapping[str, int],
    interval: Interval,
    *,
    labels_known_by: datetime,
    withheld: Sequence[Interval],
) -> tuple[pa.Table, int]:
    """Labelled rows of an interval, and the number of its entities.

    Args:
        folder: says which features and which label.
        lake: contains the rows.
        snapshots: of the table with features, and of the tables that labels are read from.
        interval: of the entities' event times.
        labels_known_by: labels that became known later are not used.
        withheld: intervals whose entities are left out.
    """
    spec, table = folder.spec, next(name for name in snapshots if is_features(name))
    key = [*spec.entity_table.key, *([] if spec.event_time in spec.entity_table.key else [spec.event_time])]
    features = lake.scan(
        spec.name,
        table,
        snapshots[table],
        columns=[*key, *spec.features.names],
        interval=interval,
        event_time=spec.event_time,
    ).read_all()
    for part in withheld:
        moments = features.column(spec.event_time)
        start, end = (pa.scalar(moment, moments.type) for moment in (part.start, part.end))
        features = features.filter(pc.or_(pc.less(moments, start), pc.greater_equal(moments, end)))
    # Only keys are joined and sorted. Each label carries the position of its entity's features.
    entities = features.select(key).append_column(_PLACE, pa.array(np.arange(features.num_rows)))
    labels = read_labels(folder, lake, snapshots, interval, as_of=labels_known_by, entities=entities)
    place = labels.column(_PLACE).combine_chunks()
    with ThreadPoolExecutor(pa.cpu_count()) as threads:  # one thread joins a column's chunks and copies its rows
        columns = list(threads.map(lambda column: column.combine_chunks().take(place), features.columns))
    rows = pa.Table.from_arrays(columns, schema=features.schema).append_column(LABEL, labels.column(LABEL).combine_chunks())
    return rows, features.num_rows


def _newest(spec: ModelSpec, rows: pa.Table, part: Part) -> pa.Table:
    """The newest ``max_rows`` rows of the window; all rows of the holdout."""
    return rows if part == "holdout" else rows.slice(max(0, rows.num_rows - spec.training.max_rows))


def _check_window(folder: ModelFolder, lake: Lake, training_set: TrainingSet, window: pa.Table, delay: timedelta) -> None:
    spec = folder.spec
    rows, entities = training_set.rows["window"], training_set.entities["window"]
    if rows < spec.training.min_rows:
        raise TrainingError(
            f"{spec.name}: {training_set.window} has {rows:,} labelled rows, of {entities:,} rows, but training.min_rows is "
            f"{spec.training.min_rows:,}: ingest more past days, or make training.window longer"
            f"{_outlook(folder, lake, training_set, delay)}"
        )
    whole = training_set.interval("window")
    older = Interval(whole.start, whole.end - spec.training.validation)
    if not lake.ledger.publications(spec.name, "features", older):
        raise TrainingError(
            f"{spec.name}: nothing is published of {older}, the part of the window {whole} before training.validation: ingest "
            f"more past days, or make training.validation shorter{_outlook(folder, lake, training_set, delay)}"
        )
    classes = training_set.classes["window"]
    if spec.task != "regression" and len(classes) < 2:
        only = next(iter(classes))
        raise TrainingError(
            f"{spec.name}: all {rows:,} labels in {training_set.window} are {only}, so there is nothing to learn: make "
            "training.window longer, or look at label.sql"
        )
    if spec.task == "regression" and (bad := rows - pc.sum(pc.is_finite(window.column(LABEL))).as_py()):
        raise TrainingError(
            f"{spec.name}: {bad:,} labels in {training_set.window} are NaN or infinite: change label.sql so that it "
            "returns NULL where there is no label"
        )


def _outlook(folder: ModelFolder, lake: Lake, training_set: TrainingSet, delay: timedelta) -> str:
    """The end of a message on too few rows: from which day on a training passes."""
    spec, as_of = folder.spec, utc(training_set.as_of)
    until = Interval(datetime(1, 1, 2, tzinfo=UTC), as_of)
    moments = lake.scan(
        spec.name, "features", training_set.snapshots["features"], columns=[spec.event_time], interval=until,
        event_time=spec.event_time,
    )  # fmt: skip
    days: Counter[datetime] = Counter()
    for batch in moments:
        counted = pc.value_counts(pc.floor_temporal(batch.column(0), unit="day"))
        days.update({found["values"]: found["counts"] for found in counted.to_pylist()})
    labelled, entities = (sum(counts.values()) for counts in (training_set.labelled, training_set.entities))
    first = passes_from(
        days,
        as_of=as_of,
        window=spec.training.longest,
        validation=spec.training.validation,
        holdout=spec.training.holdout,
        delay=delay,
        share=labelled / entities if labelled else 1.0,
        min_rows=spec.training.min_rows,
    )
    if first is None:
        return ""
    labels = f", since labels take {training_set.label_delay} days" if training_set.label_delay else ""
    return f". If as many rows come as until now, training passes as of {first:%Y-%m-%d}{labels}"
