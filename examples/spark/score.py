"""Score an interval on Spark, by the same rules as ``perennial score``: for when one machine is too small.

What may predict what, and what readers see, is decided where it always is; Spark does the work in between:

1. The driver takes its order in the ledger, resolves the champion by number, and asks the ledger at which snapshot the features
   are published. PyIceberg plans which Parquet files of that snapshot hold the interval.
2. Spark reads these files. Each of its Python workers loads the version through the registry, which checks every file against
   the ledger's manifest and unpickles nothing, and predicts with the code that ``perennial score`` predicts with.
3. Spark writes the predictions to a staging folder. The driver streams them into the lake, a batch in memory at a time, and
   commits: the claim, the ledger's row, the snapshot and the predictions database are those of any other scoring run.

    PYTHONPATH=… .venv/bin/python examples/spark/score.py flight_delay 2013-04-01 2013-04-08

Driver and workers need the package ``perennial`` and the variables of ``.env.example``; lake, staging folder and MLflow must be
reachable from both. With the Iceberg runtime jar on Spark's class path, step 1's list of files may be left out, see README.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset as ds
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812  # as all of Spark's documentation has it
from pyspark.sql.pandas.types import from_arrow_schema

from perennial.core import logs
from perennial.core.intervals import Interval
from perennial.core.settings import settings
from perennial.deployment import Deployment
from perennial.registry.folders import FeaturesAt, own_features, own_folder
from perennial.scoring.champion import resolve_champion
from perennial.scoring.predictor import PredictionTally, Predictor, predictions_schema
from perennial.scoring.publish import Scored, publish_predictions


def predictor(model: str, version: int, key: str, features: FeaturesAt, run_id: str) -> Predictor:
    """What predicts; whichever process asks loads the version's files, and checks them."""
    parts = Deployment(settings())
    spec = parts.model(model).spec
    loaded = parts.registry.load(model, version, spec=spec)
    return Predictor(spec, parts.lake, loaded, Interval.from_key(key), features, run_id)


class SparkPredictions:
    """Predictions that Spark has written as Parquet files, ready to be published."""

    def __init__(self, folder: Path, schema: pa.Schema, made_by: Predictor) -> None:
        self.interval, self.version = made_by.interval, made_by.version
        self.features, self.run_id = made_by.features, made_by.run_id
        self.tally = PredictionTally(f"{self.interval}: version {self.version}")
        self._folder, self._schema = folder, schema

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        self.tally.restart()
        for batch in ds.dataset(self._folder, format="parquet", schema=self._schema).to_batches():
            if batch.num_rows:
                said = batch["probability"].to_numpy() if "probability" in self._schema.names else None
                self.tally.add(batch["prediction"].to_numpy(zero_copy_only=False), said)
                yield batch
        self.tally.check()


def predict_on(spark: SparkSession, parts: Deployment, made_by: Predictor, model: str) -> DataFrame:
    """The predictions of the interval, as a plan that Spark has not begun yet."""
    spec, interval, read = parts.model(model).spec, made_by.interval, made_by.features
    with parts.lake.scan(model, read.dataset, read.snapshot, columns=made_by.columns, interval=interval) as reader:
        columns = from_arrow_schema(reader.schema)
    files = parts.lake.files(model, read.dataset, read.snapshot, interval)
    time = F.col(spec.event_time)
    features = (
        # A file may hold other days too, and may be older than a column; by its schema, such a column is empty.
        spark.read.schema(columns).parquet(*files) if files else spark.createDataFrame([], columns)
    ).where((time >= F.lit(interval.start)) & (time < F.lit(interval.end)))
    asked = (model, made_by.version, interval.key, read, made_by.run_id)

    def predict(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        made = predictor(*asked)
        for batch in batches:
            if batch.num_rows:
                yield from made.predict(pa.Table.from_batches([batch])).to_batches()

    return features.mapInArrow(predict, from_arrow_schema(predictions_schema(spec)))


def score(spark: SparkSession, model: str, interval: Interval) -> Scored:
    """Score an interval, see :func:`perennial.scoring.publish.score`, whose errors are these too."""
    parts = Deployment(settings())
    folder, run_id = parts.model(model), f"spark-{uuid4().hex[:12]}"
    with logs.context(model=model, interval=interval, run=run_id):
        order = parts.ledger.next_order(model, "predictions", interval, run_id)
        version = resolve_champion(parts.registry, parts.ledger, model, interval)
        own = own_folder(parts.registry, version, folder)
        features = own_features(own, parts.lake, interval, run_id=run_id)
        made_by = predictor(model, version, interval.key, features, run_id)
        staged = parts.settings.staging / model / run_id
        try:
            predict_on(spark, parts, made_by, model).write.parquet(str(staged))
            predictions = SparkPredictions(staged, predictions_schema(folder.spec), made_by)
            return publish_predictions(
                folder.spec, parts.lake, parts.ledger, predictions, order=order, sink_url=parts.settings.predictions_url
            )
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def session() -> SparkSession:
    """A session whose timestamps mean what those of the lake mean; Spark's own settings say where it runs."""
    return (
        SparkSession.builder.appName("perennial")
        .config("spark.sql.session.timeZone", str(UTC))
        .config("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
        .getOrCreate()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Score an interval with the champion, on Spark.")
    parser.add_argument("model")
    parser.add_argument("start", help="first day (UTC)")
    parser.add_argument("end", help="the first day that is left out")
    chosen = parser.parse_args()
    scored = score(session(), chosen.model, Interval.of(chosen.start, chosen.end))
    sys.stdout.write(f"{scored.model}, {scored.interval}: {scored.rows:,} predictions by version {scored.version}\n")


if __name__ == "__main__":
    main()
