"""Buttons on a task's page that lead to its MLflow run and to its report."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin
from airflow.serialization.definitions.operatorlink import XComOperatorLink

from perennial.orchestration.links import LINKS


class PerennialLinks(AirflowPlugin):
    """Links that any task of Perennial can set."""

    name = "perennial_links"
    global_operator_extra_links = [XComOperatorLink(name=name, xcom_key=key) for key, name in LINKS.items()]  # noqa: RUF012
