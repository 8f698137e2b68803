"""What manuals and workflows tell people to type exists: commands, services, targets, variables, files."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.cli.main import make_parser
from perennial.core.settings import PROJECT
from tests.composed import COMPOSE

#: All documents but the changelog, which speaks of what was.
PAGES = sorted(
    [
        *(PROJECT / page for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(
            page
            for folder in ("benchmarks", "deploy", "docs", "examples", "include")
            for page in (PROJECT / folder).rglob("*.md")
        ),
    ]
)
SCRIPTS = [PROJECT / "scripts" / name for name in ("backup.sh", "restore.sh")]
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (PROJECT / "Makefile").read_text()))
#: Options of docker compose that are followed by a value of their own.
VALUED = {"--scale", "--profile", "--volume", "--user", "--env", "--tail", "--file"}


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks, or of a script, without comments; continued ones joined."""
    text = page.read_text()
    blocks = [text] if page.suffix == ".sh" else re.findall(r"(?ms)^```sh\n(.*?)^```", text)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    typed = [line.split(" #")[0].strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return typed if page.suffix == ".sh" else typed + within_sentences(text)


def within_sentences(text: str) -> list[str]:
    """Commands that stand in a sentence or a table."""
    return re.findall(r"`((?:perennial|\.venv/bin/perennial|docker compose|make) [^`]+)`", text)


def words_of(line: str) -> list[str]:
    return shlex.split(re.sub(r"[<>]\S*|\|\| .*", "", line))


def name(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=name)
def test_commands_that_people_are_told_to_type_exist(page: Path) -> None:
    for line in commands(page):
        words = words_of(line) if "perennial" in line or "docker compose" in line or line.startswith("make") else []
        for place, word in enumerate(words):
            # It is the name of a database, too.
            if word.endswith("bin/perennial") or (word == "perennial" and (place == 0 or words[place - 1] in SERVICES)):
                check_perennial(words[place + 1 :], line)
        if words[:2] == ["docker", "compose"]:
            check_compose(words[2:], line)
        if words[:1] == ["make"]:
            assert [target for target in words[1:] if "=" not in target] != [] or words == ["make"], line
            assert {target for target in words[1:] if "=" not in target} <= TARGETS, line


def check_perennial(words: list[str], line: str) -> None:
    parser: argparse.ArgumentParser = make_parser()
    while words:
        branches = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not branches:
            break
        if words == ["--help"]:
            return
        assert words[0] in branches[0].choices, line
        parser = branches[0].choices[words.pop(0)]
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in parser._option_string_actions]
    assert not unknown, f"{line}: {unknown}"


def check_compose(words: list[str], line: str) -> None:
    while words[0] == "--profile":
        assert any(words[1] in service.get("profiles", []) for service in SERVICES.values()), line
        words = words[2:]
    verb, services, rest = words[0], [], iter(words[1:])
    for word in rest:
        if word in VALUED:
            value = next(rest)
            if word == "--scale":
                services.append(value.split("=")[0])
        elif not word.startswith("-"):
            services.append(word)
            if verb in ("exec", "run"):
                break
    assert verb in {"build", "down", "config", "exec", "logs", "ps", "pull", "restart", "run", "stop", "up"}, line
    if "$" not in "".join(services):
        assert set(services) <= set(SERVICES), line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_variables_that_people_are_told_to_set_exist(page: Path) -> None:
    known = (PROJECT / ".env.example").read_text() + COMPOSE.read_text()
    given = "\n".join(path.read_text() for path in PROJECT.glob("deploy/**/*.yaml"))
    told = set(re.findall(r"`((?:PERENNIAL|AIRFLOW|MLFLOW|POSTGRES|REDIS|AWS)_[A-Z_]+)(?:=[^`]*)?`", page.read_text()))
    # What begins so may go on with a name of the reader's own.
    told -= {name for name in told if name.startswith("AIRFLOW_CONN_")}
    assert {name for name in told if not re.search(rf"\b{name}\b", known + given)} == set()


def test_every_test_that_a_page_appeals_to_exists() -> None:
    tests = list((PROJECT / "tests").rglob("test_*.py"))
    known = {name for file in tests for name in re.findall(r"(?m)^def (test_\w+)", file.read_text())}
    for page in PAGES:
        for named in re.findall(r"`((?:tests/[\w/]+/)?test_\w+(?:\.py)?)`", page.read_text()):
            assert (PROJECT / named).exists() if "/" in named else named in known, (name(page), named)
