"""The readable part of a section in which something is broken, so that its checks can still find what else is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from perennial.spec.sections import Section, Unreadable

SectionT = TypeVar("SectionT", bound=Section)


def readable_part(kind: type[SectionT], value: Any) -> SectionT:
    """A section of which only the readable fields are set. Reading another one raises :class:`Unreadable`.

    Args:
        kind: the section's class.
        value: what the file says, usually a mapping in which something is broken.
    """
    given = value if isinstance(value, dict) else {}
    # An unknown key may be an optional field that is misspelt.
    keys = {name: field.alias or name for name, field in kind.model_fields.items()}
    all_known = value is given and given.keys() <= set(keys.values())
    readable: dict[str, Any] = {}
    broken = set()
    for name, field in kind.model_fields.items():
        if (key := keys[name]) in given:
            try:
                readable[key] = _readable(field.rebuild_annotation(), given[key])
            except Unreadable:
                broken.add(name)
        elif field.is_required() or not all_known:
            broken.add(name)
    section = kind.model_construct(**readable)
    for name in broken:
        section.__dict__.pop(name, None)  # model_construct sets defaults
    return section


def _readable(annotation: Any, value: Any) -> Any:
    with suppress(ValidationError):
        return TypeAdapter(annotation).validate_python(value, strict=True)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):  # an optional section
        annotation = next((kind for kind in get_args(annotation) if _is_section(kind)), annotation)
    if _is_section(annotation):
        return readable_part(annotation, value)
    if get_origin(annotation) is dict and isinstance(value, dict) and value:
        return dict(_readable_items(get_args(annotation)[1], value))
    if get_origin(annotation) is list and isinstance(value, list) and value:
        return [_readable_or_text(get_args(annotation)[0], item) for item in value]
    raise Unreadable


def _readable_items(annotation: Any, mapping: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in mapping.items():
        with suppress(Unreadable):
            yield key, _readable(annotation, item)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _readable_or_text(annotation: Any, value: Any) -> Any:
    """Positions count, so a broken item of a list keeps its place. It stands as its text, empty if it is none."""
    try:
        return _readable(annotation, value)
    except Unreadable:
        return value if isinstance(value, str) else ""
