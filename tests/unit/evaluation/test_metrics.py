"""Metrics: what they are, and what they are not defined for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from perennial.evaluation.metrics import answers, calibration_error, evaluate, evaluate_metric, summarise
from perennial.evidence.evaluation import Answers, ClassFigures, Contender
from perennial.model.artifacts import Prediction
from perennial.spec.training import METRICS


def no_cost(truth: Any, predicted: Any) -> Any:
    return np.zeros(len(truth))


def test_every_metric_that_a_spec_may_name_is_computed() -> None:
    generator = np.random.default_rng(1)
    truth = generator.random(300) < 0.3
    probability = np.clip(truth * 0.3 + generator.random(300) * 0.7, 0, 1)
    found = evaluate("binary_classification", truth, probability, cost=no_cost)
    assert set(found) == set(METRICS["binary_classification"])

    classes = ("a", "b", "c")
    probabilities = generator.dirichlet([1, 1, 1], 300)
    labels = np.array(classes, dtype=object)[generator.integers(3, size=300)]
    predicted = np.array(classes, dtype=object)[probabilities.argmax(axis=1)]
    found = evaluate("multiclass_classification", labels, predicted, probabilities=probabilities, classes=classes, cost=no_cost)
    assert set(found) == set(METRICS["multiclass_classification"])

    numbers = generator.normal(size=300)
    assert set(evaluate("regression", numbers, numbers + 1, cost=no_cost)) == set(METRICS["regression"])
    assert "cost" not in evaluate("regression", numbers, numbers + 1)
    assert evaluate("regression", numbers, numbers + 1)["mae"] == pytest.approx(1)


def test_one_metric_alone_is_the_same_as_among_all() -> None:
    truth = np.random.default_rng(1).random(200) < 0.4
    probability = np.round(np.random.default_rng(2).random(200), 2)
    said = Prediction(probability, probability, None, ())
    for metric, value in evaluate("binary_classification", truth, probability, cost=no_cost).items():
        assert evaluate_metric("binary_classification", metric, truth, said, no_cost) == pytest.approx(value)
    assert evaluate_metric("binary_classification", "roc_auc", np.zeros(200, dtype=bool), said) is None
    broken = Prediction(np.where(truth, np.nan, 0.1), None, None, ())
    assert evaluate_metric("binary_classification", "brier", truth, broken) is None


def test_balanced_accuracy_is_scikit_learns_even_when_a_predicted_class_does_not_occur() -> None:
    truth = np.array(["a", "a", "b", "b", "b"], dtype=object)
    predicted = np.array(["a", "b", "b", "b", "a"], dtype=object)
    found = evaluate("multiclass_classification", truth, predicted)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth.astype(str), predicted.astype(str)))
    predicted[0] = "never seen"
    assert evaluate("multiclass_classification", truth, predicted)["balanced_accuracy"] == pytest.approx((0 + 2 / 3) / 2)


def test_a_class_that_the_model_never_saw_costs_log_loss() -> None:
    classes, probabilities = ("b", "c"), np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    known = evaluate(
        "multiclass_classification",
        np.array(["b", "c", "b"], dtype=object),
        np.array(["b", "c", "b"], dtype=object),
        probabilities=probabilities,
        classes=classes,
    )
    unknown = evaluate(
        "multiclass_classification",
        np.array(["b", "c", "a"], dtype=object),
        np.array(["b", "c", "b"], dtype=object),
        probabilities=probabilities,
        classes=classes,
    )
    assert known["log_loss"] == pytest.approx(-np.mean(np.log([0.9, 0.8, 0.5])))
    assert unknown["log_loss"] > 5


def test_calibration_error_of_a_known_case() -> None:
    # Two bins of 15 are used: 10 rows at 0.1 of which 3 come true, 10 rows at 0.9 of which 9 do.
    probability = np.array([0.1] * 10 + [0.9] * 10)
    truth = np.array([True] * 3 + [False] * 7 + [True] * 9 + [False])
    assert calibration_error(truth, probability) == pytest.approx(0.5 * 0.2 + 0.5 * 0.0)


def test_calibration_error_takes_probabilities_of_exactly_nought_and_one() -> None:
    assert calibration_error(np.array([False, True]), np.array([0.0, 1.0])) == 0
    assert calibration_error(np.array([True, False]), np.array([0.0, 1.0])) == 1


def test_a_rank_metric_is_absent_when_labels_are_of_one_class() -> None:
    found = evaluate("binary_classification", np.zeros(10, dtype=bool), np.linspace(0.1, 0.5, 10))
    assert set(found) == {"log_loss", "brier", "calibration_error"}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_nothing_is_computed_from_predictions_that_are_not_finite(broken: float) -> None:
    assert evaluate("binary_classification", np.array([True, False]), np.array([0.5, broken])) == {}
    assert evaluate("regression", np.array([1.0, 2.0]), np.array([0.5, broken])) == {}
    assert evaluate("multiclass_classification", np.array(["a", "b"]), np.array(["a", None], dtype=object)) == {}


def test_no_rows_give_no_metrics() -> None:
    assert evaluate("regression", np.array([]), np.array([])) == {}


def test_a_wrong_number_of_predictions_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 predictions for 3 labels"):
        evaluate("regression", np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(
    ("values", "not_finite", "distinct"),
    [
        ([0.1, 0.1, 0.1], 0, 1),
        ([0.1, np.nan, np.inf], 2, 1),
        (["a", None, "b", "b"], 1, 2),
        ([], 0, 0),
    ],
)
def test_predictions_are_summarised(values: Any, not_finite: int, distinct: int) -> None:
    summary = summarise(Prediction(np.array(values), None, None, ()))
    assert (summary.rows, summary.not_finite, summary.distinct) == (len(values), not_finite, distinct)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_of_a_binary_model_are_scikit_learns_at_the_threshold() -> None:
    generator = np.random.default_rng(4)
    truth, probability = generator.random(300) < 0.3, generator.random(300)
    found = answers("binary_classification", truth, Prediction(probability, probability, None, ()), 0.7)
    assert found is not None
    said, yes = probability >= 0.7, found.by_class["true"]
    assert found.threshold == 0.7
    assert found.accuracy == pytest.approx(sk.accuracy_score(truth, said))
    assert (yes.precision, yes.recall, yes.f1) == pytest.approx(
        (sk.precision_score(truth, said), sk.recall_score(truth, said), sk.f1_score(truth, said))
    )
    counted = sk.confusion_matrix(truth, said)
    assert [[found.confusion[one][other] for other in ("false", "true")] for one in ("false", "true")] == counted.tolist()
    assert Contender.from_json(json.loads(json.dumps(contender(found).to_json()))) == contender(found)


def test_what_is_not_defined_is_absent_and_not_zero() -> None:
    truth, probability = np.array([True, False]), np.array([0.1, 0.2])
    found = answers("binary_classification", truth, Prediction(probability, probability, None, ()), 0.5)
    assert found is not None
    assert found.by_class["true"] == ClassFigures(1, None, 0.0, 0.0)
    assert answers("regression", truth, Prediction(np.array([np.nan, 1.0]), None, None, ()), 0.5) is None
    assert answers("regression", np.empty(0), Prediction(np.empty(0), None, None, ()), 0.5) is None
    zeros = answers("regression", np.zeros(2), Prediction(np.ones(2), None, None, ()), 0.5)
    assert zeros is not None
    assert (zeros.mape, zeros.zeros, zeros.accuracy) == (None, 2, None)


def test_answers_of_several_classes_are_scikit_learns_also_for_a_class_that_never_occurs() -> None:
    generator = np.random.default_rng(5)
    truth = generator.choice(np.array(["a", "b", "c"], dtype=object), 200)
    said = np.where(generator.random(200) < 0.5, truth, generator.choice(np.array(["a", "b", "d"], dtype=object), 200))
    found = answers("multiclass_classification", truth, Prediction(said, None, None, ()), 0.5)
    assert found is not None
    names = list(found.by_class)
    precision, recall, f1, rows = sk.precision_recall_fscore_support(
        truth.astype(str), said.astype(str), labels=names, zero_division=np.nan
    )
    of_class = found.by_class.values()
    assert [one.rows for one in of_class] == rows.tolist()
    assert [np.nan if one.precision is None else one.precision for one in of_class] == pytest.approx(precision, nan_ok=True)
    assert [np.nan if one.recall is None else one.recall for one in of_class] == pytest.approx(recall, nan_ok=True)
    assert [one.f1 for one in of_class] == pytest.approx(np.nan_to_num(f1))
    assert found.by_class["d"].recall is None


def test_answers_of_a_regression_are_scikit_learns_and_leave_out_labels_of_zero() -> None:
    generator = np.random.default_rng(6)
    truth, said = generator.normal(10, 3, 100), generator.normal(10, 3, 100)
    truth[:7] = 0
    found = answers("regression", truth, Prediction(said, None, None, ()), 0.5)
    assert found is not None
    assert found.mape == pytest.approx(sk.mean_absolute_percentage_error(truth[7:], said[7:]))
    assert found.zeros == 7
    assert found.pinball == {f"{q}": pytest.approx(sk.mean_pinball_loss(truth, said, alpha=q)) for q in (0.1, 0.5, 0.9)}


def contender(found: Answers) -> Contender:
    return Contender("boosting", "candidate", {}, 300, "", None, answers=found)
