"""When monitoring asks for a retraining, and what holds it back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.intervals import Interval
from perennial.monitoring.retraining import BUDGET_SPAN, PastTraining, RetrainingDecision, decide_retraining, retraining_run_id
from perennial.monitoring.usual import Bound, JudgedWindow
from perennial.spec.monitoring import RetrainingPolicy

WEEK = timedelta(days=7)
START = datetime(2013, 3, 4, tzinfo=UTC)


@dataclass(frozen=True)
class Verdict:
    interval: Interval
    verdict: str
    version: int | None = 1


@dataclass(frozen=True)
class Asked:
    window_end: datetime
    asked: bool = True
    cause: str = "drift"
    reason: str = "because"


@dataclass
class Loop:
    """The ledger's part in the loop: it keeps each first answer and gives it back."""

    policy: RetrainingPolicy
    verdicts: list[Verdict] = field(default_factory=list)
    decisions: list[Asked] = field(default_factory=list)
    trainings: list[PastTraining] = field(default_factory=list)

    def decide(self, window_end: datetime, *, promoted: bool | None = None) -> RetrainingDecision:
        """The decision; an ask leads to a version, promoted or not, or to none at all (None)."""
        decision = decide_retraining(
            self.policy,
            window_end=window_end,
            verdicts=self.verdicts,
            decisions=self.decisions,
            trainings=self.trainings,
        )
        if all(past.window_end != window_end for past in self.decisions):
            self.decisions.append(Asked(window_end, decision.ask, decision.cause, decision.reason))
            if decision.ask and promoted is not None:
                self.trainings.append(PastTraining(window_end, promoted))
        return decision

    @property
    def asked(self) -> list[datetime]:
        return sorted(past.window_end for past in self.decisions if past.asked)


def windows(*verdicts: str, length: timedelta = WEEK) -> list[Verdict]:
    """Verdicts of windows that follow each other, oldest first."""
    return [Verdict(Interval(START + n * length, START + (n + 1) * length), verdict) for n, verdict in enumerate(verdicts)]


def decide(*verdicts: str, policy: RetrainingPolicy | None = None, **given: object) -> RetrainingDecision:
    made = windows(*verdicts)
    return decide_retraining(policy or RetrainingPolicy(), window_end=made[-1].interval.end, verdicts=made, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "ask"),
    [
        (["drift", "drift"], True),
        (["drift", "ok", "drift"], True),
        (["drift", "unknown", "drift"], True),
        (["ok", "ok", "drift"], False),
        (["drift", "drift", "ok"], False),
        (["drift", "drift", "unknown"], False),
        (["drift", "ok", "ok", "drift"], False),
        (["unknown", "unknown", "unknown"], False),
    ],
)
def test_enough_of_the_last_windows_and_the_newest_must_alarm(verdicts: list[str], ask: bool) -> None:
    assert decide(*verdicts).ask is ask


def test_windows_long_ago_do_not_count_as_the_last_ones() -> None:
    old, new = windows("drift")[0], Verdict(Interval(START + 20 * WEEK, START + 21 * WEEK), "drift")
    assert not decide_retraining(RetrainingPolicy(), window_end=new.interval.end, verdicts=[old, new]).ask


def test_a_window_without_verdict_is_not_asked_about() -> None:
    decision = decide_retraining(RetrainingPolicy(alarms=1), window_end=START + 2 * WEEK, verdicts=windows("drift"))
    assert not decision.ask
    assert "no drift verdict for the window that ends on 2013-03-18" in decision.reason


def test_later_windows_do_not_change_the_answer_of_an_earlier_one() -> None:
    verdicts = windows("ok", "drift", "drift")
    assert not decide_retraining(RetrainingPolicy(), window_end=START + 2 * WEEK, verdicts=verdicts).ask


def test_switched_off_drift_never_asks() -> None:
    assert not decide("drift", "drift", policy=RetrainingPolicy(on_drift=False)).ask


def test_the_cooldown_holds_an_alarm_back_and_says_so() -> None:
    end = START + 2 * WEEK
    decision = decide("drift", "drift", decisions=[Asked(end - timedelta(days=13))])
    assert (decision.ask, decision.cause) == (False, "drift")
    assert "the last requested retraining was as of 2013-03-05, and the cooldown is 14 days" in decision.reason
    assert decide("drift", "drift", decisions=[Asked(end - timedelta(days=14))]).ask


def test_the_cooldown_counts_from_trainings_that_others_began() -> None:
    end = START + 2 * WEEK
    assert not decide("drift", "drift", trainings=[PastTraining(end - timedelta(days=1))]).ask
    assert decide("drift", "drift", trainings=[PastTraining(end - timedelta(days=15))]).ask


def test_a_declined_retraining_starts_no_cooldown() -> None:
    assert decide("drift", "drift", decisions=[Asked(START + WEEK, asked=False)]).ask


def test_a_training_under_way_holds_an_alarm_back() -> None:
    decision = decide("drift", "drift", open_run=True)
    assert not decision.ask
    assert "already under way" in decision.reason


def test_the_budget_of_thirty_days_holds_an_alarm_back() -> None:
    policy = RetrainingPolicy(cooldown=timedelta(days=1), budget=2)
    end = START + 2 * WEEK
    spent = [Asked(end - timedelta(days=20)), Asked(end - timedelta(days=29))]
    decision = decide("drift", "drift", policy=policy, decisions=spent)
    assert not decision.ask
    assert "the budget of 2 trainings in 30 days is used up" in decision.reason
    assert decide("drift", "drift", policy=policy, decisions=[spent[0], Asked(end - timedelta(days=30))]).ask


def test_trainings_of_the_calendar_count_against_the_budget() -> None:
    policy = RetrainingPolicy(cooldown=timedelta(days=1), budget=2)
    end = START + 2 * WEEK
    calendar = [PastTraining(end - timedelta(days=days), promoted=True) for days in (8, 15)]
    assert not decide("drift", "drift", policy=policy, trainings=calendar).ask
    assert decide("drift", "drift", policy=policy, trainings=calendar[:1]).ask


def test_a_training_that_was_asked_for_counts_once() -> None:
    policy = RetrainingPolicy(cooldown=timedelta(days=1), budget=2)
    end = START + 2 * WEEK
    past = end - timedelta(days=10)
    assert decide("drift", "drift", policy=policy, decisions=[Asked(past)], trainings=[PastTraining(past, promoted=True)]).ask


def test_a_window_judged_after_a_later_training_does_not_ask() -> None:
    decision = decide("drift", "drift", trainings=[PastTraining(START + 6 * WEEK, promoted=True)])
    assert not decision.ask


def test_drift_from_what_the_version_before_had_learned_does_not_count() -> None:
    first, second = windows("drift", "drift")
    moved = [first, Verdict(second.interval, "drift", version=2)]
    for recipe in ((), {2, 3}, {1, 4}):
        assert not decide_retraining(RetrainingPolicy(), window_end=second.interval.end, verdicts=moved, recipe=recipe).ask


def test_drift_that_lasts_through_refreshes_asks() -> None:
    first, second = windows("drift", "drift")
    moved = [first, Verdict(second.interval, "drift", version=2)]
    assert decide_retraining(RetrainingPolicy(), window_end=second.interval.end, verdicts=moved, recipe={1, 2}).ask


def test_asks_that_led_to_no_promotion_trip_the_breaker_and_a_promotion_closes_it() -> None:
    end = START + 2 * WEEK
    policy = RetrainingPolicy(breaker=2)
    vain = [Asked(end - timedelta(days=days)) for days in (120, 80)]
    refused = [PastTraining(past.window_end) for past in vain]

    tripped = decide("drift", "drift", policy=policy, decisions=vain, trainings=refused)

    assert (tripped.ask, tripped.breaker) == (False, True)
    assert "the last 2 requested retrainings" in tripped.reason
    assert "led to no promotion" in tripped.reason
    closed = [*refused, PastTraining(end - timedelta(days=40), promoted=True)]
    assert decide("drift", "drift", policy=policy, decisions=vain, trainings=closed).ask


def test_asks_that_were_lost_trip_the_breaker_too() -> None:
    end = START + 2 * WEEK
    vain = [Asked(end - timedelta(days=days)) for days in (120, 80, 50)]
    assert decide("drift", "drift", decisions=vain).breaker


def test_without_a_budget_monitoring_never_asks() -> None:
    assert not decide("drift", "drift", policy=RetrainingPolicy(budget=0)).ask


# --- performance -----------------------------------------------------------------------------------------------------

POLICY = RetrainingPolicy(on_drift=False)
BOUND = Bound("roc_auc", 0.67, True, "which chance alone breaks in about one window of a year")


def measured(*values: float, bound: Bound | None = BOUND) -> list[JudgedWindow]:
    return [
        JudgedWindow(verdict.interval, 3, "roc_auc", value, bound)
        for verdict, value in zip(windows(*["ok"] * len(values)), values, strict=True)
    ]


def on_performance(measured: list[JudgedWindow], policy: RetrainingPolicy = POLICY, **given: object) -> RetrainingDecision:
    # Labels come late: the window that is judged is newer than any that can be measured.
    return decide_retraining(policy, window_end=START + 6 * WEEK, verdicts=[], windows=measured, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "ask"),
    [([0.66, 0.66], True), ([0.66, 0.72, 0.66], True), ([0.66, 0.66, 0.72], False), ([0.70, 0.70], False), ([0.66], False)],
)
def test_windows_that_are_worse_than_usual_alarm(values: list[float], ask: bool) -> None:
    decision = on_performance(measured(*values))
    assert decision.ask is ask
    assert decision.cause == ("performance" if ask else "none")


def test_the_reason_names_the_window_its_value_and_its_bound() -> None:
    assert on_performance(measured(0.66, 0.65)).reason == (
        "Retraining: roc_auc was worse than usual in 2 of the last 3 measured windows (2 are needed for an alarm); in the "
        "newest, 2013-03-11--2013-03-18, it is 0.65, and the bound is 0.67, which chance alone breaks in about one window of a "
        "year."
    )


def test_performance_that_may_not_ask_never_asks() -> None:
    decision = on_performance(measured(0.1, 0.1), RetrainingPolicy(on_drift=False, on_performance="never"))
    assert not decision.ask
    assert "retraining.on_performance is never" in decision.reason


def test_what_is_not_known_to_be_usual_never_alarms() -> None:
    decision = on_performance(measured(0.1, 0.1, bound=None))
    assert not decision.ask
    assert "it is not known which roc_auc is usual for version 3" in decision.reason


def test_a_metric_that_could_not_be_measured_never_alarms() -> None:
    assert not on_performance(measured(0.1, float("nan"))).ask
    assert not on_performance(measured(float("nan"), float("nan"))).ask


def test_windows_that_were_answered_do_not_ask_again() -> None:
    assert not on_performance(measured(0.6, 0.6), decisions=[Asked(START + 3 * WEEK)]).ask


def test_drift_is_the_cause_when_both_alarm_and_both_are_told() -> None:
    decision = decide("drift", "drift", windows=measured(0.6, 0.6))
    assert (decision.ask, decision.cause) == (True, "drift")
    assert "windows drifted" in decision.reason
    assert "roc_auc was worse" in decision.reason


# --- a champion that does harm ---------------------------------------------------------------------------------------


def harmful(*values: float) -> list[JudgedWindow]:
    *earlier, newest = measured(*values)
    return [*earlier, replace(newest, useless="log_loss is 1.96, worse than the 1.05 that the same answer would have reached")]


def test_a_champion_that_does_harm_asks_after_one_window_and_within_the_cooldown() -> None:
    end = START + 6 * WEEK
    recent = [PastTraining(end - timedelta(days=1))]
    decision = on_performance(harmful(0.66), trainings=recent)
    assert (decision.ask, decision.cause) == (True, "performance")
    assert decision.reason.startswith("Retraining: the champion does harm: log_loss is 1.96, worse than the 1.05")
    assert not on_performance(measured(0.66, 0.66), trainings=recent).ask


def test_a_champion_that_does_harm_asks_no_more_often_than_the_budget_and_the_breaker_allow() -> None:
    end = START + 6 * WEEK
    budget = [PastTraining(end - timedelta(days=days)) for days in (1, 2)]
    assert "the budget of 2 trainings" in on_performance(harmful(0.66), trainings=budget).reason
    vain = [Asked(START - timedelta(days=days)) for days in (100, 70, 40)]
    assert on_performance(harmful(0.66), decisions=vain).breaker
    assert not on_performance(harmful(0.66), open_run=True).ask
    assert not on_performance(harmful(0.66), trainings=[PastTraining(end)]).ask


def test_harm_that_was_answered_does_not_ask_again() -> None:
    assert not on_performance(harmful(0.66), decisions=[Asked(START + WEEK)]).ask


def test_a_champion_that_does_harm_does_not_ask_if_performance_may_not() -> None:
    assert not on_performance(harmful(0.66), RetrainingPolicy(on_drift=False, on_performance="never")).ask


def test_windows_whose_rows_are_withheld_do_not_ask() -> None:
    assert not on_performance([replace(window, withheld=True) for window in harmful(0.66, 0.66)]).ask


# --- the loop cannot run away ----------------------------------------------------------------------------------------

policies = st.builds(
    RetrainingPolicy,
    alarms=st.just(1),
    of=st.integers(1, 4),
    cooldown=st.integers(1, 40).map(lambda days: timedelta(days=days)),
    budget=st.integers(0, 4),
    breaker=st.integers(1, 4),
)
histories = st.lists(st.sampled_from(["ok", "drift", "drift", "unknown"]), min_size=1, max_size=60)


@st.composite
def loops(draw: st.DrawFn) -> Loop:
    """A loop that was asked about its windows in any order, some of them more than once."""
    length = timedelta(days=draw(st.sampled_from([1, 7])))
    loop = Loop(draw(policies), windows(*draw(histories), length=length))
    ends = [verdict.interval.end for verdict in loop.verdicts]
    for end in draw(st.lists(st.sampled_from(ends), max_size=80)) + draw(st.permutations(ends)):
        loop.decide(end, promoted=draw(st.sampled_from([None, False, True, True])))
    return loop


@given(loops())
@settings(max_examples=150)
def test_any_thirty_days_see_no_more_than_the_budget(loop: Loop) -> None:
    for first in loop.asked:
        assert len([end for end in loop.asked if first <= end < first + BUDGET_SPAN]) <= loop.policy.budget


@given(loops())
@settings(max_examples=150)
def test_two_asks_are_never_within_the_cooldown(loop: Loop) -> None:
    for earlier, later in pairwise(loop.asked):
        assert later - earlier >= loop.policy.cooldown


@given(loops())
@settings(max_examples=150)
def test_no_more_asks_than_the_breaker_allows_lead_to_no_promotion(loop: Loop) -> None:
    promoted = {training.as_of for training in loop.trainings if training.promoted}
    vain = 0
    for end in loop.asked:
        vain = 0 if end in promoted else vain + 1
        assert vain <= loop.policy.breaker


@given(loops(), st.data())
@settings(max_examples=100)
def test_asking_twice_for_a_window_gives_the_same_answer(loop: Loop, data: st.DataObject) -> None:
    past = data.draw(st.sampled_from(loop.decisions))
    loop.verdicts.append(Verdict(Interval(past.window_end - WEEK, past.window_end), "drift"))
    assert loop.decide(past.window_end) == RetrainingDecision(past.asked, past.cause, past.reason)  # type: ignore[arg-type]


@given(policies, st.lists(st.sampled_from(["ok", "unknown"]), min_size=1, max_size=20))
@settings(max_examples=50)
def test_what_is_unknown_never_asks(policy: RetrainingPolicy, verdicts: list[str]) -> None:
    loop = Loop(policy, windows(*verdicts))
    for verdict in loop.verdicts:
        assert not loop.decide(verdict.interval.end).ask


def test_a_window_has_one_run_id_and_others_have_others() -> None:
    ids = {retraining_run_id(model, START + n * WEEK) for model in ("a", "b") for n in range(3)}
    assert len(ids) == 6
    assert retraining_run_id("a", START) == retraining_run_id("a", START.astimezone()) == "retrain__a__2013-03-04T000000Z"


def test_a_decision_survives_json() -> None:
    decision = decide("drift", "drift")
    assert RetrainingDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
