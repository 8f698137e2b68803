"""Who scores in the shadow of a champion, and until when one of them may answer clients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core.intervals import Interval, utc
from perennial.scoring.shadow import MOST, Challenger, choose, may_answer, period
from perennial.spec.monitoring import Shadow

WEEK, DAY = timedelta(days=7), timedelta(days=1)
MONDAY = utc("2013-04-01")
EARLY = utc("2013-03-01")


def chosen(policy: Shadow, day: str, *challengers: Challenger, began: str | None = "2013-04-01") -> list[int]:
    return choose(policy, challengers, interval=Interval.day(day), began=utc(began) if began else None, window=WEEK)


@pytest.mark.parametrize(
    ("began", "start", "end"),
    [("2013-04-01", "2013-04-01", "2013-04-15"), ("2013-04-03", "2013-04-01", "2013-04-22")],
)
def test_a_shadow_lasts_for_whole_windows(began: str, start: str, end: str) -> None:
    assert period(Shadow(windows=2), utc(began), WEEK) == Interval.of(start, end)
    assert period(Shadow(windows=0), utc(began), WEEK) is None


def test_the_champion_before_scores_for_its_windows_and_no_longer() -> None:
    before = Challenger(1, "predecessor", EARLY)
    policy = Shadow(windows=2)
    assert chosen(policy, "2013-04-01", before, began=None) == [1]
    assert chosen(policy, "2013-04-14", before) == [1]
    assert chosen(policy, "2013-04-15", before) == []
    assert chosen(Shadow(windows=0), "2013-04-01", before) == []


def test_a_refused_candidate_scores_only_where_it_came_close() -> None:
    close, far, unknown = (
        Challenger(version, "refused", MONDAY, loss) for version, loss in ((2, 0.01), (3, 0.011), (4, math.nan))
    )
    assert chosen(Shadow(windows=2, close=0.01), "2013-04-02", close, far, unknown) == [2]
    assert chosen(Shadow(windows=2), "2013-04-02", close, far, unknown) == []
    assert chosen(Shadow(windows=2, close=0.01), "2013-04-20", close) == []


def test_nobody_scores_what_it_may_have_learned_from() -> None:
    assert chosen(Shadow(), "2013-04-01", Challenger(1, "predecessor", utc("2013-04-02"))) == []
    assert chosen(Shadow(), "2013-04-01", Challenger(1, "predecessor", None)) == []


@given(
    st.lists(st.builds(Challenger, st.integers(1, 50), st.just("refused"), st.just(EARLY), st.floats(-1, 1)), max_size=8),
    st.integers(0, 12),
    st.integers(0, 200),
)
def test_there_are_never_many(challengers: list[Challenger], windows: int, day: int) -> None:
    policy = Shadow(windows=windows, close=0.5)
    interval = Interval.day(EARLY + day * DAY)
    found = choose(policy, challengers, interval=interval, began=EARLY, window=DAY)
    assert len(found) <= MOST
    if windows == 0 or day >= windows + 1:
        assert found == []


# --- who may answer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    outcome: str


def may(*outcomes: str, after: timedelta = DAY, windows: int = 2) -> bool:
    return may_answer(
        Shadow(windows=windows),
        promoted_at=MONDAY,
        now=MONDAY + after,
        window=WEEK,
        grace=2 * DAY,
        comparisons=[Compared(outcome) for outcome in outcomes],
    )


def test_the_former_champion_answers_until_one_look_finds_it_worse() -> None:
    assert may()
    assert may("no_difference", "unknown", "champion_worse")
    assert not may("no_difference", "challenger_worse")
    assert not may("challenger_worse", "no_difference")


def test_it_answers_no_longer_than_its_windows_take_by_the_clock() -> None:
    end = 3 * WEEK + 2 * DAY
    assert may(after=end - DAY)
    assert not may(after=end)
