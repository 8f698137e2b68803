"""What ``alerts`` says does not contradict itself, and ``schedules.closed`` means days."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from perennial.core.intervals import Interval
from perennial.spec.operation import Online, Schedules
from tests.unit.spec.late import GOOD, problems, read


def test_a_channel_without_a_connection_is_refused_in_each_route(tmp_path: Path) -> None:
    text = GOOD + 'alerts:\n  channel: "#ours"\n  routes:\n    - channel: "#theirs"\n    - {slack: team, channel: "#all"}\n'

    assert problems(tmp_path, text) == [
        "model.yaml:27: alerts.channel: requires a Slack connection; name it under slack",
        "model.yaml:29: alerts.routes.0.channel: requires a Slack connection; name it under slack",
    ]


@pytest.mark.parametrize(
    ("closed", "day", "expected"),
    [
        ("2026-12-25", "2026-12-25", True),
        ("2026-12-25", "2027-12-25", False),
        ("12-25", "2027-12-25", True),
        ("12-25", "2027-12-24", False),
        ("sunday", "2026-11-29", True),
        ("sunday", "2026-11-28", False),
    ],
)
def test_a_closed_day_is_a_day_a_day_of_each_year_or_a_weekday(closed: str, day: str, expected: bool) -> None:
    assert Schedules(closed=[closed]).is_closed(Interval.day(day)) is expected


def test_a_period_is_closed_if_each_of_its_days_is() -> None:
    weekend = Schedules(closed=["saturday", "sunday"])

    assert weekend.is_closed(Interval.of("2026-11-28", "2026-11-30"))
    assert not weekend.is_closed(Interval.of("2026-11-27", "2026-11-30"))
    assert weekend.is_closed(Interval.of("2026-11-28T05:00:00Z", "2026-11-28T06:00:00Z"))


@pytest.mark.parametrize("closed", ["christmas", "Sunday", "20261225", "2026-W52-5", "2026-02-29", "13-01", "25.12.", ""])
def test_what_is_no_day_is_no_closed_day(tmp_path: Path, closed: str) -> None:
    [problem] = problems(tmp_path, GOOD + f'schedules: {{closed: ["{closed}"]}}\n')

    assert problem.endswith("write a day (2026-12-25), a day of each year (12-25) or a weekday (sunday)")


def test_a_model_is_not_asked_online_by_key_unless_it_says_so(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).spec.online is None
    assert Online() == Online(refresh=None, horizon=timedelta(days=1), missing="refuse", max_age=timedelta(days=2))


@pytest.mark.parametrize("missing", ["refuse", "null", "last"])
def test_what_is_answered_without_a_row_is_one_of_three(tmp_path: Path, missing: str) -> None:
    online = read(tmp_path, GOOD + f"online: {{missing: {missing}}}\n").spec.online

    assert online is not None
    assert online.missing == missing


def test_rows_that_are_too_old_before_they_are_computed_again_are_refused(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, GOOD + "online: {refresh: 2h, max_age: 1h}\n")

    assert "online.refresh: must be shorter than max_age" in problem


@pytest.mark.parametrize(("said", "share"), [("5%", 0.05), ("0.5", 0.5), ("12.5%", 0.125), ("50%", 0.5)])
def test_a_challenger_may_answer_up_to_half_of_the_keys(tmp_path: Path, said: str, share: float) -> None:
    online = read(tmp_path, GOOD + f"online: {{canary: {said}}}\n").spec.online

    assert online is not None
    assert online.canary == pytest.approx(share)


@pytest.mark.parametrize("said", ["0", "0%", "51%", "0.6", "-5%", "5 %", "true", "some"])
def test_another_share_is_refused(tmp_path: Path, said: str) -> None:
    [problem] = problems(tmp_path, GOOD + f"online: {{canary: {said}}}\n")

    assert "online.canary" in problem


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("online: {canary: 5%, record: false}", "online.canary: requires that requests are recorded"),
        ("online: {canary: 5%}\nshadow: {windows: 0}", "set shadow.windows"),
    ],
)
def test_a_challenger_answers_only_where_it_is_compared_and_recorded(tmp_path: Path, said: str, problem: str) -> None:
    [found] = problems(tmp_path, GOOD + said + "\n")

    assert Online().canary is None
    assert problem in found
