"""Decides which versions score in the shadow of the champion, and judges them. The functions are pure.

After a promotion, the previous champion keeps scoring beside the new one for some monitoring windows. A refused candidate that
came close may do so too. Readers of predictions do not see theirs. When labels are known, a version in the shadow and the
champion are compared on the same rows.

The comparison is repeated after each window whose labels have arrived. Each repetition (look) may find a difference by chance,
so all looks share one error rate (Bonferroni), which holds even though the looks depend on each other.

Neighbours: :mod:`perennial.monitoring.shadowing` runs the scoring and measures, and :mod:`perennial.evaluation.comparison`
computes how certain a difference is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from perennial.core.intervals import Interval, window_start
from perennial.spec.monitoring import Shadow

#: The largest number of versions that score in the shadow of one champion.
MOST = 3

Role = Literal["predecessor", "refused"]
ShadowOutcome = Literal["champion_worse", "no_difference", "unknown"]

#: Margins are decimal numbers; as binary floats they are off by about this much.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Challenger:
    """A version that may score in the shadow.

    Attributes:
        role: the previous champion, or a candidate that the gates or an approver refused.
        as_of: the time up to which it learned; None if that is not known.
        loss: by how much its primary metric was worse than the champion's on the holdout; not needed for a predecessor.
    """

    version: int
    role: Role
    as_of: datetime | None
    loss: float = math.nan


def period(policy: Shadow, began: datetime, window: timedelta) -> Interval | None:
    """The monitoring windows in which a version scores in the shadow: the one that contains ``began``, if it began earlier,
    and ``policy.windows`` whole windows.

    Args:
        policy: ``shadow`` of the spec.
        began: the first moment that was scored.
        window: length of a monitoring window, a day or a week; weeks begin on a Monday.

    Returns:
        These windows as one interval; None if no version scores in the shadow.
    """
    if policy.windows == 0:
        return None
    start = window_start(began, window)
    whole = start if start == began else start + window
    return Interval(start, whole + policy.windows * window)


def choose(
    policy: Shadow, challengers: Sequence[Challenger], *, interval: Interval, began: datetime | None, window: timedelta
) -> list[int]:
    """The versions that score an interval beside the champion, at most :data:`MOST`.

    Args:
        policy: ``shadow`` of the spec.
        challengers: the predecessor, then candidates that were compared with this champion, newest first.
        interval: the interval that the champion has just scored.
        began: the first moment that the champion scored since its promotion; None if that is the start of ``interval``.
        window: length of a monitoring window.

    Returns:
        The numbers of these versions. No version that may have learned from the interval is among them.
    """
    chosen = []
    for challenger in challengers:
        if challenger.as_of is None or challenger.as_of > interval.start:
            continue
        if challenger.role == "refused":
            close = policy.close is not None and challenger.loss <= policy.close + _ROUNDING  # NaN is not close
            since = challenger.as_of
        else:
            close, since = True, began or interval.start
        when = period(policy, since, window)
        if close and when is not None and when.start <= interval.start < when.end:
            chosen.append(challenger.version)
    return chosen[:MOST]


def confidence_of_a_look(confidence: float, policy: Shadow) -> float:
    """The confidence that each look needs, so that all looks together have the error rate of one comparison.

    References:
        Dunn: Multiple Comparisons among Means. Journal of the American Statistical Association 56, 1961.
    """
    return 1 - (1 - confidence) / (policy.windows + 1)


@dataclass(frozen=True)
class ShadowVerdict:
    """The result of a comparison.

    Attributes:
        outcome: ``champion_worse`` if the champion is worse with the required confidence; ``unknown`` if that could not be
            judged; ``no_difference`` otherwise.
        reason: the result in words and numbers.
    """

    outcome: ShadowOutcome
    reason: str


def judge(
    *,
    metric: str,
    champion: int,
    challenger: int,
    rows: int,
    gain: float,
    lower: float | None,
    confidence: float,
    problem: str | None,
) -> ShadowVerdict:
    """Judge whether the champion is worse than a version in its shadow, with the required confidence.

    Args:
        metric: the primary metric.
        champion, challenger: their versions.
        rows: the number of labelled rows that both predicted.
        gain: by how much the challenger is better, in units of the metric.
        lower: lower bound of the true gain at ``confidence``; None if there is no bound.
        confidence: the confidence of this look, 0 to 1.
        problem: why there is no bound; None if there is one.
    """
    compared = f"{metric} of version {challenger} was {gain:+.4g} against champion {champion} on the same {rows:,} rows"
    if problem is not None or lower is None or not (math.isfinite(gain) and math.isfinite(lower)):
        return ShadowVerdict("unknown", f"{compared}; {problem or 'no confidence bound could be computed'}")
    sure = f"with {confidence:.2%} confidence the gain is above {lower:+.4g}"
    if lower > 0:
        return ShadowVerdict("champion_worse", f"{compared}: the champion is worse; {sure}")
    return ShadowVerdict("no_difference", f"{compared}; {sure}, so the difference may be chance")
