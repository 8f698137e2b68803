"""From a pinned training set to candidates, logged and measured.

Each candidate is searched on the newest part of the window, fitted on all of it, and logged to MLflow by
:mod:`perennial.registry.store`. The best of them by validation then meets the baselines and the champion on the holdout,
which none of them has seen; :mod:`perennial.evaluation.gates` decides what follows. Neighbours:
:mod:`perennial.training.training_set`, :mod:`perennial.model.estimators`, :mod:`perennial.evaluation.metrics`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from perennial.core.errors import ScoringError, TrainingError
from perennial.evaluation import plots
from perennial.evaluation.metrics import evaluate_metric, evaluate_prediction
from perennial.lake.publish import Lake
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, Prediction
from perennial.model.candidate import Fitted, TrainingSet
from perennial.model.costs import cost_function
from perennial.model.estimators import combinations, make_estimator, show_params
from perennial.model.labels import LABEL, labels_of
from perennial.model.probabilities import probabilities_as_json
from perennial.registry.runs import KEY, MAX_TAG, CandidateRun
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS
from perennial.training.training_set import load_rows

log = logging.getLogger(__name__)


#: Rows on which the importance of features is measured, and about how often they are predicted: together less than half a
#: second for a booster.
_IMPORTANCE_ROWS = 1_000
_IMPORTANCE_PREDICTIONS = 60
#: Shuffled frames that are in memory at once.
_IMPORTANCE_FRAMES = 16
_EXAMPLE_ROWS = 5
#: Where a run in MLflow keeps the model folder's files.
FOLDER = "folder"
#: The tag that keeps a run's :class:`Fitted` for a retry.
_FITTED = "perennial.fitted"


@dataclass(frozen=True)
class _Trial:
    """One combination of a search space, fitted on the older part of the window and measured on the validation part."""

    params: dict[str, Any]
    metrics: dict[str, float]
    estimator: Any
    prediction: Prediction


def fit_candidate(
    folder: ModelFolder,
    candidate: str,
    training_set: TrainingSet,
    lake: Lake,
    registry: Registry,
    *,
    run_id: str,
    staging: Path | None = None,
) -> Fitted:
    """Search a candidate's parameters, fit it on the whole window, and log it as one run in MLflow.

    A retry that finds what an earlier attempt of the same run has logged returns that.

    Args:
        folder: the model's folder.
        candidate: its name in ``model.yaml``.
        training_set: what to learn from.
        lake: where the rows are.
        registry: where to log.
        run_id: the run of the orchestration.
        staging: where :func:`build_training_set` left the rows, if it did.

    Raises:
        TrainingError: it could not be made, fitted or stored; the message tells which and why.
    """
    spec, declared = folder.spec, folder.spec.candidates[candidate]
    rows = load_rows(folder, lake, training_set, "window", staging)
    identity = "\0".join((run_id, candidate, folder.digest, training_set.content["window"]))
    key = hashlib.sha256(identity.encode()).hexdigest()
    if _FITTED in (logged := registry.find_run(spec.name, key) or {}):
        log.info("an earlier attempt of this run has fitted %s already", candidate)
        return Fitted.from_json(json.loads(logged[_FITTED]))

    features = FeatureList.of(spec)
    border = training_set.interval("window").end - spec.training.validation
    older = int(
        pc.sum(pc.less(rows.column(spec.event_time), pa.scalar(border, rows.schema.field(spec.event_time).type))).as_py()
    )
    frame, truth = features.frame(rows), labels_of(rows)
    _check_validation(spec, truth, older, border)
    started = time.perf_counter()
    trials = _search(folder, candidate, frame, truth, older)
    best = _best_trial(spec, trials)
    searched = time.perf_counter()
    estimator = fit_estimator(folder, candidate, best.params, frame, truth)
    finished = time.perf_counter()

    code = code_state(folder)
    tags = {
        KEY: key,
        "perennial.candidate": candidate,
        "perennial.role": "baseline" if declared.baseline else "candidate",
        "perennial.run_id": run_id,
        "perennial.window": training_set.window,
        "perennial.holdout": training_set.holdout,
        "perennial.as_of": training_set.as_of,
        "perennial.spec_digest": folder.digest,
        "perennial.features_digest": training_set.features_digest,
        "perennial.snapshots": json.dumps(training_set.snapshots, sort_keys=True),
        "perennial.code_dirty": str(code["dirty"]).lower(),
        # The names MLflow's own pages show.
        "mlflow.source.type": "JOB",
        "mlflow.source.name": f"perennial train {spec.name}",
        "mlflow.source.git.commit": code["commit"],
        "mlflow.user": spec.owner,
    }
    with registry.open_run(spec.name, candidate, tags) as run, tempfile.TemporaryDirectory(prefix="perennial-fit-") as scratch:
        stored = run.log_model(
            spec,
            estimator,
            example=frame.head(_EXAMPLE_ROWS),
            reference=None if declared.baseline else _reference(spec, rows, older, best.prediction),
            params=best.params,
        )
        directory = Path(scratch)
        (directory / "trials.json").write_text(
            json.dumps([{"params": trial.params, "metrics": trial.metrics} for trial in trials], indent=2), encoding="utf-8"
        )
        if not declared.baseline:
            _illustrate(folder, candidate, best, frame.iloc[older:], truth[older:], directory)
        run.log_files(directory, "validation")
        _log_folder(run, folder)
        primary = spec.primary_metric
        fitted = Fitted(
            candidate=candidate,
            baseline=declared.baseline,
            params=best.params,
            metrics=best.metrics,
            score=best.metrics.get(primary),
            greater_is_better=METRICS[spec.task][primary],
            mlflow_run_id=run.id,
            model_id=stored.model_id,
            manifest=stored.manifest,
            code=code,
            seconds={"search": round(searched - started, 3), "fit": round(finished - searched, 3)},
        )
        run.log_rows(
            "training window",
            training_set.content["window"],
            {"model": spec.name, "interval": training_set.window, "snapshots": training_set.snapshots},
            rows=rows.num_rows,
            context="training",
        )
        kept = json.dumps(fitted.to_json())
        run.log(
            params={"estimator": declared.estimator, **best.params},
            metrics={
                **{f"validation_{name}": value for name, value in best.metrics.items()},
                "training_rows": rows.num_rows,
                "trials": len(trials),
                "fit_seconds": finished - searched,
            },
            tags={_FITTED: kept} if len(kept) <= MAX_TAG else {},  # without it, a retry fits once more
            model_id=stored.model_id,
        )
    return fitted


def _log_folder(run: CandidateRun, folder: ModelFolder) -> None:
    """Keep with the run what it was made by, for :mod:`perennial.training.reproduce` and for people who compare versions."""
    with tempfile.TemporaryDirectory(prefix="perennial-folder-") as scratch:
        for name, text in folder.files.items():
            (Path(scratch) / name).write_bytes(text.encode())
        run.log_files(Path(scratch), FOLDER)


def _check_validation(spec: ModelSpec, truth: NDArray[Any], older: int, border: datetime) -> None:
    for rows, where, advice in (
        (truth[:older], f"before {border:%Y-%m-%d}", "make training.window longer or training.validation shorter"),
        (truth[older:], f"from {border:%Y-%m-%d} on", "make training.validation longer"),
    ):
        if len(rows) == 0:
            raise TrainingError(f"{spec.name}: the window has no labelled rows {where} to validate with: {advice}")
        if spec.task != "regression" and len(np.unique(rows)) < 2:
            raise TrainingError(f"{spec.name}: all {len(rows):,} labels of the window {where} are {rows[0]}: {advice}")


def _search(folder: ModelFolder, name: str, frame: pd.DataFrame, truth: NDArray[Any], older: int) -> list[_Trial]:
    """Fit combinations of the search space on rows before ``older``, measure each on the rest.

    Raises:
        TrainingError: all of them failed.
    """
    spec, cost = folder.spec, cost_function(folder)
    trials, failure = [], None
    for params in combinations(folder, name):
        try:
            estimator = fit_estimator(folder, name, params, frame.iloc[:older], truth[:older])
            prediction = artifacts.predict(spec.task, estimator, frame.iloc[older:])
        except (TrainingError, ScoringError, ValueError) as error:
            log.warning("candidate %s with %s failed: %s", name, show_params(params), error)
            failure = error
            continue
        metrics = evaluate_prediction(spec.task, truth[older:], prediction, cost)
        trials.append(_Trial(params, metrics, estimator, prediction))
    if not trials:
        raise TrainingError(
            f"{spec.name}: candidate {name} failed with every combination of its parameters: {failure}"
        ) from failure
    return trials


def _best_trial(spec: ModelSpec, trials: Sequence[_Trial]) -> _Trial:
    sign = 1 if METRICS[spec.task][spec.primary_metric] else -1
    return max(
        trials, key=lambda trial: sign * trial.metrics[spec.primary_metric] if spec.primary_metric in trial.metrics else -np.inf
    )


def fit_estimator(folder: ModelFolder, name: str, params: Mapping[str, Any], frame: pd.DataFrame, truth: NDArray[Any]) -> Any:
    """A candidate's estimator, fitted with given parameters.

    Raises:
        TrainingError: it cannot be made, or cannot learn from these rows.
    """
    # Of a million texts it takes long to ask which are there; of most columns one of the first is.
    empty = [str(name) for name in frame.columns if not (frame[name].head(100).notna().any() or frame[name].notna().any())]
    if empty:
        log.warning("%s is fitted without %s: no value of it in %s rows", name, ", ".join(empty), f"{len(frame):,}")
    estimator = make_estimator(folder, name, params, empty=empty)
    try:
        return estimator.fit(frame, truth)
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{folder.spec.name}: candidate {name} cannot be fitted with {show_params(params)}: {error}"
        ) from error


def _reference(spec: ModelSpec, rows: pa.Table, older: int, unseen: Prediction) -> pa.Table:
    """What :meth:`perennial.model.artifacts.LoadedModel.reference` gives; ``unseen`` predicts the rows from ``older`` on."""
    size = min(spec.drift.sample, rows.num_rows)
    kept = np.sort(np.random.default_rng(spec.training.seed).choice(rows.num_rows, size=size, replace=False))
    text = unseen.values.dtype.kind == "O"
    values = np.concatenate([np.full(older, None if text else np.nan, dtype=unseen.values.dtype), unseen.values])[kept]
    prediction = pa.array(values, type=pa.string() if text else pa.float64(), from_pandas=True)
    taken = rows.select([*spec.features.names, LABEL, spec.event_time]).take(pa.array(kept))
    if unseen.probabilities is not None and spec.task == "multiclass_classification":
        said = pa.concat_arrays([pa.nulls(older, pa.string()), probabilities_as_json(unseen)])
        taken = taken.append_column("probabilities", said.take(pa.array(kept)))
    return taken.append_column("prediction", prediction)


def _illustrate(
    folder: ModelFolder, name: str, trial: _Trial, frame: pd.DataFrame, truth: NDArray[Any], directory: Path
) -> None:
    """Pictures of a candidate on rows it has not seen, and which features it leans on."""
    spec = folder.spec
    plots.draw_predictions(spec.task, truth, {name: trial.prediction}, directory, rows="validation")
    importance = _importance(folder, trial.estimator, frame, truth)
    if importance:
        (directory / "importance.json").write_text(json.dumps(importance, indent=2), encoding="utf-8")
        plots.draw_importance(importance, directory, metric=spec.primary_metric, rows="validation")


def _importance(folder: ModelFolder, estimator: Any, frame: pd.DataFrame, truth: NDArray[Any]) -> dict[str, float]:
    """Drop of the primary metric a feature when its values are shuffled among a seeded sample of rows, largest first.

    References:
        Breiman: Random Forests. Machine Learning 45, 2001, section 10.
    """
    spec, cost = folder.spec, cost_function(folder)
    sign = 1 if METRICS[spec.task][spec.primary_metric] else -1

    random = np.random.default_rng(spec.training.seed)
    size = min(_IMPORTANCE_ROWS, len(frame))
    kept = random.choice(len(frame), size=size, replace=False)
    rows, labels = frame.iloc[kept], truth[kept]

    def scores(frames: Sequence[pd.DataFrame]) -> list[float]:
        # One prediction for all of them: by itself each would take some 20 ms before it comes to its rows.
        predicted = artifacts.predict(spec.task, estimator, pd.concat(frames, ignore_index=True))
        parts = (predicted[n * size : (n + 1) * size] for n in range(len(frames)))
        found = (evaluate_metric(spec.task, spec.primary_metric, labels, part, cost) for part in parts)
        return [np.nan if score is None else sign * score for score in found]

    def shuffled(name: str) -> pd.DataFrame:
        return rows.assign(**{name: rows[name].array[random.permutation(size)]})

    [before] = scores([rows])
    repeats = max(1, min(5, _IMPORTANCE_PREDICTIONS // len(rows.columns)))
    turns = [name for name in rows.columns for _ in range(repeats)]
    after: list[float] = []
    for start in range(0, len(turns), _IMPORTANCE_FRAMES):
        after += scores([shuffled(name) for name in turns[start : start + _IMPORTANCE_FRAMES]])
    drops = before - np.reshape(after, (len(rows.columns), repeats)).mean(axis=1)
    if not np.isfinite(drops).all():
        return {}
    return dict(sorted(zip(rows.columns, drops.tolist(), strict=True), key=lambda pair: -pair[1]))


def code_state(folder: ModelFolder) -> dict[str, Any]:
    """All that decides what a fit computes beside its rows and parameters, as far as this process can tell.

    Returns:
        ``commit`` of the model's folder (``unknown`` outside a repository) and ``dirty``, whether anything differs from it
        (None if unknown); ``files``: SHA-256 of each of :attr:`ModelFolder.files`; ``python``, ``packages``, ``machine``;
        ``threads`` by ``openmp`` and ``blas``, since sums that are made in another order may differ in their last bits.
    """
    commit, dirty = "unknown", None
    git = shutil.which("git")
    if git is not None:
        ask = partial(subprocess.run, cwd=folder.path, capture_output=True, text=True, timeout=30, check=False)
        head = ask([git, "rev-parse", "HEAD"])
        if head.returncode == 0:
            commit = head.stdout.strip()
            dirty = bool(ask([git, "status", "--porcelain"]).stdout.strip())
    return {
        "commit": commit,
        "dirty": dirty,
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in folder.files.items()},
        "python": platform.python_version(),
        "packages": artifacts.environment(),
        "machine": platform.machine(),
        "threads": {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()},
    }
