"""The commands that README and docs give to look up what is known of a version, beside a running stack."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core.settings import PROJECT
from tests.living import MODEL, Living

pytestmark = pytest.mark.stack

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
TYPED = [found for page in PAGES for found in re.findall(r"(?m)^\.venv/bin/perennial (.+)$", page.read_text())]
#: Some need a stack that is stopped, or a folder of their own: tests/unit/operations/test_backup.py rehearses them. Two need a
#: scorer of a model with the features or tables that they name: tests/unit/serving starts that. A model is begun with a file:
#: tests/unit/cli/test_starting.py has some.
REHEARSED = {"backup", "restore", "ask", "push", "new", "try"}
COMMANDS = [command for command in dict.fromkeys(TYPED) if command.split()[0] not in REHEARSED]


def by_hand(living: Living, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PERENNIAL_STATE": str(living.stack.state),
        "PERENNIAL_MODELS": str(living.stack.settings.models),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [sys.executable, "-m", "perennial.cli", *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )


def test_the_pages_have_commands() -> None:
    assert {command.split()[0] for command in COMMANDS} == {
        "status",
        "history",
        "explain",
        "card",
        "reproduce",
        "performance",
        "token",
    }
    assert {command.split()[0] for command in TYPED} >= REHEARSED


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_answers_beside_a_running_stack(living: Living, tmp_path: Path, command: str) -> None:
    done = by_hand(living, shlex.split(command.replace("flight_delay", MODEL)), tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_a_prediction_is_traced_to_the_files_it_came_from(living: Living, tmp_path: Path) -> None:
    done = by_hand(living, ["lineage", MODEL, "--interval", "2024-01-17", "2024-01-18", "--json"], tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
