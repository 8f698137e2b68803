"""``training``, ``candidates`` and ``costs`` in ``model.yaml``, and the metrics that a model can be judged by."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from perennial.spec.sections import Found, Section, check
from perennial.spec.types import Duration, Function, Identifier, Number, Seed, Share

#: Estimators that need no ``model.py``; :mod:`perennial.training.fit` makes them.
BUILT_IN_ESTIMATORS = ("prior", "logistic_regression", "linear_regression", "gradient_boosting")
ESTIMATOR = rf"^({'|'.join(BUILT_IN_ESTIMATORS)}|model:[A-Za-z_]\w*)$"


class Candidate(Section):
    """A way to make a model.

    Attributes:
        estimator: ``prior``, ``logistic_regression``, ``linear_regression`` or ``gradient_boosting``, or ``model:function``
            for a function of ``model.py`` that takes parameters and returns a scikit-learn estimator.
        params: parameters passed as they are.
        search: lists of values to choose from, by validation on the newest part of the training window.
        baseline: a candidate that others must beat and that is never promoted over them.
    """

    estimator: Annotated[str, Field(pattern=ESTIMATOR)]
    params: dict[Identifier, bool | int | Number | str | None] = {}
    search: dict[Identifier, Annotated[list[bool | int | Number | str | None], Field(min_length=1)]] = {}
    baseline: bool = False


class Training(Section):
    """What a version learns from.

    Attributes:
        window: length of the training set, which ends where the holdout begins.
        holdout: the newest interval before the training's as-of time, on which candidate and champion are compared.
        validation: the newest part of the window, on which search spaces are searched.
        trials: most combinations of a search space that are tried.
        max_rows: most rows trained on, the newest first.
        min_rows: fewest rows that a version may be trained on.
        seed: of everything random.
        trusted_types: types beyond Perennial's own list that a stored model of this folder may hold.
    """

    window: Duration = timedelta(days=90)
    holdout: Duration = timedelta(days=7)
    validation: Duration = timedelta(days=14)
    trials: Annotated[int, Field(ge=1, le=1000)] = 8
    max_rows: Annotated[int, Field(ge=100)] = 5_000_000
    min_rows: Annotated[int, Field(ge=10)] = 100
    seed: Seed = 2013
    trusted_types: list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]] = []

    @check
    def _validation_is_part_of_the_window(self) -> Found:
        if self.validation >= self.window:
            yield (), "validation is the newest part of window; it must be shorter"


#: For each task: the metrics it has, the primary one first, and whether more of it is better. ``cost`` is there where
#: ``model.yaml`` says what outcomes cost.
METRICS: dict[str, dict[str, bool]] = {
    "binary_classification": {
        "roc_auc": True, "average_precision": True, "log_loss": False, "brier": False, "calibration_error": False,
        "cost": False,
    },
    "multiclass_classification": {"log_loss": False, "accuracy": True, "balanced_accuracy": True, "cost": False},
    "regression": {"rmse": False, "mae": False, "r2": True, "cost": False},
}  # fmt: skip


class OutcomeCosts(Section):
    """Cost of one row by outcome; a gain is negative. A right answer must not cost more than a wrong one."""

    true_positive: Number = 0.0
    false_positive: Number = 1.0
    false_negative: Number = 1.0
    true_negative: Number = 0.0

    @check
    def _wrong_answers_cost_more(self) -> Found:
        for wrong, right in (("false_positive", "true_negative"), ("false_negative", "true_positive")):
            if getattr(self, wrong) <= getattr(self, right):
                yield (), f"{wrong} must cost more than {right}; otherwise there is nothing to decide"

    @property
    def threshold(self) -> float:
        """The cheapest threshold where probabilities are right (Elkan 2001, equation 2), 0 to 1."""
        wrong_yes, wrong_no = self.false_positive - self.true_negative, self.false_negative - self.true_positive
        return wrong_yes / (wrong_yes + wrong_no)


class Cost(Section):
    """What predictions cost the business: the metric ``cost``, the mean over rows, of which less is better.

    Exactly one of ``outcomes`` (binary), ``matrix`` (multiclass) and ``function`` (any task).

    Attributes:
        outcomes: cost of each outcome of a yes or no that is taken from a probability at ``threshold``.
        threshold: the probability from which the answer is yes. None: the one that is cheapest where probabilities are
            right, from the four costs (Elkan: The Foundations of Cost-Sensitive Learning. IJCAI 2001, equation 2).
        matrix: cost by actual class, then by predicted class; a pair that is not named costs nothing.
        function: ``model:function``, called with n labels and n predictions, returns n costs.
    """

    outcomes: OutcomeCosts | None = None
    threshold: Share | None = None
    matrix: dict[str, dict[str, Number]] | None = None
    function: Function | None = None

    @check
    def _is_one_kind(self) -> Found:
        if sum(kind is not None for kind in (self.outcomes, self.matrix, self.function)) != 1:
            yield (), "give exactly one of outcomes, matrix and function"

    @check
    def _threshold_is_for_outcomes(self) -> Found:
        if self.threshold is not None and self.outcomes is None:
            yield ("threshold",), "requires outcomes; give their costs, or remove threshold"
