"""Commands for the operators of a deployment."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perennial.cli import by_hand
from perennial.cli.command import Command, argument, command, living_settings, tell
from perennial.core.settings import PROJECT, settings


@command(
    "backup",
    "copy the embedded stack's databases, lake, models and reports",
    argument("place", nargs="?", type=Path, metavar="FOLDER", help="a new folder, preferably on another disk"),
    argument(
        "--hold",
        type=int,
        metavar="HOURS",
        help="copy nothing; for HOURS, remove nothing from the lake, so that others can copy it",
    ),
    argument("--release", action="store_true", help="end --hold"),
)
def backup(chosen: argparse.Namespace) -> int:
    from perennial.lake import removal

    now = datetime.now(UTC)
    if chosen.release:
        removal.let_go(settings())
        return tell("Maintenance may again remove what is no longer needed.")
    if chosen.hold is not None:
        removal.hold(settings(), now + timedelta(hours=chosen.hold))
        return tell(f"Nothing is removed from the lake for {chosen.hold} hours, or until you run perennial backup --release.")
    if chosen.place is None:
        raise SystemExit("name a new folder for the backup")
    from perennial.operations.backup import make_backup

    made = make_backup(settings(), chosen.place, os.environ, now=now)
    return tell(f"{made['files']:,} files, {made['bytes'] / 1e6:,.1f} MB in {chosen.place}")


@command(
    "restore",
    "restore a backup of the embedded stack into an empty state folder",
    argument("place", type=Path, metavar="FOLDER"),
)
def restore(chosen: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.operations.agreement import settle
    from perennial.operations.backup import note_decisions, restore_backup

    made = restore_backup(settings(), chosen.place, os.environ)
    for change in settle(Deployment(settings()), datetime.now(UTC), actor=by_hand.actor()):
        tell(change)
    note_decisions(settings(), made)
    return tell(f"Restored as of {made['made_at']}. Start the stack with make up, then run perennial verify.")


def _head(text: str) -> str:
    """The argument of ``--head``, as ``NUMBER:HASH``."""
    from perennial.operations.backup import known_head

    try:
        return known_head(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not NUMBER:HASH, a backup, or a file that holds one") from error


@command(
    "verify",
    "compare ledger, lake, MLflow and predictions, and decisions with their signatures; exit with 1 if they differ",
    argument("--settle", action="store_true", help="after a restore, first make the others follow the ledger"),
    argument(
        "--head",
        type=_head,
        metavar="HEAD",
        help="a newest decision that is known from elsewhere: NUMBER:HASH as verify shows it, a backup's folder or its "
        "judge.head, or - for standard input",
    ),
    argument(
        "--begin-again",
        metavar="REASON",
        help="accept the decisions in the ledger as they are, and begin their chain again, for example after the judge's key "
        "is lost",
    ),
)
def verify(chosen: argparse.Namespace) -> int:
    from perennial.deployment import Deployment
    from perennial.operations.agreement import settle, verify

    parts, noted = Deployment(living_settings()), [chosen.head] if chosen.head else []
    if chosen.settle:
        for change in settle(parts, datetime.now(UTC), actor=by_hand.actor(), noted=noted):
            tell(change)
    if chosen.begin_again is not None:
        if not chosen.begin_again.strip():
            raise SystemExit("give a reason: the ledger keeps it")
        adopted = parts.ledger.begin_again(actor=by_hand.actor(), reason=chosen.begin_again.strip(), noted=noted)
        tell(f"The chain of decisions begins again; it adopted {adopted} rows as they are.")
    return 1 if verify(parts, tell, noted=noted).problems else 0


@command(
    "secrets",
    "write the deployment's missing secrets to .env",
    argument("file", nargs="?", type=Path, default=PROJECT / ".env"),
)
def _secrets(chosen: argparse.Namespace) -> int:
    from perennial.operations import secret_file

    return tell(secret_file.tell(chosen.file))


@command("init", "create or update databases, roles, schemas and users")
def _init(_: argparse.Namespace) -> int:
    from perennial.operations.deployed import initialise

    logging.getLogger("perennial").setLevel(logging.INFO)
    initialise(os.environ)
    return 0


@command(
    "mlflow",
    "run MLflow's server, which requires users to sign in",
    argument("--host", required=True),
    argument("--port", required=True),
)
def _mlflow(chosen: argparse.Namespace) -> int:
    from perennial.operations.deployed import serve_mlflow

    serve_mlflow(os.environ, ["--host", chosen.host, "--port", chosen.port])
    return 1


#: The steps that ``docker-compose.yaml`` and the Makefile call.
deploy = Command(
    "deploy",
    "steps of the deployed stack: secrets, init job, MLflow's server",
    steps=(_secrets, _init, _mlflow),
)
