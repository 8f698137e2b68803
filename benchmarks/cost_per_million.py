"""What a million rows cost, stage by stage: processor time, time, and memory, on the flights repeated with shifted years.

The flights of 2013 are repeated as those of 2014 and 2015 (336,776 flights, hourly weather, aircraft, a year), a file a day as
in the example's landing zone; a copy's keys and times are its own. Each stage runs in a process of its own, as a task of
Airflow would run it, in parts of four weeks; what a worker has imported before it forks is imported before the clock starts.
One process works at a time.

A row is a flight: what its stage does beside (three tables are made of flights, weather joins in) is in its cost. Training
takes the last 330 days before its holdout, with the model's own candidates and search; monitoring eight weeks, one by one.

    python -m benchmarks.cost_per_million
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from perennial.example import DAYS, write_landing_zone
from perennial.intervals import Interval
from perennial.ledger import Ledger
from perennial.settings import PROJECT, read_settings

RESULTS = PROJECT / "benchmarks" / "results" / "cost_per_million.json"
MODEL = "flight_delay"
YEARS = (2013, 2014, 2015)
ALL = Interval.of("2013-01-01", "2016-01-01")
#: Days that are ingested, computed or scored at once.
PART = timedelta(days=28)
TRAINED_AT = Interval.day("2015-01-01").start
TRAINING_WINDOW = "330d"
STAGES = ("ingest", "features", "train", "score", "monitor")


def make_deployment(state: Path) -> dict[str, str]:
    """A landing zone of all years, and the example with a longer training window."""
    landing = state / "data"
    write_landing_zone(landing, DAYS)
    for kind in ("flights", "weather"):
        for file in sorted((landing / kind).glob("2013-*.csv.gz")):
            text = gzip.decompress(file.read_bytes()).decode()
            for year in YEARS[1:]:
                shifted = re.sub(r"(?m)^((?:[A-Z]{3},)?)2013,", rf"\g<1>{year},", text).replace(",2013-", f",{year}-")
                copy = file.with_name(file.name.replace("2013", str(year)))
                copy.write_bytes(gzip.compress(shifted.encode(), compresslevel=1, mtime=0))
    models = state / "models"
    shutil.copytree(PROJECT / "include" / "models" / MODEL, models / MODEL)
    spec = models / MODEL / "model.yaml"
    text = spec.read_text()
    assert "training: {holdout" in text
    spec.write_text(text.replace("training: {holdout", f"training: {{window: {TRAINING_WINDOW}, holdout"))
    (models / MODEL / "drift.yaml").unlink(missing_ok=True)
    Ledger(read_settings({"PERENNIAL_STATE": str(state)}).database_url).migrate()
    return {"PERENNIAL_STATE": str(state), "PERENNIAL_MODELS": str(models), "PERENNIAL_DATA": str(landing)}


# --- the stages, each in a process of its own ------------------------------------------------------------------------


def ingest(given: dict[str, str]) -> int:
    from perennial import ingestion
    from perennial.checks import check
    from perennial.deployment import Deployment
    from perennial.sources import land

    parts = Deployment(read_settings(given))
    folder, ledger, settings = parts.model(MODEL), parts.ledger, parts.settings
    rows = 0
    for part in ALL.parts(PART, 64):
        staging = settings.staging / part.key
        results = [
            check(
                folder, land(folder, table, part, staging, data=settings.data, connect=_no_database), part, staging,
                past_rows_per_day=ingestion.past_rows_per_day(ledger, folder.spec, table, part),
                docs=settings.reports / MODEL / "checks", run_id="benchmark",
            )
            for table in folder.spec.tables
        ]  # fmt: skip
        rows += ingestion.publish_interval(folder, parts.lake, ledger, part, results, run_id="benchmark").rows["flights"]
        shutil.rmtree(staging)
    return rows


def _no_database(name: str) -> Any:
    raise LookupError(name)


def features(given: dict[str, str]) -> int:
    from perennial.deployment import Deployment
    from perennial.features import publish_features

    parts = Deployment(read_settings(given))
    folder = parts.model(MODEL)
    rows = 0
    for part in ALL.parts(PART, 64):
        order = parts.ledger.next_order(MODEL, "features", part, "benchmark")
        done = publish_features(folder, parts.lake, parts.ledger, part, order=order, run_id="benchmark")
        rows += done.rows["features"]
    return rows


def train(given: dict[str, str]) -> int:
    from perennial import by_hand
    from perennial.deployment import Deployment

    settings = read_settings(given)
    told = by_hand.train(settings, MODEL, TRAINED_AT)
    assert told.endswith("is champion"), told
    [version] = Deployment(settings).ledger.versions(MODEL)
    return int(version.training["rows"]["window"])


def score(given: dict[str, str]) -> int:
    from perennial import scoring
    from perennial.deployment import Deployment

    parts = Deployment(read_settings(given))
    folder, rows = parts.model(MODEL), 0
    version = scoring.resolve_champion(parts.registry, parts.ledger, MODEL, ALL)
    for part in ALL.parts(PART, 64):
        rows += scoring.score(
            folder, parts.lake, parts.ledger, parts.registry, part, version=version,
            order=parts.ledger.next_order(MODEL, "predictions", part, "benchmark"), run_id="benchmark",
            sink_url=parts.settings.predictions_url,
        ).rows  # fmt: skip
    return rows


def monitor(given: dict[str, str]) -> int:
    """Eight weeks, one by one: the drift report, the verdict and the realised performance of each."""
    from perennial import by_hand
    from perennial.deployment import Deployment

    settings = read_settings(given)
    weeks = Interval.of("2015-03-02", "2015-04-27").parts(timedelta(days=7), 64)
    for week in weeks:
        by_hand.monitor(settings, MODEL, week)
    months = Deployment(settings).ledger.publications(MODEL, "features", Interval(weeks[0].start, weeks[-1].end))
    return round(sum(one.rows["features"] / one.interval.length.days for one in months) / len(months) * 7 * len(weeks))


def run_stage(name: str, given: dict[str, str]) -> None:
    """Do a stage, and print what it took."""
    import perennial.orchestration.warm  # noqa: F401

    stages: dict[str, Callable[[dict[str, str]], int]] = {
        "ingest": ingest, "features": features, "train": train, "score": score, "monitor": monitor,
    }  # fmt: skip
    warm = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, spent = time.monotonic(), _processor_time()
    rows = stages[name](given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "rows": rows, "seconds": round(time.monotonic() - began, 1), "processor_seconds": round(_processor_time() - spent, 1),
        "peak_mb": round(peak / 1024), "peak_mb_above_imports": round((peak - warm) / 1024),
    }  # fmt: skip
    sys.stdout.write("\n" + json.dumps(result) + "\n")


def _processor_time() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    console, began = Console(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        given = make_deployment(Path(folder))
        threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
        environment = {**os.environ, **threads, "AIRFLOW_HOME": str(Path(folder) / "airflow")}
        stages: dict[str, dict[str, float]] = {}
        for name in STAGES:
            program = [sys.executable, "-m", "benchmarks.cost_per_million", name, json.dumps(given)]
            done = subprocess.run(program, env=environment, cwd=PROJECT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-4000:])
            found = json.loads(done.stdout.splitlines()[-1])
            million = 1e6 / found["rows"]
            found["seconds_per_million"] = round(found["seconds"] * million, 1)
            found["processor_seconds_per_million"] = round(found["processor_seconds"] * million, 1)
            stages[name] = found
            console.print(f"{name}: {found}")
        lake = sum(file.stat().st_size for file in (Path(folder) / "lake").rglob("*.parquet"))
    table = Table(
        "Stage",
        *(Column(name, justify="right") for name in ("rows", "s", "s a million", "processor s a million", "MB at most")),
    )
    for name, found in stages.items():
        table.add_row(
            name, f"{found['rows']:,}", f"{found['seconds']:.1f}", f"{found['seconds_per_million']:.1f}",
            f"{found['processor_seconds_per_million']:.1f}", f"{found['peak_mb']:,}",
        )  # fmt: skip
    console.print(table)
    report = {
        "machine": f"{os.cpu_count()} cores", "day": time.strftime("%Y-%m-%d"), "stages": stages,
        "lake_mb_per_million": round(lake / stages["ingest"]["rows"]),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"{report['seconds']:.0f} s; written to {RESULTS.relative_to(PROJECT)}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run_stage(sys.argv[1], json.loads(sys.argv[2]))
    else:
        main()
