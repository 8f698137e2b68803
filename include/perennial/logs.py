"""Log lines that say which model, interval and run they speak of.

``logs.get(__name__)`` gives a logger; within ``logs.context(model=…, interval=…, run=…)`` each of its lines begins with
those, whoever formats it (Airflow's task log, the command line, a test).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_fields: ContextVar[dict[str, str] | None] = ContextVar("perennial_log_fields", default=None)


class _ContextLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        fields = _fields.get()
        if not fields:
            return msg, kwargs
        prefix = " ".join(f"{name}={value}" for name, value in fields.items()).replace("%", "%%")
        return f"[{prefix}] {msg}", kwargs


def get(name: str) -> _ContextLogger:
    """A logger whose lines carry the fields of :func:`context`."""
    return _ContextLogger(logging.getLogger(name), None)


@contextmanager
def context(**fields: object) -> Iterator[None]:
    """Add fields (``model``, ``interval``, ``run``, …) to each line logged inside; those that are None are left out."""
    merged = {**(_fields.get() or {}), **{name: str(value) for name, value in fields.items() if value is not None}}
    token = _fields.set(merged)
    try:
        yield
    finally:
        _fields.reset(token)
