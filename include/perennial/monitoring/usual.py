"""What a model usually reaches once labels are known, and which windows are worse than that. The functions are pure.

Every window differs from the others by chance, and the more so the fewer rows it has. So a window is compared with a bound
that depends on this noise: a stable model is worse than the bound in about one window of a year.

Neighbours: :mod:`perennial.monitoring.performance` measures the windows and reads them for this module.
:mod:`perennial.monitoring.retraining` and :mod:`perennial.monitoring.impact` decide on the result.

References:
    Hahn, Meeker: Statistical Intervals. Wiley 1991, section 4.7. The prediction interval of one further observation.
    Tukey: Exploratory Data Analysis. Addison-Wesley 1977, section 2D. Values far out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from scipy.special import ndtri, stdtrit

from perennial.core.intervals import Interval
from perennial.evidence.monitoring import Constant
from perennial.spec.monitoring import RetrainingPolicy

#: From this number of earlier windows, their own spread is the noise. With fewer, it is derived from the holdout.
FEWEST_WINDOWS = 8
#: At most this many earlier windows are used, the newest ones.
MOST_WINDOWS = 52
#: Windows of a year in which a stable model is worse than the bound by chance.
FALSE_ALARMS = 1.0
_YEAR = timedelta(days=365)
#: Windows that are pooled to find out whether they are worse than the same answer for every row, and the fewest of them.
_POOLED, _FEWEST_POOLED = 7, 5
_SURE = 0.95
#: A value that is this many interquartile ranges away from the quartiles is far out.
_FAR_OUT = 3.0


class MeasuredWindow(Protocol):
    """The attributes of a performance record that this package reads."""

    @property
    def interval(self) -> Interval: ...
    @property
    def version(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def rows(self) -> int: ...


class WindowPerformance(MeasuredWindow, Protocol):
    """The attributes of a performance record that this module reads."""

    @property
    def constant(self) -> Constant: ...


@dataclass(frozen=True)
class Holdout:
    """The primary metric of a version on its own holdout.

    Attributes:
        value: the metric; NaN if it is not known.
        ends: low and high end of its confidence interval; None if there is none.
        confidence: the confidence of ``ends``, 0 to 1.
        rows: number of labelled rows.
        length: length of the holdout.
    """

    value: float
    ends: tuple[float, float] | None = None
    confidence: float = 0.95
    rows: int = 0
    length: timedelta = timedelta()


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


@dataclass(frozen=True)
class JudgedWindow:
    """A measured window, and what it is compared with.

    Attributes:
        version: the version that made most of its predictions.
        metric: the primary metric.
        value: its value; NaN if it could not be measured.
        bound: a worse value is worse than usual; None if it is not known what is usual.
        withheld: whether some of its rows are held back, because their labels or features are doubted. A training could not
            learn from them, so they ask for none.
        useless: in words and numbers, why the window is surely worse than the same answer for every row; empty if it is not.
    """

    interval: Interval
    version: int
    metric: str
    value: float
    bound: Bound | None
    useless: str = ""
    withheld: bool = False

    @property
    def fallen(self) -> bool:
        """Whether the window is worse than usual."""
        return self.bound is not None and self.bound.is_broken_by(self.value)


@dataclass(frozen=True)
class Usual:
    """The primary metric of earlier windows of the same recipe.

    Attributes:
        windows: how many there are.
        mean, deviation: mean and standard deviation of their values.
        rows: the median number of their rows.
    """

    windows: int
    mean: float
    deviation: float
    rows: float


def usual_of(earlier: Sequence[WindowPerformance], metric: str) -> Usual | None:
    """What earlier windows reached; None if they are fewer than :data:`FEWEST_WINDOWS`, or all equal.

    Values far out are left out, or one week of wrong labels would make every later drop look usual.

    Args:
        earlier: windows of one length and one recipe, oldest first. The newest :data:`MOST_WINDOWS` are used.
        metric: the primary metric. Windows without a finite value do not count.
    """
    known = [(window.metrics.get(metric, math.nan), window.rows) for window in earlier]
    known = [(value, rows) for value, rows in known if math.isfinite(value)][-MOST_WINDOWS:]
    if len(known) < FEWEST_WINDOWS:
        return None
    low, _, high = statistics.quantiles((value for value, _ in known), n=4, method="inclusive")
    reach = _FAR_OUT * (high - low)
    kept = [(value, rows) for value, rows in known if low - reach <= value <= high + reach]
    deviation = statistics.stdev(value for value, _ in kept) if len(kept) >= FEWEST_WINDOWS else 0.0
    if deviation <= 0:
        return None
    mean = statistics.fmean(value for value, _ in kept)
    return Usual(len(kept), mean, deviation, statistics.median(rows for _, rows in kept))


def bound_of(
    policy: RetrainingPolicy,
    metric: str,
    *,
    greater_is_better: bool,
    usual: Usual | None,
    holdout: Holdout | None,
    rows: int,
    length: timedelta,
) -> Bound | None:
    """The bound of a window: a worse value counts as a drop.

    It is the first of these that exists:

    - If ``on_performance`` is a number: the version's value on its holdout, made worse by this number.
    - The prediction limit of one further window after the earlier ones, by Student's t. The limit is wider by the root of the
      share of rows that the window lacks.
    - The version's value on its holdout, made worse by the half width of its confidence interval there. The half width is
      scaled to the window: by the root of the share of the holdout's rows, or of its length, whichever is smaller. Both count,
      because the value on the holdout is noisy itself.

    Args:
        policy: ``retraining`` of the spec.
        metric: the primary metric.
        greater_is_better: whether a greater value of the metric is better.
        usual: what earlier windows reached; None if that is not known.
        holdout: the version's holdout; None if that is not known.
        rows: number of labelled rows of the window.
        length: length of the window.

    Returns:
        The bound; None if none of these exists.
    """
    sign = 1 if greater_is_better else -1

    def bound(value: float, source: str) -> Bound | None:
        return Bound(metric, value, greater_is_better, source) if math.isfinite(value) else None

    if not isinstance(policy.on_performance, str):
        if holdout is None:
            return None
        margin = policy.on_performance
        return bound(holdout.value - sign * margin, f"for {holdout.value:.4g} on its holdout and margin {margin:g}")
    tail = FALSE_ALARMS * (length / _YEAR)
    chance = (
        f"which chance alone breaks in about {'one window' if FALSE_ALARMS == 1 else f'{FALSE_ALARMS:g} windows'} of a year"
    )
    if usual is not None:
        lacking = math.sqrt(max(1.0, usual.rows / max(1, rows)))
        slack = stdtrit(usual.windows - 1, 1 - tail) * usual.deviation * math.sqrt(1 + 1 / usual.windows) * lacking
        reached = f"{usual.windows} earlier windows reached {usual.mean:.4g} ± {usual.deviation:.2g}"
        return bound(usual.mean - sign * slack, f"{chance}: {reached} (mean and standard deviation)")
    if holdout is None or holdout.ends is None or not holdout.rows or not holdout.length or not rows:
        return None
    low, high = holdout.ends
    half = holdout.value - low if greater_is_better else high - holdout.value
    if not (math.isfinite(half) and half > 0):
        return None
    share = min(rows / holdout.rows, length / holdout.length)
    slack = half * ndtri(1 - tail) / ndtri((1 + holdout.confidence) / 2) * math.sqrt(1 + 1 / share)
    reached = f"its holdout gave {holdout.value:.4g} (between {low:.4g} and {high:.4g}), and the window is {share:.2g} of it"
    return bound(holdout.value - sign * slack, f"{chance}: {reached}")


def judge_windows(
    policy: RetrainingPolicy,
    metric: str,
    *,
    greater_is_better: bool,
    performances: Iterable[WindowPerformance],
    recipe: Collection[int],
    holdouts: Mapping[int, Holdout],
    until: datetime,
    since: datetime | None = None,
    withheld: Collection[Interval] = (),
) -> list[JudgedWindow]:
    """The last ``of`` measured windows of a recipe, each with its bound.

    The windows of all versions of the recipe count, since each refresh serves only for a while. Each window was measured with
    predictions of a version that had not learned from it. If two versions predicted in a window, that with more rows stands for
    it. What is usual comes from the windows before the last ``of``, also those before ``since``.

    Args:
        policy: ``retraining`` of the spec.
        metric: the primary metric.
        greater_is_better: whether a greater value of the metric is better.
        performances: realised performance of any version, in any order.
        recipe: the versions whose windows count.
        holdouts: the primary metric of each version on its own holdout.
        until: later windows are left out.
        since: windows that end no later are not judged; None: all may be.
        withheld: the intervals whose rows are held back. Their windows do not tell what is usual.

    Returns:
        The judged windows, oldest first. They are the last ones by the clock, counted from the newest that was measured.
    """

    def doubted(window: WindowPerformance) -> bool:
        return any(window.interval.overlaps(interval) for interval in withheld)

    windows = _one_each(performances, recipe, until)
    if not windows:
        return []
    newest = windows[-1].interval
    windows = [window for window in windows if window.interval.length == newest.length]
    first = newest.end - policy.of * newest.length
    usual = usual_of([one for one in windows if one.interval.end <= first and not doubted(one)], metric)

    recent = [window for window in windows if since is None or window.interval.end > since]
    sign = 1 if greater_is_better else -1
    return [
        JudgedWindow(
            window.interval,
            window.version,
            metric,
            window.metrics.get(metric, math.nan),
            bound_of(
                policy,
                metric,
                greater_is_better=greater_is_better,
                usual=usual,
                holdout=holdouts.get(window.version),
                rows=window.rows,
                length=newest.length,
            ),
            useless_because([one for one in recent if one.interval.end <= window.interval.end], metric, sign),
            doubted(window),
        )
        for window in recent
        if window.interval.end > first
    ]


def useless_because(windows: Sequence[WindowPerformance], metric: str, sign: int) -> str:
    """Why the newest window is surely worse than the same answer for every row; empty if it is not, or not surely.

    It is sure if the whole confidence interval of the difference lies below zero, by resampling blocks of the window's rows.
    If the window has too few blocks for that, as a day has, it is sure by Student's t over the differences of the last
    :data:`_POOLED` windows, of which :data:`_FEWEST_POOLED` must be measured.

    Args:
        windows: measured windows of one length, oldest first.
        metric: the primary metric.
        sign: 1 if a greater value of the metric is better, else -1.
    """

    def gain(window: WindowPerformance) -> float:
        return sign * (window.metrics.get(metric, math.nan) - window.constant.metrics.get(metric, math.nan))

    if not windows or not -math.inf < gain(newest := windows[-1]) < 0:
        return ""
    value, other = newest.metrics[metric], newest.constant.metrics[metric]
    text = (
        f"{metric} of {newest.interval.key} is {value:.4g}, worse than the {other:.4g} that the same answer "
        f"for every row would have reached, as the training rows of version {newest.version} told it"
    )
    compared = newest.constant.comparison
    if compared is not None and compared.high is not None and compared.low is not None:
        sure = f"with {compared.confidence:.0%} confidence it is worse by {-compared.high:.2g} to {-compared.low:.2g}"
        return f"{text}; {sure}" if compared.high < 0 else ""
    first = newest.interval.end - _POOLED * newest.interval.length
    gains = [one for window in windows if window.interval.end > first and math.isfinite(one := gain(window))]
    if len(gains) < _FEWEST_POOLED:
        return ""
    mean, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    worst = mean + stdtrit(len(gains) - 1, (1 + _SURE) / 2) * error
    sure = f"over {len(gains)} windows it is worse by {-mean:.2g}, with {_SURE:.0%} confidence by at least {-worst:.2g}"
    return f"{text}; {sure}" if worst < 0 else ""


def _one_each(performances: Iterable[WindowPerformance], recipe: Collection[int], until: datetime) -> list[WindowPerformance]:
    """One record per window, that with the most rows, oldest first."""
    found: dict[Interval, WindowPerformance] = {}
    for record in performances:
        if record.version in recipe and record.interval.end <= until:
            before = found.get(record.interval)
            if before is None or (record.rows, record.version) > (before.rows, before.version):
                found[record.interval] = record
    return [found[interval] for interval in sorted(found, key=lambda interval: (interval.end, interval.length))]
