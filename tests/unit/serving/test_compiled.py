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
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits

from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.model.estimators import make_estimator
from perennial.serving import champion
from perennial.serving.champion import prepare
from perennial.serving.compiled import FEW, compiled, few_at_once
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


@pytest.mark.parametrize("booster", [HistGradientBoostingClassifier, HistGradientBoostingRegressor], ids=["classes", "numbers"])
@pytest.mark.parametrize("loss", ["one tree an iteration", "several trees an iteration, or a loss with a link"])
def test_a_row_that_goes_through_all_trees_at_once_gets_the_same_bits(booster: Any, loss: str) -> None:
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(600, 6))
    rows[generator.random(rows.shape) < 0.1] = np.nan
    score = np.nan_to_num(rows[:, 0]) + generator.normal(size=600)
    special = loss.startswith("several")
    if booster is HistGradientBoostingRegressor:
        fitted = booster(max_iter=30, loss="poisson" if special else "squared_error").fit(rows, np.exp(score))
    else:
        fitted = booster(max_iter=30).fit(rows, np.digitize(score, [-1, 1] if special else [0]))
    few = few_at_once(fitted)
    assert few is not fitted
    asked = np.concatenate([rows[:40], np.full((2, 6), np.nan), rows[40:60] * 1e300, rows[60:80] * -0.0])
    for count in (1, 3, FEW, FEW + 1):
        for start in range(0, len(asked) - count, count):
            part = asked[start : start + count]
            assert np.array_equal(few.predict(part), fitted.predict(part))
            if booster is HistGradientBoostingClassifier:
                assert np.array_equal(few.predict_proba(part), fitted.predict_proba(part))


def test_a_booster_with_features_that_are_categories_is_asked_as_it_is() -> None:
    rows = np.random.default_rng(5).integers(0, 4, size=(200, 2)).astype(float)
    fitted = HistGradientBoostingRegressor(max_iter=5, categorical_features=[0]).fit(rows, rows[:, 0])
    assert few_at_once(fitted) is fitted


def test_other_pipelines_are_served_as_they_are(tmp_path: Path) -> None:
    loaded = booster(tmp_path, "regression")
    more = make_pipeline(FunctionTransformer(), loaded.estimator)
    assert prepare("toy", dataclasses.replace(loaded, estimator=more)).fast is None
