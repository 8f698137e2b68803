"""What is worse than usual: seldom by chance, soon when performance falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from perennial.core.intervals import Interval
from perennial.evidence.evaluation import GainOverChampion
from perennial.evidence.monitoring import Constant
from perennial.monitoring.usual import FEWEST_WINDOWS, Bound, Holdout, JudgedWindow, bound_of, judge_windows, usual_of
from perennial.spec.monitoring import RetrainingPolicy

DAY, WEEK = timedelta(days=1), timedelta(days=7)
START = datetime(2013, 1, 7, tzinfo=UTC)
POLICY = RetrainingPolicy()
HOLDOUT = Holdout(0.76, (0.74, 0.78), 0.95, 4_000, 28 * DAY)


@dataclass(frozen=True)
class Measured:
    interval: Interval
    version: int
    metrics: dict[str, float]
    rows: int = 1_000
    constant: Constant = field(default_factory=Constant)


def measured(values: Sequence[float], *, length: timedelta = WEEK, version: int = 1, rows: int = 1_000) -> list[Measured]:
    """Windows that follow each other, oldest first."""
    return [
        Measured(Interval(START + n * length, START + (n + 1) * length), version, {"roc_auc": float(value)}, rows)
        for n, value in enumerate(values)
    ]


def judged(records: Sequence[Measured], policy: RetrainingPolicy = POLICY, **given: object) -> list[JudgedWindow]:
    arguments: dict[str, object] = {
        "greater_is_better": True, "recipe": {1}, "holdouts": {1: HOLDOUT}, "until": START + 1_000 * WEEK, **given
    }  # fmt: skip
    return judge_windows(policy, "roc_auc", performances=records, **arguments)  # type: ignore[arg-type]


def bound(policy: RetrainingPolicy = POLICY, **given: object) -> Bound | None:
    arguments: dict[str, object] = {"usual": None, "holdout": HOLDOUT, "rows": 1_000, "length": WEEK, **given}
    return bound_of(policy, "roc_auc", greater_is_better=True, **arguments)  # type: ignore[arg-type]


# --- how often it is wrong -------------------------------------------------------------------------------------------


def asks(values: NDArray[np.float64], length: timedelta) -> list[int]:
    """The windows after which two of the last three were worse than usual, this one included, as a retraining requires."""
    records, found = measured(list(values), length=length), []
    for number in range(3, len(values) + 1):
        last = judged(records[:number])
        if last[-1].fallen and sum(window.fallen for window in last) >= POLICY.alarms:
            found.append(number - 1)
    return found


@pytest.mark.parametrize(("length", "kept"), [(WEEK, 0.0), (WEEK, 0.3), (DAY, 0.3)])
def test_a_stable_model_is_seldom_worse_than_usual_often_enough_to_ask(length: timedelta, kept: float) -> None:
    generator = np.random.default_rng(13)
    streams, windows, deviation = (40, 52, 0.02) if length == WEEK else (20, 182, 0.02)
    asked = 0
    for _ in range(streams):
        noise = generator.normal(size=windows)
        for number in range(1, windows):
            # Neighbours resemble each other: bad weather lasts.
            noise[number] = kept * noise[number - 1] + math.sqrt(1 - kept**2) * noise[number]
        asked += len(asks(0.76 + deviation * noise, length))
    years = streams * windows * (length / timedelta(days=365))
    assert asked / years <= 0.3


def test_a_lasting_drop_of_four_deviations_asks_within_three_windows() -> None:
    generator = np.random.default_rng(13)
    found = 0
    for _ in range(40):
        values = 0.76 + 0.02 * generator.normal(size=24)
        values[20:] -= 0.08
        found += any(20 <= number <= 22 for number in asks(values, WEEK))
    assert found >= 36


def test_few_rows_do_not_make_a_window_worse_than_usual() -> None:
    generator = np.random.default_rng(13)
    few = 0.76 + 0.02 * math.sqrt(10) * generator.normal(size=400)
    steady = list(0.76 + 0.02 * generator.normal(size=20))
    fallen = 0
    for value in few:
        records = measured([*steady, 0.0])
        records[-1] = Measured(records[-1].interval, 1, {"roc_auc": float(value)}, rows=100)
        fallen += judged(records)[-1].fallen
    assert fallen / len(few) <= 0.05


def test_a_week_is_held_against_the_holdout_as_a_week() -> None:
    found, generator = bound(), np.random.default_rng(13)
    assert found is not None
    # Half the interval of four weeks is 1.96 standard errors; that of a week is twice as wide.
    error = 0.02 / 1.96
    holdout, week = (0.76 + times * error * generator.normal(size=20_000) for times in (1, 2))
    below = np.mean(week - (holdout - 0.76) < found.value)
    assert 0.5 / 52 <= below <= 1.5 / 52


# --- what is usual ---------------------------------------------------------------------------------------------------


def test_the_reason_names_what_the_bound_comes_from() -> None:
    by_holdout, by_windows = bound(), bound(usual=usual_of(measured([0.75, 0.77] * 6), "roc_auc"))
    assert by_holdout is not None
    assert by_holdout.source == (
        "which chance alone breaks in about one window of a year: its holdout gave 0.76 (between 0.74 and 0.78), and the "
        "window is 0.25 of it"
    )
    assert by_windows is not None
    assert by_windows.source.endswith("12 earlier windows reached 0.76 ± 0.01 (mean and standard deviation)")


def test_a_number_is_a_margin_below_the_versions_own_holdout() -> None:
    found = bound(RetrainingPolicy(on_performance=0.05), usual=usual_of(measured([0.5, 0.6] * 6), "roc_auc"))
    assert found is not None
    assert (round(found.value, 9), found.source) == (0.71, "for 0.76 on its holdout and margin 0.05")


def test_a_rise_of_a_loss_is_worse() -> None:
    arguments = {"usual": None, "holdout": HOLDOUT, "rows": 1_000, "length": WEEK}
    found = bound_of(POLICY, "rmse", greater_is_better=False, **arguments)  # type: ignore[arg-type]
    assert found is not None
    assert found.value > 0.78
    assert found.is_broken_by(0.9)
    assert not found.is_broken_by(0.7)


def test_fewer_earlier_windows_than_needed_are_no_measure() -> None:
    assert usual_of(measured([0.75, 0.77] * 4), "roc_auc") is not None
    assert usual_of(measured([0.75, 0.77] * 4)[1:], "roc_auc") is None
    assert FEWEST_WINDOWS == 8


def test_windows_that_are_all_equal_are_no_measure_of_noise() -> None:
    assert usual_of(measured([0.76] * 20), "roc_auc") is None


def test_one_week_of_wrong_labels_does_not_make_later_drops_usual() -> None:
    clean, spoilt = [0.75, 0.76, 0.77] * 4, [0.75, 0.76, 0.77] * 4
    spoilt[5] = 0.24
    assert usual_of(measured([*clean[:5], *clean[6:]]), "roc_auc") == usual_of(measured(spoilt), "roc_auc")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_counts(value: float) -> None:
    assert usual_of(measured([0.75, 0.77] * 4 + [value]), "roc_auc") == usual_of(measured([0.75, 0.77] * 4), "roc_auc")
    assert not judged(measured([0.76, value]))[-1].fallen
    assert bound(holdout=Holdout(value, (0.7, 0.8), 0.95, 100, WEEK)) is None
    assert bound(holdout=Holdout(0.76, (value, 0.8), 0.95, 100, WEEK)) is None
    assert bound(RetrainingPolicy(on_performance=0.1), holdout=Holdout(value)) is None


@pytest.mark.parametrize("holdout", [None, Holdout(0.76), Holdout(0.76, (0.76, 0.76), 0.95, 100, WEEK)])
def test_without_a_measure_of_noise_nothing_is_worse_than_usual(holdout: Holdout | None) -> None:
    assert bound(holdout=holdout) is None


# --- which windows count ---------------------------------------------------------------------------------------------


def test_the_windows_of_all_refreshes_count() -> None:
    records = [
        Measured(record.interval, number + 1, record.metrics)
        for number, record in enumerate(measured([0.75, 0.77] * 5 + [0.6]))
    ]
    found = judged(records, recipe=set(range(1, 12)), holdouts={})
    assert [window.version for window in found] == [9, 10, 11]
    assert [window.fallen for window in found] == [False, False, True]


def test_the_windows_of_another_recipe_do_not_count() -> None:
    assert judged(measured([0.1, 0.1], version=2)) == []


def test_windows_before_the_newest_training_are_not_judged_but_say_what_is_usual() -> None:
    records = measured([0.75, 0.77] * 5 + [0.6, 0.6])
    (found,) = judged(records, since=START + 11 * WEEK)
    assert found.interval == records[-1].interval
    assert found.bound is not None
    assert "9 earlier windows" in found.bound.source


def test_the_version_with_more_rows_stands_for_a_window() -> None:
    one, other = measured([0.7], rows=10)[0], measured([0.8], version=2, rows=90)[0]
    (found,) = judged([other, one], recipe={1, 2})
    assert (found.version, found.value) == (2, 0.8)


def test_windows_of_another_length_and_later_ones_do_not_count() -> None:
    week, days = measured([0.7]), measured([0.1] * 7, length=DAY)
    assert [window.value for window in judged([*days, *week])] == [0.7]
    assert judged(week, until=START + 6 * DAY) == []


def test_withheld_windows_do_not_say_what_is_usual() -> None:
    records = measured([0.75, 0.77] * 4 + [0.74, 0.73] + [0.76] * 3)
    found = judged(records, withheld=[records[8].interval, records[11].interval])
    assert [window.withheld for window in found] == [False, True, False]
    assert found[0].bound is not None
    assert "9 earlier windows" in found[0].bound.source


# --- worse than the same answer for every row ------------------------------------------------------------------------


def beside(values: Sequence[float], constant: float, *, length: timedelta = WEEK, high: float | None = None) -> list[Measured]:
    """Windows beside the same answer for every row; ``high`` is the upper end of the interval of the difference."""
    found = []
    for record in measured(values, length=length):
        gain = record.metrics["roc_auc"] - constant
        compared = GainOverChampion(
            gain=gain, low=gain - 0.1, high=high, lower=None, upper=None, identical=0.0, blocks=7, block="1d", resamples=1_000,
            seed=1, confidence=0.95, problem=None if high is not None else "too few blocks",
        )  # fmt: skip
        made = Constant({"roc_auc": constant}, compared if gain < 0 else None)
        found.append(Measured(record.interval, 1, record.metrics, constant=made))
    return found


def test_a_window_that_is_surely_worse_than_the_same_answer_for_every_row_says_so() -> None:
    *_, found = judged(beside([0.6, 0.4], 0.5, high=-0.05))
    assert found.useless == (
        "roc_auc of 2013-01-14--2013-01-21 is 0.4, worse than the 0.5 that the same answer for every row would have reached, "
        "as the training rows of version 1 told it; with 95% confidence it is worse by 0.05 to 0.2"
    )


def test_a_window_that_may_be_worse_by_chance_does_not() -> None:
    assert judged(beside([0.49], 0.5, high=0.01))[-1].useless == ""
    assert judged(beside([0.51], 0.5))[-1].useless == ""


def test_an_earlier_window_that_was_worse_does_not_matter_any_more() -> None:
    assert judged(beside([0.4, 0.6], 0.5, high=-0.05))[-1].useless == ""


def test_days_are_too_short_alone_and_sure_together() -> None:
    days = beside([0.41, 0.39, 0.4, 0.42, 0.38], 0.5, length=DAY)
    assert judged(days[:4])[-1].useless == ""
    assert "over 5 windows it is worse by 0.1, with 95% confidence by at least 0.08" in judged(days)[-1].useless
    assert judged(beside([0.7, 0.3, 0.6, 0.45, 0.4], 0.5, length=DAY))[-1].useless == ""


def test_days_before_the_newest_training_are_not_held_against_the_new_model() -> None:
    days = beside([0.4, 0.41, 0.39, 0.4, 0.4, 0.49], 0.5, length=DAY)
    assert judged(days, since=START + 5 * DAY)[-1].useless == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_constant_that_is_not_known_is_not_better(value: float) -> None:
    assert judged(beside([0.4] * 6, value, length=DAY))[-1].useless == ""
    assert judged(measured([0.4] * 6))[-1].useless == ""
