"""Verdicts, realised performance, history and budget → retrain or not, and why.

Pure: it reads and writes nothing. :mod:`perennial.drift.compare` and :mod:`perennial.monitoring.performance` make what it
judges, the ledger keeps it, and the monitoring DAG carries out what is decided.

The loop cannot run away, whatever it is fed: a window has one answer for ever, an ask lies at least ``cooldown`` after any
training, none is made where 30 days have seen ``budget`` trainings or ``breaker`` asks in a row led to no promotion, and
what is unknown never asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from perennial.core.intervals import Interval
from perennial.spec.monitoring import Retraining
from perennial.spec.training import METRICS
from perennial.spec.types import Task

Cause = Literal["drift", "performance", "none"]

#: The span that ``budget`` speaks of.
BUDGET_SPAN = timedelta(days=30)


class WindowVerdict(Protocol):
    """What is read of the ledger's drift verdicts."""

    @property
    def interval(self) -> Interval: ...
    @property
    def version(self) -> int | None: ...
    @property
    def verdict(self) -> str: ...


class WindowPerformance(Protocol):
    """What is read of the ledger's performance records."""

    @property
    def interval(self) -> Interval: ...
    @property
    def version(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


class PastDecision(Protocol):
    """What is read of the ledger's earlier decisions."""

    @property
    def window_end(self) -> datetime: ...
    @property
    def asked(self) -> bool: ...
    @property
    def cause(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Training:
    """A training that led to a version, whoever began it: monitoring, the calendar or a person.

    Attributes:
        as_of: the end of what it could know.
        promoted: whether its version ever became champion.
    """

    as_of: datetime
    promoted: bool = False


@dataclass(frozen=True)
class RetrainingDecision:
    """Whether a new version is asked for.

    Attributes:
        ask: whether to start a training.
        cause: what alarmed; also when a rule then held the ask back. ``none`` if nothing did.
        reason: the decision in words and numbers, for the ledger, the training run and the board.
        breaker: whether the ask was held back because the ones before led to no promotion: a person has to look.
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


def decide_retraining(
    policy: Retraining,
    *,
    window_end: datetime,
    verdicts: Sequence[WindowVerdict],
    performances: Sequence[WindowPerformance] = (),
    champion: int | None = None,
    holdout_metrics: Mapping[int, float] | None = None,
    metric: str = "",
    task: Task = "binary_classification",
    decisions: Sequence[PastDecision] = (),
    trainings: Sequence[Training] = (),
    open_run: bool = False,
) -> RetrainingDecision:
    """Decide for the monitoring window that ends at ``window_end``.

    The rules, the first that holds back deciding:

    1. A window already decided keeps its answer.
    2. Drift alarms when at least ``alarms`` of the last ``of`` windows, by the clock, were judged ``drift``, the newest
       among them, all against the version that the newest is of: what the one before it drifted from is no fault of the
       new one. ``unknown`` and missing windows take up their place and never alarm.
    3. Performance alarms by the same counts over the champion's newest measured windows, where a window counts when the
       primary metric fell by at least ``on_performance`` below the version's own holdout. Windows that ended before the
       last retraining asked for do not count: they have had their answer, and labels come late enough to be seen twice.
    4. A training under way, the breaker, the cooldown, and the budget each hold an alarm back.

    Args:
        policy: ``retraining`` of the spec.
        window_end: the end of the window just judged.
        verdicts: drift verdicts, in any order; those that end after ``window_end`` are left out.
        performances: realised performance, in any order.
        champion: the version that serves; the performance of others is not its own.
        holdout_metrics: the primary metric of each version on its own holdout.
        metric: the primary metric.
        task: the model's task, which says whether more of the metric is better.
        decisions: earlier ones, whatever they were.
        trainings: all of the model, whoever began them.
        open_run: whether a training of the model is under way.
    """
    window_end = window_end.astimezone(UTC)
    for earlier in decisions:
        if earlier.window_end == window_end:
            return RetrainingDecision(earlier.asked, _cause(earlier.cause), earlier.reason)

    asked = sorted(past.window_end for past in decisions if past.asked)
    drift = _drift_alarm(policy, window_end, verdicts)
    performance = _performance_alarm(
        policy,
        window_end,
        [record for record in performances if not asked or record.interval.end > asked[-1]],
        champion,
        holdout_metrics or {},
        metric,
        higher_is_better=METRICS[task].get(metric, True),
    )
    if not (drift.raised or performance.raised):
        return RetrainingDecision(False, "none", f"No retraining: {drift.text}; {performance.text}.")
    cause: Cause = "drift" if drift.raised else "performance"
    alarm = "; ".join(alarm.text for alarm in (drift, performance) if alarm.raised)

    if open_run:
        return RetrainingDecision(False, cause, f"No retraining, although {alarm}: a training is already under way.")
    if tripped := _breaker(policy, asked, trainings):
        return RetrainingDecision(False, cause, f"No retraining, although {alarm}: {tripped}.", breaker=True)
    if held := _hold_back(policy, window_end, asked, trainings):
        return RetrainingDecision(False, cause, f"No retraining, although {alarm}: {held}.")
    return RetrainingDecision(True, cause, f"Retraining: {alarm}.")


def retraining_run_id(model: str, window_end: datetime) -> str:
    """The training run's id for one window of one model: triggered twice, it is the same run."""
    return f"retrain__{model}__{window_end.astimezone(UTC):%Y-%m-%dT%H%M%SZ}"


def _cause(text: str) -> Cause:
    return "drift" if text == "drift" else "performance" if text == "performance" else "none"


def _breaker(policy: Retraining, asked: Sequence[datetime], trainings: Sequence[Training]) -> str | None:
    """Why asking again would be no use, if it would not."""
    promoted = max((training.as_of for training in trainings if training.promoted), default=None)
    vain = [end for end in asked if promoted is None or end > promoted]
    if len(vain) < policy.breaker:
        return None
    since = f"since {_day(promoted)}" if promoted is not None else "so far"
    return (
        f"the last {len(vain)} retrainings asked for, from {_day(vain[0])} to {_day(vain[-1])}, led to no promotion, and "
        f"{since} none was made; after {policy.breaker} of them monitoring asks no more until a version is promoted: look at "
        "why the gates refuse"
    )


def _hold_back(policy: Retraining, window_end: datetime, asked: list[datetime], trainings: Sequence[Training]) -> str | None:
    # An ask may have led to no version, and a version may come from no ask; one that came from an ask has its time.
    begun = sorted({*asked, *(training.as_of for training in trainings)})
    # A window judged late, after a newer one has asked or been trained on, lies before that and so within its cooldown:
    # asks go forward in time only, which is what makes the budget hold for any 30 days.
    if begun and window_end - begun[-1] < policy.cooldown:
        what = "retraining asked for" if begun[-1] in asked else "training"
        return f"the last {what} was as of {_day(begun[-1])}, and the cooldown is {_span(policy.cooldown)}"
    recent = [moment for moment in begun if window_end - moment < BUDGET_SPAN]
    if len(recent) >= policy.budget:
        return (
            f"the budget of {policy.budget} trainings in {BUDGET_SPAN.days} days is used up"
            if recent
            else f"the budget is {policy.budget}, so monitoring may not ask"
        )
    return None


def _drift_alarm(policy: Retraining, window_end: datetime, verdicts: Sequence[WindowVerdict]) -> _Alarm:
    if not policy.on_drift:
        return _Alarm(False, "drift is not asked about (retraining.on_drift)")
    newest = [verdict for verdict in verdicts if verdict.interval.end == window_end]
    if not newest:
        return _Alarm(False, f"no drift verdict for the window that ends {_day(window_end)}")
    # Of a day and a week that end together, the longer one is the monitoring window.
    window = max((verdict.interval for verdict in newest), key=lambda interval: interval.length)
    version = next(verdict.version for verdict in newest if verdict.interval.length == window.length)
    recent = recent_verdicts(policy, window, version, verdicts)
    drifted = sum(verdict == "drift" for verdict in recent.values())
    text = (
        f"{drifted} of the last {policy.of} windows drifted from what version {version} learned ({policy.alarms} are asked "
        f"for), the newest is {recent[window_end]}"
    )
    return _Alarm(recent[window_end] == "drift" and drifted >= policy.alarms, text)


def recent_verdicts(
    policy: Retraining, window: Interval, version: int | None, verdicts: Iterable[WindowVerdict]
) -> dict[datetime, str]:
    """Verdicts by the end of their window: of the last ``of`` windows as long as ``window``, by the clock, that one included.

    Args:
        policy: ``retraining`` of the spec.
        window: the newest of them.
        version: whose training they were compared with; verdicts on others do not count.
        verdicts: in any order.
    """
    return {
        verdict.interval.end: verdict.verdict
        for verdict in verdicts
        if verdict.interval.length == window.length
        and verdict.version == version
        and window.end - policy.of * window.length < verdict.interval.end <= window.end
    }


def _performance_alarm(
    policy: Retraining,
    window_end: datetime,
    performances: Sequence[WindowPerformance],
    champion: int | None,
    holdout_metrics: Mapping[int, float],
    metric: str,
    *,
    higher_is_better: bool,
) -> _Alarm:
    if policy.on_performance is None:
        return _Alarm(False, "performance is not asked about (retraining.on_performance)")
    holdout = holdout_metrics.get(champion, math.nan) if champion is not None else math.nan
    if not math.isfinite(holdout):
        return _Alarm(False, f"the champion's {metric} on its holdout is not known, so no drop can be told")
    measured = [record for record in performances if record.version == champion and record.interval.end <= window_end]
    if not measured:
        return _Alarm(False, "no window of the champion has been measured since it was promoted or last asked about")
    newest = max(measured, key=lambda record: record.interval.end).interval
    drops = {
        record.interval.end: (holdout - record.metrics.get(metric, math.nan)) * (1 if higher_is_better else -1)
        for record in measured
        if newest.end - policy.of * newest.length < record.interval.end
    }
    # A drop that is NaN compares false: what could not be measured never asks.
    fallen = sum(drop >= policy.on_performance for drop in drops.values())
    text = (
        f"{metric} was worse than on the champion's holdout ({holdout:.4g}) by at least {policy.on_performance:g} in {fallen} "
        f"of the last {policy.of} measured windows ({policy.alarms} are asked for), in the newest by {drops[newest.end]:.4g}"
    )
    return _Alarm(drops[newest.end] >= policy.on_performance and fallen >= policy.alarms, text)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if (moment.hour, moment.minute, moment.second) == (0, 0, 0) else f"{moment:%Y-%m-%d %H:%M} UTC"


def _span(duration: timedelta) -> str:
    days = duration / timedelta(days=1)
    return f"{days:g} days" if days != 1 else "1 day"
