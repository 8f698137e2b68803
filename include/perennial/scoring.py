"""Champion and features of an interval → published predictions, in bounded memory.

Which version predicts is resolved once a run, by number, and that number is what every prediction records. Predictions go
to the lake, as the dataset ``predictions``, and are shown in the predictions database (:mod:`perennial.sink`) once they are
published there. Predictions that no model in its right mind would make are refused before anything of
them can be read.

Neighbours: :mod:`perennial.features` publishes what is read here; :mod:`perennial.drift` and :mod:`perennial.performance`
look back at what is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial import logs
from perennial.artifacts import LoadedModel, Prediction
from perennial.errors import NoChampion, ScoringError
from perennial.evaluation import count_not_finite
from perennial.intervals import Interval, utc
from perennial.lake import Lake, TableWrite
from perennial.ledger import Ledger, Publication, VersionRecord
from perennial.overlap import Follower, ahead
from perennial.registry import Registry
from perennial.sink import PredictionSink
from perennial.spec import ColumnType, ModelFolder, ModelSpec
from perennial.succession import lineage

log = logs.get(__name__)

#: Names of the dataset and of its one table.
DATASET = "predictions"
#: Rows predicted at once; memory does not grow with the interval. Trees take a third less time for rows that stay in the
#: processor's cache than for all rows of a year at once.
CHUNK_ROWS = 32_768
#: From this many entities on, predictions that are all the same are a fault of the model or of its features.
CONSTANT_FROM = 50
#: How often the sink is offered newer rows before something must be wrong.
_SINK_ATTEMPTS = 10

#: Columns that the predictions of a run have in common.
_PROVENANCE = ("version", "features_snapshot", "run_id", "predicted_at")
_MOMENT = pa.timestamp("us", "UTC")
_ARROW: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": _MOMENT,
    "date": pa.date32(),
}


@dataclass(frozen=True)
class Scored:
    """An interval whose predictions are published and in the predictions database.

    Attributes:
        version: the version that predicted.
        rows: predictions, one an entity.
        publication: the ledger's number for them.
        features_snapshot: Iceberg snapshot of the features that were read.
        predictions_snapshot: Iceberg snapshot of the predictions.
        summary: ``minimum``, ``mean`` and ``maximum`` of numeric predictions; by class, the share predicted, otherwise.
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


# --- who predicts ----------------------------------------------------------------------------------------------------


def resolve_champion(registry: Registry, ledger: Ledger, model: str, interval: Interval) -> int:
    """The version that is to score an interval, to be asked once a run.

    The champion, unless it was trained as of a time after the interval's start: then it may have learned from the very
    rows it is to predict, and the newest of its predecessors that cannot have is taken. Predecessors that were rolled
    back from are passed over. If there is none, it is the champion after all.

    Raises:
        NoChampion: no version was ever promoted.
    """
    champion = registry.champion(model)
    if champion is None:
        raise NoChampion(
            f"{model}: no version has been promoted yet, so {interval} cannot be scored: run {model}.train, or promote a "
            "registered version by hand"
        )
    records = {record.version: record for record in ledger.versions(model)}
    if _was_trained_before(records.get(champion), interval):
        return champion
    for version in reversed(lineage(ledger.promotions(model))):
        if version != champion and version in records and _was_trained_before(records[version], interval):
            log.info("version %d scores: champion %d was trained as of a time after %s", version, champion, interval)
            return version
    log.warning(
        "champion %d was trained as of a time after %s begins and no earlier champion can stand in: its predictions may be of "
        "rows it learned from, and say nothing about how good it is",
        champion,
        interval,
    )
    return champion


def trained_as_of(record: VersionRecord | None) -> datetime | None:
    """The time up to which a version may have learned; None if nothing is recorded of it."""
    as_of = record.training.get("as_of") if record is not None else None
    return utc(as_of) if as_of is not None else None


def _was_trained_before(record: VersionRecord | None, interval: Interval) -> bool:
    # Of a version that someone registered by hand nothing is known, and it was made champion all the same.
    as_of = trained_as_of(record)
    return as_of is None or as_of <= interval.start


# --- what is read and written ----------------------------------------------------------------------------------------


def uncovered(interval: Interval, publications: Iterable[Publication]) -> list[Interval]:
    """The parts of an interval that no publication covers, in order."""
    gaps: list[Interval] = []
    reached = interval.start
    for start, end in sorted((publication.interval.start, publication.interval.end) for publication in publications):
        if reached < start:
            gaps.append(Interval(reached, min(start, interval.end)))
        reached = max(reached, end)
        if reached >= interval.end:
            return gaps
    return [*gaps, Interval(reached, interval.end)]


def predictions_schema(spec: ModelSpec) -> pa.Schema:
    """Columns of a model's predictions, in the lake and in the predictions database.

    The entity's key, its event time, ``as_of``, ``prediction`` (probability of true, number or class), for multiclass also
    ``probability`` of that class and ``probabilities`` (a JSON object, by class), then what each prediction must be able to
    answer: ``version``, ``features_snapshot``, ``run_id``, ``predicted_at``.
    """
    table = spec.entity_table
    keys = [name for name in table.key if name != spec.event_time]
    said = [pa.field("prediction", pa.float64(), nullable=False)]
    if spec.task == "multiclass_classification":
        said = [
            pa.field("prediction", pa.string(), nullable=False),
            pa.field("probability", pa.float64(), nullable=False),
            pa.field("probabilities", pa.string(), nullable=False),
        ]
    return pa.schema(
        [
            *(pa.field(name, _ARROW[table.columns[name].type], nullable=False) for name in keys),
            pa.field(spec.event_time, _MOMENT, nullable=False),
            pa.field("as_of", _MOMENT, nullable=False),
            *said,
            pa.field("version", pa.int64(), nullable=False),
            pa.field("features_snapshot", pa.int64(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("predicted_at", _MOMENT, nullable=False),
        ]
    )


def score(
    folder: ModelFolder,
    lake: Lake,
    ledger: Ledger,
    registry: Registry,
    interval: Interval,
    *,
    version: int,
    order: int,
    run_id: str,
    sink_url: str,
) -> Scored:
    """Predict every entity of an interval and publish the predictions, to the lake and to the predictions database.

    Done twice, at once or after a crash at any point, the tables hold the interval's predictions once. A run that was
    overtaken by a later one leaves the later one's predictions as they are.

    Args:
        folder: the model's folder.
        lake: tables are read and written there.
        ledger: names the snapshot that features are read at.
        registry: loads the version.
        interval: its features must be published.
        version: from :func:`resolve_champion`.
        order: the run's rank, from :meth:`Ledger.next_order`.
        run_id: the run.
        sink_url: SQLAlchemy URL of the predictions database.

    Raises:
        ScoringError: features are missing, or the predictions are not fit to be published; nothing was published.
        ArtifactRejected: the stored model is not what was registered.
        Superseded: a later run or attempt has taken over; nothing of this one was published.
    """
    spec = folder.spec
    features = published_features(spec, ledger, interval)
    model = registry.load(spec.name, version, spec=spec)
    if model.features_digest != folder.features_digest:
        log.warning("features.sql or the tables' definition changed since version %d was trained", version)
    predictor = Predictor(spec, lake, model, interval, features.snapshots["features"], run_id)
    return publish_predictions(spec, lake, ledger, predictor, order=order, sink_url=sink_url)


class Predictions(Protocol):
    """Predictions of an interval that are yet to be published, wherever they were made."""

    interval: Interval
    version: int
    features_snapshot: int
    run_id: str
    tally: Tally

    def reader(self) -> pa.RecordBatchReader:
        """All predictions, from the first, with the columns of :func:`predictions_schema`; counted anew by ``tally``."""


def publish_predictions(
    spec: ModelSpec, lake: Lake, ledger: Ledger, predictions: Predictions, *, order: int, sink_url: str
) -> Scored:
    """Publish predictions to the lake and to the predictions database, see :func:`score`.

    The predictions database is sent the rows while the lake is, and shows them when the lake has published. If that is not to
    be or cannot be, it is brought in line from the lake.
    """
    interval, version, run_id = predictions.interval, predictions.version, predictions.run_id
    schema = predictions_schema(spec)
    sink = PredictionSink(sink_url, spec.name, schema, spec.event_time, shared=_PROVENANCE)
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
                inputs={"version": version, "features": predictions.features_snapshot},
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
        features_snapshot=predictions.features_snapshot,
        predictions_snapshot=publication.snapshots[DATASET],
        run_id=run_id,
        summary=predictions.tally.summary(),
    )
    log.info("version %d predicted %s entities: %s", version, f"{scored.rows:,}", scored.summary)
    return scored


def published_features(spec: ModelSpec, ledger: Ledger, interval: Interval) -> Publication:
    """The publication whose snapshots the features of an interval are read at.

    Raises:
        ScoringError: days of the interval have no features.
    """
    newest = ledger.published(spec.name, "features")
    gaps = uncovered(interval, ledger.publications(spec.name, "features", interval))
    if newest is None or gaps:
        raise ScoringError(
            f"{spec.name}, {interval}: no features are published for {', '.join(gap.key for gap in gaps)}: run "
            f"{spec.name}.ingest for these days first"
        )
    return newest


class Tally:
    """What the predictions of an interval look like as a whole, counted as they pass.

    Attributes:
        rows: how many have passed.
    """

    def __init__(self, about: str) -> None:
        self._about = about
        self.restart()

    def restart(self) -> None:
        self.rows = 0
        self._sum, self._least, self._most = 0.0, np.inf, -np.inf
        self._shares: dict[str, int] = {}

    def add(self, values: NDArray[Any], probability: NDArray[Any] | None) -> None:
        """Count some rows.

        Args:
            values: numbers, probabilities or classes.
            probability: of the class, where ``values`` are classes.
        """
        numbers = values if probability is None else probability
        self.rows += len(values)
        self._sum += float(numbers.sum())
        self._least, self._most = min(self._least, numbers.min()), max(self._most, numbers.max())
        if values.dtype.kind != "f":
            for name, count in zip(*np.unique(values.astype(str), return_counts=True), strict=True):
                self._shares[str(name)] = self._shares.get(str(name), 0) + int(count)

    def check(self) -> None:
        """Refuse predictions that are all the same.

        Raises:
            ScoringError: they are, and there are many of them.
        """
        if self.rows >= CONSTANT_FROM and self._least == self._most:
            raise ScoringError(
                f"{self._about} predicts {self._least:g} for every one of {self.rows:,} entities; nothing was published. Look "
                "at the features of these days; if they are sound, roll back"
            )

    def summary(self) -> dict[str, float]:
        """``minimum``, ``mean`` and ``maximum`` of numbers; of classes, the share of each."""
        if not self.rows:
            return {}
        if self._shares:
            return {name: count / self.rows for name, count in sorted(self._shares.items(), key=lambda pair: -pair[1])[:20]}
        return {"minimum": float(self._least), "mean": self._sum / self.rows, "maximum": float(self._most)}


class Predictor:
    """The predictions of an interval, made as they are read, and what they look like as a whole.

    The table is written as it is read from here, so an error that is raised at the last row still publishes nothing.

    Attributes:
        columns: what it reads of the features: the entity's key and times, then the model's features.
    """

    def __init__(
        self, spec: ModelSpec, lake: Lake, model: LoadedModel, interval: Interval, features_snapshot: int, run_id: str
    ) -> None:
        assert model.version is not None  # only what is registered scores
        self._spec, self._lake, self._model = spec, lake, model
        self.interval, self.version = interval, model.version
        self.features_snapshot, self.run_id = features_snapshot, run_id
        self._predicted_at = datetime.now(UTC)
        self._schema = predictions_schema(spec)
        self._keys = list(self._schema.names[: self._schema.get_field_index("as_of") + 1])
        self.columns = [*self._keys, *(name for name in model.features if name not in self._keys)]
        self._about = f"{spec.name}, {interval}: version {model.version}"
        self.tally = Tally(self._about)

    @property
    def rows(self) -> int:
        """How many entities have been predicted so far."""
        return self.tally.rows

    def reader(self) -> pa.RecordBatchReader:
        """All predictions, from the first; each call predicts anew, while those before are being used."""
        return pa.RecordBatchReader.from_batches(self._schema, ahead(self.batches()))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All predictions, from the first.

        Raises:
            ScoringError: they are not fit to be published.
        """
        self.tally.restart()
        features = self._lake.scan(
            self._spec.name,
            "features",
            self.features_snapshot,
            columns=self.columns,
            interval=self.interval,
            event_time=self._spec.event_time,
        )
        for chunk in ahead(_chunks(features, CHUNK_ROWS)):
            yield from self.predict(chunk).to_batches()
        self.tally.check()

    def predict(self, chunk: pa.Table) -> pa.Table:
        """The predictions of some rows of features.

        Raises:
            ScoringError: they are not fit to be published.
        """
        prediction = self._model.predict(chunk)
        if len(prediction) != chunk.num_rows:
            raise ScoringError(
                f"{self._about} gave {len(prediction):,} predictions for {chunk.num_rows:,} entities; nothing was published"
            )
        numbers = prediction.probability if prediction.probability is not None else prediction.values
        unfit = max(count_not_finite(prediction.values), count_not_finite(numbers))
        if unfit:
            raise ScoringError(
                f"{self._about}: {unfit:,} of {chunk.num_rows:,} predictions are NaN or infinite; nothing was published. Look "
                f"at the features of these days; if they are sound, roll back with {self._spec.name}.rollback"
            )
        self.tally.add(prediction.values, prediction.probability)
        return self._table(chunk, prediction)

    def _table(self, chunk: pa.Table, prediction: Prediction) -> pa.Table:
        rows = chunk.num_rows
        columns: dict[str, Any] = {name: chunk.column(name) for name in self._keys}
        if "probability" in self._schema.names:
            columns["prediction"] = pa.array(prediction.values.astype(str), pa.string())
            columns["probability"] = pa.array(prediction.probability)
            columns["probabilities"] = probabilities_as_json(prediction)
        else:
            columns["prediction"] = pa.array(prediction.values, pa.float64())
        columns["version"] = pa.repeat(pa.scalar(self._model.version, pa.int64()), rows)
        columns["features_snapshot"] = pa.repeat(pa.scalar(self.features_snapshot, pa.int64()), rows)
        columns["run_id"] = pa.repeat(pa.scalar(self.run_id), rows)
        columns["predicted_at"] = pa.repeat(pa.scalar(self._predicted_at, _MOMENT), rows)
        return pa.table([columns[name] for name in self._schema.names], names=self._schema.names).cast(self._schema)


def probabilities_as_json(prediction: Prediction) -> pa.Array:
    """``{"class": probability, …}`` a row."""
    assert prediction.probabilities is not None  # multiclass
    parts: list[Any] = []
    for number, name in enumerate(prediction.classes):
        opening = pa.scalar(("{" if number == 0 else ",") + json.dumps(name) + ":")
        parts += [opening, pc.cast(pa.array(prediction.probabilities[:, number]), pa.string())]
    return pc.binary_join_element_wise(*parts, pa.scalar("}"), "")


def _chunks(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """The reader's rows in tables of ``rows`` rows, the last one shorter: a file may hold ten rows or ten million."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        start = 0
        while count + batch.num_rows - start >= rows:
            take = rows - count
            yield pa.Table.from_batches([*waiting, batch.slice(start, take)])
            waiting, count, start = [], 0, start + take
        if start < batch.num_rows:
            waiting.append(batch.slice(start))
            count += batch.num_rows - start
    if waiting:
        yield pa.Table.from_batches(waiting)


def _is_copied(copying: Follower[pa.RecordBatch, int | None]) -> bool:
    try:
        return copying.result() is not None
    # Whatever it is: the same is done again from the lake, and fails for everybody to see if it must.
    except Exception as error:
        log.warning("predictions are copied from the lake, as they could not be while they were made: %s", error)
        return False


def _copy_to_sink(spec: ModelSpec, lake: Lake, ledger: Ledger, interval: Interval, sink: PredictionSink) -> None:
    """Bring the predictions database in line with what is published for the interval now.

    What is copied is the newest publication rather than this run's own: a run that slept while another one published then
    copies the other's rows, and it does not matter who is last.
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
        f"{spec.name}, {interval}: the predictions database holds rows of a publication that this ledger does not know; the "
        f"two do not belong together. If the ledger was restored from a backup, drop {spec.name}_predictions and "
        f"{spec.name}_scored and score again"
    )
