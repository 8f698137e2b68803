"""The commands that end things: ``forget`` an entity, ``retire`` a model.

Neighbours: :mod:`perennial.cli.main` registers them; :mod:`perennial.operations.forget` and
:mod:`perennial.operations.retire` do the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from perennial.core.errors import ErasureError

if TYPE_CHECKING:
    from perennial.core.settings import Settings


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], living_settings: Callable[[], Settings]) -> None:
    """Register the commands.

    Args:
        commands: of the program.
        living_settings: gives the settings with the address of MLflow.
    """
    command = commands.add_parser("forget", help="erase what is known of one entity, from the lake to the reports")
    command.add_argument("model")
    named = command.add_mutually_exclusive_group(required=True)
    named.add_argument(
        "--key", action="append", type=_pair, metavar="COLUMN=VALUE", help="of the entity's key, each column; - reads the value"
    )
    named.add_argument("--column", type=_pair, metavar="COLUMN=VALUE", help="all entities whose rows have this value")
    command.add_argument("--reason", default="asked for", help="goes into the ledger; name nobody in it")
    command.add_argument("--dry-run", action="store_true", help="only say what would go")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.set_defaults(command=lambda chosen: _forget(chosen, living_settings()))

    command = commands.add_parser("retire", help="end a model: no DAGs, no champion, no open alerts; its history stays")
    command.add_argument("model")
    command.add_argument("--reason", required=True, help="goes into the ledger")
    command.add_argument("--mark", action="store_true", help="write `retired: true` into its model.yaml first")
    command.add_argument("--drop-lake", action="store_true", help="remove its tables, features and predictions from the lake")
    command.add_argument("--yes", action="store_true", help="do not ask before the lake is removed")
    command.set_defaults(command=lambda chosen: _retire(chosen, living_settings()))


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"write COLUMN=VALUE, not {text!r}")
    return name, value


def _forget(chosen: argparse.Namespace, settings: Settings) -> int:
    from perennial.cli import by_hand
    from perennial.deployment import Deployment
    from perennial.operations.forget import Forgetting, describe, entity_of
    from perennial.operations.remembered import remembered

    key = None if chosen.key is None else dict(_read(chosen.key))
    column = None if chosen.column is None else dict(_read([chosen.column]))
    parts = Deployment(settings)
    parts.ledger.migrate_own()
    work = Forgetting(parts, entity_of(remembered(parts, chosen.model).spec, key=key, column=column))
    found = work.survey()
    _tell(*found.describe())
    if chosen.dry_run:
        return _tell("Nothing was changed.")
    if not (chosen.yes or found.nothing or _agrees("This cannot be undone. Erase it?")):
        return _tell("Nothing was changed.") or 1
    done = work.run(actor=by_hand._actor(), reason=chosen.reason, say=_tell)
    return 0 if done is None else _tell(*describe(done))


def _retire(chosen: argparse.Namespace, settings: Settings) -> int:
    from perennial.cli import by_hand
    from perennial.deployment import Deployment
    from perennial.operations.retire import mark_retired, retire

    parts = Deployment(settings)
    parts.ledger.migrate_own()
    if chosen.drop_lake and not (chosen.yes or _agrees(f"The lake of {chosen.model} cannot be brought back. Remove it?")):
        return _tell("Nothing was changed.") or 1
    if chosen.mark and mark_retired(parts, chosen.model):
        _tell(f"{chosen.model}/model.yaml says retired: true; its DAGs go when Airflow reads it again")
    return _tell(*retire(parts, chosen.model, actor=by_hand._actor(), reason=chosen.reason, drop_lake=chosen.drop_lake))


def _read(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Values that are ``-`` come from standard input, a line each, so that they stand in no list of processes."""
    return [(name, sys.stdin.readline().rstrip("\n") if value == "-" else value) for name, value in pairs]


def _agrees(question: str) -> bool:
    """Whether the person at the terminal says yes.

    Raises:
        ErasureError: there is nobody to be asked.
    """
    if not sys.stdin.isatty():
        raise ErasureError("nobody is there to be asked: run it at a terminal, or say --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _tell(*lines: str) -> int:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    return 0
