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

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from perennial.core.database import Database
from perennial.core.errors import SchemaMismatch
from perennial.ledger import chain, migrations
from perennial.ledger.alerts import AlertTables
from perennial.ledger.erasures import Erasures
from perennial.ledger.holds import Holds
from perennial.ledger.life import Lives
from perennial.ledger.observations import Observations
from perennial.ledger.promotions import Promotions
from perennial.ledger.proposals import Proposals
from perennial.ledger.publications import Publications
from perennial.ledger.removals import Removals
from perennial.ledger.retirements import Retirements
from perennial.ledger.signing import Keys


class Ledger(Publications, Promotions, Proposals, Observations, Erasures, Removals, Retirements, Holds, AlertTables, Lives):
    """The operational database.

    It holds no open connection between calls, so threads may share it, and it survives a fork.

    Args:
        url: SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
        state: the state folder, for the judge's key and the newest decision, see :mod:`perennial.ledger.signing`. By default
            SQLite's folder.
        read_only: the database refuses every write of this process.
    """

    def __init__(self, url: str, state: Path | None = None, *, read_only: bool = False) -> None:
        database = Database(url, check=migrations.check, read_only=read_only)
        if state is None and database.is_sqlite and database.engine.url.database:
            state = Path(database.engine.url.database).absolute().parent
        chain.guard(database.engine)
        super().__init__(database, Keys(state))

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
                before = migrations.current(connection)
                migrations.upgrade(connection)
                decisions = chain.Decisions(connection, self._keys)
                # Only a release without a chain leaves decisions without one. Otherwise the chain was removed.
                is_old = (before is None or before < chain.SINCE) and self._keys.head() is None
                if is_old and chain.has_decisions(connection):
                    decisions.begin(actor="perennial", reason=f"upgraded from revision {before or 'none'}")
            if decisions.head is not None:
                self._keys.note(decisions.head, instead=True)

    def migrate_own(self) -> None:
        """Like :meth:`migrate`, but only on SQLite, which one deployment uses alone.

        Many processes share the tables of PostgreSQL, so the init job migrates them. If it has not run, the first use of the
        ledger raises an error.
        """
        if self._database.is_sqlite:
            self.migrate()

    # --- the chain of decisions, see perennial.ledger.chain ---

    def check_decisions(self, model: str | None = None, *, noted: Sequence[str] = ()) -> chain.Checked:
        """Compare the rows that say which version is champion, and why, with the signed chain of them.

        Args:
            model: only its rows and signatures; None: everything.
            noted: newest entries that are known from elsewhere, each as ``NUMBER:HASH``.
        """
        with self._database.reading() as connection:
            own = chain.known_elsewhere(connection, self._keys)
            return chain.check(connection, self._keys, model=model, noted=[*([str(own)] if own is not None else []), *noted])

    def take_over_key(self) -> None:
        """Let the chain go on with this process's key, if the former one was given as well; otherwise only look at its end.

        Where nothing was decided yet, nothing is done: a restore begins with such a ledger.

        Raises:
            ChainBroken, SettingsError: the chain was changed, or is signed with a key that this process does not have.
        """
        with self._deciding() as decisions:
            decisions.take_over_key()

    def begin_again(self, *, actor: str, reason: str, noted: Sequence[str] = ()) -> int:
        """Begin the chain again: adopt the decisions as they are, with this process's key. The entry keeps who did it and why.

        Args:
            actor: who asks for it.
            reason: why.
            noted: newest entries that are known from elsewhere; those that the ledger does not have are given up.

        Returns:
            How many rows were adopted.

        Raises:
            SettingsError: this process has no key.
        """
        with self._database.writing() as connection:
            decisions = chain.Decisions(connection, self._keys)
            own = chain.known_elsewhere(connection, self._keys)
            known = len(chain.check(connection, self._keys).problems)
            over = chain.newest_missing(connection, [*([str(own)] if own is not None else []), *noted])
            adopted = decisions.begin(actor=actor, reason=reason, over=over, known=known)
        assert decisions.head is not None
        self._keys.note(decisions.head, instead=True)
        return adopted

    def follow_restored(self, *, actor: str, noted: Sequence[str] = ()) -> str | None:
        """After a restore of an older backup, let the chain go on from there.

        Nothing is done if anything else is wrong with the chain.

        Returns:
            What was done, as a sentence; None if nothing was.
        """
        whole = self.check_decisions(noted=noted)
        with self._database.reading() as connection:
            without = chain.check(connection, self._keys)
        if whole.head is None or without.problems or not whole.problems:
            return None
        self.begin_again(actor=actor, reason="an older backup of the ledger was restored", noted=noted)
        return f"the chain of decisions goes on after entry {whole.head.number}; newer ones are not in the backup"
