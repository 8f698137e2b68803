"""The cost of predictions for the business: the metric ``cost``, as ``model.yaml`` defines it.

Each row has a cost, and the metric is the mean. So :mod:`perennial.evaluation.resampling` can weight it like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perennial.core.errors import SpecError
from perennial.model.authors_code import elsewhere
from perennial.spec.code import folder_function
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.training import OutcomeCosts

#: Gives n costs for n labels and n predictions, both as :func:`perennial.evaluation.metrics.evaluate` takes them.
CostFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]


def cost_function(folder: ModelFolder) -> CostFunction | None:
    """The function that gives the cost of each row, as the folder defines it; None if it defines none.

    Raises:
        SpecError: when the function is called, if a function of ``model.py`` fails or does not give n numbers.
    """
    cost = folder.spec.cost
    if cost is None:
        return None
    if cost.outcomes is not None:
        return _of_outcomes(cost.outcomes, answer_threshold(folder.spec))
    if cost.matrix is not None:
        return _of_matrix(cost.matrix)
    assert cost.function is not None  # Cost._is_one_kind
    return _of_function(folder, cost.function)


def answer_threshold(spec: ModelSpec) -> float:
    """The probability from which the answer is yes: the spec's threshold, the cheapest one by its costs, or 0.5.

    References:
        Elkan: The Foundations of Cost-Sensitive Learning. IJCAI 2001, equation 2.
    """
    if spec.cost is None or spec.cost.outcomes is None:
        return 0.5
    return spec.cost.outcomes.threshold if spec.cost.threshold is None else spec.cost.threshold


def _of_outcomes(outcomes: OutcomeCosts, threshold: float) -> CostFunction:
    def cost(truth: NDArray[Any], probability: NDArray[Any]) -> NDArray[np.float64]:
        yes, true = probability >= threshold, truth.astype(bool)
        if_true = np.where(yes, outcomes.true_positive, outcomes.false_negative)
        if_false = np.where(yes, outcomes.false_positive, outcomes.true_negative)
        return np.where(true, if_true, if_false)

    return cost


def _of_matrix(matrix: Mapping[str, Mapping[str, float]]) -> CostFunction:
    def cost(truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
        actual, row = np.unique(truth.astype(str), return_inverse=True)
        answered, column = np.unique(predicted.astype(str), return_inverse=True)
        table = np.array([[matrix.get(one, {}).get(other, 0.0) for other in answered] for one in actual])
        return table.reshape(len(actual), len(answered))[row, column]

    return cost


def _of_function(folder: ModelFolder, reference: str) -> CostFunction:
    def cost(truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
        place = f"{folder.path / 'model.py'}: {reference.removeprefix('model:')}"
        try:
            other = elsewhere()
            run = folder_function(folder, reference) if other is None else partial(other.cost, folder)
            found = np.asarray(run(truth, predicted), dtype=np.float64)
        except SpecError:
            raise
        # A function of a model folder may raise anything.
        except Exception as error:
            raise SpecError(
                f"{place} could not compute the cost of {len(truth):,} rows: {type(error).__name__}: {error}"
            ) from error
        if found.shape != (len(truth),):
            raise SpecError(
                f"{place} gave costs of shape {found.shape} for {len(truth):,} rows; it must give one number per row"
            )
        return found

    return cost
