"""Sends overdue alerts in place of the DAG ``perennial.notify``: ``python -m perennial.orchestration.stand_in``.

The watchdog starts this as a separate process, so that the watchdog need not keep Airflow in its memory. The process finds only
the connections in its environment (``AIRFLOW_CONN_<ID>``). Channels with other connections are left to the DAG.
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
