"""
# Broken models: why a model has no DAGs

Each model has one DAG per stage as long as its folder can be read. If a folder cannot be read, this file has an import error.
Airflow shows it at the top of its list of DAGs: the folder, the file, the line, and what to write instead. The watchdog raises
the alert `import_errors`.

This file never has a DAG. Airflow switches off every DAG of a file that has an import error, and the other files hold the DAGs
of all models. So only the DAGs of the broken model disappear, within a few minutes. The DAGs of all other models keep running.

## When it fails
- Correct the folder as the message says. `perennial check <model>` shows at once whether it can be read. You need not start
  anything: when Airflow reads the folder again, the error disappears and the model's DAGs return. Their history is kept, and
  they are switched on or off as before.
- Running runs of the model wait until then. A task that starts meanwhile is retried for three minutes. Then it fails, and its
  log has the same message: clear it once the folder can be read.
- When the DAGs return, the days that were due meanwhile are ingested, oldest first (`schedules.catch_up` in `model.yaml`).
- To take a model out of service, remove its folder.
"""

from perennial.orchestration.dags import report_broken_models

report_broken_models()
