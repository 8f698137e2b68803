"""Predicts with a loaded version: reads features, returns predictions in the table's columns, and counts them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perennial.core.errors import ScoringError, SpecError
from perennial.core.intervals import Interval
from perennial.core.streams import ahead
from perennial.evaluation.metrics import count_not_finite
from perennial.lake.publish import Lake
from perennial.lake.schema import ARROW, MOMENT
from perennial.model.artifacts import LoadedModel, Prediction
from perennial.model.probabilities import probabilities_as_json
from perennial.registry.folders import FeaturesAt
from perennial.spec.model import ModelSpec

#: Name of the dataset and of its only table.
DATASET = "predictions"
#: Rows predicted at once, so that memory does not grow with the interval. Trees take a third less time for rows that stay
#: in the processor's cache than for all rows of a year at once.
CHUNK_ROWS = 32_768
#: If at least this many entities all have the same prediction, the model or its features are faulty.
CONSTANT_FROM = 50

#: Columns whose values are the same for all predictions of a run.
PROVENANCE = ("version", "features_snapshot", "run_id", "predicted_at")


def predictions_schema(spec: ModelSpec) -> pa.Schema:
    """Return the columns of a model's predictions, in the lake and in the predictions database.

    - The entity's key, its event time, and ``as_of``.
    - ``prediction``: the probability of true, a number, or a class.
    - For multiclass also ``probability`` of that class, and ``probabilities``, a JSON object by class.
    - The origin of the prediction: ``version``, ``features_snapshot``, ``run_id``, ``predicted_at``.
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
            *(pa.field(name, ARROW[table.columns[name].type], nullable=False) for name in keys),
            pa.field(spec.event_time, MOMENT, nullable=False),
            pa.field("as_of", MOMENT, nullable=False),
            *said,
            pa.field("version", pa.int64(), nullable=False),
            pa.field("features_snapshot", pa.int64(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("predicted_at", MOMENT, nullable=False),
        ]
    )


def refuse_other_predictions(spec: ModelSpec, lake: Lake) -> None:
    """Refuse a task whose predictions cannot stand beside those that are published: classes are texts, others are numbers.

    Raises:
        SpecError: the message says what to do.
    """
    try:
        lake.check_types(spec.name, DATASET, pa.schema([predictions_schema(spec).field("prediction")]))
    except SpecError as error:
        raise SpecError(
            f"{spec.name}: {spec.task} gives {'classes' if spec.task == 'multiclass_classification' else 'numbers'}, and the "
            "predictions that are published are of the other kind. Describe it as a model with another name, and end this one "
            f"with `perennial retire {spec.name}`"
        ) from error


def of_other_entities(spec: ModelSpec, lake: Lake, dataset: str, snapshot: int | None) -> str | None:
    """What to tell people if published predictions lack the key or event time of the present entities; None if they do not.

    Args:
        spec: the model's spec, as it is now.
        lake: holds the predictions.
        dataset: the dataset, and the table's name.
        snapshot: the snapshot of the table; None if the lake was removed when the model was retired.
    """
    if snapshot is None:
        return f"the {dataset} were removed with the lake when the model was retired, and no new ones are published"
    there = lake.columns(spec.name, dataset, snapshot)
    gone = [name for name in dict.fromkeys([*spec.entity_table.key, spec.event_time]) if name not in there]
    return f"the published {dataset} were made for entities without {', '.join(gone)}" if gone else None


class PredictionTally:
    """Statistics of an interval's predictions, updated with each chunk.

    Attributes:
        rows: number of predictions counted so far.
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
            probability: probability of the class, if ``values`` are classes.
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
            ScoringError: all of at least :data:`CONSTANT_FROM` predictions are the same.
        """
        if self.rows >= CONSTANT_FROM and self._least == self._most:
            raise ScoringError(
                f"{self._about} predicts {self._least:g} for each of {self.rows:,} entities; nothing was published. Check "
                "the features of these days; if they are correct, roll back"
            )

    def summary(self) -> dict[str, float]:
        """Return ``minimum``, ``mean`` and ``maximum`` of numbers, or the share of each of the 20 most frequent classes."""
        if not self.rows:
            return {}
        if self._shares:
            return {name: count / self.rows for name, count in sorted(self._shares.items(), key=lambda pair: -pair[1])[:20]}
        return {"minimum": float(self._least), "mean": self._sum / self.rows, "maximum": float(self._most)}


class Predictor:
    """The predictions of an interval, computed while they are read, and their statistics.

    The table is published only after all rows were read from here. So even an error at the last row publishes nothing.

    Attributes:
        columns: columns that are read from the features: the entity's key and times, then the model's features.
        features: where the version's features are read.
    """

    def __init__(
        self, spec: ModelSpec, lake: Lake, model: LoadedModel, interval: Interval, features: FeaturesAt, run_id: str
    ) -> None:
        assert model.version is not None  # only registered versions score
        self._spec, self._lake, self._model = spec, lake, model
        self.interval, self.version = interval, model.version
        self.features, self.run_id = features, run_id
        self._predicted_at = datetime.now(UTC)
        self._schema = predictions_schema(spec)
        self._keys = list(self._schema.names[: self._schema.get_field_index("as_of") + 1])
        self.columns = [*self._keys, *(name for name in model.features if name not in self._keys)]
        self._about = f"{spec.name}, {interval}: version {model.version}"
        self.tally = PredictionTally(self._about)

    @property
    def features_snapshot(self) -> int:
        """The snapshot of the features; each prediction records it."""
        return self.features.snapshot

    @property
    def rows(self) -> int:
        """The number of entities predicted so far."""
        return self.tally.rows

    def reader(self) -> pa.RecordBatchReader:
        """Return all predictions, from the first; each call predicts again. The next chunk is predicted while one is used."""
        return pa.RecordBatchReader.from_batches(self._schema, ahead(self.batches()))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all predictions, from the first.

        Raises:
            ScoringError: the predictions must not be published.
        """
        self.tally.restart()
        features = self._lake.scan(
            self._spec.name,
            self.features.dataset,
            self.features.snapshot,
            columns=self.columns,
            interval=self.interval,
            event_time=self._spec.event_time,
        )
        for chunk in ahead(_chunks(features, CHUNK_ROWS)):
            yield from self.predict(chunk).to_batches()
        self.tally.check()

    def predict(self, chunk: pa.Table) -> pa.Table:
        """Predict some rows of features.

        Raises:
            ScoringError: the predictions must not be published.
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
                f"{self._about}: {unfit:,} of {chunk.num_rows:,} predictions are NaN or infinite; nothing was published. Check "
                f"the features of these days; if they are correct, roll back with {self._spec.name}.rollback"
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
        columns["predicted_at"] = pa.repeat(pa.scalar(self._predicted_at, MOMENT), rows)
        return pa.table([columns[name] for name in self._schema.names], names=self._schema.names).cast(self._schema)


def _chunks(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """Yield the reader's rows in tables of ``rows`` rows; the last is shorter. A file may hold ten rows or ten million."""
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
