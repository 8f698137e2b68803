"""``training``, ``candidates`` and ``cost`` in ``model.yaml``, and the metrics that a model can be judged by."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import Field

from perennial.spec.sections import Found, Section, check, check_each
from perennial.spec.trust import may_never_be_trusted
from perennial.spec.types import Duration, Function, Identifier, Number, Seed, Share, Sql, Windows, write_window

#: Estimators that need no ``model.py``; :mod:`perennial.model.estimators` makes them.
BUILT_IN_ESTIMATORS = ("prior", "logistic_regression", "linear_regression", "gradient_boosting", "lightgbm", "xgboost")
#: Those of them that take ``monotone``.
BOOSTERS = ("gradient_boosting", "lightgbm", "xgboost")
ESTIMATOR = rf"^({'|'.join(BUILT_IN_ESTIMATORS)}|model:[A-Za-z_]\w*)$"


class Candidate(Section):
    """A way to make a model.

    Attributes:
        estimator: ``prior``, ``logistic_regression``, ``linear_regression`` or ``gradient_boosting``; ``lightgbm`` or
            ``xgboost``, which the extra of the same name installs; or ``model:function``, a function of ``model.py`` that takes
            parameters and returns a scikit-learn estimator.
        params: parameters that are passed to it unchanged.
        search: values to choose from, by parameter. Validation on the newest part of the training window chooses.
        baseline: whether it is a simple model that the others must beat. A baseline is never promoted.
        monotone: numeric features with which predictions only rise or only fall, everything else being equal. For boosters:
            ``gradient_boosting``, ``lightgbm`` and ``xgboost``.
    """

    estimator: Annotated[str, Field(pattern=ESTIMATOR)]
    params: dict[Identifier, bool | int | Number | str | None] = {}
    search: dict[Identifier, Annotated[list[bool | int | Number | str | None], Field(min_length=1)]] = {}
    baseline: bool = False
    monotone: dict[Identifier, Literal["increasing", "decreasing"]] = {}

    @check
    def _only_boosters_are_monotone(self) -> Found:
        if self.monotone and self.estimator not in BOOSTERS:
            yield ("monotone",), f"is for {', '.join(BOOSTERS)}; the estimator is {self.estimator}"


#: What ``training.weight.classes`` is if all classes together count the same.
BALANCED: Final = "balanced"


class Weight(Section):
    """How much each row counts in a fit. What is given is multiplied, and scaled to a mean of 1. Measurements do not use it.

    Attributes:
        sql: an expression over the row's features, key, event time and ``label``; a number of at least 0.
        half_life: a row that is so much older than the newest row of the fit counts half.
        classes: the weight of each class, 1 for a class that is not named; or ``balanced``: all classes together count the
            same. Predicted probabilities are then not those of the rows.
    """

    sql: Sql | None = None
    half_life: Duration | None = None
    classes: Literal["balanced"] | dict[str, Annotated[Number, Field(gt=0)]] | None = None

    @check
    def _says_something(self) -> Found:
        if self.sql is None and self.half_life is None and not self.classes:
            yield (), "give sql, half_life or classes"

    def __str__(self) -> str:
        """As people read it: ``half_life: 180d``."""
        return ", ".join(f"{name}: {value}" for name, value in self.model_dump(mode="json", exclude_none=True).items())


class Training(Section):
    """What a version learns from.

    Attributes:
        window: length of the training set, which ends where the holdout begins; ``all`` for everything that is there. Of a list
            of lengths, each candidate takes the one with which it validates best, like a parameter. If there is too little
            history to tell two of them apart, it takes the one that is named first.
        holdout: length of the newest part before the training's as-of time. Candidate and champion are compared on it.
        validation: length of the newest part of the window, on which candidates and their parameters are compared.
        trials: largest number of combinations of ``search`` and ``window`` that are tried per candidate.
        weight: how much each row counts in a fit. None: all count the same.
        max_rows: largest number of rows to train on. If there are more, the newest are used.
        min_rows: smallest number of rows to train on. If there are fewer, training fails.
        refit: whether a candidate that passed the gates is fitted once more, with the same parameters, on all rows up to the
            end of the holdout. This newer model serves. Without it, a version is as old as the holdout is long when it begins
            to serve.
        seed: seed of everything random in training.
        trusted_types: types that a stored model of this folder may hold, in addition to Perennial's own list. A deployment may
            allow fewer (``PERENNIAL_TRUSTED_TYPES``). What starts programs or reads files is refused everywhere.
    """

    window: Windows = timedelta(days=90)
    holdout: Duration = timedelta(days=7)
    validation: Duration = timedelta(days=14)
    trials: Annotated[int, Field(ge=1, le=1000)] = 8
    weight: Weight | None = None
    max_rows: Annotated[int, Field(ge=100)] = 5_000_000
    min_rows: Annotated[int, Field(ge=10)] = 100
    refit: bool = True
    seed: Seed = 2013
    trusted_types: list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]] = []

    @check
    def _validation_is_part_of_the_window(self) -> Found:
        if self.validation >= min(self.windows.values()):
            yield (), "validation is the newest part of window; it must be shorter"

    @check_each("trusted_types")
    def _trusts_nothing_that_runs_programs(self, _: int, name: str) -> Found:
        if may_never_be_trusted(name):
            yield (), f"{name} may never be trusted: a model that holds it could run programs or read files; remove it"

    @property
    def windows(self) -> dict[str, timedelta]:
        """The lengths that a candidate can choose from, by how ``model.yaml`` names them."""
        named = self.window if isinstance(self.window, tuple) else (self.window,)
        return {write_window(length): length for length in named}

    @property
    def longest(self) -> timedelta:
        """The longest of :attr:`windows`."""
        return max(self.windows.values())

    def length(self, chosen: str) -> timedelta:
        """The length that a version has chosen; the longest if it was not recorded, or is no longer named."""
        return self.windows.get(chosen, self.longest)


#: The metrics of each task, the primary one first, and whether higher is better. ``cost`` requires the section ``cost``.
METRICS: dict[str, dict[str, bool]] = {
    "binary_classification": {
        "roc_auc": True, "average_precision": True, "log_loss": False, "brier": False, "calibration_error": False,
        "cost": False,
    },
    "multiclass_classification": {"log_loss": False, "accuracy": True, "balanced_accuracy": True, "cost": False},
    "regression": {"rmse": False, "mae": False, "r2": True, "cost": False},
}  # fmt: skip


class OutcomeCosts(Section):
    """The cost of one row by outcome. A gain is negative. A wrong answer must cost more than the right one.

    Attributes:
        true_positive: cost of a yes that is right.
        false_positive: cost of a yes that is wrong.
        false_negative: cost of a no that is wrong.
        true_negative: cost of a no that is right.
    """

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
        """The threshold that costs least if probabilities are right, 0 to 1 (Elkan 2001, equation 2)."""
        wrong_yes, wrong_no = self.false_positive - self.true_negative, self.false_negative - self.true_positive
        return wrong_yes / (wrong_yes + wrong_no)


class Cost(Section):
    """What predictions cost the business. The metric ``cost`` is the mean over rows; lower is better.

    Exactly one of ``outcomes`` (binary), ``matrix`` (multiclass) and ``function`` (any task).

    Attributes:
        outcomes: the cost of each outcome. The answer is yes where the probability is at least ``threshold``.
        threshold: the probability from which the answer is yes. None: the one that costs least if probabilities are right,
            from the four costs (Elkan: The Foundations of Cost-Sensitive Learning. IJCAI 2001, equation 2).
        matrix: cost by actual class, then by predicted class. A pair that is not given costs nothing.
        function: ``model:function``. It is called with n labels and n predictions, and returns n costs.
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
