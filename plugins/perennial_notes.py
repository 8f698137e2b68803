"""Notes on runs: what came of each, in a sentence."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from perennial.orchestration import notes


class PerennialNotes(AirflowPlugin):
    """Tells the scheduler to note what a run's tasks have said."""

    name = "perennial_notes"
    listeners = [notes]  # noqa: RUF012
