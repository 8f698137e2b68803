"""Declare a command as a function with its arguments. Also what the commands of several modules share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from perennial.core.errors import StackError
from perennial.core.intervals import Interval, utc
from perennial.core.private_parts import Subcommands
from perennial.core.settings import PROJECT, Settings, settings

if TYPE_CHECKING:
    from rich.console import Console

#: A command's function: it takes the parsed arguments, and returns the exit code.
Action = Callable[[argparse.Namespace], int]


class TakesArguments(Protocol):
    """A parser, or a group of its arguments."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As :meth:`argparse.ArgumentParser.add_argument`."""


@dataclass(frozen=True)
class Argument:
    """An argument of a command, as ``add_argument`` takes it."""

    names: tuple[str, ...]
    options: Mapping[str, Any]

    def add(self, parser: TakesArguments) -> None:
        parser.add_argument(*self.names, **self.options)


@dataclass(frozen=True)
class OneOf:
    """Arguments of which exactly one must be given."""

    arguments: tuple[Argument, ...]

    def add(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=True)
        for one in self.arguments:
            one.add(group)


@dataclass(frozen=True)
class Command:
    """A command, or a group of them.

    Attributes:
        name: the command's name.
        summary: its line in the overview.
        arguments: the command's arguments.
        action: the function to call; None for a group.
        defaults: further values for the parsed arguments.
        steps: the commands of a group.
    """

    name: str
    summary: str
    arguments: tuple[Argument | OneOf, ...] = ()
    action: Action | None = None
    defaults: Mapping[str, Any] | None = None
    steps: tuple[Command, ...] = ()

    def add(self, commands: Subcommands) -> None:
        parser = commands.add_parser(self.name, help=self.summary)
        for one in self.arguments:
            one.add(parser)
        if self.steps:
            add_all(self.steps, parser, "step")
        else:
            parser.set_defaults(command=self.action, **(self.defaults or {}))


def add_all(commands: Iterable[Command], parser: argparse.ArgumentParser, metavar: str) -> None:
    """Add commands to a parser; one of them must be given."""
    below = parser.add_subparsers(required=True, metavar=metavar)
    for one in commands:
        one.add(below)


def argument(*names: str, **options: Any) -> Argument:
    """An argument; see ``argparse.ArgumentParser.add_argument``."""
    return Argument(names, options)


def one_of(*arguments: Argument) -> OneOf:
    """Arguments of which exactly one must be given."""
    return OneOf(arguments)


def command(name: str, summary: str, *arguments: Argument | OneOf, **defaults: Any) -> Callable[[Action], Command]:
    """Decorator that makes a command of a function.

    Args:
        name: the command's name.
        summary: its line in the overview.
        arguments: the command's arguments.
        defaults: further values for the parsed arguments.
    """
    return lambda action: Command(name, summary, arguments, action, defaults)


def moment(text: str) -> datetime:
    """Parse a day or a UTC time."""
    try:
        return utc(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


MODEL = argument("model")
VERSION = argument("version", type=int)
START = argument("start", type=moment, help="first day, such as 2013-04-01")
END = argument("end", type=moment, help="the day after the last day")


def interval(chosen: argparse.Namespace) -> Interval:
    """The interval from the argument ``start`` to ``end``; if it is empty, the command exits with a message."""
    try:
        return Interval(chosen.start, chosen.end)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def state_folder() -> Path:
    """Where the embedded stack keeps its state."""
    return Path(os.environ.get("PERENNIAL_STATE") or PROJECT / "var").absolute()


def living_settings(*, only_reads_models: bool = False) -> Settings:
    """The settings, with the address of the embedded stack's MLflow unless MLFLOW_TRACKING_URI is set.

    Args:
        only_reads_models: whether the command writes no file to MLflow. Then the stack may be stopped: its database is asked,
            and its files are read where they lie.

    Raises:
        StackError: no MLflow is named, and no embedded stack is running.
    """
    from perennial.stack.embedded import find_running

    if os.environ.get("MLFLOW_TRACKING_URI"):
        return settings()
    state = state_folder()
    running = find_running(state)
    if running is None and only_reads_models and (state / "mlflow.db").is_file():
        return settings()
    if running is None or "mlflow" not in running:
        raise StackError(
            f"no stack runs in {state}: start one with `make up`, or set MLFLOW_TRACKING_URI to the address of an MLflow"
        )
    return settings().model_copy(update={"mlflow_url": running["mlflow"], "mlflow_public_url": running["mlflow"]})


def console() -> Console:
    """The console that tables are printed on."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def tell(text: str) -> int:
    """Print a text, and return the exit code 0."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # into a pipe, too: some commands tell each step
    return 0
