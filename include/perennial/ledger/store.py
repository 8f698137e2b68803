"""The ledger: the one place where it is decided what is published and what is champion.

A SQL database (SQLite embedded, PostgreSQL deployed) that holds publications, versions and promotions, verdicts,
performance, retraining requests, refusals, and alerts (:mod:`perennial.alerts.outbox`). Iceberg and MLflow cannot commit
two things at once; a row here can, so readers believe the ledger: an interval is published when a row of it says so
(:mod:`perennial.lake.publish` writes it), and the champion is what its newest completed promotion says
(:mod:`perennial.registry.store` brings MLflow's alias in line).

Every method is one transaction. Writers of the same thing queue for a lock, so that what they read still holds when
they write.
"""

from __future__ import annotations

import sqlalchemy as sa

from perennial.core.database import Database
from perennial.core.errors import SchemaMismatch
from perennial.ledger import migrations
from perennial.ledger.alerts import AlertTables
from perennial.ledger.erasures import Erasures
from perennial.ledger.observations import Observations
from perennial.ledger.overview import Overviews
from perennial.ledger.promotions import Promotions
from perennial.ledger.publications import Publications
from perennial.ledger.removals import Removals
from perennial.ledger.retirements import Retirements


class Ledger(Publications, Promotions, Observations, Erasures, Removals, Retirements, AlertTables, Overviews):
    """The operational database.

    Holds no open connection between calls, so it may be shared by threads and survives a fork.

    Args:
        url: SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
    """

    def __init__(self, url: str) -> None:
        super().__init__(Database(url, check=migrations.check))

    def migrate(self) -> None:
        """Bring the tables to what this code needs, see :mod:`perennial.ledger.migrations`.

        Several processes may call it at once.

        Raises:
            SchemaMismatch: a newer release has been here.
        """
        try:
            with self._database.reading():
                return
        except (SchemaMismatch, sa.exc.OperationalError):  # of an older release, or no such file yet
            with self._database.changing_tables() as connection:
                migrations.upgrade(connection)

    def migrate_own(self) -> None:
        """As :meth:`migrate`, but only where nobody else is at work: on SQLite. The tables of PostgreSQL, which many
        processes share, are left to the init job; the first use tells if that is missing."""
        if self._database.is_sqlite:
            self.migrate()
