"""Scores an interval with a version and publishes the predictions, in bounded memory.

The version is resolved once per run, by number, and every prediction records this number. Predictions are published in the
lake, as the dataset ``predictions``. After that they are visible in the predictions database
(:mod:`perennial.scoring.sink`). Predictions that are obviously wrong are refused before anyone can read them.

Neighbours: :mod:`perennial.features.publish` publishes the features that are read here; :mod:`perennial.drift.compare` and
:mod:`perennial.monitoring.performance` read the predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from perennial.core.errors import ScoringError
from perennial.core.intervals import Interval
from perennial.core.streams import Follower
from perennial.deployment import Deployment
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.store import Ledger
from perennial.registry.folders import FeaturesAt, own_features, own_folder
from perennial.scoring.predictor import DATASET, PROVENANCE, PredictionTally, Predictor, predictions_schema
from perennial.scoring.sink import PredictionSink
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

log = logging.getLogger(__name__)

#: Number of attempts to write the newest rows to the sink; if all fail, the sink and the ledger do not belong together.
_SINK_ATTEMPTS = 10


@dataclass(frozen=True)
class Scored:
    """An interval whose predictions are published in the lake and in the predictions database.

    Attributes:
        version: the version that predicted.
        rows: number of predictions, one per entity.
        publication: the publication's number in the ledger.
        features_snapshot: Iceberg snapshot of the features that were read.
        predictions_snapshot: Iceberg snapshot of the predictions.
        summary: ``minimum``, ``mean`` and ``maximum`` of numeric predictions; otherwise the predicted share by class.
    """

    model: str
    interval: Interval
    version: int
    rows: int
    publication: int
    features_snapshot: int
    predictions_snapshot: int
    run_id: str
    summary: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": self.interval.key}


def score(
    folder: ModelFolder,
    deployment: Deployment,
    interval: Interval,
    *,
    version: int,
    order: int,
    run_id: str,
    sink_url: str,
) -> Scored:
    """Predict every entity of an interval and publish the predictions, to the lake and to the predictions database.

    If this is done twice, at the same time or after a crash at any point, the tables contain the interval's predictions
    once. A run does not change predictions that a later run has published.

    Args:
        folder: the model's folder.
        deployment: the lake to read and write, and the registry that loads the version.
        interval: the interval; its features must be published.
        version: from :func:`resolve_champion`.
        order: the run's rank, from :meth:`Ledger.next_order`.
        run_id: the run.
        sink_url: SQLAlchemy URL of the predictions database.

    Raises:
        ScoringError: features are missing, or the predictions were refused, and nothing was published; or the predictions
            database refused the rows, which are then published in the lake only.
        VersionUnusable: the version's files, or what its features are made of, are gone.
        ArtifactRejected: the stored model is not the one that was registered.
        Superseded: a later run or attempt has taken over; this one published nothing.
    """
    spec, lake, ledger = folder.spec, deployment.lake, deployment.ledger
    # First, since it says best what is wrong with a version that cannot be used.
    model = deployment.registry.load(spec.name, version, spec=spec)
    own = own_folder(deployment.registry, version, folder)
    features = own_features(own, lake, interval, run_id=run_id)
    predictor = Predictor(spec, lake, model, interval, features, run_id)
    return publish_predictions(spec, lake, ledger, predictor, order=order, sink_url=sink_url)


class Predictions(Protocol):
    """Predictions of an interval that are not published yet, no matter where they were made."""

    interval: Interval
    version: int
    features: FeaturesAt
    run_id: str
    tally: PredictionTally

    def reader(self) -> pa.RecordBatchReader:
        """Return all predictions, from the first, in the columns of :func:`predictions_schema`; ``tally`` starts again."""


def publish_predictions(
    spec: ModelSpec, lake: Lake, ledger: Ledger, predictions: Predictions, *, order: int, sink_url: str
) -> Scored:
    """Publish predictions to the lake and to the predictions database, see :func:`score`.

    Rows are sent to the predictions database while they are written to the lake. They become visible there after the lake
    has published them. If that fails, or a newer publication exists, the predictions database is updated from the lake.
    """
    interval, version, run_id = predictions.interval, predictions.version, predictions.run_id
    schema = predictions_schema(spec)
    sink = PredictionSink(sink_url, spec.name, schema, spec.event_time, shared=PROVENANCE)
    published: Future[int] = Future()

    def copy(rows: Iterable[pa.RecordBatch]) -> int | None:
        return sink.write(interval, published.result, rows)

    with Follower(copy) as copying:

        def rows() -> pa.RecordBatchReader:
            return pa.RecordBatchReader.from_batches(schema, copying.passing(predictions.reader()))

        try:
            publication = lake.publish(
                model=spec.name,
                dataset=DATASET,
                interval=interval,
                tables={DATASET: TableWrite(data=rows, event_time=spec.event_time, schema=schema)},
                order=order,
                run_id=run_id,
                inputs={
                    "version": version,
                    "features": predictions.features.snapshot,
                    "features_dataset": predictions.features.dataset,
                    **({} if (seen := predictions.features.publication) is None else {"features_publication": seen}),
                },
            )
            newest = ledger.publications(spec.name, DATASET, interval)[-1]
            if newest.id == publication.id:
                published.set_result(publication.id)
        finally:
            published.cancel()  # unless it is set
        copied = not published.cancelled() and _is_copied(copying)
    if not copied:
        _copy_to_sink(spec, lake, ledger, interval, sink)
    scored = Scored(
        model=spec.name,
        interval=interval,
        version=version,
        rows=predictions.tally.rows,
        publication=publication.id,
        features_snapshot=predictions.features.snapshot,
        predictions_snapshot=publication.snapshots[DATASET],
        run_id=run_id,
        summary=predictions.tally.summary(),
    )
    log.info("version %d predicted %s entities: %s", version, f"{scored.rows:,}", scored.summary)
    return scored


def _is_copied(copying: Follower[pa.RecordBatch, int | None]) -> bool:
    try:
        return copying.result() is not None
    # Any error: the copy is repeated from the lake, and a lasting error is raised there.
    except Exception as error:
        log.warning("predictions could not be copied while they were made, so they are copied from the lake: %s", error)
        return False


def _copy_to_sink(spec: ModelSpec, lake: Lake, ledger: Ledger, interval: Interval, sink: PredictionSink) -> None:
    """Bring the predictions database in line with what is published for the interval now.

    The newest publication is copied, not this run's own. If another run published in the meantime, its rows are copied, so
    the order in which runs end does not matter.
    """
    for _ in range(_SINK_ATTEMPTS):
        newest = ledger.published(spec.name, DATASET)
        assert newest is not None  # this run has published
        rows = lake.scan(
            spec.name,
            DATASET,
            newest.snapshots[DATASET],
            columns=predictions_schema(spec).names,
            interval=interval,
            event_time=spec.event_time,
        )
        if sink.write(interval, newest.id, rows) is not None:
            return
    raise ScoringError(
        f"{spec.name}, {interval}: the predictions database holds rows of a publication that this ledger does not know, so "
        f"the two do not belong together. If the ledger was restored from a backup, drop {spec.name}_predictions and "
        f"{spec.name}_scored and score again"
    )
