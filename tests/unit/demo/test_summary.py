"""What the demo tells of its weeks."""

from __future__ import annotations

from perennial.core.intervals import Interval
from perennial.demo.summary import online_in_words, what_monitoring_says
from perennial.evidence.verdict import VerdictDetails
from perennial.ledger.records import VerdictName
from perennial.ledger.store import Ledger

WEEK = Interval.of("2013-07-01", "2013-07-08")
BEFORE = Interval.of("2013-06-24", "2013-07-01")


def judge(ledger: Ledger, week: Interval, verdict: VerdictName, *, asked: bool) -> None:
    ledger.record_verdict(
        model="toy", interval=week, version=1, verdict=verdict, reasons=["wind moved", "rain moved"],
        details=VerdictDetails(), report=None, run_id="m",
    )  # fmt: skip
    ledger.record_retraining(
        model="toy", window_end=week.end, asked=asked, cause="drift", reason=f"Because of {week.key}.", run_id="m"
    )


def test_drift_and_the_request_of_a_week_are_told_with_their_reasons(ledger: Ledger) -> None:
    judge(ledger, BEFORE, "drift", asked=True)
    judge(ledger, WEEK, "drift", asked=True)
    assert what_monitoring_says(ledger, "toy", WEEK) == [
        "drift: wind moved; rain moved",
        "Because of 2013-07-01--2013-07-08.",
    ]


def test_nothing_is_told_of_a_week_like_others(ledger: Ledger) -> None:
    judge(ledger, BEFORE, "drift", asked=True)
    judge(ledger, WEEK, "ok", asked=False)
    assert what_monitoring_says(ledger, "toy", WEEK) == []


def test_parity_is_told_with_what_differs_and_whether_there_are_enough_rows() -> None:
    asked = {"ways": {}, "again": 0, "compared": 0, "reason": ""}
    parity = {"day": "2013-07-21", "rows": 40, "equal": 40, "share": 1.0, "bound": 0.99, "judged": True, "worst": []}
    assert online_in_words({**asked, "parity": parity}) == [
        "online: parity 100.0% (online.parity requires 99.0%): 40 of 40 rows with features of 2013-07-21 were served as the "
        "published tables give them, to the last bit"
    ]
    few = {**parity, "rows": 4, "equal": 3, "share": 0.75, "judged": False, "worst": ["wind_speed (1 missing)"]}
    [line] = online_in_words({**asked, "parity": few})
    assert line.endswith("to the last bit; wind_speed (1 missing); too few to be judged")
    assert online_in_words({**asked, "parity": None}) == []
