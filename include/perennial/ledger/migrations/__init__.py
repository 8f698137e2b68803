"""The ledger's schema, revision by revision, by Alembic.

A revision is a file in ``versions/``, numbered in the order in which they are applied; together they make what
:mod:`perennial.ledger.store` expects. A new one::

    .venv/bin/perennial init
    .venv/bin/alembic revision --autogenerate --rev-id 0002 -m "what it changes"

and then read, since Alembic guesses: a column that is renamed looks like one dropped and one added. A revision that has
landed is never edited. Each is one transaction, on SQLite too, so a ledger is at a revision or at the next one.

Which revision a ledger is at stands in a table of our own, ``perennial_alembic_version``, since MLflow and Airflow, which
use Alembic as well, may live in the same database. Looking at it is all that most processes do, and needs no Alembic.

Neighbours: :mod:`perennial.core.database` says how processes that start at once queue. The Iceberg catalog's tables are
PyIceberg's own (their columns are fixed by Iceberg's JDBC catalog), those of predictions follow from the model
(:mod:`perennial.scoring.sink` refuses a table with other columns): neither has revisions here.
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
    """All revisions that this code knows, oldest first: the numbers of the files."""
    return tuple(sorted(file.name.partition("_")[0] for file in (HERE / "versions").glob("[0-9]*_*.py")))


def current(connection: sa.Connection) -> str | None:
    """The revision that a ledger is at; None for one without a revision: none yet, or one made before there were any."""
    query = sa.text(f"SELECT version_num FROM {VERSION_TABLE}")
    try:
        # PostgreSQL would end the transaction, whose first statement this may be, together with one that fails.
        with connection.begin_nested():
            return connection.execute(query).scalar_one_or_none()
    except (sa.exc.OperationalError, sa.exc.ProgrammingError):
        # Another process may have made it since.
        return connection.execute(query).scalar_one_or_none() if sa.inspect(connection).has_table(VERSION_TABLE) else None


def check(connection: sa.Connection) -> None:
    """Make sure that a ledger is at the newest revision that this code knows.

    Raises:
        SchemaMismatch: it is at another one; which, and what to do.
    """
    found, wanted = current(connection), revisions()[-1]
    if found == wanted:
        return
    _refuse_newer(connection, found)
    is_at = "holds no ledger of a known revision yet" if found is None else f"holds a ledger at revision {found}"
    raise SchemaMismatch(
        f"the database {_where(connection)} {is_at}, and this code needs {wanted}: run the init job of the release that is "
        "being installed (docker compose run --rm init; without compose, perennial init), then start this again"
    )


def upgrade(connection: sa.Connection) -> None:
    """Bring a ledger to the newest revision, within the connection's transaction, which nobody else may do meanwhile.

    Raises:
        SchemaMismatch: it is newer than this code.
    """
    found = current(connection)
    if found == revisions()[-1]:
        return
    _refuse_newer(connection, found)
    # Heavy, and needed once a release.
    from alembic import command

    command.upgrade(config(connection), "head")
    log.info("the ledger in %s went from revision %s to %s", _where(connection), found or "none", revisions()[-1])


def config(connection: sa.Connection) -> Config:
    """How Alembic finds the revisions, and the connection in whose transaction it works."""
    from alembic.config import Config

    found = Config()
    found.set_main_option("script_location", str(HERE))
    found.attributes["connection"] = connection
    return found


def _refuse_newer(connection: sa.Connection, found: str | None) -> None:
    if found is not None and found not in revisions():
        raise SchemaMismatch(
            f"the database {_where(connection)} holds a ledger at revision {found}, and this code knows none after "
            f"{revisions()[-1]}: a newer release has been here. Run that release; to go back to this one, restore the backup "
            "that was made before the upgrade"
        )


def _where(connection: sa.Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)
