"""Removes rows of erased entities, and rows older than their retention, from the predictions database.

Neighbour: :mod:`perennial.scoring.sink` writes these rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from perennial.core.database import Database

#: Most entities in one statement.
_AT_ONCE = 200


def columns(url: str, model: str) -> list[str]:
    """Return the columns of ``<model>_predictions``; none if there is no such table."""
    with Database(url).reading() as connection:
        inspector = sa.inspect(connection)
        if not inspector.has_table(f"{model}_predictions"):
            return []
        return [column["name"] for column in inspector.get_columns(f"{model}_predictions")]


def erase(url: str, model: str, names: Sequence[str], tuples: Collection[tuple[object, ...]], *, dry_run: bool = False) -> int:
    """Remove the rows whose columns have one of several tuples of values.

    SQLite's file keeps no trace of the rows. PostgreSQL frees their space by a VACUUM, which this function runs.

    Args:
        url: the predictions database.
        model: the model.
        names: the columns' names.
        tuples: each has one value per column.
        dry_run: only count the rows.

    Returns:
        The number of rows.
    """
    if not tuples or not set(names) <= set(columns(url, model)):
        return 0
    database = Database(url)
    with database.reading() as connection:
        table = sa.Table(f"{model}_predictions", sa.MetaData(), autoload_with=connection)
    wanted = sorted(tuples, key=repr)
    count = 0
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        where = sa.or_(
            *(
                sa.and_(*(table.c[name] == _bound(database, value) for name, value in zip(names, one, strict=True)))
                for one in part
            )
        )
        if dry_run:
            with database.reading() as connection:
                count += connection.execute(sa.select(sa.func.count()).select_from(table).where(where)).scalar_one()
            continue
        with database.writing("sink", f"{model}_predictions") as connection:
            database.leave_nothing(connection)
            count += connection.execute(sa.delete(table).where(where)).rowcount
    if count and not dry_run:
        database.free_space(f"{model}_predictions")
    return count


def remove_before(url: str, model: str, event_time: str, before: datetime) -> int:
    """Remove predictions of events before a moment, and the records of their intervals; returns the number of predictions."""
    if event_time not in columns(url, model):
        return 0
    database = Database(url)
    with database.reading() as connection:
        metadata = sa.MetaData()
        table = sa.Table(f"{model}_predictions", metadata, autoload_with=connection)
        scored = sa.Table(f"{model}_scored", metadata, autoload_with=connection)
    moment = _bound(database, before)
    with database.writing("sink", f"{model}_predictions") as connection:
        count = connection.execute(sa.delete(table).where(table.c[event_time] < moment)).rowcount
        connection.execute(sa.delete(scored).where(scored.c.interval_end <= moment))
    return int(count)


def _bound(database: Database, value: Any) -> Any:
    return value.replace(tzinfo=None) if database.is_sqlite and isinstance(value, datetime) else value
