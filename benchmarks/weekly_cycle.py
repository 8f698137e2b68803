"""What Airflow adds to a model's week: the cycle as it is operated, beside the same functions in one warm process.

A week of the example, trained weekly: seven runs of ``ingest``, one per day (5 tables landed, checked and published, then
features), what follows from each (a run of ``score``), and once the week is whole a run of ``monitor`` and one of ``train``
(3 candidates, evaluation, gates, card).

Ours: the embedded stack on which all seven days have come in at once; time runs from the first trigger until the last run
has ended. Beside it the functions of :mod:`perennial.cli.by_hand` one after the other in one process, which has all
libraries and talks to MLflow's database rather than to its server. Both have the same history (three months, a champion)
and live through the same weeks in order; each week is a repetition.

    python -m benchmarks.weekly_cycle
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import prepared
from benchmarks.measuring import THREADS, Line, Told, apart
from benchmarks.prepared import MODEL, TRAINED_AT
from benchmarks.stacks import Client, TaskTimes, stack_ports
from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.stack.airflow_api import AirflowApi, DagRun
from perennial.stack.embedded import Stack

HISTORY = Interval(TRAINED_AT - timedelta(days=91), TRAINED_AT)
#: Mondays to Mondays.
WEEKS = 2
#: Longest time, in seconds, that a week may take.
PATIENCE = 600
STAGES = ("ingest", "score", "monitor", "train")


def weeks() -> list[Interval]:
    return [Interval(TRAINED_AT + timedelta(weeks=n), TRAINED_AT + timedelta(weeks=n + 1)) for n in range(WEEKS)]


def make(state: Path, data: Path) -> None:
    """A deployment whose model trains each week; nothing is ingested."""
    prepared.new_deployment(state, data)
    prepared.change_spec(state, "schedules: {train: month}", "schedules: {train: week}")


# --- in one process --------------------------------------------------------------------------------------------------


def in_process(state: str) -> Callable[[], Any]:
    """Seconds of each week, by stage."""
    settings = prepared.deployment(state).settings
    by_hand.ingest(settings, MODEL, HISTORY)
    prepared.train_champion(settings, HISTORY.end)

    def live() -> list[dict[str, float]]:
        found = []
        for week in weeks():
            spent = dict.fromkeys(STAGES, 0.0)
            for day in week.days():
                spent["ingest"] += _seconds(by_hand.ingest, settings, MODEL, day)
                spent["score"] += _seconds(by_hand.score, settings, MODEL, day)
            spent["monitor"] = _seconds(by_hand.monitor, settings, MODEL, week)
            spent["train"] = _seconds(by_hand.train, settings, MODEL, week.end)
            found.append({stage: round(seconds, 2) for stage, seconds in spent.items()})
        return found

    return live


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


# --- in Airflow ------------------------------------------------------------------------------------------------------


class InAirflow:
    """The stack, and the weeks that it lives through."""

    def __init__(self, stack: Stack, api: AirflowApi, client: Client) -> None:
        self._stack, self._api, self._client = stack, api, client

    def begin(self) -> None:
        """History and a first champion."""
        dag_ids = [f"{MODEL}.{stage}" for stage in STAGES]
        self._api.wait_for_dags(dag_ids, check=self._stack.check)
        for dag_id in dag_ids:
            self._api.unpause(dag_id)
        days = {"start": f"{HISTORY.start:%Y-%m-%d}", "end": f"{HISTORY.end:%Y-%m-%d}"}
        silently: dict[str, Any] = {**days, "announce_scoring": False, "announce_training": False}
        for stage, conf in (("ingest", silently), ("train", {"as_of": days["end"]})):
            run = self._api.wait(self._api.trigger(f"{MODEL}.{stage}", conf=conf), check=self._stack.check)
            assert run.state == "success", self._api.failure(run)

    def live(self, week: Interval) -> dict[str, Any]:
        """Ingest the week's days, wait for all that follows, and tell where the time went."""
        began = time.perf_counter()
        first = self._api.trigger(f"{MODEL}.ingest", partition_key=week.days()[0].key)
        for day in week.days()[1:]:
            self._api.trigger(f"{MODEL}.ingest", partition_key=day.key)
        wanted = {(f"{MODEL}.{stage}", day.key) for stage in ("ingest", "score") for day in week.days()}
        wanted |= {(f"{MODEL}.{stage}", week.days()[0].key) for stage in ("monitor", "train")}
        assert first.queued_at is not None
        runs: list[DagRun] = []
        while missing := wanted - {(run.dag_id, run.partition_key) for run in runs if run.ended}:
            self._stack.check()
            assert time.perf_counter() - began < PATIENCE, f"not there: {sorted(missing)}"
            runs = self._runs(first.queued_at)
            time.sleep(0.2)
        assert all(run.state == "success" for run in runs), runs
        tasks = [task for run in runs for task in self._client.tasks(run)]
        ended = max(run.ended_at for run in runs if run.ended_at is not None)
        return {"seconds": round((ended - first.queued_at).total_seconds(), 2), **_shares(tasks), "runs": _ends(first, runs)}

    def _runs(self, since: datetime) -> list[DagRun]:
        """Those that the week has led to; the calendar's own are of this year."""
        runs = self._api.runs(f"{MODEL}.", since - timedelta(seconds=1))
        return [run for run in runs if run.run_type != "scheduled"]


def _shares(tasks: list[TaskTimes]) -> dict[str, Any]:
    """How many tasks there were, and how long they waited and worked, by stage."""

    def of(stage: str) -> Iterable[TaskTimes]:
        return (task for task in tasks if task.dag_id == f"{MODEL}.{stage}")

    return {
        "tasks": {stage: sum(1 for _ in of(stage)) for stage in STAGES},
        "waited": {stage: round(sum(task.waited for task in of(stage)), 1) for stage in STAGES},
        "worked": {stage: round(sum(task.seconds - task.waited for task in of(stage)), 1) for stage in STAGES},
    }


def _ends(first: DagRun, runs: list[DagRun]) -> dict[str, float]:
    """By stage, seconds after which its last run had ended."""
    assert first.queued_at is not None
    last = {run.dag_id.rpartition(".")[2]: run.ended_at for run in sorted(runs, key=lambda run: str(run.ended_at))}
    return {stage: round((end - first.queued_at).total_seconds(), 1) for stage, end in last.items() if end is not None}


def in_airflow(state: Path) -> list[dict[str, Any]]:
    given = {**os.environ, **prepared.environment(state), **stack_ports(), "OMP_NUM_THREADS": THREADS["OMP_NUM_THREADS"]}
    with (
        Stack(state, given, parse_every=600, say=lambda _: None) as stack,
        AirflowApi(stack.airflow_url, "admin", stack.password) as api,
        Client(stack.airflow_url, stack.password) as client,
    ):
        cycle = InAirflow(stack, api, client)
        cycle.begin()
        return [cycle.live(week) for week in weeks()]


def main() -> None:
    told, data = Told("weekly_cycle"), prepared.landing_zone(1)
    with tempfile.TemporaryDirectory() as folder:
        states = {name: Path(folder) / name for name in ("airflow", "process")}
        for state in states.values():
            make(state, data)
        lived = in_airflow(states["airflow"])
        [peer] = apart(in_process, state=str(states["process"]))
    told.details["airflow"], told.details["process"] = lived, peer.result
    told.add(
        Line(
            "a model's week through Airflow: 7 days ingested and scored, 1 training, 1 monitoring",
            "the same functions in one warm process",
            [week["seconds"] for week in lived],
            [round(sum(week.values()), 2) for week in peer.result],
            goal=1.5,
        )
    )
    told.write()


if __name__ == "__main__":
    main()
