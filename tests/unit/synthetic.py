"""A small model of each task, with rows whose truth is known: what the training and registry tests work on."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from threadpoolctl import threadpool_limits

from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.evidence.decision import GateDecision, GateResult
from perennial.evidence.evaluation import (
    Contender,
    Evaluation,
    GainOverChampion,
    Operation,
    PredictionSummary,
    Robustness,
    Slices,
)
from perennial.evidence.training import TrainingSet
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.store import Ledger
from perennial.model.artifacts import FeatureList
from perennial.model.candidate import Fitted
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder, read_model
from perennial.spec.training import METRICS
from perennial.training.fit import code_state

MOMENT = pa.timestamp("us", tz="UTC")
START = Interval.day("2013-03-01").start
LABELS = {
    "binary_classification": "y > 0.5",
    "multiclass_classification": "CASE WHEN y < -0.5 THEN 'low' WHEN y < 0.7 THEN 'middle' ELSE 'high' END",
    "regression": "y",
}
CANDIDATES = {
    "binary_classification": "logistic: {estimator: logistic_regression, baseline: true}",
    "multiclass_classification": "logistic: {estimator: logistic_regression, baseline: true}",
    "regression": "linear: {estimator: linear_regression, baseline: true}",
}
MODEL = """
name: toy
owner: testers
description: A model whose truth is known.
task: {task}
sources:
  rows: {{files: "rows/%Y-%m-%d.csv"}}
tables:
  visits:
    source: rows
    key: [visit]
    event_time: moment
    known: moment - INTERVAL 1 DAY
    columns:
      visit: {{type: string}}
      moment: {{type: timestamp}}
      x: {{type: float}}
      noise: {{type: float, nullable: true}}
      kind: {{type: string, nullable: true}}
  outcomes:
    source: rows
    key: [visit]
    event_time: moment
    known: moment + INTERVAL 1 HOUR
    columns:
      visit: {{type: string}}
      moment: {{type: timestamp}}
      y: {{type: float}}
entity: {{table: visits, as_of: moment - INTERVAL 1 HOUR}}
features:
  numeric: [x, noise]
  categorical: [kind]
label: {{table: outcomes, sql: "{label}"}}
candidates:
  prior: {{estimator: prior, baseline: true}}
  {baseline}
  boosting:
    estimator: gradient_boosting
    params: {{max_iter: 30}}
    search: {{max_leaf_nodes: [4, 8]}}
training: {{window: 20d, holdout: 5d, validation: 5d, min_rows: 100}}
gates: {{min_rows: 50}}
"""


def write_folder(models: Path, task: str = "binary_classification", *, code: str = "", **replaced: str) -> ModelFolder:
    """A model folder named ``toy``.

    Args:
        models: the folder of model folders.
        task: one of three.
        code: text of ``model.py``.
        replaced: changes of ``model.yaml``, each as ``old => new``; the names of the arguments do not matter.
    """
    text = MODEL.format(task=task, label=LABELS[task], baseline=CANDIDATES[task])
    for change in replaced.values():
        old, _, new = change.partition(" => ")
        assert old in text, old
        text = text.replace(old, new)
    folder = models / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(text)
    (folder / "features.sql").write_text("SELECT visit, x, noise, kind FROM entities\n")
    if code:
        (folder / "model.py").write_text(textwrap.dedent(code))
    return read_model(folder)


def make_rows(days: int, rows_a_day: int = 60, *, seed: int = 0, start: Any = START) -> pd.DataFrame:
    """Visits with their outcome ``y``: mostly ``x``, shifted by kind, with some noise, never by ``noise``."""
    generator = np.random.default_rng(seed)
    n = days * rows_a_day
    x, noise = generator.normal(size=n), generator.normal(size=n)
    noise[generator.random(n) < 0.1] = np.nan
    kind = generator.choice(np.array(["a", "b", None], dtype=object), n, p=[0.6, 0.3, 0.1])
    y = np.sin(2 * x) + 0.8 * (kind == "b") + 0.3 * generator.normal(size=n)
    moment = [start + timedelta(days=day, minutes=20 * row) for day in range(days) for row in range(rows_a_day)]
    visit = [f"v{row:06d}-{seed}" for row in range(n)]
    return pd.DataFrame({"visit": visit, "moment": moment, "x": x, "noise": noise, "kind": kind, "y": y})


def publish_tables(lake: Lake, ledger: Ledger, rows: pd.DataFrame, interval: Interval, *, run_id: str = "ingest") -> None:
    """Publish rows as the tables ``visits`` and ``outcomes`` of an interval, as ingest would.

    The outcome is known an hour later, or after the row's ``known_after``.
    """
    strings, floats = ("visit", "kind"), ("x", "noise", "y")

    def table(columns: list[str], known: timedelta | pd.Series) -> pa.Table:
        kinds = {**dict.fromkeys(strings, pa.string()), **dict.fromkeys(floats, pa.float64()), "moment": MOMENT}
        content = {name: pa.array(rows[name], type=kinds[name], from_pandas=True) for name in columns}
        content["_known_at"] = pa.array(rows["moment"] + known, type=MOMENT)
        return pa.table(content)

    def write(columns: list[str], known: timedelta | pd.Series) -> TableWrite:
        content = table(columns, known)
        return TableWrite(data=content.to_reader, event_time="moment", schema=content.schema)

    lake.publish(
        model="toy",
        dataset="tables",
        interval=interval,
        tables={
            "visits": write(["visit", "moment", "x", "noise", "kind"], -timedelta(days=1)),
            "outcomes": write(["visit", "moment", "y"], rows["known_after"] if "known_after" in rows else timedelta(hours=1)),
        },
        order=ledger.next_order("toy", "tables", interval, run_id),
        run_id=run_id,
        inputs={},
    )


# --- the registry without a lake -------------------------------------------------------------------------------------


def copy_store(template: Path, settings: Settings) -> None:
    """Put a copy of an empty, migrated MLflow database where the settings want it; migrating each takes a second."""
    target = Path(settings.mlflow_url.removeprefix("sqlite:///"))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(template, target)


def deployment(state: Path) -> Settings:
    """A separate deployment below a folder, with the tables of its ledger."""
    state.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{state / 'perennial.db'}"
    Ledger(database).migrate()
    return Settings(
        models=state / "models",
        state=state,
        data=state,
        database_url=database,
        catalog_url=f"sqlite:///{state / 'catalog.db'}",
        warehouse=str(state / "lake"),
        predictions_url=database,
        mlflow_url=f"sqlite:///{state / 'mlflow.db'}",
    )


def make_template(folder: Path) -> Path:
    """An empty, migrated MLflow database."""
    settings = deployment(folder)
    Registry(settings, Ledger(settings.database_url)).migrate()
    return folder / "mlflow.db"


def training_set_of(folder: ModelFolder, run_id: str = "run-1") -> TrainingSet:
    return TrainingSet(
        model="toy",
        run_id=run_id,
        as_of="2013-03-26T00:00:00+00:00",
        window="2013-03-01--2013-03-21",
        holdout="2013-03-21--2013-03-26",
        snapshots={"features": 1, "outcomes": 2},
        pin="training-1",
        folder_digest=folder.digest,
        features_digest=folder.features_digest,
        rows={"window": 300, "holdout": 100},
        labelled={"window": 300, "holdout": 100},
        entities={"window": 300, "holdout": 100},
        classes={"window": {}, "holdout": {}},
        content={"window": "a" * 64, "holdout": "b" * 64},
    )


@lru_cache(maxsize=3)
def _fit_a_few(task: Any) -> tuple[Any, pa.Table, pd.DataFrame]:
    """A booster, the rows it was fitted on, and an example of them."""
    rows = make_rows(5)
    table = pa.Table.from_pandas(rows[["x", "noise", "kind"]], preserve_index=False)
    frame = FeatureList(("x", "noise"), ("kind",)).frame(table)
    truth = {
        "binary_classification": (rows["y"] > 0.5).to_numpy(),
        "multiclass_classification": np.where(rows["y"] < -0.5, "low", np.where(rows["y"] < 0.7, "middle", "high")).astype(
            object
        ),
        "regression": rows["y"].to_numpy(),
    }[task]
    booster = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    columns = ColumnTransformer([("numeric", "passthrough", ["x", "noise"]), ("categorical", OrdinalEncoder(), ["kind"])])
    with threadpool_limits(1):
        fitted = make_pipeline(columns, booster(max_iter=5, random_state=0)).fit(frame, truth)
    return fitted, table, frame.head(3)


def log_candidate(registry: Registry, folder: ModelFolder, *, run_id: str = "run-1", estimator: Any = None) -> Fitted:
    """A candidate fitted on a few rows and logged, without a lake."""
    made, table, example = _fit_a_few(folder.spec.task)
    fitted = made if estimator is None else estimator
    with registry.open_run("toy", "boosting", {"perennial.run_id": run_id}) as run:
        stored = run.log_model(folder.spec, fitted, example=example, reference=table, params={"max_iter": 5})
        run.log(metrics={"validation_roc_auc": 0.7}, params={"max_iter": 5})
    return Fitted(
        candidate="boosting",
        baseline=False,
        params={"max_iter": 5},
        metrics={"roc_auc": 0.7},
        score=0.7,
        greater_is_better=True,
        mlflow_run_id=run.id,
        model_id=stored.model_id,
        manifest=stored.manifest,
        code=code_state(folder),
        seconds={"search": 0.0, "fit": 0.0},
    )


def evaluation_of(auc: float = 0.7, champion: Contender | None = None) -> Evaluation:
    def contender(role: Any, value: float) -> Contender:
        return Contender(
            name="boosting" if role == "candidate" else "prior",
            role=role,
            metrics={"roc_auc": value},
            rows=100,
            rows_hash="b" * 64,
            predictions=PredictionSummary(100, 0, 90, 0.1, 0.3, 0.9),
            trained_on="2013-03-01--2013-03-21",
        )

    evaluation = Evaluation(
        model="toy",
        task="binary_classification",
        metric="roc_auc",
        interval="2013-03-21--2013-03-26",
        entities=100,
        rows=100,
        rows_hash="b" * 64,
        classes={"False": 60, "True": 40},
        not_finite_inputs={},
        candidate=contender("candidate", auc),
        baselines=[contender("baseline", 0.5)],
        champion=champion,
    )
    return with_evidence(evaluation)


def with_evidence(evaluation: Evaluation, *, width: float = 0.0005) -> Evaluation:
    """The evaluation with all evidence that the gates need beside its metrics. All of it is good.

    Args:
        evaluation: what it is added to.
        width: how far the bounds of the gain lie from it.
    """
    metric, candidate, champion = evaluation.metric, evaluation.candidate, evaluation.champion
    values = [contender.metrics.get(metric) if contender else None for contender in (candidate, champion)]
    comparison = None
    if values[0] is not None and values[1] is not None:
        gain = (values[0] - values[1]) * (1 if METRICS[evaluation.task][metric] else -1)
        comparison = GainOverChampion(
            gain=gain, low=gain - width, high=gain + width, lower=gain - width / 2, upper=gain + width / 2, identical=0.0,
            blocks=7, block="1d", resamples=1_000, seed=2013, confidence=0.95,
        )  # fmt: skip
    constant = {"roc_auc": 0.5, "log_loss": 0.7, "rmse": 10.0}.get(metric, 0.0)
    clean = constant if values[0] is None else values[0]
    return replace(
        evaluation,
        as_of=Interval.from_key(evaluation.interval).end.isoformat(),
        training_classes={} if evaluation.task == "regression" else {"false": 240, "true": 60},
        training_coverage=1.0,
        comparison=comparison,
        slices=None if champion is None else Slices([], []),
        groups=[],
        robustness=Robustness(100, clean, constant, {"x": clean}, {"x": clean}, {}),
        behaviour={},
        operation=Operation(rows=100, difference=0.0, same_features=True, latency=5.0, load_seconds=0.5, artifact_mb=0.1),
        alone={"x": 0.6},
        without_values=[],
    )


def judge(evaluation: Evaluation) -> GateDecision:
    """A decision by one gate instead of all: what follows from a decision does not depend on the number of gates."""
    auc = evaluation.candidate.metrics["roc_auc"]
    result = GateResult("baseline", auc > 0.5, f"roc_auc of boosting is {auc:g}, that of prior 0.5")
    return GateDecision(result.passed, [result], evaluation.candidate.name, evaluation.champion_version)


def register(registry: Registry, folder: ModelFolder, run_id: str = "run-1", auc: float = 0.7) -> tuple[int, GateDecision]:
    """Log, judge and register a candidate; its number and the gates' decision."""
    evaluation = evaluation_of(auc)
    decision = judge(evaluation)
    fitted = log_candidate(registry, folder, run_id=run_id)
    return registry.register(folder, training_set_of(folder, run_id), fitted, evaluation, decision, run_id=run_id), decision
