"""Fit candidates on a pinned training set, and log them.

The parameters of a candidate are chosen by validation on the newest part of the window. Then the candidate is fitted on the
whole window, and logged to MLflow with :mod:`perennial.registry.store`. Later, the candidate with the best validation score is
compared with the baselines and the champion on the holdout, and :mod:`perennial.evaluation.gates` decides. Neighbours:
:mod:`perennial.training.training_set`, :mod:`perennial.model.estimators`, :mod:`perennial.evaluation.metrics`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from perennial.core.errors import ScoringError, TrainingError
from perennial.core.settings import PROJECT
from perennial.deployment import Deployment
from perennial.evaluation import plots
from perennial.evaluation.metrics import evaluate_metric, evaluate_prediction
from perennial.evidence.training import CodeState, TrainingSet
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList, Prediction
from perennial.model.candidate import Fitted
from perennial.model.costs import cost_function
from perennial.model.estimators import combinations, fit_estimator, show_params
from perennial.model.labels import LABEL, labels_of
from perennial.model.probabilities import probabilities_as_json
from perennial.model.weights import weights_of
from perennial.registry.folders import FOLDER
from perennial.registry.runs import KEY, MAX_TAG, CandidateRun
from perennial.spec.commit import commit_of
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS
from perennial.training.training_set import content_hash, load_rows

log = logging.getLogger(__name__)


#: Rows on which the importance of features is measured, and about how many times they are predicted. Both together take less
#: than half a second for a booster.
_IMPORTANCE_ROWS = 1_000
_IMPORTANCE_PREDICTIONS = 60
#: Number of shuffled frames in memory at the same time.
_IMPORTANCE_FRAMES = 16
EXAMPLE_ROWS = 5
#: The tag of an MLflow run that keeps its :class:`Fitted` for a retry.
_FITTED = "perennial.fitted"


@dataclass(frozen=True)
class _Trial:
    """One combination of a search space, fitted on the older part of the window and measured on the validation part.

    Attributes:
        window: the length of the window, as ``model.yaml`` names it; empty if there is no choice.
    """

    params: dict[str, Any]
    metrics: dict[str, float]
    estimator: Any
    prediction: Prediction
    window: str = ""


@dataclass(frozen=True)
class _Window:
    """The rows of the training window, ordered by time.

    Attributes:
        rows: all rows.
        frame: the features of the rows.
        truth: the labels of the rows.
        older: number of rows before the validation part.
        starts: the first row of each length of the window that a candidate can choose, by how ``model.yaml`` names it.
    """

    rows: pa.Table
    frame: pd.DataFrame
    truth: NDArray[Any]
    older: int
    starts: dict[str, int]

    def newest(self, chosen: str) -> _Window:
        """The newest part, of a length that a candidate has chosen."""
        start = self.starts[chosen]
        if start == 0:
            return self
        return _Window(self.rows.slice(start), self.frame.iloc[start:], self.truth[start:], self.older - start, {chosen: 0})


@dataclass(frozen=True)
class _Found:
    """The result of a search, and the estimator with the best parameters.

    Attributes:
        trials: all trials that succeeded.
        best: the best trial.
        estimator: the estimator with the best parameters, fitted on the whole window.
        search_seconds, fit_seconds: duration of the search and of the last fit.
    """

    trials: list[_Trial]
    best: _Trial
    estimator: Any
    search_seconds: float
    fit_seconds: float


def fit_candidate(
    folder: ModelFolder,
    candidate: str,
    training_set: TrainingSet,
    deployment: Deployment,
    *,
    run_id: str,
    staging: Path | None = None,
) -> Fitted:
    """Search a candidate's parameters, fit the candidate on the whole window, and log it as one run in MLflow.

    A retry returns what an earlier attempt of the same run has logged.

    Args:
        folder: the model's folder.
        candidate: the candidate's name in ``model.yaml``.
        training_set: the rows to learn from.
        deployment: contains the rows, and the registry to log to.
        run_id: the orchestrator's run.
        staging: the folder that :func:`build_training_set` wrote the rows to; None if it wrote them to none.

    Raises:
        TrainingError: the candidate could not be made, fitted or stored; the message says why.
    """
    rows = load_rows(folder, deployment.lake, training_set, "window", staging)
    key = _run_key(folder, candidate, training_set, run_id)
    if _FITTED in (logged := deployment.registry.find_run(folder.spec.name, key) or {}):
        log.info("an earlier attempt of this run has already fitted %s", candidate)
        return Fitted.from_json(json.loads(logged[_FITTED]))
    window = _split(folder.spec, rows, training_set)
    found = _search_and_fit(folder, candidate, window)
    window = window.newest(found.best.window)
    code = code_state(folder)
    tags = {KEY: key, "perennial.run_id": run_id, **provenance(folder, candidate, training_set, code)}
    name = f"{candidate}, until {training_set.as_of[:10]}"
    with deployment.registry.open_run(folder.spec.name, name, tags) as run:
        return _log(run, folder, candidate, training_set, window, found, code)


def _run_key(folder: ModelFolder, candidate: str, training_set: TrainingSet, run_id: str) -> str:
    """A key that is equal for all attempts of a run to fit the same candidate, with the same folder and the same rows."""
    identity = "\0".join((run_id, candidate, folder.digest, training_set.content["window"]))
    return hashlib.sha256(identity.encode()).hexdigest()


def _split(spec: ModelSpec, rows: pa.Table, training_set: TrainingSet) -> _Window:
    """Cut the window where its validation part begins.

    Raises:
        TrainingError: one of the two parts has no rows, or only labels of one class.
    """
    border = training_set.interval("window").end - spec.training.validation
    older = rows_before(rows, spec.event_time, border)
    truth = labels_of(rows)
    _check_validation(spec, truth, older, border)
    starts = _starts(spec, rows, training_set.interval("window").end)
    return _Window(rows, FeatureList.of(spec).frame(rows), truth, older, starts)


def _starts(spec: ModelSpec, rows: pa.Table, end: datetime) -> dict[str, int]:
    """The first row of each length of the window. Of lengths with the same rows only the first is tried, and of those with
    fewer than ``min_rows`` none."""
    found: dict[str, int] = {}
    for name, length in spec.training.windows.items():
        start = rows_before(rows, spec.event_time, end - length)
        if start not in found.values() and (length == spec.training.longest or rows.num_rows - start >= spec.training.min_rows):
            found[name] = start
    return found


def rows_before(rows: pa.Table, event_time: str, moment: datetime) -> int:
    """The number of rows whose event time is before a moment."""
    moments = rows.column(event_time)
    return int(pc.sum(pc.less(moments, pa.scalar(moment, moments.type))).as_py() or 0)


def _search_and_fit(folder: ModelFolder, candidate: str, window: _Window) -> _Found:
    started = time.perf_counter()
    trials = _search(folder, candidate, window)
    best = _best_trial(folder.spec, trials)
    searched = time.perf_counter()
    learned = window.newest(best.window)
    weight = weights_of(folder.spec, learned.rows)
    estimator = fit_estimator(folder, candidate, best.params, learned.frame, learned.truth, weight)
    finished = time.perf_counter()
    return _Found(trials, best, estimator, searched - started, finished - searched)


def provenance(folder: ModelFolder, candidate: str, training_set: TrainingSet, code: CodeState) -> dict[str, str]:
    """Tags that say how a run's model was made."""
    return {
        "perennial.candidate": candidate,
        "perennial.role": "baseline" if folder.spec.candidates[candidate].baseline else "candidate",
        "perennial.window": training_set.window,
        "perennial.holdout": training_set.holdout,
        "perennial.as_of": training_set.as_of,
        "perennial.spec_digest": folder.digest,
        "perennial.features_digest": training_set.features_digest,
        "perennial.snapshots": json.dumps(training_set.snapshots, sort_keys=True),
        "perennial.code_dirty": str(code.dirty).lower(),
        # MLflow's pages show the tags with these names.
        "mlflow.source.type": "JOB",
        "mlflow.source.name": f"perennial train {folder.spec.name}",
        "mlflow.source.git.commit": code.commit,
        "mlflow.user": folder.spec.owner,
    }


def _log(
    run: CandidateRun,
    folder: ModelFolder,
    candidate: str,
    training_set: TrainingSet,
    window: _Window,
    found: _Found,
    code: CodeState,
) -> Fitted:
    """Log the model and everything about it to a run. The tag that a retry looks for is written last."""
    spec, declared, best = folder.spec, folder.spec.candidates[candidate], found.best
    stored = run.log_model(
        spec,
        found.estimator,
        example=window.frame.head(EXAMPLE_ROWS),
        reference=None if declared.baseline else reference_sample(spec, window.rows, window.older, best.prediction),
        params=best.params,
    )
    _log_validation(run, folder, candidate, window, found)
    log_folder(run, folder)
    fitted = Fitted(
        candidate=candidate,
        baseline=declared.baseline,
        params=best.params,
        metrics=best.metrics,
        score=best.metrics.get(spec.primary_metric),
        greater_is_better=METRICS[spec.task][spec.primary_metric],
        mlflow_run_id=run.id,
        model_id=stored.model_id,
        manifest=stored.manifest,
        code=code,
        seconds={"search": round(found.search_seconds, 3), "fit": round(found.fit_seconds, 3)},
        window=best.window,
    )
    part = training_set.newest(spec.training.length(best.window))
    chosen = {"training_window": best.window} if len(spec.training.windows) > 1 else {}
    run.log_rows(
        "training window",
        training_set.content["window"] if part.key == training_set.window else content_hash(window.rows),
        {"model": spec.name, "interval": part.key, "snapshots": training_set.snapshots},
        rows=window.rows.num_rows,
        context="training",
    )
    weighted = {"weight": str(spec.training.weight)} if spec.training.weight is not None else {}
    kept = json.dumps(fitted.to_json())
    run.log(
        params={"estimator": declared.estimator, **chosen, **weighted, **best.params},
        metrics={
            **{f"validation_{name}": value for name, value in best.metrics.items()},
            "training_rows": window.rows.num_rows,
            "trials": len(found.trials),
            "fit_seconds": found.fit_seconds,
        },
        tags={_FITTED: kept} if len(kept) <= MAX_TAG else {},  # without this tag, a retry fits again
        model_id=stored.model_id,
    )
    return fitted


def _log_validation(run: CandidateRun, folder: ModelFolder, candidate: str, window: _Window, found: _Found) -> None:
    """Log all trials, and plots of the best one on the validation part. A baseline gets no plots."""
    with tempfile.TemporaryDirectory(prefix="perennial-fit-") as scratch:
        directory = Path(scratch)
        (directory / "trials.json").write_text(
            json.dumps(
                [{"params": trial.params, "window": trial.window, "metrics": trial.metrics} for trial in found.trials], indent=2
            ),
            encoding="utf-8",
        )
        if not folder.spec.candidates[candidate].baseline:
            older = window.older
            _illustrate(folder, candidate, found.best, window.frame.iloc[older:], window.truth[older:], directory)
        run.log_files(directory, "validation")


def log_folder(run: CandidateRun, folder: ModelFolder) -> None:
    """Log the model folder's files: the version's own folder (:mod:`perennial.registry.folders`)."""
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
            raise TrainingError(f"{spec.name}: the training window has no labelled rows {where}: {advice}")
        if spec.task != "regression" and len(np.unique(rows)) < 2:
            raise TrainingError(f"{spec.name}: all {len(rows):,} labels of the training window {where} are {rows[0]}: {advice}")


def _search(folder: ModelFolder, name: str, window: _Window) -> list[_Trial]:
    """Fit combinations of the search space on the rows before the validation part, and measure each on the others.

    Raises:
        TrainingError: all combinations failed.
    """
    spec, cost = folder.spec, cost_function(folder)
    frame, truth, older = window.frame, window.truth, window.older
    # Those of the rows to fit on: their mean is 1, and the newest of them count most.
    weights = {start: weights_of(spec, window.rows.slice(start, older - start)) for start in set(window.starts.values())}
    trials, failure = [], None
    for length, params in _combinations(folder, name, list(window.starts)):
        start = window.starts[length]
        try:
            estimator = fit_estimator(folder, name, params, frame.iloc[start:older], truth[start:older], weights[start])
            prediction = artifacts.predict(spec.task, estimator, frame.iloc[older:])
        except (TrainingError, ScoringError, ValueError) as error:
            log.warning("candidate %s with %s failed: %s", name, show_params(params), error)
            failure = error
            continue
        metrics = evaluate_prediction(spec.task, truth[older:], prediction, cost)
        trials.append(_Trial(params, metrics, estimator, prediction, length))
    if not trials:
        raise TrainingError(
            f"{spec.name}: candidate {name} failed with every combination of its parameters: {failure}"
        ) from failure
    return trials


def _combinations(folder: ModelFolder, name: str, windows: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Lengths of the window with parameters: at most ``trials``, drawn if there are more."""
    found = list(itertools.product(windows, combinations(folder, name)))
    training = folder.spec.training
    if len(found) <= training.trials:
        return found
    drawn = np.random.default_rng(training.seed).choice(len(found), size=training.trials, replace=False)
    return [found[index] for index in sorted(drawn)]


def _best_trial(spec: ModelSpec, trials: Sequence[_Trial]) -> _Trial:
    sign = 1 if METRICS[spec.task][spec.primary_metric] else -1
    return max(
        trials, key=lambda trial: sign * trial.metrics[spec.primary_metric] if spec.primary_metric in trial.metrics else -np.inf
    )


def reference_sample(spec: ModelSpec, rows: pa.Table, older: int, unseen: Prediction) -> pa.Table:
    """The table that :meth:`perennial.model.artifacts.LoadedModel.reference` returns.

    Args:
        spec: the spec of the model.
        rows: the rows that the model learned from, ordered by time.
        older: number of rows at the beginning without a prediction.
        unseen: predictions for all other rows, by a model that had not learned from them.
    """
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
    """Plot a candidate's predictions on rows that it was not fitted on, and the importance of its features."""
    spec = folder.spec
    plots.draw_predictions(spec.task, truth, {name: trial.prediction}, directory, rows="validation")
    draw_importance(folder, trial.estimator, frame, truth, directory, rows="validation")


def draw_importance(
    folder: ModelFolder, estimator: Any, frame: pd.DataFrame, truth: NDArray[Any], directory: Path, *, rows: str
) -> None:
    """Measure the importance of an estimator's features, and write it as ``importance.json`` and as a picture.

    Args:
        folder: the model's folder.
        estimator: the estimator.
        frame, truth: the features and the labels of n rows that it was not fitted on.
        directory: where the files are written; none are, if the importance could not be measured.
        rows: what the rows are, for the picture.
    """
    importance = _importance(folder, estimator, frame, truth)
    if importance:
        (directory / "importance.json").write_text(json.dumps(importance, indent=2), encoding="utf-8")
        plots.draw_importance(importance, directory, metric=folder.spec.primary_metric, rows=rows)


def _importance(folder: ModelFolder, estimator: Any, frame: pd.DataFrame, truth: NDArray[Any]) -> dict[str, float]:
    """How much the primary metric drops when a feature's values are shuffled, by feature; the largest drop first.

    The drops are measured on a seeded sample of the rows. The result is empty if a drop could not be computed.

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
        # One call predicts all frames, since each call has a fixed cost of about 20 ms.
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


def code_state(folder: ModelFolder) -> CodeState:
    """Everything besides rows and parameters that the result of a fit depends on, as far as this process knows."""
    commit, dirty = commit_of(folder.path, PROJECT / "BUILT")
    return CodeState(
        commit=commit,
        dirty=dirty,
        files={name: hashlib.sha256(text.encode()).hexdigest() for name, text in folder.files.items()},
        python=platform.python_version(),
        packages=artifacts.environment(folder.spec),
        machine=platform.machine(),
        threads={pool["user_api"]: pool["num_threads"] for pool in threadpool_info()},
    )
