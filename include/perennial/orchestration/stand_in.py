"""Sends alerts in place of the DAG ``perennial.notify`` when that is overdue: ``python -m perennial.orchestration.stand_in``.

The watchdog starts it as a process of its own, since Airflow's connections take Airflow's memory. Connections are found in
the environment alone (``AIRFLOW_CONN_<ID>``); channels of others are left to the DAG.
"""

from __future__ import annotations

from perennial.core import logs
from perennial.orchestration.notifiers import deliver
from perennial.orchestration.runs import deployment
from perennial.watchdog.rules import WAITING

log = logs.get(__name__)


def main() -> None:
    """Send what has waited too long."""
    log.warning("alerts are overdue: %s", deliver(deployment(), overdue_by=WAITING))


if __name__ == "__main__":
    main()
