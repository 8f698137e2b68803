"""The tree of packages and tests stays one that a reader can predict."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CODE = PROJECT / "include" / "perennial"
UNIT = PROJECT / "tests" / "unit"
PACKAGES = sorted(file.parent for file in CODE.glob("*/__init__.py"))
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py") if path.name != "__init__.py")
#: Names that say nothing about what a module holds.
EMPTY_NAMES = frozenset({"base", "common", "helper", "helpers", "manager", "misc", "shared", "util", "utils"})


def name(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


@pytest.mark.parametrize("test", sorted(UNIT.glob("*/test_*.py")), ids=name)
def test_each_unit_test_is_named_after_the_module_that_it_tests(test: Path) -> None:
    module = CODE / test.parent.name / test.stem.removeprefix("test_")
    assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file(), (
        f"{name(test)} tests no module: move its tests to the file of the module that they test"
    )


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_module_is_named_by_what_it_holds(module: Path) -> None:
    assert module.stem != module.parent.name, f"{name(module)} bears the name of its package: say which part it is"
    assert EMPTY_NAMES.isdisjoint(module.stem.split("_")), f"{name(module)}: name it by what it holds"


@pytest.mark.parametrize("package", PACKAGES, ids=name)
def test_a_package_says_where_to_begin(package: Path) -> None:
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    begin = re.search(rf"Begin with :mod:`~?perennial\.{package.name}\.(\w+)`", said)
    assert begin, f"{name(package)}/__init__.py: end its docstring with “Begin with :mod:`perennial.{package.name}.…`”"
    assert (package / f"{begin[1]}.py").is_file(), f"{name(package)}: there is no module {begin[1]} to begin with"
