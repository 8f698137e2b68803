"""``shadow``, ``drift`` and ``retraining`` in ``model.yaml``, and the calibrated thresholds of ``drift.yaml``."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from perennial.spec.sections import Found, Section, check
from perennial.spec.types import Duration, Identifier, NotNegative, Positive, PositiveShare, Share, Text

#: The fewest values on each side for which a distance is computed. With fewer, any two samples differ.
MIN_VALUES = 50


class Shadow(Section):
    """Versions that also score, beside the champion. Readers of predictions do not see theirs. They are compared with the
    champion when labels are known.

    Attributes:
        windows: number of complete monitoring windows for which they score, after the one in which they begin. 0: no
            version scores in the shadow.
        close: also let a refused candidate score whose primary metric was at most this much worse than the champion's. None:
            only the previous champion scores.
        rollback: whether a champion that is significantly worse than the previous one is rolled back. If not, only an alert
            is sent.
    """

    windows: Annotated[int, Field(ge=0, le=520)] = 4
    close: NotNegative | None = None
    rollback: bool = False


class Drift(Section):
    """When features or predictions count as drifted, in comparison with the reference: rows that the champion learned from.

    Attributes:
        numeric_threshold: Wasserstein distance, in standard deviations of the reference.
        categorical_threshold: Jensen-Shannon distance, 0 to 1.
        prediction_threshold: Wasserstein distance of the predictions, in standard deviations of the reference.
        share: share of the features that must drift for the verdict ``drift``. Drifted predictions are enough alone. None:
            one feature is enough if thresholds are calibrated, because calibration allows for the number of features;
            otherwise 0.3 of them.
        max_missing: a column with this share more missing values than the reference is unusable.
        max_new_categories: a column has drifted if this share of its rows has a category that the reference does not have,
            an infinite value, or another value than the only one of the reference.
        match: compare only with rows of the reference of the same weekdays, or the same months, as the window.
        false_alarms: verdicts ``drift`` per year that stable data may cause. ``perennial calibrate`` sets thresholds by it.
        calibrate: who sets calibrated thresholds. ``by_hand``: a person, by ``perennial calibrate``, for ``drift.yaml``.
            ``auto``: monitoring also does it for each new champion, from what was published when its first window begins, and
            records them with the verdict. A ``drift.yaml`` that was made for the champion, or for the version that it
            refreshes, comes first.
        sample: largest number of rows to compare of each side. If there are more, a random sample is taken.
        min_rows: smallest number of rows for a verdict. With fewer, the verdict is ``unknown``. Below 50 it has no effect: a
            distance requires so many values.
    """

    numeric_threshold: Positive = 0.25
    categorical_threshold: PositiveShare = 0.15
    prediction_threshold: Positive = 0.35
    share: PositiveShare | None = None
    max_missing: Share = 0.5
    max_new_categories: Share = 0.05
    match: Literal["none", "weekday", "month"] = "none"
    false_alarms: Positive = 1.0
    calibrate: Literal["by_hand", "auto"] = "by_hand"
    sample: Annotated[int, Field(ge=100)] = 20_000
    min_rows: Annotated[int, Field(ge=1)] = 200

    def features_wanted(self, features: int, *, calibrated: bool) -> int:
        """How many features must drift for the verdict ``drift``.

        Args:
            features: how many there are.
            calibrated: whether ``drift.yaml`` has their thresholds.
        """
        share = self.share if self.share is not None else 0.0 if calibrated else FIXED_SHARE
        return min(max(1, math.ceil(share * features - 1e-9)), max(1, features))


#: Share of the features that must drift if thresholds are not calibrated and ``drift.share`` is not given.
FIXED_SHARE = 0.3


class Threshold(Section):
    """From which distance a column has drifted.

    Attributes:
        distance: see :class:`Drift`.
        missing: difference between the shares of missing values.
    """

    distance: Positive
    missing: PositiveShare


class NetThresholds(Section):
    """The thresholds of ``gates.refresh`` that ``perennial calibrate`` took from the model's own refreshes.

    Attributes:
        agreement, skill: as in ``gates.refresh``, which comes first where it states them.
        refreshes: number of refreshes that they were computed from.
    """

    agreement: Share
    skill: NotNegative
    refreshes: Annotated[int, Field(ge=1)]


class DriftThresholds(Section):
    """``drift.yaml`` of a model folder: thresholds that ``perennial calibrate`` took from stable history.

    Attributes:
        computed_at: when they were computed, in UTC.
        history: key of the interval that was replayed.
        features_snapshot: snapshot of the lake from which history was read.
        version: the version that made the predictions: the champion that the thresholds are for.
        reference: key of the interval that this version learned from.
        constant: columns with one value in all of history. They drift once they have another value, whatever the threshold.
        wide: columns whose threshold is too wide: not even the farthest value of history, in every row, would reach it.
        window: ``schedules.monitor`` when they were computed. Another one requires other thresholds.
        match: ``drift.match`` when they were computed. Another one requires other thresholds.
        replays: number of windows of history that were compared.
        seed: seed of the draws.
        false_alarms: the budget, in verdicts ``drift`` per year.
        expected: verdicts ``drift`` per year that the replays give with these thresholds.
        columns: the thresholds of each feature, and of ``prediction``.
        refresh: the thresholds of refreshes; None if there were too few refreshes.
    """

    computed_at: Text
    history: Text
    features_snapshot: int | None = None
    version: int | None = None
    reference: Text | None = None
    constant: list[Identifier] = []
    wide: list[Identifier] = []
    window: Literal["day", "week"]
    match: Literal["none", "weekday", "month"] = "none"
    replays: Annotated[int, Field(ge=1)]
    seed: int
    false_alarms: Positive
    expected: NotNegative
    columns: Annotated[dict[Identifier, Threshold], Field(min_length=1)]
    refresh: NetThresholds | None = None


class RetrainingPolicy(Section):
    """When monitoring asks for a new version.

    Attributes:
        on_drift: whether it asks because of the verdict ``drift``.
        on_performance: it asks if the realised primary metric is worse than usual. ``auto``: worse than earlier windows of the
            same recipe, or than the holdout, by more than chance explains. A number: worse than on the version's holdout by
            this much. ``never``: it does not ask because of performance.
        alarms: how many of the last ``of`` windows must raise the alarm. The newest must be one of them.
        of: see ``alarms``.
        cooldown: shortest time since the last training, or since monitoring last asked. Trainings by calendar and by people
            count.
        budget: number of trainings in 30 days after which monitoring does not ask. Trainings by calendar and by people count.
        breaker: number of retrainings since the last promotion after which monitoring does not ask, until a version is
            promoted. Only those that monitoring asked for count.
    """

    on_drift: bool = True
    on_performance: Positive | Literal["auto", "never"] = "auto"
    alarms: Annotated[int, Field(ge=1)] = 2
    of: Annotated[int, Field(ge=1)] = 3
    cooldown: Duration = timedelta(days=14)
    budget: Annotated[int, Field(ge=0)] = 2
    breaker: Annotated[int, Field(ge=1)] = 3

    @field_validator("on_performance", mode="before")
    @classmethod
    def _null_is_not_stated(cls, value: Any) -> Any:
        # Null was the default, and the folders that earlier releases logged with their versions state all defaults.
        return "auto" if value is None else value

    @check
    def _alarms_can_be_reached(self) -> Found:
        if self.alarms > self.of:
            yield (), f"{self.alarms} alarms can never occur in the last {self.of} windows; lower alarms, or raise of"
