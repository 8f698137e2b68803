"""The tasks of ``rollback``, ``promote`` and ``maintain``."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from perennial.orchestration.judged import judged
from perennial.orchestration.runs import stage_run
from perennial.stages import maintain


@judged()
def roll_back(model: str) -> dict[str, Any]:
    """Make the champion before this one, or the version that the form names, champion again."""
    with stage_run(model) as run:
        return {"form": run.params, "actor": run.actor}


@judged()
def promote_by_hand(model: str) -> dict[str, Any]:
    """Make the version that the form names champion; an override needs a reason."""
    with stage_run(model) as run:
        return {"form": run.params, "actor": run.actor}


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


@judged()
def align_alias(model: str) -> dict[str, Any]:
    """Make MLflow's alias agree with the ledger, and finish an interrupted promotion; returns the champion's version."""
    with stage_run(model):
        return {}


@task(multiple_outputs=False)
def close_abandoned_runs(model: str) -> dict[str, int]:
    """Close MLflow runs that a killed process left open."""
    with stage_run(model) as run:
        return maintain.close_abandoned_runs(run.stage)
