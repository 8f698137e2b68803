"""
# Notify: send the alerts that wait in the outbox

Every alert is first a row of the ledger, written with what caused it. Each five minutes this DAG sends what waits, to the
Slack webhook and the addresses that the alert's model names in `model.yaml`, through Airflow's connections. What cannot be
sent is tried again, less and less often, and is never lost; what has reached one channel is not sent to it twice.

There is one such DAG for all models, and none while no model names a channel.

## When it fails
- **failed is above zero**: the channel refused. The task's log names the error; check the connection in Admin → Connections.
- A red run needs nothing: the next one sends what this one did not.
"""

from datetime import timedelta

from perennial.orchestration.dags import common, models
from perennial.orchestration.notifiers import deliver_alerts

if any(model.alerts.slack or model.alerts.email for model in models()):
    with common(
        "perennial.notify",
        owner="perennial",
        description="Airflow sends the alerts that wait in the outbox",
        schedule="*/5 * * * *",
        doc=__doc__,
        tags={"notify"},
        run_limit=timedelta(minutes=30),
        task_limit=timedelta(minutes=20),
    ):
        deliver_alerts()
