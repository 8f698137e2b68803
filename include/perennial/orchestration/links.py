"""Links on a task's page in the UI: to the task's MLflow run or version, and to its report.

A task pushes an address to XCom under the key of a link. The plugin ``perennial_links`` shows it.
"""

from __future__ import annotations

MLFLOW = "perennial_mlflow"
REPORT = "perennial_report"

#: By XCom key, the label of the link's button.
LINKS = {MLFLOW: "MLflow", REPORT: "Report"}
