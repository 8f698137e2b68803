"""Links on a task's page in the UI: to the MLflow run or version that it made, and to the report that it wrote.

A task pushes an address to XCom under the key of a link. The plugin ``perennial_links`` shows it.
"""

from __future__ import annotations

MLFLOW = "perennial_mlflow"
REPORT = "perennial_report"

#: By XCom key, the name on the link's button.
LINKS = {MLFLOW: "MLflow", REPORT: "Report"}
