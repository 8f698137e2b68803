"""How good the champion really was, once labels have arrived.

Predictions are compared with the labels that were known by a given time, window by window, in the metrics that candidates
are judged by (:mod:`perennial.evaluation.metrics`). A version's predictions of rows that it may have learned from are left out:
they would say that it is better than it is.

Neighbours: :mod:`perennial.monitoring.retraining` weighs what is measured here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.intervals import Interval, utc
from perennial.deployment import Deployment
from perennial.evaluation.metrics import evaluate
from perennial.features.labels import read_labels
from perennial.features.maturity import mature_until
from perennial.lake.publish import Lake
from perennial.ledger.coverage import label_delay, trained_as_of
from perennial.ledger.records import Performance, Publication
from perennial.model.costs import cost_function
from perennial.model.probabilities import read_probabilities
from perennial.scoring.predictor import DATASET
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Realised:
    """How a version did on a window, measured anew.

    Attributes:
        metrics: by name, as in the holdout's evaluation.
        rows: labelled predictions they rest on.
        coverage: share of the version's predictions of the window whose label was known by ``as_of``.
        in_sample: predictions left out because the version was trained as of a later time.
    """

    model: str
    interval: Interval
    version: int
    metrics: dict[str, float]
    rows: int
    coverage: float
    in_sample: int
    as_of: datetime

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": self.interval.key, "as_of": self.as_of.isoformat()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Realised:
        return cls(**{**value, "interval": Interval.from_key(value["interval"]), "as_of": utc(value["as_of"])})


def measure_performance(
    folder: ModelFolder, deployment: Deployment, interval: Interval, *, as_of: datetime, run_id: str
) -> list[Realised]:
    """Measure the windows up to the end of ``interval`` that can be measured now and could not, or less well, before.

    Windows are the days or ISO weeks of ``schedules.monitor`` that lie in ``interval`` or in as long a time before its end
    as a version trains on and its labels take. A window is measured, for each version that predicted in it, when its labels
    are mature (:func:`perennial.features.maturity.mature_until`), and at least ``gates.min_rows`` labels, and labels for the
    share ``gates.label_coverage`` of its predictions, are known by ``as_of``; again, when more are, or when predictions or
    labels were published anew. Each measurement is recorded in the ledger. So the run of a later window measures a window
    whose labels came late.

    Args:
        folder: the model's folder.
        deployment: predictions and labels are read there; its ledger keeps the measurements.
        interval: the monitoring window.
        as_of: labels known later are not used.
        run_id: the run.

    Returns:
        What was measured, oldest window first; empty when there is nothing new.
    """
    spec, lake, ledger = folder.spec, deployment.lake, deployment.ledger
    predictions, tables = ledger.published(spec.name, DATASET), ledger.published(spec.name, "tables")
    if predictions is None or tables is None:
        log.info("nothing to measure: no predictions are published yet")
        return []
    champion = ledger.champion(spec.name)
    delay = label_delay(spec.label, ledger.version(spec.name, champion) if champion is not None else None)
    mature = mature_until(as_of, delay)
    earliest = min(interval.start, mature_until(interval.end - spec.training.window, delay))
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
    trained = {record.version: trained_as_of(record) for record in ledger.versions(spec.name)}
    recorded = ledger.performances(spec.name)
    newest_labels = _newest_labels(spec, lake, tables, windows, as_of)
    realised: list[Realised] = []
    for window in windows:
        if not any(publication.interval.overlaps(window) for publication in scored):
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
        for version in sorted(int(version) for version in pc.unique(predicted.column("version")).to_pylist()):
            measured = _measure(folder, window, version, joined, trained.get(version), as_of)
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
            )
            log.info("%s: version %d on %d labelled rows: %s", window, version, measured.rows, measured.metrics)
            realised.append(measured)
    return realised


def _is_news(measured: Realised, record: Performance, republished: bool) -> bool:
    if measured.rows > record.rows:
        return True
    changed = (measured.metrics, measured.rows) != (record.metrics, record.rows)
    return republished and changed and measured.as_of >= record.as_of


def _newest_labels(
    spec: ModelSpec, lake: Lake, tables: Publication, windows: list[Interval], as_of: datetime
) -> dict[Interval, datetime]:
    """When the newest of each window's labels known by ``as_of`` came; windows without labels are left out.

    One look at two columns spares the windows that have nothing new. Where a label's time is not its entity's, it does not
    tell, and the result is empty.
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
    """The predictions with ``label``, null where none is known."""
    identity = list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))
    return predicted.join(labels.select([*identity, "label"]), keys=identity, join_type="left outer")


def _measure(
    folder: ModelFolder, window: Interval, version: int, joined: pa.Table, trained: datetime | None, as_of: datetime
) -> Realised | None:
    """The version's metrics on the window; None if its labels do not suffice."""
    spec = folder.spec
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
            "%s: version %d cannot be measured yet: labels of %d of %d predictions (%.0f%%) are known by %s, and %d rows and "
            "%.0f%% are needed",
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
    metrics = evaluate(
        spec.task,
        labelled.column("label").to_numpy(),
        labelled.column("prediction").to_numpy(),
        probabilities=probabilities,
        classes=classes,
        cost=cost_function(folder),
    )
    if not metrics:
        log.warning("%s: no metric of version %d is defined on %d labelled rows", window, version, labelled.num_rows)
        return None
    return Realised(spec.name, window, version, metrics, labelled.num_rows, coverage, in_sample, as_of)
