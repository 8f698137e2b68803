"""Boosters of other libraries are fitted, stored and loaded without pickle, again and again with the same answers."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import skops.io
from threadpoolctl import threadpool_limits

from perennial.core.errors import TrainingError, VersionUnusable
from perennial.evaluation.confined import Confinement
from perennial.model import artifacts
from perennial.model.artifacts import TRUSTED_TYPES, FeatureList, LoadedModel
from perennial.model.authors_code import running_in
from perennial.model.boosters import LIBRARIES, Booster
from perennial.model.estimators import fit_estimator
from perennial.operations.inspection import find_faults
from perennial.serving.champion import prepare
from perennial.spec.folder import ModelFolder
from perennial.spec.training import BUILT_IN_ESTIMATORS, METRICS
from perennial.spec.types import Task
from tests.project.test_dependencies import PYPROJECT
from tests.unit import synthetic

PARAMS = {"n_estimators": 5, "max_depth": 3}


def folder_with(place: Path, library: str, task: str = "binary_classification", **replacements: str) -> ModelFolder:
    estimator = f"estimator: gradient_boosting => estimator: {library}"
    return synthetic.write_folder(place / "models", task, candidate=estimator, **replacements)


def rows_for(task: str) -> tuple[pd.DataFrame, Any]:
    rows = synthetic.make_rows(5)
    frame = rows[["x", "noise", "kind"]].astype({"x": "float64", "noise": "float64"})
    frame.loc[::7, "x"] = np.nan
    frame.loc[::5, "kind"] = None
    truth = {
        "binary_classification": (rows["y"] > 0.5).to_numpy(),
        "multiclass_classification": np.where(rows["y"] < 0, "low", np.where(rows["y"] < 1, "middle", "high")).astype(object),
        "regression": rows["y"].to_numpy(),
    }[task]
    return frame, truth


LATER = pd.DataFrame({"x": [np.nan, 0.3], "noise": [np.nan, 1.0], "kind": ["never seen", None]})


def test_each_library_is_an_estimator_that_model_yaml_may_name() -> None:
    assert set(LIBRARIES) == {"lightgbm", "xgboost"}
    assert set(LIBRARIES) < set(BUILT_IN_ESTIMATORS)
    assert set(LIBRARIES) <= set(PYPROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("task", METRICS)
def test_a_booster_is_fitted_stored_loaded_and_served_with_the_same_bits(library: str, task: Task, tmp_path: Path) -> None:
    folder, (frame, truth) = folder_with(tmp_path, library, task), rows_for(task)
    fitted = fit_estimator(folder, "boosting", PARAMS, frame, truth)
    told = artifacts.predict(task, fitted, frame)
    with threadpool_limits(1):
        again = fit_estimator(folder, "boosting", PARAMS, frame, truth)
    assert artifacts.predict(task, again, frame).digest == told.digest

    skops.io.dump(fitted, tmp_path / artifacts.MODEL_FILE)
    loaded = artifacts.load_file(tmp_path / artifacts.MODEL_FILE, TRUSTED_TYPES)
    assert artifacts.predict(task, loaded, frame).digest == told.digest
    assert len(artifacts.predict(task, loaded, LATER)) == 2
    if task != "regression":
        assert set(loaded.predict(frame)) <= set(truth)

    takes, sample = FeatureList.of(folder.spec), pa.Table.from_pandas(frame, preserve_index=False)
    served = prepare("toy", LoadedModel("toy version 1", 1, task, takes, "", "", loaded, sample))
    assert served.exact
    assert served.fast is not None
    columns = {name: [None if pd.isna(value) else value for value in frame[name]] for name in frame.columns}
    for way in (served, dataclasses.replace(served, fast=None)):
        assert np.array_equal(way.predict(columns, len(frame)).numbers, told.numbers)
        one = {name: values[3:4] for name, values in columns.items()}
        assert np.array_equal(way.predict(one, 1).numbers, told.numbers[3:4])


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_confined_process_fits_and_loads_it_with_the_same_bits(library: str, tmp_path: Path) -> None:
    folder, (frame, truth) = folder_with(tmp_path, library), rows_for("binary_classification")
    fitted = fit_estimator(folder, "boosting", PARAMS, frame, truth)
    skops.io.dump(fitted, tmp_path / artifacts.MODEL_FILE)
    here = artifacts.predict(folder.spec.task, fitted, frame).digest
    with Confinement() as place, running_in(place):
        fitted_there = fit_estimator(folder, "boosting", PARAMS, frame, truth)
        loaded_there = artifacts.load_estimator(tmp_path, TRUSTED_TYPES)
        assert {artifacts.predict(folder.spec.task, one, frame).digest for one in (fitted_there, loaded_there)} == {here}


def test_categories_are_split_as_categories(tmp_path: Path) -> None:
    frame, _ = rows_for("regression")
    truth = (frame["kind"] == "b").to_numpy().astype(float)
    text = fit_estimator(folder_with(tmp_path / "l", "lightgbm", "regression"), "boosting", PARAMS, frame, truth)[-1]
    assert b"\ncat_threshold=" in text.__getstate__()["stored"]
    ubj = fit_estimator(folder_with(tmp_path / "x", "xgboost", "regression"), "boosting", PARAMS, frame, truth)[-1]
    learner = json.loads(LIBRARIES["xgboost"].read(ubj.__getstate__()["stored"]).save_raw("json"))["learner"]
    assert learner["feature_types"] == ["q", "q", "c"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_parameter_that_the_library_does_not_know_is_an_error_and_not_ignored(library: str, tmp_path: Path) -> None:
    folder, (frame, truth) = folder_with(tmp_path, library), rows_for("binary_classification")
    with pytest.raises(TrainingError, match=f"candidate boosting cannot be fitted.*{library} knows no parameter max_dept"):
        fit_estimator(folder, "boosting", {"max_dept": 3}, frame, truth)


@pytest.mark.parametrize(("library", "objective"), [("lightgbm", "regression"), ("xgboost", "binary:logitraw")])
def test_an_objective_that_gives_no_probabilities_is_refused(library: str, objective: str, tmp_path: Path) -> None:
    folder, (frame, truth) = folder_with(tmp_path, library), rows_for("binary_classification")
    with pytest.raises(TrainingError, match="gives no probabilities"):
        fit_estimator(folder, "boosting", {"objective": objective}, frame, truth)


@pytest.mark.parametrize("library", LIBRARIES)
def test_without_the_library_the_sentence_says_which_extra_to_install(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (frame, truth) = folder_with(tmp_path, library), rows_for("binary_classification")
    assert find_faults(folder) == []
    fit_estimator(folder, "boosting", PARAMS, frame, truth)
    skops.io.dump(fit_estimator(folder, "boosting", PARAMS, frame, truth), tmp_path / artifacts.MODEL_FILE)
    monkeypatch.setitem(sys.modules, library, None)  # as Python sees a module that is not installed
    said = f"{library} is not installed here: install the extra {library}"
    [fault] = find_faults(folder)
    assert f"candidates.boosting.estimator: {said}" in fault
    with pytest.raises(TrainingError, match=said):
        fit_estimator(folder, "boosting", PARAMS, frame, truth)
    with pytest.raises(VersionUnusable, match=f"it needs {library} .*{said}"):
        artifacts.load_file(tmp_path / artifacts.MODEL_FILE, TRUSTED_TYPES)
    assert library not in artifacts.environment(folder.spec)


@pytest.mark.parametrize("library", LIBRARIES)
def test_only_what_the_same_version_of_the_library_has_stored_is_loaded(library: str, tmp_path: Path) -> None:
    folder, (frame, truth) = folder_with(tmp_path, library), rows_for("binary_classification")
    state = fit_estimator(folder, "boosting", PARAMS, frame, truth)[-1].__getstate__()
    assert state["version"] == artifacts.environment(folder.spec)[library]
    for changed, word in (
        ({"version": "0.1"}, f"saved with {library} 0.1"),
        ({"stored": b"no booster"}, "cannot be loaded"),
        ({"settings": {**state["settings"], "library": "os"}}, "cannot be loaded: KeyError"),
    ):
        broken = Stored({**state, **changed})
        skops.io.dump(broken, tmp_path / artifacts.MODEL_FILE)
        with pytest.raises(VersionUnusable, match=word):
            artifacts.load_file(tmp_path / artifacts.MODEL_FILE, TRUSTED_TYPES)


class Stored:
    """Is stored as a booster of this state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def __getstate__(self) -> dict[str, Any]:
        return self._state


Stored.__module__, Stored.__name__ = Booster.__module__, Booster.__name__
