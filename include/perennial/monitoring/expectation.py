"""What a requested training may be expected to gain, and what it gained. The functions are pure.

Both come from comparisons of a champion with the version that it replaced, which keeps scoring in its shadow: on the windows
after the promotion, on the same rows, which neither had learned from. Windows before the promotion do not count, nor do windows
without enough labels. A refresh ends no comparison: it is the champion's recipe with newer rows, and its windows count for the
champion that it refreshed.

Neighbours: :mod:`perennial.monitoring.shadowing` makes the comparisons. :mod:`perennial.monitoring.requests` calls this module
and keeps the results with the request.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from perennial.evidence.monitoring import Audit, Expectation
from perennial.ledger.coverage import trained_as_of
from perennial.ledger.records import Promotion, ShadowComparison, VersionRecord
from perennial.ledger.succession import completed

#: At most this many replacements are used, the newest ones.
MOST_REPLACEMENTS = 12
#: The actions that replace a champion by a newer one of another training.
_REPLACES = ("promote", "override")


@dataclass(frozen=True)
class Replacement:
    """What a champion gained over the version that it replaced.

    Attributes:
        version, previous: the champion, and the version that it replaced.
        gain: how much better the champion was, in units of the primary metric; negative if it was worse.
        ends: low and high end of the gain's confidence interval; None if there is none.
        windows: number of monitoring windows that were compared.
    """

    version: int
    previous: int
    gain: float
    ends: tuple[float, float] | None
    windows: int


def replacement(promotion: Promotion, comparisons: Iterable[ShadowComparison]) -> Replacement | None:
    """What a promotion gained, from the comparison with the most windows; None if nothing was compared."""
    found = [
        one
        for one in comparisons
        if one.promotion_id == promotion.id and one.version == promotion.previous and math.isfinite(one.comparison.gain)
    ]
    if promotion.previous is None or not found:
        return None
    last = max(found, key=lambda one: one.windows)
    # The comparison says how much better the version in the shadow was.
    low, high = last.comparison.low, last.comparison.high
    ends = None if low is None or high is None else (-high, -low)
    return Replacement(promotion.version, promotion.previous, -last.comparison.gain, ends, last.windows)


def expect(promotions: Sequence[Promotion], comparisons: Sequence[ShadowComparison], metric: str) -> Expectation:
    """What a training may gain if its version is promoted: mean and standard deviation of the newest replacements.

    With a single replacement, half of its confidence interval takes the place of the standard deviation.

    Args:
        promotions: all promotions of the model, oldest first.
        comparisons: all comparisons with versions in the shadow.
        metric: the primary metric.
    """
    known = [
        found
        for promotion in completed(promotions)
        if promotion.action in _REPLACES and (found := replacement(promotion, comparisons)) is not None
    ][-MOST_REPLACEMENTS:]
    if not known:
        nothing = "no version has been compared yet with the one that it replaced, on the windows after that"
        return Expectation(words=f"What it will gain is not known: {nothing}")
    gain = statistics.fmean(one.gain for one in known)
    if len(known) > 1:
        deviation: float | None = statistics.stdev(one.gain for one in known)
    else:
        (one,) = known
        deviation = None if one.ends is None else (one.ends[1] - one.ends[0]) / 2
    made = Expectation(gain, deviation, len(known))
    earlier = "the last replacement" if len(known) == 1 else f"the last {len(known)} replacements"
    return replace(made, words=f"Expected gain in {metric} if its version is promoted: {made.figure}, as {earlier} gained")


def audit(
    window_end: datetime,
    *,
    trainings: Sequence[VersionRecord],
    promotions: Sequence[Promotion],
    comparisons: Sequence[ShadowComparison],
    windows: int,
    asked_again: bool,
) -> Audit | None:
    """What came of a request. None: it is too early to say.

    It is due when one of these is known:

    - The gates refused the version, or a later training made a version and this one was not promoted. Nothing was gained.
    - The training made no version, and monitoring has asked again or another training has made one since.
    - The version was promoted, and has been compared with the version that it replaced on all ``windows``; or another recipe
      has replaced it, or a rollback, which ends the comparison. Then that with the most windows counts, if there is one.

    Args:
        window_end: end of the window after which monitoring asked. The training has this time as ``as_of``.
        trainings: the model's trainings, without refreshes.
        promotions: all promotions of the model, oldest first.
        comparisons: all comparisons with versions in the shadow.
        windows: ``shadow.windows`` of the spec.
        asked_again: whether monitoring has asked for a later training.
    """
    when = {record.version: trained_as_of(record) for record in trainings}
    own = max((record.version for record in trainings if when[record.version] == window_end), default=None)
    later = any(as_of is not None and as_of > window_end for as_of in when.values())
    if own is None:
        return Audit("none", words="the training made no version") if later or asked_again else None
    record = next(record for record in trainings if record.version == own)
    made = [promotion for promotion in completed(promotions) if promotion.version == own and promotion.action in _REPLACES]
    if not made:
        if not record.decision.promote:
            return Audit("refused", own, words=f"version {own} was refused, so nothing was gained")
        return Audit("refused", own, words=f"version {own} was not promoted, so nothing was gained") if later else None
    promotion = made[0]
    replaced = any(other.id > promotion.id and other.action != "refresh" for other in completed(promotions))
    found = replacement(promotion, comparisons)
    if promotion.previous is None or windows == 0:
        return Audit("unmeasured", own, words=f"version {own} was promoted, and no version is in its shadow to compare it with")
    if found is None:
        words = f"version {own} was replaced before it could be compared with version {promotion.previous}"
        return Audit("unmeasured", own, words=words) if replaced else None
    if found.windows < windows and not replaced:
        return None
    low, high = found.ends or (None, None)
    sure = "" if low is None or high is None else f" (between {low:+.2g} and {high:+.2g})"
    words = f"got {found.gain:+.2g}{sure} by version {own} over version {found.previous}, on {_windows(found.windows)}"
    return Audit("measured", own, found.gain, low, high, words)


def _windows(number: int) -> str:
    return "1 window" if number == 1 else f"{number} windows"
