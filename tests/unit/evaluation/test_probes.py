"""What a model does when its inputs change, and what a feature knows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from perennial.evaluation.metrics import evaluate_metric
from perennial.evaluation.probes import probe_behaviour, probe_robustness, score_alone
from perennial.evidence.evaluation import Robustness
from perennial.model.artifacts import FeatureList, LoadedModel
from perennial.spec.folder import ModelFolder
from tests.unit import synthetic


class Rule:
    """A model that is a formula of its features."""

    def __init__(self, formula: Any) -> None:
        self.formula = formula
        self.classes_ = np.array([False, True])

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        true = np.asarray(self.formula(frame), dtype=float)
        return np.column_stack([1 - true, true])

    def predict(self, frame: pd.DataFrame) -> Any:
        return np.asarray(self.formula(frame), dtype=float)


def model(formula: Any, task: Any = "binary_classification") -> LoadedModel:
    takes = FeatureList(("x", "noise"), ("kind",))
    return LoadedModel("toy", None, task, takes, "2013-03-01--2013-03-21", "", Rule(formula), pa.table({}))


def rows(n: int = 1_500, seed: int = 0) -> pa.Table:
    made = synthetic.make_rows(n // 60, seed=seed)
    return pa.Table.from_pandas(made[["x", "noise", "kind"]], preserve_index=False)


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-np.nan_to_num(values)))


def robustness(formula: Any, folder: ModelFolder, task: Any = "binary_classification") -> Robustness:
    table = rows()
    truth = table["x"].to_numpy() > 0 if task == "binary_classification" else 1_000 * table["x"].to_numpy()
    found = probe_robustness(
        folder.spec,
        model(formula, task),
        table,
        truth,
        lambda labels, prediction: evaluate_metric(task, folder.spec.primary_metric, labels, prediction),
    )
    assert found is not None
    return found


def test_a_feature_that_matters_costs_what_it_knows_and_another_nothing(tmp_path: Path) -> None:
    found = robustness(lambda frame: sigmoid(3 * frame["x"]), synthetic.write_folder(tmp_path))
    assert found.clean == pytest.approx(1)
    assert found.uninformed == 0.5
    assert found.noise["noise"] == found.missing["noise"] == found.missing["kind"] == found.clean
    assert 0.99 < found.noise["x"] < 1
    # A tenth of the rows is put into the middle, which few pairs notice.
    assert 0.98 < found.missing["x"] < 0.999
    assert found.problems == {}
    assert "kind" not in found.noise


def test_the_lead_is_over_a_constant_in_units_of_the_metric(tmp_path: Path) -> None:
    folder = synthetic.write_folder(tmp_path, "regression")
    found = robustness(lambda frame: 1_000 * frame["x"].fillna(0), folder, "regression")
    assert found.clean == 0
    assert found.uninformed == pytest.approx(1_000, rel=0.1)
    assert 0.2 < found.missing["x"] / found.uninformed < 0.4
    assert found.noise["x"] / found.uninformed == pytest.approx(0.05, rel=0.1)


def test_a_model_that_cannot_take_missing_values_says_so(tmp_path: Path) -> None:
    def demanding(frame: pd.DataFrame) -> Any:
        if frame["kind"].isna().mean() > 0.15:
            raise KeyError("kind must not be missing")
        return sigmoid(frame["x"])

    found = robustness(demanding, synthetic.write_folder(tmp_path))
    assert list(found.problems) == ["missing kind"]
    assert "kind must not be missing" in found.problems["missing kind"]
    lost = robustness(
        lambda frame: np.where(frame["x"].isna(), np.nan, 0.5 + frame["x"] / 20), synthetic.write_folder(tmp_path)
    )
    assert list(lost.problems) == ["missing x"]


def test_a_probe_is_the_same_each_time(tmp_path: Path) -> None:
    folder = synthetic.write_folder(tmp_path)
    one, other = (robustness(lambda frame: sigmoid(frame["x"]), folder) for _ in range(2))
    assert one == other


# --- behaviour -------------------------------------------------------------------------------------------------------

TESTS = """gates:
  behaviour:
    grows: {feature: x, add: 0.5, expect: higher}
    falls: {feature: x, add: 0.5, expect: lower}
    ignores: {feature: noise, value: 3.0}
    of_kind: {feature: kind, value: b}
    own: {function: "model:says"}
    raises: {function: "model:raises"}
    counts: {function: "model:counts"}
  min_rows: 50"""

CODE = """
    def says(predict, frame):
        low = predict(frame.assign(x=-9.0)).max()
        return None if low < 0.1 else f"predicts {low} for the lowest x"

    def raises(predict, frame):
        raise RuntimeError("cannot tell")

    def counts(predict, frame):
        return 3
"""


def test_each_behaviour_is_told_by_its_share_or_its_sentence(tmp_path: Path) -> None:
    folder = synthetic.write_folder(tmp_path, code=CODE, change=f"gates: {{min_rows: 50}} => {TESTS}")
    found = probe_behaviour(folder, model(lambda frame: sigmoid(frame["x"] + (frame["kind"] == "b"))), rows())
    assert found["grows"].share == 1
    assert found["falls"].share is not None
    assert found["falls"].share < 0.1
    assert found["ignores"].share == 1
    assert found["of_kind"].share == pytest.approx(0.3, abs=0.05)  # those that are of kind b already
    assert (found["own"].share, found["own"].problem) == (None, None)
    assert "cannot tell" in (found["raises"].problem or "")
    assert "gave a int" in (found["counts"].problem or "")
    other = probe_behaviour(folder, model(lambda frame: np.full(len(frame), 0.4)), rows())
    assert "predicts 0.4 for the lowest x" in (other["own"].problem or "")


def test_without_rows_no_behaviour_is_shown(tmp_path: Path) -> None:
    folder = synthetic.write_folder(tmp_path, code=CODE, change=f"gates: {{min_rows: 50}} => {TESTS}")
    found = probe_behaviour(folder, model(lambda frame: frame["x"]), rows().slice(0, 0))
    assert all(outcome.problem for outcome in found.values())


# --- features alone --------------------------------------------------------------------------------------------------


def scores(folder: ModelFolder, truth: Any, **columns: Any) -> dict[str, float]:
    table = rows()
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, from_pandas=True))
    return score_alone(folder.spec, table, truth)


@pytest.mark.parametrize(
    "disguise",
    [
        lambda truth, chance: truth * 2.0 + 0.1 * chance,
        lambda truth, chance: -2.0 * truth + 0.1 * chance,
        lambda truth, chance: np.where(truth, np.nan, chance),  # known of one kind alone
        lambda truth, chance: np.where(truth, np.sign(chance) * 9, chance / 9),  # at both ends
    ],
    ids=["as it is", "turned round", "missing", "at both ends"],
)
def test_a_number_that_holds_the_label_is_found_however_it_is_disguised(disguise: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    truth, chance = generator.random(1_500) < 0.3, generator.normal(size=1_500)
    found = scores(synthetic.write_folder(tmp_path), truth, x=disguise(truth, chance))
    assert found["x"] > 0.98
    assert found["noise"] < 0.6


def test_a_category_that_holds_the_label_is_found_and_a_name_for_each_row_is_not(tmp_path: Path) -> None:
    truth = np.random.default_rng(1).random(1_500) < 0.3
    folder = synthetic.write_folder(tmp_path)
    assert scores(folder, truth, kind=np.where(truth, "late", "early"))["kind"] > 0.98
    assert scores(folder, truth, kind=[f"row {number}" for number in range(1_500)])["kind"] < 0.6


def test_numbers_and_classes_are_looked_at_too(tmp_path: Path) -> None:
    x = rows()["x"].to_numpy()
    number = scores(synthetic.write_folder(tmp_path / "1", "regression"), 3 * x + 1)
    assert number["x"] > 0.98
    assert number["noise"] < 0.05
    classes = np.where(x > 1, "high", np.where(x < -1, "low", "middle")).astype(object)
    several = scores(synthetic.write_folder(tmp_path / "2", "multiclass_classification"), classes)
    assert several["x"] > 0.98


def test_labels_of_one_kind_say_nothing_of_features(tmp_path: Path) -> None:
    assert scores(synthetic.write_folder(tmp_path), np.zeros(1_500, dtype=bool)) == {}
