"""The thresholds of refreshes that follow from the model's own refreshes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from perennial.spec.monitoring import NetThresholds

#: The smallest number of refreshes that thresholds are computed from.
FEWEST = 8
#: The probability that the next refresh of a stable model is below one threshold: both together hold one week in 50 back.
_FALSE_HOLD = 0.01
#: A calibrated agreement is never below or above these: below, a model may turn round; above, noise would hold weeks back.
_LOWEST, _HIGHEST = 0.3, 0.9


def net_thresholds(agreements: Sequence[float], skills: Sequence[float]) -> NetThresholds | None:
    """The agreement and the skill that one in a hundred refreshes of a stable model is below.

    Args:
        agreements: of the refreshes that passed.
        skills: skill scores of the model before each of them, on the newest rows.

    Returns:
        The thresholds; None if there are fewer than :data:`FEWEST` refreshes.

    References:
        Whitmore: Prediction Limits for a Univariate Normal Observation. The American Statistician 40 (1986).
    """
    if min(len(agreements), len(skills)) < FEWEST:
        return None
    # Correlations are normal after Fisher's transformation.
    agreement = math.tanh(_lower_limit(np.arctanh(np.clip(agreements, -0.999, 0.999))))
    return NetThresholds(
        agreement=round(min(max(agreement, _LOWEST), _HIGHEST), 3),
        skill=round(max(_lower_limit(np.asarray(skills, dtype=np.float64)), 0.0), 3),
        refreshes=len(agreements),
    )


def _lower_limit(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    count = len(values)
    width = float(stdtrit(count - 1, _FALSE_HOLD)) * float(values.std(ddof=1)) * math.sqrt(1 + 1 / count)
    return float(values.mean()) + width
