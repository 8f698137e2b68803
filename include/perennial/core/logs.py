"""Log lines with fields: model, interval, run and version.

Within ``logs.context(model=…, interval=…, run=…)`` each line of any logger and level carries these fields. Airflow writes a
task's lines as JSON, in which they are separate keys. Outside of Airflow :func:`configure` writes them as text, or as JSON with
``PERENNIAL_LOG_FORMAT=json``. Fields are structlog's context variables, so Airflow finds them.
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

#: The fields, in the order in which they are written. Airflow adds DAG, task and try.
FIELDS = ("model", "interval", "run", "version")


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
    """Add fields that have become known, such as ``version``, to the following lines of the current context. Without a
    context nothing happens."""
    if get_contextvars().keys() & set(FIELDS):
        bind_contextvars(**{name: str(value) for name, value in fields.items() if value is not None})


def configure(environment: Mapping[str, str], level: int) -> None:
    """Write the log lines of this process to its standard error; not for Airflow's processes.

    Args:
        environment: ``PERENNIAL_LOG_FORMAT`` is ``text`` or ``json``.
        level: lowest level of Perennial's own lines; libraries' lines are written from warnings on.

    Raises:
        SettingsError: the variable has another value.
    """
    chosen = environment.get(FORMAT) or "text"
    writers: dict[str, list[structlog.typing.Processor]] = {
        "text": [structlog.processors.format_exc_info, _without_secrets, _as_text],
        # Secrets are removed before values are escaped in JSON.
        "json": [structlog.processors.format_exc_info, _without_secrets, structlog.processors.JSONRenderer()],
    }
    if chosen not in writers:
        raise SettingsError(f"{FORMAT} is {chosen!r}; write text or json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.processors.TimeStamper(fmt="iso"),
                merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *writers[chosen]],
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
