"""How scoring grows with workers: 3.4 million rows in mapped parts by one Celery worker of one process, and by two.

The services of ``docker-compose.yaml`` run as processes of this machine, with their commands and environments (PostgreSQL,
Redis, MLflow behind its sign-in, scheduler, DAG processor, both API servers; see ``tests/composed.py``), as it has them but for
one thing: a worker takes one task at a time, with one thread, so that a worker is a core. Four parts of a run are queued or
running at once, as it sets ``PERENNIAL_PARTS_AT_ONCE``, so that another part is ready when a worker has done one.

``flight_delay.score`` is triggered for ten years of features, in parts of ninety-one days, first with one worker, then with
two; time runs from when the run is queued to its end. Two cores also carry everything else, so the limit is measured too: the
same parts scored by the same function in one bare process, and in two, with no Airflow around them.

    python -m benchmarks.workers
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from benchmarks import prepared
from benchmarks.measuring import Line, Told, import_as_workers
from benchmarks.prepared import FLIGHTS, MODEL
from benchmarks.stacks import Client
from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, settings
from perennial.deployment import Deployment
from perennial.scoring.predictor import DATASET
from perennial.scoring.publish import score
from perennial.stack.airflow_api import AirflowApi
from tests.composed import Composed, compose

YEARS = 10
#: What the champion learns from; what is scored lies after it.
LEARNED = Interval.of("2013-04-01", "2013-07-01")
#: Parts of the limit: a quarter of them, since they are alike.
BARE = 10
DAYS_PER_PART = 91
SERVICES = ("mlflow", "api", "execution", "scheduler", "dag-processor", "worker")
GOAL = 1.8


def scored() -> Interval:
    return prepared.span(YEARS, first=1)


def parts() -> list[Interval]:
    return scored().parts(timedelta(days=DAYS_PER_PART), 64)


# --- in processes with the environment of a worker or the judge ---------------------------------------------------


def fill(source: str) -> None:
    """A champion, and features of all years: those of another state's year, shifted."""
    deployment = Deployment(settings())
    by_hand.ingest(settings(), MODEL, LEARNED)
    prepared.train_champion(settings(), LEARNED.end)
    prepared.repeat(prepared.deployment(source), deployment, "features", range(1, 1 + YEARS))


def score_parts(first: str, count: str, step: str) -> None:
    """Score some of the parts, each ``step``-th, once told to begin."""
    import_as_workers()
    deployment = Deployment(settings())
    folder, ledger = deployment.model(MODEL), deployment.ledger
    print("ready", flush=True)
    sys.stdin.readline()
    for part in parts()[int(first) : int(count) : int(step)]:
        order = ledger.next_order(MODEL, DATASET, part, f"bare-{step}")
        score(
            folder, deployment, part, version=1, order=order, run_id=f"bare-{step}",
            sink_url=settings().predictions_url,
        )  # fmt: skip


def start(stack: Composed, service: str, function: Callable[..., None], *arguments: str) -> subprocess.Popen[str]:
    environment = {**stack.environment(service), "PYTHONPATH": str(PROJECT), "AIRFLOW_HOME": str(stack.folder / "bare")}
    program = [sys.executable, "-m", "benchmarks.workers", function.__name__, *arguments]
    log = stack.log(f"bare-{function.__name__}").open("a")
    return subprocess.Popen(
        program, env=environment, cwd=PROJECT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
    )


def end(process: subprocess.Popen[str], stack: Composed) -> None:
    process.communicate()
    assert process.returncode == 0, "\n".join(stack.last_words(log.stem) for log in stack.folder.glob("bare-*.log"))


def bare(stack: Composed, processes: int) -> float:
    """Seconds in which so many processes have scored :data:`BARE` parts between them."""
    forget_predictions(stack)
    running = [start(stack, "worker", score_parts, str(number), str(BARE), str(processes)) for number in range(processes)]
    for process in running:
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None, stack.last_words("bare-score_parts")
    began = time.perf_counter()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        end(process, stack)
    return time.perf_counter() - began


# --- in the deployment -----------------------------------------------------------------------------------------------


def forget_predictions(stack: Composed) -> None:
    """Empty the table that each scoring fills, so that none has more to replace in it than the one before."""
    engine = sa.create_engine(stack.environment("worker")["PERENNIAL_DATABASE_URL"], poolclass=NullPool)
    with engine.begin() as connection:
        if sa.inspect(connection).has_table(f"{MODEL}_predictions"):
            connection.execute(sa.text(f"DELETE FROM {MODEL}_predictions"))


def airflow(stack: Composed, api: AirflowApi) -> tuple[float, dict[str, Any]]:
    """Seconds of a run that scores everything, and how its tasks waited and worked."""
    forget_predictions(stack)
    days = {"start": f"{scored().start:%Y-%m-%d}", "end": f"{scored().end:%Y-%m-%d}", "days_per_part": DAYS_PER_PART}
    run = api.wait(api.trigger(f"{MODEL}.score", conf=days), patience=1800, check=stack.check)
    assert run.state == "success", api.failure(run)
    assert run.queued_at is not None
    assert run.ended_at is not None
    with Client(stack.airflow_url, stack.secrets["AIRFLOW_ADMIN_PASSWORD"]) as client:
        tasks = [task for task in client.tasks(run) if task.task_id == "predict"]
    assert len(tasks) == len(parts())
    worked = [round(task.seconds - task.waited, 2) for task in tasks]
    return round((run.ended_at - run.queued_at).total_seconds(), 2), {"predict_seconds": worked}


def second_worker(stack: Composed) -> None:
    """Another worker of the same kind, as ``docker compose up --scale worker=2`` starts it."""
    text = json.dumps(stack.services["worker"]).replace("worker@%h", "second@%h").replace("celery:worker", "celery:second")
    stack.services["worker-second"] = json.loads(text)
    stack.start("worker-second")
    stack.wait_until_healthy("worker-second")


def main() -> None:
    from tests.conftest import postgres_server

    told, source = Told("workers"), prepared.flights()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        server = opened.enter_context(postgres_server("postgres", durable=True))
        stack = opened.enter_context(
            compose(
                folder, PROJECT / "include" / "models", postgres_port=int(server.port or 0),
                postgres_password=str(server.password), chosen={"PERENNIAL_WORKER_TASKS": "1"},
            )
        )  # fmt: skip
        (folder / "data").rmdir()
        (folder / "data").symlink_to(prepared.landing_zone(1))
        assert stack.run("init") == 0, stack.last_words("init")
        for service in SERVICES:
            stack.start(service)
        for service in SERVICES:
            stack.wait_until_healthy(service)
        end(start(stack, "judge", fill, str(source)), stack)
        with AirflowApi(stack.airflow_url, "admin", stack.secrets["AIRFLOW_ADMIN_PASSWORD"]) as api:
            api.wait_for_dags([f"{MODEL}.score"], check=stack.check)
            api.unpause(f"{MODEL}.score")
            one, told.details["one"] = airflow(stack, api)
            second_worker(stack)
            two, told.details["two"] = airflow(stack, api)
        alone, together = bare(stack, 1), bare(stack, 2)
    rows = f"{YEARS * FLIGHTS / 1e6:.1f} M rows"
    claim = f"score {rows} through Airflow by two Celery workers"
    told.add(Line(claim, "by one", [two], [one], goal=GOAL, faster=True))
    limit = "what the cores allow: the same function in two bare processes"
    told.add(Line(limit, "in one", [round(together, 2)], [round(alone, 2)], faster=True))
    told.write()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        pieces: dict[str, Callable[..., None]] = {"fill": fill, "score_parts": score_parts}
        pieces[sys.argv[1]](*sys.argv[2:])
        sys.stdout.flush()
        # Threads of libraries would be waited for.
        os._exit(0)
    main()
