"""Decides whether to retrain, and why, from verdicts, realised performance, earlier decisions and the budget.

The functions are pure: they read and write nothing. :mod:`perennial.drift.compare` and
:mod:`perennial.monitoring.performance` make the measurements, :mod:`perennial.monitoring.usual` says which of them are worse
than usual, the ledger keeps them, and the monitoring DAG starts the training.

These rules keep the loop from retraining without end, whatever the data:

- A window is decided once.
- A request comes at least ``cooldown`` after the last training, unless the champion does harm.
- There are at most ``budget`` trainings in any 30 days.
- After ``breaker`` requests in a row without a promotion, monitoring requests no more.
- An ``unknown`` verdict never requests a training.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from perennial.core.intervals import Interval
from perennial.monitoring.usual import JudgedWindow
from perennial.spec.monitoring import RetrainingPolicy

Cause = Literal["drift", "performance", "none"]

#: The span that ``budget`` is counted over.
BUDGET_SPAN = timedelta(days=30)


class WindowVerdict(Protocol):
    """The attributes of a drift verdict that this module reads."""

    @property
    def interval(self) -> Interval: ...
    @property
    def version(self) -> int | None: ...
    @property
    def verdict(self) -> str: ...


class PastDecision(Protocol):
    """The attributes of an earlier decision that this module reads."""

    @property
    def window_end(self) -> datetime: ...
    @property
    def asked(self) -> bool: ...
    @property
    def cause(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class PastTraining:
    """A training that led to a version. Monitoring, the calendar or a person may have started it.

    Attributes:
        as_of: the time up to which it could learn.
        promoted: whether its version ever became champion.
    """

    as_of: datetime
    promoted: bool = False


@dataclass(frozen=True)
class RetrainingDecision:
    """The decision whether to request a new version.

    Attributes:
        ask: whether to start a training.
        cause: the cause of the alarm, also if a rule then prevented the request; ``none`` without an alarm.
        reason: the decision in words and numbers, for the ledger, the training run and the board.
        breaker: whether the request was prevented because earlier ones led to no promotion. Then a person has to act.
    """

    ask: bool
    cause: Cause
    reason: str
    breaker: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RetrainingDecision:
        return cls(**value)


@dataclass(frozen=True)
class _Alarm:
    raised: bool
    text: str
    urgent: bool = False


def decide_retraining(
    policy: RetrainingPolicy,
    *,
    window_end: datetime,
    verdicts: Sequence[WindowVerdict],
    windows: Sequence[JudgedWindow] = (),
    decisions: Sequence[PastDecision] = (),
    trainings: Sequence[PastTraining] = (),
    recipe: Collection[int] = (),
    open_run: bool = False,
) -> RetrainingDecision:
    """Decide for the monitoring window that ends at ``window_end``.

    The rules, in this order:

    1. A window that was decided before keeps its decision.
    2. Drift raises an alarm when at least ``alarms`` of the last ``of`` windows, by the clock, have the verdict ``drift``, and
       the newest window is one of them. Only verdicts on the version of the newest window, and on versions of the same recipe,
       count. ``unknown`` and missing windows take a place among the ``of`` windows but do not count as drift.
    3. Performance raises an alarm by the same counts over the newest measured windows: when they are worse than usual. Windows
       that end before the last requested retraining do not count, because labels come late and the same drop would cause a
       second request. Windows whose rows are withheld do not count, because a training could not learn from them.
    4. If the newest measured window is surely worse than the same answer for every row, performance raises an alarm at once:
       one window is enough, and the cooldown does not hold it back. Everything else does.
    5. An alarm leads to no request if a training is under way, or if the breaker, the cooldown or the budget prevents it.

    Args:
        policy: ``retraining`` of the spec.
        window_end: the end of the window that was just judged.
        verdicts: drift verdicts, in any order; those that end after ``window_end`` are left out.
        windows: the last ``of`` measured windows of the champion's recipe, from
            :func:`perennial.monitoring.usual.judge_windows`.
        decisions: all earlier decisions.
        trainings: all trainings of the model, whatever started them.
        recipe: all versions of the champion's recipe.
        open_run: whether a training of the model is under way.
    """
    window_end = window_end.astimezone(UTC)
    for earlier in decisions:
        if earlier.window_end == window_end:
            return RetrainingDecision(earlier.asked, _cause(earlier.cause), earlier.reason)

    asked = sorted(past.window_end for past in decisions if past.asked)
    drift = _drift_alarm(policy, window_end, verdicts, recipe)
    performance = _performance_alarm(
        policy, [one for one in windows if not one.withheld and (not asked or one.interval.end > asked[-1])]
    )
    if not (drift.raised or performance.raised):
        return RetrainingDecision(False, "none", f"No retraining: {drift.text}; {performance.text}.")
    cause: Cause = "drift" if drift.raised else "performance"
    alarm = "; ".join(alarm.text for alarm in (drift, performance) if alarm.raised)

    if open_run:
        return RetrainingDecision(False, cause, f"No retraining, although {alarm}: a training is already under way.")
    if tripped := _breaker(policy, asked, trainings):
        return RetrainingDecision(False, cause, f"No retraining, although {alarm}: {tripped}.", breaker=True)
    if held := _hold_back(policy, window_end, asked, trainings, urgent=performance.urgent):
        return RetrainingDecision(False, cause, f"No retraining, although {alarm}: {held}.")
    return RetrainingDecision(True, cause, f"Retraining: {alarm}.")


def retraining_run_id(model: str, window_end: datetime) -> str:
    """The id of the training run for one window of one model. A second trigger with this id starts no second run."""
    return f"retrain__{model}__{window_end.astimezone(UTC):%Y-%m-%dT%H%M%SZ}"


def _cause(text: str) -> Cause:
    return "drift" if text == "drift" else "performance" if text == "performance" else "none"


def _breaker(policy: RetrainingPolicy, asked: Sequence[datetime], trainings: Sequence[PastTraining]) -> str | None:
    """The reason if the breaker prevents a request; None if it does not."""
    promoted = max((training.as_of for training in trainings if training.promoted), default=None)
    vain = [end for end in asked if promoted is None or end > promoted]
    if len(vain) < policy.breaker:
        return None
    since = f"since {_day(promoted)}" if promoted is not None else "so far"
    return (
        f"the last {len(vain)} requested retrainings, from {_day(vain[0])} to {_day(vain[-1])}, led to no promotion, and there "
        f"was none {since}; after {policy.breaker} of them monitoring requests no more until a version is promoted. Find out "
        "why the gates refuse the versions"
    )


def _hold_back(
    policy: RetrainingPolicy,
    window_end: datetime,
    asked: list[datetime],
    trainings: Sequence[PastTraining],
    *,
    urgent: bool,
) -> str | None:
    # A request may lead to no version, and a version may come from no request. A training that was requested has the time of
    # its request, so the set counts both once.
    begun = sorted({*asked, *(training.as_of for training in trainings)})
    # If a window is judged late, after a newer request or training, the difference is negative and the cooldown applies. So
    # requests only go forward in time, and the budget holds for any 30 days. An urgent request must go forward, too.
    what = "requested retraining" if begun and begun[-1] in asked else "training"
    if begun and urgent and window_end <= begun[-1]:
        return f"the last {what} was as of {_day(begun[-1])}, no earlier than this window"
    if begun and not urgent and window_end - begun[-1] < policy.cooldown:
        return f"the last {what} was as of {_day(begun[-1])}, and the cooldown is {_span(policy.cooldown)}"
    recent = [moment for moment in begun if window_end - moment < BUDGET_SPAN]
    if len(recent) >= policy.budget:
        return (
            f"the budget of {policy.budget} trainings in {BUDGET_SPAN.days} days is used up"
            if recent
            else f"the budget is {policy.budget}, so monitoring may not request a training"
        )
    return None


def _drift_alarm(
    policy: RetrainingPolicy, window_end: datetime, verdicts: Sequence[WindowVerdict], recipe: Collection[int]
) -> _Alarm:
    if not policy.on_drift:
        return _Alarm(False, "drift never requests a training (retraining.on_drift is false)")
    newest = [verdict for verdict in verdicts if verdict.interval.end == window_end]
    if not newest:
        return _Alarm(False, f"no drift verdict for the window that ends on {_day(window_end)}")
    # If a day and a week end at the same time, the longer one is the monitoring window.
    window = max((verdict.interval for verdict in newest), key=lambda interval: interval.length)
    version = next(verdict.version for verdict in newest if verdict.interval.length == window.length)
    recent = recent_verdicts(policy, window, version, verdicts, recipe)
    drifted = sum(verdict == "drift" for verdict in recent.values())
    text = (
        f"{drifted} of the last {policy.of} windows drifted from the training data of version {version}"
        f"{' or another version of its recipe' if version in recipe and len(recipe) > 1 else ''} ({_needed(policy)}), "
        f"the verdict on the newest is {recent[window_end]}"
    )
    return _Alarm(recent[window_end] == "drift" and drifted >= policy.alarms, text)


def _needed(policy: RetrainingPolicy) -> str:
    return f"{policy.alarms} {'is' if policy.alarms == 1 else 'are'} needed for an alarm"


def recent_verdicts(
    policy: RetrainingPolicy,
    window: Interval,
    version: int | None,
    verdicts: Iterable[WindowVerdict],
    recipe: Collection[int] = (),
) -> dict[datetime, str]:
    """The verdicts on the last ``of`` windows by the clock, including ``window`` itself, by the end of the window.

    Args:
        policy: ``retraining`` of the spec.
        window: the newest window. Only windows of the same length count.
        version: only verdicts on this version, and on others of its recipe, count. A refresh each week would otherwise hide
            drift that lasts in spite of it.
        verdicts: in any order.
        recipe: all versions of one recipe. If ``version`` is none of them, only its own verdicts count.
    """
    counted = {version, *recipe} if version in recipe else {version}
    return {
        verdict.interval.end: verdict.verdict
        for verdict in verdicts
        if verdict.interval.length == window.length
        and verdict.version in counted
        and window.end - policy.of * window.length < verdict.interval.end <= window.end
    }


def _performance_alarm(policy: RetrainingPolicy, windows: Sequence[JudgedWindow]) -> _Alarm:
    if policy.on_performance == "never":
        return _Alarm(False, "performance never requests a training (retraining.on_performance is never)")
    if not windows:
        return _Alarm(False, "since the last training or request, no window was measured whose rows are not withheld")
    newest = windows[-1]
    if newest.useless:
        return _Alarm(True, f"the champion does harm: {newest.useless}", urgent=True)
    if not math.isfinite(newest.value):
        return _Alarm(False, f"{newest.metric} of {newest.interval.key} could not be measured")
    if newest.bound is None:
        return _Alarm(False, f"it is not known which {newest.metric} is usual for version {newest.version}")
    fallen = sum(window.fallen for window in windows)
    text = (
        f"{newest.metric} was worse than usual in {fallen} of the last {policy.of} measured windows ({_needed(policy)}); "
        f"in the newest, {newest.interval.key}, it is {newest.value:.4g}, and the bound is "
        f"{newest.bound.value:.4g}, {newest.bound.source}"
    )
    return _Alarm(newest.fallen and fallen >= policy.alarms, text)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if (moment.hour, moment.minute, moment.second) == (0, 0, 0) else f"{moment:%Y-%m-%d %H:%M} UTC"


def _span(duration: timedelta) -> str:
    days = duration / timedelta(days=1)
    return f"{days:g} days" if days != 1 else "1 day"
