"""What takes long to import, imported: a worker's parent process imports this before it forks, so that no task has to."""

from importlib import import_module

from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches
from sqlalchemy.orm import configure_mappers

from perennial.stack.embedded import IMPORTED_FOR_TASKS

for name in IMPORTED_FOR_TASKS:
    import_module(name)

# The first use of SQLAlchemy's mappers, which the lake's catalog makes, has Airflow import all of its models.
configure_mappers()

# The first model that MLflow stores in a process has it read what each installed package holds; it remembers.
warn_dependency_requirement_mismatches(["mlflow"])
