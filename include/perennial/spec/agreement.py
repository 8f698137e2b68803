"""Whether the other files of a model's folder agree with its ``model.yaml``.

A spec in which something is broken is checked as far as it can be read, see :mod:`perennial.spec.partial`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from perennial.spec.model import ModelSpec
from perennial.spec.monitoring import DriftThresholds
from perennial.spec.problems import Problem, YamlPath
from perennial.spec.sections import Section, Unreadable
from perennial.spec.types import IDENTIFIER


def defined_functions(code: str) -> set[str]:
    """The names of the functions and classes that a ``model.py`` defines, found without running it.

    Raises:
        SyntaxError, ValueError: the text is not Python.
    """
    return {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def function_problems(spec: ModelSpec, defined: set[str]) -> Iterator[Problem]:
    """Each reference ``model:function`` of a spec whose function ``model.py`` does not define."""
    for path, reference in _references(spec):
        if isinstance(reference, str) and reference.startswith("model:"):
            name = reference.removeprefix("model:")
            if name not in defined:
                yield Problem(path, f"names {reference}, but model.py defines no function {name}; define it there")


def _references(spec: ModelSpec) -> Iterator[tuple[YamlPath, Any]]:
    for name, candidate in _read(spec, "candidates", {}).items():
        yield ("candidates", name, "estimator"), _read(candidate, "estimator")
    for name, source in _read(spec, "sources", {}).items():
        yield ("sources", name, "python"), _read(source, "python")
    for name, test in _read(spec, "gates.behaviour", {}).items():
        yield ("gates", "behaviour", name, "function"), _read(test, "function")
    if _read(spec, "cost") is not None:
        yield ("cost", "function"), _read(spec, "cost.function")


def threshold_problems(spec: ModelSpec, thresholds: DriftThresholds) -> Iterator[Problem]:
    """What a ``drift.yaml`` says of other features, or of another monitoring window, than the spec."""
    again = "delete the file and run `perennial calibrate"
    again = f"{again} {_read(spec, 'name')}`" if _read(spec, "name") else f"{again}`"
    features, columns = _read(spec, "features.names"), _read(thresholds, "columns")
    # A feature whose name is broken gets another name.
    if features is not None and columns is not None and all(re.match(IDENTIFIER, name) for name in features):
        judged = [*features, "prediction"]
        for name in columns:
            if name not in judged:
                yield Problem(("columns", name), f"{name} is no feature; {again}")
        for name in judged:
            if name not in columns:
                yield Problem(("columns",), f"{name} has no threshold; {again}")
    for key, setting in (("window", "schedules.monitor"), ("match", "drift.match")):
        has, needs = _read(thresholds, key), _read(spec, setting)
        if has is not None and needs is not None and has != needs:
            yield Problem((key,), f"thresholds are for {has}, but {setting} in model.yaml is {needs}; {again}")


def _read(section: Section, field: str, default: Any = None) -> Any:
    """A field, with dots for one of a section inside; the default if it cannot be read."""
    try:
        return attrgetter(field)(section)
    except Unreadable:
        return default
