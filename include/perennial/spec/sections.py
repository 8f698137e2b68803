"""What all sections of ``model.yaml`` share: strict fields, and checks between fields that report every problem at once.

A field that is broken must not hide a problem elsewhere, and must not cause a second message either. So each check is a
method of its own, marked by :func:`check` or :func:`check_each`. A check that reads a broken field ends there
(:class:`Unreadable`); all other checks still report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from perennial.spec.descriptions import fields_of, summary_of
from perennial.spec.problems import Problem, YamlPath

#: How pydantic names a problem that a check found, in contrast to a field that is wrong in itself.
INCONSISTENT = "inconsistent"

#: What a check gives: the path below its section or item, and the message.
Found = Iterable[tuple[YamlPath, str]]


class Unreadable(Exception):
    """A check needs a field that is missing or broken, which is reported already."""


@dataclass(frozen=True)
class _Check:
    function: Callable[..., Found]
    each: str = ""

    def problems(self, section: Section) -> Iterator[Problem]:
        with suppress(Unreadable):
            if not self.each:
                yield from _problems((), self.function(section))
                return
            items = attrgetter(self.each)(section)
            for key, item in items.items() if isinstance(items, dict) else enumerate(items):
                yield from _problems((*self.each.split("."), key), self.function(section, key, item))


def _problems(path: YamlPath, found: Found) -> Iterator[Problem]:
    with suppress(Unreadable):
        for below, message in found:
            yield Problem((*path, *below), message)


def check(function: Callable[[Any], Found]) -> _Check:
    """Marks a method of a section that gives the problems between its fields, by their path below the section."""
    return _Check(function)


def check_each(field: str) -> Callable[[Callable[[Any, Any, Any], Found]], _Check]:
    """Marks a method that is called for each key (or position) and item of a field, and gives paths below the item.

    Args:
        field: name of a mapping or list, with dots for one of a section inside: ``gates.behaviour``.
    """
    return lambda function: _Check(function, field)


class Section(BaseModel):
    """A mapping with known keys. An unknown key, a type that is merely similar, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ignored_types=(_Check,), serialize_by_alias=True)

    def problems(self) -> Iterator[Problem]:
        """What the section's own checks find."""
        for one in _checks_of(type(self)):
            yield from one.problems(self)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        found = [
            InitErrorDetails(type=PydanticCustomError(INCONSISTENT, "{message}", {"message": message}), loc=path, input=None)
            for path, message, _ in self.problems()
        ]
        if found:
            raise ValidationError.from_exception_data(type(self).__name__, found)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        own["description"] = summary_of(cls)
        described = fields_of(cls)
        for name, field in own["properties"].items():
            if name in described:
                field["description"] = described[name]
        return schema

    def __getattr__(self, name: str) -> Any:
        if name in type(self).model_fields:
            raise Unreadable(name)
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from type checkers


@cache
def _checks_of(kind: type[Section]) -> list[_Check]:
    return [member for base in kind.__mro__ for member in vars(base).values() if isinstance(member, _Check)]


def nested_problems(section: Section, path: YamlPath = ()) -> Iterator[Problem]:
    """What the checks of a section and of all sections inside it find."""
    for problem in section.problems():
        yield Problem((*path, *problem.path), problem.message)
    for name, value in section.__dict__.items():
        yield from _nested(value, (*path, name))


def _nested(value: Any, path: YamlPath) -> Iterator[Problem]:
    if isinstance(value, Section):
        yield from nested_problems(value, path)
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nested(item, (*path, key))
