"""The tasks of ``ingest`` and ``load``, from the sources to published features."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from perennial.orchestration.links import REPORT
from perennial.orchestration.runs import connect, stage_run
from perennial.stages import ingest
from perennial.stages.overdue import Follower


def check_task_id(table: str) -> str:
    """The id of the task that lands and checks ``table``."""
    return f"check_{table}"


@task(multiple_outputs=False)
def split_range(model: str) -> list[str]:
    """Cut the run's days into the parts that are loaded."""
    with stage_run(model) as run:
        for part in run.parts:
            ingest.settle_order(run.stage, part)
        return [part.key for part in run.parts]


@task(multiple_outputs=False)
def land_and_check(model: str, table: str, part: str | None = None) -> dict[str, Any]:
    """Read a table's rows of the interval and let Great Expectations judge them.

    The result is passed on before the task fails, so that ``publish_tables`` can report on all tables.
    """
    with stage_run(model, part=part) as run:
        result = ingest.check_table(run.stage, table, run.interval, connect=connect)
        run.link(REPORT, run.report(result.data_docs))
        if result.refused:
            run.context["ti"].xcom_push(key="return_value", value=result.to_json())
            raise AirflowFailException(f"{model}, {run.interval}, table {table} is refused: {'; '.join(result.reasons)}")
        return result.to_json()


@task(trigger_rule="all_done", multiple_outputs=False)
def publish_tables(model: str, checked: list[dict[str, Any] | None], part: str | None = None) -> dict[str, Any]:
    """Publish all tables of the interval in one step, or refuse the whole interval and say why."""
    from perennial.ingestion.checks import CheckResult

    with stage_run(model, part=part) as run:
        results = [CheckResult.from_json(result) for result in checked if result]
        published = ingest.publish_tables(run.stage, run.interval, results, whole=run.whole)
        return {"publication": published.tables.id, "rows": published.tables.rows, "late": published.late_rows}


@task(multiple_outputs=False)
def build_features(model: str, part: str | None = None, *, outlet_events: Any = None) -> dict[str, Any]:
    """Compute the interval's features from the published tables, publish them, and announce each of its days."""
    from perennial.orchestration import assets

    with stage_run(model, part=part) as run:
        publication = ingest.build_features(run.stage, run.interval)
        # The event is needed even if a training has rebuilt the features of these days meanwhile.
        event = outlet_events[assets.features(model)]
        event.extra = {
            "interval": run.interval.key,
            "rows": publication.rows,
            "snapshots": {name: str(snapshot) for name, snapshot in publication.snapshots.items()},
            "hashes": publication.hashes,
        }
        if run.params.get("announce") and run.partition is None:
            event.add_partitions([day.key for day in run.interval.days()])
        return {"publication": publication.id, "rows": publication.rows}


@task(multiple_outputs=False)
def announce_overdue(model: str, follower: Follower, *, outlet_events: Any = None) -> list[str]:
    """Start a stage for days and windows that no publication will start; skipped if there are none.

    Airflow records an event for each outlet of a task that succeeds. So a task has one outlet, and is skipped without work.
    """
    from perennial.orchestration import assets
    from perennial.stages.overdue import find_overdue

    with stage_run(model) as run:
        if run.partition is None:
            raise AirflowSkipException("a run for days that a person named settles no windows")
        overdue = find_overdue(run.stage, follower, run.interval, now=datetime.now(UTC))
        if not overdue:
            raise AirflowSkipException(f"nothing of {model}.{follower} is overdue")
        event = outlet_events[assets.due(model, follower)]
        event.extra = {"overdue": [interval.key for interval in overdue]}
        event.add_partitions([interval.start.strftime(assets.DAY) for interval in overdue])
        return [interval.key for interval in overdue]
