"""Every problem is reported at once, by its line, once, and with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.spec.late import GOOD, changed, problems

BROKEN = {
    "a text that is a number": (
        changed("owner: operations", "owner: 3.10"),
        ["model.yaml:2: owner: must be a text, this is 3.1; put it in quotes"],
    ),
    "a text that is a truth": (
        changed("owner: operations", "owner: true"),
        ["model.yaml:2: owner: must be a text, this is true; put it in quotes"],
    ),
    "a number that is a text": (
        changed("min: 0", 'min: "0"'),
        ['model.yaml:16: tables.trips.columns.minutes.min: must be a number, this is "0"'],
    ),
    ".nan as a threshold": (
        changed("{roc_auc: 0.6}", "{roc_auc: .nan}"),
        ["model.yaml:25: gates.at_least.roc_auc: must be a finite number, not NaN or infinity"],
    ),
    "infinity as a threshold": (
        changed("{roc_auc: 0.6}", "{roc_auc: -.inf}"),
        ["model.yaml:25: gates.at_least.roc_auc: must be a finite number, not NaN or infinity"],
    ),
    "a threshold beyond a float": (
        changed("{roc_auc: 0.6}", "{roc_auc: 1e999}"),
        ['model.yaml:25: gates.at_least.roc_auc: must be a number, this is "1e999"'],
    ),
    "an unknown key": (
        changed("at_least", "atleast"),
        ["model.yaml:25: gates.atleast: unknown key; remove it, or see model.schema.json for the known keys"],
    ),
    "a delimiter of two characters": (
        changed('%d.csv"}', '%d.csv", delimiter: "||"}'),
        ['model.yaml:6: sources.trips.delimiter: must have at most 1 character, this is "||"'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_field_is_reported_with_its_line_and_a_remedy(case: str, tmp_path: Path) -> None:
    text, messages = BROKEN[case]

    assert problems(tmp_path, text) == messages


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("owner: operations\n", "").replace("type: timestamp", "type: time").replace("0.6", "high")

    assert problems(tmp_path, text) == [
        "model.yaml:1: owner: missing; it must be given",
        "model.yaml:14: tables.trips.columns.left_at.type: \"time\" is none of 'string', 'integer', 'float', 'boolean', "
        "'timestamp' or 'date'",
        'model.yaml:24: gates.at_least.roc_auc: must be a number, this is "high"',
    ]


def test_a_value_that_may_be_of_several_types_is_one_message(tmp_path: Path) -> None:
    text = changed("gradient_boosting}", "gradient_boosting, params: {depth: [1], rate: .nan}}")
    text += "  behaviour: {still: {feature: distance, value: {a: 1}}}\n"

    assert problems(tmp_path, text) == [
        "model.yaml:23: candidates.boosting.params.depth: must be true or false, a whole number, a number or a text, "
        "this is [1]",
        "model.yaml:23: candidates.boosting.params.rate: must be a finite number, not NaN or infinity",
        'model.yaml:26: gates.behaviour.still.value: must be a number or a text, this is {"a": 1}',
    ]


def test_a_broken_key_does_not_hide_its_broken_value(tmp_path: Path) -> None:
    text = changed("minutes: {type: integer, min: 0, nullable: true}", "Minutes: integer")

    assert problems(tmp_path, text) == [
        'model.yaml:16: tables.trips.columns.Minutes: "Minutes" is not an identifier: lower-case letters, digits and _, '
        "not beginning with a digit",
        'model.yaml:16: tables.trips.columns.Minutes: must be a mapping, this is "integer"',
    ]


def test_problems_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = changed("task: binary_classification\n", "") + "task: guess\nshadow: {windows: -1}\n"

    lines = [int(message.split(":")[1]) for message in problems(tmp_path, text)]

    assert lines == [25, 26]
