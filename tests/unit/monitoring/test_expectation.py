"""What a requested training may be expected to gain, and what it gained."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.evidence.decision import GateDecision, GateResult
from perennial.evidence.evaluation import Evaluation, GainOverChampion
from perennial.evidence.monitoring import Audit, Expectation
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.evidence.verdict import VerdictDetails
from perennial.ledger.records import Promotion, ShadowComparison, VersionRecord
from perennial.ledger.store import Ledger
from perennial.monitoring.expectation import MOST_REPLACEMENTS, audit, expect
from perennial.monitoring.requests import audit_requests, request_retraining
from perennial.reports.history import requests
from perennial.spec.model import ModelSpec
from tests.unit.synthetic import write_folder

WEEK = Interval.of("2013-04-01", "2013-04-08")
END = WEEK.end
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def trained(version: int, as_of: datetime = END, *, passed: bool = True) -> VersionRecord:
    training = TrainingRecord.from_json({"as_of": as_of.isoformat()})
    decision = GateDecision(passed, [] if passed else [GateResult("champion", False, "worse")], "boosting", None)
    return VersionRecord(
        "toy", version, f"run-{version}", "s", "f", {}, training, Evaluation.from_json({}), decision, CodeState(), NOW
    )


def promoted(version: int, over: int | None, number: int, action: Any = "promote") -> Promotion:
    return Promotion(number, "toy", version, over, action, "better", "gates", None, {}, NOW, NOW)


def compared(number: int, champion: int, over: int, gain: float, windows: int = 4, *, sure: bool = True) -> ShadowComparison:
    """``gain`` is that of the champion over the version that it replaced."""
    comparison = GainOverChampion(
        gain=-gain, low=-gain - 0.003 if sure else None, high=-gain + 0.003 if sure else None, lower=None, upper=None,
        identical=0.0, blocks=7, block="1d", resamples=1_000, seed=1, confidence=0.95,
    )  # fmt: skip
    return ShadowComparison(
        "toy", number, over, windows, champion, WEEK, "no_difference", "", 400, {}, comparison, END, f"monitor-{number}"
    )


# --- what is expected ------------------------------------------------------------------------------------------------


def test_without_a_comparison_it_says_plainly_that_nothing_is_known() -> None:
    found = expect([promoted(1, None, 1), promoted(2, 1, 2)], [], "roc_auc")
    assert found.gain is None
    assert found.words.startswith("What it will gain is not known: no version has been compared yet")


def test_earlier_replacements_give_the_mean_and_its_spread() -> None:
    promotions = [promoted(1, None, 1), promoted(2, 1, 2), promoted(3, 2, 3, "override")]
    found = expect(promotions, [compared(2, 2, 1, 0.002), compared(3, 3, 2, 0.006)], "roc_auc")
    assert [found.gain, found.deviation] == pytest.approx([0.004, 0.00283], abs=1e-5)
    assert found.replacements == 2
    expected = "Expected gain in roc_auc if its version is promoted: +0.004 ± 0.0028, as the last 2 replacements gained"
    assert found.words == expected


def test_one_replacement_is_as_sure_as_its_own_comparison() -> None:
    promotions = [promoted(1, None, 1), promoted(2, 1, 2)]
    assert expect(promotions, [compared(2, 2, 1, 0.002)], "roc_auc").deviation == pytest.approx(0.003)
    assert expect(promotions, [compared(2, 2, 1, 0.002, sure=False)], "roc_auc").figure == "+0.002"


def test_the_comparison_with_the_most_windows_counts() -> None:
    found = expect(
        [promoted(2, 1, 2)], [compared(2, 2, 1, 0.5, 1), compared(2, 2, 1, 0.002, 3), compared(2, 2, 1, 0.4, 2)], "auc"
    )
    assert found.gain == pytest.approx(0.002)


def test_what_replaced_nothing_newer_does_not_count() -> None:
    back = promoted(1, 2, 3, "rollback")
    unfinished = replace(promoted(2, 1, 2), completed_at=None)
    close = compared(2, 2, 7, 0.3)
    assert expect([back], [compared(3, 1, 2, 0.3)], "auc").gain is None
    assert expect([unfinished], [compared(2, 2, 1, 0.3)], "auc").gain is None
    assert expect([promoted(2, 1, 2)], [close], "auc").gain is None, "a refused candidate in the shadow was not replaced"
    assert expect([promoted(2, 1, 2)], [compared(2, 2, 1, math.nan)], "auc").gain is None


def test_only_the_newest_replacements_count() -> None:
    promotions = [promoted(number, number - 1, number) for number in range(2, 20)]
    found = expect(promotions, [compared(number, number, number - 1, float(number)) for number in range(2, 20)], "mae")
    assert found.replacements == MOST_REPLACEMENTS
    assert found.gain == pytest.approx(sum(range(8, 20)) / 12)


# --- what came of it -------------------------------------------------------------------------------------------------


def audited(*versions: VersionRecord, asked_again: bool = False, **given: Any) -> Audit | None:
    arguments: dict[str, Any] = {"promotions": [], "comparisons": [], "windows": 4, **given}
    return audit(END, trainings=versions, asked_again=asked_again, **arguments)


def test_a_promoted_version_is_audited_after_all_windows() -> None:
    promotions = [promoted(1, None, 1), promoted(2, 1, 2)]
    assert audited(trained(2), promotions=promotions) is None
    assert audited(trained(2), promotions=promotions, comparisons=[compared(2, 2, 1, 0.002, 3)]) is None
    found = audited(trained(2), promotions=promotions, comparisons=[compared(2, 2, 1, 0.002)])
    assert found is not None
    assert (found.outcome, found.version) == ("measured", 2)
    assert found.gain == pytest.approx(0.002)
    assert found.words == "got +0.002 (between -0.001 and +0.005) by version 2 over version 1, on 4 windows"


def test_a_version_that_was_replaced_is_audited_by_what_was_compared_until_then() -> None:
    promotions = [promoted(1, None, 1), promoted(2, 1, 2), promoted(3, 2, 3)]
    found = audited(trained(2), promotions=promotions, comparisons=[compared(2, 2, 1, 0.002, 1)])
    assert found is not None
    assert found.outcome == "measured"
    assert found.gain == pytest.approx(0.002)
    nothing = audited(trained(2), promotions=promotions)
    assert nothing is not None
    assert (nothing.outcome, nothing.gain) == ("unmeasured", None)
    assert nothing.words == "version 2 was replaced before it could be compared with version 1"


def test_a_refresh_does_not_end_the_comparison() -> None:
    promotions = [promoted(1, None, 1), promoted(2, 1, 2), promoted(3, 2, 3, "refresh")]
    assert audited(trained(2), promotions=promotions, comparisons=[compared(2, 3, 1, 0.002, 3)]) is None
    found = audited(trained(2), promotions=promotions, comparisons=[compared(2, 3, 1, 0.002)])
    assert found is not None
    assert found.outcome == "measured"


def test_a_refused_version_has_gained_nothing() -> None:
    found = audited(trained(2, passed=False))
    assert found == Audit("refused", 2, words="version 2 was refused, so nothing was gained")


def test_a_version_that_waits_is_audited_when_a_later_training_has_made_one() -> None:
    assert audited(trained(2)) is None
    later = audited(trained(2), trained(3, END + timedelta(days=7)))
    assert later == Audit("refused", 2, words="version 2 was not promoted, so nothing was gained")


def test_a_training_without_a_version_is_audited_when_there_is_a_later_one() -> None:
    assert audited(trained(1, END - timedelta(days=7))) is None
    assert audited(asked_again=True) == audited(trained(3, END + timedelta(days=7)))
    assert audited(asked_again=True) == Audit("none", words="the training made no version")


def test_without_a_shadow_nothing_can_be_compared() -> None:
    found = audited(trained(2), promotions=[promoted(2, 1, 2)], windows=0)
    assert found is not None
    assert found.outcome == "unmeasured"


# --- with the request, in the ledger ---------------------------------------------------------------------------------


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    ledger = Ledger(settings.database_url)
    ledger.migrate()
    return ledger


@pytest.fixture
def spec(tmp_path: Any) -> ModelSpec:
    return write_folder(tmp_path / "models").spec


def drift(ledger: Ledger, window: Interval) -> None:
    ledger.record_verdict(
        model="toy", interval=window, version=1, verdict="drift", reasons=[], details=VerdictDetails(), report=None, run_id="m"
    )


def test_a_request_keeps_what_it_expects_and_later_what_came_of_it(ledger: Ledger, spec: ModelSpec) -> None:
    before, later = (Interval(WEEK.start + n * WEEK.length, WEEK.end + n * WEEK.length) for n in (-1, 1))
    for window in (before, WEEK):
        drift(ledger, window)
    asked = request_retraining(spec, ledger, WEEK, run_id="monitor", training_under_way=False)
    assert asked is not None
    assert "What it will gain is not known" in asked.cause
    (kept,) = ledger.retrainings("toy")
    assert (kept.expectation.gain, kept.audit) == (None, Audit())
    (line,) = requests(ledger, "toy")
    assert line.startswith(
        "After 2013-04-08 monitoring asked for a training (drift): it was not known what to expect; what came"
    )

    ledger.record_version(trained(2, passed=False))
    request_retraining(spec, ledger, later, run_id="monitor", training_under_way=False)
    audited = ledger.retrainings("toy")[0]
    assert (audited.audit.outcome, audited.expectation) == ("refused", kept.expectation)
    audit_requests(spec, ledger)
    ledger.record_audit("toy", END, Audit("none", words="another"))
    assert ledger.retrainings("toy")[0] == audited, "the first audit is kept"


def test_a_line_says_what_was_expected_and_what_came_of_it(ledger: Ledger) -> None:
    ledger.record_retraining(
        model="toy", window_end=END, asked=True, cause="performance", reason="r", run_id="m",
        expectation=Expectation(0.004, 0.003, 5, "words"),
    )  # fmt: skip
    ledger.record_audit("toy", END, Audit("measured", 2, 0.002, -0.001, 0.005, "got +0.002"))
    assert requests(ledger, "toy") == [
        "After 2013-04-08 monitoring asked for a training (performance): expected +0.004 ± 0.003; got +0.002."
    ]
