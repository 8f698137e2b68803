"""``perennial``: the stack, the demo, and the stages by hand.

Each command imports what it needs when it is called, since some imports are slow. These modules declare the commands and their
arguments: :mod:`perennial.cli.running`, :mod:`perennial.cli.starting`, :mod:`perennial.cli.stages`,
:mod:`perennial.cli.questions`, :mod:`perennial.cli.operations`, :mod:`perennial.cli.endings`, :mod:`perennial.cli.serving`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from perennial.cli import endings, operations, questions, running, serving, stages, starting
from perennial.cli.command import Command, add_all, state_folder
from perennial.core import faults, logs
from perennial.core.errors import PerennialError
from perennial.core.settings import settings

#: In the order of the overview.
COMMANDS: tuple[Command, ...] = (
    running.up,
    running.demo,
    running.watch,
    running.judge,
    serving.serve,
    serving.ask,
    serving.push,
    serving.token,
    running.init,
    running.example_data,
    running.schema,
    starting.new,
    starting.try_out,
    stages.check,
    stages.ingest,
    stages.score,
    stages.materialize,
    stages.record,
    stages.monitor,
    stages.train,
    stages.refresh,
    stages.data,
    stages.calibrate,
    stages.controls,
    questions.status,
    questions.performance,
    questions.parity,
    stages.rollback,
    stages.promote,
    questions.history,
    questions.alerts,
    questions.explain,
    questions.card,
    questions.lineage,
    questions.reproduce,
    stages.maintain,
    operations.backup,
    operations.restore,
    operations.verify,
    endings.forget,
    endings.retire,
    operations.deploy,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: with 0 if it succeeded, with 1 and a message if it failed, with 130 if it was interrupted."""
    chosen = make_parser().parse_args(arguments)
    # These signals are handled like Ctrl-C: clean up and exit.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        logs.configure(os.environ, getattr(chosen, "log_level", logging.WARNING))
        sys.exit(chosen.command(chosen))
    except PerennialError as error:
        sys.exit(str(error))
    except BrokenPipeError:  # `perennial history … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = faults.in_words(error, _databases(), state_folder())
        # Its module is slow to import, so it is asked only about errors of a command that has imported it.
        if told is None and "mlflow" in sys.modules:
            told = _unanswered(error)
        if told is None:
            raise
        sys.exit(told)
    except KeyboardInterrupt:
        sys.exit(130)


def _databases() -> dict[str, str]:
    """The addresses of this deployment's databases, by the names and variables that people know."""
    try:
        found = settings()
    except PerennialError:
        return {}
    return {
        "ledger (PERENNIAL_DATABASE_URL)": found.database_url,
        "catalog (PERENNIAL_CATALOG_URL)": found.catalog_url,
        "database of predictions (PERENNIAL_PREDICTIONS_URL)": found.predictions_url,
        "database of MLflow (MLFLOW_TRACKING_URI)": found.mlflow_url,
    }


def _unanswered(error: Exception) -> str | None:
    from perennial.cli.command import living_settings
    from perennial.registry.server import unanswered

    return unanswered(error, living_settings())


def make_parser() -> argparse.ArgumentParser:
    """Make the parser for all commands and their arguments."""
    parser = argparse.ArgumentParser(prog="perennial", description="Keeps machine-learning models alive in production.")
    add_all(COMMANDS, parser, "command")
    return parser


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
