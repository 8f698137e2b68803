"""Buttons on a task's page that lead to its model's page, to its MLflow run and to its report."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin
from airflow.serialization.definitions.operatorlink import XComOperatorLink

from perennial.core.settings import settings
from perennial.orchestration import links


class ModelLink:
    """Leads to the page of the task's model."""

    name = links.MODEL

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002  # as Airflow calls it
        return links.model_page(settings(), ti_key.dag_id)


class PushedLink(XComOperatorLink):
    """Leads to what the task has pushed."""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        return links.todays(settings(), super().get_link(operator, ti_key=ti_key))


class PerennialLinks(AirflowPlugin):
    """Links that any task of Perennial has."""

    name = "perennial_links"
    global_operator_extra_links = [  # noqa: RUF012
        ModelLink(),
        *(PushedLink(name=name, xcom_key=key) for key, name in links.LINKS.items()),
    ]
