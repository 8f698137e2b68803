"""The form without pandas is used where it gives the same bits, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits

from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.model.estimators import make_estimator
from perennial.serving import champion
from perennial.serving.champion import prepare
from perennial.serving.compiled import compiled
from perennial.spec.types import Task
from tests.unit import synthetic


def booster(place: Path, task: Task) -> LoadedModel:
    folder = synthetic.write_folder(place, task)
    rows = synthetic.make_rows(5)
    table = pa.Table.from_pandas(rows[["x", "noise", "kind"]], preserve_index=False)
    truth = {
        "binary_classification": (rows["y"] > 0.5).to_numpy(),
        "multiclass_classification": np.where(rows["y"] < 0, "low", "high").astype(object),
        "regression": rows["y"].to_numpy(),
    }[task]
    takes = FeatureList.of(folder.spec)
    with threadpool_limits(1):
        estimator = make_estimator(folder, "boosting", {"max_iter": 5}).fit(takes.frame(table), truth)
    return LoadedModel("toy version 1", 1, task, takes, "", "", estimator, table)


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification", "regression"])
def test_a_booster_is_served_without_pandas_and_to_the_same_bits(tmp_path: Path, task: Task) -> None:
    served = prepare("toy", booster(tmp_path, task))
    assert served.fast is not None
    slow = dataclasses.replace(served, fast=None)
    generator = np.random.default_rng(3)
    values = generator.normal(size=40).tolist()
    columns = {
        "x": [None, *values[:39]],
        "noise": [*values[:20], *[None] * 20],
        "kind": ["a", "b", None, "never seen", ""] * 8,
    }
    assert np.array_equal(served.predict(columns, 40).numbers, slow.predict(columns, 40).numbers)
    for row in range(40):
        one = {name: values[row : row + 1] for name, values in columns.items()}
        assert np.array_equal(served.predict(one, 1).numbers, slow.predict(one, 1).numbers)


def test_a_form_that_gives_other_bits_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = booster(tmp_path, "regression")
    made = compiled(loaded.estimator, loaded.takes)
    assert made is not None
    assemble, estimator = made

    def forgetful(columns: Mapping[str, Sequence[Any]], count: int) -> NDArray[np.float64]:
        return assemble({**columns, "x": [0.0] * count}, count)

    monkeypatch.setattr(champion, "compiled", lambda *_: (forgetful, estimator))
    assert prepare("toy", loaded).fast is None


def test_other_pipelines_are_served_as_they_are(tmp_path: Path) -> None:
    loaded = booster(tmp_path, "regression")
    more = make_pipeline(FunctionTransformer(), loaded.estimator)
    assert prepare("toy", dataclasses.replace(loaded, estimator=more)).fast is None
