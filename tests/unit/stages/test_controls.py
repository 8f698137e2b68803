"""Whether a model's gates refuse what they must, as a team sees it that has loosened them, or has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.cli import by_hand, command
from perennial.cli.main import main
from perennial.core.errors import TrainingError
from perennial.evaluation.controls import NEGATIVE
from tests.unit import synthetic
from tests.unit.monitored import World, make_world
from tests.unit.stages.conftest import PERIOD, publish

GATES = "gates: {min_rows: 50}"


def typed(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """Exit code of ``perennial controls toy``, and its lines by what they are about."""
    monkeypatch.setattr(command, "settings", lambda: world.settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.settings.mlflow_url)
    with pytest.raises(SystemExit) as left:
        main(["controls", "toy"])
    assert isinstance(left.value.code, int), left.value.code
    lines = capsys.readouterr().out.splitlines()
    return left.value.code, dict(line.partition(": ")[::2] for line in lines)


def test_the_gates_as_they_come_refuse_every_control(
    trained: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write_folder(
        trained.settings.models, slices=f"{GATES} => gates: {{min_rows: 50, slices: {{columns: [kind], min_rows: 50}}}}"
    )
    versions = trained.ledger.versions("toy")

    code, lines = typed(trained, monkeypatch, capsys)

    assert code == 0
    for name, control in NEGATIVE.items():
        assert lines[name].startswith("refused by "), name
        assert control.gate in lines[name].removeprefix("refused by ").split(", "), name
    assert lines["an honest improvement of 0.05 in ROC AUC"] == "passes"
    assert trained.ledger.versions("toy") == versions, "nothing is recorded"


def test_what_loosened_gates_let_pass_is_named(
    trained: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loose = "gates: {min_rows: 50, champion: {mode: not_worse, margin: 0.5}, stale_after: 1000d, leak: 1.0}"
    synthetic.write_folder(trained.settings.models, loose=f"{GATES} => {loose}")

    code, lines = typed(trained, monkeypatch, capsys)

    assert code == 1
    for name in ("an identical copy", "one trained on stale data"):
        assert lines[name] == f"NO GATE refused it; {NEGATIVE[name].gate} should have refused it"
    assert lines["a constant"].startswith("refused by predictions")
    named = lines["The gates of toy passed candidates that they must refuse"]
    assert "an identical copy" in named
    assert "one trained on stale data" in named
    assert "a constant" not in named
    assert lines["one broken in a single slice"] == "not tried: gates.slices names no column, so no slice is judged"


def test_a_gate_that_refuses_everybody_proves_nothing(
    trained: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = "gates: {min_rows: 5000, champion: {mode: not_worse, margin: 0.5}}"
    synthetic.write_folder(trained.settings.models, strict=f"{GATES} => {strict}")

    code, lines = typed(trained, monkeypatch, capsys)

    assert code == 1
    assert lines["an identical copy"] == "refused by min_rows, as is an honest candidate, so this shows nothing"
    assert lines["an honest improvement of 0.05 in ROC AUC"] == "refused by min_rows"
    assert lines["a leaky one"].startswith("refused by leak")


def test_of_a_regression_it_is_said_what_cannot_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = publish(tmp_path, "regression")
    by_hand.train(world.settings, "toy", PERIOD.end)

    code, lines = typed(world, monkeypatch, capsys)

    unshown = "not tried: it changes the probabilities of a binary classifier, and the task is regression"
    assert code == 0
    assert [name for name in NEGATIVE if lines[name] == unshown] == [
        "a degraded model", "one broken in a single slice", "a miscalibrated one", "a leaky one", "a constant", "NaN",
        "a fragile one",
    ]  # fmt: skip
    for name in ("an identical copy", "one trained on stale data", "one that has seen the holdout"):
        assert NEGATIVE[name].gate in lines[name], lines[name]
    assert lines["an honest improvement"].startswith("not tried, because it needs binary classification")


def test_a_model_without_versions_or_with_other_features_says_so(trained: World, tmp_path: Path) -> None:
    empty: Any = make_world(tmp_path, synthetic.deployment(tmp_path))
    with pytest.raises(TrainingError, match="has no version yet, and controls are made from a version: train first"):
        by_hand.controls(empty.settings, "toy")
    folder = synthetic.write_folder(trained.settings.models)
    (folder.path / "features.sql").write_text("SELECT visit, 2 * x AS x, noise, kind FROM entities\n")
    with pytest.raises(TrainingError, match="features or task changed after the newest version, 1, was trained: train again"):
        by_hand.controls(trained.settings, "toy")
    synthetic.write_folder(trained.settings.models)
