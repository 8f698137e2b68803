"""Rows count as ``training.weight`` says, in every fit alike; boosters are as monotone as ``model.yaml`` says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from perennial.core.errors import SpecError, TrainingError
from perennial.evaluation.confined import Confinement
from perennial.model import artifacts
from perennial.model.artifacts import FeatureList
from perennial.model.authors_code import running_in
from perennial.model.estimators import fit_estimator, fit_rows
from perennial.model.weights import weights_of
from perennial.operations.inspection import find_faults
from perennial.spec.folder import ModelFolder
from perennial.spec.recipe import recipe_digest
from tests.unit import synthetic

START = datetime(2013, 3, 1, tzinfo=UTC)
NO_PARAMS = "    params: {max_iter: 30}\n =>     params: {}\n"


def weighted(
    place: Path, weight: str, task: str = "binary_classification", *, code: str = "", **replaced: str
) -> ModelFolder:  # fmt: skip
    given = f"training: {{ => training: {{weight: {weight}, "
    return synthetic.write_folder(place / "models", task, code=code, given=given, **replaced)


def rows_of(n: int = 40) -> pa.Table:
    return pa.table(
        {
            "visit": [f"v{row}" for row in range(n)],
            "moment": pa.array([START + timedelta(days=row) for row in range(n)], pa.timestamp("us", "UTC")),
            "x": np.linspace(-1, 1, n),
            "noise": pa.array([None if row % 5 == 0 else 1.0 for row in range(n)], pa.float64()),
            "kind": ["a", "b", None, "a"] * (n // 4),
            "label": [row % 4 == 0 for row in range(n)],
        }
    )


def test_without_the_key_all_rows_count_the_same(tmp_path: Path) -> None:
    assert weights_of(synthetic.write_folder(tmp_path / "models").spec, rows_of()) is None


def test_a_row_that_is_older_by_the_half_life_counts_half(tmp_path: Path) -> None:
    found = weights_of(weighted(tmp_path, "{half_life: 10d}").spec, rows_of())
    assert found is not None
    assert found[:-10] / found[10:] == pytest.approx(0.5)
    assert found.mean() == pytest.approx(1)


def test_an_expression_sees_the_columns_of_the_row_and_is_multiplied_with_the_half_life(tmp_path: Path) -> None:
    sql = "CASE WHEN kind = 'a' AND x > -2 AND NOT label THEN 3 ELSE coalesce(noise, 1) END"
    stated = weights_of(weighted(tmp_path / "1", f'{{sql: "{sql}"}}').spec, rows_of())
    both = weights_of(weighted(tmp_path / "2", f'{{sql: "{sql}", half_life: 5d}}').spec, rows_of())
    aged = weights_of(weighted(tmp_path / "3", "{half_life: 5d}").spec, rows_of())
    assert stated is not None
    assert both is not None
    assert aged is not None
    assert set((stated / stated.min()).round(6)) == {1.0, 3.0}
    assert both == pytest.approx(stated * aged / (stated * aged).mean())


def test_balanced_classes_count_the_same_together_and_stated_ones_as_stated(tmp_path: Path) -> None:
    truth = np.array(rows_of()["label"])
    balanced = weights_of(weighted(tmp_path / "1", "{classes: balanced}").spec, rows_of())
    stated = weights_of(weighted(tmp_path / "2", '{classes: {"true": 5}}').spec, rows_of())
    assert balanced is not None
    assert stated is not None
    assert balanced[truth].sum() == pytest.approx(balanced[~truth].sum())
    assert stated[truth].mean() / stated[~truth].mean() == pytest.approx(5)


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("noise", "gives no number of at least 0 for 8 of 40 rows; use coalesce"),
        ("x", "gives no number of at least 0 for 20 of 40 rows"),
        ("sum(1)", "gives 1 numbers for 40 rows"),
        ("0", "gives all 40 rows the weight 0"),
        # No variable of Python can be read.
        ("(SELECT count(*) FROM rows)", "rows"),
    ],
)
def test_an_expression_that_gives_no_weights_ends_the_training_with_the_reason(sql: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as told:
        weights_of(weighted(tmp_path, f'{{sql: "{sql}"}}').spec, rows_of())
    assert "toy: training.weight" in str(told.value)
    assert word in str(told.value)


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("kind", "gives VARCHAR; a number"),
        ("visits", "visits"),
        ("(SELECT 1 FROM '/etc/passwd')", "passwd"),
        ("1; SELECT 2", "syntax"),
    ],
)
def test_an_expression_that_fits_no_rows_is_found_without_data(sql: str, word: str, tmp_path: Path) -> None:
    [fault] = find_faults(weighted(tmp_path, f'{{sql: "{sql}"}}'))
    assert "training.weight.sql" in fault
    assert word in fault


@pytest.mark.parametrize(
    ("weight", "task", "word"),
    [
        ("{}", "regression", "give sql, half_life or classes"),
        ("{classes: balanced}", "regression", "is for classes, and the task is regression"),
        ("{classes: {yes_: 3}}", "binary_classification", 'write "true" or "false"'),
        ("{classes: {a: 0}}", "multiclass_classification", "must be greater than 0"),
    ],
)
def test_a_weight_that_cannot_be_meant_is_refused(weight: str, task: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=word):
        weighted(tmp_path, weight, task)


@pytest.mark.parametrize("estimator", ["prior", "logistic_regression", "gradient_boosting", "lightgbm", "xgboost"])
def test_every_estimator_learns_from_the_rows_that_count(estimator: str, tmp_path: Path) -> None:
    kind = f"estimator: gradient_boosting => estimator: {estimator}"
    sql = '{sql: "CASE WHEN x > 0 THEN 1 ELSE 0 END"}'
    folder = weighted(tmp_path, sql, kind=kind, few=NO_PARAMS)
    takes, rows = FeatureList.of(folder.spec), rows_of(200)
    truth = pa.array(np.where(np.array(rows["x"]) > 0, np.arange(200) % 3 == 0, np.arange(200) % 10 > 0))
    rows = rows.set_column(rows.column_names.index("label"), "label", truth)
    told = artifacts.predict(folder.spec.task, fit_rows(folder, "boosting", {}, rows, takes), takes.frame(rows))
    assert told.values[100:].mean() == pytest.approx(1 / 3, abs=0.08)
    assert told.values[:100].mean() < 0.6
    with Confinement() as place, running_in(place):
        there = fit_rows(folder, "boosting", {}, rows, takes)
        assert artifacts.predict(folder.spec.task, there, takes.frame(rows)).digest == told.digest


def test_an_estimator_that_takes_no_weights_is_an_error_that_says_so(tmp_path: Path) -> None:
    code = """
    from sklearn.neighbors import KNeighborsClassifier


    def neighbours(**params):
        return KNeighborsClassifier(**params)
    """
    kind = "estimator: gradient_boosting => estimator: 'model:neighbours'"
    folder = weighted(tmp_path, "{half_life: 3d}", code=code, kind=kind)
    with pytest.raises(TrainingError, match=r"candidate boosting takes no weights .*KNeighborsClassifier has no sample_weight"):
        fit_rows(folder, "boosting", {}, rows_of(), FeatureList.of(folder.spec))


def test_weights_belong_to_the_recipe_and_to_the_folder(tmp_path: Path) -> None:
    plain, other = synthetic.write_folder(tmp_path / "1" / "models"), weighted(tmp_path / "2", "{half_life: 3d}")
    assert plain.digest != other.digest
    assert recipe_digest(plain, "boosting", {}, "") != recipe_digest(other, "boosting", {}, "")


# --- monotone --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["gradient_boosting", "lightgbm", "xgboost"])
@pytest.mark.parametrize(("direction", "sign"), [("increasing", 1), ("decreasing", -1)])
def test_predictions_of_a_monotone_booster_only_rise_or_only_fall(
    estimator: str, direction: str, sign: int, tmp_path: Path
) -> None:
    kind = f"estimator: gradient_boosting => estimator: {estimator}\n    monotone: {{noise: {direction}}}"
    folder, rows = synthetic.write_folder(tmp_path / "models", "regression", kind=kind, few=NO_PARAMS), synthetic.make_rows(5)
    # Its other numeric feature has no value, and is left out of the columns that are counted.
    frame = pd.DataFrame({"x": np.nan, "noise": rows["x"], "kind": rows["kind"]})
    fitted = fit_estimator(folder, "boosting", {}, frame, rows["y"].to_numpy())
    steps = sign * np.diff(fitted.predict(pd.DataFrame({"x": np.nan, "noise": np.linspace(-2, 2, 50), "kind": "a"})))
    assert (steps >= 0).all()
    assert (steps > 0).any()


@pytest.mark.parametrize(
    ("estimator", "task", "feature", "word"),
    [
        ("prior", "regression", "x", "is for gradient_boosting, lightgbm, xgboost; the estimator is prior"),
        ("xgboost", "multiclass_classification", "x", "a class is neither higher nor lower"),
        ("xgboost", "regression", "kind", "kind is no numeric feature; there are noise, x|kind is no numeric feature"),
    ],
)
def test_monotone_is_for_boosters_and_numeric_features(
    estimator: str, task: str, feature: str, word: str, tmp_path: Path
) -> None:  # fmt: skip
    kind = f"estimator: gradient_boosting => estimator: {estimator}\n    monotone: {{{feature}: increasing}}"
    with pytest.raises(SpecError, match=word):
        synthetic.write_folder(tmp_path / "models", task, kind=kind)
