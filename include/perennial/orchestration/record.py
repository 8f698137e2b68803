"""The tasks of ``record``: from what was asked online to the lake, and to the parity of what was served."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from perennial.orchestration.runs import stage_run
from perennial.stages import record


@task(multiple_outputs=False)
def publish_requests(model: str) -> dict[str, Any]:
    """Publish what scorers have recorded; returns how many rows, and the hours in which they were asked."""
    with stage_run(model) as run:
        return record.publish_requests(run.stage).to_json()


@task(multiple_outputs=False)
def measure_parity(model: str) -> list[dict[str, Any]]:
    """Compute a sample of what was served again from the published tables, and record how much of it is equal."""
    from perennial.core.errors import NoChampion

    with stage_run(model) as run:
        try:
            return [measured.to_json() for measured in record.measure_parity(run.stage)]
        except NoChampion as error:
            raise AirflowSkipException(str(error)) from error
