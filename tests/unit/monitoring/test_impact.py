"""When drift is a warning, when it is critical, and when it is nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from perennial.core.intervals import Interval
from perennial.monitoring.impact import weigh
from perennial.monitoring.usual import Bound, JudgedWindow
from perennial.spec.monitoring import RetrainingPolicy

WINDOW = Interval.of("2013-05-06", "2013-05-13")
POLICY = RetrainingPolicy(alarms=2, of=3)
BOUND = Bound("roc_auc", 0.7, True, "the worse end of its interval")


@dataclass(frozen=True)
class Judged:
    interval: Interval
    verdict: str
    version: int | None = 3


def before(weeks: int) -> Interval:
    return Interval(WINDOW.start - timedelta(weeks=weeks), WINDOW.end - timedelta(weeks=weeks))


def measured(*values: float) -> list[JudgedWindow]:
    """Windows that follow each other up to the one before :data:`WINDOW`."""
    weeks = range(len(values), 0, -1)
    return [JudgedWindow(before(week), 3, "roc_auc", auc, BOUND) for week, auc in zip(weeks, values, strict=True)]


def test_drift_alone_is_a_warning() -> None:
    found = weigh(POLICY, "drift", WINDOW, estimated=0.75, windows=measured(0.74), version=3, bound=BOUND)
    assert (found.severity, found.persistent, found.fallen) == ("warning", False, ())


def test_drift_that_lasts_is_critical() -> None:
    found = weigh(POLICY, "drift", WINDOW, version=3, verdicts=[Judged(before(2), "drift"), Judged(before(1), "ok")])
    assert (found.severity, found.persistent) == ("critical", True)
    assert found.reasons == ("2 of the last 3 windows drifted (2 make it persistent)",)


def test_drift_long_ago_or_of_other_windows_does_not_last() -> None:
    day = Interval.day("2013-05-05")
    earlier = [Judged(before(3), "drift"), Judged(day, "drift"), Judged(WINDOW, "drift")]
    assert weigh(POLICY, "drift", WINDOW, version=3, verdicts=earlier).severity == "warning"


def test_drift_from_what_the_version_before_had_learned_does_not_last() -> None:
    earlier = [Judged(before(1), "drift", version=2), Judged(before(2), "drift", version=2)]
    assert weigh(POLICY, "drift", WINDOW, version=3, verdicts=earlier).severity == "warning"


def test_drift_that_lasts_through_refreshes_is_critical() -> None:
    earlier = [Judged(before(1), "drift", version=2)]
    assert weigh(POLICY, "drift", WINDOW, version=3, verdicts=earlier, recipe={2, 3}).persistent


def test_drift_with_falling_estimated_performance_is_critical() -> None:
    found = weigh(POLICY, "drift", WINDOW, estimated=0.69, bound=BOUND)
    assert (found.severity, found.fallen) == ("critical", ("estimated",))
    assert found.reasons[-1] == "estimated roc_auc is 0.69, worse than 0.7, the worse end of its interval"


def test_drift_with_falling_realised_performance_is_critical() -> None:
    found = weigh(POLICY, "drift", WINDOW, windows=measured(0.8, 0.6), version=3, bound=BOUND)
    assert (found.severity, found.fallen) == ("critical", ("realised",))


def test_what_was_worse_and_is_no_more_has_not_fallen() -> None:
    found = weigh(POLICY, "drift", WINDOW, windows=measured(0.6, 0.8), version=3, bound=BOUND)
    assert (found.severity, found.fallen) == ("warning", ())


def test_less_of_a_loss_is_better() -> None:
    bound = Bound("log_loss", 0.5, False, "its holdout")
    assert weigh(POLICY, "drift", WINDOW, estimated=0.4, bound=bound).fallen == ()
    assert weigh(POLICY, "drift", WINDOW, estimated=0.6, bound=bound).fallen == ("estimated",)


def test_realised_performance_that_falls_without_drift_is_told_and_becomes_critical_when_it_lasts() -> None:
    once = weigh(POLICY, "ok", WINDOW, windows=measured(0.8, 0.6), version=3, bound=BOUND)
    twice = weigh(POLICY, "ok", WINDOW, windows=measured(0.6, 0.6), version=3, bound=BOUND)
    assert (once.severity, twice.severity) == ("warning", "critical")


def test_an_estimate_alone_does_not_alarm_where_nothing_drifted() -> None:
    assert weigh(POLICY, "ok", WINDOW, estimated=0.1, bound=BOUND).severity == "none"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_not_known_has_not_fallen(value: float | None) -> None:
    assert weigh(POLICY, "drift", WINDOW, estimated=value, bound=BOUND).fallen == ()


def test_what_is_unknown_is_a_warning_and_never_persistent() -> None:
    found = weigh(POLICY, "unknown", WINDOW, version=3, verdicts=[Judged(before(1), "drift"), Judged(before(2), "drift")])
    assert (found.severity, found.persistent) == ("warning", False)


@pytest.mark.parametrize("verdict", ["ok", "drift", "unknown"])
def test_a_version_that_is_worse_than_the_same_answer_for_every_row_is_critical(verdict: str) -> None:
    (window,) = measured(0.75)
    found = weigh(POLICY, verdict, WINDOW, windows=[replace(window, useless="worse than the share")], version=3)
    assert (found.severity, found.fallen) == ("critical", ("constant",))
    assert found.reasons[0] == "worse than the share"
