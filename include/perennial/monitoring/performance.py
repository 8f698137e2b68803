"""Measures realised performance after labels have arrived.

Predictions are compared with the labels that were known by a given time, window by window. The metrics are the same as for
candidates (:mod:`perennial.evaluation.metrics`). Predictions for rows that a version may have learned from are left out,
because they would make it look better than it is.

Neighbours: :mod:`perennial.monitoring.usual` says which of these measurements are worse than usual, and
:mod:`perennial.monitoring.retraining` decides from that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.core.intervals import Interval, utc
from perennial.deployment import Deployment
from perennial.evaluation.comparison import Arena, compare
from perennial.evaluation.metrics import evaluate_prediction
from perennial.evaluation.probes import same_for_all
from perennial.evidence.evaluation import Evaluation
from perennial.evidence.monitoring import Constant
from perennial.features.labels import read_labels
from perennial.features.maturity import mature_until
from perennial.lake.publish import Lake
from perennial.ledger.coverage import label_delay, trained_as_of
from perennial.ledger.records import Performance, Publication, VersionRecord
from perennial.ledger.store import Ledger
from perennial.ledger.succession import completed
from perennial.model.artifacts import Prediction
from perennial.model.costs import CostFunction, cost_function
from perennial.model.probabilities import read_probabilities
from perennial.monitoring.usual import Holdout, JudgedWindow, judge_windows
from perennial.scoring.predictor import DATASET, of_other_entities
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS
from perennial.spec.types import ALL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Realised:
    """A new measurement of a version's performance in a window.

    Attributes:
        metrics: by name, as in the evaluation on the holdout.
        rows: the number of labelled predictions that were measured.
        coverage: share of the version's predictions in the window whose label was known by ``as_of``, 0 to 1.
        in_sample: the number of predictions left out because the version was trained as of a later time.
        as_of: labels that became known later are not used.
        constant: what the same answer for every row would have reached.
    """

    model: str
    interval: Interval
    version: int
    metrics: dict[str, float]
    rows: int
    coverage: float
    in_sample: int
    as_of: datetime
    constant: Constant = field(default_factory=Constant)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": self.interval.key, "as_of": self.as_of.isoformat()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Realised:
        typed = {"interval": Interval.from_key(value["interval"]), "as_of": utc(value["as_of"])}
        return cls(**{**value, **typed, "constant": Constant.from_json(value.get("constant") or {})})


def measure_performance(
    folder: ModelFolder, deployment: Deployment, interval: Interval, *, as_of: datetime, run_id: str
) -> list[Realised]:
    """Measure the windows up to the end of ``interval`` for which enough labels, or more labels than before, have arrived.

    Windows are the days or ISO weeks of ``schedules.monitor``. They lie in ``interval``, or before its end by at most the
    length of the training window and the time that labels take. Each version that predicted in a window is measured when the
    window's labels are mature (:func:`perennial.features.maturity.mature_until`), at least ``gates.min_rows`` labels are known
    by ``as_of``, and labels for at least the share ``gates.label_coverage`` of its predictions. A version that was trained for
    another task than the present one is not measured. So the run of a later window
    measures a window whose labels came late. It is measured again when more labels are known, or when predictions or labels
    were published again. The ledger records each measurement.

    Args:
        folder: the model's folder.
        deployment: holds predictions and labels; its ledger gets the measurements.
        interval: the monitoring window.
        as_of: labels that became known later are not used.
        run_id: the run.

    Returns:
        The new measurements, oldest window first.
    """
    spec, lake, ledger = folder.spec, deployment.lake, deployment.ledger
    predictions, tables = ledger.published(spec.name, DATASET), ledger.published(spec.name, "tables")
    if predictions is None or tables is None:
        log.info("nothing to measure: no predictions are published yet")
        return []
    if (obstacle := not_comparable(spec, lake, {DATASET: predictions}, tables)) is not None:
        log.warning("nothing to measure: %s", obstacle)
        return []
    champion = ledger.champion(spec.name)
    delay = label_delay(spec.label, ledger.version(spec.name, champion) if champion is not None else None)
    mature = mature_until(as_of, delay)
    back = _A_YEAR if spec.training.longest == ALL else spec.training.longest
    earliest = min(interval.start, mature_until(interval.end - back, delay))
    windows = [
        window
        for window in Interval(earliest, interval.end).windows(spec.schedules.window)
        if window.end <= mature or not delay
    ]
    if not windows:
        log.info("nothing to measure: labels take %d days, and those of %s are not mature yet", delay.days, interval)
        return []
    span = Interval(windows[0].start, windows[-1].end)
    scored, ingested = (ledger.publications(spec.name, dataset, span) for dataset in (DATASET, "tables"))
    versions = ledger.versions(spec.name)
    records = {record.version: record for record in versions}
    others = of_another_task(spec, versions)
    recorded = ledger.performances(spec.name)
    newest_labels = _newest_labels(spec, lake, tables, windows, as_of)
    realised: list[Realised] = []
    for window in windows:
        by = {publication.inputs.get("version") for publication in scored if publication.interval.overlaps(window)}
        if by <= others:
            continue
        before = {record.version: record for record in recorded if record.interval == window}
        since = min((record.recorded_at for record in before.values()), default=None)
        republished = since is None or any(
            publication.published_at > since and publication.interval.overlaps(window) for publication in (*scored, *ingested)
        )
        measured_until = min((record.as_of for record in before.values()), default=None)
        newest = newest_labels.get(window, as_of)
        if not republished and measured_until is not None and newest <= measured_until:
            continue
        predicted = _read_predictions(spec, lake, predictions, window)
        joined = _join_labels(spec, predicted, read_labels(folder, lake, tables.snapshots, window, as_of=as_of))
        made_by = {int(version) for version in pc.unique(predicted.column("version")).to_pylist()}
        for version in sorted(made_by - others):
            measured = _measure(folder, window, version, joined, records.get(version), as_of)
            record = before.get(version)
            if measured is None or (record is not None and not _is_news(measured, record, republished)):
                continue
            ledger.record_performance(
                model=spec.name,
                interval=window,
                version=version,
                metrics=measured.metrics,
                rows=measured.rows,
                coverage=measured.coverage,
                as_of=as_of,
                run_id=run_id,
                constant=measured.constant,
            )
            log.info("%s: version %d on %d labelled rows: %s", window, version, measured.rows, measured.metrics)
            realised.append(measured)
    return realised


def judged_windows(spec: ModelSpec, ledger: Ledger, version: int | None, *, until: datetime) -> list[JudgedWindow]:
    """The newest measured windows of a version's recipe, each with what it is compared with, oldest first.

    Windows that end before the last training of the recipe that was promoted are not among them: a new model has answered them.

    Args:
        spec: the model's spec.
        ledger: holds the measurements.
        version: the version; None: there is none, and the result is empty.
        until: later windows are left out.
    """
    versions = ledger.versions(spec.name)
    recipe = recipe_of(versions, version)
    promoted = {promotion.version for promotion in completed(ledger.promotions(spec.name))}
    begun = [
        as_of for record in trainings_of(versions) if record.version in recipe & promoted and (as_of := trained_as_of(record))
    ]
    return judge_windows(
        spec.retraining,
        spec.primary_metric,
        greater_is_better=METRICS[spec.task][spec.primary_metric],
        performances=ledger.performances(spec.name),
        recipe=recipe,
        holdouts={record.version: holdout_of(spec, record.evaluation) for record in versions if record.version in recipe},
        until=until,
        since=max((as_of for as_of in begun if as_of < until), default=None),
        withheld=ledger.withheld(spec.name),
    )


def trainings_of(versions: Iterable[VersionRecord]) -> list[VersionRecord]:
    """The versions that count as trainings for cooldown, budget and breaker, and after which windows are judged anew.

    Refreshes do not count: they are the champion's recipe with newer rows.
    """
    return [record for record in versions if trained_as_of(record) is not None and not record.is_refresh]


def recipe_of(versions: Sequence[VersionRecord], version: int | None) -> set[int]:
    """The version and all others that were made by the same recipe of other rows."""
    own = next((record.training.recipe for record in versions if record.version == version), "")
    same = {record.version for record in versions if own and record.training.recipe == own}
    return same if version is None else same | {version}


def holdout_of(spec: ModelSpec, evaluation: Evaluation) -> Holdout:
    """The primary metric of a version on its own holdout, as far as its evaluation has it."""
    metric, candidate = spec.primary_metric, evaluation.candidate
    ends = candidate.intervals.get(metric)
    return Holdout(
        candidate.metrics.get(metric, math.nan),
        None if ends is None else (ends[0], ends[1]),
        spec.gates.resampling.confidence,
        evaluation.rows,
        Interval.from_key(evaluation.interval).length if evaluation.interval else timedelta(),
    )


def not_comparable(spec: ModelSpec, lake: Lake, predicted: Mapping[str, Publication], tables: Publication) -> str | None:
    """Why predictions cannot be joined with labels as the model's folder is now; None if they can.

    Args:
        spec: the model's spec.
        lake: holds the predictions.
        predicted: by dataset, its newest publication.
        tables: the newest publication of the tables.
    """
    if absent := sorted({spec.entity.table, spec.label.table} - tables.snapshots.keys()):
        return f"table {', '.join(absent)} of model.yaml was never published"
    told = (of_other_entities(spec, lake, name, made.snapshots.get(name)) for name, made in predicted.items())
    return next((obstacle for obstacle in told if obstacle is not None), None)


def of_another_task(spec: ModelSpec, versions: Iterable[VersionRecord]) -> set[int]:
    """The versions that were trained for another task. Their predictions answer another question than the labels do."""
    return {record.version for record in versions if record.training.task not in (None, spec.task)}


def _is_news(measured: Realised, record: Performance, republished: bool) -> bool:
    if measured.rows > record.rows:
        return True
    changed = (measured.metrics, measured.rows) != (record.metrics, record.rows)
    return republished and changed and measured.as_of >= record.as_of


def _newest_labels(
    spec: ModelSpec, lake: Lake, tables: Publication, windows: list[Interval], as_of: datetime
) -> dict[Interval, datetime]:
    """By window, the time when the newest of its labels that are known by ``as_of`` became known.

    Windows without labels are left out. This reads only two columns, so that windows without new labels need not be read. If
    the labels' event time is not the entities' event time, it does not tell the window, and the result is empty.
    """
    event_time = spec.label_table.event_time
    if event_time is None or event_time != spec.event_time:
        return {}
    start, length = windows[0].start, windows[0].length
    newest = np.full(len(windows), _NEVER, dtype=np.int64)
    span = Interval(start, windows[-1].end)
    snapshot = tables.snapshots[spec.label.table]
    columns = [event_time, "_known_at"]
    for batch in lake.scan(spec.name, spec.label.table, snapshot, columns=columns, interval=span, known_by=as_of):
        happened, known = (batch.column(name).cast(pa.int64()).to_numpy() for name in columns)
        window = (happened - int(start.timestamp()) * 1_000_000) // (int(length.total_seconds()) * 1_000_000)
        np.maximum.at(newest, window, known)
    return {
        window: _EPOCH + timedelta(microseconds=int(moment))
        for window, moment in zip(windows, newest, strict=True)
        if moment != _NEVER
    }


#: How far back late labels are looked for, if the training window is everything.
_A_YEAR = timedelta(days=365)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = np.iinfo(np.int64).min


def _read_predictions(spec: ModelSpec, lake: Lake, published: Publication, window: Interval) -> pa.Table:
    said = ["prediction"]
    if spec.task == "multiclass_classification":
        said.append("probabilities")
    columns = list(dict.fromkeys([*spec.entity_table.key, spec.event_time, *said, "version"]))
    return lake.scan(
        spec.name, DATASET, published.snapshots[DATASET], columns=columns, interval=window, event_time=spec.event_time
    ).read_all()


def _join_labels(spec: ModelSpec, predicted: pa.Table, labels: pa.Table) -> pa.Table:
    """The predictions with the column ``label``, which is null where no label is known."""
    identity = list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))
    return predicted.join(labels.select([*identity, "label"]), keys=identity, join_type="left outer")


def _measure(
    folder: ModelFolder, window: Interval, version: int, joined: pa.Table, record: VersionRecord | None, as_of: datetime
) -> Realised | None:
    """The version's metrics on the window; None if too few labels are known, or no metric is defined."""
    spec, trained = folder.spec, trained_as_of(record)
    rows = joined.filter(pc.equal(joined.column("version"), version))
    everything = rows.num_rows
    if trained is not None:
        rows = rows.filter(pc.greater_equal(rows.column(spec.event_time), pa.scalar(trained, pa.timestamp("us", "UTC"))))
    in_sample = everything - rows.num_rows
    if in_sample:
        log.info(
            "%s: %d of %d predictions of version %d are left out: it was trained as of %s and may have learned from these rows",
            window,
            in_sample,
            everything,
            version,
            trained,
        )
    labelled = rows.filter(rows.column("label").is_valid())
    coverage = labelled.num_rows / rows.num_rows if rows.num_rows else 0.0
    if labelled.num_rows < spec.gates.min_rows or coverage < spec.gates.label_coverage:
        log.info(
            "%s: version %d cannot be measured yet: labels of %d of %d predictions (%.0f%%) are known by %s; needed are %d "
            "rows and %.0f%%",
            window,
            version,
            labelled.num_rows,
            rows.num_rows,
            100 * coverage,
            as_of,
            spec.gates.min_rows,
            100 * spec.gates.label_coverage,
        )
        return None
    probabilities, classes = read_probabilities(labelled)
    truth, cost = labelled.column("label").to_numpy(), cost_function(folder)
    predicted = Prediction(labelled.column("prediction").to_numpy(), None, probabilities, classes)
    metrics = evaluate_prediction(spec.task, truth, predicted, cost)
    if not metrics:
        log.warning("%s: no metric of version %d is defined on %d labelled rows", window, version, labelled.num_rows)
        return None
    constant = _measure_constant(spec, window, labelled, truth, predicted, metrics, record, cost)
    return Realised(spec.name, window, version, metrics, labelled.num_rows, coverage, in_sample, as_of, constant)


def _measure_constant(
    spec: ModelSpec,
    window: Interval,
    rows: pa.Table,
    truth: NDArray[Any],
    predicted: Prediction,
    metrics: Mapping[str, float],
    record: VersionRecord | None,
    cost: CostFunction | None,
) -> Constant:
    """What the same answer for every row would have reached on these rows, and how sure it is that the version is worse."""
    answer = None if record is None else _same_answer(spec, record, len(truth))
    if answer is None:
        return Constant()
    found = evaluate_prediction(spec.task, truth, answer, cost)
    metric = spec.primary_metric
    value, other = metrics.get(metric, math.nan), found.get(metric, math.nan)
    if not (value < other if METRICS[spec.task][metric] else value > other):
        return Constant(found)
    arena = Arena.of(by_key_or_time(spec), rows, truth, window, cost)
    compared, _ = compare(arena, predicted, answer, (arena.metrics(predicted), arena.metrics(answer)))
    return Constant(found, compared)


def _same_answer(spec: ModelSpec, record: VersionRecord, rows: int) -> Prediction | None:
    """The share of each class, or the mean label, in the version's training rows, for each row; None if that is not known."""
    if spec.task == "regression":
        mean = record.training.mean_label
        return None if mean is None else same_for_all(spec.task, mean, rows)
    counts = record.training.classes.get("window") or {}
    if not sum(counts.values()):
        return None
    if spec.task == "multiclass_classification":
        return same_for_all(spec.task, counts, rows)
    return same_for_all(spec.task, counts.get("true", counts.get("True", 0)) / sum(counts.values()), rows)


def by_key_or_time(spec: ModelSpec, **changed: Any) -> ModelSpec:
    """The spec with a resampling that predictions allow: by blocks of time, unless the group is a column of the key, because
    predictions have no other features.

    Args:
        spec: the model's spec.
        **changed: further changes of ``gates.resampling``.
    """
    resampling = spec.gates.resampling
    changed = {**changed, "group": resampling.group if resampling.group in spec.entity_table.key else None}
    gates = spec.gates.model_copy(update={"resampling": resampling.model_copy(update=changed)})
    return spec.model_copy(update={"gates": gates})
