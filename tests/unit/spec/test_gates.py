"""What a gate says does not contradict itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.spec.late import GOOD, problems

CONTRADICTIONS = {
    "not worse by nothing": (
        "  champion: {mode: not_worse}\n",
        ["model.yaml:26: gates.champion: mode not_worse requires a margin above 0; say how much worse is still good enough"],
    ),
    "a test of nothing": (
        "  behaviour: {odd: {expect: same}}\n",
        ["model.yaml:26: gates.behaviour.odd: give either feature or function"],
    ),
    "a feature that does not change": (
        "  behaviour: {odd: {feature: distance}}\n",
        ["model.yaml:26: gates.behaviour.odd: give either add or value; it says how the feature changes"],
    ),
    "bounds that leave no room": (
        "  at_most: {roc_auc: 0.5}\n",
        ["model.yaml:25: gates.at_least.roc_auc: 0.6 is above the 0.5 of at_most"],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_what_to_write(case: str, tmp_path: Path) -> None:
    text, messages = CONTRADICTIONS[case]

    assert problems(tmp_path, GOOD + text) == messages
