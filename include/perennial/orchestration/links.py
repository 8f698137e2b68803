"""Links on a task's page in the UI: to the task's model, to its MLflow run or version, and to its report.

A task pushes an address to XCom under the key of a link. The plugin ``perennial_links`` shows it, at today's address of the
server: an address of an earlier day may name a port that nobody listens on.
"""

from __future__ import annotations

from perennial.core.settings import Settings

MLFLOW = "perennial_mlflow"
REPORT = "perennial_report"

#: XCom key of what a task says about its run, see :mod:`perennial.orchestration.notes`.
NOTE = "perennial_note"

#: By XCom key, the label of the link's button.
LINKS = {MLFLOW: "MLflow", REPORT: "Report"}

#: The label of the link to the page of a task's model, which no task pushes.
MODEL = "Model"


def model_page(settings: Settings, dag_id: str) -> str:
    """The address of the page of a DAG's model; empty if the DAG is of no model, or Airflow has no public address.

    Args:
        settings: of the deployment, today.
        dag_id: of the task.
    """
    model, _, stage = dag_id.partition(".")
    return "" if not stage or model == "perennial" else settings.model_url(model) or ""


def todays(settings: Settings, address: str) -> str:
    """An address that a task pushed, on the server as it is called today.

    Args:
        settings: of the deployment, today.
        address: a page of MLflow, or a report that the board's server serves.
    """
    for mark, server in (("/#/", settings.mlflow_public_url), ("/perennial/reports/", settings.airflow_public_url)):
        _, found, path = address.partition(mark)
        if found and server:
            return f"{server.rstrip('/')}{mark}{path}"
    return address
