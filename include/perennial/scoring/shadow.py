"""Decides which versions score in the shadow of the champion, and which of them may answer a share of what is asked online.
The functions are pure.

After a promotion, the previous champion keeps scoring beside the new one for some monitoring windows. A refused candidate that
came close may do so too. Readers of predictions do not see theirs. When labels are known, a version in the shadow and the
champion are compared on the same rows.

Neighbours: :mod:`perennial.scoring.challengers` asks the ledger, and :mod:`perennial.monitoring.shadow` judges comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from perennial.core.intervals import Interval, window_start
from perennial.spec.monitoring import Shadow

#: The largest number of versions that score in the shadow of one champion.
MOST = 3

Role = Literal["predecessor", "refused"]

#: Margins are decimal numbers; as binary floats they are off by about this much.
_ROUNDING = 1e-12


class Compared(Protocol):
    """What this module reads of a comparison."""

    @property
    def outcome(self) -> str: ...


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


def may_answer(
    policy: Shadow,
    *,
    promoted_at: datetime,
    now: datetime,
    window: timedelta,
    grace: timedelta,
    comparisons: Iterable[Compared],
) -> bool:
    """Whether the previous champion may answer a share of what is asked online.

    It may until a comparison has found it worse than the champion, and no longer than its windows take by the clock, so that a
    comparison that never comes does not keep it for ever.

    Args:
        policy: ``shadow`` of the spec.
        promoted_at: when the champion took its place.
        now: the time.
        window: length of a monitoring window.
        grace: how long after its end the days of a window are waited for.
        comparisons: of the two.
    """
    until = promoted_at + (policy.windows + 1) * window + grace
    return now < until and not any(compared.outcome == "challenger_worse" for compared in comparisons)
