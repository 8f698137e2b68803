"""Streams of labelled rows, day by day, to replay policies on: made ones whose truth is known, and the flights of 2013.

A made stream has 300 rows a day for 52 weeks. Eight numbers and a category decide the label, by a truth that stays or changes:

- ``stationary``: nothing changes.
- ``gradual``: the truth turns into another one over the year.
- ``abrupt``: the truth becomes another one between two days, halfway through the replayed weeks.
- ``recurring``: two truths take turns, six weeks each.
- ``growing``: a group with a truth of its own grows from 2 % to half of the rows, and there are ever more rows.
- ``fading``: the strongest feature slowly becomes noise.
- ``noisy``: every eight weeks, a quarter of the labels are wrong for two weeks.

The last three were put aside while the net under refreshes was tuned (docs/decisions/0071).

The flights have the features and labels that the product makes of them (:mod:`benchmarks.flight_delay`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.flight_delay import YEAR, flight_delay, labelled_features, read_tables
from benchmarks.prepared import made
from perennial.core.intervals import Interval, utc
from perennial.spec.folder import ModelFolder, read_model

HISTORY, WEEKS, ROWS = 13, 39, 300
#: All made streams begin on this day.
BEGIN = utc("2024-01-01")
NUMBERS = [f"x{number}" for number in range(8)]
GROUPS = np.array(["north", "east", "south", "west"])

Floats = NDArray[np.float64]

_MODEL = """
name: made
owner: benchmarks
description: A made stream, whose truth is known.
task: binary_classification
sources: {rows: {files: "rows/%Y-%m-%d.csv"}}
tables:
  events:
    source: rows
    key: [event]
    event_time: moment
    known: moment
    columns: {event: {type: string}, moment: {type: timestamp}, NUMBERS, place: {type: string}}
  outcomes:
    source: rows
    key: [event]
    event_time: moment
    known: moment
    columns: {event: {type: string}, moment: {type: timestamp}, outcome: {type: integer}}
entity: {table: events, as_of: moment}
features: {numeric: [NAMES], categorical: [place]}
label: {table: outcomes, sql: outcome = 1}
candidates:
  prior: {estimator: prior, baseline: true}
  logistic: {estimator: logistic_regression, baseline: true}
  boosting:
    estimator: gradient_boosting
    params: {max_iter: 60, max_leaf_nodes: 8, min_samples_leaf: 50, early_stopping: false}
    search: {learning_rate: [0.05, 0.1]}
cost: {outcomes: {false_positive: 1, false_negative: 3}}
training: {holdout: 28d}
gates: {slices: {columns: [place]}}
schedules: {train: month}
"""


@dataclass(frozen=True)
class Stream:
    """Rows to replay, and the model that learns from them.

    Attributes:
        name: what it is called.
        folder: the model's folder.
        rows: features, event time, ``label`` and ``label_known_at``, in order.
        begin: when the first replayed week begins. What is before is history.
        weeks: how many weeks are replayed.
    """

    name: str
    folder: ModelFolder
    rows: pa.Table
    begin: datetime
    weeks: int

    def learning_from(self, days: int, seed: int) -> Stream:
        """The same stream with another training window, and another seed of everything random in training.

        The holdout is four weeks long on each stream: a longer one makes policies worse that serve what they judged.
        """
        spec = self.folder.spec
        training = spec.training.model_copy(
            update={"window": timedelta(days=days), "holdout": timedelta(weeks=4), "seed": seed}
        )
        folder = self.folder.model_copy(update={"spec": spec.model_copy(update={"training": training})})
        return Stream(self.name, folder, self.rows, self.begin, self.weeks)


@dataclass(frozen=True)
class _Drawn:
    """n rows while their truth is decided.

    Attributes:
        week: weeks since the beginning, with a fraction.
        x: n by 8 numbers; those that are seen may be changed in place.
        place: n categories.
        random: for all that is left to chance.
    """

    week: Floats
    x: Floats
    place: NDArray[np.str_]
    random: np.random.Generator


def _odds(x: Floats, place: NDArray[np.str_], turned: Floats) -> Floats:
    """Log-odds of n rows, by a truth between two: 0 is the one, 1 the other, which uses the numbers the other way round."""
    first, other = (
        1.1 * one[:, 0] + 0.8 * np.maximum(one[:, 1], 0) - 0.7 * one[:, 2] * one[:, 3] + 0.5 * np.sin(2 * one[:, 4])
        for one in (x, x[:, ::-1])
    )
    of_place = np.select([place == name for name in GROUPS[:3]], [0.4, 0.0, -0.4], 0.2)
    odds: Floats = (1 - turned) * first + turned * other + of_place - 1.6
    return odds


def _stationary(drawn: _Drawn) -> Floats:
    return _odds(drawn.x, drawn.place, np.zeros(len(drawn.week)))


def _gradual(drawn: _Drawn) -> Floats:
    return _odds(drawn.x, drawn.place, drawn.week / (HISTORY + WEEKS))


def _abrupt(drawn: _Drawn) -> Floats:
    return _odds(drawn.x, drawn.place, np.where(drawn.week >= HISTORY + WEEKS // 2, 0.7, 0.0))


def _recurring(drawn: _Drawn) -> Floats:
    return _odds(drawn.x, drawn.place, np.where(drawn.week // 6 % 2 == 1, 0.6, 0.0))


def _growing(drawn: _Drawn) -> Floats:
    share = 0.02 + 0.48 * drawn.week / (HISTORY + WEEKS)
    drawn.place[drawn.random.random(len(share)) < share] = "west"
    return _odds(drawn.x, drawn.place, np.where(drawn.place == "west", 0.8, 0.0))


def _fading(drawn: _Drawn) -> Floats:
    odds = _odds(drawn.x, drawn.place, np.zeros(len(drawn.week)))
    noise = drawn.week / (HISTORY + WEEKS)
    drawn.x[:, 0] = np.sqrt(1 - noise) * drawn.x[:, 0] + np.sqrt(noise) * drawn.random.normal(size=len(noise))
    return odds


_TRUTHS: dict[str, Callable[[_Drawn], Floats]] = {
    "stationary": _stationary,
    "gradual": _gradual,
    "abrupt": _abrupt,
    "recurring": _recurring,
    "growing": _growing,
    "fading": _fading,
    "noisy": _stationary,
}
#: The streams that the net was tuned on, and those that were put aside.
KNOWN, PUT_ASIDE = tuple(_TRUTHS)[:4], tuple(_TRUTHS)[4:]


def made_stream(name: str, seed: int) -> Stream:
    """One of the made streams, with rows of that seed."""
    random = np.random.default_rng([seed, list(_TRUTHS).index(name)])
    days = 7 * (HISTORY + WEEKS)
    mean = ROWS * (0.6 + 0.8 * np.arange(days) / days) if name == "growing" else np.full(days, ROWS)
    day = np.repeat(np.arange(days), random.poisson(mean))
    second = np.sort(day * 86_400.0 + random.random(len(day)) * 86_400)
    # What a day has in common: its rows are alike, and the odds of all of them move together.
    of_day = random.normal(scale=0.4, size=(days, len(NUMBERS) + 1))
    x = 0.9 * random.normal(size=(len(day), len(NUMBERS))) + of_day[day, :-1]
    drawn = _Drawn(second / 604_800, x, random.choice(GROUPS, len(day)), random)
    odds = _TRUTHS[name](drawn) + 0.7 * of_day[day, -1]
    label = random.random(len(day)) < expit(odds)
    if name == "noisy":
        wrong = (drawn.week % 8 >= 6) & (random.random(len(day)) < 0.25)
        label = np.where(wrong, random.random(len(day)) < 0.5, label)
    moment = pa.array((BEGIN.timestamp() * 1e6 + second * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC"))
    rows = pa.table(
        {
            "event": pa.array([f"{number:06d}" for number in range(len(day))]),
            "moment": moment,
            **{name: drawn.x[:, place] for place, name in enumerate(NUMBERS)},
            "place": pa.array(drawn.place.tolist()),
            "label": label,
            "label_known_at": moment,
        }
    )
    return Stream(name, _made_folder(), rows, BEGIN + timedelta(weeks=HISTORY), WEEKS)


@cache
def _made_folder() -> ModelFolder:
    columns = ", ".join(f"{name}: {{type: float}}" for name in NUMBERS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "made"
        folder.mkdir()
        (folder / "model.yaml").write_text(_MODEL.replace("NUMBERS", columns).replace("NAMES", ", ".join(NUMBERS)))
        (folder / "features.sql").write_text(f"SELECT event, {', '.join(NUMBERS)}, place FROM entities\n")
        return read_model(folder)


def flights() -> Stream:
    """The flights of 2013 from 1 April on. Their features are made once and kept."""
    folder = flight_delay()

    def make(place: Path) -> None:
        place.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            rows = labelled_features(folder, read_tables(folder, Path(scratch)), YEAR)
        feather.write_feather(rows, place / "rows.arrow")

    kept = made(f"labelled-{folder.features_digest[:12]}", make)
    rows = feather.read_table(kept / "rows.arrow")
    return Stream("flights", folder, rows, Interval.day("2013-04-01").start, WEEKS)
