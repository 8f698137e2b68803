"""The tasks of ``rollback``, ``promote`` and ``maintain``."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import task

from perennial.orchestration.answers import who_started
from perennial.orchestration.links import MLFLOW
from perennial.orchestration.queues import PROMOTE
from perennial.orchestration.runs import stage_run
from perennial.stages import maintain, promote

log = logging.getLogger(__name__)


@task(multiple_outputs=False)
def roll_back(model: str) -> dict[str, Any]:
    """Make the champion before this one, or the version that the form names, champion again."""
    with stage_run(model) as run:
        done = promote.roll_back(run.stage, run.params.get("version"), reason=run.params["reason"], actor=who_started(run))
        log.info("%s", done.words)
        run.link(MLFLOW, run.deployment.registry.version_url(model, done.version))
        return {"champion": done.version, "changed": done.changed, "words": done.words}


@task(multiple_outputs=False)
def promote_by_hand(model: str) -> dict[str, Any]:
    """Make the version that the form names champion; an override needs a reason."""
    with stage_run(model) as run:
        made = promote.promote_by_hand(
            run.stage, int(run.params["version"]), override=run.params.get("override"), actor=who_started(run)
        )
        run.link(MLFLOW, run.deployment.registry.version_url(model, made.version))
        return {"champion": made.version, "action": made.action}


@task(multiple_outputs=False)
def clear_files(model: str) -> dict[str, dict[str, int]]:
    """Remove files that past runs handed from task to task, and reports past the model's retention."""
    with stage_run(model) as run:
        return maintain.clear_files(run.stage)


@task(multiple_outputs=False)
def tidy_lake(model: str) -> dict[str, dict[str, int]]:
    """Remove rows past retention, expire snapshots that nothing needs, compact small files, remove orphans: in this order.
    During a backup, nothing is done."""
    with stage_run(model) as run:
        return maintain.tidy_lake(run.stage)


@task(multiple_outputs=False, queue=PROMOTE)
def align_alias(model: str) -> int | None:
    """Make MLflow's alias agree with the ledger, and finish an interrupted promotion; returns the champion's version."""
    with stage_run(model) as run:
        version = maintain.align_alias(run.stage)
        maintain.look_at_champion(run.stage)
        return version


@task(multiple_outputs=False)
def close_abandoned_runs(model: str) -> dict[str, int]:
    """Close MLflow runs that a killed process left open."""
    with stage_run(model) as run:
        return maintain.close_abandoned_runs(run.stage)
