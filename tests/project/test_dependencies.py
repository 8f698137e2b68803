"""What the code imports is declared in pyproject.toml; one lock file holds what runs, another what tests it beside that."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from perennial.core.settings import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
CORE = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PYPROJECT["project"]["optional-dependencies"].items()}
DEV = [Requirement(text) for text in PYPROJECT["dependency-groups"]["dev"]]
RUNS = [*CORE, *EXTRAS["deploy"], *EXTRAS["demo"]]
EXCLUDED = set(PYPROJECT["tool"]["uv"]["exclude-dependencies"])

#: The extras that files need, by the names of the files: nothing else may import what only an extra brings.
NEEDS = {
    "users.py": ("deploy",),
    "people.py": ("deploy",),
    "sign_in.py": ("deploy",),
    "pulse.py": ("deploy",),
    "permissions.py": ("deploy",),
    "example_data.py": ("demo",),
    "boosters.py": ("lightgbm", "xgboost"),
}
#: Benchmarks of others' tools run in environments of their own, which these files describe.
PEERS = PROJECT / "benchmarks" / "peers"
FIRST_PARTY = {
    "__main__",
    "perennial",
    "models",
    "tests",
    "benchmarks",
    "scripts",
    *(file.stem for file in (PEERS / "shared").glob("*.py")),
}

PYTHONS = ("3.11", "3.12", "3.13")


# --- imports -------------------------------------------------------------------------------------------------------------


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside of something, also by a name given to importlib."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "find_spec") | ast.Attribute(attr="import_module" | "find_spec"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


@cache
def owners() -> dict[str, set[str]]:
    """The packages that have brought each installed module: several share ``airflow``, say."""
    found: dict[str, set[str]] = defaultdict(set)
    for installed in distributions():
        package = canonicalize_name(installed.name)
        for name in re.findall(r"(?m)^([\w/-]+)\.(?:py|(?:[\w-]+\.)?so),", installed.read_text("RECORD") or ""):
            found[name.removesuffix("/__init__").replace("/", ".")].add(package)
    return found


@cache
def with_modules() -> set[str]:
    return set().union(*owners().values())


def owners_of(module: str) -> set[str]:
    """The packages that bring a module, or the nearest one above it: what is imported from a module may be a name in it."""
    while module and module not in owners():
        module = module.rpartition(".")[0]
    return owners().get(module, set())


def names(requirements: Iterable[Requirement]) -> set[str]:
    """The packages that requirements name. One that holds no module of its own stands for those that it pins."""
    found: set[str] = {canonicalize_name(requirement.name) for requirement in requirements}
    for name in found - with_modules():
        found |= {pinned.name for pinned in required_by(name, set()) if str(pinned.specifier).startswith("==")}
    return found


def undeclared(file: Path, declared: list[Requirement]) -> set[str]:
    known = names(declared)
    third_party = {
        module for module in imports(file) if module.partition(".")[0] not in {*sys.stdlib_module_names, *FIRST_PARTY}
    }
    return {
        module
        for module in third_party
        if not owners_of(module) & known and canonicalize_name(module.partition(".")[0]) not in known
    }


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (PROJECT / folder).rglob("*.py"))


def named(file: Path) -> str:
    return str(file.relative_to(PROJECT))


def test_the_search_finds_imports_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import first\nfrom second.part import name\nfrom . import sibling\n"
        "def late():\n    import third\n    import_module('fourth.part')\n    importlib.util.find_spec('fifth')\n"
    )
    assert set(imports(file)) == {"first", "second.part.name", "third", "fourth.part", "fifth"}


@pytest.mark.parametrize(
    ("module", "owner"),
    [
        ("yaml", "pyyaml"),
        ("airflow.sdk.dag", "apache-airflow-task-sdk"),
        ("airflow.providers.slack.hooks.slack.SlackHook", "apache-airflow-providers-slack"),
        ("pyarrow.parquet", "pyarrow"),
    ],
)
def test_the_owner_of_a_module_is_found_where_several_share_a_name(module: str, owner: str) -> None:
    assert owners_of(module) == {owner}


def test_what_runs_imports_only_what_is_declared() -> None:
    missing = {
        named(file): found
        for file in sources("include", "dags", "plugins")
        if (found := undeclared(file, [*CORE, *(one for extra in NEEDS.get(file.name, ()) for one in EXTRAS[extra])]))
    }
    assert missing == {}, "add them to pyproject.toml and run make lock"


def test_tests_benchmarks_and_scripts_import_only_what_is_declared() -> None:
    missing = {}
    for file in sources("tests", "benchmarks", "scripts"):
        own = file.parent / "requirements.txt"
        peers = [Requirement(line) for line in own.read_text().splitlines()] if own.exists() else []
        if found := undeclared(file, [*RUNS, *DEV, *peers]):
            missing[named(file)] = found
    assert missing == {}, "add them to pyproject.toml and run make lock"


# --- locks ---------------------------------------------------------------------------------------------------------------


class Pin(NamedTuple):
    name: str
    version: str
    marker: str

    def holds(self, environment: dict[str, str]) -> bool:
        return not self.marker or Marker(self.marker).evaluate(environment)


def pins(lock: str) -> list[Pin]:
    lines = re.findall(r"(?m)^([a-z0-9-]+)==(\S+?)(?: ; (.*?))? \\$", (PROJECT / lock).read_text())
    return [Pin(*line) for line in lines]


def on_python(version: str) -> dict[str, str]:
    return {**default_environment(), "python_version": version, "python_full_version": f"{version}.5"}  # type: ignore[dict-item]  # the values of a TypedDict are objects to mypy


def chosen(lock: str, environment: dict[str, str]) -> dict[str, str]:
    """The version of each package in an environment."""
    found = [pin for pin in pins(lock) if pin.holds(environment)]
    assert len({pin.name for pin in found}) == len(found), f"{lock} pins a package twice"
    return {pin.name: pin.version for pin in found}


def required_by(name: str, extras: set[str]) -> list[Requirement]:
    """What an installed package requires here, with these of its extras."""
    try:
        texts = distribution(name).requires or []
    except PackageNotFoundError:
        return []
    required = [Requirement(text) for text in texts]
    return [
        each for each in required if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras})
    ]


def reached(requirements: Iterable[Requirement]) -> set[str]:
    """All packages that requirements bring here, with what those require in turn."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        asked = name, frozenset(requirement.extras)
        if name not in EXCLUDED and asked not in seen:
            seen.add(asked)
            found.add(name)
            waiting += required_by(name, requirement.extras)
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("lock", "declared"), [("requirements.lock", RUNS), ("requirements-dev.lock", DEV)])
def test_a_lock_satisfies_what_is_declared(lock: str, declared: list[Requirement], python: str) -> None:
    environment = on_python(python)
    versions = chosen(lock, environment)
    for requirement in declared:
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {requirement}: run make lock"
        assert requirement.specifier.contains(version), f"{lock} has {version} for {requirement}: run make lock"


def test_what_runs_is_locked_whole_and_nothing_else_is() -> None:
    locked = set(chosen("requirements.lock", default_environment()))  # type: ignore[arg-type]  # a TypedDict of texts is no dict to mypy
    needed = reached(RUNS)
    assert locked - needed == set(), "nothing that runs requires these: run make lock"
    assert needed - locked == set(), "these are installed unpinned, and an image would lack them: run make lock"


def test_no_package_that_only_tests_need_is_in_what_runs() -> None:
    only = {canonicalize_name(requirement.name) for requirement in DEV} - reached(RUNS)
    assert {"pytest", "mypy", "moto", "playwright", "hypothesis"} <= only
    assert {pin.name for pin in pins("requirements.lock")} & {*only, *EXCLUDED} == set()


@pytest.mark.parametrize("python", PYTHONS)
def test_both_locks_agree(python: str) -> None:
    runs, dev = (chosen(lock, on_python(python)) for lock in ("requirements.lock", "requirements-dev.lock"))
    assert {name: (runs[name], dev[name]) for name in runs.keys() & dev.keys() if runs[name] != dev[name]} == {}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "requirements-bootstrap.lock"])
def test_every_pin_has_its_hashes(lock: str) -> None:
    text = (PROJECT / lock).read_text()
    blocks = re.findall(r"(?m)^[a-z0-9].*\n(?:    .*\n?)*", text)
    assert len(blocks) == len(pins(lock)) > 0
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []


# --- who installs which --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "installed"),
    [
        ("up", {"run"}),
        ("demo", {"run"}),
        ("secrets", set()),
        ("test", {"run", "dev"}),
        ("lint", {"run", "dev"}),
        ("bench", {"run", "dev"}),
        ("lock", {"uv"}),
        ("lock-check", {"uv"}),
    ],
)
def test_a_target_installs_no_more_than_it_needs(target: str, installed: set[str]) -> None:
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    assert {stage or "run" for stage in re.findall(r"scripts/install\.sh ?(\w*)", told)} == installed


def test_the_image_has_no_package_that_only_tests_need() -> None:
    for name in ("Dockerfile", ".dockerignore"):
        text = (PROJECT / name).read_text()
        assert "requirements.lock" in text
        assert "requirements-dev" not in text
