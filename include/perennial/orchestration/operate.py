"""The tasks of ``rollback`` and ``maintain``: what keeps a deployment in order."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import stage_run


@task(multiple_outputs=False)
def roll_back(model: str) -> dict[str, Any]:
    """Make the champion before this one, or the version that the form names, champion again."""
    with stage_run(model) as run:
        registry = run.deployment.registry
        champion = registry.rollback(
            model,
            run.params.get("version"),
            actor=f"airflow:{run.context['dag_run'].triggering_user_name or 'unknown'}",
            reason=run.params["reason"],
            run_id=f"{run.context['dag'].dag_id}/{run.run_id}",
        )
        run.link(MLFLOW, registry.version_url(model, champion))
        return {"champion": champion}
