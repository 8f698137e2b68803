"""The alerts of the ledger: what was told, what is open, what waits. :mod:`perennial.alerts.outbox` holds the tables."""

from __future__ import annotations

from datetime import datetime

from perennial.alerts import outbox
from perennial.alerts.alert import Alert
from perennial.alerts.outbox import Outbox, OutboxEntry
from perennial.ledger.rows import TableFamily, now


class AlertTables(TableFamily):
    """The outbox of alerts, as those who record and resolve them use it."""

    @property
    def outbox(self) -> Outbox:
        """What those who send alerts work with."""
        return Outbox(self._database)

    def record_alert(self, alert: Alert, key: str | None = None) -> bool:
        """Put an alert into the outbox.

        Args:
            alert: what people are told.
            key: of the event; the same one is told once, until it is resolved. None: the alert's subject is told of once
                for as long as it is open, as befits what is found again at each look.

        Returns:
            Whether it was put there.
        """
        if key is None and alert.subject is None:
            raise ValueError(f"an alert without a key needs a subject: {alert.title}")
        with self._database.writing("outbox") as connection:
            if key is None and alert.subject is not None:
                if outbox.is_open(connection, alert.subject):
                    return False
                key = f"{alert.subject}/{now().isoformat()}"
            return outbox.record(connection, alert, str(key))

    def resolve(self, subject: str, cause: str) -> bool:
        """Notify everyone who was told about a subject that it has recovered; nothing happens if no alert of it is open.

        Args:
            subject: of the alerts, see :class:`perennial.alerts.alert.Alert`.
            cause: what made it well, for people.

        Returns:
            Whether there was anything to resolve.
        """
        with self._database.reading() as connection:
            if not outbox.is_open(connection, subject):
                return False
        with self._database.writing("outbox") as connection:
            return outbox.resolve(connection, subject, cause)

    def open_subjects(self, topic: str) -> list[str]:
        """The subjects below ``topic``, or it itself, of which an alert is open."""
        with self._database.reading() as connection:
            return outbox.open_subjects(connection, topic)

    def alerts(self, *, since: datetime | None = None) -> list[OutboxEntry]:
        """All alerts, oldest first, and what has become of each; with ``since``, older ones only if they wait or are open."""
        with self._database.reading() as connection:
            return outbox.entries(connection, since=since)
