"""Does drift matter? Drift is a warning. It is critical if it lasts, or if performance falls at the same time.

Data change often, mostly without harm. So changed features or changed predictions are not enough to wake a person.
This module does no I/O: :mod:`perennial.drift.compare` judges windows, and :mod:`perennial.monitoring.estimation` estimates
their performance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from perennial.core.intervals import Interval
from perennial.evidence.verdict import Impact, VerdictSeverity
from perennial.monitoring.retraining import WindowPerformance, WindowVerdict, recent_verdicts
from perennial.spec.monitoring import RetrainingPolicy


@dataclass(frozen=True)
class Bound:
    """The limit that a metric must not cross.

    Attributes:
        metric: the metric's name.
        value: the limit, in units of the metric.
        greater_is_better: whether a greater value of the metric is better.
        source: where the limit comes from, for people.
    """

    metric: str
    value: float
    greater_is_better: bool
    source: str

    def is_broken_by(self, value: float | None) -> bool:
        """Whether a value is worse than the limit. A value that is unknown or not finite never is."""
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
    """Weigh the verdict on a window: no problem, a warning, or critical.

    - Drift is a warning. It is critical in two cases. Either at least ``alarms`` of the last ``of`` windows drifted, this one
      included; :func:`perennial.monitoring.retraining.recent_verdicts` counts them in the same way for a retraining. Or
      performance is worse than the bound: the estimate for this window, or the newest realised value in the last ``of``
      windows.
    - Without drift, realised performance worse than the bound is a warning. It is critical if at least ``alarms`` of the last
      ``of`` windows were worse: then the concept has changed, which features do not show.
    - Any other verdict, such as ``unknown``, is a warning.

    Args:
        policy: ``retraining`` of the spec.
        verdict: the verdict on the window.
        window: the window.
        verdicts: verdicts on earlier windows, in any order.
        estimated: the estimated primary metric of the window.
        performances: realised performance, in any order.
        version: the version whose predictions were judged. The performance of other versions is ignored.
        bound: the bound of the primary metric; None if there is none.
    """
    recent = {**recent_verdicts(policy, window, version, verdicts), window.end: verdict}
    drifted = sum(earlier == "drift" for earlier in recent.values())
    persistent = verdict == "drift" and drifted >= policy.alarms
    reasons = [f"{drifted} of the last {policy.of} windows drifted ({policy.alarms} make it persistent)"] if drifted else []
    fallen, often = [], 0
    if bound is not None:
        if reason := _estimated_fall(bound, estimated):
            fallen.append("estimated")
            reasons.append(reason)
        measured = _recent_performances(policy, window, version, performances)
        often = sum(bound.is_broken_by(performance.metrics.get(bound.metric)) for performance in measured)
        if reason := _realised_fall(bound, measured):
            fallen.append("realised")
            reasons.append(reason)
    severity = _severity(verdict, persistent, fallen, often_fallen=often >= policy.alarms)
    return Impact(severity, persistent, tuple(fallen), tuple(reasons))


def _estimated_fall(bound: Bound, estimated: float | None) -> str | None:
    """Why the estimate is too bad; None if it is not."""
    if not bound.is_broken_by(estimated):
        return None
    return f"estimated {bound.metric} is {estimated:.4g}, worse than {bound.value:.4g}, {bound.source}"


def _recent_performances(
    policy: RetrainingPolicy, window: Interval, version: int | None, performances: Iterable[WindowPerformance]
) -> list[WindowPerformance]:
    """The version's performance in the last ``of`` windows as long as ``window``, oldest first; the last record of each."""
    earliest = window.end - policy.of * window.length
    measured = {
        performance.interval.end: performance
        for performance in performances
        if performance.version == version
        and performance.interval.length == window.length
        and earliest < performance.interval.end <= window.end
    }
    return [measured[end] for end in sorted(measured)]


def _realised_fall(bound: Bound, measured: Sequence[WindowPerformance]) -> str | None:
    """Why the newest realised value is too bad; None if it is not, or if nothing was measured."""
    if not measured:
        return None
    newest = measured[-1]
    value = newest.metrics.get(bound.metric)
    if not bound.is_broken_by(value):
        return None
    return f"realised {bound.metric} of {newest.interval.key} is {value:.4g}, worse than {bound.value:.4g}, {bound.source}"


def _severity(verdict: str, persistent: bool, fallen: Collection[str], *, often_fallen: bool) -> VerdictSeverity:
    if verdict == "drift":
        return "critical" if persistent or fallen else "warning"
    if "realised" in fallen:
        return "critical" if often_fallen else "warning"
    return "none" if verdict == "ok" else "warning"
