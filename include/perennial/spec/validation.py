"""Reads a YAML document as a section, and finds all its problems at once, in words that say what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, TypeVar

from pydantic import ValidationError

from perennial.spec.partial import readable_part
from perennial.spec.problems import Problem, YamlPath
from perennial.spec.sections import INCONSISTENT, Section, nested_problems
from perennial.spec.strict_yaml import REFUSED, Document
from perennial.spec.training import BUILT_IN_ESTIMATORS, ESTIMATOR
from perennial.spec.types import FUNCTION, IDENTIFIER

SectionT = TypeVar("SectionT", bound=Section)

_TYPES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
_PATTERNS = {
    IDENTIFIER: "not an identifier: lower-case letters, digits and _, not beginning with a digit",
    FUNCTION: "not a function of model.py; write model: and its name, such as model:score",
    ESTIMATOR: f"not an estimator; write {', '.join(BUILT_IN_ESTIMATORS)} or model: and the name of a function of model.py",
}


def examine(kind: type[SectionT], document: Document) -> tuple[SectionT, list[Problem]]:
    """The section that a document describes, and everything that is wrong with it.

    With problems, only the readable part of the section is set; see :func:`perennial.spec.partial.readable_part`.
    """
    try:
        return kind.model_validate(document.value), list(document.problems)
    except ValidationError as error:
        broken = [
            (_path(found, document), found)
            for found in error.errors(include_url=False)
            if found["type"] != INCONSISTENT  # the checks of the readable part find those, and more
        ]
    part = readable_part(kind, document.value)
    at_fault = {path for path, _ in broken}
    return part, [
        *document.problems,
        *_field_problems(broken),
        # A check of a value that is broken itself would be a second message about it.
        *(problem for problem in nested_problems(part) if problem.path not in at_fault),
    ]


def _path(found: Any, document: Document) -> YamlPath:
    """Where an error is, without what pydantic adds: the mark of a mapping's key, and the tried types of a value."""
    path = tuple(found["loc"])
    if found["type"] == "missing":
        return path
    while path and path not in document.lines:
        path = path[:-1]
    return path


def _field_problems(broken: Sequence[tuple[YamlPath, Any]]) -> Iterator[Problem]:
    # A broken key and its broken value have one path.
    for (path, _), group in groupby(broken, key=lambda pair: (pair[0], "[key]" in pair[1]["loc"])):
        errors = [error for _, error in group if error["input"] is not REFUSED]
        # A value that may be of several types has one error for each of them.
        wrong_types = [error for error in errors if error["type"] in _TYPES]
        if len(wrong_types) == len(errors) > 1:
            kinds = [_TYPES[error["type"]] for error in errors]
            yield Problem(path, f"must be {', '.join(kinds[:-1])} or {kinds[-1]}, this is {_shown(errors[0])}")
        else:
            yield from (Problem(path, _explain(error)) for error in errors if len(errors) == 1 or error not in wrong_types)


def _explain(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return "unknown key; remove it, or see model.schema.json for the known keys"
        case "missing":
            return "missing; it must be given"
        case "value_error":
            return str(context["error"])
        case "string_type":
            quotes = "; put it in quotes" if isinstance(error["input"], bool | int | float) else ""
            return f"must be a text, this is {_shown(error)}{quotes}"
        case "string_pattern_mismatch" if context["pattern"] in _PATTERNS:
            return f"{_shown(error)} is {_PATTERNS[context['pattern']]}"
        case "finite_number":
            return "must be a finite number, not NaN or infinity"
        case "too_short":
            return f"must have at least {context['min_length']} item{'s' if context['min_length'] > 1 else ''}"
        case "literal_error":
            return f"{_shown(error)} is none of {context['expected']}"
        case _ if kind in _TYPES:
            return f"must be {_TYPES[kind]}, this is {_shown(error)}"
        case _:
            # "Input should be greater than 0", "String should have at most 1 character"
            return f"{re.sub('^[A-Z][a-z]+ should ', 'must ', error['msg'])}, this is {_shown(error)}"


def _shown(error: Any) -> str:
    text = json.dumps(error["input"], default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
