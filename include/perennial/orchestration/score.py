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
