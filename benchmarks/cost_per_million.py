"""What a million rows cost, stage by stage: processor time, time, and memory, on the flights repeated with shifted years.

The flights of 2013 are repeated as those of 2014 and 2015 (336,776 flights, hourly weather and aircraft per year), one file per
day as in the example's landing zone; a copy's keys and times are its own, see :mod:`benchmarks.prepared`. Each stage runs in a
process of its own, as a task of Airflow would run it, in parts of four weeks; what a worker has imported before it forks is
imported before the clock starts. One process works at a time.

A row is a flight: what else its stage does (it makes three tables of flights, and joins the weather) is in its cost. Training
takes the last 330 days before its holdout, with the model's own candidates and search; monitoring eight weeks, one by one.

    python -m benchmarks.cost_per_million
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from benchmarks import prepared
from benchmarks.measuring import apart, keep, machine
from benchmarks.prepared import MODEL
from perennial.core.intervals import Interval

YEARS = 3
ALL = Interval.of("2013-01-01", "2016-01-01")
#: Days that are ingested, computed or scored at once.
PART = timedelta(days=28)
TRAINED_AT = Interval.day("2015-01-01").start
TRAINING_WINDOW = "330d"


def make(state: Path) -> None:
    """The example with a longer training window, and nothing ingested."""
    prepared.new_deployment(state, prepared.landing_zone(YEARS))
    prepared.train_on(state, TRAINING_WINDOW)
    # Its thresholds are calibrated to references as long as the example's own window.
    (state / "models" / MODEL / "drift.yaml").unlink(missing_ok=True)


# --- the stages, each in a process of its own; they return how many rows they were given -----------------------------


def ingest(state: str) -> Callable[[], int]:
    from perennial.ingestion.publish import publish_interval

    parts = prepared.deployment(state)
    folder, lake = parts.model(MODEL), parts.lake

    def run() -> int:
        rows = 0
        for part in ALL.parts(PART, 64):
            staging = parts.settings.staging / part.key
            results = [prepared.land_and_check(parts, folder, table, part, staging) for table in folder.spec.tables]
            rows += publish_interval(folder, lake, part, results, run_id="benchmark").rows["flights"]
            shutil.rmtree(staging)
        return rows

    return run


def features(state: str) -> Callable[[], int]:
    from perennial.features.publish import publish_features

    parts = prepared.deployment(state)
    folder, lake, ledger = parts.model(MODEL), parts.lake, parts.ledger

    def run() -> int:
        rows = 0
        for part in ALL.parts(PART, 64):
            order = ledger.next_order(MODEL, "features", part, "benchmark")
            rows += publish_features(folder, lake, part, order=order, run_id="benchmark").rows["features"]
        return rows

    return run


def train(state: str) -> Callable[[], int]:
    parts = prepared.deployment(state)

    def run() -> int:
        prepared.train_champion(parts.settings, TRAINED_AT)
        [version] = parts.ledger.versions(MODEL)
        return version.training.rows["window"]

    return run


def score(state: str) -> Callable[[], int]:
    from perennial.scoring.champion import resolve_champion
    from perennial.scoring.predictor import DATASET
    from perennial.scoring.publish import score

    parts = prepared.deployment(state)
    folder, ledger = parts.model(MODEL), parts.ledger

    def run() -> int:
        version, rows = resolve_champion(parts.registry, ledger, MODEL, ALL), 0
        for part in ALL.parts(PART, 64):
            rows += score(
                folder, parts, part, version=version,
                order=ledger.next_order(MODEL, DATASET, part, "benchmark"), run_id="benchmark",
                sink_url=parts.settings.predictions_url,
            ).rows  # fmt: skip
        return rows

    return run


def monitor(state: str) -> Callable[[], int]:
    """Eight weeks, one by one: the drift report, the verdict and the realised performance of each."""
    from perennial.cli import by_hand

    parts = prepared.deployment(state)
    weeks = Interval.of("2015-03-02", "2015-04-27").parts(timedelta(days=7), 64)

    def run() -> int:
        for week in weeks:
            by_hand.monitor(parts.settings, MODEL, week)
        months = parts.ledger.publications(MODEL, "features", Interval(weeks[0].start, weeks[-1].end))
        return round(sum(one.rows["features"] / one.interval.length.days for one in months) / len(months) * 7 * len(weeks))

    return run


def measure(piece: Callable[[str], Callable[[], int]], state: Path) -> dict[str, float]:
    """What a stage took, and takes of a million rows."""
    [taken] = apart(piece, state=str(state))
    million = 1e6 / taken.result
    return {
        "rows": taken.result,
        "seconds": round(taken.seconds, 1),
        "processor_seconds": round(taken.processor_seconds, 1),
        "peak_mb": round(taken.peak_mb),
        "peak_mb_above_imports": round(taken.own_mb),
        "seconds_per_million": round(taken.seconds * million, 1),
        "processor_seconds_per_million": round(taken.processor_seconds * million, 1),
    }


def main() -> None:
    console, began = Console(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        make(state)
        stages = {}
        for piece in (ingest, features, train, score, monitor):
            stages[piece.__name__] = measure(piece, state)
            console.print(f"{piece.__name__}: {stages[piece.__name__]}")
        lake = sum(file.stat().st_size for file in (state / "lake").rglob("*.parquet"))
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
        "machine": machine(), "day": time.strftime("%Y-%m-%d"), "stages": stages,
        "lake_mb_per_million": round(lake / stages["ingest"]["rows"]),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    keep("cost_per_million", report)


if __name__ == "__main__":
    main()
