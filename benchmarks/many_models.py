"""A hundred models: what it takes to parse their DAGs, and whether scheduler, REST API and board stay usable.

Parsing is measured as Airflow does it, by its own DAG processor, in passes over a folder of DAG files whose DAGs it knows
already; what it takes over an empty folder is subtracted. The peer is a folder of as many DAG files as there are models, each
with one DAG and no task. What counts is processor time, of the DAG processor and its children: it does not depend on what
else the machine does.

Then the embedded stack that `make up` starts runs on one model, and on all of them with every DAG switched on. In each, the
same run (`<model>.score` before there is a champion: its first task looks for one and skips the rest) is started many times,
alone, and timed from when it was queued to when its task started, and to its end.

    python -m benchmarks.many_models
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.measuring import Line, Told
from benchmarks.stacks import Client, inherited, stack_ports
from perennial.core.settings import PROJECT
from perennial.stack.airflow_api import AirflowApi
from perennial.stack.embedded import Stack
from perennial.stack.processes import marked

TEMPLATE = PROJECT / "tests" / "models" / "energy_load"

MODELS = 100
#: Passes of the DAG processor over each folder; the median counts.
PASSES = 3
#: Runs and requests that are timed.
RUNS, REQUESTS = 15, 20
PARSE_GOAL = 3.0

EMPTY = 'from airflow.sdk import DAG\n\nwith DAG("empty_{}", schedule=None):\n    pass\n'
PARSE_ONE = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
began = time.process_time()
bag = DagBag(sys.argv[1])
for dag in bag.dags.values():
    DagSerialization.to_dict(dag)
print("\\n" + json.dumps([time.process_time() - began, len(bag.dags), len(bag.import_errors)]))
"""


def make_models(folder: Path, many: int) -> Path:
    """As many copies of a small model, under names of their own."""
    for number in range(many):
        copy = folder / f"energy_{number:03}"
        shutil.copytree(TEMPLATE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        spec = copy / "model.yaml"
        spec.write_text(spec.read_text().replace("name: energy_load", f"name: {copy.name}"))
    return folder


# --- parsing ---------------------------------------------------------------------------------------------------------


def airflow(home: Path, dags: Path, models: Path) -> dict[str, str]:
    return {
        **inherited(),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PERENNIAL_MODELS": str(models),
        "PERENNIAL_STATE": str(home / "var"),
    }


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    """Processor seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_parsing(scratch: Path, models: Path, told: Told) -> None:
    folders = {"nothing": scratch / "nothing", "empty DAG files": scratch / "empty", "models": PROJECT / "dags"}
    folders["nothing"].mkdir()
    folders["empty DAG files"].mkdir()
    for number in range(MODELS):
        (folders["empty DAG files"] / f"dag_{number:03}.py").write_text(EMPTY.format(number))
    passes: dict[str, list[float]] = {}
    for name, folder in folders.items():
        environment = airflow(scratch / f"airflow {name}", folder, models)
        seconds_of(["airflow", "db", "migrate"], environment)
        one_pass = ["airflow", "dag-processor", "--num-runs", "1"]
        seconds_of(one_pass, environment)  # in which the DAGs become known
        passes[name] = [seconds_of(one_pass, environment) for _ in range(PASSES)]
        print(f"{name}: {statistics.median(passes[name]):.1f} s of processor time", flush=True)
    nothing = statistics.median(passes["nothing"])
    peer, ours = ([round(one - nothing, 2) for one in passes[name]] for name in ("empty DAG files", "models"))
    claim = f"parse the DAGs of {MODELS} models, processor time"
    told.add(Line(claim, f"{MODELS} files with an empty DAG each", ours, peer, goal=PARSE_GOAL))
    told.details["parsing"] = {
        "passes": {name: [round(value, 2) for value in values] for name, values in passes.items()},
        "files": parse_each(scratch, models),
    }


def parse_each(scratch: Path, models: Path) -> dict[str, dict[str, float]]:
    """Of each DAG file, its own share: processor seconds of reading and serializing it, without what Airflow does around it."""
    environment = airflow(scratch / "airflow models", PROJECT / "dags", models)
    found = {}
    for file in sorted((PROJECT / "dags").glob("*.py")):
        done = subprocess.run(
            [sys.executable, "-c", PARSE_ONE, str(file)], env=environment, check=True, capture_output=True, text=True
        )
        seconds, dags, errors = json.loads(done.stdout.splitlines()[-1])
        assert not errors, done.stdout
        found[file.name] = {"seconds": round(seconds, 2), "dags": dags}
    return found


# --- the stack -------------------------------------------------------------------------------------------------------


def measure_stack(state: Path, models: Path) -> dict[str, Any]:
    names = [folder.name for folder in models.iterdir()]
    stages = [file.stem for file in (PROJECT / "dags").glob("*.py") if file.stem != "notify"]
    given = {**os.environ, **stack_ports(), "PERENNIAL_MODELS": str(models)}
    began = time.monotonic()
    with (
        Stack(state, given, say=lambda _: None) as stack,
        AirflowApi(stack.airflow_url, "admin", stack.password) as api,
        Client(stack.airflow_url, stack.password) as client,
    ):
        started = time.monotonic() - began
        api.wait_for_dags([f"{name}.{stage}" for name in names for stage in stages], patience=600, check=stack.check)
        known = time.monotonic() - began
        client.http.patch("/api/v2/dags?dag_id_pattern=energy_%25", json={"is_paused": False}).raise_for_status()
        time.sleep(60)  # in which what follows from switching on calms down
        before = usage(state)
        time.sleep(30)
        idle = {
            title: round((seconds - before[title][0]) / 30, 3)
            for title, (seconds, _) in usage(state).items()
            if title in before
        }
        waits, lengths = [], []
        for _ in range(RUNS):
            run = api.wait(api.trigger("energy_000.score", conf={"start": "2024-01-01", "end": "2024-01-02"}), patience=300)
            [task] = [one for one in client.tasks(run) if one.task_id == "resolve_champion"]
            assert run.queued_at is not None
            assert run.ended_at is not None
            waits.append((task.started - run.queued_at).total_seconds())
            lengths.append((run.ended_at - run.queued_at).total_seconds())
        pages = {
            "/api/v2/dags?limit=100": "DAG list",
            "/ui/dags?limit=50&dag_runs_limit=14": "UI's page of DAGs",
            "/perennial/api/models": "board",
        }
        answers = {title: timed(client.http, path) for path, title in pages.items()}
        return {
            "models": len(names),
            "dags": len(names) * len(stages),
            "seconds_to_healthy": round(started, 1),
            "seconds_to_all_dags_known": round(known, 1),
            "queued_to_started": spread(waits),
            "queued_to_ended": spread(lengths),
            "answers": {title: spread(values) if values else None for title, values in answers.items()},
            "memory_mb": {title: round(memory / 1e6) for title, (_, memory) in usage(state).items()},
            "cores_used_at_rest": idle,
        }


def timed(client: httpx.Client, path: str) -> list[float]:
    """Seconds of each answer; none if there is no such page."""
    if client.get(path).status_code != 200:
        return []
    seconds = []
    for _ in range(REQUESTS):
        began = time.monotonic()
        client.get(path).raise_for_status()
        seconds.append(time.monotonic() - began)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "most": round(max(values), 3)}


def usage(state: Path) -> dict[str, tuple[float, int]]:
    """By component, processor seconds so far, and bytes that are its own: what it shares with others is not counted."""
    found: dict[str, tuple[float, int]] = {}
    for process in marked(f"{state}#"):
        try:
            title = " ".join(process.cmdline()[:3])
            for component in ("airflow scheduler", "airflow dag-processor", "api_server"):
                if component in title:
                    times = process.cpu_times()
                    spent = times.user + times.system + times.children_user + times.children_system
                    kept = found.get(component.removeprefix("airflow "), (0.0, 0))
                    memory = process.memory_full_info().uss
                    found[component.removeprefix("airflow ")] = (kept[0] + spent, kept[1] + memory)
        except psutil.Error:
            continue
    return found


def main() -> None:
    told = Told("many_models")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        many, one = make_models(scratch / "many", MODELS), make_models(scratch / "one", 1)
        measure_parsing(scratch, many, told)
        stacks = [measure_stack(scratch / f"state {models.name}", models) for models in (one, many)]
    told.details["stacks"] = stacks
    beside_one, with_many = ([result[pick]["median"] for result in stacks] for pick in ("queued_to_started", "queued_to_ended"))
    for claim, (alone, among) in {
        f"a run's first task among {MODELS} models, from queued to started": beside_one,
        f"a run of two tasks among {MODELS} models, from queued to ended": with_many,
    }.items():
        told.add(Line(claim, "among one model", [among], [alone]))
    lists = [result["answers"]["DAG list"]["median"] for result in stacks]
    told.add(Line(f"REST API, 100 DAGs of {MODELS} models", "the 8 DAGs of one", [lists[1]], [lists[0]]))
    told.write()


if __name__ == "__main__":
    main()
