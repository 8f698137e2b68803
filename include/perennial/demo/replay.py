"""The demo: the life of the model ``flight_delay`` on the flights out of New York in 2013, replayed as if live.

It does what time and people do: the files of a week land in the landing zone, a run of ``ingest`` is started, and the rest
follows by itself in Airflow. It is driven and watched over Airflow's REST API alone. Each run of the demo goes on where
the last one stopped. Neighbours: :mod:`perennial.demo.story` says what people and sources do in which week,
:mod:`perennial.demo.summary` tells what came of it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.status import Status

from perennial.core.errors import StackError
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT, mlflow_page
from perennial.demo.client import Client
from perennial.demo.example_data import DAYS, write_landing_zone
from perennial.demo.story import FIRST, MODEL, STORY, Week, misplace_delays, write_models
from perennial.demo.summary import show, summarise, week_in_words, what_monitoring_says
from perennial.ledger.records import VersionRecord
from perennial.ledger.store import Ledger
from perennial.spec.folder import read_model
from perennial.spec.model import ModelSpec
from perennial.stack.airflow_api import AirflowApi, DagRun
from perennial.stack.embedded import Stack

#: What is there before the replay. The weeks that are replayed begin where it ends, on a Monday, a week before storms.
HISTORY = Interval.of("2013-01-01", "2013-06-24")

#: Up to when the first champion learns. A week later it would be among the trainings that use up the budget of 30 days
#: (``retraining.budget``) when the storms come.
TRAINED = "2013-06-03"

#: A run of ingest that starts nothing.
_QUIET = {"announce_scoring": False, "announce_monitoring": False, "announce_training": False}

_STAGES = ("ingest", "score", "materialize", "monitor", "refresh", "train")
#: DAGs that only people trigger.
_BY_HAND = ("promote", "rollback", "release")
#: Runs once, at the end, over all that the client has asked: a run for each day would take a third of a week's tasks.
_AT_THE_END = "record"

#: Longest time, in seconds, that the runs of a step may take.
_PATIENCE = 1800.0


def run_demo(state: Path, given: Mapping[str, str], console: Console, *, once: bool, weeks: int) -> Path:
    """Run it, from the start of the stack to the summary.

    Args:
        state: folder that everything is kept below, from one run to the next.
        given: the environment. Of what it says about Airflow, MLflow and Perennial only the ports are heeded: the demo
            shall not touch anything else that is somebody's own.
        console: where progress is shown.
        once: stop the stack at the end; otherwise it stays up until Ctrl-C.
        weeks: how many to replay, as long as the year lasts.

    Returns:
        The summary's file.

    Raises:
        StackError: the stack or one of the runs failed.
    """
    began = time.monotonic()
    models = state / "models"
    if not models.exists():
        write_models(models, PROJECT / "include" / "models" / MODEL, FIRST)
    console.print("Starting Airflow and MLflow …")
    # The DAG files do not change while the demo runs, and a commit of the team's changes no task.
    own = {**_own(given), "PERENNIAL_MODELS": str(models)}
    with Stack(state, own, parse_every=600, say=console.print) as stack:
        console.print(f"Airflow {stack.airflow_url} (sign in as admin, password {stack.password})")
        console.print(f"MLflow {mlflow_page(stack.mlflow_url)}")
        console.print(f"The scorer answers on {stack.scorer_url}, where each model has a page to try it")
        with AirflowApi(stack.airflow_url, "admin", stack.password) as api:
            replay = _Replay(stack, api, console)
            replay.seconds["start"] = time.monotonic() - began
            replay.begin()
            replay.load_history()
            replay.train_first_champion()
            replayed = replay.weeks_to_come()[:weeks]
            if not replayed and weeks:
                console.print(f"All weeks of the year are replayed. Remove {state} to start again.")
            for number, week in enumerate(replayed, start=1):
                replay.live_through(week, f"week {number} of {len(replayed)}")
            replay.record()
            with replay.step("summary", "comparing what was served with never and always"):
                summary = summarise(stack, MODEL, replayed, replay.seconds, api.runs(f"{MODEL}."), replay.client.asked)
            summary["seconds"]["all"] = round(time.monotonic() - began, 1)
        file = state / "summary.json"
        file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        show(console, summary, file)
        if not once:
            console.print("Airflow and MLflow run until Ctrl-C.")
            with suppress(KeyboardInterrupt):
                stack.wait()
            console.print("Stopping …")
    return file


def _own(given: Mapping[str, str]) -> dict[str, str]:
    def is_heeded(name: str) -> bool:
        return not name.startswith(("AIRFLOW", "MLFLOW", "PERENNIAL")) or (
            name.startswith("PERENNIAL_") and name.endswith("_PORT")
        )

    return {name: value for name, value in given.items() if is_heeded(name)}


class _Replay:
    """The steps of the demo.

    Attributes:
        seconds: how long each step took.
        client: asks the scorer beside the replay.
    """

    def __init__(self, stack: Stack, api: AirflowApi, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._stack = stack
        self._api = api
        self._console = console
        self._data = stack.settings.data
        self._ledger = Ledger(stack.settings.database_url)
        self._spec = read_model(stack.settings.models / MODEL).spec
        self.client = Client(stack.scorer_url, self._spec, self._data, self._ledger)

    def begin(self) -> None:
        """Switch the DAGs on, and wait for the runs that an interrupted demo has left."""
        with self.step("begin", "waiting for Airflow to read the DAGs"):
            dag_ids = [f"{MODEL}.{stage}" for stage in (*_STAGES, *_BY_HAND)]
            last = f"{MODEL}.{_AT_THE_END}"
            self._api.wait_for_dags([*dag_ids, last], check=self._stack.check)
            for dag_id in dag_ids:
                self._api.unpause(dag_id)
            self._api.pause(last)  # an earlier run of the demo has left it on
        active = [run for run in self._api.runs(f"{MODEL}.") if not run.ended]
        if active:
            with self.step("resume", f"{len(active)} runs of the interrupted demo continue"):
                for run in active:
                    self._wait_for(run, None)

    def load_history(self) -> None:
        """Ingest the months before the replay in one run, unless that is done."""
        if self._is_ingested(HISTORY):
            return
        with self.step("history", "loading five months of history") as status:
            write_landing_zone(self._data, HISTORY)
            conf = {**_range(HISTORY), **_QUIET}
            self._wait_for(self._api.trigger(f"{MODEL}.ingest", conf=conf, note="the history"), status)
        self._console.print(
            f"history {HISTORY}: {week_in_words(self._ledger, MODEL, HISTORY)}, {self.seconds['history']:.1f} s"
        )

    def train_first_champion(self) -> None:
        """Train on the history, unless there is a champion.

        Raises:
            StackError: the gates refused the first version.
        """
        if self._ledger.champion(MODEL) is not None:
            return
        with self.step("first training", "training the first champion") as status:
            conf = {"as_of": TRAINED, "cause": "first training"}
            self._wait_for(self._api.trigger(f"{MODEL}.train", conf=conf, note="the first champion"), status)
        if self._ledger.champion(MODEL) is None:
            reasons = "; ".join(self._ledger.versions(MODEL)[-1].decision.reasons)
            raise StackError(f"the first version of {MODEL} was refused: {reasons}")
        self._console.print(f"first champion: version {self._ledger.champion(MODEL)}, {self.seconds['first training']:.1f} s")

    def weeks_to_come(self) -> list[Interval]:
        """The weeks of the year that no run of the demo has replayed yet."""
        week, weeks = Interval(HISTORY.end, HISTORY.end + timedelta(days=7)), []
        monitored = {verdict.interval for verdict in self._ledger.verdicts(MODEL, limit=1000)}
        while DAYS.contains(week):
            if week not in monitored:
                weeks.append(week)
            week = Interval(week.end, week.end + timedelta(days=7))
        return weeks

    def live_through(self, week: Interval, label: str) -> None:
        """What people and sources do in a week, and all runs that follow from it.

        Raises:
            StackError: a run failed, or something that must follow did not.
        """
        story = STORY.get(1 + (week.start - HISTORY.end) // timedelta(days=7), Week())
        if story.words:
            self._console.print(f"  {story.words}", style="italic")
        if story.recipe is not None:
            self._commit(story.recipe)
        self._let_time_pass(week, label, spoiled=story.spoiled)
        words = week_in_words(self._ledger, MODEL, week)
        self._console.print(f"{label}, {week.start:%d %B}: {words}, {self.seconds[week.key]:.1f} s")
        for told in what_monitoring_says(self._ledger, MODEL, week):
            self._console.print(f"  {told}")
        with self.step(f"after {week.key}", "what people do after the week") as status:
            self._act(story, week, status)

    def record(self) -> None:
        """End the client, and let what it was answered be published and its parity be measured, if it was answered."""
        with self.step("record", "computing the features again that were served online") as status:
            asked = self.client.close()
            if asked.answers:
                self._api.unpause(f"{MODEL}.{_AT_THE_END}")
                self._wait_for(self._api.trigger(f"{MODEL}.{_AT_THE_END}", note="what the client has asked"), status)

    def _commit(self, recipe: Mapping[str, object]) -> None:
        write_models(self._stack.settings.models, PROJECT / "include" / "models" / MODEL, recipe)

    def _act(self, story: Week, week: Interval, status: Status) -> None:
        if story.spoiled:
            write_landing_zone(self._data, week)
            self._do("ingest", {**_range(week), **_QUIET}, "the source has delivered the week again, right", status)
            self._do(
                "release",
                {**_range(week), "reason": "the source has delivered the week again"},
                "the rows are right now",
                status,
            )
        if story.train is not None:
            self._do("train", {"cause": story.train}, story.train, status)
            record = self._ledger.versions(MODEL)[-1]
            self._console.print(
                f"  version {record.version} {'replaces the champion' if record.decision.promote else 'is refused'}"
            )
        if story.override is not None:
            version = next(record.version for record in reversed(self._ledger.versions(MODEL)) if self._was_refused(record))
            self._do("promote", {"version": version, "override": story.override}, f"version {version} by override", status)
        if story.rollback is not None:
            overruled = [made for made in self._ledger.promotions(MODEL) if made.action == "override"]
            if overruled:
                back = {"version": overruled[-1].previous, "reason": story.rollback}
                self._do("rollback", back, f"back to version {overruled[-1].previous}", status)

    @staticmethod
    def _was_refused(record: VersionRecord) -> bool:
        return not (record.decision.promote or record.is_refresh)

    def _do(self, stage: str, conf: Mapping[str, object], words: str, status: Status) -> None:
        self._console.print(f"  {MODEL}.{stage}: {words}")
        self._wait_for(self._api.trigger(f"{MODEL}.{stage}", conf=conf, note=words), status)

    def _let_time_pass(self, week: Interval, label: str, *, spoiled: bool) -> None:
        """Write a week's files, ingest them, and wait for all runs that follow."""
        with self.step(week.key, label) as status:
            write_landing_zone(self._data, week)
            if spoiled:
                misplace_delays(self._data, week)
            since = datetime.now(UTC) - timedelta(seconds=1)
            ingest = self._api.trigger(f"{MODEL}.ingest", conf=_range(week), note=label)
            self.client.begin(week)
            deadline = time.monotonic() + _PATIENCE
            while True:
                self._stack.check()
                runs = [run for run in self._api.runs(f"{MODEL}.", since) if run.run_type != "scheduled"]
                for run in runs:
                    if run.state == "failed":
                        raise StackError(self._api.failure(run))
                missing = _missing(self._spec, week, ingest, runs)
                if not missing and all(run.ended for run in runs):
                    break
                if time.monotonic() > deadline:
                    raise StackError(f"week {week}: after {_PATIENCE:.0f} s these runs have not ended: {', '.join(missing)}")
                status.update(f"{label}, {week.start:%d %B}: {_in_progress(runs)}")
                time.sleep(0.4)
            self.client.end(week)

    def _is_ingested(self, interval: Interval) -> bool:
        return any(
            published.interval.contains(interval) for published in self._ledger.publications(MODEL, "features", interval)
        )

    def _wait_for(self, run: DagRun, status: Status | None) -> None:
        def look() -> None:
            self._stack.check()
            if status is not None:
                tasks = Counter(task.state for task in self._api.task_instances(run))
                status.update(f"{run.dag_id}: {tasks['success']} of {tasks.total()} tasks done")

        ended = self._api.wait(run, patience=_PATIENCE, check=look)
        if ended.state == "failed":
            raise StackError(self._api.failure(ended))

    @contextmanager
    def step(self, name: str, words: str) -> Iterator[Status]:
        """Show that something is going on, and take its time."""
        began = time.monotonic()
        with self._console.status(words) as status:
            yield status
        self.seconds[name] = time.monotonic() - began


def _range(interval: Interval) -> dict[str, str]:
    return {"start": interval.start.date().isoformat(), "end": interval.end.date().isoformat()}


def _missing(spec: ModelSpec, week: Interval, ingest: DagRun, runs: Sequence[DagRun]) -> list[str]:
    """The runs that follow from a week's ingestion and have not ended."""
    schedules = spec.schedules
    days = [day.key for day in week.days()]
    wanted = {(f"{MODEL}.{stage}", key) for key in days for stage in ("score", "materialize")}
    wanted |= {(f"{MODEL}.monitor", key) for key in (days[:1] if schedules.monitor == "week" else days)}
    if spec.refreshes and schedules.refresh == "week":
        wanted.add((f"{MODEL}.refresh", days[0]))
    if schedules.train == "week":
        wanted.add((f"{MODEL}.train", days[0]))
    if schedules.train == "month":
        # A month is trained on when its last day is there, and all its days were announced: the history is not.
        ended = [day.start for day in week.days() if day.end.day == 1 and day.start.replace(day=1) >= HISTORY.end]
        wanted |= {(f"{MODEL}.train", f"{last:%Y-%m}-01") for last in ended}
    there = {(run.dag_id, run.partition_key) for run in runs if run.ended}
    missing = [f"{dag_id} of {key}" for dag_id, key in sorted(wanted - there)]
    return missing if any(run.run_id == ingest.run_id and run.ended for run in runs) else [ingest.dag_id, *missing]


def _in_progress(runs: Sequence[DagRun]) -> str:
    """``ingest done, score 3 of 7, train running``."""
    words = []
    for stage in _STAGES:
        of_stage = [run for run in runs if run.dag_id == f"{MODEL}.{stage}"]
        ended = sum(run.ended for run in of_stage)
        if stage == "score" and of_stage:
            words.append(f"score {ended} of 7")
        elif of_stage:
            words.append(f"{stage} {'done' if ended == len(of_stage) else 'running'}")
    return ", ".join(words)
