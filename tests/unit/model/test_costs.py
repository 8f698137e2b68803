"""What predictions cost, as model.yaml says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.core.errors import SpecError
from perennial.evaluation.metrics import evaluate
from perennial.model.costs import answer_threshold, cost_function
from tests.unit import synthetic

TRUTH = np.array([True, True, False, False])
PROBABILITY = np.array([0.3, 0.1, 0.25, 0.1])


def with_cost(models: Path, cost: str, task: str = "binary_classification", code: str = "", metric: str = "") -> Any:
    primary = f", metric: {metric}" if metric else ""
    change = f"gates: {{min_rows: 50}} => gates: {{min_rows: 50{primary}}}\ncost: {cost}"
    return synthetic.write_folder(models, task, code=code, change=change)


def test_a_folder_that_says_nothing_of_costs_has_none(tmp_path: Path) -> None:
    assert cost_function(synthetic.write_folder(tmp_path)) is None


def test_the_answer_is_yes_from_the_cheapest_threshold_on(tmp_path: Path) -> None:
    # A missed one costs four times a false alarm: yes from 1 / (1 + 4) on.
    folder = with_cost(tmp_path, "{outcomes: {false_positive: 1, false_negative: 4, true_positive: 0.5}}")
    assert answer_threshold(folder.spec) == pytest.approx(1 / 4.5)
    cost = cost_function(folder)
    assert cost is not None
    assert cost(TRUTH, PROBABILITY).tolist() == [0.5, 4, 1, 0]
    assert evaluate("binary_classification", TRUTH, PROBABILITY, cost=cost)["cost"] == pytest.approx(5.5 / 4)


def test_no_other_threshold_is_cheaper_where_probabilities_are_right(tmp_path: Path) -> None:
    folder = with_cost(tmp_path, "{outcomes: {false_positive: 1, false_negative: 3}}")
    generator = np.random.default_rng(1)
    probability = generator.random(200_000)
    truth = generator.random(200_000) < probability
    own = cost_function(folder)
    assert own is not None
    for threshold in (0.15, 0.2, 0.3, 0.5):
        fixed = cost_function(
            with_cost(tmp_path / f"{threshold}", f"{{outcomes: {{false_negative: 3}}, threshold: {threshold}}}")
        )
        assert fixed is not None
        assert own(truth, probability).mean() < fixed(truth, probability).mean()


def test_a_matrix_names_the_pairs_that_cost(tmp_path: Path) -> None:
    folder = with_cost(tmp_path, "{matrix: {low: {high: 5.0}, high: {low: 2.0}}}", "multiclass_classification")
    cost = cost_function(folder)
    assert cost is not None
    truth, said = (np.array(names, dtype=object) for names in (["low", "low", "high", "new"], ["high", "low", "low", "low"]))
    assert cost(truth, said).tolist() == [5, 0, 2, 0]


CODE = """
    import numpy as np

    def too_low_is_worse(truth, predicted):
        return np.where(predicted < truth, 3.0, 1.0) * np.abs(truth - predicted)

    def one_number(truth, predicted):
        return 7.0

    def broken(truth, predicted):
        raise RuntimeError("no price list")
"""


def test_a_function_of_model_py_gives_the_cost_of_any_task(tmp_path: Path) -> None:
    cost = cost_function(with_cost(tmp_path, '{function: "model:too_low_is_worse"}', "regression", CODE))
    assert cost is not None
    assert cost(np.array([1.0, 2.0]), np.array([2.0, 1.0])).tolist() == [1, 3]


@pytest.mark.parametrize(("function", "word"), [("one_number", r"shape \(\)"), ("broken", "no price list")])
def test_a_broken_function_says_which_and_why(function: str, word: str, tmp_path: Path) -> None:
    cost = cost_function(with_cost(tmp_path, f'{{function: "model:{function}"}}', "regression", CODE))
    assert cost is not None
    with pytest.raises(SpecError, match=f"{function}.*{word}"):
        cost(np.zeros(3), np.zeros(3))


def test_a_cost_that_is_no_number_is_no_metric() -> None:
    found = evaluate("regression", np.zeros(3), np.ones(3), cost=lambda truth, predicted: np.full(len(truth), np.nan))
    assert "cost" not in found
