"""Does drift matter? Drift is a warning. It is critical if it lasts, or if performance falls at the same time.

Data change often, mostly without harm. So changed features or changed predictions are not enough to wake a person.
This module does no I/O: :mod:`perennial.drift.compare` judges windows, and :mod:`perennial.monitoring.estimation` estimates
their performance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from perennial.core.intervals import Interval
from perennial.evidence.verdict import Impact, VerdictSeverity
from perennial.monitoring.retraining import WindowVerdict, recent_verdicts
from perennial.monitoring.usual import Bound, JudgedWindow
from perennial.spec.monitoring import RetrainingPolicy


def weigh(
    policy: RetrainingPolicy,
    verdict: str,
    window: Interval,
    *,
    verdicts: Iterable[WindowVerdict] = (),
    recipe: Collection[int] = (),
    estimated: float | None = None,
    windows: Sequence[JudgedWindow] = (),
    version: int | None = None,
    bound: Bound | None = None,
    uncompared: Collection[str] = (),
) -> Impact:
    """Weigh the verdict on a window: no problem, a warning, or critical.

    - Drift is a warning. It is critical in two cases. Either at least ``alarms`` of the last ``of`` windows drifted, this one
      included; :func:`perennial.monitoring.retraining.recent_verdicts` counts them in the same way for a retraining. Or
      performance is worse than usual: the estimate for this window, or the newest realised value.
    - Without drift, realised performance worse than usual is a warning. It is critical if at least ``alarms`` of the last
      ``of`` measured windows were worse: then the concept has changed, which features do not show.
    - If the newest realised value is surely worse than the same answer for every row, that is critical, whatever the verdict.
    - Any other verdict, such as ``unknown``, is a warning; so is one without drift if a column could not be compared.

    Args:
        policy: ``retraining`` of the spec.
        verdict: the verdict on the window.
        window: the window.
        verdicts: verdicts on earlier windows, in any order.
        recipe: all versions of the recipe of ``version``; verdicts on them count.
        estimated: the estimated primary metric of the window.
        windows: the last ``of`` measured windows of the version's recipe, from
            :func:`perennial.monitoring.usual.judge_windows`.
        version: the version whose predictions were judged.
        bound: the bound of the estimate; None if there is none.
        uncompared: names of the columns that could not be compared.
    """
    recent = {**recent_verdicts(policy, window, version, verdicts, recipe), window.end: verdict}
    drifted = sum(earlier == "drift" for earlier in recent.values())
    persistent = verdict == "drift" and drifted >= policy.alarms
    makes = "makes" if policy.alarms == 1 else "make"
    reasons = [f"{drifted} of the last {policy.of} windows drifted ({policy.alarms} {makes} it persistent)"] if drifted else []
    fallen = []
    if bound is not None and (reason := _estimated_fall(bound, estimated)):
        fallen.append("estimated")
        reasons.append(reason)
    if windows and windows[-1].useless:
        fallen.append("constant")
        reasons.insert(0, windows[-1].useless)
    if reason := _realised_fall(windows):
        fallen.append("realised")
        reasons.append(reason)
    often = sum(one.fallen for one in windows)
    severity = _severity(verdict, persistent, fallen, often_fallen=often >= policy.alarms, whole=not uncompared)
    return Impact(severity, persistent, tuple(fallen), tuple(reasons))


def _estimated_fall(bound: Bound, estimated: float | None) -> str | None:
    """Why the estimate is too bad; None if it is not."""
    if not bound.is_broken_by(estimated):
        return None
    return f"estimated {bound.metric} is {estimated:.4g}, worse than {bound.value:.4g}, {bound.source}"


def _realised_fall(windows: Sequence[JudgedWindow]) -> str | None:
    """Why the newest realised value is too bad; None if it is not, or if nothing was measured."""
    if not windows or not (newest := windows[-1]).fallen or newest.bound is None:
        return None
    return (
        f"realised {newest.metric} of {newest.interval.key} is {newest.value:.4g}, worse than {newest.bound.value:.4g}, "
        f"{newest.bound.source}"
    )


def _severity(verdict: str, persistent: bool, fallen: Collection[str], *, often_fallen: bool, whole: bool) -> VerdictSeverity:
    if "constant" in fallen:
        return "critical"
    if verdict == "drift":
        return "critical" if persistent or fallen else "warning"
    if "realised" in fallen:
        return "critical" if often_fallen else "warning"
    return "none" if verdict == "ok" and whole else "warning"
