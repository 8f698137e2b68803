"""Judges comparisons of the champion with versions in its shadow. The functions are pure.

The comparison is repeated after each window whose labels have arrived. Each repetition (look) may find a difference by chance,
so all looks share one error rate (Bonferroni), which holds even though the looks depend on each other.

Neighbours: :mod:`perennial.scoring.shadow` decides which versions score in the shadow,
:mod:`perennial.monitoring.shadowing` runs the scoring and measures, and :mod:`perennial.evaluation.comparison` computes how
certain a difference is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from perennial.spec.monitoring import Shadow

ShadowOutcome = Literal["champion_worse", "challenger_worse", "no_difference", "unknown"]


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
        outcome: ``champion_worse`` or ``challenger_worse`` if one is worse with the required confidence; ``unknown`` if that
            could not be judged; ``no_difference`` otherwise.
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
    upper: float | None = None,
    online: int = 0,
) -> ShadowVerdict:
    """Judge whether the champion is worse than a version in its shadow, or that version worse, with the required confidence.

    Args:
        metric: the primary metric.
        champion, challenger: their versions.
        rows: the number of labelled rows that both predicted.
        gain: by how much the challenger is better, in units of the metric.
        lower: lower bound of the true gain at ``confidence``; None if there is no bound.
        confidence: the confidence of this look, 0 to 1.
        problem: why there is no bound; None if there is one.
        upper: upper bound of the true gain at ``confidence``; None if there is no bound.
        online: how many of the rows are compared as they were answered online; 0: it is the batch that is compared.
    """
    compared = f"{metric} of version {challenger} was {gain:+.4g} against champion {champion} on the same {rows:,} rows"
    if online:
        compared += f", {online:,} of them as they were answered online"
    if problem is not None or lower is None or not (math.isfinite(gain) and math.isfinite(lower)):
        return ShadowVerdict("unknown", f"{compared}; {problem or 'no confidence bound could be computed'}")
    sure = f"with {confidence:.2%} confidence the gain is above {lower:+.4g}"
    if lower > 0:
        return ShadowVerdict("champion_worse", f"{compared}: the champion is worse; {sure}")
    if upper is not None and upper < 0:
        sure = f"with {confidence:.2%} confidence the gain is below {upper:+.4g}"
        return ShadowVerdict("challenger_worse", f"{compared}: version {challenger} is worse; {sure}")
    return ShadowVerdict("no_difference", f"{compared}; {sure}, so the difference may be chance")


def with_online(batch: ShadowVerdict, online: ShadowVerdict | None) -> ShadowVerdict:
    """The verdict where the two have also answered online.

    Scorers write these answers. So they may only speak against the version in the shadow, which then answers no client any
    more; that the champion is worse, the batch alone says.

    Args:
        batch: on what both predicted in the batch.
        online: on the same rows, as they were answered where they were; None if none was.
    """
    if online is None:
        return batch
    if online.outcome == "challenger_worse" and batch.outcome != "champion_worse":
        return online
    return ShadowVerdict(batch.outcome, f"{batch.reason}. Online: {online.reason}")
