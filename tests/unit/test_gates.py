"""What a candidate must show before it may become champion."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from perennial.gates import Contender, Evaluation, GateDecision, PredictionSummary, decide
from perennial.spec import Gates

ROWS, HASH = 1_000, "a" * 64
SOUND = PredictionSummary(rows=ROWS, not_finite=0, distinct=900, minimum=0.01, mean=0.2, maximum=0.9)


def contender(role: Any = "candidate", auc: float | None = 0.70, **changes: Any) -> Contender:
    names = {"candidate": "boosting", "baseline": "prior", "champion": "boosting"}
    blank = Contender(
        name=names[role],
        role=role,
        metrics={} if auc is None else {"roc_auc": auc, "log_loss": 0.4},
        rows=ROWS,
        rows_hash=HASH,
        predictions=SOUND,
        version=3 if role == "champion" else None,
        trained_on="2013-01-01--2013-04-01",
    )
    return replace(blank, **changes)


def evaluation(**changes: Any) -> Evaluation:
    return replace(
        Evaluation(
            model="flight_delay",
            task="binary_classification",
            metric="roc_auc",
            interval="2013-04-08--2013-04-15",
            entities=1_050,
            rows=ROWS,
            rows_hash=HASH,
            classes={"False": 800, "True": 200},
            not_finite_inputs={},
            candidate=contender(),
            baselines=[contender("baseline", 0.5), contender("baseline", 0.6, name="logistic")],
            champion=contender("champion", 0.69),
        ),
        **changes,
    )


def refusals(decision: GateDecision) -> dict[str, str]:
    return {result.gate: result.reason for result in decision.results if not result.passed}


def test_better_candidate_is_promoted_and_every_gate_says_why() -> None:
    decision = decide(evaluation(), Gates(at_least={"roc_auc": 0.6}, at_most={"log_loss": 0.5}))
    assert decision.promote
    assert decision.reasons == []
    assert decision.champion == 3
    assert [result.gate for result in decision.results] == [
        "label_coverage", "min_rows", "finite_inputs", "predictions", "at_least.roc_auc", "at_most.log_loss", "baseline",
        "champion",
    ]  # fmt: skip
    assert all(result.reason for result in decision.results)


def test_worse_candidate_is_not_promoted_and_the_reason_has_both_numbers() -> None:
    decision = decide(evaluation(champion=contender("champion", 0.75)), Gates())
    assert not decision.promote
    reason = refusals(decision)["champion"]
    assert "0.7" in reason
    assert "0.75" in reason
    assert "0.05 worse" in reason
    assert "champion version 3" in reason


def test_equal_candidate_does_not_replace_the_champion_unless_not_worse_suffices() -> None:
    same = evaluation(champion=contender("champion", 0.70))
    assert "champion" in refusals(decide(same, Gates()))
    assert decide(same, Gates.model_validate({"champion": {"mode": "not_worse"}})).promote


@pytest.mark.parametrize(
    ("mode", "margin", "champion", "passes"),
    [
        ("better", 0.01, 0.69, True),  # 0.7 - 0.69 is below 0.01 in binary
        ("better", 0.02, 0.69, False),
        ("better", 0.0, 0.699, True),
        ("not_worse", 0.01, 0.71, True),
        ("not_worse", 0.01, 0.72, False),
        ("not_worse", 0.0, 0.70, True),
    ],
)
def test_margin_against_the_champion(mode: str, margin: float, champion: float, passes: bool) -> None:
    gates = Gates.model_validate({"champion": {"mode": mode, "margin": margin}})
    assert decide(evaluation(champion=contender("champion", champion)), gates).promote is passes


def test_the_first_version_needs_no_champion() -> None:
    decision = decide(evaluation(champion=None), Gates())
    assert decision.promote
    assert decision.champion is None


def test_the_first_version_must_still_beat_the_baselines() -> None:
    decision = decide(evaluation(champion=None, candidate=contender(auc=0.55)), Gates())
    assert set(refusals(decision)) == {"baseline"}
    assert "logistic" in refusals(decision)["baseline"]  # the best one, not the first


def test_baseline_margin_is_kept() -> None:
    assert decide(evaluation(), Gates(baseline_margin=0.1)).promote
    assert "baseline" in refusals(decide(evaluation(), Gates(baseline_margin=0.11)))


def test_an_evaluation_without_baselines_is_refused() -> None:
    assert "baseline" in refusals(decide(evaluation(baselines=[]), Gates()))


def test_a_baseline_that_failed_refuses_since_it_might_have_been_the_best() -> None:
    failed = contender("baseline", None, predictions=None, error="out of memory")
    reason = refusals(decide(evaluation(baselines=[contender("baseline", 0.5), failed]), Gates()))["baseline"]
    assert "out of memory" in reason


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["candidate", "baseline", "champion"])
def test_a_metric_that_is_missing_or_not_finite_refuses(role: str, value: float | None) -> None:
    metrics = {} if value is None else {"roc_auc": value}
    broken: dict[str, Any] = {
        "candidate": {"candidate": contender(metrics=metrics)},
        "baseline": {"baselines": [contender("baseline", 0.5), contender("baseline", metrics=metrics)]},
        "champion": {"champion": contender("champion", metrics=metrics)},
    }[role]
    decision = decide(evaluation(**broken), Gates())
    assert not decision.promote
    assert any("roc_auc" in reason for reason in decision.reasons)


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize("bound", ["at_least", "at_most"])
def test_a_bound_on_a_metric_that_was_not_measured_refuses(bound: str, value: float | None) -> None:
    metrics = {"roc_auc": 0.7} | ({} if value is None else {"brier": value})
    decision = decide(evaluation(candidate=contender(metrics=metrics)), Gates.model_validate({bound: {"brier": 0.5}}))
    assert f"{bound}.brier" in refusals(decision)


def test_bounds_hold_at_their_very_value() -> None:
    assert decide(evaluation(), Gates(at_least={"roc_auc": 0.70}, at_most={"log_loss": 0.4})).promote
    assert set(refusals(decide(evaluation(), Gates(at_least={"roc_auc": 0.701}, at_most={"log_loss": 0.399})))) == {
        "at_least.roc_auc",
        "at_most.log_loss",
    }


def test_less_is_better_for_a_loss() -> None:
    def loss(value: float, role: Any) -> Contender:
        return contender(role, metrics={"log_loss": value})

    given = evaluation(
        metric="log_loss", candidate=loss(0.30, "candidate"), baselines=[loss(0.5, "baseline")], champion=loss(0.31, "champion")
    )
    assert decide(given, Gates(metric="log_loss")).promote
    worse = replace(given, champion=loss(0.29, "champion"))
    assert "0.01 worse" in refusals(decide(worse, Gates(metric="log_loss")))["champion"]


@pytest.mark.parametrize("role", ["candidate", "baseline", "champion"])
def test_a_comparison_on_different_rows_is_refused(role: str) -> None:
    other = "b" * 64
    changed: dict[str, Any] = {
        "candidate": {"candidate": contender(rows_hash=other)},
        "baseline": {"baselines": [contender("baseline", 0.5, rows_hash=other)]},
        "champion": {"champion": contender("champion", 0.6, rows_hash=other)},
    }[role]
    decision = decide(evaluation(**changed), Gates())
    assert not decision.promote
    assert any("other rows" in reason for reason in decision.reasons)


def test_rows_without_a_hash_are_comparable_with_nothing() -> None:
    nameless = [contender("baseline", 0.5, rows_hash="")]
    assert not decide(
        evaluation(rows_hash="", candidate=contender(rows_hash=""), baselines=nameless, champion=None), Gates()
    ).promote


def test_a_champion_that_learned_from_the_holdout_is_no_fair_rival() -> None:
    learned = contender("champion", 0.6, trained_on="2013-02-01--2013-04-10")
    assert set(refusals(decide(evaluation(champion=learned), Gates()))) == {"untouched_holdout"}
    assert "untouched_holdout" in refusals(decide(evaluation(champion=replace(learned, trained_on=None)), Gates()))


def test_too_few_labels_or_rows_refuse() -> None:
    decision = decide(evaluation(entities=1_300), Gates(min_rows=1_001, label_coverage=0.8))
    assert set(refusals(decision)) == {"label_coverage", "min_rows"}
    assert "76.9%" in refusals(decision)["label_coverage"]


def test_an_empty_holdout_refuses_rather_than_divides_by_zero() -> None:
    decision = decide(evaluation(entities=0, rows=0), Gates())
    assert {"label_coverage", "min_rows"} <= set(refusals(decision))


def test_infinite_features_refuse_and_are_named() -> None:
    decision = decide(evaluation(not_finite_inputs={"speed": 12}), Gates())
    assert refusals(decision) == {"finite_inputs": "features of the holdout are infinite: speed in 12 rows"}


@pytest.mark.parametrize(
    ("predictions", "word"),
    [
        (PredictionSummary(rows=ROWS, not_finite=4, distinct=900), "NaN"),
        (PredictionSummary(rows=ROWS, not_finite=0, distinct=1, minimum=0.2, mean=0.2, maximum=0.2), "0.2"),
        (PredictionSummary(rows=ROWS, not_finite=0, distinct=1), "the same"),
        (PredictionSummary(rows=ROWS - 1, not_finite=0, distinct=900), "999 predictions for 1,000 rows"),
        (None, "could not predict"),
    ],
)
def test_predictions_that_cannot_be_predictions_refuse(predictions: PredictionSummary | None, word: str) -> None:
    decision = decide(evaluation(candidate=contender(predictions=predictions)), Gates())
    assert word in refusals(decision)["predictions"]


def test_all_refusals_are_told_not_only_the_first() -> None:
    decision = decide(evaluation(rows=10, candidate=contender(auc=0.4, rows=10, predictions=None)), Gates())
    assert len(decision.reasons) >= 4


def test_evaluation_and_decision_survive_json() -> None:
    for given in (evaluation(), evaluation(champion=None), evaluation(candidate=contender(predictions=None, error="broken"))):
        assert Evaluation.from_json(json.loads(json.dumps(given.to_json()))) == given
        decision = decide(given, Gates())
        assert GateDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
