"""A deployment in which the model ``toy`` has versions and published features: what scoring and monitoring work on."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.model.artifacts import FeatureList, predict
from perennial.model.candidate import Fitted
from perennial.model.estimators import make_estimator
from perennial.registry.store import Registry
from perennial.scoring.publish import Scored, score
from perennial.spec.folder import ModelFolder, read_model
from perennial.training.fit import code_state, log_folder
from tests.unit import synthetic
from tests.unit.synthetic import MOMENT

WEEK = Interval.of("2013-04-01", "2013-04-08")  # a Monday to a Monday
DAY = Interval.day("2013-04-01")


@dataclass
class World:
    """A separate deployment with one model."""

    deployment: Deployment
    folder: ModelFolder

    @property
    def settings(self) -> Settings:
        return self.deployment.settings

    @property
    def ledger(self) -> Ledger:
        return self.deployment.ledger

    @property
    def lake(self) -> Lake:
        return self.deployment.lake

    @property
    def registry(self) -> Registry:
        return self.deployment.registry

    @property
    def model(self) -> str:
        return self.folder.spec.name

    def publish(
        self,
        interval: Interval = DAY,
        *,
        rows_a_day: int = 60,
        seed: int = 11,
        change: Callable[[pd.DataFrame], Any] | None = None,
    ) -> pd.DataFrame:
        """Publish the tables of an interval and their features, and return the rows.

        Args:
            interval: whole days.
            rows_a_day: entities per day.
            seed: of the rows; the same one gives the same rows.
            change: changes the rows in place before they are published.
        """
        rows = synthetic.make_rows(len(interval.days()), rows_a_day, seed=seed, start=interval.start)
        if change is not None:
            change(rows)
        synthetic.publish_tables(self.lake, self.ledger, rows, interval, run_id=f"ingest-{interval.key}-{seed}")
        self.publish_features(rows, interval, run_id=f"features-{interval.key}-{seed}")
        return rows

    def publish_features(self, rows: pd.DataFrame, interval: Interval, *, run_id: str) -> Publication:
        table = pa.table(
            {
                "visit": pa.array(rows["visit"], pa.string()),
                "moment": pa.array(rows["moment"], MOMENT),
                "as_of": pa.array(rows["moment"] - timedelta(hours=1), MOMENT),
                "x": pa.array(rows["x"], pa.float64(), from_pandas=True),
                "noise": pa.array(rows["noise"], pa.float64(), from_pandas=True),
                "kind": pa.array(rows["kind"], pa.string(), from_pandas=True),
            }
        )
        return self.lake.publish(
            model=self.model,
            dataset="features",
            interval=interval,
            tables={"features": TableWrite(data=table.to_reader, event_time="moment", schema=table.schema)},
            order=self.ledger.next_order(self.model, "features", interval, run_id),
            run_id=run_id,
            inputs={
                "features_digest": self.folder.features_digest,
                "publication": self.ledger.head(self.model, "tables").publication_id,
            },
        )

    def register(
        self,
        as_of: str = "2013-03-26",
        *,
        spoil: Callable[[Any], Any] | None = None,
        seed: int = 5,
        known: Mapping[str, Any] | None = None,
    ) -> int:
        """Fit, log and register a version.

        Args:
            as_of: end of its training data, as it is recorded.
            spoil: changes the fitted estimator before it is stored.
            seed: of its training rows; other rows give other predictions.
            known: what else is recorded of its training rows.
        """
        spec = self.folder.spec
        rows = synthetic.make_rows(10, seed=seed)
        table = pa.Table.from_pandas(rows[["x", "noise", "kind"]], preserve_index=False)
        frame = FeatureList.of(spec).frame(table)
        truth = {
            "binary_classification": (rows["y"] > 0.5).to_numpy(),
            "multiclass_classification": np.where(rows["y"] < -0.5, "low", np.where(rows["y"] < 0.7, "middle", "high")).astype(
                object
            ),
            "regression": rows["y"].to_numpy(),
        }[spec.task]
        candidate = "linear" if spec.task == "regression" else "logistic"
        estimator = make_estimator(self.folder, candidate, {}).fit(frame, truth)
        said = predict(spec.task, estimator, frame).values
        if spoil is not None:
            spoil(estimator)
        reference = table.append_column("label", pa.array(truth)).append_column("prediction", pa.array(said))
        run_id = f"train-{as_of}-{seed}"
        with self.registry.open_run(self.model, candidate, {"perennial.run_id": run_id}) as run:
            stored = run.log_model(spec, estimator, example=frame.head(3), reference=reference, params={})
            log_folder(run, self.folder)
        fitted = Fitted(
            candidate=candidate, baseline=False, params={}, metrics={}, score=None, greater_is_better=True,
            mlflow_run_id=run.id, model_id=stored.model_id, manifest=stored.manifest, code=code_state(self.folder),
            seconds={},
        )  # fmt: skip
        training = dataclasses.replace(
            synthetic.training_set_of(self.folder, run_id),
            as_of=f"{as_of}T00:00:00+00:00",
            pin=f"training-{as_of}-{seed}",
            **(known or {}),
        )
        evaluation = synthetic.evaluation_of()
        return self.registry.register(self.folder, training, fitted, evaluation, synthetic.judge(evaluation), run_id=run_id)

    def promote(self, version: int, *, run_id: str | None = None) -> None:
        self.registry.promote(
            self.model, version, expected=self.ledger.champion(self.model), reason="it is better", actor="tester",
            run_id=run_id, evidence={},
        )  # fmt: skip

    def score(
        self, version: int, interval: Interval = DAY, *, run_id: str | None = None, sink_url: str | None = None
    ) -> Scored:
        run_id = run_id or f"score-{interval.key}-{version}"
        return score(
            self.folder,
            self.deployment,
            interval,
            version=version,
            order=self.ledger.next_order(self.model, "predictions", interval, run_id),
            run_id=run_id,
            sink_url=sink_url or self.settings.predictions_url,
        )

    def predictions(self, interval: Interval = DAY) -> list[dict[str, Any]]:
        """The predictions that the ledger names as published, in order of the key."""
        published = self.ledger.published(self.model, "predictions")
        if published is None:
            return []
        rows = self.lake.scan(
            self.model, "predictions", published.snapshots["predictions"], interval=interval, event_time="moment"
        )
        return sorted(rows.read_all().to_pylist(), key=lambda row: row["visit"])

    def sink(self, url: str | None = None) -> list[dict[str, Any]]:
        """What consumers read, in order of the key; nothing if there is no table yet."""
        engine = sa.create_engine(url or self.settings.predictions_url, poolclass=NullPool)
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table(f"{self.model}_predictions"):
                return []
            query = sa.text(f"SELECT * FROM {self.model}_predictions ORDER BY visit")
            return [dict(row) for row in connection.execute(query).mappings()]


@lru_cache(maxsize=1)
def _empty_mlflow() -> bytes:
    """An empty, migrated database of MLflow; migrating one takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return synthetic.make_template(Path(folder)).read_bytes()


def make_world(place: Path, settings: Settings, task: str = "binary_classification", **replaced: str) -> World:
    """A world below ``place``.

    Args:
        place: an empty folder.
        settings: where its parts are.
        task: of the model.
        replaced: see :func:`tests.unit.synthetic.write_folder`.
    """
    database = Path(settings.mlflow_url.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    database.write_bytes(_empty_mlflow())
    deployment = Deployment(settings)
    deployment.ledger.migrate()
    return World(deployment, synthetic.write_folder(place / "models", task, **replaced))


def open_world(place: Path, settings: Settings) -> World:
    """A world that another process has made."""
    return World(Deployment(settings), read_model(place / "models" / "toy"))


def as_utc(value: Any) -> datetime:
    """A time as either database gives it back, in UTC."""
    return utc(value if not isinstance(value, str) else f"{value}+00:00")
