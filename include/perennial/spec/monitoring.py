"""``shadow``, ``drift`` and ``retraining`` in ``model.yaml``, and the calibrated thresholds of ``drift.yaml``."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from perennial.spec.sections import Found, Section, check
from perennial.spec.types import Duration, Identifier, NotNegative, Positive, PositiveShare, Share, Text


class Shadow(Section):
    """Versions that keep scoring beside the champion, unseen by those who read predictions, to be compared when labels come.

    Attributes:
        windows: monitoring windows for which they score; 0: none do.
        close: a refused candidate whose primary metric was at most this much worse than the champion's scores in the
            shadow too. None: only the champion before does.
        rollback: whether a champion that does surely worse than the one before it is rolled back, rather than only told of.
    """

    windows: Annotated[int, Field(ge=0, le=520)] = 4
    close: NotNegative | None = None
    rollback: bool = False


class Drift(Section):
    """When features or predictions count as drifted, against the champion's own training reference.

    Attributes:
        numeric_threshold: Wasserstein distance in standard deviations of the reference.
        categorical_threshold: Jensen-Shannon distance, 0 to 1.
        prediction_threshold: Wasserstein distance of the predictions, in standard deviations of the reference.
        share: share of the features that must drift for the verdict ``drift``; drifted predictions suffice alone. None: one
            feature suffices where thresholds are calibrated, which corrects them for their number; else
            :data:`FIXED_SHARE` of them.
        max_missing: share of missing values above the reference's own at which a column is unusable.
        max_new_categories: share of rows with categories that the reference never saw, at which a column has drifted.
        match: compare with those rows of the reference alone that fall on the window's weekdays, or in its months.
        false_alarms: verdicts ``drift`` a year that stable data may cause; ``perennial calibrate`` sets thresholds by it.
        sample: most rows taken of each side, seeded.
        min_rows: fewest rows a verdict may rest on; below it the verdict is ``unknown``.
    """

    numeric_threshold: Positive = 0.25
    categorical_threshold: PositiveShare = 0.15
    prediction_threshold: Positive = 0.35
    share: PositiveShare | None = None
    max_missing: Share = 0.5
    max_new_categories: Share = 0.05
    match: Literal["none", "weekday", "month"] = "none"
    false_alarms: Positive = 1.0
    sample: Annotated[int, Field(ge=100)] = 20_000
    min_rows: Annotated[int, Field(ge=1)] = 200

    def features_wanted(self, features: int, *, calibrated: bool) -> int:
        """How many of so many features must drift for the verdict ``drift``."""
        share = self.share if self.share is not None else 0.0 if calibrated else FIXED_SHARE
        return min(max(1, math.ceil(share * features - 1e-9)), max(1, features))


#: Share of the features that must drift where thresholds are the same for all of them and ``drift.share`` is not given.
FIXED_SHARE = 0.3


class Threshold(Section):
    """From where on a column has drifted.

    Attributes:
        distance: as in :class:`Drift`.
        missing: difference between the shares of missing values.
    """

    distance: Positive
    missing: PositiveShare


class DriftThresholds(Section):
    """``drift.yaml`` of a model folder: thresholds that ``perennial calibrate`` took from stable history.

    Attributes:
        computed_at: when, in UTC.
        history: key of the interval that was replayed.
        features_snapshot: of the lake, that history was read at.
        version: whose predictions they are.
        window: the monitoring window; another ``schedules.monitor`` needs other thresholds.
        match: ``drift.match`` at the time; likewise.
        replays: windows of history that were compared.
        seed: of the draws.
        false_alarms: the budget, in verdicts ``drift`` a year.
        expected: how many the replays raise a year by these thresholds.
        columns: of each feature, and of ``prediction``.
    """

    computed_at: Text
    history: Text
    features_snapshot: int | None = None
    version: int | None = None
    window: Literal["day", "week"]
    match: Literal["none", "weekday", "month"] = "none"
    replays: Annotated[int, Field(ge=1)]
    seed: int
    false_alarms: Positive
    expected: NotNegative
    columns: Annotated[dict[Identifier, Threshold], Field(min_length=1)]


class RetrainingPolicy(Section):
    """When monitoring may ask for a new version.

    Attributes:
        on_drift: whether a verdict ``drift`` may ask.
        on_performance: drop of the realised primary metric, against the version's own holdout, that asks. None: never.
        alarms: how many of the last ``of`` windows must ask, the newest among them.
        of: see ``alarms``.
        cooldown: least time between two retrainings that monitoring asked for.
        budget: most trainings in any 30 days, those of the calendar and of people included, after which monitoring may not
            ask for another one.
        breaker: trainings in a row without a promotion after which monitoring asks no more, until a version is promoted.
    """

    on_drift: bool = True
    on_performance: Positive | None = None
    alarms: Annotated[int, Field(ge=1)] = 2
    of: Annotated[int, Field(ge=1)] = 3
    cooldown: Duration = timedelta(days=14)
    budget: Annotated[int, Field(ge=0)] = 2
    breaker: Annotated[int, Field(ge=1)] = 3

    @check
    def _alarms_can_be_reached(self) -> Found:
        if self.alarms > self.of:
            yield (), f"{self.alarms} alarms can never occur in the last {self.of} windows; lower alarms, or raise of"
