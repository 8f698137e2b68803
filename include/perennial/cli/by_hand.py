"""The stages without Airflow, for a person at a terminal: a run is opened, its stage is done, and what came of it is told.

Neighbours: :mod:`perennial.stages` says what a stage does; :mod:`perennial.orchestration` is the way it runs every day.
Each function imports what it needs, since the libraries of all take ten seconds.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from perennial.core import logs
from perennial.core.errors import SettingsError, SpecError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.spec.folder import ModelFolder
from perennial.spec.monitoring import DriftThresholds
from perennial.stages.run import StageRun

if TYPE_CHECKING:
    import sqlalchemy as sa

    from perennial.drift.thresholds import Progress
    from perennial.monitoring.estimation import WindowOutlook
    from perennial.reports.lineage import Node
    from perennial.stages.controls import ControlsReport


# --- the stages ------------------------------------------------------------------------------------------------------


def ingest(settings: Settings, model: str, interval: Interval) -> str:
    """Read, check and publish an interval, and compute its features."""
    from perennial.stages.ingest import ingest

    with _run(settings, model, interval) as run:
        done = ingest(run, interval, connect=_connect)
    rows = ", ".join(f"{table} {rows:,}" for table, rows in {**done.tables.rows, **done.features.rows}.items())
    return f"{model}, {interval}: published {rows}"


def train(settings: Settings, model: str, as_of: datetime, cause: str | None = None) -> str:
    """Fit the candidates as of a moment, and promote the best if the gates let it and nobody has to approve it."""
    from perennial.stages.train import train

    with _run(settings, model, None) as run:
        return train(run, as_of=as_of, cause=cause or "by hand", actor=actor()).words


def score(settings: Settings, model: str, interval: Interval) -> str:
    """Predict an interval with the champion, into the lake and the predictions database."""
    from perennial.stages.score import score

    with _run(settings, model, interval) as run:
        scored, shadows = score(run, interval)
    told = f"{model}, {interval}: {scored.rows:,} predictions by version {scored.version}"
    if shadows is not None:
        told += f", in its shadow {shadows.rows:,} by {', '.join(str(number) for number in shadows.versions) or 'none'}"
    return told


def monitor(settings: Settings, model: str, interval: Interval) -> str:
    """Judge the drift of an interval, measure what can be measured, and say whether a retraining is due."""
    from perennial.stages.monitor import monitor

    with _run(settings, model, interval) as run:
        found = monitor(run, interval, training_under_way=False)
    verdict = found.verdict
    lines = [f"{model}, {interval}: {verdict.verdict}: {'; '.join(verdict.reasons)}", f"{len(found.measured)} windows measured"]
    lines += [seen.reason for seen in found.compared]
    if verdict.report:
        lines.append(f"report: {settings.reports / verdict.report}")
    if found.request is not None:
        cause, day = found.request.cause, f"{interval.end:%Y-%m-%d}"
        lines.append(f"a retraining is due ({cause}): perennial train {model} --as-of {day}")
    return "\n".join(lines)


def calibrate(
    settings: Settings, model: str, interval: Interval | None, *, replays: int, seed: int | None, progress: Progress
) -> tuple[ModelFolder, DriftThresholds]:
    """Set the thresholds for drift from stable history; see :func:`perennial.stages.calibrate.calibrate`.

    Returns:
        The folder as it was before, and what is in the file now.
    """
    from perennial.stages.calibrate import calibrate

    with _run(settings, model, interval) as run:
        return run.folder, calibrate(run, interval, replays=replays, seed=seed, progress=progress)


def rollback(settings: Settings, model: str, version: int | None, reason: str) -> str:
    """Make the champion before this one, or the version given, champion again."""
    from perennial.stages.promote import roll_back

    with _run(settings, model, None) as run:
        done = roll_back(run, version, reason=reason, actor=actor())
    return f"{model}: {done.words}"


def promote(settings: Settings, model: str, version: int, override: str | None) -> str:
    """Make a version champion that has passed its gates, or, with a reason, any other that can be loaded."""
    from perennial.stages.promote import promote_by_hand

    with _run(settings, model, None) as run:
        made = promote_by_hand(run, version, override=override, actor=actor())
    return f"{model} version {made.version} is champion ({made.action}: {made.reason})"


def tidy(settings: Settings, model: str) -> str:
    """Remove what is older than the retention, tidy the tables, close what the dead left open."""
    from perennial.stages.maintain import maintain

    with _remembered(settings, model, None) as run:
        done = maintain(run)
    return "\n".join(
        f"{step}: {', '.join(f'{name} {count}' for name, count in counts.items())}" for step, counts in done.items()
    )


def controls(settings: Settings, model: str) -> ControlsReport:
    """Try the model's gates on candidates that no gate may let pass."""
    from perennial.stages.controls import try_gates

    with _run(settings, model, None) as run:
        return try_gates(run)


# --- what can be asked -----------------------------------------------------------------------------------------------


def outlook(settings: Settings, model: str) -> tuple[str, list[WindowOutlook]]:
    """The primary metric, and what was expected of each window and what came, oldest first."""
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
    settings: Settings, model: str, *, prediction: Sequence[str] | None, at: Interval | None, interval: Interval | None
) -> Node:
    """Where a prediction came from, or where a raw interval went; exactly one of the two is given.

    Args:
        settings: the deployment.
        model: its name.
        prediction: values of its entity's key.
        at: the day of its event time; None looks for it in all of them.
        interval: of raw rows.
    """
    from perennial.reports.lineage import trace_back, trace_forward
    from perennial.reports.traces import find_prediction, read_history

    with _remembered(settings, model, interval or at) as run:
        spec, ledger = run.folder.spec, run.deployment.ledger
        history = read_history(ledger, spec)
        if interval is not None:
            return trace_forward(history, interval)
        return trace_back(history, find_prediction(run.deployment.lake, ledger, spec, prediction or (), at))


def card(settings: Settings, model: str, version: int, out: Path | None) -> str:
    """Write a version's model card and release report anew, with what has been decided since, to MLflow or a folder."""
    from perennial.operations.remembered import remembered
    from perennial.reports.releases import publish_pages, write_pages

    with _opened(settings, model, None) as (deployment, _):
        if out is None:
            publish_pages(remembered(deployment, model), deployment, version)
            return f"{model} version {version}: card/card.html and card/release.html of its run in MLflow"
        pages = write_pages(_folder(deployment, model), deployment, model, version, out)
    return "\n".join(str(page) for page in pages)


def reproduce(settings: Settings, model: str, version: int) -> tuple[str, bool]:
    """Make a version once more from its pinned rows, and compare its predictions.

    Returns:
        What was found, and whether they are the same to the last bit.
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


def explain(settings: Settings, model: str, version: int) -> dict[str, Any]:
    """All that the ledger tells of a version."""
    from perennial.reports.history import explain

    with _opened(settings, model, None) as (deployment, _):
        return explain(deployment.ledger, model, version)


def inspect(settings: Settings, model: str) -> tuple[str, bool]:
    """Read a model folder and, where data are published, try its features on the newest day.

    Returns:
        What was found, and whether it is in order.

    Raises:
        SpecError: the folder does not describe a model: file, line, and what would be right.
    """
    parts = Deployment(settings)
    folder = parts.model(model)
    spec = folder.spec
    found = [
        f"{folder.path} describes the model {model} ({spec.task.replace('_', ' ')}): {len(spec.tables)} tables from "
        f"{len(spec.sources)} sources, {len(spec.features.names)} features, candidates {', '.join(spec.candidates)}"
    ]
    parts.ledger.migrate_own()
    published = parts.ledger.published(model, "tables")
    if published is None:
        return "\n".join([*found, "No data are published yet, so the features are not tried."]), True
    from perennial.features.publish import build_features, find_leaks

    day = Interval(published.interval.end - timedelta(days=1), published.interval.end)
    built = build_features(folder, parts.lake, day)
    found.append(f"features of {day}: {built.rows:,} rows")
    leaks = find_leaks(folder, parts.lake, day)
    found += [f"leak: {leak}" for leak in leaks] or ["No feature depends on what was not known when it was asked for."]
    return "\n".join(found), not leaks


# --- a run of a person's ---------------------------------------------------------------------------------------------


@contextmanager
def _run(settings: Settings, model: str, interval: Interval | None) -> Iterator[StageRun]:
    with _opened(settings, model, interval) as (deployment, run_id):
        yield StageRun(deployment.model(model), deployment, run_id, run_id)


@contextmanager
def _remembered(settings: Settings, model: str, interval: Interval | None) -> Iterator[StageRun]:
    """A run on a model whose folder may be gone; only what the folder said may be used."""
    from perennial.operations.remembered import remembered

    with _opened(settings, model, interval) as (deployment, run_id):
        yield StageRun(remembered(deployment, model), deployment, run_id, run_id)


@contextmanager
def _opened(settings: Settings, model: str, interval: Interval | None) -> Iterator[tuple[Deployment, str]]:
    """The deployment, and a name for what is done in it; log lines bear it."""
    deployment = Deployment(settings)
    deployment.ledger.migrate_own()
    run_id = f"by-hand-{uuid4().hex[:12]}"
    with logs.context(model=model, interval=interval, run=run_id):
        yield deployment, run_id


def _folder(deployment: Deployment, model: str) -> ModelFolder | None:
    """The model's folder; None if there is none that can be read, since a version outlives its folder."""
    with suppress(SpecError):
        return deployment.model(model)
    return None


def actor() -> str:
    """Who works by hand, for the record."""
    try:
        return f"by hand: {getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name, as in a container
        return f"by hand: user {os.getuid()}"


def _connect(name: str) -> sa.Engine:
    """The database whose SQLAlchemy URL the variable of that name holds; Airflow's connections are Airflow's."""
    if "://" not in (url := os.environ.get(name, "")):
        raise SettingsError(f"connection {name}: outside Airflow it is the environment variable {name}, with a SQLAlchemy URL")
    import sqlalchemy as sa

    return sa.create_engine(url, hide_parameters=True)
