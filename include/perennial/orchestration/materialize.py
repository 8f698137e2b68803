"""The task of ``materialize``: from published features to the online table."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task

from perennial.orchestration.runs import stage_run
from perennial.stages import materialize


@task(multiple_outputs=False)
def fill_online_table(model: str) -> dict[str, Any]:
    """Write a row of features for each entity that may be asked by key; returns how many, by dataset of features."""
    with stage_run(model) as run:
        return materialize.materialize(run.stage).to_json()
