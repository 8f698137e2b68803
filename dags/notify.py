"""
# Notify: send the alerts that wait in the outbox

Every alert is first a row of the ledger, written with what caused it. Each minute this DAG sends what waits, to the Slack
channels and the addresses that the alert's model names in `model.yaml`, or else the environment (`PERENNIAL_ALERTS_…`),
through Airflow's connections. Failed messages are retried with longer and longer delays, and none is lost.
Many alerts at once become a digest. Recoveries are sent too. A channel that is down does not hold up the others.

There is one such DAG for all models, and none while nobody names a channel. `docs/alerts.md` says what each alert means.

## When it fails
- **failed is above zero**: a channel takes nothing. `perennial alerts` and the task's log say why, and the other channels
  are told as well. Mend the connection in Admin → Connections, then **trigger this DAG by hand**: that tries at once.
- A red run needs nothing: the next one sends what this one did not. If none runs, the watchdog sends what is overdue.
"""

from datetime import timedelta

from perennial.core.settings import settings
from perennial.orchestration.dags import common, models
from perennial.orchestration.notifiers import deliver_alerts

if settings().alerts_slack or settings().alerts_email or any(model.alerts.everybody for model in models()):
    with common(
        "perennial.notify",
        owner="perennial",
        description="Airflow sends the alerts that wait in the outbox",
        schedule="* * * * *",
        doc=__doc__,
        tags={"notify"},
        run_limit=timedelta(minutes=30),
        task_limit=timedelta(minutes=20),
    ):
        deliver_alerts()
