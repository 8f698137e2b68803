"""``perennial``: the stack, the demo, and the stages by hand.

Each command imports what it needs when it is called, since some imports are slow. These modules declare the commands and their
arguments: :mod:`perennial.cli.running`, :mod:`perennial.cli.stages`, :mod:`perennial.cli.questions`,
:mod:`perennial.cli.operations`, :mod:`perennial.cli.endings`.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence

from perennial.cli import endings, operations, questions, running, stages
from perennial.cli.command import Command, add_all, state_folder
from perennial.core import logs
from perennial.core.errors import PerennialError

#: In the order of the overview.
COMMANDS: tuple[Command, ...] = (
    running.up,
    running.demo,
    running.watch,
    running.init,
    running.example_data,
    running.schema,
    stages.check,
    stages.ingest,
    stages.score,
    stages.monitor,
    stages.train,
    stages.refresh,
    stages.data,
    stages.calibrate,
    stages.controls,
    questions.performance,
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
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"the disk of {error.filename or state_folder()} is full: make room and run the command again")
    except Exception as error:
        # Its module is slow to import, so it is asked only about errors of a command that has imported it.
        if "mlflow" not in sys.modules or (told := _unanswered(error)) is None:
            raise
        sys.exit(told)
    except KeyboardInterrupt:
        sys.exit(130)


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
