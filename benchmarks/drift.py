"""False alarms on streams that do not change, and how soon changes of a stated size are found, beside Evidently's defaults.

The streams are the flights of 2013 in blocks of whole days, drawn with replacement: the days are real, their season is gone,
so nothing in a stream changes but by chance. Days are divided for good: on one half a model is fitted and thresholds are
calibrated, from the other half come references and windows, and no day is on both sides of a comparison. A window is seven
days. Then the same windows are changed in one way each.

The peer is Evidently's DataDriftPreset with its default methods and thresholds (Wasserstein and Jensen-Shannon distances of
0.1, half of the columns): its own report is run on some of the windows, and what it finds there must equal the distances that
are taken of all of them directly, since the report of hundreds of windows would take an hour.

The sizes are those that are found. A doubling of late flights, for one, is not: in 10 streams it was found in one, since in
these data delays differ from day to day by more.

A change of the concept (other labels for the same rows) cannot be seen in rows or predictions. It is found by realised
performance, in windows of labels, and the table says so.

    python -m benchmarks.drift
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.flight_delay import YEAR, flight_delay, labelled_features, read_tables
from benchmarks.measuring import keep
from perennial.core.intervals import Interval
from perennial.drift.compare import compare
from perennial.drift.thresholds import Geometry, StableHistory, calibrate
from perennial.model.artifacts import FeatureList
from perennial.model.estimators import make_estimator
from perennial.monitoring.impact import weigh
from perennial.monitoring.usual import Bound, JudgedWindow
from perennial.spec.monitoring import Drift, DriftThresholds

from evidently import DataDefinition, Dataset, Report  # isort: skip
from evidently.presets import DataDriftPreset  # isort: skip

SEED = 2013
STREAMS, WINDOWS = 50, 3  # without a change
CHANGED = 8  # streams of two windows for each change
PEER_REPORTS = 2
GEOMETRY = Geometry(window=7, reference=90, unseen=14, gap=(7, 38))
POLICY = Drift(false_alarms=1.0)
WEEKS = 365.25 / 7
#: What Evidently compares with where nothing else is said and a side has more than a thousand rows.
DEFAULT_THRESHOLD, DEFAULT_SHARE = 0.1, 0.5


@dataclass(frozen=True)
class Change:
    """What happens to a window.

    Attributes:
        size: in words.
        of: the rows, changed.
    """

    size: str
    of: Callable[[pa.Table, np.random.Generator], pa.Table]


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    kind = rows.schema.field(name).type
    return rows.set_column(rows.column_names.index(name), name, pa.array(values, from_pandas=True).cast(kind, safe=False))


def _numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    return np.array(pc.cast(rows[name], pa.float64()), dtype=np.float64)


def _mean(rows: pa.Table, _: np.random.Generator) -> pa.Table:
    minutes = _numbers(rows, "scheduled_minutes")
    return _set(rows, "scheduled_minutes", minutes + 0.25 * minutes.std())


def _variance(rows: pa.Table, _: np.random.Generator) -> pa.Table:
    age = _numbers(rows, "aircraft_age")
    middle = np.nanmean(age)
    return _set(rows, "aircraft_age", middle + 1.5 * (age - middle))


def _category(rows: pa.Table, random: np.random.Generator) -> pa.Table:
    carrier = rows["carrier"].to_numpy(zero_copy_only=False)
    return _set(rows, "carrier", np.where(random.random(len(carrier)) < 0.06, "ZZ", carrier))


def _missing(rows: pa.Table, random: np.random.Generator) -> pa.Table:
    seats = _numbers(rows, "seats")
    return _set(rows, "seats", np.where(random.random(len(seats)) < 0.15, np.nan, seats))


def _slice(rows: pa.Table, _: np.random.Generator) -> pa.Table:
    distance, there = _numbers(rows, "distance"), rows["origin"].to_numpy(zero_copy_only=False) == "LGA"
    return _set(rows, "distance", np.where(there, 1.609 * distance, distance))


def _labels(rows: pa.Table, random: np.random.Generator) -> pa.Table:
    late = rows["label"].to_numpy(zero_copy_only=False)
    chance = np.where(late, 4.0, 1.0)
    # Late flights are four times as frequent, and late flights and punctual ones look as they did.
    return rows.take(pa.array(random.choice(len(late), size=len(late), p=chance / chance.sum())))


def _concept(rows: pa.Table, random: np.random.Generator) -> pa.Table:
    late = rows["label"].to_numpy(zero_copy_only=False)
    return _set(rows, "label", np.where(random.random(len(late)) < 0.5, random.permutation(late), late))


CHANGES = {
    "mean": Change("scheduled_minutes 0.25 standard deviations up", _mean),
    "variance": Change("aircraft_age spread out 1.5 times", _variance),
    "new category": Change("6 % of flights by an unknown carrier", _category),
    "missingness": Change("15 % of seats lost", _missing),
    "one slice only": Change("distance in kilometres, at LGA alone", _slice),
    "label shift": Change("late flights four times as frequent", _labels),
    "concept shift": Change("half of the labels shuffled", _concept),
}


class World:
    """Rows by day, and a model that predicts them."""

    def __init__(self) -> None:
        self.folder = flight_delay()
        with tempfile.TemporaryDirectory() as scratch:
            tables = read_tables(self.folder, Path(scratch))
        self.rows = labelled_features(self.folder, tables, YEAR)
        moments = self.rows[self.folder.spec.event_time].to_numpy().astype("datetime64[D]")
        self.days = np.unique(moments)
        borders = np.searchsorted(moments, [*self.days, self.days[-1] + 1])
        self.rows_of = [np.arange(first, last) for first, last in pairwise(borders)]
        self.features = FeatureList.of(self.folder.spec)
        fitting = self.take(np.arange(0, len(self.days), 4))
        with threadpool_limits(1):
            self.estimator = make_estimator(self.folder, "boosting", {}).fit(
                self.features.frame(fitting), fitting["label"].to_numpy()
            )

    def take(self, days: NDArray[np.int64]) -> pa.Table:
        return self.rows.take(pa.array(np.concatenate([self.rows_of[day] for day in days])))

    def predict(self, rows: pa.Table) -> pa.Table:
        """The rows with ``prediction``."""
        said = self.estimator.predict_proba(self.features.frame(rows))[:, 1]
        return rows.append_column("prediction", pa.array(said))

    def calibrate(self) -> DriftThresholds:
        """By the days whose number is even."""
        known = np.random.default_rng(SEED).permutation(np.arange(0, len(self.days), 2))
        rows = self.predict(self.take(known))
        lengths = [len(self.rows_of[day]) for day in known]
        moments = np.repeat(self.days[: len(known)], lengths).astype("datetime64[us]")
        history = StableHistory(rows.select([*self.features.names, "prediction"]), moments, YEAR)
        return calibrate(POLICY, GEOMETRY, history, seed=SEED, replays=300)

    def stream(self, seed: int, windows: int) -> tuple[pa.Table, list[pa.Table]]:
        """A reference and windows, of days whose number is odd; no day is in both."""
        random = np.random.default_rng([SEED, seed])
        days = random.permutation(np.arange(1, len(self.days), 2))
        known, to_come = days[: len(days) // 2], days[len(days) // 2 :]
        reference = self.take(random.choice(known, GEOMETRY.reference))
        said = self.predict(reference)["prediction"].to_numpy().copy()
        older = len(said) * (GEOMETRY.reference - GEOMETRY.unseen) // GEOMETRY.reference
        said[:older] = np.nan
        reference = reference.append_column("prediction", pa.array(said, from_pandas=True))
        sample = np.sort(random.choice(len(said), POLICY.sample, replace=False))
        return reference.take(pa.array(sample)), [self.take(random.choice(to_come, GEOMETRY.window)) for _ in range(windows)]


@dataclass(frozen=True)
class Found:
    """What each side says of a window."""

    ours: str
    share: float
    anything: bool


def judge(world: World, thresholds: DriftThresholds, reference: pa.Table, window: pa.Table) -> Found:
    said = world.predict(window)
    known = reference.select([*world.features.names, "label", "prediction"])
    verdict = compare(POLICY, said.select(world.features.names), said.select(["prediction"]), known, thresholds, report=False)
    # The same distances, by Evidently's thresholds.
    beyond = [column.score is not None and column.score >= DEFAULT_THRESHOLD for column in verdict.columns]
    return Found(verdict.verdict, float(np.mean(beyond)), any(beyond))


def ask_evidently(world: World, reference: pa.Table, window: pa.Table) -> float:
    """The share of columns that its preset calls drifted."""
    spec = world.folder.spec
    definition = DataDefinition(
        numerical_columns=[*spec.features.numeric, "prediction"], categorical_columns=list(spec.features.categorical)
    )
    names = [*world.features.names, "prediction"]
    sides = [
        Dataset.from_pandas(rows.select(names).to_pandas().astype(dict.fromkeys(spec.features.numeric, float)), definition)
        for rows in (world.predict(window), reference)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snapshot = Report([DataDriftPreset()]).run(*sides)
    counted = next(metric for metric in snapshot.dict()["metrics"] if "DriftedColumnsCount" in metric["metric_name"])
    return float(counted["value"]["share"])


def realised(world: World, window: pa.Table) -> float:
    return float(roc_auc_score(window["label"].to_numpy(), world.predict(window)["prediction"].to_numpy()))


def usual(world: World, reference: pa.Table) -> Bound:
    """Below what the area under the curve falls in one of twenty windows, by days of the reference's unseen part."""
    seen = reference.filter(pc.is_valid(reference["prediction"]))
    day = seen[world.folder.spec.event_time].to_numpy().astype("datetime64[D]")
    groups = [np.flatnonzero(day == one) for one in np.unique(day)]
    truth, said = seen["label"].to_numpy(), seen["prediction"].to_numpy()
    random = np.random.default_rng(SEED)
    values = []
    for _ in range(200):
        drawn = np.concatenate([groups[number] for number in random.integers(len(groups), size=GEOMETRY.window)])
        values.append(roc_auc_score(truth[drawn], said[drawn]))
    return Bound("roc_auc", float(np.quantile(values, 0.025)), True, "its interval")


def fell(world: World, bound: Bound, window: pa.Table) -> bool:
    week = Interval.of("2013-04-01", "2013-04-08")
    measured = JudgedWindow(week, 1, "roc_auc", realised(world, window), bound)
    impact = weigh(world.folder.spec.retraining, "ok", week, windows=[measured], version=1)
    return impact.severity != "none"


def main() -> None:
    console, started = Console(), time.monotonic()
    world = World()
    thresholds = world.calibrate()
    console.print(f"model and thresholds: {time.monotonic() - started:.0f} s; expected {thresholds.expected:g} alarms a year")

    stable: list[Found] = []
    falls: list[bool] = []
    agreed = 0
    for number in range(STREAMS):
        reference, windows = world.stream(number, WINDOWS)
        found = [judge(world, thresholds, reference, window) for window in windows]
        stable += found
        bound = usual(world, reference)
        falls += [fell(world, bound, window) for window in windows]
        if number < PEER_REPORTS:
            share = ask_evidently(world, reference, windows[0])
            agreed += abs(share - found[0].share) < 1e-9
            console.print(
                f"Evidently's own report of a window: {share:.1%} of the columns; taken directly: {found[0].share:.1%}"
            )
    many = len(stable)
    console.print(f"{len(stable)} windows without a change: {time.monotonic() - started:.0f} s")
    alarms = {
        "perennial": sum(found.ours == "drift" for found in stable),
        "evidently": sum(found.share >= DEFAULT_SHARE for found in stable),
        "evidently, any column": sum(found.anything for found in stable),
        "realised performance": sum(falls),
    }
    unknown = sum(found.ours == "unknown" for found in stable)

    delays: dict[str, dict[str, float]] = {}
    for name, change in CHANGES.items():
        hits: dict[str, list[int]] = {"perennial": [], "evidently": []}
        for number in range(CHANGED):
            random = np.random.default_rng([SEED, number, 1])
            reference, windows = world.stream(1_000 + number, 2)
            changed = [change.of(window, random) for window in windows]
            if name == "concept shift":
                bound = usual(world, reference)
                ours = [fell(world, bound, window) for window in changed]
                theirs = [judge(world, thresholds, reference, changed[0]).share >= DEFAULT_SHARE] * 2
            else:
                judged = [judge(world, thresholds, reference, window) for window in changed]
                ours = [found.ours != "ok" for found in judged]
                theirs = [found.share >= DEFAULT_SHARE for found in judged]
            for side, said in (("perennial", ours), ("evidently", theirs)):
                hits[side].append(1 if said[0] else 2 if said[1] else 3)
        delays[name] = {
            **{f"{side}_{what}": float(np.mean(np.array(found) <= most)) for side, found in hits.items()
               for what, most in (("first", 1), ("two", 2))},
        }  # fmt: skip

    table = Table(f"{many} windows without a change", Column("alarms", justify="right"), Column("a year", justify="right"))
    for side, count in alarms.items():
        table.add_row(side, str(count), f"{count / many * WEEKS:.1f}")
    console.print(table)
    table = Table(
        "change", "size", *(Column(name, justify="right") for name in ("1st window", "within 2", "Evidently within 2"))
    )
    for name, row in delays.items():
        how = " (by labels)" if name == "concept shift" else ""
        table.add_row(
            name + how,
            CHANGES[name].size,
            f"{row['perennial_first']:.0%}",
            f"{row['perennial_two']:.0%}",
            f"{row['evidently_two']:.0%}",
        )
    console.print(table)
    goals = {
        "fewer false alarms than Evidently's defaults": alarms["perennial"] < alarms["evidently"],
        "every change found within two windows, in each stream": all(row["perennial_two"] == 1 for row in delays.values()),
        "Evidently's own report agrees with the distances taken directly": agreed == PEER_REPORTS,
    }
    for goal, reached in goals.items():
        console.print(f"{'reached' if reached else 'MISSED '}  {goal}")
    report = {
        "windows": many, "streams": STREAMS, "changed_streams": CHANGED, "seed": SEED, "alarms": alarms, "unknown": unknown,
        "a_year": {side: round(count / many * WEEKS, 2) for side, count in alarms.items()},
        "budget_a_year": POLICY.false_alarms, "expected_a_year": thresholds.expected,
        "changes": {name: {"size": CHANGES[name].size, **row} for name, row in delays.items()}, "goals": goals,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    keep("drift", report)


if __name__ == "__main__":
    main()
