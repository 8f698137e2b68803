"""A drift report of ten million rows in the window, beside one of a hundred thousand, and whether the verdict is the same.

What is timed is :func:`perennial.monitoring.verdicts.judge_drift`, all of the task: reading features and predictions of the
window from the lake, sampling both (20,000 rows of each, by a seeded hash of their keys), loading the champion with its
reference, comparing 31 columns by Evidently, estimating the performance, writing the report, and recording the verdict in
the ledger, the report in MLflow. The goal: a window of ten million rows takes at most three times as long. Its memory is
shown beside.

The verdict of a sample is compared with the verdict on all rows, over fifty seeds of the sampling and several windows: the
year as it was, which is ``ok`` by the thresholds that history was calibrated to, and others that were changed. All ten
million keys are sampled for each seed. One year is repeated thirty times, so that the distances of all rows are those of
one year.

Beside it, without a goal: Evidently's own report of all rows, for one year; of the thirty it would take thirty times as long.

    python -m benchmarks.drift_report
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import prepared
from benchmarks.measuring import Line, Told, apart, processor_seconds, seconds
from benchmarks.prepared import MODEL, YEAR
from perennial.core.intervals import Interval
from perennial.demo.example_data import DAYS
from perennial.deployment import Deployment
from perennial.scoring.predictor import DATASET
from perennial.scoring.publish import score

REPEAT = 3
SEEDS = 50
#: Copies of a year: 10.1 M rows.
YEARS = 30
ALL, FEW = YEARS * YEAR, timedelta(days=110)
CHAMPION = 1


# --- the pieces ------------------------------------------------------------------------------------------------------


def judged(state: str, days: int) -> Callable[[], Any]:
    from perennial.monitoring.verdicts import judge_drift

    parts = prepared.deployment(state)
    folder, interval = parts.model(MODEL), Interval(DAYS.start, DAYS.start + timedelta(days=days))

    def run() -> Any:
        found = judge_drift(folder, parts, interval, directory=parts.settings.reports, run_id="benchmark")
        return {"verdict": found.verdict, "reasons": found.reasons[:2], "rows": found.details.to_json()["rows"]}

    return run


def evidently(state: str) -> Callable[[], Any]:
    """Evidently's report of the same columns by the same methods, of all rows of a year, in memory."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    year = FirstYear(prepared.deployment(state))
    numbers = ["prediction", *year.spec.features.numeric]
    texts = list(year.spec.features.categorical)
    rows = year.features.append_column("prediction", year.predictions["prediction"])
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    current, reference = (side.select([*numbers, *texts]).to_pandas() for side in (rows, year.reference))

    def run() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sides = [Dataset.from_pandas(side, data_definition=definition) for side in (current, reference)]
            metrics = [
                *(ValueDrift(column=name, method="wasserstein", threshold=0.1) for name in numbers),
                *(ValueDrift(column=name, method="jensenshannon", threshold=0.1) for name in texts),
            ]
            Report(metrics, include_tests=True).run(*sides).get_html_str(as_iframe=False)
        return len(current)

    return run


def agreement(state: str, seeds: int) -> Callable[[], Any]:
    """By window: the verdict on all rows, and how often a sample of ten million gave which."""
    from perennial.drift.compare import compare
    from perennial.drift.sampling import take_sample

    parts = prepared.deployment(state)
    folder, year = parts.model(MODEL), FirstYear(parts)
    spec = folder.spec

    def verdict(rows: pa.Table, said: pa.Table) -> str:
        return compare(spec.drift, rows, said, year.reference, folder.thresholds, report=False).verdict

    def run() -> Any:
        keys = prepared.read(parts, "features", columns=["flight_id"], interval=prepared.span(YEARS))
        windows = {name: change(year.features) for name, change in WINDOWS.items()}
        found: dict[str, Any] = {
            name: {"all_rows": verdict(rows, year.predictions), "sampled": {}} for name, rows in windows.items()
        }
        for seed in range(seeds):
            sampled, total = take_sample(keys.to_reader(), ["flight_id"], size=spec.drift.sample, seed=seed)
            assert total == keys.num_rows
            # The row of the first year that the key's is a copy of.
            first = pc.binary_join_element_wise("2013", pc.utf8_slice_codeunits(sampled["flight_id"], 4), "")
            places = pc.index_in(first, value_set=year.features["flight_id"].combine_chunks())
            for name, rows in windows.items():
                given = verdict(rows.take(places), year.predictions.take(places))
                found[name]["sampled"][given] = found[name]["sampled"].get(given, 0) + 1
        return {"rows": keys.num_rows, "windows": found}

    return run


class FirstYear:
    """Features and predictions of the first year in the same order, and the champion's reference."""

    def __init__(self, parts: Deployment) -> None:
        self.spec = parts.model(MODEL).spec
        self.features, self.predictions = (self._read(parts, dataset) for dataset in ("features", "predictions"))
        assert self.features["flight_id"].equals(self.predictions["flight_id"])
        reference = parts.registry.load(MODEL, CHAMPION).reference()
        self.reference = reference.drop_columns([self.spec.event_time])

    @staticmethod
    def _read(parts: Deployment, dataset: str) -> pa.Table:
        return prepared.read(parts, dataset, interval=DAYS).sort_by("flight_id").combine_chunks()


def _later(share: float) -> Callable[[pa.Table], pa.Table]:
    """All departures later by a share of the standard deviation of their minutes."""

    def change(rows: pa.Table) -> pa.Table:
        minutes = rows["scheduled_minutes"].to_numpy()
        return _set(rows, "scheduled_minutes", minutes + share * minutes.std())

    return change


def _new_carrier(share: float) -> Callable[[pa.Table], pa.Table]:
    """A share of the flights by an airline that was never seen."""

    def change(rows: pa.Table) -> pa.Table:
        carriers = rows["carrier"].to_numpy(zero_copy_only=False)
        return _set(rows, "carrier", np.where(np.random.default_rng(1).random(len(carriers)) < share, "ZZ", carriers))

    return change


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    kind = rows.schema.field(name).type
    return rows.set_column(rows.column_names.index(name), name, pa.array(values, kind))


WINDOWS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "as it was": lambda rows: rows,
    "4 % of an airline never seen": _new_carrier(0.04),
    "6 % of an airline never seen": _new_carrier(0.06),
    "departures later by half a deviation": _later(0.5),
}


# --- what they work on -----------------------------------------------------------------------------------------------


def state() -> Path:
    """State of a deployment with a champion, and with features and predictions of thirty years."""

    def make(folder: Path) -> None:
        parts = prepared.with_champion(folder)
        score(
            parts.model(MODEL), parts, DAYS, version=CHAMPION,
            order=parts.ledger.next_order(MODEL, DATASET, DAYS, "benchmark"), run_id="benchmark",
            sink_url=parts.settings.predictions_url,
        )  # fmt: skip
        for dataset in ("features", "predictions"):
            prepared.repeat(parts, parts, dataset, range(1, YEARS))

    return prepared.made(f"drift-{YEARS}", make)


def main() -> None:
    told = Told("drift_report")
    place = str(state())
    many, few = [], []
    for _ in range(REPEAT):
        many += apart(judged, state=place, days=ALL.days)
        few += apart(judged, state=place, days=FEW.days)
    rows = many[0].result["rows"]["features"]
    told.add(
        Line(
            f"drift report, {rows:,} rows in the window", f"{few[0].result['rows']['features']:,} rows",
            seconds(many), seconds(few), goal=3.0,
            note="reading, sampling, comparing, report, verdict",
        )
    )  # fmt: skip
    told.add(
        Line(
            f"its memory above the libraries, {rows:,} rows", f"{few[0].result['rows']['features']:,} rows",
            [one.own_mb for one in many], [one.own_mb for one in few], unit="MB",
        )
    )  # fmt: skip
    [peer] = apart(evidently, state=place)
    told.add(
        Line(
            f"drift report, {rows:,} rows in the window", f"Evidently on all of {peer.result:,} rows",
            seconds(many), [peer.seconds], faster=True,
            note=f"Evidently had a thirtieth of the rows; all of them would take about {peer.seconds * YEARS / 60:.0f} min",
        )
    )  # fmt: skip
    [agreed] = apart(agreement, state=place, seeds=SEEDS)
    for name, found in agreed.result["windows"].items():
        print(f"{name}: {found['all_rows']} on all rows, {found['sampled']} of samples", flush=True)
    told.details = {
        "verdicts": {"many": many[0].result, "few": few[0].result},
        "agreement": {"seeds": SEEDS, **agreed.result},
        "evidently_mb": peer.peak_mb,
        "processor_seconds": {"many": processor_seconds(many), "few": processor_seconds(few)},
    }  # fmt: skip
    told.write()


if __name__ == "__main__":
    main()
