"""The ledger: the one SQL database that decides what is published and which version is champion.

The database (SQLite embedded, PostgreSQL deployed) holds publications, versions and promotions, verdicts, performance,
retraining decisions, refusals, and alerts (:mod:`perennial.alerts.outbox`). Iceberg and MLflow cannot commit two changes
together, but a row of the ledger can, so readers trust the ledger. An interval is published when the ledger has a row for it
(:mod:`perennial.lake.publish` writes that row). The newest completed promotion decides the champion
(:mod:`perennial.registry.store` moves MLflow's alias to it).

Every method is one transaction. Writers of the same rows wait for a lock, so that what they have read is still true when they
write.
"""

from __future__ import annotations

import sqlalchemy as sa

from perennial.core.database import Database
from perennial.core.errors import SchemaMismatch
from perennial.ledger import migrations
from perennial.ledger.alerts import AlertTables
from perennial.ledger.erasures import Erasures
from perennial.ledger.holds import Holds
from perennial.ledger.observations import Observations
from perennial.ledger.overview import Overviews
from perennial.ledger.promotions import Promotions
from perennial.ledger.proposals import Proposals
from perennial.ledger.publications import Publications
from perennial.ledger.removals import Removals
from perennial.ledger.retirements import Retirements


class Ledger(Publications, Promotions, Proposals, Observations, Erasures, Removals, Retirements, Holds, AlertTables, Overviews):
    """The operational database.

    It holds no open connection between calls, so threads may share it, and it survives a fork.

    Args:
        url: SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
    """

    def __init__(self, url: str) -> None:
        super().__init__(Database(url, check=migrations.check))

    def migrate(self) -> None:
        """Bring the tables to the revision that this code needs, see :mod:`perennial.ledger.migrations`.

        Several processes may call it at the same time.

        Raises:
            SchemaMismatch: a newer release has changed the tables.
        """
        try:
            with self._database.reading():
                return
        except (SchemaMismatch, sa.exc.OperationalError):  # The tables are of an older release, or the file does not exist.
            with self._database.changing_tables() as connection:
                migrations.upgrade(connection)

    def migrate_own(self) -> None:
        """Like :meth:`migrate`, but only on SQLite, which one deployment uses alone.

        Many processes share the tables of PostgreSQL, so the init job migrates them. If it has not run, the first use of the
        ledger raises an error.
        """
        if self._database.is_sqlite:
            self.migrate()
