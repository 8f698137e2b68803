"""A week of the flights, from its files to a drift report, by Perennial and by four orchestrators with the steps by hand.

The graph is the same for all: ingest the week's daily files with checks of Great Expectations and compute 17 features; then
train a booster with a search, log it to MLflow and gate it against the champion. Meanwhile, since no model may score a week
that it learned from, the champion scores the week into SQLite, and Evidently makes its report. The peers share one module of
steps in pandas, ``shared/steps.py``, so that they differ in their orchestration alone; Perennial has the model folder
``perennial/flight_delay`` instead. Tables, features, model, parameters, windows and days are the same, and after each week the
rows of each table, of the training and of its holdout, and the predictions are asserted to be equally many.

Each peer has an environment of its own below ``.bench/peers``, made from its ``requirements.txt``. Twelve weeks of history, a
first champion and one whole cycle come before the clock. Then each lives through the same weeks, one after another, timed
from the trigger to the last result: for Dagster, Metaflow and ZenML from when their command is started until it has ended, as
nothing of them needs to run before; for Airflow and Perennial, whose stacks run already, from the request that starts the
first run to the end of the last run. Memory is taken in the cycle before the clock, so that looking costs no time: the most
that all processes had together, twice a second, shared pages counted once (PSS), and likewise without the servers.

    python -m benchmarks.peers             all
    python -m benchmarks.peers zenml       some, told and not written
"""

from __future__ import annotations

import ast
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol

import psutil
import pyarrow.parquet as pq
import sqlalchemy as sa

from benchmarks import prepared
from benchmarks.measuring import THREADS, Line, Told
from benchmarks.prepared import MODEL
from benchmarks.stacks import PASSWORD, environment, inherited, plain_airflow, running, stack_ports
from perennial.core.intervals import Interval
from perennial.core.settings import PROJECT
from perennial.ledger.store import Ledger
from perennial.stack.airflow_api import AirflowApi, DagRun
from perennial.stack.embedded import Stack
from perennial.stack.processes import MARK, marked

HERE = PROJECT / "benchmarks" / "peers"
SHARED = HERE / "shared"


def mondays(first: str, weeks: int) -> list[str]:
    return [f"{date.fromisoformat(first) + timedelta(weeks=number)}" for number in range(weeks)]


#: What is there before; watched for memory; and timed.
HISTORY = mondays("2013-04-01", 12)
FIRST, *TIMED = mondays("2013-06-24", 4)
TABLES = ("flights", "arrivals", "weather", "aircraft")


class System(Protocol):
    """Something that lives through weeks.

    Attributes:
        name: what a reader knows it by.
        code: the files that its user writes.
        mark: value by which its processes are found in their environment, see :func:`marked`.
    """

    name: str
    code: list[Path]
    mark: str

    @abstractmethod
    def prepare(self) -> None:
        """Bring the history in, and train the first champion."""

    @abstractmethod
    def running(self) -> Any:
        """A context in which whatever must run before a week runs."""

    @abstractmethod
    def live(self, week: str) -> None:
        """From a week's files to its drift report."""

    @abstractmethod
    def rows(self, week: str) -> dict[str, int]:
        """How many rows a week brought, by what they are of."""


# --- peers -----------------------------------------------------------------------------------------------------------


class Peer(System):
    """One that runs ``shared/steps.py``.

    Args:
        folder: its folder here, which is its package's name.
        scratch: where it keeps everything.
    """

    def __init__(self, folder: str, scratch: Path) -> None:
        self.folder = HERE / folder
        self.store = scratch / folder
        self.store.mkdir()
        self.mark = f"{self.store}#"
        self.code = [SHARED / "steps.py", *sorted(self.folder.glob("*.py"))]
        self.bin = environment(folder, HERE / folder / "requirements.txt") / "bin"
        self.variables = {
            **inherited(self.bin),
            **THREADS,
            "PYTHONPATH": str(SHARED),
            "LANDING": str(prepared.landing_zone(1)),
            "STORE": str(self.store),
            "MPLBACKEND": "Agg",
            "DO_NOT_TRACK": "1",
            "GX_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            MARK: self.mark,
            # Processes that rename themselves keep the mark.
            "SPT_NOENV": "1",
        }

    def prepare(self) -> None:
        def make(folder: Path) -> None:
            folder.mkdir()
            program = "import sys, steps\nfor week in sys.argv[1:]:\n    steps.ingest(week)\n    steps.build_features(week)"
            self.variables["STORE"] = str(folder)
            self.run(self.bin / "python", "-c", program, *HISTORY)
            self.variables["STORE"] = str(self.store)

        # The tables and features of all peers are made by the same code.
        shutil.copytree(prepared.made("peers/history", make), self.store, dirs_exist_ok=True)
        first = "import sys, steps\nsteps.gate(sys.argv[1], steps.train(sys.argv[1]))"
        self.run(self.bin / "python", "-c", first, HISTORY[-1])

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def run(self, *command: str | Path) -> None:
        """Run a command to its end."""
        done = subprocess.run(
            [str(part) for part in command], env=self.variables, cwd=self.store, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{self.name}: {command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")

    def rows(self, week: str) -> dict[str, int]:
        found = {table: pq.read_metadata(self.store / table / f"{week}.parquet").num_rows for table in (*TABLES, "features")}
        with closing(sqlite3.connect(self.store / "mlflow.db")) as database:
            query = (
                "SELECT CAST(metrics.value AS INTEGER) FROM metrics JOIN params USING (run_uuid) "
                "WHERE metrics.key = ? AND params.key = 'week' AND params.value = ?"
            )
            for part in ("training", "holdout"):
                [(found[part],)] = database.execute(query, (f"{part}_rows", week)).fetchall()
        with closing(sqlite3.connect(self.store / "predictions.db")) as database:
            [(found["predictions"],)] = database.execute("SELECT count(*) FROM predictions WHERE week = ?", (week,))
        assert (self.store / "reports" / f"{week}.html").stat().st_size > 1_000_000
        return found


class Dagster(Peer):
    """The asset command with the in-process executor, which its documentation names for small steps.

    Args:
        scratch: where it keeps everything.
        in_process: otherwise each step has a process of its own, as is the default.
    """

    def __init__(self, scratch: Path, *, in_process: bool = True) -> None:
        super().__init__("dagster", scratch)
        self.name = "Dagster" if in_process else "Dagster, a process a step"
        self.options = ("--config-json", '{"execution": {"config": {"in_process": {}}}}') if in_process else ()
        home = self.store / "dagster"
        self.variables |= {"DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "true"}

    def prepare(self) -> None:
        home = Path(self.variables["DAGSTER_HOME"])
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        super().prepare()

    def live(self, week: str) -> None:
        definitions = self.folder / "definitions.py"
        select = ("--select", "*", "--partition", week)
        self.run(self.bin / "dagster", "asset", "materialize", *select, "-f", definitions, *self.options)


class Metaflow(Peer):
    """A flow on the local datastore."""

    name = "Metaflow"

    def __init__(self, scratch: Path) -> None:
        super().__init__("metaflow", scratch)
        self.variables |= {
            "METAFLOW_USER": "benchmark",
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.store),
            "METAFLOW_DEFAULT_METADATA": "local",
        }

    def live(self, week: str) -> None:
        self.run(self.bin / "python", self.folder / "flow.py", "run", "--week", week)


class ZenML(Peer):
    """A pipeline on the default local stack, which runs all steps in one process."""

    name = "ZenML"

    def __init__(self, scratch: Path) -> None:
        super().__init__("zenml", scratch)
        self.variables |= {"ZENML_CONFIG_PATH": str(self.store / "zenml"), "ZENML_ANALYTICS_OPT_IN": "false"}

    def live(self, week: str) -> None:
        self.run(self.bin / "python", self.folder / "pipeline.py", week)


class Airflow(Peer):
    """A DAG by its documentation: LocalExecutor, each component a command, imports within tasks.

    Args:
        scratch: where it keeps everything.
    """

    name = "plain Airflow"

    def __init__(self, scratch: Path) -> None:
        super().__init__("airflow", scratch)
        # One worker would do for this DAG; the default are 32 processes.
        self.variables |= {**plain_airflow(self.store / "airflow", self.folder), "AIRFLOW__CORE__PARALLELISM": "4"}

    @contextmanager
    def running(self) -> Iterator[None]:
        with running(self.variables) as url, AirflowApi(url, "admin", PASSWORD) as self.api:
            self.api.wait_for_dags(["weekly_cycle"])
            self.api.unpause("weekly_cycle")
            yield

    def live(self, week: str) -> None:
        run = self.api.wait(self.api.trigger("weekly_cycle", conf={"week": week}))
        if run.state != "success":
            raise SystemExit(self.api.failure(run))


# --- ours ------------------------------------------------------------------------------------------------------------


class Perennial(System):
    """The embedded stack that ``make up`` starts, driven by its REST API.

    Args:
        scratch: where it keeps everything.
    """

    name = "Perennial"

    def __init__(self, scratch: Path) -> None:
        self.state = scratch / "perennial"
        self.mark = f"{self.state}#"
        models = HERE / "perennial"
        self.code = sorted(file for file in (models / MODEL).iterdir() if file.is_file())
        self.variables = {
            **os.environ,
            **stack_ports(),
            "PERENNIAL_MODELS": str(models),
            "PERENNIAL_DATA": str(prepared.landing_zone(1)),
        }

    def prepare(self) -> None:
        with self.running():
            self.ended(self.trigger("ingest", start=HISTORY[0], end=FIRST, announce_scoring=False, announce_training=False))
            self.ended(self.trigger("train", as_of=FIRST, cause="the first champion"))

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as opened:
            self.stack = opened.enter_context(Stack(self.state, self.variables, parse_every=600, say=lambda _: None))
            self.api = opened.enter_context(AirflowApi(self.stack.airflow_url, "admin", self.stack.password))
            stages = [f"{MODEL}.{stage}" for stage in ("ingest", "train", "score", "monitor")]
            self.api.wait_for_dags(stages, check=self.stack.check)
            for stage in stages:
                self.api.unpause(stage)
            yield

    def live(self, week: str) -> None:
        end = f"{date.fromisoformat(week) + timedelta(weeks=1)}"
        self.ended(self.trigger("ingest", start=week, end=end, announce_scoring=False, announce_training=False))
        train = self.trigger("train", as_of=end, cause="a week has come")
        self.ended(self.trigger("score", start=week, end=end))
        # It starts automatically once the last day of a week is scored.
        while not (monitor := [run for run in self.api.runs(f"{MODEL}.monitor") if run.partition_key == week]):
            self.stack.check()
            time.sleep(0.2)
        self.ended(monitor[0])
        self.ended(train)

    def trigger(self, stage: str, **conf: Any) -> DagRun:
        return self.api.trigger(f"{MODEL}.{stage}", conf=conf)

    def ended(self, run: DagRun) -> None:
        """Wait for a run's end."""
        run = self.api.wait(run, check=self.stack.check)
        print(f"  {run.dag_id} {run.seconds:.1f} s", flush=True)
        if run.state != "success":
            raise SystemExit(self.api.failure(run))

    def rows(self, week: str) -> dict[str, int]:
        settings, interval = self.stack.settings, Interval.from_key(f"{week}--{date.fromisoformat(week) + timedelta(weeks=1)}")
        ledger = Ledger(settings.database_url)
        [tables], [features] = (
            [one for one in ledger.publications(MODEL, dataset, interval) if one.interval == interval]
            for dataset in ("tables", "features")
        )
        [version] = [one for one in ledger.versions(MODEL) if one.training.as_of == interval.end.isoformat()]
        [verdict] = [one for one in ledger.verdicts(MODEL, limit=1000) if one.interval == interval]
        assert verdict.report is not None
        assert (settings.reports / verdict.report).stat().st_size > 1_000_000
        with sa.create_engine(settings.predictions_url).connect() as database:
            query = sa.text(
                f"SELECT count(*) FROM {MODEL}_predictions WHERE scheduled_departure >= :start AND scheduled_departure < :end"
            ).bindparams(sa.bindparam("start", type_=sa.DateTime), sa.bindparam("end", type_=sa.DateTime))
            bounds = {"start": interval.start.replace(tzinfo=None), "end": interval.end.replace(tzinfo=None)}
            predictions = database.execute(query, bounds).scalar_one()
        return {
            **{table: tables.rows[table] for table in TABLES},
            "features": features.rows["features"],
            "training": version.training.rows["window"],
            "holdout": version.training.rows["holdout"],
            "predictions": predictions,
        }


# --- measuring -------------------------------------------------------------------------------------------------------


class Watched:
    """Most memory of a system's processes, in MB, shared pages counted once; inside a ``with`` block.

    Attributes:
        family: of all of them together.
        workers: of those that do the work: all but the servers, if there are any.
    """

    def __init__(self, mark: str) -> None:
        self.family = self.workers = 0.0
        self._mark = mark
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            family = {process.pid: process for process in marked(self._mark)}
            schedulers = {pid for pid, process in family.items() if "airflow scheduler" in _title(process)}
            sizes = {pid: _size(process) for pid, process in family.items()}
            self.family = max(self.family, sum(sizes.values()))
            work = sum(
                size for pid, size in sizes.items() if not schedulers or schedulers.intersection(_ancestors(family[pid]))
            )
            self.workers = max(self.workers, work)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _size(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 2**20
    except psutil.Error:
        return 0.0


def _ancestors(process: psutil.Process) -> set[int]:
    try:
        return {parent.pid for parent in process.parents()}
    except psutil.Error:
        return set()


def lines_of_code(files: list[Path]) -> int:
    """Lines that say something: not blank, no comment, no docstring."""
    return sum(_lines(file) for file in files)


def _lines(file: Path) -> int:
    text = file.read_text(encoding="utf-8")
    told = {
        number for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith(("#", "--"))
    }
    if file.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                told -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(told)


def prepare(system: System, rows: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Bring a system's history in, and let it live through its first week while its memory is watched.

    Args:
        system: what is prepared.
        rows: by week, those that systems before brought; completed by the first.
    """
    system.prepare()
    with system.running(), Watched(system.mark) as memory:
        system.live(FIRST)
        check_rows(system, FIRST, rows)
    told = {
        "memory_mb": round(memory.family),
        "memory_of_workers_mb": round(memory.workers),
        "lines_of_code": lines_of_code(system.code),
    }
    print(f"{system.name}: {told}", flush=True)
    return told


def measure(system: System, rows: dict[str, dict[str, int]]) -> dict[str, list[float]]:
    """Let a prepared system live through the weeks that are timed.

    Args:
        system: what is measured.
        rows: as in :func:`prepare`.
    """
    taken: dict[str, list[float]] = {"seconds": [], "processor_seconds": []}
    with system.running():
        for week in TIMED:
            began, spent = time.perf_counter(), busy()
            system.live(week)
            taken["seconds"].append(round(time.perf_counter() - began, 2))
            taken["processor_seconds"].append(round(busy() - spent, 2))
            check_rows(system, week, rows)
            print(f"{system.name}, {week}: {taken['seconds'][-1]} s", flush=True)
    return taken


def busy() -> float:
    """Seconds that the machine's processors have worked since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def check_rows(system: System, week: str, expected: dict[str, dict[str, int]]) -> None:
    found = system.rows(week)
    if expected.setdefault(week, found) != found:
        raise SystemExit(f"{system.name}, {week}: {found}, but others have {expected[week]}")


def main(names: list[str]) -> None:
    kinds = {kind.__name__.lower(): kind for kind in (Perennial, Dagster, Metaflow, ZenML, Airflow)}
    told = Told("peers")
    rows: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        systems: dict[str, System] = {name: kind(Path(folder)) for name, kind in kinds.items() if not names or name in names}
        found = {name: prepare(system, rows) for name, system in systems.items()}
        for name, system in systems.items():
            found[name] |= measure(system, rows)
    told.details = {**found, "rows": rows}
    if not names:
        tell(told, systems)


def tell(told: Told, systems: dict[str, System]) -> None:
    """Set ours beside each peer."""
    ours = told.details["perennial"]
    for name, system in systems.items():
        if name == "perennial":
            continue
        peer = told.details[name]
        told.add(Line(
            "a week of the flights, from files to drift report", system.name, ours["seconds"], peer["seconds"], goal=1.0,
            faster=True, note=f"{ours['lines_of_code']} lines of code, theirs {peer['lines_of_code']}",
        ))  # fmt: skip
        workers = f"without servers {ours['memory_of_workers_mb']:,} MB, theirs {peer['memory_of_workers_mb']:,} MB"
        told.add(Line(
            "its peak memory, servers included", system.name, [ours["memory_mb"]], [peer["memory_mb"]], "MB", note=workers,
        ))  # fmt: skip
    told.write()


if __name__ == "__main__":
    main(sys.argv[1:])
