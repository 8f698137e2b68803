"""``gates`` and ``approval`` in ``model.yaml``: what a version must pass, and whom Perennial asks for approval."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from perennial.spec.sections import Found, Section, check, check_each
from perennial.spec.types import Duration, Function, Identifier, NotNegative, Number, Positive, PositiveShare, Seed, Share, Text


class Resampling(Section):
    """How the uncertainty of a comparison is measured. Rows are resampled in whole blocks, because errors of rows of the same
    time or group are alike.

    Attributes:
        block: length of a block of event time.
        group: a feature or key column. Its values are the blocks, instead of time.
        resamples: number of resamples.
        confidence: confidence of the intervals that are shown. A gain counts if its whole interval does. So a decision is
            wrong by chance half as often as the interval (ICH E9: Statistical Principles for Clinical Trials. 1998, section
            5.5).
        seed: seed of the resamples.
    """

    block: Duration = timedelta(days=1)
    group: Identifier | None = None
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 1_000
    confidence: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    seed: Seed = 2013


class ChampionGate(Section):
    """How a candidate must compare with the champion on the same rows, by a paired test as ``gates.resampling`` says.

    Attributes:
        mode: ``better``: significantly more than ``margin`` better. A tie is refused, because a change costs something.
            ``not_worse``: significantly less than ``margin`` worse (non-inferiority). It requires a margin above 0.
        margin: in units of the primary metric.
    """

    mode: Literal["better", "not_worse"] = "better"
    margin: NotNegative = 0.0

    @check
    def _not_worse_has_a_margin(self) -> Found:
        if self.mode == "not_worse" and self.margin == 0:
            yield (), "mode not_worse requires a margin above 0; say how much worse is still good enough"


class SlicesGate(Section):
    """For no value of these columns may the candidate be significantly worse than the champion. All comparisons together have
    one error rate (Holm).

    Attributes:
        columns: features, or key columns of the entity.
        margin: by how much a slice may be worse, in units of the primary metric.
        min_rows: labelled rows that a slice requires to be judged. Smaller slices are listed, but not judged.
    """

    columns: list[Identifier] = []
    margin: NotNegative = 0.02
    min_rows: Annotated[int, Field(ge=20)] = 200


class FairnessGate(Section):
    """How equally the groups of a column must be treated: the lowest rate of a group divided by the highest.

    Attributes:
        column: the column whose values are the groups: a feature, or a key column of the entity.
        rate: share of yes among all rows (``selection_rate``), among the true ones (``true_positive_rate``) or among the
            false ones (``false_positive_rate``).
        ratio: smallest lowest rate divided by highest rate. 0.8 is the four-fifths rule (29 CFR 1607.4 D).
        threshold: probability from which the answer is yes. None: the threshold of ``cost``, or 0.5 without one.
        min_rows: rows that a group requires to be compared.
    """

    column: Identifier
    rate: Literal["selection_rate", "true_positive_rate", "false_positive_rate"] = "selection_rate"
    ratio: Share = 0.8
    threshold: Share | None = None
    min_rows: Annotated[int, Field(ge=20)] = 200


class CalibrationGate(Section):
    """Whether probabilities mean what they say. Binary classification only.

    Attributes:
        error: largest expected calibration error. None: not judged.
        brier_margin: by how much the Brier score may be worse than the champion's. None: not judged.
    """

    error: Share | None = 0.15
    brier_margin: NotNegative | None = 0.005


class RobustnessGate(Section):
    """How much of its lead a model may lose when its inputs get worse, one feature at a time.

    The lead is the difference between the primary metric and that of the best constant prediction on the same rows. A share
    of it means the same for every metric and unit: the lead of a ROC AUC of 0.7 is 0.2.

    Attributes:
        noise: standard deviation of the noise that is added to a number, in standard deviations of that feature.
        missing: share of a feature's values that are removed.
        noise_drop: largest share of the lead that noise in one feature may cost. None: not judged.
        missing_drop: largest share of the lead that missing values in one feature may cost. None: not judged. A perfect
            model whose only feature is missing in a tenth of the rows, and that predicts a constant there, loses 0.32 of
            its lead in RMSE.
        rows: largest number of rows to measure it on. If there are more, a random sample is taken.
    """

    noise: PositiveShare = 0.05
    missing: PositiveShare = 0.1
    noise_drop: NotNegative | None = 0.1
    missing_drop: NotNegative | None = 0.35
    rows: Annotated[int, Field(ge=100)] = 2_000


class Behaviour(Section):
    """How predictions must react when one feature changes; or a test of ``model.py``.

    Attributes:
        feature: the feature that is changed. All others stay as they are.
        add: number that is added to it. Only for a numeric feature.
        value: value that it is set to. For any feature.
        expect: whether the probability of true, or the predicted number, must stay the ``same``, or be ``higher`` or
            ``lower``.
        tolerance: by how much a prediction may move the wrong way.
        share: smallest share of rows that must react like this.
        function: ``model:function``. It is called with ``predict`` (frame to n predictions) and a frame of n rows, and
            returns None or a sentence that says what is wrong.
    """

    feature: Identifier | None = None
    add: Number | None = None
    value: Number | str | None = None
    expect: Literal["same", "higher", "lower"] = "same"
    tolerance: NotNegative = 0.01
    share: Share = 0.95
    function: Function | None = None

    @check
    def _is_one_kind(self) -> Found:
        if (self.feature is None) == (self.function is None):
            yield (), "give either feature or function"

    @check
    def _changes_the_feature(self) -> Found:
        if self.feature is not None and (self.add is None) == (self.value is None):
            yield (), "give either add or value; it says how the feature changes"


class OperationGate(Section):
    """Whether the stored version works in production. A new process tries it.

    Attributes:
        latency: longest time to predict 1,000 rows, in milliseconds: the fastest of a few tries.
        artifact_mb: largest size of the stored files, in megabytes.
    """

    latency: Positive = 2_000.0
    artifact_mb: Positive = 500.0


class RefitGate(Section):
    """Whether the model that serves is the one that was judged, only newer (``training.refit``).

    Attributes:
        agreement: how far both must agree on the holdout: Spearman's rank correlation of their predictions, or for multiclass
            the share of rows for which both predict the same class.
    """

    agreement: Share = 0.5


#: The default of ``gates.refresh.agreement``.
DEFAULT_AGREEMENT = 0.7
#: The default of ``gates.refresh.skill``, by metric; 0 for others.
DEFAULT_SKILL = {"roc_auc": 0.1}


class RefreshGate(Section):
    """The net under refreshes: whether the champion's recipe, fitted on newer rows, may serve (``schedules.refresh``).

    Attributes:
        agreement: how far the refreshed model must agree, on the newest rows, with the model before it: as for
            ``gates.refit.agreement``. Rows that change a model more than that are withheld from later trainings. None: what
            ``perennial calibrate`` found in the model's own refreshes, else 0.7.
        skill: skill score that the model before it must have on the newest rows: 0 is that of the best constant prediction, 1
            is perfect. An area under the ROC curve of 0.55 is a skill of 0.1. Without skill, the newest labels are doubted.
            None: what ``perennial calibrate`` found, else 0.1 for ``roc_auc``, and 0 for other metrics.
        margin: share of the older version's lead over the best constant that refreshed models must lose on a day for the day
            to speak against them. 0.02 of the lead of a ROC AUC of 0.75 is 0.005. Less harms nobody, and one fit is always
            ahead of another by a little.
        false_restores: expected number of refreshes until one is undone by chance, if refreshes do no harm.
    """

    agreement: Share | None = None
    skill: Share | None = None
    margin: Share = 0.02
    false_restores: Annotated[int, Field(ge=20)] = 260


class Gates(Section):
    """What a candidate must pass to become champion.

    Attributes:
        metric: the primary metric. Default: the first of the task (``roc_auc``, ``log_loss``, ``rmse``).
        at_least, at_most: absolute bounds by metric, on the holdout, inclusive.
        baseline_margin: by how much the primary metric must be better than that of the best baseline.
        resampling: how uncertainty is measured.
        champion: the comparison with the champion.
        slices: parts of the rows. In each, the candidate is compared with the champion.
        fairness: groups that must be treated equally. Each entry is a gate of its own.
        calibration: whether probabilities mean what they say.
        prior_factor: largest factor between the mean probability and the share of true labels in training. Binary
            classification only.
        robustness: how much of its lead a model may lose when its inputs get worse.
        behaviour: tests by name.
        operation: whether the stored version works in production.
        refit: whether the model that serves agrees with the one that was judged.
        refresh: what a refresh of the champion must pass.
        leak: highest score of a single feature alone (area under its own ROC curve, or R squared). A feature above it may be
            made of the label.
        stale_after: longest time between the end of what was learned from and the beginning of the holdout.
        min_rows: smallest number of labelled rows of a holdout for a decision.
        label_coverage: smallest share of the holdout's entities whose label is known.
    """

    metric: str | None = None
    at_least: dict[str, Number] = {}
    at_most: dict[str, Number] = {}
    baseline_margin: NotNegative = 0.0
    resampling: Resampling = Resampling()
    champion: ChampionGate = ChampionGate()
    slices: SlicesGate = SlicesGate()
    fairness: list[FairnessGate] = []
    calibration: CalibrationGate = CalibrationGate()
    prior_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0
    robustness: RobustnessGate = RobustnessGate()
    behaviour: dict[Identifier, Behaviour] = {}
    operation: OperationGate = OperationGate()
    refit: RefitGate = RefitGate()
    refresh: RefreshGate = RefreshGate()
    leak: Annotated[float, Field(gt=0.5, le=1, allow_inf_nan=False)] = 0.98
    stale_after: Duration = timedelta(days=7)
    min_rows: Annotated[int, Field(ge=1)] = 200
    label_coverage: Share = 0.8

    @check_each("at_least")
    def _bounds_leave_room(self, metric: str, lowest: float) -> Found:
        if lowest > self.at_most.get(metric, lowest):
            yield (), f"{lowest:g} is above the {self.at_most[metric]:g} of at_most"


class ApprovalPolicy(Section):
    """Who approves a version that passed its gates, if ``promotion`` is ``approval``.

    Attributes:
        within: time to answer. Without an answer in time, the champion stays.
        refreshes: ``follow``: a recipe is approved once, and its refreshes follow under their gates. ``ask``: each refresh is
            asked about, too.
        approvers: ids of the Airflow users who may answer. Empty: everyone who may act on the DAG.
    """

    within: Duration = timedelta(days=3)
    refreshes: Literal["follow", "ask"] = "follow"
    approvers: list[Text] = []
