"""What ``training`` and ``cost`` say does not contradict itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.spec.training import Training
from perennial.spec.types import ALL
from tests.unit.spec.late import GOOD, problems

CONTRADICTIONS = {
    "a validation as long as the window": (
        "training: {window: 2w, validation: 14d}\n",
        ["model.yaml:26: training: validation is the newest part of window; it must be shorter"],
    ),
    "a validation as long as one of the windows": (
        "training: {window: [all, 14d], validation: 14d}\n",
        ["model.yaml:26: training: validation is the newest part of window; it must be shorter"],
    ),
    "a window that is no length of time": (
        "training: {window: [90d, ever]}\n",
        ["model.yaml:26: training.window: write a whole number and a unit: 90m, 2h, 28d or 12w"],
    ),
    "a window that is named twice": (
        "training: {window: [14w, 98d]}\n",
        ["model.yaml:26: training.window: a length of time is named twice"],
    ),
    "no window": (
        "training: {window: []}\n",
        ["model.yaml:26: training.window: write a length of time, all, or a list of them: [90d, 180d, all]"],
    ),
    "two kinds of costs": (
        "cost: {outcomes: {}, matrix: {yes: {no: 1}}}\n",
        [
            "model.yaml:26: cost.matrix: is not for binary_classification; give outcomes",
            "model.yaml:26: cost: give exactly one of outcomes, matrix and function",
        ],
    ),
    "a threshold of no outcomes": (
        "cost:\n  function: model:cost\n  threshold: 0.5\n",
        ["model.yaml:28: cost.threshold: requires outcomes; give their costs, or remove threshold"],
    ),
    "right answers that cost as much as wrong ones": (
        "cost: {outcomes: {true_positive: 1, true_negative: 2}}\n",
        [
            "model.yaml:26: cost.outcomes: false_positive must cost more than true_negative; otherwise there is nothing to "
            "decide",
            "model.yaml:26: cost.outcomes: false_negative must cost more than true_positive; otherwise there is nothing to "
            "decide",
        ],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_what_to_write(case: str, tmp_path: Path) -> None:
    text, messages = CONTRADICTIONS[case]

    assert problems(tmp_path, GOOD + text, code="def cost(): ...") == messages


def test_a_window_is_written_as_it_was_read() -> None:
    for written in ("90d", "all", ["90d", "180d", "all"]):
        training = Training.model_validate({"window": written})
        assert training.model_dump(mode="json")["window"] == written
        assert list(training.windows) == ([written] if isinstance(written, str) else written)
    assert training.longest == ALL
