"""Imports slow modules. A worker's parent process imports this module before it forks, so that no task waits for imports."""

from __future__ import annotations

from importlib import import_module

from perennial.core.confinement import keep_ready
from perennial.core.private_parts import let_mlflow_read_the_installed_packages

# It imports while this process does.
keep_ready("perennial.evaluation.confined")

for name in (
    # First, because it searches all modules that are imported already.
    "skops.io",
    "airflow.sdk.execution_time.task_runner",
    "great_expectations",
    "evidently",
    "mlflow.sklearn",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.pyarrow",
    "duckdb",
    "perennial.alerts.delivery",
    "perennial.evaluation.confined",
    "perennial.evaluation.gates",
    "perennial.features.publish",
    "perennial.ingestion.publish",
    "perennial.ingestion.sources",
    "perennial.monitoring.verdicts",
    "perennial.monitoring.performance",
    "perennial.monitoring.requests",
    "perennial.monitoring.shadowing",
    "perennial.operations.maintenance",
    "perennial.operations.standing",
    "perennial.orchestration.assets",
    "perennial.orchestration.ingest",
    "perennial.orchestration.judged",
    "perennial.orchestration.materialize",
    "perennial.orchestration.monitor",
    "perennial.orchestration.notifiers",
    "perennial.orchestration.operate",
    "perennial.orchestration.record",
    "perennial.orchestration.refresh",
    "perennial.orchestration.score",
    "perennial.orchestration.train",
    "perennial.reports.approval",
    "perennial.reports.releases",
    "perennial.scoring.champion",
    "perennial.scoring.publish",
    "perennial.serving.materialize",
    "perennial.serving.parity",
    "perennial.stages.ingest",
    "perennial.stages.maintain",
    "perennial.stages.materialize",
    "perennial.stages.monitor",
    "perennial.stages.promote",
    "perennial.stages.record",
    "perennial.stages.refresh",
    "perennial.stages.score",
    "perennial.stages.train",
    "perennial.training.evaluate",
    "perennial.training.fit",
    "perennial.training.refresh",
):
    import_module(name)

# The lake's catalog is the first to use SQLAlchemy's mappers. That first use makes Airflow import all of its models.
import_module("sqlalchemy.orm").configure_mappers()

# Otherwise the first task that stores a model would wait for this.
let_mlflow_read_the_installed_packages()
