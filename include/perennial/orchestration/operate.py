"""The tasks of ``rollback``, ``promote`` and ``maintain``: what people ask for, and what keeps a deployment in order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import task

from perennial.core import logs
from perennial.orchestration.dags import PROMOTE
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.runs import Run, stage_run

log = logs.get(__name__)


@task(multiple_outputs=False)
def roll_back(model: str) -> dict[str, Any]:
    """Make the champion before this one, or the version that the form names, champion again."""
    with stage_run(model) as run:
        registry = run.deployment.registry
        done = registry.rollback(
            model,
            run.params.get("version"),
            actor=_actor(run),
            reason=run.params["reason"],
            run_id=run.qualified_id,
        )
        log.info("%s", done.words)
        run.link(MLFLOW, registry.version_url(model, done.version))
        return {"champion": done.version, "changed": done.changed, "words": done.words}


@task(multiple_outputs=False)
def promote_by_hand(model: str) -> dict[str, Any]:
    """Make the version that the form names champion, with a reason where something stands against it."""
    with stage_run(model) as run:
        registry = run.deployment.registry
        made = registry.promote_by_hand(
            run.folder.spec,
            int(run.params["version"]),
            override=run.params.get("override"),
            actor=_actor(run),
            run_id=run.qualified_id,
        )
        run.link(MLFLOW, registry.version_url(model, made.version))
        return {"champion": made.version, "action": made.action}


def _actor(run: Run) -> str:
    """Who triggered the run."""
    return f"airflow:{run.context['dag_run'].triggering_user_name or 'unknown'}"


@task(multiple_outputs=False)
def clear_files(model: str) -> dict[str, dict[str, int]]:
    """Remove what past runs handed from task to task, and reports older than the model keeps."""
    from perennial.operations.maintenance import remove_reports, remove_staging

    with stage_run(model) as run:
        settings, now = run.deployment.settings, datetime.now(UTC)
        return {
            "staging": remove_staging(settings, model, now=now),
            "reports": remove_reports(settings, run.folder.spec, now=now),
        }


@task(multiple_outputs=False)
def tidy_lake(model: str) -> dict[str, dict[str, int]]:
    """Remove rows whose time is over, let go of what no kept version pins, join small files, remove orphans: in this order.
    Nothing while a backup is made."""
    from perennial.operations.maintenance import tidy_lake

    with stage_run(model) as run:
        parts = run.deployment
        return tidy_lake(parts.settings, parts.lake, parts.ledger, run.folder.spec, now=datetime.now(UTC))


@task(multiple_outputs=False, queue=PROMOTE)
def align_alias(model: str) -> int | None:
    """Bring MLflow's alias in line with the ledger, and finish a promotion that was left open; the champion's version."""
    with stage_run(model) as run:
        return run.deployment.registry.reconcile(model)


@task(multiple_outputs=False)
def close_abandoned_runs(model: str) -> dict[str, int]:
    """Mark MLflow runs that their process left open when it was killed."""
    from perennial.operations.maintenance import close_abandoned_runs

    with stage_run(model) as run:
        return close_abandoned_runs(run.deployment.registry, run.folder.spec)
