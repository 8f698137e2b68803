"""The distances that thresholds are calibrated by are those that verdicts are made by."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.drift.compare import compare
from perennial.drift.distances import MAX_CATEGORIES, Categories, Numbers, prepare
from perennial.spec.monitoring import Drift

POLICY = Drift(min_rows=50, max_missing=1.0, max_new_categories=1.0)


def scores_of_evidently(current: pa.Table, reference: pa.Table) -> dict[str, float | None]:
    said = pa.array(np.linspace(0, 1, 300))
    known = reference.append_column("prediction", pa.array(np.linspace(0, 1, reference.num_rows)))
    found = compare(POLICY, current, pa.table({"prediction": said}), known)
    return {column.column: column.score for column in found.columns if column.column != "prediction"}


@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_those_of_evidently(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = 2_000
    numbers = random.lognormal(size=rows) * 10.0 ** random.integers(-3, 6)
    numbers[random.random(rows) < 0.1] = np.nan
    names = np.array([f"c{number}" for number in range(MAX_CATEGORIES + 80)])
    many = random.choice(names, rows, p=(weights := 1 / np.arange(1, len(names) + 1)) / weights.sum())
    table = pa.table(
        {
            "numbers": pa.array(numbers, from_pandas=True),
            "few": random.integers(0, 4, rows),
            "kinds": pa.array(random.choice(np.array(["a", "b", None]), rows, p=[0.5, 0.3, 0.2])),
            "many": many,
        }
    )
    window, reference = (np.flatnonzero(random.random(rows) < share) for share in (0.2, 0.6))
    expected = scores_of_evidently(table.take(pa.array(window)), table.take(pa.array(reference)))
    counts = [np.bincount(chosen, minlength=rows).astype(float) for chosen in (window, reference)]

    for name, score in expected.items():
        assert prepare(table.column(name)).distance(*counts) == pytest.approx(score, rel=1e-9, abs=1e-12), name


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=120, max_size=120),
    counts=st.lists(st.integers(0, 3), min_size=120, max_size=120),
)
@settings(deadline=None, max_examples=50)
def test_counting_a_row_twice_is_having_it_twice(values: list[float], counts: list[int]) -> None:
    given_values, times = np.array(values), np.array(counts)
    once = np.ones(len(given_values))
    repeated = np.concatenate([given_values, np.repeat(given_values, times)])
    second = np.arange(len(repeated)) >= len(given_values)
    expected = Numbers(repeated).distance(second.astype(float), (~second).astype(float))
    assert Numbers(given_values).distance(times.astype(float), once) == pytest.approx(expected, nan_ok=True, rel=1e-6, abs=1e-9)


def test_the_same_rows_are_no_distance_apart() -> None:
    random = np.random.default_rng(1)
    ones = np.ones(400)
    assert Numbers(random.normal(size=400)).distance(ones, ones) == 0
    assert Categories(pa.array(random.choice(["a", "b"], 400))).distance(ones, ones) == 0


def test_too_few_values_are_no_distance() -> None:
    column = Numbers(np.where(np.arange(400) < 45, 1.0, np.nan))
    assert math.isnan(column.distance(np.ones(400), np.ones(400)))


def test_the_share_of_strange_categories_is_told() -> None:
    column = Categories(pa.array(["a", "b", "c", None] * 100))
    window, reference = np.ones(400), np.tile([1.0, 1.0, 0.0, 1.0], 100)
    assert column.strange(window, reference) == pytest.approx(1 / 3)
