"""Commands that start the stack, the demo or the watchdog, and commands that prepare for them."""

from __future__ import annotations

import argparse
import json
import logging
import os

from perennial.cli.command import argument, command, console, interval, moment, state_folder, tell
from perennial.core.settings import mlflow_page, settings


@command("up", "start Airflow, MLflow and the scorer on this machine; Ctrl-C stops them")
def up(_: argparse.Namespace) -> int:
    from perennial.stack.embedded import Stack
    from perennial.stack.processes import UMASK

    os.umask(UMASK)
    screen = console()
    screen.print("Starting Airflow and MLflow …")
    try:
        with Stack(state_folder(), os.environ, say=screen.print) as stack:
            screen.print(f"Airflow  {stack.airflow_url}   sign in as admin, password {stack.password}")
            screen.print(f"MLflow   {mlflow_page(stack.mlflow_url)}")
            screen.print(f"Metrics  {stack.metrics_url}")
            screen.print(f"Scorer   {stack.scorer_url}")
            screen.print(f"Logs     {stack.state / 'logs'}")
            screen.print("DAGs start paused. Ctrl-C stops everything.")
            stack.wait()
    except KeyboardInterrupt:
        screen.print("Stopped.")
    return 0


@command(
    "demo",
    "show the life of a model, on the flights of 2013",
    argument("--once", action="store_true", help="stop the stack at the end"),
    argument("--weeks", type=int, choices=range(28), metavar="N", default=4, help="number of weeks to replay (default 4)"),
)
def demo(chosen: argparse.Namespace) -> int:
    from perennial.demo.replay import run_demo
    from perennial.stack.processes import UMASK

    os.umask(UMASK)
    run_demo(state_folder() / "demo", os.environ, console(), once=chosen.once, weeks=chosen.weeks)
    return 0


@command("watch", "watch Airflow and the ledger, and raise alerts; Ctrl-C stops it", log_level=logging.INFO)
def watch(_: argparse.Namespace) -> int:
    from perennial.watchdog.process import Watchdog, read_watch_settings

    Watchdog(settings(), read_watch_settings(os.environ)).run()
    return 0


@command("judge", "rule on what tasks propose, and keep MLflow's aliases right; Ctrl-C stops it", log_level=logging.INFO)
def judge(_: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.judge.service import Judge, read_judge_settings

    Judge(Deployment(settings()), read_judge_settings(os.environ)).run()
    return 0


@command("init", "create the ledger's tables, or bring them up to date")
def init(_: argparse.Namespace) -> int:
    from perennial.ledger.store import Ledger

    Ledger(settings().database_url, settings().state).migrate()
    return 0


@command(
    "example-data",
    "write the example's files into the landing zone",
    argument("start", nargs="?", type=moment, default="2013-01-01", help="first day (default 2013-01-01)"),
    argument("end", nargs="?", type=moment, default="2014-01-01", help="the day after the last day (default 2014-01-01)"),
)
def example_data(chosen: argparse.Namespace) -> int:
    from perennial.demo.example_data import write_landing_zone

    data = settings().data
    files = write_landing_zone(data, interval(chosen))
    return tell(f"{len(files)} files in {data}")


@command("schema", "write the JSON schema of model.yaml beside the model folders")
def schema(_: argparse.Namespace) -> int:
    from perennial.spec.model import json_schema

    file = settings().models / "model.schema.json"
    file.write_text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return tell(str(file))
