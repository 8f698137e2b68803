"""Secrets stay out of what is written: errors, log lines, alerts, and with them the ledger, MLflow, reports and XCom.

Secrets are found by their values: passwords in addresses, Airflow's connections in the environment, and variables whose names
indicate a secret. :class:`perennial.core.errors.PerennialError` redacts its own message, so that secrets that a library or a
model's code put into an error are removed before the error is written anywhere.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

#: Shorter secrets would be found in ordinary words. The deployment refuses secrets of that length.
SHORTEST = 8

_KEYS = "secret|access|api|fernet|session|private|account|signing|judge"
_NAMES = re.compile(rf"(?i)(?:passw(?:or)?d|secret|token|(?:{_KEYS})_?key)$")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*:(?P<password>[^\s/]*)@")
_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/]*@")

_remembered: set[str] = set()


def redact(text: str) -> str:
    """The text without secrets, and without the user and password of any address."""
    if (found := _pattern(_environment(), frozenset(_remembered))) is not None:
        text = found.sub("***", text)
    return _CREDENTIALS.sub(r"\g<scheme>***@", text)


def remember(*secrets: str | None) -> None:
    """Redact these secrets too, which the environment does not hold, such as those of a connection in Airflow's database."""
    _remembered.update(secret for secret in secrets if secret and len(secret) >= SHORTEST)


def known() -> frozenset[str]:
    """The secrets of this process, spelled as they are, as in an address, as in JSON, and as in the ``repr`` of a text."""
    return _spelled(_environment(), frozenset(_remembered))


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(os.environ.items())


@lru_cache(maxsize=2)
def _pattern(environment: tuple[tuple[str, str], ...], remembered: frozenset[str]) -> re.Pattern[str] | None:
    # The longest first: one may begin with another.
    spelled = sorted(_spelled(environment, remembered), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spelled))) if spelled else None


@lru_cache(maxsize=2)
def _spelled(environment: tuple[tuple[str, str], ...], remembered: frozenset[str]) -> frozenset[str]:
    found = {secret for name, value in environment for secret in _of_variable(name, value) if len(secret) >= SHORTEST}
    return frozenset(spelling for secret in found | remembered for spelling in _spellings(secret))


def _of_variable(name: str, value: str) -> Iterator[str]:
    if _NAMES.search(name):
        yield value
    for address in _ADDRESS.finditer(value):
        yield address["password"]
        yield unquote(address["password"])
    if name.startswith("AIRFLOW_CONN_") and value.lstrip().startswith("{"):
        yield from _of_json(value)


def _of_json(text: str) -> Iterator[str]:
    """Secrets of a connection in JSON, whose ``extra`` may be JSON once more."""
    try:
        content = json.loads(text)
    except ValueError:
        # It holds a secret, but it is unknown where.
        yield text
        return
    yield from _of_value("", content)


def _of_value(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _of_value(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _of_value(name, inner)
    elif isinstance(value, str):
        if _NAMES.search(name):
            yield value
        elif value.lstrip().startswith("{"):
            yield from _of_json(value)
        for address in _ADDRESS.finditer(value):
            yield address["password"]


def _spellings(secret: str) -> Iterable[str]:
    """In an address, in JSON, in the ``repr`` of a text, and in the one within the other, as in the environment as a text."""
    texts = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    within = (spell(text)[1:-1] for text in texts for spell in (json.dumps, repr))
    return {*texts, *within, quote(secret), quote(secret, safe="")}
