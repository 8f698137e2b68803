"""Pictures are drawn of whatever was predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perennial.evaluation.plots import draw_predictions
from perennial.model.artifacts import Prediction


@pytest.mark.parametrize(
    "truth",
    [
        pytest.param([0.0] * 50, id="all are 0"),
        pytest.param([0.1 + 0.2, 0.3] * 25, id="the same but for rounding"),
        pytest.param([1e9 / 3] * 50, id="the same, and large"),
        pytest.param([1e17, 1e17 + 16] * 25, id="as close as numbers of this size can be"),
        pytest.param([-1.7e308, 1.7e308] * 25, id="as far as numbers can be"),
        pytest.param([1.0], id="one row"),
    ],
)
def test_residuals_of_any_numbers_are_drawn(truth: list[float], tmp_path: Path) -> None:
    predicted = Prediction(-np.array(truth), None, None, ())

    [file] = draw_predictions("regression", np.array(truth), {"boosting": predicted}, tmp_path, rows="the holdout")

    assert file.stat().st_size > 1000
