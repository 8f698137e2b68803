"""The tasks of ``ingest`` and ``load``, from the sources to published features.

A publication is announced to the stages that follow it. Each announced day is an event of an asset, oldest first: Airflow makes
the runs that follow in the order of these events, and starts them in the order in which it has made them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from perennial.core.private_parts import add_partitions_in_order, withhold_event
from perennial.orchestration.links import REPORT
from perennial.orchestration.runs import MOST_PARTS, Run, connect, stage_run
from perennial.stages import ingest
from perennial.stages.overdue import Follower

#: Days that are announced in one request to Airflow, which gives up after five seconds: an event takes some 7 ms on 2 cores.
ANNOUNCED_AT_ONCE = timedelta(days=91)


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
        rows = {name: count for name, count in published.tables.rows.items() if count or name in run.folder.spec.tables}
        run.note(f"{run.interval.in_words}: {', '.join(f'{name} {count:,}' for name, count in rows.items()) or 'no'} rows")
        return {"publication": published.tables.id, "rows": published.tables.rows, "late": published.late_rows}


@task(multiple_outputs=False)
def build_features(model: str, part: str | None = None, *, outlet_events: Any = None) -> dict[str, Any]:
    """Compute the interval's features from the published tables, and publish them. Announce its days, unless it is a part."""
    with stage_run(model, part=part) as run:
        publication = ingest.build_features(run.stage, run.interval)
        if part is None:
            # This is needed even if a training has rebuilt the features of these days meanwhile.
            _announce(
                run,
                outlet_events,
                rows=publication.rows,
                snapshots={name: str(snapshot) for name, snapshot in publication.snapshots.items()},
                hashes=publication.hashes,
            )
        return {"publication": publication.id, "rows": publication.rows}


@task(multiple_outputs=False)
def plan_announcements(model: str) -> list[str]:
    """Cut the run's days into stretches, each of which is announced at once; none if the form asks for no announcement."""
    with stage_run(model) as run:
        asked = run.params["announce_scoring"] or run.params["announce_training"]
        return [stretch.key for stretch in run.whole.parts(ANNOUNCED_AT_ONCE, MOST_PARTS)] if asked else []


@task(multiple_outputs=False, max_active_tis_per_dagrun=1)
def announce_days(model: str, part: str, *, outlet_events: Any = None) -> None:
    """Announce a stretch of days, oldest first, to what the form names, once all earlier stretches are announced."""
    with stage_run(model, part=part) as run:
        # Airflow begins with the first stretch. But while a failed one waits for its next try, it would go on with the others.
        task = run.context["ti"]
        if place := task.map_index or 0:
            states = task.get_task_states(task.dag_id, map_index=place - 1, task_ids=[task.task_id], run_ids=[task.run_id])
            if set(states.get(task.run_id, {}).values()) != {"success"}:
                raise AirflowException(f"{model}: the days before {run.interval} are not announced yet, and they come first")
        _announce(run, outlet_events)


def _announce(run: Run, outlet_events: Any, **facts: Any) -> None:
    """Start what the form names for each of the task's days, with the facts about their publication."""
    from perennial.orchestration import assets

    for asset, announced in (
        (assets.features(run.model), run.params["announce_scoring"]),
        (assets.trainable(run.model), run.params["announce_training"]),
    ):
        if not announced:
            withhold_event(run.context["ti"], asset)
            continue
        event = outlet_events[asset]
        event.extra = {"interval": run.interval.key, "monitoring": run.params["announce_monitoring"], **facts}
        # An event of a run with a partition has that partition.
        if run.partition is None:
            add_partitions_in_order(event, [day.key for day in run.interval.days()])


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
        add_partitions_in_order(event, [interval.start.strftime(assets.DAY) for interval in overdue])
        return [interval.key for interval in overdue]
