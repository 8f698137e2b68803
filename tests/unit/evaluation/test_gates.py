"""What a candidate must show before it may become champion."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.evaluation.gates import decide, holm, unanswered
from perennial.evidence.decision import GateDecision
from perennial.evidence.evaluation import (
    Behaved,
    ChampionProbes,
    Contender,
    Evaluation,
    GainOverChampion,
    Groups,
    Operation,
    PredictionSummary,
    Refit,
    Refresh,
    Robustness,
    Slice,
    Slices,
)
from perennial.evidence.parity import FEWEST, Consistency, Parity
from perennial.evidence.training import StoredModel
from perennial.spec.gates import Gates
from tests.unit.synthetic import with_evidence

ROWS, HASH = 1_000, "a" * 64
SOUND = PredictionSummary(rows=ROWS, not_finite=0, distinct=900, minimum=0.01, mean=0.2, maximum=0.9)


def contender(role: Any = "candidate", auc: float | None = 0.70, **changes: Any) -> Contender:
    names = {"candidate": "boosting", "baseline": "prior", "champion": "boosting"}
    blank = Contender(
        name=names[role],
        role=role,
        metrics={} if auc is None else {"roc_auc": auc, "log_loss": 0.4, "brier": 0.1, "calibration_error": 0.02},
        rows=ROWS,
        rows_hash=HASH,
        predictions=SOUND,
        version=3 if role == "champion" else None,
        trained_on="2013-01-01--2013-04-01",
    )
    return replace(blank, **changes)


def bare(**changes: Any) -> Evaluation:
    """An evaluation as it was made before there was evidence beside the metrics."""
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


EVIDENCE = ("as_of", "training_classes", "training_coverage", "comparison", "slices", "groups", "robustness", "behaviour",
            "operation", "alone", "without_values")  # fmt: skip


def evaluation(*, width: float = 0.0005, **changes: Any) -> Evaluation:
    """One in which nothing is wrong but what ``changes`` says; the gain is sure to within ``width``."""
    evidence = {name: changes.pop(name) for name in (*EVIDENCE, "refit") if name in changes}
    return replace(with_evidence(bare(**changes), width=width), **evidence)


def refusals(decision: GateDecision) -> dict[str, str]:
    return {result.gate: result.reason for result in decision.results if not result.passed}


def test_better_candidate_is_promoted_and_every_gate_says_why() -> None:
    decision = decide(evaluation(), Gates(at_least={"roc_auc": 0.6}, at_most={"log_loss": 0.5}))
    assert decision.promote
    assert decision.reasons == decision.refused_by == []
    assert decision.champion == 3
    assert [result.gate for result in decision.results] == [
        "label_coverage", "mature_labels", "min_rows", "finite_inputs", "feature_values", "classes", "same_rows",
        "untouched_holdout", "fresh_training", "leak", "predictions", "prior", "at_least.roc_auc", "at_most.log_loss",
        "baseline", "champion", "slices", "calibration.error", "calibration.brier", "robustness.noise", "robustness.missing",
        "operation.answers", "operation.features", "operation.latency", "operation.size",
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


NOT_WORSE = Gates.model_validate({"champion": {"mode": "not_worse", "margin": 0.01}})


def test_equal_candidate_does_not_replace_the_champion_unless_not_worse_suffices() -> None:
    same = evaluation(champion=contender("champion", 0.70))
    assert "champion" in refusals(decide(same, Gates()))
    assert decide(same, NOT_WORSE).promote


def test_a_copy_of_the_champion_is_called_one() -> None:
    given = evaluation(champion=contender("champion", 0.70))
    assert given.comparison is not None
    copy = replace(given, comparison=replace(given.comparison, identical=1.0))
    assert "predicts the same as champion version 3" in refusals(decide(copy, Gates()))["champion"]
    assert decide(copy, NOT_WORSE).promote


@pytest.mark.parametrize(
    ("mode", "margin", "champion", "width", "passes"),
    [
        ("better", 0.0, 0.69, 0.009, True),
        ("better", 0.0, 0.69, 0.011, False),  # better, but not surely
        ("better", 0.005, 0.69, 0.004, True),
        ("better", 0.005, 0.69, 0.006, False),
        ("not_worse", 0.01, 0.705, 0.004, True),
        ("not_worse", 0.01, 0.705, 0.006, False),  # perhaps less than the margin worse, but not surely
        ("not_worse", 0.01, 0.72, 0.001, False),
    ],
)
def test_the_whole_interval_of_the_gain_must_clear_the_margin(
    mode: str, margin: float, champion: float, width: float, passes: bool
) -> None:
    gates = Gates.model_validate({"champion": {"mode": mode, "margin": margin}})
    decision = decide(evaluation(champion=contender("champion", champion), width=width), gates)
    assert decision.promote is passes
    assert decision.refused_by == ([] if passes else ["champion"])


def test_a_comparison_that_chance_cannot_be_judged_of_refuses_with_what_to_do() -> None:
    given = evaluation()
    assert given.comparison is not None
    few = replace(given.comparison, lower=None, low=None, high=None, upper=None, problem="3 blocks: make them shorter")
    assert "make them shorter" in refusals(decide(replace(given, comparison=few), Gates()))["champion"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf * -1])
def test_a_bound_that_is_no_number_refuses(value: float | None) -> None:
    given = evaluation()
    assert given.comparison is not None
    assert "champion" in refusals(decide(replace(given, comparison=replace(given.comparison, low=value)), Gates()))
    assert "champion" in refusals(decide(replace(given, comparison=None), Gates()))


def test_the_first_version_needs_no_champion() -> None:
    decision = decide(evaluation(champion=None), Gates())
    assert decision.promote
    assert decision.champion is None


def test_the_first_version_must_still_beat_the_baselines() -> None:
    decision = decide(evaluation(champion=None, candidate=contender(auc=0.55)), Gates())
    assert decision.refused_by == ["baseline"]
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
    broken: dict[str, dict[str, Any]] = {
        "candidate": {"candidate": contender(metrics=metrics)},
        "baseline": {"baselines": [contender("baseline", 0.5), contender("baseline", metrics=metrics)]},
        "champion": {"champion": contender("champion", metrics=metrics)},
    }
    decision = decide(evaluation(**broken[role]), Gates())
    assert not decision.promote
    assert any("roc_auc" in reason for reason in decision.reasons)


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize("bound", ["at_least", "at_most"])
def test_a_bound_on_a_metric_that_was_not_measured_refuses(bound: str, value: float | None) -> None:
    metrics = {"roc_auc": 0.7, "calibration_error": 0.01} | ({} if value is None else {"brier": value})
    decision = decide(evaluation(candidate=contender(metrics=metrics)), Gates.model_validate({bound: {"brier": 0.5}}))
    assert f"{bound}.brier" in refusals(decision)


def test_bounds_hold_at_their_very_value() -> None:
    assert decide(evaluation(), Gates(at_least={"roc_auc": 0.70}, at_most={"log_loss": 0.4})).promote
    first = evaluation(champion=None)
    assert set(refusals(decide(first, Gates(at_least={"roc_auc": 0.701}, at_most={"log_loss": 0.399})))) == {
        "at_least.roc_auc",
        "at_most.log_loss",
    }


# --- bounds that the champion misses by more -------------------------------------------------------------------------


def worse_inputs(*, noise: float, clean: float = 0.7) -> Robustness:
    return Robustness(ROWS, clean, 0.5, {"x": noise}, {"x": clean}, {})


#: Gates that need no champion, each with what the candidate and a worse champion are measured to be. Both fail it.
MISSED: dict[str, tuple[dict[str, Any], dict[str, Any], ChampionProbes]] = {
    "at_least.average_precision": ({"at_least": {"average_precision": 0.5}}, {}, ChampionProbes()),
    "at_most.log_loss": ({"at_most": {"log_loss": 0.39}}, {}, ChampionProbes()),
    "calibration.error": ({"calibration": {"error": 0.01}}, {}, ChampionProbes()),
    "robustness.noise": ({}, {"robustness": worse_inputs(noise=0.66)}, ChampionProbes(robustness=worse_inputs(noise=0.6))),
    "behaviour.rain": (
        {"behaviour": {"rain": {"feature": "x", "add": 1, "expect": "higher"}}},
        {"behaviour": {"rain": Behaved(0.9, ROWS)}},
        ChampionProbes(behaviour={"rain": Behaved(0.8, ROWS)}),
    ),
    "fairness.origin.selection_rate": (
        {"fairness": [{"column": "origin"}]},
        {"groups": [Groups("origin", "selection_rate", 0.5, {"a": 0.5, "b": 0.3}, [])]},
        ChampionProbes(groups=[Groups("origin", "selection_rate", 0.5, {"a": 0.5, "b": 0.2}, [])]),
    ),
}


OURS = {"roc_auc": 0.70, "average_precision": 0.4, "log_loss": 0.4, "brier": 0.1, "calibration_error": 0.02}
WORSE = {"roc_auc": 0.69, "average_precision": 0.3, "log_loss": 0.41, "brier": 0.1, "calibration_error": 0.03}


def missed(gate: str, *, width: float = 0.0005, **changes: Any) -> tuple[Evaluation, Gates]:
    gates, measured, probes = MISSED[gate]
    given = {"candidate": contender(metrics=OURS), "champion": contender("champion", metrics=WORSE), **measured, **changes}
    return replace(evaluation(width=width, **given), champion_probes=probes), Gates.model_validate(gates)


@pytest.mark.parametrize("gate", MISSED)
def test_a_gate_that_the_champion_fails_by_more_does_not_refuse_an_improvement_and_says_so(gate: str) -> None:
    decision = decide(*missed(gate))
    assert decision.promote, decision.reasons
    [reason] = [result.reason for result in decision.results if result.gate == gate]
    assert "This does not refuse the improvement, since champion version 3 fails the gate by more: " in reason


@pytest.mark.parametrize("gate", MISSED)
@pytest.mark.parametrize(
    "but",
    [
        pytest.param({"width": 0.02}, id="better, but not surely"),
        pytest.param({"champion": None}, id="no champion"),
        pytest.param({"champion": contender("champion", 0.69, unusable="its files are gone")}, id="a champion out of use"),
    ],
)
def test_without_a_sure_improvement_it_refuses(gate: str, but: dict[str, Any]) -> None:
    assert gate in decide(*missed(gate, **but)).refused_by


@pytest.mark.parametrize("gate", MISSED)
def test_it_refuses_if_the_champion_passes_the_gate_or_fails_it_as_much(gate: str) -> None:
    given, gates = missed(gate, champion=contender("champion", metrics={**OURS, "roc_auc": 0.69}))
    as_much = ChampionProbes(given.groups, given.robustness, given.behaviour)
    passes = ChampionProbes(
        [Groups("origin", "selection_rate", 0.5, {"a": 0.5, "b": 0.5}, [])],
        worse_inputs(noise=0.7),
        {"rain": Behaved(1.0, ROWS)},
    )
    for probes in (as_much, passes):
        assert gate in decide(replace(given, champion_probes=probes), gates).refused_by


@pytest.mark.parametrize("gate", ["robustness.noise", "behaviour.rain", "fairness.origin.selection_rate"])
def test_it_refuses_if_the_champion_was_not_measured(gate: str) -> None:
    given, gates = missed(gate)
    alone = replace(given, champion_probes=None)
    assert gate in decide(alone, gates).refused_by
    assert unanswered(alone, gates)
    assert not unanswered(given, gates)


def test_a_champion_that_is_worse_than_a_constant_keeps_no_successor_out() -> None:
    given, gates = missed("robustness.noise")
    hopeless = ChampionProbes(robustness=worse_inputs(noise=0.4, clean=0.45))
    decision = decide(replace(given, champion_probes=hopeless), gates)
    assert decision.promote, decision.reasons


@pytest.mark.parametrize("gate", [gate for gate in MISSED if gate.startswith(("robustness", "behaviour", "fairness"))])
def test_a_refresh_is_not_refused_by_a_gate_that_the_model_before_it_fails_too(gate: str) -> None:
    given, gates = missed(gate)
    refresh = Refresh(champion=3, reference=3, uninformed=0.5, skill=0.4, predictions=SOUND)
    refreshed = replace(given, refresh=refresh)
    assert gate not in decide(refreshed, gates).refused_by
    [reason] = [result.reason for result in decide(refreshed, gates).results if result.gate == gate]
    assert "This does not refuse the refresh, since the model before it fails the gate too: " in reason
    passes = ChampionProbes(
        [Groups("origin", "selection_rate", 0.5, {"a": 0.5, "b": 0.5}, [])],
        worse_inputs(noise=0.7),
        {"rain": Behaved(1.0, ROWS)},
    )
    for probes in (None, passes):
        assert gate in decide(replace(refreshed, champion_probes=probes), gates).refused_by


# --- the same recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", [Gates(), NOT_WORSE])
def test_the_champions_own_recipe_is_refused_without_blame(gates: Gates) -> None:
    given = evaluation(candidate=contender(recipe="a"), champion=contender("champion", 0.70, recipe="a"))
    decision = decide(given, gates)
    assert decision.refused_by == ["champion"]
    assert "A refresh brings the same recipe newer rows" in decision.reasons[0]
    assert decision.same_recipe
    assert not decide(replace(given, without_values=["x"]), gates).same_recipe  # something else is wrong with it


def test_a_decision_says_which_recipe_it_was_made_against() -> None:
    given = evaluation(candidate=contender(recipe="b"), champion=contender("champion", 0.69, recipe="a"))
    decision = decide(given, Gates())
    assert decision.promote
    assert (decision.champion_recipe, decision.same_recipe) == ("a", False)


def test_less_is_better_for_a_loss() -> None:
    def loss(value: float, role: Any) -> Contender:
        return contender(role, metrics={"log_loss": value, "brier": 0.1, "calibration_error": 0.02})

    given = evaluation(
        metric="log_loss", candidate=loss(0.30, "candidate"), baselines=[loss(0.5, "baseline")], champion=loss(0.31, "champion")
    )
    assert decide(given, Gates(metric="log_loss")).promote
    worse = with_evidence(replace(given, champion=loss(0.29, "champion")))
    assert "0.01 worse" in refusals(decide(worse, Gates(metric="log_loss")))["champion"]


@pytest.mark.parametrize("role", ["candidate", "baseline", "champion"])
def test_a_comparison_on_different_rows_is_refused(role: str) -> None:
    other = "b" * 64
    changed: dict[str, dict[str, Any]] = {
        "candidate": {"candidate": contender(rows_hash=other)},
        "baseline": {"baselines": [contender("baseline", 0.5, rows_hash=other)]},
        "champion": {"champion": contender("champion", 0.6, rows_hash=other)},
    }
    decision = decide(evaluation(**changed[role]), Gates())
    assert "other rows" in refusals(decision)["same_rows"]


def test_rows_without_a_hash_are_comparable_with_nothing() -> None:
    nameless = [contender("baseline", 0.5, rows_hash="")]
    assert not decide(
        evaluation(rows_hash="", candidate=contender(rows_hash=""), baselines=nameless, champion=None), Gates()
    ).promote


def test_a_champion_that_learned_from_the_holdout_is_no_fair_rival() -> None:
    learned = contender("champion", 0.6, trained_on="2013-02-01--2013-04-10")
    assert decide(evaluation(champion=learned), Gates()).refused_by == ["untouched_holdout"]
    assert "untouched_holdout" in refusals(decide(evaluation(champion=replace(learned, trained_on=None)), Gates()))


def test_a_candidate_that_learned_from_the_holdout_is_refused() -> None:
    learned = contender(trained_on="2013-02-01--2013-04-10")
    assert "boosting was trained on" in refusals(decide(evaluation(candidate=learned), Gates()))["untouched_holdout"]


def test_a_candidate_of_stale_rows_is_refused_with_the_days_between() -> None:
    stale = contender(trained_on="2012-12-01--2013-03-01")
    decision = decide(evaluation(candidate=stale), Gates())
    assert decision.refused_by == ["fresh_training"]
    assert "38 days" in decision.reasons[0]


def test_too_few_labels_or_rows_refuse() -> None:
    decision = decide(evaluation(entities=1_300), Gates(min_rows=1_001, label_coverage=0.8))
    assert decision.refused_by == ["label_coverage", "min_rows"]
    assert "76.9%" in refusals(decision)["label_coverage"]


def test_an_empty_holdout_refuses_rather_than_divides_by_zero() -> None:
    decision = decide(evaluation(entities=0, rows=0), Gates())
    assert {"label_coverage", "min_rows"} <= set(refusals(decision))


def test_infinite_features_refuse_and_are_named() -> None:
    decision = decide(evaluation(not_finite_inputs={"speed": 12}), Gates())
    assert refusals(decision) == {"finite_inputs": "features of the holdout are infinite: speed in 12 rows"}


@pytest.mark.parametrize(
    ("without", "told"),
    [
        (["quantity"], "no training row has a value of quantity: find out why with `perennial check"),
        (["a", "b"], "no training row has a value of a, b: "),
        (None, "it was not looked at whether each feature has training values; evaluate again"),
    ],
)
def test_a_candidate_that_learned_without_a_feature_is_refused(without: list[str] | None, told: str) -> None:
    decision = decide(evaluation(without_values=without), Gates())

    assert list(refusals(decision)) == ["feature_values"]
    assert refusals(decision)["feature_values"].startswith(told)


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


# --- the other evidence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", EVIDENCE)
def test_evidence_that_is_missing_refuses(part: str) -> None:
    gates = Gates.model_validate(
        {
            "slices": {"columns": ["origin"]},
            "fairness": [{"column": "origin"}],
            "behaviour": {"later_is_worse": {"feature": "hour", "add": 1, "expect": "higher"}},
        }
    )
    whole: dict[str, Any] = {
        "slices": Slices([one_slice()], []),
        "groups": [Groups("origin", "selection_rate", 0.5, {"JFK": 0.2, "LGA": 0.19}, [])],
        "behaviour": {"later_is_worse": Behaved(0.99, 100)},
    }
    assert decide(evaluation(**whole), gates).promote
    without = decide(evaluation(**{**whole, part: None}), gates)
    assert not without.promote


def test_an_evaluation_of_before_there_was_evidence_reads_back_and_is_refused() -> None:
    old = {name: value for name, value in bare().to_json().items() if name not in EVIDENCE}
    for contender_of in (old["candidate"], old["champion"], *old["baselines"]):
        del contender_of["intervals"], contender_of["predictions"]["digest"]
    read = Evaluation.from_json(json.loads(json.dumps(old)))
    assert read == bare()
    assert not decide(read, Gates()).promote


def one_slice(value: str = "JFK", gain: float = -0.01, error: float = 0.01, **changes: Any) -> Slice:
    return replace(Slice("origin", value, 500, 0.7 + gain, 0.7, gain, error, 28), **changes)


SLICED = Gates.model_validate({"slices": {"columns": ["origin"], "margin": 0.02}})


def test_a_slice_that_surely_falls_refuses_and_is_named_with_its_numbers() -> None:
    slices = Slices([one_slice(), one_slice("LGA", -0.08)], ["origin EWR (12 rows)"])
    decision = decide(evaluation(slices=slices), SLICED)
    assert decision.refused_by == ["slices"]
    assert "origin LGA" in decision.reasons[0]
    assert "0.08 worse on 500 rows" in decision.reasons[0]
    assert "JFK" not in decision.reasons[0]
    assert "EWR (12 rows)" in decision.reasons[0]


def test_the_more_slices_are_looked_at_the_surer_a_fall_must_be() -> None:
    fallen = one_slice("LGA", -0.041)  # 2.1 standard errors below the margin
    assert "slices" in refusals(decide(evaluation(slices=Slices([fallen], [])), SLICED))
    many = [fallen, *(one_slice(f"airport {number}", 0.0) for number in range(20))]
    assert decide(evaluation(slices=Slices(many, [])), SLICED).promote


def test_slices_of_which_none_can_be_judged_refuse_and_say_what_to_change() -> None:
    none = Slices([], ["origin EWR (12 rows)"])
    assert "lower gates.slices.min_rows" in refusals(decide(evaluation(slices=none), SLICED))["slices"]
    broken = Slices([one_slice(error=math.nan)], [])
    assert "not a number" in refusals(decide(evaluation(slices=broken), SLICED))["slices"]
    assert decide(evaluation(champion=None, slices=None), SLICED).promote


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.5))
@settings(max_examples=100)
def test_holm_rejects_no_less_than_bonferroni_and_no_more_than_one_test_each(values: list[float], alpha: float) -> None:
    rejected = holm(values, alpha)
    for p_value, is_rejected in zip(values, rejected, strict=True):
        assert is_rejected or p_value > alpha / len(values)
        assert not is_rejected or p_value <= alpha
    kept = [p for p, is_rejected in zip(values, rejected, strict=True) if not is_rejected]
    gone = [p for p, is_rejected in zip(values, rejected, strict=True) if is_rejected]
    assert not kept or not gone or max(gone) <= min(kept)


def test_holm_of_a_known_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]


FAIR = Gates.model_validate({"fairness": [{"column": "origin", "rate": "true_positive_rate"}]})


@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ({"JFK": 0.50, "LGA": 0.39}, "a ratio of 0.78; at least 0.8"),
        ({"JFK": 0.0, "LGA": 0.0}, "choose another"),
        ({"JFK": 0.5}, "fewer than two groups"),
        ({"JFK": 0.5, "LGA": math.nan}, "fewer than two groups"),
    ],
)
def test_groups_that_are_treated_unlike_refuse(rates: dict[str, float], word: str) -> None:
    groups = [Groups("origin", "true_positive_rate", 0.3, rates, ["EWR (3 rows)"])]
    assert word in refusals(decide(evaluation(groups=groups), FAIR))["fairness.origin.true_positive_rate"]


def test_groups_that_are_treated_alike_pass_at_the_very_ratio() -> None:
    groups = [Groups("origin", "true_positive_rate", 0.3, {"JFK": 0.5, "LGA": 0.4}, [])]
    assert decide(evaluation(groups=groups), FAIR).promote


def test_probabilities_that_do_not_mean_what_they_say_refuse() -> None:
    metrics = {"roc_auc": 0.7, "brier": 0.12, "calibration_error": 0.3}
    decision = decide(evaluation(candidate=contender(metrics=metrics)), Gates())
    assert decision.refused_by == ["calibration.error", "calibration.brier"]
    lenient = Gates.model_validate({"calibration": {"error": None, "brier_margin": 0.02}})
    assert decide(evaluation(candidate=contender(metrics=metrics)), lenient).promote
    assert decide(evaluation(champion=None), Gates()).promote


@pytest.mark.parametrize(("mean", "passes"), [(0.2, True), (0.59, True), (0.61, False), (0.06, False), (None, False)])
def test_a_mean_prediction_far_from_the_share_learned_from_refuses(mean: float | None, passes: bool) -> None:
    decision = decide(evaluation(candidate=contender(predictions=replace(SOUND, mean=mean))), Gates())
    assert decision.refused_by == ([] if passes else ["prior"])


@pytest.mark.parametrize(
    ("found", "gate", "word"),
    [
        (Robustness(100, 0.7, 0.5, {"x": 0.67, "y": 0.69}, {}, {}), "noise", "x, the worst of 2 features"),
        (Robustness(100, 0.7, 0.5, {}, {"x": 0.62}, {}), "missing", "40.0% of its lead"),
        (Robustness(100, 0.7, 0.5, {}, {}, {"missing x": "Input contains NaN"}), "missing", "Input contains NaN"),
        (Robustness(100, 0.45, 0.5, {"x": 0.45}, {}, {}), "noise", "has no lead that worse inputs could reduce"),
        (Robustness(100, 0.7, 0.5, {"x": math.nan}, {}, {}), "noise", "not a number"),
    ],
)
def test_a_candidate_that_does_not_bear_worse_inputs_is_refused(found: Robustness, gate: str, word: str) -> None:
    assert word in refusals(decide(evaluation(robustness=found), Gates()))[f"robustness.{gate}"]


def test_losses_are_shares_of_the_lead_whatever_the_metric_measures() -> None:
    def rmse(value: float, role: Any = "candidate") -> Contender:
        return contender(role, metrics={"rmse": value})

    given = evaluation(
        task="regression", metric="rmse", classes={}, candidate=rmse(100.0), baselines=[rmse(900.0, "baseline")],
        champion=None, robustness=Robustness(100, 100.0, 900.0, {"x": 170.0}, {"x": 330.0}, {}),
    )  # fmt: skip
    assert decide(given, Gates()).promote
    worse = replace(given, robustness=Robustness(100, 100.0, 900.0, {"x": 190.0}, {"x": 400.0}, {}))
    assert decide(worse, Gates()).refused_by == ["robustness.noise", "robustness.missing"]


BEHAVES = Gates.model_validate(
    {
        "behaviour": {
            "rain_delays": {"feature": "rain", "add": 1, "expect": "higher", "share": 0.9},
            "own_test": {"function": "model:check"},
        }
    }
)


def test_behaviour_is_judged_by_the_share_of_rows_or_by_the_tests_own_word() -> None:
    fine = {"rain_delays": Behaved(0.9, 100), "own_test": Behaved(None, 100)}
    assert decide(evaluation(behaviour=fine), BEHAVES).promote
    wrong = {"rain_delays": Behaved(0.89, 100), "own_test": Behaved(None, 100, "JFK is never late")}
    decision = decide(evaluation(behaviour=wrong), BEHAVES)
    assert decision.refused_by == ["behaviour.rain_delays", "behaviour.own_test"]
    assert "JFK is never late" in decision.reasons[1]
    assert "with rain +1, predictions for 89.0% of 100 rows not fall" in decision.reasons[0]


WORKING = Operation(rows=100, difference=0.0, same_features=True, latency=5.0, load_seconds=0.5, artifact_mb=0.1)


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"difference": 1e-3}, "answers"),
        ({"difference": None}, "answers"),
        ({"difference": math.nan}, "answers"),
        ({"rows": 0}, "answers"),
        ({"same_features": False}, "features"),
        ({"latency": 3_000.0}, "latency"),
        ({"latency": math.nan}, "latency"),
        ({"latency": None}, "latency"),
        ({"artifact_mb": 501.0}, "size"),
        ({"artifact_mb": None}, "size"),
    ],
)
def test_a_version_that_cannot_be_put_to_work_is_refused(changes: dict[str, Any], gate: str) -> None:
    assert decide(evaluation(operation=WORKING), Gates()).promote
    assert decide(evaluation(operation=replace(WORKING, **changes)), Gates()).refused_by == [f"operation.{gate}"]


REFIT = Refit(
    stored=StoredModel("m-1", {"model.skops": HASH}), interval="2013-01-01--2013-04-15", rows=2 * ROWS, content=HASH,
    agreement=0.95, digest=HASH, operation=WORKING,
)  # fmt: skip


def test_a_refit_that_works_and_agrees_passes() -> None:
    decision = decide(evaluation(refit=REFIT), Gates(), refit=True)
    assert decision.promote
    assert [result.gate for result in decision.results][-5:] == [
        "refit.agreement", "refit.answers", "refit.features", "refit.latency", "refit.size",
    ]  # fmt: skip


@pytest.mark.parametrize("agreement", [None, math.nan, 0.49, -0.9])
def test_a_refit_that_is_another_model_than_the_judged_one_is_refused(agreement: float | None) -> None:
    decision = decide(evaluation(refit=replace(REFIT, agreement=agreement)), Gates(), refit=True)
    assert decision.refused_by == ["refit.agreement"]


def test_a_refit_that_does_not_work_is_refused() -> None:
    decision = decide(evaluation(refit=replace(REFIT, operation=replace(WORKING, difference=0.1))), Gates(), refit=True)
    assert decision.refused_by == ["refit.answers"]
    assert "refit.size" in decide(evaluation(refit=replace(REFIT, operation=None)), Gates(), refit=True).refused_by


def test_a_candidate_that_was_not_fitted_again_is_refused_if_it_had_to_be() -> None:
    assert "evaluate again" in refusals(decide(evaluation(), Gates(), refit=True))["refit.agreement"]
    assert decide(evaluation(), Gates()).promote


def test_a_clean_process_that_failed_says_why() -> None:
    decision = decide(evaluation(operation=Operation(problem="no module named secret")), Gates())
    assert len(decision.refused_by) == 4
    assert all("no module named secret" in reason for reason in decision.reasons)


@pytest.mark.parametrize(("score", "passes"), [(0.97, True), (0.98, True), (0.981, False), (math.nan, False)])
def test_a_feature_that_alone_nearly_tells_the_label_refuses(score: float, passes: bool) -> None:
    decision = decide(evaluation(alone={"x": 0.6, "arrival_minute": score}), Gates())
    assert decision.refused_by == ([] if passes else ["leak"])
    assert passes or "arrival_minute" in decision.reasons[0]


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"classes": {"false": 1_000}}, "classes"),
        ({"classes": {"false": 1_000, "true": 0}}, "classes"),
        ({"training_classes": {"true": 300}}, "classes"),
        ({"training_coverage": 0.7}, "mature_labels"),
        ({"training_coverage": math.nan}, "mature_labels"),
        ({"as_of": "2013-04-14T00:00:00+00:00"}, "mature_labels"),
    ],
)
def test_labels_must_be_mature_and_of_both_kinds(changes: dict[str, Any], gate: str) -> None:
    assert gate in refusals(decide(evaluation(**changes), Gates()))


def test_evaluation_and_decision_survive_json() -> None:
    sliced = evaluation(
        slices=Slices([one_slice()], ["origin EWR (12 rows)"]),
        groups=[Groups("origin", "selection_rate", 0.5, {"JFK": 0.2}, [])],
        behaviour={"x": Behaved(0.5, 10)},
        comparison=GainOverChampion(0.1, 0.0, 0.2, 0.01, 0.19, 0.0, 7, "1d", 1_000, 1, 0.95),
    )
    broken = evaluation(candidate=contender(predictions=None, error="broken"))
    for one in (bare(), evaluation(), evaluation(champion=None), sliced, broken):
        assert Evaluation.from_json(json.loads(json.dumps(one.to_json()))) == one
        decision = decide(one, Gates())
        assert GateDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision


# --- parity ----------------------------------------------------------------------------------------------------------


def parity(**changes: Any) -> Parity:
    features = {"x": Consistency(equal=97, different=3), "kind": Consistency(equal=93, missing=7), "y": Consistency(equal=100)}
    return replace(Parity(bound=0.95, interval="2013-04-06", rows=100, equal=93, features=features), **changes)


def judged_with(measured: Parity | None) -> GateDecision:
    return decide(replace(evaluation(), parity=measured), Gates())


def test_a_candidate_is_refused_while_what_is_served_differs_from_what_it_learned_from() -> None:
    decision = judged_with(parity())
    assert decision.refused_by == ["parity"]
    [reason] = decision.reasons
    assert "what is served differs from what is trained on" in reason
    assert "93.0%" in reason
    assert "Worst: kind (7 missing), x (3 different)" in reason
    assert "y" not in reason.partition("Worst: ")[2].partition(". ")[0].split(", ")


@pytest.mark.parametrize("measured", [parity(equal=95), parity(equal=100), parity(bound=0.5), parity(bound=0.0, equal=0)])
def test_what_is_served_well_enough_passes(measured: Parity) -> None:
    decision = judged_with(measured)
    assert decision.promote
    assert next(result for result in decision.results if result.gate == "parity").reason.startswith("of 100 rows")


@pytest.mark.parametrize("measured", [parity(rows=0, equal=0, interval=""), parity(rows=FEWEST - 1, equal=0)])
def test_what_was_not_measured_yet_passes_and_says_so(measured: Parity) -> None:
    decision = judged_with(measured)
    assert decision.promote
    reason = next(result for result in decision.results if result.gate == "parity").reason
    assert "not measured" in reason or "only 19 rows" in reason


@pytest.mark.parametrize(
    "measured",
    [
        parity(bound=math.nan), parity(bound=math.inf), parity(bound=-0.1), parity(bound=1.1), parity(equal=101),
        parity(equal=-1), parity(rows=-5, equal=-5), parity(damaged="no JSON"), Parity.from_json({"rows": 100, "equal": 100}),
    ],
)  # fmt: skip
def test_a_damaged_measure_refuses(measured: Parity) -> None:
    assert judged_with(measured).refused_by == ["parity"]


def test_a_model_that_is_not_asked_online_has_no_gate_of_parity() -> None:
    assert "parity" not in [result.gate for result in judged_with(None).results]
    assert Evaluation.from_json(evaluation().to_json()).parity is None
    kept = replace(evaluation(), parity=parity())
    assert Evaluation.from_json(kept.to_json()) == kept
