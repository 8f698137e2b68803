"""The ledger's alerts: recording, resolving and listing them. :mod:`perennial.alerts.outbox` holds the tables."""

from __future__ import annotations

from datetime import datetime

from perennial.alerts import outbox
from perennial.alerts.alert import Alert
from perennial.alerts.outbox import Outbox, OutboxEntry
from perennial.ledger.rows import TableFamily, now


class AlertTables(TableFamily):
    """The outbox, for code that records and resolves alerts."""

    @property
    def outbox(self) -> Outbox:
        """The outbox, for senders of alerts."""
        return Outbox(self._database)

    def record_alert(self, alert: Alert, key: str | None = None) -> bool:
        """Put an alert into the outbox.

        Args:
            alert: the message to people.
            key: the key of the event. An alert with the same key is recorded once, until it is resolved. None: nothing is
                recorded while an alert with the same subject is open. Use None for a check that finds the same problem again
                each time.

        Returns:
            Whether the alert was recorded.

        Raises:
            ValueError: the alert has neither a key nor a subject.
        """
        if key is None and alert.subject is None:
            raise ValueError(f"an alert without a key needs a subject: {alert.title}")
        with self._database.writing("outbox") as connection:
            if key is None and alert.subject is not None:
                if outbox.is_open(connection, alert.subject):
                    return False
                key = f"{alert.subject}/{now().isoformat()}"
            return outbox.record(connection, alert, str(key))

    def keep_alert(self, alert: Alert, key: str) -> bool:
        """Put an alert into the outbox that goes to nobody, since whom it concerns was told elsewhere.

        Args:
            alert: the message.
            key: the key of the event; nothing else is recorded about it.

        Returns:
            Whether the alert was recorded.
        """
        with self._database.writing("outbox") as connection:
            return outbox.keep(connection, alert, key)

    def resolve(self, subject: str, cause: str) -> bool:
        """Notify everyone who was told about a subject that it has recovered. Without an open alert, nothing happens.

        Args:
            subject: of the alerts, see :class:`perennial.alerts.alert.Alert`.
            cause: for people, why it recovered.

        Returns:
            Whether an alert was open.
        """
        with self._database.reading() as connection:
            if not outbox.is_open(connection, subject):
                return False
        with self._database.writing("outbox") as connection:
            return outbox.resolve(connection, subject, cause)

    def open_subjects(self, topic: str) -> list[str]:
        """The subjects with an open alert: those below ``topic``, and ``topic`` itself."""
        with self._database.reading() as connection:
            return outbox.open_subjects(connection, topic)

    def opened(self, topic: str) -> list[OutboxEntry]:
        """The open alerts with a subject below ``topic``, oldest first."""
        with self._database.reading() as connection:
            return outbox.opened(connection, topic)

    def alerts(self, *, since: datetime | None = None) -> list[OutboxEntry]:
        """All alerts and their deliveries, oldest first. With ``since``, older alerts only if they wait or are open."""
        with self._database.reading() as connection:
            return outbox.entries(connection, since=since)
