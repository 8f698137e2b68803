"""Sends overdue alerts in place of the DAG ``perennial.notify``: ``python -m perennial.orchestration.stand_in``.

The watchdog starts it as a separate process, so that it need not keep Airflow in its memory. It finds connections in its
environment alone (``AIRFLOW_CONN_<ID>``), and leaves channels with other connections to the DAG.
"""

from __future__ import annotations

import logging

from perennial.orchestration.notifiers import deliver
from perennial.orchestration.runs import deployment
from perennial.watchdog.rules import WAITING

log = logging.getLogger(__name__)


def main() -> None:
    """Send the alerts that have waited too long."""
    log.warning("overdue alerts were sent: %s", deliver(deployment(), overdue_by=WAITING))


if __name__ == "__main__":
    main()
