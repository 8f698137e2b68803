"""Airflow's own dag-processor, scheduler and REST API on a fresh database, a step at a time. Run in a process of its own.

Reads commands from its standard input, a line of JSON each, and answers each with a line of JSON that begins with ``>``:

``"parse"``: the dag-processor parses every file, and then once more, which shows what the files have no longer.
``"schedule"``: a tick of every timed DAG comes, and the scheduler goes round once.
``["trigger", dag_id]``: the status that the REST API answers with.
``["ran", dag_id, days]``: the newest scheduled run of a DAG ended so many days ago, and nothing has run since.
``["work", dag_id]``: the scheduler goes round, and each run of the DAG succeeds at once, until no new one comes; the partition
keys of the new runs in order, and the most that were open at the same time.
``["started", dag_id]``: the same, but only a run that the scheduler has started ends; the partition keys as they were started.
``["run", dag_id, conf]``: a run of the DAG in this process; its tasks' states, and the events that it emitted in order, each an
asset and a partition.
``["publish", asset, key]``: an event of an asset's partition.
``["waiting", dag_id]``: the partitions that Airflow holds back, since some of their days are missing.
``"look"``: what Airflow's tables say.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any


class Airflow:
    def __init__(self) -> None:
        from airflow.api_fastapi.app import create_app
        from airflow.utils.db import initdb
        from fastapi.testclient import TestClient

        initdb()
        self._api = TestClient(create_app(apps="core"), base_url="http://testserver", raise_server_exceptions=False)
        token = self._api.post("/auth/token", json={"username": "admin", "password": "admin"}).json()["access_token"]
        self._api.headers["Authorization"] = f"Bearer {token}"

    def parse(self) -> None:
        from airflow.dag_processing.manager import DagFileProcessorManager

        DagFileProcessorManager(max_runs=2).run()  # type: ignore[no-untyped-call]  # Airflow gives it no types

    def schedule(self) -> None:
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.models.dag import DagModel
        from airflow.utils.session import create_session
        from sqlalchemy import update

        with create_session() as session:
            session.execute(update(DagModel).values(is_paused=False))
            due = DagModel.next_dagrun_create_after.is_not(None)
            session.execute(
                update(DagModel).where(due).values(next_dagrun_create_after=datetime.now(UTC) - timedelta(minutes=1))
            )
        with create_session() as session:
            job = Job()  # type: ignore[no-untyped-call]  # Airflow gives it no types
            SchedulerJobRunner(job)._do_scheduling(session)

    def ran(self, dag_id: str, days: int) -> None:
        from airflow.models.dag import DagModel
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        with create_session() as session:
            stored = SerializedDagModel.get(dag_id, session=session)
            assert stored is not None
            dag, day = stored.dag, datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            [run] = dag.timetable.iter_partition_dagrun_infos(
                earliest=day - timedelta(days=days), latest=day - timedelta(days=days - 1, seconds=1)
            )
            made = dag.create_dagrun(
                run_id=f"scheduled__{days}",
                run_after=run.run_after + timedelta(days=1),
                run_type=DagRunType.SCHEDULED,
                triggered_by=DagRunTriggeredByType.TIMETABLE,
                state=DagRunState.SUCCESS,
                partition_key=run.partition_key,
                partition_date=run.partition_date,
                session=session,
            )
            model = session.get(DagModel, dag_id)
            assert model is not None
            model.is_paused = False
            # What the dag-processor does whenever it reads the file.
            model.calculate_dagrun_date_fields(dag, reference_run=made)

    def work(self, dag_id: str) -> dict[str, Any]:
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.models.dag import DagModel
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from airflow.utils.state import State
        from sqlalchemy import select, update

        done: list[str | None] = []
        most = 0
        scheduler = SchedulerJobRunner(Job())  # type: ignore[no-untyped-call]  # Airflow gives it no types
        while True:
            with create_session() as session:
                scheduler._do_scheduling(session)
            with create_session() as session:
                mine = (DagRun.dag_id == dag_id, DagRun.state.in_(State.unfinished_dr_states))
                opened = list(session.scalars(select(DagRun).where(*mine).order_by(DagRun.id)))
                if not opened:
                    return {"keys": done, "most": most}
                most = max(most, len(opened))
                for run in opened:
                    done.append(run.partition_key)
                    run.state = "success"
                session.execute(update(DagModel).where(DagModel.dag_id == dag_id).values(exceeds_max_non_backfill=False))

    def started(self, dag_id: str) -> list[str | None]:
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from airflow.utils.state import State
        from sqlalchemy import select

        keys: list[str | None] = []
        scheduler = SchedulerJobRunner(Job())  # type: ignore[no-untyped-call]  # Airflow gives it no types
        while True:
            with create_session() as session:
                scheduler._do_scheduling(session)
            with create_session() as session:
                mine = (DagRun.dag_id == dag_id, DagRun.state.in_(State.unfinished_dr_states))
                opened = list(session.scalars(select(DagRun).where(*mine).order_by(DagRun.start_date)))
                if not opened:
                    return keys
                for run in opened:
                    if run.state == "running":
                        keys.append(run.partition_key)
                        run.state = "success"

    def run(self, dag_id: str, conf: dict[str, Any]) -> dict[str, Any]:
        import os

        from airflow.dag_processing.dagbag import DagBag
        from airflow.models.asset import AssetEvent
        from airflow.utils.session import create_session
        from sqlalchemy import select

        done = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]).dags[dag_id].test(run_conf=conf)
        with create_session() as session:
            mine = select(AssetEvent).where(AssetEvent.source_run_id == done.run_id).order_by(AssetEvent.id)
            events = [[event.asset.name, event.partition_key] for event in session.scalars(mine)]
        return {"states": {task.task_id: str(task.state) for task in done.get_task_instances()}, "events": events}

    def publish(self, asset: str, key: str) -> None:
        found = self._api.get("/api/v2/assets", params={"name_pattern": asset}).json()["assets"]
        [number] = [one["id"] for one in found if one["name"] == asset]
        answer = self._api.post("/api/v2/assets/events", json={"asset_id": number, "partition_key": key})
        assert answer.status_code == 200, answer.text

    def waiting(self, dag_id: str) -> list[str]:
        from airflow.models.asset import AssetPartitionDagRun
        from airflow.utils.session import create_session
        from sqlalchemy import select

        mine = (AssetPartitionDagRun.target_dag_id == dag_id, AssetPartitionDagRun.created_dag_run_id.is_(None))
        with create_session() as session:
            return sorted(session.scalars(select(AssetPartitionDagRun.partition_key).where(*mine)))

    def trigger(self, dag_id: str) -> int:
        return int(self._api.post(f"/api/v2/dags/{dag_id}/dagRuns", json={"logical_date": None}).status_code)

    def look(self) -> dict[str, Any]:
        from airflow.models.dag import DagModel
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            return {
                "active": sorted(session.scalars(select(DagModel.dag_id).where(~DagModel.is_stale))),
                "scheduled": sorted(session.scalars(select(DagRun.dag_id).where(DagRun.run_type == "scheduled"))),
                "errors": {
                    error["filename"]: error["stack_trace"]
                    for error in self._api.get("/api/v2/importErrors").json()["import_errors"]
                },
            }


def main() -> None:
    airflow = Airflow()
    for line in sys.stdin:
        command = json.loads(line)
        name, *arguments = command if isinstance(command, list) else [command]
        answer = getattr(airflow, name)(*arguments)
        sys.stdout.write(f"\n>{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
