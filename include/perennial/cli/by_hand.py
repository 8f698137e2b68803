"""Run the stages without Airflow, for a person at a terminal. Each function opens a run, does its work and returns the result.

Neighbours: :mod:`perennial.stages` says what a stage does. :mod:`perennial.orchestration` runs the stages every day.
Each function imports what it needs, since all libraries together take ten seconds to import.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from perennial.core import logs
from perennial.core.errors import SettingsError, SnapshotMissing, SpecError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.spec.folder import ModelFolder
from perennial.spec.monitoring import DriftThresholds
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.drift.thresholds import Progress
    from perennial.ledger.records import ParityRecord
    from perennial.monitoring.estimation import WindowOutlook
    from perennial.reports.board import Board
    from perennial.reports.lineage import Node
    from perennial.stages.controls import ControlsReport


# --- the stages ------------------------------------------------------------------------------------------------------


def ingest(settings: Settings, model: str, interval: Interval) -> str:
    """Read, check and publish an interval, and compute its features."""
    from perennial.ledger.coverage import outdated
    from perennial.reports.history import again
    from perennial.stages.ingest import ingest

    with _run(settings, model, interval) as run:
        done = ingest(run, interval, connect=_connect)
        touched = Interval(min([interval.start, *(late.interval.start for late in done.tables.late)]), interval.end)
        ledger = run.deployment.ledger
        stale = outdated(*(ledger.publications(model, dataset, touched) for dataset in ("features", "predictions")))
    rows = ", ".join(f"{table} {rows:,}" for table, rows in {**done.tables.tables.rows, **done.features.rows}.items())
    lines = [f"{model}, {interval}: published {rows}"]
    for table, days in done.tables.tables.inputs.get("awaited", {}).items():
        lines.append(f"{table} of {', '.join(days)} has not come; an ingest of a later day completes it")
    for day, counts in done.tables.late_rows.items():
        lines.append(f"late rows published into {day}: {', '.join(f'{table} {rows:,}' for table, rows in counts.items())}")
    lines += [f"{day} was scored before its features changed; {again(model, day)}" for day in stale]
    return "\n".join(lines)


def train(settings: Settings, model: str, as_of: datetime, cause: str | None = None) -> str:
    """Fit the candidates as of a moment. Promote the best one if it passes the gates and requires no approval."""
    from perennial.stages.train import train

    with _run(settings, model, None) as run:
        return train(run, as_of=as_of, cause=cause or "by hand", actor=actor()).words


def refresh(settings: Settings, model: str, as_of: datetime, cause: str | None = None) -> str:
    """Fit the champion's recipe on the rows up to a moment. It becomes champion if it passes the gates of a refresh."""
    from perennial.stages.refresh import refresh

    with _run(settings, model, None) as run:
        return refresh(run, as_of=as_of, cause=cause or "by hand", actor=actor()).words


def held(settings: Settings, model: str) -> str:
    """What is held back of a model, and what was."""
    with _remembered(settings, model, None) as run:
        holds, stopped = run.deployment.ledger.holds(model), run.deployment.ledger.stopped_refreshes(model)
    lines = []
    for one in holds:
        if one.released_at is not None:
            state = f"released {one.released_at:%Y-%m-%d} by {one.released_by}: {one.release_reason}"
        elif one.what == "refreshes" and (stopped is None or stopped.id != one.id):
            state = "ended by a version that replaced the champion"
        else:
            state = "held back"
        lines.append(f"{one.what} of {one.interval}, since {one.held_at:%Y-%m-%d} by version {one.version}: {state}")
        lines += [f"  {reason}" for reason in one.reasons]
    return "\n".join(lines) or f"nothing of {model} is or was held back"


def release(settings: Settings, model: str, interval: Interval | None, *, refreshes: bool, reason: str) -> tuple[str, bool]:
    """Release data of an interval, or refreshes; and whether there was something to release."""
    from perennial.stages.refresh import release

    with _run(settings, model, interval) as run:
        found = release(run, "data", interval, reason=reason, actor=actor()) if interval is not None else []
        if refreshes:
            found += release(run, "refreshes", None, reason=reason, actor=actor())
    if not found:
        return f"nothing of {model} that you named is held back; perennial data held {model} shows what is", False
    return "\n".join(f"{model}: {one.what} of {one.interval} released" for one in found), True


def score(settings: Settings, model: str, interval: Interval) -> str:
    """Predict an interval with the champion, and publish to the lake and the predictions database."""
    from perennial.stages.score import score

    with _run(settings, model, interval) as run:
        scored, shadows = score(run, interval)
    told = f"{model}, {interval}: {scored.rows:,} predictions by version {scored.version}"
    if shadows is not None:
        told += f", {shadows.rows:,} by its shadow versions {', '.join(str(number) for number in shadows.versions) or '(none)'}"
    return told


def materialize(settings: Settings, model: str) -> str:
    """Write the rows of features that are asked online by key."""
    from perennial.stages.materialize import materialize

    with _run(settings, model, None) as run:
        done = materialize(run)
    lines = []
    for dataset, rows in done.rows.items():
        if rows is None:
            lines.append(f"{model}: the rows of the newest publication are there already, so nothing of {dataset} was changed")
        else:
            soon = f", {done.soon[dataset]:,} of them of entities to come" if done.soon[dataset] else ""
            lines.append(f"{model}: {rows:,} rows of {dataset} can be asked by key, of {done.day}{soon}")
    if done.dependent:
        depend = f"{', '.join(done.dependent)} depend on which entities are asked; perennial check {model} says how"
        lines.append(f"entities to come have no rows: {depend}")
    return "\n".join(lines)


def record(settings: Settings, model: str) -> str:
    """Publish what was asked online, and measure the parity of what was served."""
    from perennial.stages.record import measure_parity, publish_requests

    with _run(settings, model, None) as run:
        if run.folder.spec.online is None:
            raise SpecError(f"{model} is not asked by key, so nothing of it is recorded: its model.yaml has no `online`")
        done = publish_requests(run)
        measured = measure_parity(run)
    lines = [f"{model}: {done.rows:,} rows that were asked online are published, of {len(done.hours):,} hours"]
    if done.lost:
        lines.append(f"{done.lost:,} rows were answered by scorers that were killed before they had recorded them")
    lines += [
        f"features of {one.interval}: {one.equal:,} of {one.rows:,} rows are what the published tables give"
        + (f"; {', '.join(one.worst)}" if one.worst else "")
        for one in measured
    ] or ["no row can be compared yet: its day, or its entity, is not published"]
    return "\n".join(lines)


def parity(settings: Settings, model: str) -> list[ParityRecord]:
    """What was measured of the parity of what is served online, the newest day first."""
    with _remembered(settings, model, None) as run:
        return run.deployment.ledger.parities(model)


def monitor(settings: Settings, model: str, interval: Interval) -> str:
    """Measure the windows whose labels are known, judge the drift of an interval, and say whether a retraining is due."""
    from perennial.stages.monitor import monitor

    with _run(settings, model, interval) as run:
        found = monitor(run, interval, training_under_way=False)
    verdict = found.verdict
    lines = [f"{model}, {interval}: {verdict.verdict}: {'; '.join(verdict.reasons)}", f"{len(found.measured)} windows measured"]
    lines += [seen.reason for seen in found.compared]
    if verdict.report:
        lines.append(f"report: {settings.reports / verdict.report}")
    if (asked := verdict.details.asked) is not None:
        lines.append(f"asked online: {asked.verdict.replace('_', ' ')}: {'; '.join(asked.reasons)}")
    if asked is not None and asked.report:
        lines.append(f"report: {settings.reports / asked.report}")
    if found.request is not None:
        cause, day = found.request.cause, f"{interval.end:%Y-%m-%d}"
        lines.append(f"a retraining is due ({cause}): perennial train {model} --as-of {day}")
    return "\n".join(lines)


def calibrate(
    settings: Settings, model: str, interval: Interval | None, *, replays: int, seed: int | None, progress: Progress
) -> tuple[ModelFolder, DriftThresholds]:
    """Set the thresholds for drift from stable history; see :func:`perennial.stages.calibrate.calibrate`.

    Returns:
        The folder as it was before, and the new thresholds.
    """
    from perennial.stages.calibrate import calibrate

    with _run(settings, model, interval) as run:
        return run.folder, calibrate(run, interval, replays=replays, seed=seed, progress=progress)


def rollback(settings: Settings, model: str, version: int | None, reason: str) -> str:
    """Make the previous champion, or the given version, champion again."""
    from perennial.stages.promote import roll_back

    with _run(settings, model, None) as run:
        done = roll_back(run, version, reason=reason, actor=actor())
    return f"{model}: {done.words}"


def promote(settings: Settings, model: str, version: int, override: str | None) -> str:
    """Make a version champion. It must have passed its gates; with a reason, any version that can be loaded is accepted."""
    from perennial.stages.promote import promote_by_hand

    with _run(settings, model, None) as run:
        made = promote_by_hand(run, version, override=override, actor=actor())
    return f"{model} version {made.version} is champion ({made.action}: {made.reason})"


def tidy(settings: Settings, model: str) -> str:
    """Remove what is older than the retention, tidy the tables, and close the runs of killed processes."""
    from perennial.stages.maintain import look_at_champion, maintain

    with _remembered(settings, model, None) as run:
        done = maintain(run)
        stands = look_at_champion(run)
    lines = [f"{step}: {', '.join(f'{name} {count}' for name, count in counts.items())}" for step, counts in done.items()]
    return "\n".join([*lines, *([stands.words] if stands is not None else [])])


def controls(settings: Settings, model: str) -> ControlsReport:
    """Try the model's gates on candidates that they must refuse."""
    from perennial.stages.controls import try_gates

    with _run(settings, model, None) as run:
        return try_gates(run)


# --- questions -------------------------------------------------------------------------------------------------------


def board(settings: Settings) -> Board:
    """The model board, as people see it in Airflow, of all models that are not retired."""
    from perennial.reports.board import ALERTS_FOR, WINDOWS, Pages, compose
    from perennial.spec.folder import read_models

    now, ledger = datetime.now(UTC), Deployment(settings).ledger
    ledger.migrate_own()
    overview = ledger.overview(windows=WINDOWS, alerts_since=now - ALERTS_FOR)
    folders, broken = read_models(settings.models)
    living = {name: folder for name, folder in folders.items() if not folder.spec.retired}
    return compose(overview, living, broken, now=now, pages=Pages(mlflow=settings.mlflow_public_url))


def outlook(settings: Settings, model: str) -> tuple[str, list[WindowOutlook]]:
    """The name of the primary metric, and its estimated and realised values by window, oldest first."""
    from perennial.monitoring.estimation import beside_realised

    with _remembered(settings, model, None) as run:
        spec, ledger = run.folder.spec, run.deployment.ledger
        windows = beside_realised(
            ledger.verdicts(model, limit=1_000),
            ledger.performances(model),
            spec.primary_metric,
            label_coverage=spec.gates.label_coverage,
        )
    return spec.primary_metric, windows


def lineage(
    settings: Settings,
    model: str,
    *,
    prediction: Sequence[str] | None,
    at: Interval | None,
    interval: Interval | None,
    request: str | None = None,
) -> Node:
    """Trace a prediction or a request back to its raw rows, or trace raw rows forward. Give one of the three.

    Args:
        settings: the deployment's settings.
        model: the model's name.
        prediction: the key values of the prediction's entity.
        request: the id of a request that was asked online.
        at: the day of the prediction's event time, or of the request; None: search all days.
        interval: the interval of raw rows.
    """
    from perennial.reports.lineage import trace_back, trace_forward, trace_request
    from perennial.reports.traces import find_prediction, find_request, read_history
    from perennial.serving.request_table import RequestTable

    with _remembered(settings, model, interval or at) as run:
        spec, ledger = run.folder.spec, run.deployment.ledger
        history = read_history(ledger, spec)
        if interval is not None:
            return trace_forward(history, interval)
        if request is not None:
            table = RequestTable(settings.predictions_url)
            return trace_request(history, find_request(run.deployment.lake, table, model, request, at))
        return trace_back(history, find_prediction(run.deployment.lake, ledger, spec, prediction or (), at))


def card(settings: Settings, model: str, version: int, out: Path | None) -> str:
    """Write a version's model card and release report again, with later decisions, to MLflow or to a folder."""
    from perennial.operations.remembered import remembered
    from perennial.reports.releases import publish_pages, write_pages

    with _opened(settings, model, None) as (deployment, _):
        if out is None:
            publish_pages(remembered(deployment, model), deployment, version)
            return f"{model} version {version}: card/card.html and card/release.html of its run in MLflow"
        pages = write_pages(_folder(deployment, model), deployment, model, version, out)
    return "\n".join(str(page) for page in pages)


def reproduce(settings: Settings, model: str, version: int) -> tuple[str, bool]:
    """Train a version again on its pinned rows, and compare its predictions.

    Returns:
        The result as a text, and whether the predictions are equal to the last bit.
    """
    from perennial.training.reproduce import reproduce

    with _opened(settings, model, None) as (deployment, _):
        made = reproduce(model, version, deployment, folder=_folder(deployment, model))
    return made.describe(), made.identical


def history(settings: Settings, model: str) -> list[dict[str, Any]]:
    """Every change of the model's champion, oldest first."""
    from perennial.reports.history import history

    with _opened(settings, model, None) as (deployment, _):
        if model not in deployment.ledger.models():  # a model outlives its folder
            deployment.model(model)
        return history(deployment.ledger, model)


def unfinished(settings: Settings, model: str) -> list[str]:
    """What published days of the model still lack, a line each."""
    from perennial.reports.history import unfinished

    with _opened(settings, model, None) as (deployment, _):
        return unfinished(deployment.ledger, model)


def requests(settings: Settings, model: str) -> list[str]:
    """The trainings that monitoring asked for, what was expected of them, and what came of them, a line each."""
    from perennial.reports.history import requests

    with _opened(settings, model, None) as (deployment, _):
        return requests(deployment.ledger, model)


def signed(settings: Settings, model: str) -> list[str]:
    """Whether the records of the model's decisions are as they were signed, a line each."""
    from perennial.reports.history import signed

    with _opened(settings, model, None) as (deployment, _):
        return signed(deployment.ledger, model)


def explain(settings: Settings, model: str, version: int) -> dict[str, Any]:
    """Everything that the ledger contains about a version."""
    from perennial.reports.history import explain

    with _opened(settings, model, None) as (deployment, _):
        return explain(deployment.ledger, model, version)


def inspect(settings: Settings, model: str, sample: Path | None = None) -> tuple[str, bool]:
    """Read a model folder, and try its SQL without data. If data are published, also build its features for the newest day.

    Args:
        settings: the deployment.
        model: the model.
        sample: a file to read as ingestion would; what is told of rows is told of its rows.

    Returns:
        The result as a text, and whether more rows can be published, published rows have all that is read, and no feature
        leaks.

    Raises:
        SpecError: the folder does not describe a model, or its SQL cannot work; the message has a line for each problem: file,
            line, and the correction.
    """
    from perennial.operations import prospects
    from perennial.operations.inspection import (
        find_changed_types,
        find_faults,
        find_remarks,
        find_todos,
        find_unreviewed_types,
    )
    from perennial.operations.standing import standing

    parts = Deployment(settings)
    folder = parts.model(model)
    if faults := find_faults(folder):
        raise SpecError("\n".join(faults))
    spec = folder.spec
    found = [
        *find_remarks(folder),
        *find_todos(folder),
        *find_unreviewed_types(folder, settings),
        f"{folder.path} describes the model {model} ({spec.task.replace('_', ' ')}): {len(spec.tables)} tables from "
        f"{len(spec.sources)} sources, {len(spec.features.names)} features, candidates {', '.join(spec.candidates)}",
    ]
    if sample is not None:
        with TemporaryDirectory(prefix="perennial-sample-") as scratch:
            sampled = prospects.read_sample(folder, sample, Path(scratch))
        refused_sample = any(one.refused for one in sampled.results)
        found += [*sampled.words(sample), *prospects.find_prospects(folder, sampled.seen)]
        if refused_sample:
            return "\n".join(found), False
    parts.ledger.migrate_own()
    if (stands := standing(parts, model, folder)) is not None:
        found.append(stands.words)
        if stale := _stale_thresholds(parts, folder, stands.version):
            found.append(stale)
    published = parts.ledger.published(model, "tables")
    if published is None:
        return "\n".join([*found, "No data are published yet, so the features were not computed."]), True
    from perennial.features.history import gaps_of_training, refuse_gaps
    from perennial.features.publish import build_features, find_dependences, find_leaks
    from perennial.features.published import snapshot_of
    from perennial.training.training_set import window_start

    told, refused = find_changed_types(folder, parts.lake)
    found += told
    if refused:
        return "\n".join([*found, *refused]), False
    newest = parts.ledger.latest(model, "tables", spec.entity.table) or published
    end = newest.interval.end
    start = window_start(spec, parts.ledger, end - spec.training.holdout, spec.training.longest)
    day = Interval(end - timedelta(days=1), end)
    try:
        for table in folder.feature_tables:
            snapshot_of(folder, table, published.snapshots)
        refuse_gaps(folder, gaps_of_training(folder, parts.lake, published.snapshots, Interval(start, end)))
        built = build_features(folder, parts.lake, day)
    except (SnapshotMissing, SpecError) as error:
        return "\n".join([*found, str(error)]), False
    found.append(f"features of {day}: {built.rows:,} rows")
    if sample is None:
        found += prospects.find_prospects(folder, prospects.look_at_published(folder, parts.lake, published.snapshots, end))
    if spec.label.table not in published.snapshots:
        found.append(f"No labels are published yet, in table {spec.label.table}, so no training is possible.")
    leaks = find_leaks(folder, parts.lake, day)
    found += [f"leak: {leak}" for leak in leaks] or ["No feature depends on data that were not known yet."]
    if not leaks:
        # Two days, so that each is also asked alone.
        dependences = find_dependences(folder, parts.lake, Interval(day.start - timedelta(days=1), day.end))
        found += [f"only by key: {one}" for one in dependences] or [
            "The features of an entity are the same whichever others are asked with it, so it can be asked alone."
        ]
        if dependences:
            found.append("So no entity can be asked alone: features are as published, and online they are given by key only.")
    return "\n".join(found), not leaks


def _stale_thresholds(parts: Deployment, folder: ModelFolder, champion: int) -> str:
    """That ``drift.yaml`` was made for another version than the champion; empty if it was not, or monitoring calibrates."""
    from perennial.monitoring.calibrated import stale_thresholds

    if folder.thresholds is None or folder.spec.drift.calibrate == "auto":
        return ""
    return stale_thresholds(folder.spec.name, folder.thresholds, champion, parts.ledger.versions(folder.spec.name))


# --- runs by hand ----------------------------------------------------------------------------------------------------


@contextmanager
def _run(settings: Settings, model: str, interval: Interval | None) -> Iterator[StageRun]:
    with _opened(settings, model, interval) as (deployment, run_id):
        folder = deployment.model(model)
        if folder.spec.retired:
            raise SpecError(f"{model} is retired: to bring it back, remove `retired: true` from {folder.path / 'model.yaml'}")
        yield StageRun(folder, deployment, run_id, run_id)


@contextmanager
def _remembered(settings: Settings, model: str, interval: Interval | None) -> Iterator[StageRun]:
    """A run on a model whose folder may be gone; use only the folder's specification."""
    from perennial.operations.remembered import remembered

    with _opened(settings, model, interval) as (deployment, run_id):
        yield StageRun(remembered(deployment, model), deployment, run_id, run_id)


@contextmanager
def _opened(settings: Settings, model: str, interval: Interval | None) -> Iterator[tuple[Deployment, str]]:
    """The deployment, and the name of the run, which is added to log lines."""
    deployment = Deployment(settings)
    deployment.ledger.migrate_own()
    run_id = f"by-hand-{uuid4().hex[:12]}"
    with logs.context(model=model, interval=interval, run=run_id):
        yield deployment, run_id


def _folder(deployment: Deployment, model: str) -> ModelFolder | None:
    """The model's folder; None if it is gone or cannot be read, since versions outlive their folder."""
    with suppress(SpecError):
        return deployment.model(model)
    return None


def actor() -> str:
    """The name of the person at the terminal, for the record."""
    try:
        return f"by hand: {getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name, for example in a container
        return f"by hand: user {os.getuid()}"


def _connect(name: str) -> sa.Engine:
    """Open the database whose SQLAlchemy URL is in the environment variable ``name``; Airflow's connections are not used."""
    if "://" not in (url := os.environ.get(name, "")):
        raise SettingsError(f"connection {name}: outside Airflow, set the environment variable {name} to a SQLAlchemy URL")
    import sqlalchemy as sa

    return sa.create_engine(url, hide_parameters=True)
