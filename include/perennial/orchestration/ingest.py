"""The tasks of ``ingest`` and ``load``: an interval, or a range of them in parts, from the sources to published features."""

from __future__ import annotations

from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowFailException

from perennial.orchestration.links import REPORT
from perennial.orchestration.runs import connect, stage_run


def check_task_id(table: str) -> str:
    """The id of the task that lands and checks ``table``."""
    return f"check_{table}"


@task(multiple_outputs=False)
def split_range(model: str) -> list[str]:
    """The parts that the run's days are loaded in."""
    with stage_run(model) as run:
        for part in run.parts:
            # The order of this run among others of the same days is settled before the first row of any is read.
            run.deployment.ledger.next_order(model, "tables", part, run.run_id)
        return [part.key for part in run.parts]


@task(multiple_outputs=False)
def land_and_check(model: str, table: str, part: str | None = None) -> dict[str, Any]:
    """Read a table's rows of the interval and let Great Expectations judge them.

    The result is handed on before the task fails, so that ``publish_tables`` can tell of all tables at once.
    """
    from perennial.ingestion.publish import land_and_check

    with stage_run(model, part=part) as run:
        ledger, settings = run.deployment.ledger, run.deployment.settings
        # The order of this run among others of the interval is settled before the first row is read.
        ledger.next_order(model, "tables", run.interval, run.run_id)
        result = land_and_check(
            run.folder, ledger, settings, table, run.interval, run.staging, connect=connect, run_id=run.run_id
        )
        run.link(REPORT, run.report(result.data_docs))
        if result.refused:
            run.context["ti"].xcom_push(key="return_value", value=result.to_json())
            raise AirflowFailException(f"{model}, {run.interval}, table {table} is refused: {'; '.join(result.reasons)}")
        return result.to_json()


@task(trigger_rule="all_done", multiple_outputs=False)
def publish_tables(model: str, checked: list[dict[str, Any] | None], part: str | None = None) -> dict[str, Any]:
    """Publish all tables of the interval as one, or refuse the interval whole and say why.

    A table without event time is replaced whole, so that of a range's parts the one that ends last publishes it.
    """
    from perennial.ingestion.checks import CheckResult
    from perennial.ingestion.publish import publish_interval

    with stage_run(model, part=part) as run:
        tables = run.folder.spec.tables
        if run.interval.end < run.whole.end:
            tables = {name: table for name, table in tables.items() if table.event_time}
        results = [CheckResult.from_json(result) for result in checked if result and result["table"] in tables]
        publication = publish_interval(
            run.folder, run.deployment.lake, run.deployment.ledger, run.interval, results, tables=tables, run_id=run.run_id
        )
        return {"publication": publication.id, "rows": publication.rows}


@task(multiple_outputs=False)
def build_features(model: str, part: str | None = None, *, outlet_events: Any = None) -> dict[str, Any]:
    """Compute the interval's features from the published tables, publish them, and announce each of its days."""
    from perennial.core.errors import Superseded
    from perennial.features.publish import ensure_features, publish_features
    from perennial.orchestration import assets

    with stage_run(model, part=part) as run:
        lake, ledger = run.deployment.lake, run.deployment.ledger
        order = ledger.next_order(model, "features", run.interval, run.run_id)
        try:
            publication = publish_features(run.folder, lake, ledger, run.interval, order=order, run_id=run.run_id)
        except Superseded:
            # A training has built these days anew meanwhile; they must be announced all the same.
            ensure_features(run.folder, lake, ledger, run.interval, run_id=run.run_id)
            publication = ledger.publications(model, "features", run.interval)[-1]
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
