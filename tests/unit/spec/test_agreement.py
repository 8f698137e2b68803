"""The other files of a model's folder agree with its ``model.yaml``."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.core.errors import SpecError
from perennial.spec.folder import read_model
from tests.unit.spec.late import GOOD, changed, write

THRESHOLDS = """\
computed_at: '2026-11-21T09:43:26Z'
history: 2013-01-01--2013-04-01
window: week
replays: 600
seed: 2013
false_alarms: 1.0
expected: 0.96
columns:
  distance: {distance: 0.1, missing: 0.1}
  prediction: {distance: 0.1, missing: 0.1}
"""


def messages(folder: Path) -> list[str]:
    with pytest.raises(SpecError) as raised:
        read_model(folder)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


def test_a_function_must_be_defined_and_is_not_run_to_find_out(tmp_path: Path) -> None:
    text = changed("estimator: gradient_boosting", "estimator: 'model:make'")
    without = write(tmp_path / "without", text, code="def other(): ...")
    defined = write(tmp_path / "defined", text, code="raise SystemExit\ndef make(): ...")

    assert messages(without) == [
        "model.yaml:23: candidates.boosting.estimator: names model:make, but model.py defines no function make; define it there"
    ]
    assert read_model(defined).code.startswith("raise SystemExit")


def test_code_that_is_no_python_is_reported_with_its_line_alone(tmp_path: Path) -> None:
    text = changed("estimator: gradient_boosting", "estimator: 'model:make'")

    assert messages(write(tmp_path, text, code="\ndef make(:")) == ["model.py:2: not Python: invalid syntax"]


def test_every_threshold_for_something_else_is_reported(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD + "drift: {match: month}\n")
    text = THRESHOLDS.replace("week", "day").replace("  distance:", "  speed:") + "  weight: {distance: 0.1, missing: 0.1}\n"
    (folder / "drift.yaml").write_text(text)
    again = "delete the file and run `perennial calibrate late`"

    assert messages(folder) == [
        f"drift.yaml:1: match: thresholds are for none, but drift.match in model.yaml is month; {again}",
        f"drift.yaml:3: window: thresholds are for day, but schedules.monitor in model.yaml is week; {again}",
        f"drift.yaml:8: columns: distance has no threshold; {again}",
        f"drift.yaml:9: columns.speed: speed is no feature; {again}",
        f"drift.yaml:11: columns.weight: weight is no feature; {again}",
    ]


def test_thresholds_that_are_broken_hide_no_disagreement(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD)
    text = THRESHOLDS.replace("replays: 600", "replays: 0").replace("{distance: 0.1, missing: 0.1}", "{distance: 0.1}", 1)
    (folder / "drift.yaml").write_text(text.replace("week", "day"))

    assert [message.split(": ")[:2] for message in messages(folder)] == [
        ["drift.yaml:3", "window"],
        ["drift.yaml:4", "replays"],
        ["drift.yaml:9", "columns.distance.missing"],
    ]


def test_a_feature_whose_name_is_broken_is_not_missed_in_the_thresholds(tmp_path: Path) -> None:
    folder = write(tmp_path, changed("numeric: [distance]", "numeric: [Distance]"))
    (folder / "drift.yaml").write_text(THRESHOLDS)

    [message] = messages(folder)

    assert message.startswith("model.yaml:19: features.numeric.0:")
