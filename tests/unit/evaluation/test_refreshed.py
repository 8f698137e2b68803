"""Refreshes are compared with an older version day by day, and only a loss that matters speaks against them."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from perennial.core.intervals import Interval
from perennial.evaluation.refreshed import Stretch, roll
from perennial.model.artifacts import Prediction
from perennial.spec.folder import ModelFolder
from tests.unit.synthetic import write_folder

WEEK = Interval.of("2013-05-06", "2013-05-13")
ROWS_A_DAY = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return write_folder(tmp_path_factory.mktemp("models"))


def prediction(values: NDArray[np.float64]) -> Prediction:
    return Prediction(values, values, np.column_stack([1 - values, values]), ("False", "True"))


def stretches(noise: float) -> list[Stretch]:
    """Two weeks; the anchor is good, and the refreshed versions are the anchor with noise."""
    random, made = np.random.default_rng(1), []
    for number in range(2):
        week = Interval(WEEK.start + number * timedelta(weeks=1), WEEK.end + number * timedelta(weeks=1))
        seconds = np.sort(random.uniform(0, 7 * 86_400, 7 * ROWS_A_DAY))
        moments = [week.start + timedelta(seconds=float(second)) for second in seconds]
        odds = random.normal(size=len(moments))
        chance = 1 / (1 + np.exp(-1.5 * odds))
        rows = pa.table({"moment": pa.array(moments, pa.timestamp("us", "UTC")), "label": random.random(len(moments)) < chance})
        noisy = 1 / (1 + np.exp(-1.5 * (odds + noise * random.normal(size=len(odds)))))
        made.append(Stretch(week, 2 + number, rows, prediction(noisy), prediction(chance)))
    return made


def test_refreshes_that_lose_a_lot_are_worse_on_each_day(folder: ModelFolder) -> None:
    found = roll(folder.spec, 1, stretches(noise=2.0), None)
    assert found is not None
    assert sum(found.worse.values()) == sum(found.days.values()) == 14
    assert found.evidence > folder.spec.gates.refresh.false_restores


def test_a_loss_below_the_margin_does_not_speak_against_refreshes(folder: ModelFolder) -> None:
    found = roll(folder.spec, 1, stretches(noise=0.08), None)
    assert found is not None
    assert sum(found.worse.values()) < 7
    assert found.evidence < 1


def test_margin_decides_which_loss_matters(folder: ModelFolder) -> None:
    def worse(margin: float) -> int:
        gates = folder.spec.gates
        strict = gates.model_copy(update={"refresh": gates.refresh.model_copy(update={"margin": margin})})
        found = roll(folder.spec.model_copy(update={"gates": strict}), 1, stretches(noise=0.3), None)
        assert found is not None
        return sum(found.worse.values())

    assert worse(0.0) > worse(0.05) > worse(0.5) == 0


def test_there_is_nothing_to_compare_while_the_older_version_serves(folder: ModelFolder) -> None:
    served = [Stretch(one.interval, 1, one.rows, one.served, one.anchor) for one in stretches(noise=1.0)]
    assert roll(folder.spec, 1, served, None) is None
