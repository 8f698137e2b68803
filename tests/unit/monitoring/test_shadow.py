"""What a comparison of a champion with a version in its shadow means."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.monitoring.shadow import ShadowOutcome, ShadowVerdict, confidence_of_a_look, judge, with_online
from perennial.spec.monitoring import Shadow


@given(st.floats(0.5, 0.999), st.integers(1, 52))
def test_all_looks_together_are_wrong_no_more_often_than_one_was_to_be(confidence: float, windows: int) -> None:
    each = 1 - confidence_of_a_look(confidence, Shadow(windows=windows))
    assert (windows + 1) * each == pytest.approx(1 - confidence)


def said(gain: float, lower: float | None, problem: str | None = None, upper: float | None = None) -> str:
    return judge(
        metric="roc_auc", champion=2, challenger=1, rows=500, gain=gain, lower=lower, confidence=0.99, problem=problem,
        upper=upper,
    ).outcome  # fmt: skip


def test_only_what_is_sure_counts_against_the_champion() -> None:
    assert said(0.05, 0.01) == "champion_worse"
    assert said(0.05, 0.0) == said(0.05, -0.01) == said(-0.05, -0.07) == "no_difference"


def test_only_what_is_sure_counts_against_the_version_in_the_shadow() -> None:
    assert said(-0.05, -0.07, upper=-0.01) == "challenger_worse"
    assert said(-0.05, -0.07, upper=0.0) == said(-0.05, -0.07, upper=math.nan) == said(-0.05, -0.07) == "no_difference"
    assert said(-0.05, -0.07, "too few blocks", upper=-0.01) == "unknown"


@pytest.mark.parametrize(("gain", "lower"), [(math.nan, 0.01), (0.05, None), (0.05, math.nan), (math.inf, 0.01)])
def test_what_cannot_be_judged_is_unknown(gain: float, lower: float | None) -> None:
    assert said(gain, lower) == "unknown"
    assert said(0.05, 0.01, "too few blocks") == "unknown"


@pytest.mark.parametrize(
    ("batch", "online", "outcome"),
    [
        ("no_difference", "challenger_worse", "challenger_worse"),
        ("unknown", "challenger_worse", "challenger_worse"),
        ("champion_worse", "challenger_worse", "champion_worse"),
        ("challenger_worse", "no_difference", "challenger_worse"),
        ("no_difference", "champion_worse", "no_difference"),
        ("champion_worse", "no_difference", "champion_worse"),
        ("champion_worse", None, "champion_worse"),
    ],
)
def test_answers_that_scorers_wrote_speak_only_against_the_version_in_the_shadow(
    batch: ShadowOutcome, online: ShadowOutcome | None, outcome: str
) -> None:
    answered = None if online is None else ShadowVerdict(online, "online")
    assert with_online(ShadowVerdict(batch, "batch"), answered).outcome == outcome
