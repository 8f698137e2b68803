"""Refresh the champion: fit its recipe once more, on rows up to now, without a search.

The champion's recipe is its features, label, estimator and parameters (:mod:`perennial.spec.recipe`), so a refresh is one fit.
The refreshed model cannot be measured on rows that it has not learned from. So the model before it is measured on the newest
rows, and both must agree there. Earlier refreshes are compared with an older version, each on days that neither had learned
from when it predicted them (test-then-train). :mod:`perennial.evaluation.gates` decides.

Neighbours: :mod:`perennial.training.refit` fits a candidate again that passed the gates of a replacement.

References:
    Gama, Sebastião, Rodrigues: On Evaluating Stream Learning Algorithms. Machine Learning 90 (2013): test, then train.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from perennial.core.errors import NothingToRefresh, PerennialError, StaleDecision, TrainingError
from perennial.core.intervals import Interval, utc
from perennial.deployment import Deployment
from perennial.evaluation import plots
from perennial.evaluation.contest import Contest, ContestResult, Entrant
from perennial.evaluation.metrics import evaluate_metric
from perennial.evaluation.readiness import CleanProcess
from perennial.evaluation.refreshed import LOOK_BACK, Stretch, measure_refresh, roll
from perennial.evidence.evaluation import Contender, Evaluation, Refit, RollingEvidence, disputes
from perennial.evidence.training import Part, TrainingSet
from perennial.features.history import gaps_of_training, refuse_gaps
from perennial.features.maturity import mature_until
from perennial.ledger.records import VersionRecord
from perennial.ledger.succession import lineage
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.model.candidate import Fitted
from perennial.model.costs import CostFunction, cost_function
from perennial.model.estimators import fit_rows
from perennial.model.labels import labels_of
from perennial.registry.folders import OwnFolder, changed_label, own_features, own_folder
from perennial.registry.runs import KEY
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import METRICS
from perennial.training.fit import (
    EXAMPLE_ROWS,
    code_state,
    draw_importance,
    log_folder,
    provenance,
    reference_sample,
    rows_before,
)
from perennial.training.training_set import (
    PinnedRows,
    content_hash,
    delay_of_labels,
    missing_days,
    pinned,
    pinned_again,
    pinned_snapshots,
    read_rows,
    window_start,
)

log = logging.getLogger(__name__)

#: The tags of an MLflow run that keep what was fitted, for a retry.
_FITTED, _REFIT = "perennial.refreshed", "perennial.refit"

#: The newest rows, which the model before is measured on, by ``schedules.refresh``.
PERIODS = {"week": timedelta(days=7), "month": timedelta(days=28)}


#: Loads the model that a version serves.
_Load = Callable[[int], LoadedModel]


@dataclass(frozen=True)
class Refreshed:
    """A refreshed model that was fitted and measured; small enough to pass from task to task.

    Attributes:
        training_set: the rows that it learned from. Its holdout are the newest of them.
        fitted: the model before it, which the newest rows were measured with, and the run that logged the refreshed model.
        evaluation: the measurements.
    """

    training_set: TrainingSet
    fitted: Fitted
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        return {
            "training_set": self.training_set.to_json(),
            "fitted": self.fitted.to_json(),
            "evaluation": self.evaluation.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Refreshed:
        return cls(
            TrainingSet.from_json(value["training_set"]),
            Fitted.from_json(value["fitted"]),
            Evaluation.from_json(value["evaluation"]),
        )


@dataclass(frozen=True)
class _Rows:
    """The rows of a refresh, ordered by event time and key.

    Attributes:
        whole: the interval that the refreshed model learns from.
        newest: the newest part of it, which the model before had not learned from.
        all: n labelled rows of ``whole``.
        older: how many of them are before ``newest``.
        labelled, entities: number of labelled rows and of entities of both parts, before ``training.max_rows`` cuts any.
    """

    whole: Interval
    newest: Interval
    all: pa.Table
    older: int
    labelled: dict[str, int]
    entities: dict[str, int]

    @property
    def unseen(self) -> pa.Table:
        return self.all.slice(self.older)

    @property
    def parts(self) -> dict[Part, PinnedRows]:
        """The rows as a training set takes them."""
        older = Interval(self.whole.start, self.newest.start) if self.whole.start < self.newest.start else self.newest
        return {
            "window": PinnedRows(older, self.all.slice(0, self.older), self.labelled["window"], self.entities["window"]),
            "holdout": PinnedRows(self.newest, self.unseen, self.labelled["holdout"], self.entities["holdout"]),
        }

    def within(self, spec: ModelSpec, interval: Interval) -> pa.Table:
        start, end = (rows_before(self.all, spec.event_time, moment) for moment in (interval.start, interval.end))
        return self.all.slice(start, end - start)


def refresh_champion(
    folder: ModelFolder, deployment: Deployment, *, as_of: datetime, run_id: str, calendar: Interval | None = None
) -> Refreshed:
    """Fit the champion's recipe on the rows up to now, log the model, and measure what the gates of a refresh need.

    Args:
        folder: the model's folder as it is now.
        deployment: contains the rows and the models.
        as_of: only labels known by then are used. The newest rows end where labels were mature by then.
        run_id: the orchestrator's run.
        calendar: the week or month whose end started the refresh; None if something else did.

    Raises:
        NothingToRefresh: there is no champion, it has learned from the newest rows already, its label is no longer that of the
            model, or refreshes have stopped. The message says what to do.
        TrainingError: there are too few rows, or the recipe cannot be fitted.
        VersionUnusable: what the champion's recipe needs is gone.
    """
    spec, registry = folder.spec, deployment.registry
    registry.check_name(spec.name)
    record = _champion(folder, deployment)
    own = own_folder(registry, record.version, folder)
    if (told := changed_label(own)) is not None:
        raise NothingToRefresh(
            f"{spec.name} is not refreshed: {told}. Train a version for the present label: {spec.name}.train"
        )
    recipe = own.made_by
    with CleanProcess() as clean:
        end = mature_until(utc(as_of), delay_of_labels(folder, deployment, utc(as_of)))
        newest = _newest(spec, record, end, _period(spec))
        rows, snapshots, withheld = _read(own, recipe, deployment, newest, utc(as_of), run_id)
        match = _match(own, recipe, deployment, rows)
        before = match.before
        training_set = _training_set(
            recipe, deployment, own, rows, snapshots, withheld, before, as_of=utc(as_of), run_id=run_id,
            calendar=calendar,
        )  # fmt: skip
        fitted, refit = _fit(recipe, deployment, record, training_set, rows, before, run_id)
        result = _measure(match, deployment, training_set, fitted, refit, clean)
        _log(recipe, deployment, fitted, result, before, rows.unseen)
    return Refreshed(training_set, fitted, result.evaluation)


def confirm_refresh(folder: ModelFolder, deployment: Deployment, claimed: Refreshed) -> Refreshed:
    """Measure a refresh again, from its files and its pinned rows alone. It may run in another process than the fit.

    Args:
        folder: the model's folder as it is now.
        deployment: contains the rows and the models.
        claimed: what the process that fitted it says. Only which files and which rows it names is taken over.

    Returns:
        The refresh with the measurements of this process; :attr:`Evaluation.disputed` says where the others differ.

    Raises:
        StaleDecision: another version than the one that was refreshed is champion now.
        TrainingError: the lake's rows are not the pinned rows.
    """
    spec, registry, said = folder.spec, deployment.registry, claimed.evaluation
    record = _champion(folder, deployment)
    if said.refresh is None or said.refit is None or said.refresh.champion != record.version:
        raise StaleDecision(f"{spec.name}: the champion is version {record.version}, and that is not what was refreshed")
    own = own_folder(registry, record.version, folder)
    recipe = own.made_by
    with CleanProcess() as clean:
        named, training = claimed.training_set, record.training
        newest, window, as_of = named.interval("holdout"), named.interval("window"), utc(named.as_of)
        if newest.end > as_of or newest.start < _learned_until(record):
            raise TrainingError(f"{spec.name} version {record.version} has learned from a part of {newest}, or it is not over")
        whole = Interval(min(window.start, newest.start), newest.end)
        rows = _rows(recipe, deployment, named.snapshots, whole, newest, as_of, named.withheld_intervals)
        training_set = pinned_again(recipe, rows.parts, named)
        match = _match(own, recipe, deployment, rows)
        before = match.before
        fitted = replace(
            claimed.fitted, candidate=training.candidate, params=training.params, metrics=training.validation,
            model_id=before.record.served.model_id, manifest=before.record.served.manifest, window=training.chosen_window,
        )  # fmt: skip
        content = content_hash(rows.all)
        refit = Refit(said.refit.stored, whole.key, rows.all.num_rows, content, seconds=said.refit.seconds)
        evaluation = _measure(match, deployment, training_set, fitted, refit, clean).evaluation
    # If another refresh was refused meanwhile, the two may have measured other models.
    disputed = disputes(said, evaluation) if said.refresh.reference == before.record.version else []
    return Refreshed(training_set, fitted, replace(evaluation, disputed=disputed))


@dataclass(frozen=True)
class _Match:
    """What takes part in the measurements of a refresh, besides the refreshed model.

    Attributes:
        judge: the folder whose gates and costs count.
        recipe: the folder that the champion was made with.
        record: the champion.
        rows: the rows.
        before: the model before the refresh.
        load: loads the model that a version serves; each once.
    """

    judge: ModelFolder
    recipe: ModelFolder
    record: VersionRecord
    rows: _Rows
    before: _Before
    load: _Load


def _match(own: OwnFolder, recipe: ModelFolder, deployment: Deployment, rows: _Rows) -> _Match:
    spec, record = own.current.spec, own.record
    judge = own.current if own.is_current else recipe
    references = [record, *_refused(deployment.ledger.versions(spec.name), record, rows.newest.start)]
    load = cache(partial(deployment.registry.load, spec.name, spec=spec))  # the champion takes part in both comparisons
    before = _best(spec, load, references, rows.unseen, cost_function(judge))
    return _Match(judge, recipe, record, rows, before, load)


def _measure(
    match: _Match, deployment: Deployment, training_set: TrainingSet, fitted: Fitted, refit: Refit, clean: CleanProcess
) -> ContestResult:
    """Measure the refreshed model, the model before it, and earlier refreshes."""
    registry, recipe, record, rows, before = deployment.registry, match.recipe, match.record, match.rows, match.before
    serving = replace(fitted, model_id=refit.stored.model_id, manifest=refit.stored.manifest)
    fetch = partial(registry.fetch, refit.stored.model_id)
    clean.ask(recipe.spec, serving, rows.unseen, fetch, registry.trusted(recipe.spec))
    refreshed = registry.load_fitted(recipe.spec, training_set, serving)
    result = measure_refresh(
        Contest(
            folder=match.judge,
            interval=rows.newest,
            rows=rows.unseen,
            rows_hash=training_set.content["holdout"],
            entities=training_set.entities["holdout"],
            as_of=training_set.as_of,
            training_classes=training_set.classes["window"],
            training_coverage=training_set.label_coverage("window"),
            candidate=_entrant(before, training_set, fitted, rows.unseen.num_rows),
            baselines=[],
            champion=None,
            run_id=training_set.run_id,
            without_values=training_set.without_values,
        ),
        champion=record.version,
        reference=before.record.version,
        refreshed=refreshed,
        refit=refit,
        rolling=_rolling(match.judge, deployment, match.load, rows),
    )
    evaluation = result.evaluation
    assert evaluation.refit is not None  # measure_refresh fills it in
    refit = replace(evaluation.refit, operation=clean.wait(refreshed))
    # The champion stays in force until the decision, so the decision is made against it.
    champion = replace(evaluation.candidate, role="champion", version=record.version)
    if before.record.version != record.version:
        champion = replace(
            champion, metrics={}, predictions=None, intervals={}, trained_on=record.learned_from,
            error=f"version {before.record.version}, a later refresh, is better on these rows",
        )  # fmt: skip
    evaluation = replace(evaluation, refit=refit, champion=champion)
    return replace(result, evaluation=evaluation)


def _period(spec: ModelSpec) -> timedelta:
    return PERIODS["month" if spec.schedules.refresh == "month" else "week"]


# --- who is refreshed, and what it is compared with ------------------------------------------------------------------


def _champion(folder: ModelFolder, deployment: Deployment) -> VersionRecord:
    spec, ledger = folder.spec, deployment.ledger
    version = deployment.registry.champion(spec.name)
    if version is None:
        raise NothingToRefresh(f"{spec.name} has no champion to refresh: run {spec.name}.train first")
    record = ledger.version(spec.name, version)
    if record is None or not record.training.window:
        raise NothingToRefresh(
            f"{spec.name} version {version} is not refreshed: it is not recorded how it was made. Run {spec.name}.train"
        )
    if (stopped := ledger.stopped_refreshes(spec.name)) is not None:
        raise NothingToRefresh(
            f"{spec.name} is not refreshed since {stopped.held_at:%Y-%m-%d}: {'; '.join(stopped.reasons)}. When the cause is "
            f"known: perennial data release {spec.name} --refreshes --reason TEXT. A version that replaces the champion ends "
            "it, too"
        )
    return record


def _learned_until(record: VersionRecord) -> datetime:
    return Interval.from_key(record.learned_from).end


def _newest(spec: ModelSpec, record: VersionRecord, end: datetime, period: timedelta) -> Interval:
    start = max(end - period, _learned_until(record))
    if end - start < timedelta(days=1):
        raise NothingToRefresh(
            f"{spec.name} version {record.version}, the champion, has learned from the rows up to "
            f"{_learned_until(record):%Y-%m-%d} already, and labels are known up to {end:%Y-%m-%d}"
        )
    return Interval(start, end)


def _refused(versions: Sequence[VersionRecord], champion: VersionRecord, moment: datetime) -> list[VersionRecord]:
    """The newest refresh of the champion that was refused, if it had not learned from what comes after a moment."""
    refused = [
        record
        for record in versions
        if record.evaluation.refresh is not None
        and record.evaluation.refresh.champion == champion.version
        and not record.decision.promote
        and _learned_until(record) <= moment
    ]
    return refused[-1:]


@dataclass(frozen=True)
class _Before:
    """The model before a refresh: a version, and the stored model that it serves."""

    record: VersionRecord
    model: LoadedModel


def _best(
    spec: ModelSpec, load: _Load, references: Sequence[VersionRecord], unseen: pa.Table, cost: CostFunction | None
) -> _Before:
    """The champion, or the last refused refresh if it is better on the newest rows: then these rows speak for the change."""
    found = [_Before(record, load(record.version)) for record in references]
    if len(found) == 1 or not unseen.num_rows:
        return found[0]
    truth = labels_of(unseen)
    sign = 1 if METRICS[spec.task][spec.primary_metric] else -1

    def rank(before: _Before) -> float:
        value = evaluate_metric(spec.task, spec.primary_metric, truth, before.model.predict(unseen), cost)
        return -np.inf if value is None else sign * value

    return max(found, key=rank)


def _entrant(before: _Before, training_set: TrainingSet, fitted: Fitted, rows: int) -> Entrant:
    blank = Contender(
        name=fitted.candidate,
        role="candidate",
        metrics={},
        rows=rows,
        rows_hash=training_set.content["holdout"],
        predictions=None,
        version=before.record.version,
        mlflow_run_id=before.record.mlflow_run_id,
        trained_on=before.record.learned_from,
        remarks=[f"these are the figures of version {before.record.version}, the model before the refresh"],
    )
    return Entrant(blank, lambda: before.model)


# --- the rows --------------------------------------------------------------------------------------------------------


def _read(
    own: OwnFolder, recipe: ModelFolder, deployment: Deployment, newest: Interval, as_of: datetime, run_id: str
) -> tuple[_Rows, dict[str, int], list[Interval]]:
    spec, lake, ledger = recipe.spec, deployment.lake, deployment.ledger
    length = spec.training.length(own.record.training.chosen_window)
    start = window_start(spec, ledger, newest.end - spec.training.holdout, length)
    whole = Interval(min(start, newest.start), newest.end)
    if own.is_current and (tables := ledger.published(spec.name, "tables")) is not None:
        refuse_gaps(own.folder, gaps_of_training(own.folder, lake, tables.snapshots, whole))
    try:
        own_features(own, lake, whole, run_id=run_id, whole=False)
    except PerennialError as error:
        raise TrainingError(f"{spec.name} cannot be refreshed: {error}") from error
    snapshots = pinned_snapshots(recipe, ledger, own.dataset)
    # What is judged now is not left out because an earlier attempt has refused it.
    withheld = [part for part in ledger.withheld(spec.name) if part.overlaps(whole) and not part.overlaps(newest)]
    return _rows(recipe, deployment, snapshots, whole, newest, as_of, withheld), snapshots, withheld


def _rows(
    recipe: ModelFolder,
    deployment: Deployment,
    snapshots: Mapping[str, int],
    whole: Interval,
    newest: Interval,
    as_of: datetime,
    withheld: Sequence[Interval],
) -> _Rows:
    older_part = Interval(whole.start, newest.start) if whole.start < newest.start else None
    read = partial(read_rows, recipe, deployment.lake, snapshots, labels_known_by=as_of, withheld=withheld)
    unseen, fresh = read(newest)
    older, known = read(older_part) if older_part is not None else (unseen.slice(0, 0), 0)
    labelled = {"window": older.num_rows, "holdout": unseen.num_rows}
    older = older.slice(max(0, sum(labelled.values()) - recipe.spec.training.max_rows))
    rows = pa.concat_tables([older, unseen]).combine_chunks()
    return _Rows(whole, newest, rows, older.num_rows, labelled, {"window": known, "holdout": fresh})


def _training_set(
    recipe: ModelFolder,
    deployment: Deployment,
    own: OwnFolder,
    rows: _Rows,
    snapshots: dict[str, int],
    withheld: Sequence[Interval],
    before: _Before,
    *,
    as_of: datetime,
    run_id: str,
    calendar: Interval | None,
) -> TrainingSet:
    spec = recipe.spec
    gaps = missing_days(own.current.spec, deployment.ledger, rows.whole, calendar)
    if rows.all.num_rows < spec.training.min_rows:
        raise TrainingError(
            f"{spec.name}: {rows.whole} has {rows.all.num_rows:,} labelled rows, but training.min_rows is "
            f"{spec.training.min_rows:,}: ingest more past days, or make training.window longer"
        )
    training_set = pinned(
        recipe, rows.parts, snapshots, as_of=as_of, run_id=run_id, missing=gaps, withheld=withheld
    )  # fmt: skip
    deployment.lake.pin(spec.name, snapshots, training_set.pin)
    log.info(
        "version %d is refreshed on %s rows of %s%s; the newest, %s, has %s labelled rows",
        before.record.version,
        f"{rows.all.num_rows:,}",
        rows.whole,
        f" without {', '.join(training_set.withheld)}, which is withheld" if withheld else "",
        rows.newest,
        f"{rows.unseen.num_rows:,}",
    )
    return training_set


# --- the fit ---------------------------------------------------------------------------------------------------------


def _fit(
    recipe: ModelFolder,
    deployment: Deployment,
    record: VersionRecord,
    training_set: TrainingSet,
    rows: _Rows,
    before: _Before,
    run_id: str,
) -> tuple[Fitted, Refit]:
    """Fit the recipe and log the model. A retry of the run returns what an earlier attempt has logged."""
    registry, spec, training = deployment.registry, recipe.spec, record.training
    content = content_hash(rows.all)
    key = hashlib.sha256("\0".join((run_id, str(record.version), recipe.digest, content)).encode()).hexdigest()
    kept = registry.find_run(spec.name, key) or {}
    if _FITTED in kept and _REFIT in kept:
        log.info("an earlier attempt of this run has already refreshed version %d", record.version)
        return Fitted.from_json(json.loads(kept[_FITTED])), Refit.from_json(json.loads(kept[_REFIT]))
    takes = FeatureList.of(spec)
    started = time.perf_counter()
    estimator = fit_rows(recipe, training.candidate, training.params, rows.all, takes)
    seconds = time.perf_counter() - started
    code = code_state(recipe)
    tags = {
        KEY: key,
        "perennial.run_id": run_id,
        **provenance(recipe, training.candidate, training_set, code),
        "perennial.role": "refresh",
        "perennial.refreshes": str(record.version),
        "mlflow.source.name": f"perennial refresh {spec.name}",
    }
    name = f"{training.candidate} refreshed, until {training_set.as_of[:10]}"
    with registry.open_run(spec.name, name, tags) as run:
        stored = run.log_model(
            spec,
            estimator,
            example=takes.frame(rows.all.slice(0, EXAMPLE_ROWS)),
            reference=reference_sample(spec, rows.all, rows.older, before.model.predict(rows.unseen)),
            params=training.params,
        )
        log_folder(run, recipe)
        run.log_rows(
            "all rows of the refresh",
            content,
            {"model": spec.name, "interval": rows.whole.key, "snapshots": training_set.snapshots},
            rows=rows.all.num_rows,
            context="training",
        )
        fitted = Fitted(
            candidate=training.candidate,
            baseline=False,
            params=training.params,
            metrics=training.validation,
            score=None,
            greater_is_better=METRICS[spec.task][spec.primary_metric],
            mlflow_run_id=run.id,
            model_id=before.record.served.model_id,
            manifest=before.record.served.manifest,
            code=code,
            seconds={"fit": round(seconds, 3)},
            window=training.chosen_window,
        )
        refit = Refit(
            stored=stored, interval=rows.whole.key, rows=rows.all.num_rows, content=content, seconds=round(seconds, 3)
        )
        run.log(
            params={"estimator": spec.candidates[training.candidate].estimator, **training.params},
            metrics={"training_rows": rows.all.num_rows, "fit_seconds": seconds},
            tags={_FITTED: json.dumps(fitted.to_json()), _REFIT: json.dumps(refit.to_json())},
            model_id=stored.model_id,
        )
    log.info("the recipe of version %d was fitted on %s rows in %.1f s", record.version, f"{rows.all.num_rows:,}", seconds)
    return fitted, refit


def _log(
    recipe: ModelFolder, deployment: Deployment, fitted: Fitted, result: ContestResult, before: _Before, unseen: pa.Table
) -> None:
    """Log the measurements, and the pictures of the model before on rows that it had not learned from."""
    evaluation, spec = result.evaluation, recipe.spec
    run, rows = deployment.registry.run(fitted.mlflow_run_id), f"newest rows {evaluation.interval}"
    refresh, refit = evaluation.refresh, evaluation.refit
    figures = {f"before_{name}": value for name, value in evaluation.candidate.metrics.items()}
    for name, value in (
        ("before_skill", refresh.skill if refresh else None),
        ("agreement", refit.agreement if refit else None),
        ("evidence_of_harm", refresh.rolling.evidence if refresh and refresh.rolling else None),
    ):
        figures |= {} if value is None else {name: value}
    run.log(metrics=figures)
    source = {"model": evaluation.model, "interval": evaluation.interval}
    run.log_rows("newest rows", evaluation.rows_hash, source, rows=evaluation.rows, context="evaluation")
    with tempfile.TemporaryDirectory(prefix="perennial-refresh-") as scratch:
        measured, importance = Path(scratch) / "holdout", Path(scratch) / "validation"
        for directory in (measured, importance):
            directory.mkdir()
        plots.draw_predictions(spec.task, result.truth, result.predictions, measured, rows=rows)
        (measured / "evaluation.json").write_text(json.dumps(evaluation.to_json(), indent=2), encoding="utf-8")
        run.log_files(measured, measured.name)
        frame = before.model.takes.frame(unseen)
        draw_importance(recipe, before.model.estimator, frame, result.truth, importance, rows=rows)
        if any(importance.iterdir()):
            run.log_files(importance, importance.name)


# --- earlier refreshes -----------------------------------------------------------------------------------------------


def _rolling(folder: ModelFolder, deployment: Deployment, load: _Load, rows: _Rows) -> RollingEvidence | None:
    """Compare the refreshes of the last stretches with the version before them. Each had not learned from its stretch."""
    spec, ledger, period = folder.spec, deployment.ledger, _period(folder.spec)
    records = {record.version: record for record in ledger.versions(spec.name)}
    line = [records[version] for version in lineage(ledger.promotions(spec.name)) if version in records]
    # A champion that was replaced is no refresh: its successor was judged against it.
    begun = max(place for place, record in enumerate(line) if not record.is_refresh or place == 0)
    line = line[begun:]
    end = rows.newest.end

    def in_force(moment: datetime) -> VersionRecord | None:
        return next((record for record in reversed(line) if _learned_until(record) <= moment), None)

    anchor = in_force(end - LOOK_BACK * period) or line[0]
    stretches = []
    for number in range(LOOK_BACK, 0, -1):
        stretch = Interval(end - number * period, end - (number - 1) * period)
        served = in_force(stretch.start)
        if served is None or served.version == anchor.version:
            continue
        of_stretch = rows.within(spec, stretch)
        if of_stretch.num_rows:
            stretches.append(
                Stretch(
                    stretch,
                    served.version,
                    of_stretch,
                    load(served.version).predict(of_stretch),
                    load(anchor.version).predict(of_stretch),
                )
            )
    return roll(spec, anchor.version, stretches, cost_function(folder))
