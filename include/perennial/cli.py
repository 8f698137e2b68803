"""``perennial``: the stack, the demo, and the stages by hand.

Each command imports what it needs when it is called, since some need much.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from perennial.errors import PerennialError
from perennial.settings import PROJECT, settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and exit: 0 if it succeeded, 1 with a sentence if not, 130 if it was interrupted."""
    chosen = _parser().parse_args(arguments)
    # Whoever stops us means the same: put everything in order and go.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        sys.exit(chosen.command(chosen))
    except PerennialError as error:
        sys.exit(f"{error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"the disk of {error.filename or _state()} is full: make room and run the command again")
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perennial", description="Keeps machine-learning models alive in production.")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("up", help="start Airflow and MLflow on this machine; Ctrl-C stops them")
    command.set_defaults(command=_up)

    command = commands.add_parser("demo", help="the life of a model on the flights of 2013")
    command.add_argument("--once", action="store_true", help="stop at the end instead of staying up")
    command.add_argument("--weeks", type=int, default=12, help="how many weeks to replay (12)")
    command.set_defaults(command=_demo)

    command = commands.add_parser("init", help="make the tables of the ledger and the catalog, or bring them up to date")
    command.set_defaults(command=_init)
    return parser


def _state() -> Path:
    return Path(os.environ.get("PERENNIAL_STATE") or PROJECT / "var").absolute()


def _up(_: argparse.Namespace) -> int:
    from rich.console import Console

    from perennial.stack.embedded import Stack

    console = Console(highlight=False, soft_wrap=True)
    console.print("Starting Airflow and MLflow …")
    try:
        with Stack(_state(), os.environ, say=console.print) as stack:
            console.print(f"Airflow  {stack.airflow_url}   sign in as admin, password {stack.password}")
            console.print(f"MLflow   {stack.mlflow_url}")
            console.print(f"Logs     {stack.state / 'logs'}")
            console.print("DAGs start paused. Ctrl-C stops everything.")
            stack.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")
    return 0


def _demo(chosen: argparse.Namespace) -> int:
    from rich.console import Console

    from perennial.demo import run_demo

    run_demo(_state() / "demo", os.environ, Console(highlight=False), once=chosen.once, weeks=chosen.weeks)
    return 0


def _init(_: argparse.Namespace) -> int:
    from perennial.deployment import Deployment

    Deployment(settings()).ledger.migrate()
    return 0


if __name__ == "__main__":
    main()
