"""Commands that remove something permanently: ``forget`` an entity, ``retire`` a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from perennial.cli import by_hand
from perennial.cli.command import MODEL, argument, command, living_settings, one_of, tell
from perennial.core.errors import ErasureError


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"write COLUMN=VALUE, not {text!r}")
    return name, value


@command(
    "forget",
    "erase the data of one entity from the lake, the predictions, the models and the reports",
    MODEL,
    one_of(
        argument(
            "--key",
            action="append",
            type=_pair,
            metavar="COLUMN=VALUE",
            help="each column of the entity's key; - reads the value from standard input",
        ),
        argument("--column", type=_pair, metavar="COLUMN=VALUE", help="all entities whose rows have this value"),
    ),
    argument("--reason", default="asked for", help="recorded in the ledger; must not name the person"),
    argument("--dry-run", action="store_true", help="only show what would be erased"),
    argument("--yes", action="store_true", help="do not ask"),
)
def forget(chosen: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.operations.forget import Forgetting, describe, entity_of
    from perennial.operations.remembered import remembered

    key = None if chosen.key is None else dict(_read(chosen.key))
    column = None if chosen.column is None else dict(_read([chosen.column]))
    parts = Deployment(living_settings())
    parts.ledger.migrate_own()
    work = Forgetting(parts, entity_of(remembered(parts, chosen.model).spec, key=key, column=column))
    found = work.survey()
    _tell_all(found.describe())
    if chosen.dry_run:
        return tell("Nothing was changed.")
    if not (chosen.yes or found.nothing or _agrees("This cannot be undone. Erase it?")):
        return tell("Nothing was changed.") or 1
    done = work.run(actor=by_hand.actor(), reason=chosen.reason, say=tell)
    return 0 if done is None else _tell_all(describe(done))


@command(
    "retire",
    "end a model: no DAGs, no champion, no open alerts; its history stays",
    MODEL,
    argument("--reason", required=True, help="recorded in the ledger"),
    argument("--mark", action="store_true", help="write `retired: true` into its model.yaml first"),
    argument("--drop-lake", action="store_true", help="remove its tables, features and predictions from the lake"),
    argument("--yes", action="store_true", help="do not ask before the lake is removed"),
)
def retire(chosen: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.operations.retire import mark_retired, retire

    parts = Deployment(living_settings())
    parts.ledger.migrate_own()
    if chosen.drop_lake and not (chosen.yes or _agrees(f"The lake of {chosen.model} cannot be brought back. Remove it?")):
        return tell("Nothing was changed.") or 1
    if chosen.mark and mark_retired(parts, chosen.model):
        tell(f"{chosen.model}/model.yaml now says retired: true; Airflow removes its DAGs when it reads the file again")
    return _tell_all(retire(parts, chosen.model, actor=by_hand.actor(), reason=chosen.reason, drop_lake=chosen.drop_lake))


def _read(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Read each value that is ``-`` as one line from standard input, so that it is in no list of processes."""
    return [(name, sys.stdin.readline().rstrip("\n") if value == "-" else value) for name, value in pairs]


def _agrees(question: str) -> bool:
    """Whether the person at the terminal says yes.

    Raises:
        ErasureError: standard input is not a terminal.
    """
    if not sys.stdin.isatty():
        raise ErasureError(
            "cannot ask for confirmation, because standard input is not a terminal: run it at a terminal, or add --yes"
        )
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _tell_all(lines: Sequence[str]) -> int:
    for line in lines:
        tell(line)
    return 0
