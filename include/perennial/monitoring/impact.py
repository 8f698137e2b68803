"""Does drift matter? A verdict is a warning; it is critical when it lasts, or when performance falls with it.

Data change all the time, mostly to no effect. So neither changed features nor changed predictions alone are worth waking
anyone. Pure: :mod:`perennial.drift.compare` judges windows and :mod:`perennial.monitoring.estimation` says what may be
expected of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from perennial.core.intervals import Interval
from perennial.evidence.verdict import Impact, VerdictSeverity
from perennial.monitoring.retraining import WindowPerformance, WindowVerdict, recent_verdicts
from perennial.spec.monitoring import RetrainingPolicy


@dataclass(frozen=True)
class Bound:
    """What a metric must not get worse than.

    Attributes:
        value: in units of the metric.
        source: where it comes from, for people.
    """

    metric: str
    value: float
    greater_is_better: bool
    source: str

    def is_broken_by(self, value: float | None) -> bool:
        """What is not known or not a number breaks nothing."""
        if value is None or not math.isfinite(value):
            return False
        return value < self.value if self.greater_is_better else value > self.value


def weigh(
    policy: RetrainingPolicy,
    verdict: str,
    window: Interval,
    *,
    verdicts: Iterable[WindowVerdict] = (),
    estimated: float | None = None,
    performances: Iterable[WindowPerformance] = (),
    version: int | None = None,
    bound: Bound | None = None,
) -> Impact:
    """Weigh the verdict on a window.

    Drift is a warning, and critical if at least ``alarms`` of the last ``of`` windows drifted, this one among them
    (:func:`perennial.monitoring.retraining.recent_verdicts`: what is persistent here is what asks for a retraining there),
    or if the estimated performance of this window, or the newest realised one of the last ``of`` windows, is worse than the
    bound. Without drift, realised performance that fell is a warning, and critical if it fell in ``alarms`` of those
    windows: the concept has changed, of which features say nothing. What is unknown is a warning.

    Args:
        policy: ``retraining`` of the spec.
        verdict: on the window.
        window: the window.
        verdicts: on earlier windows, in any order.
        estimated: the primary metric of the window.
        performances: realised, in any order.
        version: whose predictions were judged; the performance of others is not its own.
        bound: of the primary metric; None if there is none to go by.
    """
    span = policy.of * window.length
    recent = {**recent_verdicts(policy, window, version, verdicts), window.end: verdict}
    drifted = sum(earlier == "drift" for earlier in recent.values())
    persistent = verdict == "drift" and drifted >= policy.alarms
    reasons = [f"{drifted} of the last {policy.of} windows drifted ({policy.alarms} make it persistent)"] if drifted else []
    fallen = []
    if bound is not None and bound.is_broken_by(estimated):
        fallen.append("estimated")
        reasons.append(f"estimated {bound.metric} is {estimated:.4g}, worse than {bound.value:.4g}, {bound.source}")
    measured = {
        performance.interval.end: performance
        for performance in performances
        if performance.version == version
        and performance.interval.length == window.length
        and window.end - span < performance.interval.end <= window.end
    }
    often = 0
    if bound is not None and measured:
        newest = measured[max(measured)]
        values = {end: performance.metrics.get(bound.metric) for end, performance in measured.items()}
        often = sum(bound.is_broken_by(value) for value in values.values())
        if bound.is_broken_by(value := values[newest.interval.end]):
            fallen.append("realised")
            reasons.append(
                f"realised {bound.metric} of {newest.interval.key} is {value:.4g}, worse than {bound.value:.4g}, {bound.source}"
            )
    if verdict == "drift":
        severity: VerdictSeverity = "critical" if persistent or fallen else "warning"
    elif "realised" in fallen:
        severity = "critical" if often >= policy.alarms else "warning"
    else:
        severity = "none" if verdict == "ok" else "warning"
    return Impact(severity, persistent, tuple(fallen), tuple(reasons))
