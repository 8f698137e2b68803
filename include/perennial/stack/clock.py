"""The clock of SQLite with fractions of a second, for all that Airflow asks of its database in this process.

Airflow starts a run when its ``run_after`` is not later than the database's ``CURRENT_TIMESTAMP``, which has whole seconds in
SQLite: each run waited for the next of them, half a second on average.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import functions


@compiles(functions.now, "sqlite")
def _now(*_: Any, **__: Any) -> str:
    # As SQLAlchemy stores moments in SQLite: six digits after the point, of which SQLite knows three.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
