"""``schedules``, ``alerts``, ``watch``, ``retention`` and ``card`` in ``model.yaml``."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from perennial.alerts.alert import Alert, Kind, Severity
from perennial.spec.types import Cron, Duration, Section, Text


class Schedules(Section):
    """When the stages run, in UTC.

    Attributes:
        ingest: when the day before is ingested.
        train: calendar retraining; ``never`` leaves it to monitoring and people.
        monitor: over which window drift is judged, once all its days are scored.
        maintain: when tables are cleaned up.
    """

    ingest: Cron = "0 2 * * *"
    train: Literal["week", "month", "never"] = "week"
    monitor: Literal["day", "week"] = "week"
    maintain: Cron = "30 4 * * *"

    @property
    def window(self) -> timedelta:
        """Length of a monitoring window."""
        return timedelta(days=7 if self.monitor == "week" else 1)


class Route(Section):
    """Who hears of some alerts.

    Attributes:
        slack: Airflow connection id, of a Slack incoming webhook or of the Slack API.
        channel: where a Slack API connection posts, ``#name`` or the channel's id. A webhook has a channel of its own.
        email: addresses, sent to through the Airflow connection ``smtp_default``.
        severity: the least severity that is sent.
        kinds: the kinds of alerts that are sent (``docs/alerts.md``); none: all.
    """

    slack: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] | None = None
    channel: Annotated[str, Field(pattern=r"^#?[^\s#:<>|&]{1,80}$")] | None = None
    email: list[Annotated[str, Field(pattern=r"^[^@\s<>,;]+@[^@\s<>,;]+$")]] = []
    severity: Severity = "warning"
    kinds: list[Kind] = []

    @model_validator(mode="after")
    def _channel_of_slack(self) -> Self:
        if self.channel is not None and self.slack is None:
            raise ValueError("channel is one of Slack: name its connection under slack")
        return self

    @property
    def channels(self) -> list[str]:
        """By name: ``slack:connection``, ``slack:connection:#channel``, ``email:address``."""
        slack = [f"slack:{self.slack}" + (f":{self.channel}" if self.channel else "")] if self.slack else []
        return [*slack, *(f"email:{address}" for address in self.email)]

    def hears_of(self, alert: Alert) -> bool:
        """Whether the alert is sent to the channels."""
        return (self.severity == "warning" or alert.severity == "critical") and (not self.kinds or alert.kind in self.kinds)


class AlertRoutes(Route):
    """Who hears of what.

    Attributes:
        routes: others who hear of some alerts, such as who is on call, of what is critical.
    """

    routes: list[Route] = []

    @property
    def everybody(self) -> list[Route]:
        """All who are named."""
        return [route for route in (self, *self.routes) if route.channels]


class WatchLimits(Section):
    """What the watchdog takes as late, stuck or stale.

    Attributes:
        late: longest time after a tick of ``schedules.ingest`` until its day is published.
        run: longest time a run may queue or run; what a person is asked for does not count.
        champion: longest time between the end of what the champion learned from and the newest features.
        labels: longest time after a monitoring window until labels for the share ``gates.label_coverage`` are known.
    """

    late: Duration = timedelta(hours=6)
    run: Duration = timedelta(hours=6)
    champion: Duration = timedelta(weeks=26)
    labels: Duration = timedelta(days=7)


class Retention(Section):
    """How long things are kept.

    Attributes:
        snapshots: Iceberg snapshots that no kept version pins.
        quarantine: quarantined rows.
        reports: drift reports and Data Docs.
        versions: how many of the newest registered versions keep their training snapshots pinned.
        tables: rows of raw tables, by their event time; None: for ever. What kept versions learned from is kept all the same.
        features: the same of features.
        predictions: the same of predictions, in the lake, in ``<model>_predictions``, and of versions in the shadow.
    """

    snapshots: Duration = timedelta(days=30)
    quarantine: Duration = timedelta(days=365)
    reports: Duration = timedelta(days=365)
    versions: Annotated[int, Field(ge=2)] = 20
    tables: Duration | None = None
    features: Duration | None = None
    predictions: Duration | None = None


class Card(Section):
    """What a model card says that only people know (Mitchell et al.: Model Cards for Model Reporting. FAccT 2019).

    Attributes:
        intended_use: who is to use the predictions, and what for.
        not_for: uses that the model was not made for.
        limits: what is known to be weak or missing, beside what Perennial finds by itself.
    """

    intended_use: Text | None = None
    not_for: list[Text] = []
    limits: list[Text] = []
