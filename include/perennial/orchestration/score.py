"""The tasks of ``score``: from published features to published predictions."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from perennial.core import logs
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import stage_run


@task(multiple_outputs=False)
def resolve_champion(model: str) -> list[dict[str, Any]]:
    """Who scores what: each part of the run's days, with the numbers of the champion and of the versions in its shadow.

    Every try of every task of the run uses the same versions.
    """
    from perennial.core.errors import NoChampion
    from perennial.monitoring.shadowing import resolve_shadows
    from perennial.scoring.champion import resolve_champion

    with stage_run(model) as run:
        registry, ledger = run.deployment.registry, run.deployment.ledger
        try:
            version = resolve_champion(registry, ledger, model, run.interval)
        except NoChampion as error:
            raise AirflowSkipException(str(error)) from error
        run.link(MLFLOW, registry.version_url(model, version))
        shadows = resolve_shadows(run.folder.spec, ledger, run.interval, champion=version)
        return [{"part": part.key, "version": version, "shadows": shadows} for part in run.parts]


@task(multiple_outputs=False)
def predict(model: str, work: dict[str, Any], *, outlet_events: Any = None) -> dict[str, Any] | None:
    """Predict a part's days in chunks and publish to the lake and to the SQL sink.

    Returns:
        What the versions in the shadow are to predict as well; None if there are none. Airflow makes a task of
        ``score_shadows`` for each result, and none for None.
    """
    from perennial.orchestration import assets
    from perennial.scoring.publish import score

    with stage_run(model, part=work["part"]) as run:
        logs.resolved(version=work["version"])
        parts = run.deployment
        scored = score(
            run.folder,
            parts.lake,
            parts.ledger,
            parts.registry,
            run.interval,
            version=work["version"],
            order=parts.ledger.next_order(model, "predictions", run.interval, run.run_id),
            run_id=run.run_id,
            sink_url=parts.settings.predictions_url,
        )
        event = outlet_events[assets.predictions(model)]
        event.extra = scored.to_json()
        if run.partition is None:
            event.add_partitions([day.key for day in run.interval.days()])
        return {**work, "features_snapshot": scored.features_snapshot} if work["shadows"] else None


@task(multiple_outputs=False)
def score_shadows(model: str, work: dict[str, Any]) -> dict[str, Any]:
    """Let the versions in the champion's shadow predict the rows that it has predicted."""
    from perennial.monitoring.shadowing import DATASET, score_shadows

    with stage_run(model, part=work["part"]) as run:
        logs.resolved(version=work["version"])
        parts = run.deployment
        done = score_shadows(
            run.folder,
            parts.lake,
            parts.ledger,
            parts.registry,
            run.interval,
            champion=work["version"],
            versions=work["shadows"],
            features_snapshot=work["features_snapshot"],
            order=parts.ledger.next_order(model, DATASET, run.interval, run.run_id),
            run_id=run.run_id,
        )
        return done.to_json()
