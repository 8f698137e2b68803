"""The tasks of ``score``: from published features to published predictions."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import stage_run


@task(multiple_outputs=False)
def resolve_champion(model: str) -> int:
    """The number of the version that scores this run; every try of every task of the run uses the same."""
    from perennial import scoring
    from perennial.errors import NoChampion

    with stage_run(model) as run:
        registry = run.deployment.registry
        try:
            version = scoring.resolve_champion(registry, run.deployment.ledger, model, run.interval)
        except NoChampion as error:
            raise AirflowSkipException(str(error)) from error
        run.link(MLFLOW, registry.version_url(model, version))
        return version


@task(multiple_outputs=False)
def predict(model: str, version: int, *, outlet_events: Any = None) -> dict[str, Any]:
    """Predict in chunks and publish to the lake and to the SQL sink."""
    from perennial.orchestration import assets
    from perennial.scoring import score

    with stage_run(model) as run:
        parts = run.deployment
        scored = score(
            run.folder,
            parts.lake,
            parts.ledger,
            parts.registry,
            run.interval,
            version=version,
            order=parts.ledger.next_order(model, "predictions", run.interval, run.run_id),
            run_id=run.run_id,
            sink_url=parts.settings.predictions_url,
        )
        event = outlet_events[assets.predictions(model)]
        event.extra = scored.to_json()
        if run.partition is None:
            event.add_partitions([day.key for day in run.interval.days()])
        return scored.to_json()


@task(multiple_outputs=False)
def score_shadows(model: str, scored: dict[str, Any]) -> dict[str, Any]:
    """Let the versions in the champion's shadow predict the same rows; skipped when there are none."""
    from perennial import shadowing
    from perennial.scoring import Scored

    with stage_run(model) as run:
        parts, champion = run.deployment, Scored.from_json(scored)
        versions = shadowing.resolve_shadows(run.folder.spec, parts.ledger, run.interval, champion=champion.version)
        if not versions:
            raise AirflowSkipException(f"no version scores {run.interval} in the shadow of version {champion.version}")
        done = shadowing.score_shadows(
            run.folder,
            parts.lake,
            parts.ledger,
            parts.registry,
            run.interval,
            champion=champion.version,
            versions=versions,
            features_snapshot=champion.features_snapshot,
            order=parts.ledger.next_order(model, shadowing.DATASET, run.interval, run.run_id),
            run_id=run.run_id,
        )
        return done.to_json()
