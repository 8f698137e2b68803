"""Fit the candidate that passed once more, on the newest rows too: this model serves.

A candidate is judged on the holdout, the newest rows with mature labels, so it may not learn from them. Served as it is, a
model would be as old as the holdout is long on its first day. So the same recipe (features, estimator, parameters) is fitted
on all rows up to the end of the holdout. The result cannot be measured on unseen rows. What is checked is that it works in a
clean process, and that it still predicts like the model that was judged (:mod:`perennial.evaluation.gates`).

References:
    Hastie, Tibshirani, Friedman: The Elements of Statistical Learning. 2nd edition, 2009, section 7.10.1: after a model is
    chosen by validation, it is fitted to all the data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import replace
from functools import partial

import pyarrow as pa

from perennial.deployment import Deployment
from perennial.evaluation.metrics import agreement
from perennial.evaluation.readiness import CleanProcess
from perennial.evidence.evaluation import Refit
from perennial.evidence.training import TrainingSet
from perennial.model.artifacts import FeatureList, Prediction
from perennial.model.candidate import Fitted
from perennial.model.estimators import fit_rows
from perennial.registry.runs import MAX_TAG
from perennial.registry.store import Registry
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.training.fit import EXAMPLE_ROWS, reference_sample, rows_before
from perennial.training.training_set import content_hash, load_all_rows

log = logging.getLogger(__name__)

#: The first part of the tag of an MLflow run that keeps its :class:`Refit` for a retry.
_REFIT = "perennial.refit"


def refit_candidate(
    folder: ModelFolder,
    deployment: Deployment,
    training_set: TrainingSet,
    chosen: Fitted,
    holdout: pa.Table,
    judged: Prediction,
) -> Refit:
    """Fit a candidate with its parameters on all rows up to the end of the holdout, log it to the same run, and try it.

    A retry returns what an earlier attempt has logged.

    Args:
        folder: the model's folder.
        deployment: contains the rows, and the registry to log to.
        training_set: the rows that the candidate was fitted on and judged on.
        chosen: the candidate.
        holdout: the n rows of the holdout.
        judged: the candidate's n predictions for them.

    Raises:
        TrainingError: the candidate cannot be fitted on these rows.
    """
    spec, registry = folder.spec, deployment.registry
    run = registry.run(chosen.mlflow_run_id)
    tag = f"{_REFIT}.{_key(training_set)}"
    if kept := run.tags().get(tag):
        log.info("an earlier attempt of this run has already fitted %s again", chosen.candidate)
        return Refit.from_json(json.loads(kept))
    with CleanProcess() as clean:  # it starts while rows are read
        interval, rows = load_all_rows(folder, deployment.lake, training_set)
        takes = FeatureList.of(spec)
        started = time.perf_counter()
        estimator = fit_rows(folder, chosen.candidate, chosen.params, rows, takes)
        seconds = time.perf_counter() - started
        older = rows_before(rows, spec.event_time, training_set.interval("holdout").start)
        stored = run.log_model(
            spec,
            estimator,
            example=takes.frame(rows.slice(0, EXAMPLE_ROWS)),
            reference=reference_sample(spec, rows, older, judged[len(judged) - (rows.num_rows - older) :]),
            params=chosen.params,
            name=f"{spec.name}_refit",
        )
        refit = Refit(stored, interval.key, rows.num_rows, content_hash(rows), seconds=round(seconds, 3))
        refit = try_refit(spec, registry, training_set, chosen, refit, holdout, judged, clean)
    run.log_rows(
        "all rows up to the end of the holdout",
        refit.content,
        {"model": spec.name, "interval": refit.interval, "snapshots": training_set.snapshots},
        rows=refit.rows,
        context="training",
    )
    text = json.dumps(refit.to_json())
    run.log(
        metrics={} if refit.agreement is None else {"refit_agreement": refit.agreement},
        tags={tag: text} if len(text) <= MAX_TAG else {},  # without this tag, a retry fits again
        model_id=stored.model_id,
    )
    log.info("%s was fitted again on %s rows of %s, in %.1f s", chosen.candidate, f"{refit.rows:,}", interval, seconds)
    return refit


def try_refit(
    spec: ModelSpec,
    registry: Registry,
    training_set: TrainingSet,
    chosen: Fitted,
    refit: Refit,
    holdout: pa.Table,
    judged: Prediction,
    clean: CleanProcess,
) -> Refit:
    """How a refit works in a clean process, and how far it agrees with the candidate on the holdout.

    Args:
        spec: of the model.
        registry: contains its files.
        training_set: the rows that the candidate was fitted on and judged on.
        chosen: the candidate.
        refit: what is known of it; the rest is filled in.
        holdout: the n rows of the holdout.
        judged: the candidate's n predictions for them.
        clean: nothing was asked of it yet.
    """
    serving = replace(chosen, model_id=refit.stored.model_id, manifest=refit.stored.manifest)
    clean.ask(spec, serving, holdout, partial(registry.fetch, refit.stored.model_id), registry.trusted(spec))
    model = registry.load_fitted(spec, training_set, serving)
    predicted = model.predict(holdout)
    return replace(
        refit,
        agreement=agreement(spec.task, judged, predicted),
        digest=predicted.digest,
        operation=clean.wait(model),
    )


def _key(training_set: TrainingSet) -> str:
    """Equal for all attempts that learn from the same rows."""
    pinned = {"as_of": training_set.as_of, "snapshots": training_set.snapshots, "content": training_set.content}
    return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()[:16]
