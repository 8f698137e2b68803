"""What developers are given: a guide to what is there, hooks and forms that work, one version in all places."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from perennial.core.settings import PROJECT
from tests.project.test_manuals import TARGETS

GUIDE = (PROJECT / "CONTRIBUTING.md").read_text()
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
HOOKS = [hook for repo in yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
SCHEMAS = {
    ".github/dependabot.yml": "vendor.dependabot",
    ".github/ISSUE_TEMPLATE/config.yml": "vendor.github-issue-config",
    ".github/ISSUE_TEMPLATE/bug.yml": "vendor.github-issue-forms",
    ".github/ISSUE_TEMPLATE/feature.yml": "vendor.github-issue-forms",
}


def test_files_that_contributors_are_sent_to_are_there() -> None:
    told = re.findall(r"`((?:include|tests|docs|dags|benchmarks|scripts|deploy|monitoring|\.github|\.ci)/[\w./-]*)`", GUIDE)
    assert [path for path in told if not (PROJECT / path).exists()] == []
    # A step names a folder's files by their names alone, once it has named the folder.
    for step in re.findall(r"(?ms)^\d\. .*?(?=^\d\. |^#|^$)", GUIDE):
        folders = [PROJECT / path for path in re.findall(r"`(include/perennial/[\w/]*?)(?:\w+\.py)?`", step)]
        named = re.findall(r"`(\w+\.py)`", step)
        assert [name for name in named if name != "model.py" and not any((f / name).exists() for f in folders)] == [], step


def test_names_of_the_code_that_contributors_are_told_are_there() -> None:
    code = "\n".join(file.read_text() for file in (PROJECT / "include" / "perennial").rglob("*.py"))
    told = set(re.findall(r"`([A-Z][a-z]\w+)`", GUIDE)) - {"Makefile"}
    assert {name for name in told if not re.search(rf"\b{name}\b", code)} == set()


def test_make_help_names_every_target() -> None:
    told = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert {target for target in TARGETS if not re.search(rf"\bmake {target}\b", told)} == {"help"}


def test_every_file_of_the_platform_has_a_schema_here() -> None:
    there = {str(file.relative_to(PROJECT)) for file in (PROJECT / ".github").rglob("*.yml")}
    assert there == set(SCHEMAS)


@pytest.mark.parametrize("file", SCHEMAS)
def test_forms_and_updates_keep_to_their_schemas(file: str) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[file], PROJECT / file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def test_hooks_run_what_make_runs() -> None:
    recipe = (PROJECT / "Makefile").read_text()
    for hook in HOOKS:
        assert hook["language"] == "system", f"{hook['id']}: a hook that brings a tool of its own is of another version"
        match hook["entry"].split():
            case ["make", target]:
                assert target in TARGETS
            case [program, *arguments]:
                assert program.startswith(".venv/bin/"), hook["id"]
                command = " ".join([program.replace(".venv/bin", "$(BIN)"), *arguments]).removesuffix(" --force-exclude")
                assert re.search(rf"(?m)^\t{re.escape(command)}\b", recipe), f"{hook['id']}: make lint does not run {command}"


def test_every_check_of_make_lint_is_a_hook() -> None:
    [lint] = re.findall(r"(?m)^lint:.*\n((?:\t.*\n)+)", (PROJECT / "Makefile").read_text())
    run = {line.split()[0].removeprefix("$(BIN)/") for line in lint.splitlines()}
    assert run <= {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in HOOKS}


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("docker-compose.yaml", r"PERENNIAL_IMAGE:-perennial:([^}]+)\}"),
        (".env.example", r"PERENNIAL_IMAGE=perennial:(\S+)"),
        ("deploy/helm/perennial/Chart.yaml", r"(?m)^(?:version|appVersion): (\S+)$"),
    ],
)
def test_the_version_is_the_same_everywhere(file: str, pattern: str) -> None:
    found = re.findall(pattern, (PROJECT / file).read_text())
    assert set(found) == {VERSION}


def test_the_changelog_has_the_version_with_its_date_below_what_is_not_released() -> None:
    unreleased, newest, *_ = re.findall(r"(?m)^## (.*)$", (PROJECT / "CHANGELOG.md").read_text())
    assert unreleased == "Unreleased"
    assert re.fullmatch(rf"{re.escape(VERSION)} - \d{{4}}-\d\d-\d\d", newest)


def test_changes_are_grouped_as_readers_expect() -> None:
    groups = set(re.findall(r"(?m)^### (.*)$", (PROJECT / "CHANGELOG.md").read_text()))
    assert groups <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
