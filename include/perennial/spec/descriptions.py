"""The descriptions of fields in docstrings, for the JSON schema that editors show."""

from __future__ import annotations

import inspect
import re

_FIELD = re.compile(r"^(\w+(?:, \w+)*): ")


def summary_of(kind: type) -> str:
    """The docstring of a class up to its ``Attributes:``, in Markdown."""
    return _markdown((inspect.getdoc(kind) or "").partition("\n\nAttributes:")[0])


def fields_of(kind: type) -> dict[str, str]:
    """What the ``Attributes:`` in the docstrings of a class and its bases say, by field, in Markdown."""
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        listed = inspect.cleandoc(base.__doc__ or "").partition("\n\nAttributes:\n")[2]
        # A line that is indented more than the others continues the one before.
        for entry in re.split(r"\n(?=    \S)", listed):
            text = " ".join(entry.split())
            if named := _FIELD.match(text):
                described |= dict.fromkeys(named[1].split(", "), _markdown(text[named.end() :]))
    return described


def _markdown(text: str) -> str:
    return re.sub(r"(?::\w+:)?`+~?([^`]+)`+", r"`\1`", " ".join(text.split()))
