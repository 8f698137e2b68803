"""The revisions of the ledger's schema, applied by Alembic.

A revision is a file in ``versions/``. The files are applied in the order of their numbers; together they make the tables that
:mod:`perennial.ledger.store` expects. To make a new revision::

    .venv/bin/perennial init
    .venv/bin/alembic revision --autogenerate --rev-id 0002 -m "what it changes"

Then read the file, because Alembic guesses: it takes a renamed column for one that is dropped and one that is added. Never
edit a revision that is merged. Each revision is one transaction, on SQLite too, so a ledger is never between two revisions.

The table ``perennial_alembic_version`` holds the ledger's revision. Its name differs from Alembic's default because MLflow and
Airflow also use Alembic and may use the same database. Most processes only read this table, which needs no Alembic.

Neighbours: :mod:`perennial.core.database` makes processes that start at the same time wait for each other. Two other kinds of
tables have no revisions here: those of the Iceberg catalog belong to PyIceberg, and those of predictions depend on the model
(:mod:`perennial.scoring.sink` refuses a table with other columns).

Begin with :func:`upgrade`.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from perennial.core.errors import SchemaMismatch

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)


HERE = Path(__file__).parent
VERSION_TABLE = "perennial_alembic_version"


@cache
def revisions() -> tuple[str, ...]:
    """The numbers of all revisions that this code knows, oldest first."""
    return tuple(sorted(file.name.partition("_")[0] for file in (HERE / "versions").glob("[0-9]*_*.py")))


def current(connection: sa.Connection) -> str | None:
    """The revision of a ledger; None if there is no ledger yet, or if a release without revisions made it."""
    query = sa.text(f"SELECT version_num FROM {VERSION_TABLE}")
    try:
        # On PostgreSQL, a failed statement ends the whole transaction. The savepoint limits that to this statement.
        with connection.begin_nested():
            return connection.execute(query).scalar_one_or_none()
    except (sa.exc.OperationalError, sa.exc.ProgrammingError):
        # Another process may have made the table since.
        return connection.execute(query).scalar_one_or_none() if sa.inspect(connection).has_table(VERSION_TABLE) else None


def check(connection: sa.Connection) -> None:
    """Make sure that a ledger is at the newest revision that this code knows.

    Raises:
        SchemaMismatch: it is at another revision. The message tells which one, and what to do.
    """
    found, wanted = current(connection), revisions()[-1]
    if found == wanted:
        return
    _refuse_newer(connection, found)
    is_at = "holds no ledger with a revision yet" if found is None else f"holds a ledger at revision {found}"
    raise SchemaMismatch(
        f"the database {_where(connection)} {is_at}, and this code needs {wanted}: run the init job of the installed release "
        "(docker compose run --rm init; without compose, perennial init), then start this process again"
    )


def upgrade(connection: sa.Connection) -> None:
    """Bring a ledger to the newest revision, within the connection's transaction. Only one process may do this at a time.

    Raises:
        SchemaMismatch: the ledger is newer than this code.
    """
    found = current(connection)
    if found == revisions()[-1]:
        return
    _refuse_newer(connection, found)
    # A slow import that is needed once per release.
    from alembic import command

    command.upgrade(config(connection), "head")
    log.info("upgraded the ledger in %s from revision %s to %s", _where(connection), found or "none", revisions()[-1])


def config(connection: sa.Connection) -> Config:
    """Alembic's configuration: where the revisions are, and the connection in whose transaction it works."""
    from alembic.config import Config

    found = Config()
    found.set_main_option("script_location", str(HERE))
    found.attributes["connection"] = connection
    return found


def _refuse_newer(connection: sa.Connection, found: str | None) -> None:
    if found is not None and found not in revisions():
        raise SchemaMismatch(
            f"the database {_where(connection)} holds a ledger at revision {found}, but the newest revision that this code "
            f"knows is {revisions()[-1]}: a newer release has upgraded the ledger. Run that release. To return to this "
            "release, restore the backup that was made before the upgrade"
        )


def _where(connection: sa.Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
