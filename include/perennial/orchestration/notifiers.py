"""Sends the alerts that wait in the outbox, through Airflow's connections to Slack and to a mail server.

The DAG ``perennial.notify`` runs this every minute. The watchdog runs it when alerts are overdue. A process that is not a task
finds only the connections in its environment (``AIRFLOW_CONN_<ID>``).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import Connection, get_current_context, task
from airflow.sdk.exceptions import AirflowNotFoundException

from perennial.alerts.alert import EVERYBODY, Alert
from perennial.core.errors import NotDelivered
from perennial.core.private_parts import oauth2_token
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.orchestration.runs import deployment
from perennial.spec.folder import read_models
from perennial.spec.operation import AlertRoutes, Route

if TYPE_CHECKING:
    from perennial.alerts.channels import Channel, Mail
    from perennial.alerts.delivery import DeliveryResult

log = logging.getLogger(__name__)


#: The id of Airflow's connection to the mail server.
SMTP = "smtp_default"


@task(multiple_outputs=False)
def deliver_alerts() -> dict[str, int]:
    """Send the alerts that wait. Failed messages are retried later, and no alert is lost.

    A run that a person has triggered also retries channels whose delay after a failure has not ended.
    """
    at_once = get_current_context()["dag_run"].run_type == "manual"
    return asdict(deliver(deployment(), at_once=at_once))


def deliver(
    parts: Deployment,
    *,
    overdue_by: timedelta = timedelta(),
    at_once: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    deadline: timedelta | None = None,
    pause: Callable[[float], Awaitable[None]] | None = None,
) -> DeliveryResult:
    """Send the alerts that wait. If there are none, it takes one short query.

    Args:
        parts: the deployment.
        overdue_by: send only what has waited for this long, and skip channels whose connection this process cannot find; a
            process that replaces the DAG sets this.
        at_once: also use channels whose delay after a failure has not ended.
        clock: returns the current time.
        deadline: longest time for one message.
        pause: waits between two messages.

    Returns:
        What was delivered, and what failed.
    """
    from perennial.alerts import delivery

    outbox = parts.ledger.outbox
    if not outbox.backlog().count:
        return delivery.DeliveryResult()
    routing = Routing(parts.settings)
    given: dict[str, Any] = {"deadline": deadline, "pause": pause}
    return delivery.deliver(
        outbox,
        delivery.Addresses(routing.channels_of, lambda: routing.named),
        open_channel,
        clock=clock,
        overdue_by=overdue_by,
        at_once=at_once,
        **{name: value for name, value in given.items() if value is not None},
    )


class Routing:
    """The channels of alerts: by the routes in ``model.yaml``, and by the environment for alerts that concern no single model.

    Args:
        settings: the deployment's settings. Model folders are read when they are first needed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def channels_of(self, alert: Alert) -> Collection[str] | None:
        """The channels of an alert; None if they are unknown because its model's folder is broken.

        Alerts of a model that names no channel, or that is gone, go to the environment's channels. So do alerts that concern no
        single model; if the environment names none, they go to the channels of all models.
        """
        if alert.model == EVERYBODY:
            routes = self._of_environment or [route for named in self._of_models.values() for route in named.everybody]
        elif alert.model in self._broken:
            return {channel for route in self._of_environment for channel in route.channels} or None
        else:
            named = self._of_models.get(alert.model)
            routes = (named.everybody if named is not None else []) or self._of_environment
        return {channel for route in routes if route.hears_of(alert) for channel in route.channels}

    @property
    def named(self) -> Collection[str] | None:
        """Every channel that a model or the environment names; None if a folder is broken."""
        if self._broken:
            return None
        routes = [*self._of_environment, *(route for named in self._of_models.values() for route in named.everybody)]
        return {channel for route in routes for channel in route.channels}

    @cached_property
    def _of_environment(self) -> list[Route]:
        given = self._settings
        email = [address.strip() for address in given.alerts_email.split(",")] if given.alerts_email else []
        route = Route(slack=given.alerts_slack, channel=given.alerts_channel if given.alerts_slack else None, email=email)
        return [route] if route.channels else []

    @property
    def _of_models(self) -> dict[str, AlertRoutes]:
        return self._models[0]

    @property
    def _broken(self) -> set[str]:
        return self._models[1]

    @cached_property
    def _models(self) -> tuple[dict[str, AlertRoutes], set[str]]:
        sound, broken = read_models(self._settings.models)
        return {name: folder.spec.alerts for name, folder in sound.items()}, set(broken)


def open_channel(name: str) -> Channel:
    """Open a channel by its connection in Airflow.

    Args:
        name: the channel's name, as in :attr:`perennial.spec.operation.Route.channels`.

    Raises:
        NotDelivered: the channel is of an unknown kind, there is no such connection, it has another type, or it cannot be read
            now.
    """
    kind, _, rest = name.partition(":")
    if not rest or kind not in ("email", "slack"):
        raise NotDelivered(
            f"the channel {name} is unknown: a channel is slack:CONNECTION, slack:CONNECTION:#CHANNEL or email:ADDRESS",
            mend=True,
        )
    if kind == "email":
        return _mail(rest)
    connection, _, channel = rest.partition(":")
    return _slack(connection, channel)


def _slack(connection_id: str, channel: str) -> Channel:
    from airflow.providers.slack.hooks.slack import SlackHook
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    from perennial.alerts.channels import SlackApi, SlackWebhook

    found = _connection(connection_id)
    try:
        if found.conn_type == "slackwebhook":
            if channel:
                log.warning("connection %s is a webhook: it posts to its own channel, not to %s", connection_id, channel)
            webhook = SlackWebhookHook(slack_webhook_conn_id=connection_id).client
            return SlackWebhook(webhook.url, proxy=webhook.proxy)
        if found.conn_type == "slack":
            if not channel:
                raise NotDelivered(f"connection {connection_id} is for the Slack API: name a channel beside it", mend=True)
            api = SlackHook(slack_conn_id=connection_id).client
            return SlackApi(str(api.token), channel, base_url=api.base_url, proxy=api.proxy)
    except NotDelivered:
        raise
    except Exception as error:  # hooks raise AirflowException and others; their messages may hold secrets
        raise NotDelivered(f"connection {connection_id} cannot be used for Slack: {type(error).__name__}", mend=True) from error
    raise NotDelivered(f"connection {connection_id} has the type {found.conn_type}; use slackwebhook or slack", mend=True)


def _mail(address: str) -> Mail:
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    from perennial.alerts.channels import Mail

    hook = SmtpHook(smtp_conn_id=SMTP)
    hook.smtp_connection = found = _connection(SMTP)
    if not found.host or not hook.from_email:
        raise NotDelivered(f"connection {SMTP} lacks {'from_email in its extra' if found.host else 'a host'}", mend=True)
    try:
        token = oauth2_token(hook) if hook.auth_type == "oauth2" else None
    except Exception as error:
        raise NotDelivered(f"connection {SMTP}: its OAuth 2 token could not be fetched: {type(error).__name__}") from error
    return Mail(
        to=address,
        sender=hook.from_email,
        host=hook.host,
        port=hook.port or None,
        security="tls" if hook.use_ssl else "starttls" if hook.smtp_starttls else "none",
        user=hook.smtp_user or None,
        password=hook.smtp_password or None,
        token=token,
        verify=hook.ssl_context != "none",
    )


def _connection(connection_id: str) -> Connection:
    try:
        found: Connection = Connection.get(connection_id)
        return found
    except AirflowNotFoundException as error:
        raise NotDelivered(f"there is no Airflow connection {connection_id}", mend=True) from error
    except Exception as error:  # a secrets backend may raise anything; the message may hold secrets
        raise NotDelivered(f"Airflow connection {connection_id} cannot be read: {type(error).__name__}") from error
