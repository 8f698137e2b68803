"""
# Notify: send the alerts that wait in the outbox

Every alert is first a row of the ledger, written together with its cause. Each minute, this DAG sends the alerts that wait,
through Airflow's connections. They go to the Slack channels and mail addresses in the model's `model.yaml`; if it names none,
to those of the environment (`PERENNIAL_ALERTS_…`). Failed messages are retried with longer and longer delays, and none is
lost. Many alerts at the same time are sent as one digest. Recoveries are sent, too. A channel that is down does not delay the
others.

There is one such DAG for all models, and none if no channel is configured. `docs/alerts.md` explains each alert.

## When it fails
- **failed is above zero**: a channel refuses messages. `perennial alerts` and the task's log say why, and the other channels
  get an alert. Correct the connection in Admin → Connections, then **trigger this DAG by hand**: that tries at once.
- You need not clear a red run: the next one sends what it did not send. If no run starts, the watchdog sends overdue alerts.
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
