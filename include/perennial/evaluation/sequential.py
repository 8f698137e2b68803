"""Whether a series of refreshes does harm, by a test that may be looked at after each of them.

References:
    Shin, Ramdas, Rinaldo: E-detectors: A Nonparametric Framework for Sequential Change Detection. New England Journal of
    Statistics in Data Science 2 (2024), section 2.
    Ramdas, Grünwald, Vovk, Shafer: Game-Theoretic Statistics and Safe Anytime-Valid Inference. Statistical Science 38 (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import betaincc, betaln


def harm(worse: Sequence[int], days: Sequence[int]) -> float:
    """How strongly days on which refreshes were worse speak against refreshes that do no harm.

    The hypothesis is that, whatever happened before, a refreshed model is worse than the older one on a day with a
    probability of at most one half. Each stretch begins an e-process that runs to the end: the likelihood ratio against one
    half, averaged over all larger probabilities. The sum of these e-processes is an e-detector (Shiryaev-Roberts). If alarm is
    given when the sum reaches c, the expected number of stretches until a false alarm is at least c.

    Args:
        worse: for each stretch, in the order of time, the number of days on which the refreshed model was worse, by more than
            the margin that counts.
        days: for each stretch, the number of days on which the two differ.

    Returns:
        The sum, 0 or more.
    """
    return sum(_evidence(sum(worse[first:]), sum(days[first:])) for first in range(len(days)))


def _evidence(worse: int, days: int) -> float:
    """The mean over p, uniform from 1/2 to 1, of ``(2p)^worse (2(1-p))^(days-worse)``."""
    a, b = worse + 1, days - worse + 1
    share = float(betaincc(a, b, 0.5))
    if share <= 0:
        return 0.0
    return math.exp((days + 1) * math.log(2) + float(betaln(a, b)) + math.log(share))
