"""What Airflow adds to a task: seconds from queued to end of one that imports what a real task needs, and does nothing.

Ours is the embedded stack that ``make up`` starts. Beside it stands Airflow as its documentation sets it up: each component a
command of its own (``api-server``, ``scheduler``, ``dag-processor``, ``triggerer``), LocalExecutor, PostgreSQL as metadata
database, which the documentation requires for anything but a trial. Nothing else is set but where things are, that examples are
not loaded, and that no usage data are sent. Both run the same DAG file: a chain of tasks, so that there is one at a time.
Moments are those of the REST API.

    python -m benchmarks.task_overhead
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import Line, Told
from benchmarks.stacks import PASSWORD, Client, TaskTimes, inherited, plain_airflow, running, stack_ports
from perennial.stack.airflow_api import AirflowApi
from perennial.stack.embedded import Stack
from tests.conftest import postgres_server

#: Tasks in the chain.
OURS, STOCK = 30, 9
LIMIT = 0.5

DAG_FILE = '''
from airflow.sdk import DAG, chain, task


@task
def nothing():
    """Imports what the tasks of ingest, train, score and monitor import."""
    import evidently, great_expectations, mlflow.sklearn
    import perennial.features.publish, perennial.ingestion.publish, perennial.ingestion.sources, perennial.monitoring.verdicts
    import perennial.monitoring.performance, perennial.monitoring.requests, perennial.scoring.publish, perennial.training.fit
    from perennial.core.settings import settings
    from perennial.deployment import Deployment

    Deployment(settings())


with DAG("overhead", schedule=None):
    chain(*(nothing.override(task_id=f"nothing_{number}")() for number in range(%d)))
'''


def write_dag(folder: Path, tasks: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "overhead.py").write_text(DAG_FILE % tasks)
    return folder


def measure(url: str, password: str, *, check: Any = lambda: None) -> list[TaskTimes]:
    """The chain's tasks, without the first, which may pay for what is done once."""
    with AirflowApi(url, "admin", password) as api, Client(url, password) as client:
        api.wait_for_dags(["overhead"], check=check)
        api.unpause("overhead")
        run = api.wait(api.trigger("overhead"), patience=900, check=check)
        assert run.state == "success", api.failure(run)
        return client.tasks(run)[1:]


def ours(scratch: Path) -> list[TaskTimes]:
    dags, state = write_dag(scratch / "our dags", OURS), scratch / "ours"
    with Stack(state, {**os.environ, **stack_ports()}, dags=dags, say=lambda _: None) as stack:
        return measure(stack.airflow_url, stack.password, check=stack.check)


def stock(scratch: Path) -> list[TaskTimes]:
    with postgres_server("airflow") as database:
        environment = {
            **inherited(),
            **plain_airflow(scratch / "stock", write_dag(scratch / "stock dags", STOCK)),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.render_as_string(hide_password=False),
            "PERENNIAL_STATE": str(scratch / "stock state"),
        }
        with running(environment) as url:
            return measure(url, PASSWORD)


def main() -> None:
    told = Told("task_overhead")
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = ours(Path(folder)), stock(Path(folder))
    for name, tasks in {"ours": mine, "stock": theirs}.items():
        told.details[name] = {
            "queued_to_started": [round(task.waited, 3) for task in tasks],
            "queued_to_ended": [round(task.seconds, 3) for task in tasks],
        }
    seconds = [task.seconds for task in mine]
    claim = "a task that imports the domain and does nothing, from queued to end"
    told.add(Line(claim, "the limit we set ourselves", seconds, [LIMIT], goal=1.0))
    told.add(Line(
        claim, "stock LocalExecutor on PostgreSQL", seconds, [task.seconds for task in theirs], goal=12.0, faster=True,
    ))  # fmt: skip
    told.write()


if __name__ == "__main__":
    main()
