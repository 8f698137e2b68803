"""The timetables of Perennial's DAGs, named to every process of Airflow that reads a stored DAG."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from perennial.orchestration.timetables import EachDay


class PerennialTimetables(AirflowPlugin):
    """The schedule of ``ingest``."""

    name = "perennial_timetables"
    timetables = [EachDay]  # noqa: RUF012
