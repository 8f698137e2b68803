"""Send what lies in the outbox, through Airflow's own connections to Slack and to a mail server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import escape

from airflow.sdk import task

from perennial import logs
from perennial.alerts import Alert
from perennial.orchestration.runs import deployment
from perennial.spec import Alerts

log = logs.get(__name__)

#: The wait after the first failed try; each further one doubles it.
FIRST_WAIT = timedelta(minutes=5)
LONGEST_WAIT = timedelta(days=1)


@task(multiple_outputs=False)
def deliver_alerts() -> dict[str, int]:
    """Send pending alerts to the channels of their models; what fails is tried again later, and nothing is lost."""
    from perennial.spec import read_models

    ledger, now = deployment().ledger, datetime.now(UTC)
    sound, _ = read_models(deployment().settings.models)
    outcome = {"delivered": 0, "failed": 0, "unaddressed": 0}
    for entry in ledger.pending_alerts(now, hold=timedelta(minutes=10)):
        channels = _channels(sound[entry.alert.model].spec.alerts, entry.alert) if entry.alert.model in sound else {}
        reached: list[str] = []
        try:
            for channel, send in channels.items():
                if channel not in entry.delivered:
                    send()
                    reached.append(channel)
        except Exception as error:
            log.warning("alert %s could not be sent: %s", entry.id, type(error).__name__)
            wait = min(FIRST_WAIT * 2**entry.attempts, LONGEST_WAIT)
            ledger.mark_failed(entry.id, type(error).__name__, now + wait, delivered=reached)
            outcome["failed"] += 1
        else:
            ledger.mark_delivered(entry.id, *reached)
            outcome["delivered" if channels else "unaddressed"] += 1
    return outcome


def _channels(alerts: Alerts, alert: Alert) -> dict[str, Callable[[], None]]:
    """How to send ``alert`` to each channel its model names; none if it is below the severity the model asks for."""
    if alerts.severity == "critical" and alert.severity != "critical":
        return {}
    links = "".join(f"\n{name}: {address}" for name, address in alert.links.items())
    message = alert.text + links
    channels: dict[str, Callable[[], None]] = {}
    if (connection := alerts.slack) is not None:

        def slack() -> None:
            from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

            SlackWebhookHook(slack_webhook_conn_id=connection, timeout=30).send_text(f"*{alert.title}*\n{message}")

        channels[f"slack:{connection}"] = slack
    if alerts.email:

        def email() -> None:
            from airflow.providers.smtp.hooks.smtp import SmtpHook

            with SmtpHook(smtp_conn_id="smtp_default") as hook:
                hook.send_email_smtp(to=alerts.email, subject=alert.title, html_content=f"<pre>{escape(message)}</pre>")

        channels["email"] = email
    return channels
