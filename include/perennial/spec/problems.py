"""From what pydantic finds wrong to messages for people: file, line, field, and what to write instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from perennial.core.errors import SpecError
from perennial.spec.strict_yaml import YamlPath
from perennial.spec.types import IDENTIFIER, Section

#: Most problems of a file that are told.
MAX_MESSAGES = 100


class _LocatedError(ValueError):
    """A problem of the whole that belongs to one place in it."""

    def __init__(self, path: YamlPath, message: str) -> None:
        super().__init__(message)
        self.path = path


def located(path: YamlPath, message: str) -> _LocatedError:
    return _LocatedError(path, message)


def names_of(names: Any) -> str:
    return ", ".join(sorted(names))


SectionT = TypeVar("SectionT", bound=Section)


def validate(kind: type[SectionT], file: Path, value: Any, lines: dict[YamlPath, int]) -> SectionT:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        messages = list(islice(_messages(file, error, lines), MAX_MESSAGES))
        more = error.error_count() - len(messages)
        raise SpecError("\n".join([*messages, *([f"{file}: … and {more:,} more"] if more else [])])) from error


def _messages(file: Path, error: ValidationError, lines: dict[YamlPath, int]) -> Iterator[str]:
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        # "[key]" marks a mapping's key that is no identifier; union members add their type's name to the path.
        path = tuple(cause.path if isinstance(cause, _LocatedError) else (step for step in problem["loc"] if step != "[key]"))
        place = path
        while place and place not in lines:
            place = place[:-1]
        name = ".".join(str(step) for step in path if step in place or path == place or isinstance(step, str))
        yield f"{file}:{lines.get(place, 1)}: {name or 'model'}: {_explain(problem)}"


def _explain(problem: Any) -> str:
    kind, context, given = problem["type"], problem.get("ctx", {}), problem["input"]
    shown = json.dumps(given, default=str, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    match kind:
        case "extra_forbidden":
            return "unknown key; remove it, or see model.schema.json for the keys there are"
        case "missing":
            return "missing; it must be given"
        case "value_error":
            return str(context["error"])
        case "string_type":
            return f"a text is wanted, this is {shown}; put it in quotes"
        case "string_pattern_mismatch" if context.get("pattern") == IDENTIFIER:
            return f"{shown} is not an identifier: lower-case letters, digits and _, not beginning with a digit"
        case "finite_number":
            return "a finite number is wanted, not NaN or infinity"
        case "literal_error":
            return f"{shown} is none of {context['expected']}"
        case _:
            return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, this is {shown}"
