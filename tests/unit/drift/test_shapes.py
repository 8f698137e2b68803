"""A column is drawn without a plotting library, in little room, and no value of the data becomes markup."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from perennial.drift.shapes import BINS, CATEGORIES, shape_of


def numbers(*values: float) -> pd.Series:
    return pd.Series(values, dtype="float64")


def test_shares_of_numbers_sum_to_one_and_extremes_count_at_the_ends() -> None:
    rng = np.random.default_rng(0)
    shape = shape_of("numeric", numbers(*rng.normal(3, 1, 1_000), 1e9, -1e9, np.nan, np.inf), numbers(*rng.normal(0, 1, 1_000)))

    assert len(shape.reference) == len(shape.current) == BINS
    assert sum(shape.reference) == pytest.approx(1)
    assert sum(shape.current) == pytest.approx(1)
    assert np.argmax(shape.current) > np.argmax(shape.reference)


@pytest.mark.parametrize("values", [(), (np.nan,), (5.0, 5.0), (np.inf, -np.inf)])
def test_a_column_without_a_spread_is_drawn(values: tuple[float, ...]) -> None:
    picture = shape_of("numeric", numbers(*values), numbers(*values)).to_svg()

    assert "nan" not in picture
    ET.fromstring(picture)


def test_rare_categories_are_taken_together() -> None:
    many = pd.Series([f"c{n}" for n in range(50)] + ["often"] * 50)
    shape = shape_of("categorical", many, pd.Series(["often", None, "before"]))

    assert set(shape.labels[:2]) == {"often", "before"}
    assert shape.labels[-1] == f"{52 - CATEGORIES} others"
    assert sum(shape.current) == pytest.approx(1)
    assert sum(shape.reference) == pytest.approx(1)


def test_a_category_cannot_leave_its_place_in_the_picture() -> None:
    attack = "</text><script>alert(1)</script>"
    picture = shape_of("categorical", pd.Series([attack, "a\u202eb"]), pd.Series([attack])).to_svg()

    assert "<script" not in picture
    assert "\u202e" not in picture
    assert {element.tag for element in ET.fromstring(picture).iter()} == {"svg", "text", "rect"}


def test_a_picture_is_small() -> None:
    rng = np.random.default_rng(0)
    numeric = shape_of("numeric", numbers(*rng.normal(0, 1, 10_000)), numbers(*rng.normal(0, 1, 10_000)))
    categorical = shape_of("categorical", pd.Series(rng.integers(0, 99, 999).astype(str)), pd.Series(["1"]))

    assert len(numeric.to_svg()) < 2_000
    assert len(categorical.to_svg()) < 4_000
