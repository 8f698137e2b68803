"""A task's view of its run: the model, the interval and its parts, and which errors end the task without a retry.

In Airflow 3, a run that an asset or the API started has no logical date. So the interval comes from the form's days or the
partition key, never from a date of Airflow's.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from airflow.sdk import Connection, Context, get_current_context
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.log import mask_secret
from sqlalchemy import Engine, create_engine

from perennial.alerts.alert import clean, linking
from perennial.core import faults, logs, redaction
from perennial.core.errors import FINAL, FormError, PerennialError, SettingsError, SpecError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings, settings
from perennial.core.text import one_line
from perennial.deployment import Deployment
from perennial.orchestration.links import MODEL, NOTE, model_page
from perennial.spec.commit import RECORD, recorded_commit
from perennial.spec.folder import ModelFolder
from perennial.stages.run import StageRun

log = logging.getLogger(__name__)

#: The period that a run's partition key names by its first day.
Window = Literal["day", "week", "month", "never"]

#: The longest range of one run; a longer one is taken for a typing error.
LONGEST = timedelta(days=366 * 20)

#: Most parts of a range: enough for the workers of a large deployment, and few enough for the run's page in the UI.
MOST_PARTS = 64

#: Longest conf of a run, in characters of JSON; the fields of a form need a tenth of it.
LONGEST_CONF = 20_000


class FormRefused(AirflowFailException):
    """What a person asked for in a form cannot be done. The task fails, the person is told there, and nobody else is."""


@dataclass(frozen=True)
class Run:
    """What a task of a stage works with.

    Attributes:
        folder: the model's folder, as it is now.
        deployment: ledger, lake and registry.
        context: Airflow's context of the task.
        window: the period that the partition key names by its first day.
        part: key of the part of the run's days that this task works on; None for all days.
    """

    folder: ModelFolder
    deployment: Deployment
    context: Context
    window: Window
    part: str | None = None

    @property
    def model(self) -> str:
        return self.folder.spec.name

    @cached_property
    def stage(self) -> StageRun:
        """The argument of the stage's steps."""
        run_id = str(self.context["dag_run"].run_id)
        return StageRun(self.folder, self.deployment, run_id, f"{self.context['dag'].dag_id}/{run_id}")

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.context["params"])

    @property
    def actor(self) -> str:
        """Who triggered the run, as the run says."""
        return f"airflow:{self.context['dag_run'].triggering_user_name or 'unknown'}"

    @property
    def partition(self) -> str | None:
        """The run's partition key, if it has one."""
        return self.context["dag_run"].partition_key

    @property
    def interval(self) -> Interval:
        """The interval of the task: its part of the run's days, or all of them."""
        return self.whole if self.part is None else Interval.from_key(self.part)

    @property
    def parts(self) -> list[Interval]:
        """The run's days in parts of the length in its form, in order; a single day is one part."""
        return self.whole.parts(timedelta(days=self.params["days_per_part"]), MOST_PARTS)

    @cached_property
    def whole(self) -> Interval:
        """The days that the form names, or else the partition's day, week or month.

        Raises:
            FormError: neither is given, or the range is reversed or longer than :data:`LONGEST`.
        """
        start, end = self.params.get("start"), self.params.get("end")
        try:
            if start and end:
                interval = Interval.of(start, end)
            elif start or end:
                raise ValueError("give both start and end; end is the first day that is left out")
            elif self.partition:
                interval = self._partition_interval(self.partition)
            else:
                raise ValueError("this run has no partition: give start and end in the trigger form")
        except ValueError as error:
            raise FormError(f"{self.model}: no usable interval: {error}") from error
        if interval.length > LONGEST:
            raise FormError(f"{self.model}: {interval} is longer than {LONGEST.days:,} days; take it in parts")
        return interval

    def _partition_interval(self, key: str) -> Interval:
        day = Interval.day(key)
        match self.window:
            case "week":
                return Interval(day.start, day.start + timedelta(days=7))
            case "month":
                return Interval(day.start, (day.start + timedelta(days=32)).replace(day=1))
            case _:
                return day

    @cached_property
    def as_of(self) -> datetime:
        """The moment from which this run looks back: the form's day, the partition's end, or the end of the newest data.

        Raises:
            FormError: the form's day is not a valid day.
            SpecError: nothing is published yet.
        """
        try:
            if self.params.get("as_of"):
                return utc(self.params["as_of"])
        except ValueError as error:
            raise FormError(f"{self.model}: as_of: {error}") from error
        if self.partition:
            return self._partition_interval(self.partition).end
        published = self.deployment.ledger.publications(self.model, "features")
        if not published:
            raise SpecError(f"{self.model}: nothing is published yet; run {self.model}.ingest first, for a range of past days")
        return min(datetime.now(UTC), max(publication.interval.end for publication in published))

    def report(self, file: str | None) -> str | None:
        """The public address of a file in the folder of reports; None if Airflow has no public address."""
        return None if file is None else self.deployment.settings.report_url(Path(file))

    def link(self, key: str, address: str | None) -> None:
        """Show ``address`` on the task's page in the UI; ``key`` is one of :data:`perennial.orchestration.links.LINKS`."""
        if address:
            self.context["ti"].xcom_push(key=key, value=address)

    def note(self, told: str) -> None:
        """Say what came of the run, for the run's note in the UI; the last task that says something is shown."""
        note(self.context, told)


def note(context: Context, told: str) -> None:
    """As :meth:`Run.note`, for a task's context."""
    context["ti"].xcom_push(key=NOTE, value=clean(told))


@lru_cache(maxsize=1)
def deployment() -> Deployment:
    """The deployment of this process. From now on, Airflow masks its secrets in logs."""
    for secret in redaction.known():
        mask_secret(secret)
    return Deployment(settings())


@contextmanager
def stage_run(model: str, *, window: Window = "day", part: str | None = None) -> Iterator[Run]:
    """Open a task's run. Log lines have its model, interval and run. Errors that a retry cannot cure end the task at once.

    Args:
        model: the model's name.
        window: the period that the run's partition key names by its first day.
        part: key of the part of the run's days that the task works on; None for all days.
    """
    context = get_current_context()
    parts = deployment()
    dag_run, params = context["dag_run"], context["params"]
    days = f"{params['start']}--{params.get('end')}" if params.get("start") else params.get("as_of")
    with (
        logs.context(model=model, interval=part or dag_run.partition_key or days, run=dag_run.run_id),
        linking(task_links(parts.settings, context["ti"])),
    ):
        try:
            check_conf(dag_run.conf, context["dag"].params)
            folder = parts.model(model)
            if (recorded := recorded_commit(folder.path, folder.path.parent / RECORD)) is not None:
                log.info("the model's folder is that of commit %s", recorded[0])
            yield Run(folder, parts, context, window, part)
        except FormError as error:
            note(context, str(error))
            refusal = FormRefused if is_by_person(dag_run) else AirflowFailException
            raise refusal(f"{type(error).__name__}: {error}") from error
        except FINAL as error:
            note(context, str(error))
            raise AirflowFailException(f"{type(error).__name__}: {error}") from error
        except (PerennialError, AirflowException):
            raise
        except Exception as error:
            if (told := in_words(error, parts.settings)) is None:
                raise
            # Without what caused it, which the sentence quotes: people would read that first.
            raise AirflowException(told) from None


def is_by_person(dag_run: Any) -> bool:
    """Whether somebody has started a run by a form, or by the REST API."""
    return str(getattr(dag_run.run_type, "value", dag_run.run_type)) == "manual"


def in_words(error: Exception, settings: Settings) -> str | None:
    """What people are told if MLflow, a database or a disk failed a task, which is tried again; None if it was none of them."""
    from perennial.registry.server import unanswered

    if (said := unanswered(error, settings)) is not None:
        return said
    told = faults.in_words(error, {}, settings.state, again="clear the task if its tries are over")
    return None if told is None else f"{told} ({one_line(error)})"


def task_links(settings: Settings, task: Any) -> dict[str, str]:
    """Links to the task's page in the UI and to its model's page; empty if Airflow has no public address."""
    if settings.airflow_public_url is None:
        return {}
    page = f"{settings.airflow_public_url.rstrip('/')}/dags/{task.dag_id}/runs/{quote(task.run_id)}/tasks/{task.task_id}"
    found = {"Run": f"{page}/mapped/{task.map_index}" if task.map_index >= 0 else page}
    return found | ({MODEL: address} if (address := model_page(settings, task.dag_id)) else {})


def check_conf(conf: object, form: Collection[str]) -> None:
    """Refuse a run's conf if it has keys that are not fields of the DAG's form.

    Airflow checks the values of the form's fields, and accepts any other key.

    Args:
        conf: the conf that the run was triggered with.
        form: the names of the form's fields.

    Raises:
        FormError: conf is not a mapping, is too large, or has a key that is not a field.
    """
    fields = ", ".join(sorted(form)) or "none"
    if conf is not None and not isinstance(conf, Mapping):
        raise FormError(f"conf is a {type(conf).__name__}; it must be a JSON object with the fields of the form: {fields}")
    unknown = sorted(repr(key)[:60] for key in conf or () if key not in form)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise FormError(f"conf has {', '.join(unknown[:5])}{more}, which the form does not have; its fields are: {fields}")
    try:
        length = len(json.dumps(conf, default=str))
    except (ValueError, RecursionError):
        raise FormError("conf is nested too deeply; the form's fields are plain values") from None
    if length > LONGEST_CONF:
        raise FormError(f"conf has {length:,} characters; at most {LONGEST_CONF:,} are read")


def connect(name: str) -> Engine:
    """The database that a spec's ``connection`` names: an Airflow connection, or a variable that holds a SQLAlchemy URL.

    Raises:
        SettingsError: neither exists.
    """
    if "://" in (url := os.environ.get(name, "")):
        return create_engine(url, hide_parameters=True)
    try:
        connection = Connection.get(name)
        redaction.remember(connection.password)
        url = connection.get_uri()
    except Exception as error:
        raise SettingsError(f"connection {name}: no Airflow connection and no variable of that name holds a URL") from error
    scheme, _, rest = url.partition("://")
    drivers = {"postgres": "postgresql+psycopg2", "postgresql": "postgresql+psycopg2"}
    return create_engine(f"{drivers.get(scheme, scheme)}://{rest}", hide_parameters=True)
