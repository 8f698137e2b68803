"""Log lines that say which model, interval, run and version they speak of.

Within ``logs.context(model=…, interval=…, run=…)`` each line of any logger carries these fields, of whatever level and
whoever writes it. Airflow writes a task's lines as JSON, in which they are keys of their own; outside of Airflow
:func:`configure` writes them as text, or as JSON with ``PERENNIAL_LOG_FORMAT=json``. Fields are structlog's context
variables, which is why Airflow finds them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
from structlog.contextvars import bind_contextvars, get_contextvars, merge_contextvars, unbind_contextvars

from perennial.core.errors import SettingsError
from perennial.core.redaction import redact

FORMAT = "PERENNIAL_LOG_FORMAT"

#: What a context may say, in the order in which it is written. Airflow adds DAG, task and try by itself.
FIELDS = ("model", "interval", "run", "version")


def get(name: str) -> logging.Logger:
    """A logger; its lines carry the fields of :func:`context`."""
    return logging.getLogger(name)


@contextmanager
def context(**fields: object) -> Iterator[None]:
    """Add fields (``model``, ``interval``, ``run``, …) to each line logged inside; those that are None are left out."""
    before = get_contextvars()
    bind_contextvars(**{name: str(value) for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        unbind_contextvars(*(name for name in FIELDS if name not in before))
        bind_contextvars(**{name: value for name, value in before.items() if name in FIELDS})


def resolved(**fields: object) -> None:
    """Add fields that have become known, such as ``version``, to the lines that follow in the context around; without one
    nothing happens."""
    if get_contextvars().keys() & set(FIELDS):
        bind_contextvars(**{name: str(value) for name, value in fields.items() if value is not None})


def configure(environment: Mapping[str, str], level: int) -> None:
    """Write the log lines of this process, which is none of Airflow's, to its standard error.

    Args:
        environment: ``PERENNIAL_LOG_FORMAT`` says how: ``text`` or ``json``, a line each.
        level: the least that is written of Perennial's own; of libraries, warnings and worse.

    Raises:
        SettingsError: the variable says something else.
    """
    wanted = environment.get(FORMAT) or "text"
    writers: dict[str, list[structlog.typing.Processor]] = {
        "text": [structlog.processors.format_exc_info, _without_secrets, _as_text],
        # In JSON, what is JSON already is spelled in yet another way.
        "json": [structlog.processors.format_exc_info, _without_secrets, structlog.processors.JSONRenderer()],
    }
    if wanted not in writers:
        raise SettingsError(f"{FORMAT} is {wanted!r}; write text or json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.processors.TimeStamper(fmt="iso"),
                merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *writers[wanted]],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("perennial").setLevel(level)


def _without_secrets(_: object, __: str, said: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {name: redact(value) if isinstance(value, str) else value for name, value in said.items()}


def _as_text(_: object, __: str, said: structlog.typing.EventDict) -> str:
    names = [*(name for name in FIELDS if name in said), *sorted(set(said) - {*FIELDS, *_OWN})]
    fields = " ".join(f"{name}={said[name]}" for name in names)
    line = f"{said['timestamp']} {said['level'].upper()} {f'[{fields}] ' if fields else ''}{said['event']}"
    return f"{line}\n{said['exception']}" if "exception" in said else line


_OWN = frozenset({"timestamp", "level", "event", "logger", "exception"})
