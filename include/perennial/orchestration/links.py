"""Where a task's page in the UI leads: the MLflow run or version it made, and the report it wrote.

A task pushes an address under a link's key; the plugin tells Airflow to look there.
"""

from __future__ import annotations

MLFLOW = "perennial_mlflow"
REPORT = "perennial_report"

#: XCom key of each link, and the name on its button.
LINKS = {MLFLOW: "MLflow", REPORT: "Report"}
