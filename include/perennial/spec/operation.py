"""``schedules``, ``online``, ``alerts``, ``watch``, ``retention`` and ``card`` in ``model.yaml``."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from perennial.alerts.alert import Alert, Kind, Severity
from perennial.core.intervals import Interval
from perennial.spec.sections import Found, Section, check
from perennial.spec.types import (
    CanaryShare,
    ClosedDay,
    ConnectionId,
    Cron,
    Duration,
    Identifier,
    PositiveShare,
    Share,
    Text,
    matches_day,
)


class Schedules(Section):
    """When the stages run, in UTC.

    Attributes:
        ingest: when the previous day is ingested: five cron fields, in UTC.
        catch_up: after a pause, the missed days are ingested, oldest first. Days that were due longer ago than this are not;
            the watchdog names them.
        closed: days without data, such as holidays: a day (``2026-12-25``), a day of each year (``12-25``) or a weekday
            (``sunday``). A closed day is published empty if nothing comes, and is not missing from its week. It is a day in
            UTC; for the files of a source with ``time_zone`` it is the local day.
        train: train when features of all days of a week (from Monday) or month are published. ``never``: only monitoring and
            people start trainings.
        refresh: fit the champion's recipe on the newest rows, too, when features of all days of a week (from Monday) or month
            are published. It requires ``training.refit``. ``never``: a champion stays as it is until it is replaced.
        monitor: the window over which drift is judged, when all its days are scored.
        grace: how long after the end of a day, week or month its missing days are waited for. Then training and monitoring
            run on the days that are there, and say which are missing.
        min_days: how many of seven days that requires. With fewer, nothing is trained, and the verdict is ``unknown``. A
            month requires the same share of its days.
        maintain: when old data is removed and tables are compacted: five cron fields, in UTC.
    """

    ingest: Cron = "0 2 * * *"
    catch_up: Duration = timedelta(days=30)
    closed: list[ClosedDay] = []
    train: Literal["week", "month", "never"] = "week"
    refresh: Literal["week", "month", "never"] = "week"
    monitor: Literal["day", "week"] = "week"
    grace: Duration = timedelta(days=2)
    min_days: Annotated[int, Field(ge=1, le=7)] = 5
    maintain: Cron = "30 4 * * *"

    @check
    def _waits_a_day(self) -> Found:
        if self.grace < timedelta(days=1):
            yield ("grace",), "must be a day or longer: the last day of a week is ingested on the day after it"

    def days_needed(self, window: Interval) -> int:
        """How many days of a window must be there for training and monitoring."""
        return math.ceil(len(window.touched_days()) * self.min_days / 7)

    def is_closed(self, period: Interval) -> bool:
        """Whether each day that a period touches is closed."""
        return all(any(matches_day(closed, day.start.date()) for closed in self.closed) for day in period.touched_days())

    @property
    def window(self) -> timedelta:
        """Length of a monitoring window."""
        return timedelta(days=7 if self.monitor == "week" else 1)


def _missing(value: object) -> object:
    # `missing: null` is YAML's null.
    return "null" if value is None else value


def _share(value: object) -> object:
    # `10%`
    is_percent = isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?%", value)
    return float(str(value).rstrip("%")) / 100 if is_percent else value


class Online(Section):
    """What can be asked online by key: a row of features that is computed beforehand for each entity.

    Attributes:
        refresh: how often the rows are computed again. None: after each publication of features. What is published decides
            what the rows hold, so more often is of use only to features that change with the time since an event.
        horizon: rows are also computed for published entities whose event time comes within this time from now. None: for
            none. The rows of the newest published day are there in any case.
        missing: what is answered for an entity without a row, or with one older than ``max_age``. ``refuse``: an error.
            ``null``: a prediction from features that are all missing. ``last``: a prediction from the row, however old; an
            error if there is none.
        push: tables of which clients may push rows. Their day's ingest reads them with the source. A table needs an event time,
            and ``duplicates: correct``.
        max_age: how old a row may be. Its age counts from the publication of the newest rows of the tables that it is made of.
        record: whether requests and answers are recorded and published as the dataset ``requests``; or the share of requests
            that is, such as ``10%``.
        canary: share of the keys, such as ``5%``, that the previous champion answers while it is in the shadow of the present
            one; at most half. It ends as soon as a comparison finds it worse. None: the champion answers all.
        parity: smallest share of recorded rows whose served features must equal those that the published tables give for the
            same moment. Below it there is an alert, and no candidate with these features becomes champion.
    """

    refresh: Duration | None = None
    horizon: Duration | None = timedelta(days=1)
    missing: Annotated[
        Literal["refuse", "null", "last"],
        BeforeValidator(_missing),
        WithJsonSchema({"enum": ["refuse", "null", "last", None]}),
    ] = "refuse"
    max_age: Duration = timedelta(days=2)
    push: list[Identifier] = []
    record: Annotated[
        bool | PositiveShare,
        BeforeValidator(_share),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "boolean"},
                    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]+)?%$"},
                ]
            }
        ),
    ] = True
    canary: Annotated[
        CanaryShare | None,
        BeforeValidator(_share),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
                    {"type": "string", "pattern": r"^[0-9]{1,2}(\.[0-9]+)?%$"},
                    {"type": "null"},
                ]
            }
        ),
    ] = None
    parity: Share = 0.99

    @property
    def recorded(self) -> float:
        """The share of requests that is recorded, 0 to 1."""
        return float(self.record)

    @check
    def _is_recorded(self) -> Found:
        if self.canary is not None and not self.record:
            yield ("canary",), "requires that requests are recorded; set record to true, or to a share of them"

    @check
    def _is_refreshed_in_time(self) -> Found:
        if self.refresh is not None and self.refresh >= self.max_age:
            yield ("refresh",), "must be shorter than max_age; otherwise rows are too old before they are computed again"


class Route(Section):
    """Who receives some of the alerts.

    Attributes:
        slack: Airflow connection id of a Slack incoming webhook or of the Slack API.
        channel: where a Slack API connection posts: ``#name`` or the channel's id. A webhook has a channel of its own.
        email: addresses. Messages are sent through the Airflow connection ``smtp_default``.
        severity: the lowest severity that is sent.
        kinds: the kinds of alerts that are sent (``docs/alerts.md``). Empty: all.
    """

    slack: ConnectionId | None = None
    channel: Annotated[str, Field(pattern=r"^#?[^\s#:<>|&]{1,80}$")] | None = None
    email: list[Annotated[str, Field(pattern=r"^[^@\s<>,;]+@[^@\s<>,;]+$")]] = []
    severity: Severity = "warning"
    kinds: list[Kind] = []

    @check
    def _channel_has_a_connection(self) -> Found:
        if self.channel is not None and self.slack is None:
            yield ("channel",), "requires a Slack connection; name it under slack"

    @property
    def channels(self) -> list[str]:
        """The names of the channels: ``slack:connection``, ``slack:connection:#channel``, ``email:address``."""
        slack = [f"slack:{self.slack}" + (f":{self.channel}" if self.channel else "")] if self.slack else []
        return [*slack, *(f"email:{address}" for address in self.email)]

    def hears_of(self, alert: Alert) -> bool:
        """Whether the alert is sent to the channels."""
        return (self.severity == "warning" or alert.severity == "critical") and (not self.kinds or alert.kind in self.kinds)


class AlertRoutes(Route):
    """Who receives which alerts.

    Attributes:
        routes: more receivers, each of some of the alerts, such as the people on call for critical ones.
    """

    routes: list[Route] = []

    @property
    def everybody(self) -> list[Route]:
        """Every route that has a channel, this one included."""
        return [route for route in (self, *self.routes) if route.channels]


class WatchLimits(Section):
    """When the watchdog calls something late, stuck or stale.

    Attributes:
        late: longest time from a tick of ``schedules.ingest`` until its day is published.
        run: longest time that a run may be queued or may run. A run that waits for a person is left out.
        champion: longest time between the end of what the champion learned from and the newest features.
        labels: longest time from the end of a monitoring window until the share ``gates.label_coverage`` of its labels is
            known, beyond the time that labels take as a rule (``label.delay``).
    """

    late: Duration = timedelta(hours=6)
    run: Duration = timedelta(hours=6)
    champion: Duration = timedelta(weeks=26)
    labels: Duration = timedelta(days=7)


class Retention(Section):
    """How long things are kept.

    Attributes:
        snapshots: how long to keep Iceberg snapshots that no kept version pins.
        quarantine: how long to keep quarantined rows, by their event time.
        reports: how long to keep drift reports and Data Docs.
        versions: how many of the newest registered versions keep their training snapshots pinned. The champion always does.
        tables: how long to keep rows of raw tables, by their event time. None: always. What kept versions learned from stays.
        features: how long to keep features, by the event time of their entity. None: always.
        predictions: how long to keep predictions, in the lake and in ``<model>_predictions``, and those of versions in the
            shadow. None: always.
        requests: how long to keep requests that were asked online, by the time of asking. None: always.
    """

    snapshots: Duration = timedelta(days=30)
    quarantine: Duration = timedelta(days=365)
    reports: Duration = timedelta(days=365)
    versions: Annotated[int, Field(ge=2)] = 20
    tables: Duration | None = None
    features: Duration | None = None
    predictions: Duration | None = None
    requests: Duration | None = timedelta(days=90)


class Card(Section):
    """What only people know for a model card (Mitchell et al.: Model Cards for Model Reporting. FAccT 2019).

    Attributes:
        intended_use: who should use the predictions, and for what.
        not_for: uses for which the model was not made.
        limits: known weaknesses, in addition to those that Perennial finds automatically.
    """

    intended_use: Text | None = None
    not_for: list[Text] = []
    limits: list[Text] = []
