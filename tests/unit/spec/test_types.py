"""Values are of the type their field names: identifiers, durations, shares, texts without templates."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.spec.late import GOOD, changed, problems, read

BROKEN = {
    "a negative share": (
        changed("    known: left_at\n", "    known: left_at\n    tolerance: -0.1\n"),
        ["model.yaml:13: tables.trips.tolerance: must be greater than or equal to 0, this is -0.1"],
    ),
    "a share above 1": (
        changed("    known: left_at\n", "    known: left_at\n    tolerance: 5\n"),
        ["model.yaml:13: tables.trips.tolerance: must be less than or equal to 1, this is 5"],
    ),
    "a share in words": (
        changed("    known: left_at\n", "    known: left_at\n    tolerance: 5%\n"),
        ['model.yaml:13: tables.trips.tolerance: must be a number, this is "5%"'],
    ),
    "Jinja in a value": (
        changed("owner: operations", "owner: '{{ var.value.owner }}'"),
        ["model.yaml:2: owner: templates are not rendered here; write the value itself"],
    ),
    "Jinja in SQL": (
        changed("sql: minutes > 15", "sql: 'minutes > {% now %}'"),
        ["model.yaml:20: label.sql: templates are not rendered here; write the value itself"],
    ),
    "an identifier with a quote": (
        changed("      id: {type", "      'i\"d': {type"),
        ['model.yaml:14: tables.trips.columns.i"d: "i\\"d" is not an identifier: lower-case letters, digits and _, '
         "not beginning with a digit"],
    ),
    "an identifier with a semicolon": (
        changed("key: [id]", "key: [id;]"),
        ['model.yaml:10: tables.trips.key.0: "id;" is not an identifier: lower-case letters, digits and _, '
         "not beginning with a digit"],
    ),
    "a delimiter that is a quote": (
        changed('%d.csv"}', """%d.csv", delimiter: '"'}"""),
        ["model.yaml:6: sources.trips.delimiter: write one ASCII character that is not a letter, digit, quote or line break, "
         "such as ; or \\t"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_value_of_another_type_is_refused_with_what_to_write(case: str, tmp_path: Path) -> None:
    text, messages = BROKEN[case]

    assert problems(tmp_path, text) == messages


def test_durations_are_written_with_their_unit(tmp_path: Path) -> None:
    folder = read(tmp_path, GOOD + "retraining: {cooldown: 36h}\n")

    assert folder.spec.retraining.cooldown == timedelta(hours=36)
    assert folder.spec.model_dump(mode="json")["retraining"]["cooldown"] == "36h"


@pytest.mark.parametrize("duration", ["14", "0d", "-1d", "1.5h", "P1D", "99999999d"])
def test_what_is_no_duration_is_refused(duration: str, tmp_path: Path) -> None:
    [message] = problems(tmp_path, GOOD + f"retraining: {{cooldown: '{duration}'}}\n")

    assert message == "model.yaml:26: retraining.cooldown: write a whole number and a unit: 90m, 2h, 28d or 12w"
