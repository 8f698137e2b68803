"""What is predicted of a file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from perennial.authoring.draft import choose_label, task_of
from perennial.authoring.profile import look


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["0", "1"], "binary_classification"),
        (["yes", "no"], "binary_classification"),
        (["a", "b", "c"], "multiclass_classification"),
        (["0", "1", "2"], "multiclass_classification"),
        ([f"{n}.5" for n in range(60)], "regression"),
        ([str(n) for n in range(60)], "regression"),
    ],
)
def test_the_label_says_which_task_it_is(tmp_path: Path, values: list[str], task: str) -> None:
    times = pd.date_range("2022-01-01", periods=240, freq="h").strftime("%Y-%m-%d %H:%M")
    pd.DataFrame({"at": times, "label": (values * 240)[:240]}).to_csv(tmp_path / "a.csv", index=False)
    assert task_of(choose_label(look(tmp_path / "a.csv"), "label")) == task
