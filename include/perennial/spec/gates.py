"""``gates`` and ``approval`` in ``model.yaml``: what a version must pass, and whether a person is asked."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from perennial.spec.sections import Found, Section, check, check_each
from perennial.spec.types import Duration, Function, Identifier, NotNegative, Number, Positive, PositiveShare, Seed, Share, Text


class Resampling(Section):
    """How sure a comparison is: rows are drawn anew in whole blocks, since rows of one time or group err together.

    Attributes:
        block: length of a block of event time.
        group: a feature or key column whose values are the blocks, in place of time.
        resamples: how many times rows are drawn.
        confidence: of the intervals that are shown. A gain is sure when its whole interval is, so that a decision is wrong
            by chance half as often as the interval (ICH E9: Statistical Principles for Clinical Trials. 1998, section 5.5).
        seed: of the draws.
    """

    block: Duration = timedelta(days=1)
    group: Identifier | None = None
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 1_000
    confidence: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    seed: Seed = 2013


class ChampionGate(Section):
    """How a candidate must compare with the champion on the same rows, by a paired test over ``gates.resampling``.

    Attributes:
        mode: ``better``: surely more than ``margin`` better. A tie refuses, since a change costs something.
            ``not_worse``: surely less than ``margin`` worse (non-inferiority), which needs a margin.
        margin: in units of the primary metric.
    """

    mode: Literal["better", "not_worse"] = "better"
    margin: NotNegative = 0.0

    @check
    def _not_worse_has_a_margin(self) -> Found:
        if self.mode == "not_worse" and self.margin == 0:
            yield (), "mode not_worse requires a margin above 0; say how much worse is still good enough"


class SlicesGate(Section):
    """No value of the named columns may surely fall against the champion; all comparisons share one error rate (Holm).

    Attributes:
        columns: features, or key columns of the entity.
        margin: fall of the primary metric that a slice may suffer.
        min_rows: labelled rows that a slice needs to be judged; smaller ones are named, and not judged.
    """

    columns: list[Identifier] = []
    margin: NotNegative = 0.02
    min_rows: Annotated[int, Field(ge=20)] = 200


class FairnessGate(Section):
    """How alike the groups of a column must be treated, as the least rate of a group over the greatest.

    Attributes:
        column: whose values are the groups.
        rate: share of rows answered yes (``selection_rate``), of true ones (``true_positive_rate``) or of false ones
            (``false_positive_rate``).
        ratio: least over greatest rate; 0.8 is the four-fifths rule (29 CFR 1607.4 D).
        threshold: probability from which the answer is yes. None: that of ``cost``, or 0.5.
        min_rows: rows that a group needs to be compared.
    """

    column: Identifier
    rate: Literal["selection_rate", "true_positive_rate", "false_positive_rate"] = "selection_rate"
    ratio: Share = 0.8
    threshold: Share | None = None
    min_rows: Annotated[int, Field(ge=20)] = 200


class CalibrationGate(Section):
    """Whether probabilities mean what they say. Binary classification only.

    Attributes:
        error: largest expected calibration error; None: not judged.
        brier_margin: by how much the Brier score may be worse than the champion's; None: not judged.
    """

    error: Share | None = 0.15
    brier_margin: NotNegative | None = 0.005


class RobustnessGate(Section):
    """What may be lost when the inputs get worse, one feature at a time.

    Losses are shares of the lead that the primary metric has over the best constant prediction on the same rows, so that
    they mean the same for every metric and unit: a tenth of an area under the curve of 0.7 is a tenth of 0.2.

    Attributes:
        noise: standard deviation of what is added to a number, in its own standard deviations.
        missing: share of a feature's values that are removed.
        noise_drop: largest share of the lead that noise in one feature may cost; None: not judged.
        missing_drop: largest share of the lead that missing values in one feature may cost; None: not judged. A model that
            falls back on a constant where its only feature is missing, a tenth of the time, loses 0.32 of its lead in RMSE.
        rows: most rows it is measured on, seeded.
    """

    noise: PositiveShare = 0.05
    missing: PositiveShare = 0.1
    noise_drop: NotNegative | None = 0.1
    missing_drop: NotNegative | None = 0.35
    rows: Annotated[int, Field(ge=100)] = 2_000


class Behaviour(Section):
    """How predictions must react when a feature changes and nothing else does, or a test of ``model.py``.

    Attributes:
        feature: the feature that is changed.
        add: number added to it; for a numeric feature.
        value: value it is set to; for any feature.
        expect: ``same``, ``higher`` or ``lower``; of the probability of true, or of the number predicted.
        tolerance: by how much a prediction may move against that.
        share: least share of rows that must behave.
        function: ``model:function``, called with ``predict`` (frame to n predictions) and a frame of n rows; returns None
            or a sentence that says what is wrong.
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
    """Whether the stored version can be put to work, tried in a clean process.

    Attributes:
        latency: longest time that 1,000 rows may take, in milliseconds, warm.
        artifact_mb: largest artifact, in megabytes.
    """

    latency: Positive = 2_000.0
    artifact_mb: Positive = 500.0


class Gates(Section):
    """What a candidate must pass to become champion.

    Attributes:
        metric: the primary metric; by default the task's first (``roc_auc``, ``log_loss``, ``rmse``).
        at_least, at_most: absolute bounds per metric on the holdout.
        baseline_margin: by how much the primary metric must beat the best baseline.
        resampling: how uncertainty is measured.
        champion: the comparison with the champion.
        slices: parts of the rows, each compared with the champion.
        fairness: groups that must be treated alike; each an own gate.
        calibration: whether probabilities mean what they say.
        prior_factor: by what factor the mean probability may differ from the share of true labels in training.
        robustness: what worse inputs may cost.
        behaviour: tests by name.
        operation: whether the stored version can be put to work.
        leak: score that a single feature alone may reach (area under its own ROC curve, or R squared); above it something
            of the label is in it.
        stale_after: longest time between the end of what was learned from and the beginning of the holdout.
        min_rows: fewest labelled rows of a holdout that a decision may rest on.
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
    leak: Annotated[float, Field(gt=0.5, le=1, allow_inf_nan=False)] = 0.98
    stale_after: Duration = timedelta(days=7)
    min_rows: Annotated[int, Field(ge=1)] = 200
    label_coverage: Share = 0.8

    @check_each("at_least")
    def _bounds_leave_room(self, metric: str, lowest: float) -> Found:
        if lowest > self.at_most.get(metric, lowest):
            yield (), f"{lowest:g} is above the {self.at_most[metric]:g} of at_most"


class ApprovalPolicy(Section):
    """Who is asked before a version that passed its gates becomes champion, where ``promotion`` is ``approval``.

    Attributes:
        within: an answer later than this is none, and the champion stays.
        approvers: ids of the Airflow users who may answer; empty: whoever may act on the DAG.
    """

    within: Duration = timedelta(days=3)
    approvers: list[Text] = []
