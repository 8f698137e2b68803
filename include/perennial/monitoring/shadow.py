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

ShadowOutcome = Literal["champion_worse", "no_difference", "unknown"]


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
