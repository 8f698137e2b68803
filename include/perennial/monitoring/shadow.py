"""Which versions score in the shadow of the champion, and what to make of how they did. Pure: it reads and writes nothing.

After a promotion the champion before keeps scoring beside the new one for some monitoring windows, unseen by those who read
predictions; so may a refused candidate that came close. Once labels are known, both are compared on the same rows.

A comparison is looked at again with each window whose labels have come. Every look is a chance to see what is not there, so
the looks share one error rate (Bonferroni), which holds whatever their dependence.

Neighbours: :mod:`perennial.monitoring.shadowing` lets them score and measures, :mod:`perennial.evaluation.comparison` says
how sure a difference is, and the spec's ``shadow`` says what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from perennial.core.intervals import Interval, window_start
from perennial.spec.monitoring import Shadow

#: Most versions that score in the shadow of one champion.
MOST = 3

Role = Literal["predecessor", "refused"]
ShadowOutcome = Literal["champion_worse", "no_difference", "unknown"]

#: Margins are written in decimals, which binary floats miss by about this much.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Challenger:
    """A version that may score in the shadow.

    Attributes:
        role: the champion before this one, or a candidate that the gates or an approver refused.
        as_of: up to when it learned; None if that is not known.
        loss: by how much its primary metric was worse than the champion's on the holdout; not needed of a predecessor.
    """

    version: int
    role: Role
    as_of: datetime | None
    loss: float = math.nan


def period(policy: Shadow, began: datetime, window: timedelta) -> Interval | None:
    """The monitoring windows of a shadow that began at a moment: the one it lies in, and ``policy.windows`` whole ones.

    Args:
        policy: ``shadow`` of the spec.
        began: the first moment that was scored.
        window: length of a monitoring window, a day or a week; weeks begin on a Monday.

    Returns:
        None if no version scores in the shadow.
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
        challengers: the predecessor, and candidates that were compared with this champion; the newest first.
        interval: what the champion has just scored.
        began: the first moment that the champion scored since it was promoted; None if this is it.
        window: length of a monitoring window.

    Returns:
        Their numbers. None of them may have learned from the interval.
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
    """The confidence that each look needs, so that all looks together are wrong no more often than one was to be.

    References:
        Dunn: Multiple Comparisons among Means. Journal of the American Statistical Association 56, 1961.
    """
    return 1 - (1 - confidence) / (policy.windows + 1)


@dataclass(frozen=True)
class ShadowVerdict:
    """What a comparison says.

    Attributes:
        outcome: whether the champion surely does worse; ``unknown`` if that could not be judged.
        reason: in words and numbers.
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
    """Whether the champion surely does worse than a version in its shadow.

    Args:
        metric: the primary metric.
        champion, challenger: their versions.
        rows: labelled rows that both predicted.
        gain: by how much the challenger is better, in units of the metric.
        lower: above which the true gain lies with ``confidence``; None if chance could not be judged.
        confidence: of this look.
        problem: why it could not.
    """
    compared = f"{metric} of version {challenger} was {gain:+.4g} against champion {champion} on the same {rows:,} rows"
    if problem is not None or lower is None or not (math.isfinite(gain) and math.isfinite(lower)):
        return ShadowVerdict("unknown", f"{compared}; {problem or 'how sure that is could not be said'}")
    sure = f"with {confidence:.2%} confidence the gain is above {lower:+.4g}"
    if lower > 0:
        return ShadowVerdict("champion_worse", f"{compared}: the champion surely does worse; {sure}")
    return ShadowVerdict("no_difference", f"{compared}; {sure}, so it may be chance")
