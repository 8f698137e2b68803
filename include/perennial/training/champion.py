"""The champion's part in the contest with a candidate that would replace it.

A champion that is refreshed (``schedules.refresh``) is judged by its recipe: features, label, estimator and parameters, fitted
on the rows that the candidates learned from. So age decides nothing, and the stored models, of which each has learned from the
holdout, take no part. A champion that is never refreshed is judged by its stored model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from perennial.core.errors import PerennialError, ScoringError, SnapshotMissing, SpecError, TrainingError, VersionUnusable
from perennial.core.intervals import Interval, utc
from perennial.deployment import Deployment
from perennial.evaluation.contest import Entrant
from perennial.evidence.evaluation import Contender
from perennial.evidence.training import TrainingSet
from perennial.features.published import is_features
from perennial.ledger.records import VersionRecord
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.model.candidate import Fitted
from perennial.model.estimators import fit_rows
from perennial.registry.folders import (
    OwnFolder,
    changed_label,
    differences,
    own_features,
    own_folder,
    with_own_features,
)
from perennial.spec.folder import ModelFolder
from perennial.spec.recipe import recipe_digest
from perennial.training.fit import rows_before
from perennial.training.training_set import load_rows, pinned_snapshots, read_rows, window_start

log = logging.getLogger(__name__)


def champion_entrant(
    folder: ModelFolder,
    deployment: Deployment,
    training_set: TrainingSet,
    chosen: Fitted,
    *,
    staging: Path | None = None,
) -> Entrant | None:
    """The champion as it takes part in a contest on the holdout; None if there is none.

    Args:
        folder: the model's folder.
        deployment: contains the rows and the models.
        training_set: the rows that the candidates learned from, and the holdout.
        chosen: the candidate that it is compared with.
        staging: the folder that the rows were also written to; None if they were written to none.
    """
    spec, registry = folder.spec, deployment.registry
    version = registry.champion(spec.name)
    if version is None:
        return None
    record = deployment.ledger.version(spec.name, version)
    blank = Contender(
        name=(record.training.candidate if record else "") or "champion",
        role="champion",
        metrics={},
        rows=training_set.rows["holdout"],
        rows_hash=training_set.content["holdout"],
        predictions=None,
        version=version,
        mlflow_run_id=record.mlflow_run_id if record else None,
        trained_on=(record.training.window or None) if record else None,
    )
    load = partial(registry.load_judged, spec.name, version, spec=spec)
    if record is None:
        return Entrant(blank, load)
    try:
        own = own_folder(registry, version, folder)
        if spec.refreshes:
            registry.load(spec.name, version, spec=spec)  # what can never predict again has no part in it
    except VersionUnusable as error:
        return Entrant(blank, partial(_fail, error))
    remarks = [] if own.is_current else [f"{own.name} {told}: its own folder made its features" for told in differences(own)]
    if (label := changed_label(own)) is not None:
        remarks.append(label)
    view = partial(with_own_features, own, deployment.lake, training_set.interval("holdout"), run_id=training_set.run_id)
    stored = Entrant(replace(blank, remarks=remarks), load, view)
    return _by_recipe(stored, own, deployment, training_set, chosen, staging) if spec.refreshes else stored


def _by_recipe(
    stored: Entrant,
    own: OwnFolder,
    deployment: Deployment,
    training_set: TrainingSet,
    chosen: Fitted,
    staging: Path | None,
) -> Entrant:
    """The champion's recipe, fitted on the rows of the candidates; its stored model if that is not possible."""
    record, folder, registry, blank = own.record, own.current, deployment.registry, stored.blank
    try:
        its = own.made_by
        recipe = record.training.recipe or _recipe(its, record)
        if recipe == recipe_digest(folder, chosen.candidate, chosen.params, chosen.window):
            said = f"version {record.version} has the recipe of the candidate"
            load: Callable[[], LoadedModel] = partial(registry.load_fitted, folder.spec, training_set, chosen)
            its_part = training_set.newest(folder.spec.training.length(chosen.window)).key
            return Entrant(replace(blank, recipe=recipe, trained_on=its_part, remarks=[*blank.remarks, said]), load)
        model = _fit(its, own, deployment, training_set, staging)
    except (TrainingError, ScoringError, SnapshotMissing, SpecError, VersionUnusable) as error:
        log.warning("the recipe of %s could not be fitted: %s", own.name, error)
        return _stored_instead(stored, own, training_set, str(error))
    said = (
        f"the recipe of version {record.version} was fitted on {model.trained_on}, which ends where the candidate's rows end, "
        "so that age decides nothing"
    )
    blank = replace(blank, recipe=recipe, trained_on=model.trained_on, remarks=[*blank.remarks, said])
    return Entrant(blank, lambda: model, stored.rows)


def _recipe(its: ModelFolder, record: VersionRecord) -> str:
    """The digest of the recipe of a version whose record does not contain it."""
    if record.training.candidate not in its.spec.candidates:
        raise TrainingError(f"its folder has no candidate {record.training.candidate}")
    return recipe_digest(its, record.training.candidate, record.training.params, record.training.chosen_window)


def _fit(
    its: ModelFolder, own: OwnFolder, deployment: Deployment, training_set: TrainingSet, staging: Path | None
) -> LoadedModel:
    training = own.record.training
    if training.candidate not in its.spec.candidates:
        raise TrainingError(f"its folder has no candidate {training.candidate}")
    length, end = its.spec.training.length(training.chosen_window), training_set.interval("window").end
    window = Interval(window_start(its.spec, deployment.ledger, end, length), end)
    rows = _rows(its, own, deployment, training_set, window, staging)
    takes = FeatureList(tuple(training.numeric), tuple(training.categorical))
    try:
        estimator = fit_rows(its, training.candidate, training.params, rows, takes)
    except PerennialError:
        raise
    # The code of a model folder may raise anything, and that of a version's own folder cannot be changed.
    except Exception as error:
        raise TrainingError(f"{training.candidate} raised {type(error).__name__}: {error}") from error
    log.info("the recipe of %s was fitted on %s rows of %s", own.name, f"{rows.num_rows:,}", window)
    return LoadedModel(
        name=f"the recipe of {own.name}, fitted on {window.key}",
        version=own.record.version,
        task=own.current.spec.task,
        takes=takes,
        trained_on=window.key,
        features_digest=own.record.features_digest,
        estimator=estimator,
        sample=pa.table({}),
    )


def _rows(
    its: ModelFolder, own: OwnFolder, deployment: Deployment, training_set: TrainingSet, window: Interval, staging: Path | None
) -> pa.Table:
    """The rows of a window, with the features and the label of the version's own folder."""
    lake, spec, present = deployment.lake, its.spec, own.current.spec
    same_label = (spec.label.table, spec.label.sql) == (present.label.table, present.label.sql)
    if own.is_current and same_label and window.start >= training_set.interval("window").start:
        pinned = load_rows(own.current, lake, training_set, "window", staging)
        return pinned.slice(rows_before(pinned, spec.event_time, window.start))
    at = own_features(own, lake, window, run_id=training_set.run_id, whole=False)
    labels = {name: snapshot for name, snapshot in training_set.snapshots.items() if not is_features(name)}
    rows, _ = read_rows(
        its,
        lake,
        {**pinned_snapshots(its, deployment.ledger, own.dataset), **labels, at.dataset: at.snapshot},
        window,
        labels_known_by=training_set.interval("holdout").start,
        withheld=training_set.withheld_intervals,
    )
    return rows.slice(max(0, rows.num_rows - spec.training.max_rows))


def _stored_instead(stored: Entrant, own: OwnFolder, training_set: TrainingSet, why: str) -> Entrant:
    """The champion's stored model, if it has not learned from the holdout; otherwise one that says what to do."""
    blank, holdout = stored.blank, training_set.interval("holdout")
    failed = f"the recipe of version {own.record.version} could not be fitted on {training_set.window} ({why})"
    learned = Interval.from_key(blank.trained_on) if blank.trained_on else None
    if learned is not None and learned.end <= holdout.start:
        remark = f"{failed}, so its stored model was measured, which learned from {learned.key}"
        return replace(stored, blank=replace(blank, remarks=[*blank.remarks, remark]))
    later = "" if learned is None else f" as of {learned.end + (utc(training_set.as_of) - holdout.start):%Y-%m-%d} or later"
    error = TrainingError(
        f"{failed}, and its stored model has learned from the holdout {holdout}. Train{later}, when it can be compared by its "
        f"stored model, or promote by hand with a reason (perennial promote {own.record.model} VERSION --override REASON)"
    )
    return Entrant(blank, partial(_fail, error))


def _fail(error: PerennialError) -> NoReturn:
    raise error
