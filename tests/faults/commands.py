"""Runs every command of the command line in this process, one after the other, and writes how each ended.

``python -m tests.faults.commands PLACE [COMMAND ...]`` prints JSON: for each command its exit code, its last words, and the
traceback if an error left it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perennial.cli.main import main, make_parser
from perennial.core.settings import settings

MODEL = "shop"
#: What each command is given, by its words. Commands that serve until they are stopped have none.
ARGUMENTS: dict[str, tuple[str, ...] | None] = {
    "up": (), "demo": ("--once", "--weeks", "0"), "watch": None, "judge": None, "init": (),
    "serve": None, "ask": (MODEL, "--features", '{"amount": 1}'), "push": (MODEL, "orders", "orders.csv"),
    "token make": ("shop", "--all"), "token list": (),
    "token revoke": ("shop",),
    "example-data": ("2013-01-01", "2013-01-02"),
    "schema": (), "new": (MODEL, "--from", "history.csv"), "try": ("nobody",),
    "check": (MODEL,), "ingest": (MODEL, "2024-01-31", "2024-02-01"),
    "score": (MODEL, "2024-01-28", "2024-01-29"), "materialize": (MODEL,), "record": (MODEL,),
    "monitor": (MODEL, "2024-01-27", "2024-01-28"), "train": (MODEL, "--as-of", "2024-01-29"),
    "refresh": (MODEL, "--as-of", "2024-01-29"), "data held": (MODEL,),
    "data release": (MODEL, "--refreshes", "--reason", "checked"),
    "calibrate": (MODEL, "--replays", "200"), "controls": (MODEL,), "status": (), "performance": (MODEL,), "parity": (MODEL,),
    "rollback": (MODEL, "--reason", "worse"), "promote": (MODEL, "1", "--override", "tried"), "history": (MODEL,), "alerts": (),
    "explain": (MODEL, "2"), "card": (MODEL, "2"), "lineage": (MODEL, "--interval", "2024-01-28", "2024-01-29"),
    "reproduce": (MODEL, "2"), "maintain": (MODEL,), "backup": ("BACKUP",), "restore": ("BACKUP",), "verify": (),
    "forget": (MODEL, "--key", "id=1", "--yes"), "retire": (MODEL, "--mark", "--reason", "done", "--yes"),
    "deploy secrets": ("SECRETS",),
    "deploy init": (), "deploy mlflow": None,
}  # fmt: skip


def commands(parser: argparse.ArgumentParser | None = None, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command of the parser, by its words."""
    parser = parser or make_parser()
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(words)
    for group in groups:
        for name, below in group.choices.items():
            yield from commands(below, (*words, name))


def run(command: str, place: Path) -> dict[str, Any]:
    """Run a command, and say how it ended."""
    given = [
        {"BACKUP": str(place / "backup"), "SECRETS": str(place / "secrets")}.get(word, word)
        for word in ARGUMENTS[command] or ()
    ]
    said, told = io.StringIO(), io.StringIO()
    settings.cache_clear()
    code: Any = "it did not exit"
    trace = None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            main([*command.split(), *given])
        except SystemExit as error:
            code = error.code
        except BaseException:
            trace = traceback.format_exc()
    return {
        "code": 1 if isinstance(code, str) else code,
        "words": code if isinstance(code, str) else told.getvalue(),
        "trace": trace,
    }


def give_up_the_rights_of_root() -> None:
    """Let the modes of files count for this process, also if its user is root."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, data) == 0:
        data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: of the effective ones
        assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    place = Path(sys.argv[1])
    give_up_the_rights_of_root()
    if limit := os.environ.get("LARGEST_FILE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    out = os.fdopen(os.dup(1), "w")
    json.dump({command: run(command, place) for command in sys.argv[2:]}, out)
