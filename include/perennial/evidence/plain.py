"""Evidence as JSON, and back: one way to write and one way to read for all dataclasses of this package.

A row may come from an older release, or from a newer one. So an unknown or absent name is never an error:

- A name that the dataclass does not have is ignored.
- A field whose name is absent gets its default. A field without a default gets its ``absent`` value (:func:`absent`). A field
  without either gets an empty value: None where the field may be None, an empty text, list or mapping, 0, False, or NaN for
  a float. A null counts as absent where the field may not be None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """Plain values. Their names stay the same from release to release."""

    @property
    def is_empty(self) -> bool:
        """Whether all values are those that an empty row gives."""
        return self == type(self).from_json({})

    def to_json(self) -> dict[str, Any]:
        """Mappings, lists, texts and numbers; NaN and infinity are kept."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`, for values of this release or another one."""
        return read(cls, value)


def absent(value: Any) -> dict[str, Any]:
    """The metadata of a required field. The field gets ``value`` where a row does not contain it."""
    return {"absent": value}


def read(kind: type[T], value: Mapping[str, Any]) -> T:
    """Make a dataclass from plain values; see the module for unknown and absent names."""
    given = {}
    for field in _fields(kind):  # type: ignore[arg-type]  # mypy takes no type[T] for hashable
        said = value.get(field.name)
        if said is not None:
            given[field.name] = said if field.convert is None else field.convert(said)
        elif not (field.may_be_none and field.name in value):
            given[field.name] = field.absent()
        else:
            given[field.name] = None
    return kind(**given)


@dataclass(frozen=True)
class _Field:
    """How a field is read; ``convert`` is None where the JSON value is the field's value."""

    name: str
    convert: Callable[[Any], Any] | None
    may_be_none: bool
    absent: Callable[[], Any]


@cache
def _fields(kind: type[Any]) -> tuple[_Field, ...]:
    hints, found = get_type_hints(kind), []
    for field in fields(kind):
        inner, may_be_none = _without_none(hints[field.name])
        if field.default is not MISSING:
            default = _always(field.default)
        elif field.default_factory is not MISSING:
            default = field.default_factory
        elif "absent" in field.metadata:
            default = _always(field.metadata["absent"])
        else:
            default = _always(None) if may_be_none else _nothing(inner)
        found.append(_Field(field.name, _converter(inner), may_be_none, default))
    return tuple(found)


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    [inner] = [part for part in get_args(hint) if part is not NoneType]
    return inner, True


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda value: read(hint, value)
    origin, parts = get_origin(hint), get_args(hint)
    if origin not in (list, tuple, dict):
        return None
    inner = _converter(parts[1] if origin is dict else parts[0])
    if origin is dict:
        return None if inner is None else lambda value: {name: inner(part) for name, part in value.items()}
    if inner is None:
        return None if origin is list else tuple
    return lambda value: origin(inner(part) for part in value)


def _nothing(hint: Any) -> Callable[[], Any]:
    """A function that makes the empty value of a type."""
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda: read(hint, {})
    if hint is float:
        return _always(math.nan)
    if get_origin(hint) is Literal:
        raise TypeError(f"no word of {hint} says nothing: give the field a default or an absent value")
    made: Callable[[], Any] = get_origin(hint) or hint
    return made
