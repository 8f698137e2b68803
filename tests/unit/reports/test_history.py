"""What the ledger answers about champions, and what a person sees of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from rich.console import Console

from perennial.core.errors import ArtifactRejected
from perennial.core.intervals import Interval
from perennial.evidence.evaluation import GainOverChampion
from perennial.evidence.training import CodeState, TrainingRecord
from perennial.ledger.records import Action, Approval, ShadowComparison, VersionRecord
from perennial.ledger.store import Ledger
from perennial.reports.approval import comparison_in_words
from perennial.reports.history import explain, history, show_history, show_story
from tests.unit import synthetic

MODEL = "toy"


@pytest.fixture
def told(ledger: Ledger) -> Ledger:
    """Two champions, the second of which was approved, then rolled back from; a third version that was refused."""
    for version, auc in ((1, 0.6), (2, 0.7), (3, 0.45)):
        evaluation = synthetic.evaluation_of(auc)
        ledger.record_version(
            VersionRecord(
                MODEL, version, f"run-{version}", "s" * 64, "f" * 64, {},
                TrainingRecord.from_json(
                    {"candidate": "boosting", "params": {"max_iter": 5}, "as_of": "2013-03-26T00:00:00+00:00",
                     "window": "2013-03-01--2013-03-21", "rows": {"window": 300}, "snapshots": {"features": 1},
                     "content": {"window": "a" * 64}}
                ),
                evaluation, synthetic.judge(evaluation), CodeState(commit="abc", dirty=True),
                datetime(2013, 3, 26, version, tzinfo=UTC),
            )
        )  # fmt: skip
    ledger.record_shadow_comparison(
        ShadowComparison(
            MODEL, 2, 1, 1, 2, Interval.of("2013-04-01", "2013-04-08"), "champion_worse", "version 1 did better", 420,
            {"1": {"roc_auc": 0.8}, "2": {"roc_auc": 0.6}}, GainOverChampion.from_json({"gain": 0.2}),
            datetime(2013, 4, 9, tzinfo=UTC), "monitor",
        )
    )  # fmt: skip
    ledger.record_approval(
        Approval(MODEL, 2, "approved", "airflow:ann", "[bold]fine[/]", datetime(2013, 3, 26, 4, tzinfo=UTC), "toy.train/run")
    )
    made_so_far: tuple[tuple[int, int | None, Action, str], ...] = (
        (1, None, "promote", "first"), (2, 1, "promote", "better"), (1, 2, "rollback", "worse"),
    )  # fmt: skip
    for version, over, action, why in made_so_far:
        made = ledger.intend_promotion(
            model=MODEL, version=version, expected=over, action=action, reason=why, actor=f"{action}r", run_id=None,
            evidence={"auc": 0.7},
        )  # fmt: skip
        ledger.complete_promotion(made.id)
    return ledger


def shown(show: Callable[..., None], *arguments: object) -> str:
    text = io.StringIO()
    show(Console(file=text, width=160), *arguments)
    return text.getvalue()


def test_every_change_is_told_with_who_when_why_over_whom_and_on_what_evidence(told: Ledger) -> None:
    changes = history(told, MODEL)
    assert [(c["version"], c["over"], c["action"], c["by"], c["why"]) for c in changes] == [
        (1, None, "promote", "promoter", "first"), (2, 1, "promote", "promoter", "better"),
        (1, 2, "rollback", "rollbackr", "worse"),
    ]  # fmt: skip
    assert [change["until"] for change in changes] == [changes[1]["since"], changes[2]["since"], None]
    assert changes[1]["evidence"] == {"auc": 0.7}
    text = shown(show_history, MODEL, changes)
    assert all(word in text for word in ("rollbackr", "better", "over"))
    assert "no champion yet" in shown(show_history, MODEL, history(told, "another"))


def test_a_version_tells_its_whole_story(told: Ledger) -> None:
    stories = {version: explain(told, MODEL, version) for version in (1, 2, 3)}
    assert [stories[version]["status"] for version in (1, 2, 3)] == ["champion", "rolled back from", "refused"]
    second = stories[2]
    assert second["trained"]["snapshots"] == {"features": 1}
    assert second["judged"]["metrics"]["roc_auc"] == 0.7
    assert second["gates"][0]["passed"]
    assert second["approvals"][0]["by"] == "airflow:ann"
    assert [change["over"] for change in second["champion"]] == [1]
    assert [seen["outcome"] for seen in second["shadows"]] == ["champion_worse"]
    assert [change["action"] for change in second["followed_by"]] == ["rollback"]
    text = shown(show_story, second)
    for words in (
        "rolled back from",
        "aaaaaaaaaaaa",
        "features 1",
        "approved by airflow:ann: [bold]fine[/]",
        "roc_auc",
        "better",
    ):
        assert words in text, words
    assert "it never became champion" in shown(show_story, stories[3])
    assert "refused" in shown(show_story, stories[3])


def test_an_unknown_version_is_told_with_those_there_are(told: Ledger) -> None:
    with pytest.raises(ArtifactRejected, match="version 9 is not in the ledger; there are: 1, 2, 3"):
        explain(told, MODEL, 9)


def test_who_is_asked_sees_both_side_by_side_and_where_to_read_on() -> None:
    evaluation = synthetic.evaluation_of(0.7)
    words = comparison_in_words(4, evaluation, synthetic.judge(evaluation), {"Model card": "http://ml/card.html"})
    assert "| **roc_auc** | 0.7 |" in words
    assert "no champion yet" in words
    assert "- **baseline**: roc_auc of boosting is 0.7" in words
    assert "[Model card](http://ml/card.html)" in words
