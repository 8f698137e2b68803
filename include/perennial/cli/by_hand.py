"""The stages without Airflow: the same functions that the tasks call, one after the other, for a person at a terminal.

Neighbours: :mod:`perennial.cli.main` calls these; :mod:`perennial.orchestration` is the way they run every day.
Each stage imports what it needs, since the libraries of all take ten seconds.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa

from perennial.core import logs
from perennial.core.errors import SettingsError, SpecError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.reports.lineage import Node
from perennial.spec.folder import ModelFolder
from perennial.spec.monitoring import DriftThresholds

if TYPE_CHECKING:
    from perennial.drift.thresholds import Progress
    from perennial.monitoring.estimation import WindowOutlook


def ingest(settings: Settings, model: str, interval: Interval) -> str:
    """Read, check and publish an interval, and compute its features."""
    from perennial.features.publish import publish_features
    from perennial.ingestion.publish import DATASET, land_and_check, publish_interval

    with _run(settings, model, interval) as (parts, run_id):
        folder, ledger = parts.model(model), parts.ledger
        staging = settings.staging / model / run_id
        ledger.next_order(model, DATASET, interval, run_id)
        results = [
            land_and_check(folder, ledger, settings, table, interval, staging, connect=_connect, run_id=run_id)
            for table in folder.spec.tables
        ]
        tables = publish_interval(folder, parts.lake, ledger, interval, results, run_id=run_id)
        order = ledger.next_order(model, "features", interval, run_id)
        features = publish_features(folder, parts.lake, ledger, interval, order=order, run_id=run_id)
    rows = ", ".join(f"{table} {rows:,}" for table, rows in {**tables.rows, **features.rows}.items())
    return f"{model}, {interval}: published {rows}"


def train(settings: Settings, model: str, as_of: datetime) -> str:
    """Fit the candidates as of a moment, and promote the best if the gates let it."""
    from perennial.evaluation.gates import decide
    from perennial.reports.releases import publish_pages
    from perennial.training.evaluate import choose, evaluate_training
    from perennial.training.fit import fit_candidate
    from perennial.training.training_set import build_training_set

    with _run(settings, model, None) as (parts, run_id):
        folder, lake, ledger, registry = parts.model(model), parts.lake, parts.ledger, parts.registry
        staging = settings.staging / model / run_id
        training_set = build_training_set(folder, lake, ledger, as_of=as_of, run_id=run_id, staging=staging)
        fitted = [
            fit_candidate(folder, candidate, training_set, lake, registry, run_id=run_id, staging=staging)
            for candidate in folder.spec.candidates
        ]
        evaluation = evaluate_training(folder, lake, ledger, registry, training_set, fitted, run_id=run_id, staging=staging)
        decision = decide(evaluation, folder.spec.gates)
        version = registry.register(folder, training_set, choose(fitted), evaluation, decision, run_id=run_id)
        publish_pages(folder, ledger, registry, version)
        if not decision.promote:
            registry.refuse(model, version, decision)
            return f"{model} version {version} is refused: {'; '.join(decision.reasons)}"
        if folder.spec.promotion == "approval":
            return (
                f"{model} version {version} passed its gates; the model wants an approval, which {model}.train asks for. To do "
                f"without: perennial promote {model} {version} --override REASON"
            )
        registry.promote(
            model,
            version,
            expected=evaluation.champion_version,
            reason="by hand",
            actor=_actor(),
            run_id=run_id,
            evidence=decision.to_json(),
        )
    return f"{model} version {version} is champion"


def score(settings: Settings, model: str, interval: Interval) -> str:
    """Predict an interval with the champion, into the lake and the predictions database."""
    from perennial.monitoring.shadowing import DATASET, resolve_shadows, score_shadows
    from perennial.scoring.champion import resolve_champion
    from perennial.scoring.publish import score

    with _run(settings, model, interval) as (parts, run_id):
        version = resolve_champion(parts.registry, parts.ledger, model, interval)
        scored = score(
            parts.model(model),
            parts.lake,
            parts.ledger,
            parts.registry,
            interval,
            version=version,
            order=parts.ledger.next_order(model, "predictions", interval, run_id),
            run_id=run_id,
            sink_url=settings.predictions_url,
        )
        told = f"{model}, {interval}: {scored.rows:,} predictions by version {version}"
        shadows = resolve_shadows(parts.model(model).spec, parts.ledger, interval, champion=version)
        if shadows:
            done = score_shadows(
                parts.model(model),
                parts.lake,
                parts.ledger,
                parts.registry,
                interval,
                champion=version,
                versions=shadows,
                features_snapshot=scored.features_snapshot,
                order=parts.ledger.next_order(model, DATASET, interval, run_id),
                run_id=run_id,
            )
            told += f", in its shadow {done.rows:,} by {', '.join(str(number) for number in done.versions) or 'none'}"
    return told


def monitor(settings: Settings, model: str, interval: Interval) -> str:
    """Judge the drift of an interval, measure what can be measured, and say whether a retraining is due."""
    from perennial.monitoring import requests
    from perennial.monitoring.judge import judge_drift
    from perennial.monitoring.performance import measure_performance
    from perennial.monitoring.shadowing import compare_shadows

    with _run(settings, model, interval) as (parts, run_id):
        folder, lake, ledger, registry = parts.model(model), parts.lake, parts.ledger, parts.registry
        # First, since what was realised so far weighs in the verdict's severity.
        measured = measure_performance(folder, lake, ledger, interval, as_of=interval.end, run_id=run_id)
        verdict = judge_drift(folder, lake, ledger, registry, interval, directory=settings.reports, run_id=run_id)
        seen = compare_shadows(folder, lake, ledger, registry, as_of=interval.end, run_id=run_id)
        asked = requests.request_retraining(folder.spec, ledger, interval, run_id=run_id, training_under_way=False)
    lines = [f"{model}, {interval}: {verdict.verdict}: {'; '.join(verdict.reasons)}", f"{len(measured)} windows measured"]
    lines += [found.reason for found in seen]
    if verdict.report:
        lines.append(f"report: {settings.reports / verdict.report}")
    if asked is not None:
        lines.append(f"a retraining is due ({asked.cause}): perennial train {model} --as-of {interval.end:%Y-%m-%d}")
    return "\n".join(lines)


def calibrate(
    settings: Settings, model: str, interval: Interval | None, *, replays: int, seed: int | None, progress: Progress
) -> tuple[ModelFolder, DriftThresholds]:
    """Set the thresholds for drift from stable history, and keep them as ``drift.yaml`` in the model's folder.

    Args:
        settings: the deployment.
        model: its name.
        interval: what was stable; None: all features that are published.
        replays: how many windows of it are compared.
        seed: of the draws; None: ``training.seed``.
        progress: see :func:`perennial.drift.thresholds.calibrate`.

    Returns:
        The folder as it was before, and what is in the file now.
    """
    from perennial.drift import thresholds

    with _run(settings, model, interval) as (parts, _):
        folder = parts.model(model)
        spec = folder.spec
        history = thresholds.read_history(folder, parts.lake, parts.ledger, parts.registry, interval)
        found = thresholds.calibrate(
            spec.drift,
            thresholds.Geometry.of(spec),
            history,
            seed=spec.training.seed if seed is None else seed,
            replays=replays,
            progress=progress,
        )
        thresholds.write(folder, found)
    return folder, found


def outlook(settings: Settings, model: str) -> tuple[str, list[WindowOutlook]]:
    """The primary metric, and what was expected of each window and what came, oldest first."""
    from perennial.monitoring.estimation import beside_realised
    from perennial.operations.remembered import remembered

    with _run(settings, model, None) as (parts, _):
        spec = remembered(parts, model).spec
        windows = beside_realised(
            parts.ledger.verdicts(model, limit=1_000),
            parts.ledger.performances(model),
            spec.primary_metric,
            label_coverage=spec.gates.label_coverage,
        )
    return spec.primary_metric, windows


def rollback(settings: Settings, model: str, version: int | None, reason: str) -> str:
    """Make the champion before this one, or the version given, champion again."""
    with _run(settings, model, None) as (parts, run_id):
        done = parts.registry.rollback(model, version, actor=_actor(), reason=reason, run_id=run_id)
    return f"{model}: {done.words}"


def promote(settings: Settings, model: str, version: int, override: str | None) -> str:
    """Make a version champion that has passed its gates, or, with a reason, any other that can be loaded."""
    with _run(settings, model, None) as (parts, run_id):
        made = parts.registry.promote_by_hand(
            parts.model(model).spec, version, override=override, actor=_actor(), run_id=run_id
        )
    return f"{model} version {made.version} is champion ({made.action}: {made.reason})"


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
    from perennial.operations.remembered import remembered
    from perennial.reports.lineage import trace_back, trace_forward
    from perennial.reports.traces import find_prediction, read_history

    with _run(settings, model, interval or at) as (parts, _):
        spec = remembered(parts, model).spec
        history = read_history(parts.ledger, spec)
        if interval is not None:
            return trace_forward(history, interval)
        return trace_back(history, find_prediction(parts.lake, parts.ledger, spec, prediction or (), at))


def card(settings: Settings, model: str, version: int, out: Path | None) -> str:
    """Write a version's model card and release report anew, with what has been decided since, to MLflow or a folder."""
    from perennial.operations.remembered import remembered
    from perennial.reports.releases import publish_pages, write_pages

    with _run(settings, model, None) as (parts, _):
        if out is None:
            publish_pages(remembered(parts, model), parts.ledger, parts.registry, version)
            return f"{model} version {version}: card/card.html and card/release.html of its run in MLflow"
        folder: ModelFolder | None = None
        with suppress(SpecError):  # a version outlives its folder
            folder = parts.model(model)
        pages = write_pages(folder, parts.ledger, parts.registry, model, version, out)
    return "\n".join(str(page) for page in pages)


def reproduce(settings: Settings, model: str, version: int) -> tuple[str, bool]:
    """Make a version once more from its pinned rows, and compare its predictions.

    Returns:
        What was found, and whether they are the same to the last bit.
    """
    from perennial.training.reproduce import reproduce

    with _run(settings, model, None) as (parts, _):
        folder: ModelFolder | None = None
        with suppress(SpecError):  # a version outlives its folder
            folder = parts.model(model)
        made = reproduce(model, version, parts.lake, parts.ledger, parts.registry, folder=folder)
    return made.describe(), made.identical


def history(settings: Settings, model: str) -> list[dict[str, Any]]:
    """Every change of the model's champion, oldest first."""
    from perennial.reports.history import history

    with _run(settings, model, None) as (parts, _):
        if model not in parts.ledger.models():  # a model outlives its folder
            parts.model(model)
        return history(parts.ledger, model)


def explain(settings: Settings, model: str, version: int) -> dict[str, Any]:
    """All that the ledger tells of a version."""
    from perennial.reports.history import explain

    with _run(settings, model, None) as (parts, _):
        return explain(parts.ledger, model, version)


def tidy(settings: Settings, model: str) -> str:
    """Remove what is older than the retention, tidy the tables, close what the dead left open."""
    from perennial.operations.maintenance import maintain
    from perennial.operations.remembered import remembered

    with _run(settings, model, None) as (parts, _):
        spec = remembered(parts, model).spec
        done = maintain(settings, parts.lake, parts.ledger, parts.registry, spec, now=datetime.now(UTC))
    return "\n".join(
        f"{step}: {', '.join(f'{name} {count}' for name, count in counts.items())}" for step, counts in done.items()
    )


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
    built = build_features(folder, parts.lake, parts.ledger, day)
    found.append(f"features of {day}: {built.rows:,} rows")
    leaks = find_leaks(folder, parts.lake, parts.ledger, day)
    found += [f"leak: {leak}" for leak in leaks] or ["No feature depends on what was not known when it was asked for."]
    return "\n".join(found), not leaks


@contextmanager
def _run(settings: Settings, model: str, interval: Interval | None) -> Iterator[tuple[Deployment, str]]:
    parts = Deployment(settings)
    parts.ledger.migrate_own()
    run_id = f"by-hand-{uuid4().hex[:12]}"
    with logs.context(model=model, interval=interval, run=run_id):
        yield parts, run_id


def _actor() -> str:
    try:
        return f"by hand: {getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name, as in a container
        return f"by hand: user {os.getuid()}"


def _connect(name: str) -> sa.Engine:
    """The database whose SQLAlchemy URL the variable of that name holds; Airflow's connections are Airflow's."""
    if "://" not in (url := os.environ.get(name, "")):
        raise SettingsError(f"connection {name}: outside Airflow it is the environment variable {name}, with a SQLAlchemy URL")
    return sa.create_engine(url, hide_parameters=True)
