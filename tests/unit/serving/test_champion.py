"""Who answers: the champion, verified and tried; and who goes on if it cannot."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core.errors import NotAnswered, VersionUnusable
from perennial.ledger.store import Ledger
from perennial.model.artifacts import ANSWER
from perennial.serving import champion
from perennial.serving.champion import Champions, prepare
from perennial.spec.operation import Online
from tests.unit.monitored import World


def looked(champions: Champions) -> Champions:
    champions.look()
    champions.wait()
    return champions


def kinds(ledger: Ledger) -> list[str]:
    return [entry.alert.kind for entry in ledger.alerts() if entry.alert.kind in ("not_served", "recovered")]


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification", "regression"])
def test_what_is_served_equals_what_the_batch_publishes_to_the_last_bit(worlds: dict[str, World], task: str) -> None:
    world = worlds[task]
    rows = world.publish().sort_values("visit")
    world.score(1)
    published = world.predictions()
    served = looked(Champions(world.deployment)).of("toy")
    assert served.exact
    table = pa.Table.from_pandas(rows[["x", "noise", "kind"]], preserve_index=False)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for size in (1, 2, 3, 7, len(rows)):
        said: list[Any] = []
        for start in range(0, len(rows), size):
            part = {name: values[start : start + size] for name, values in columns.items()}
            said += served.predict(part, len(part["x"])).values.tolist()
        assert said == [row["prediction"] for row in published], size


def test_the_version_that_the_ledger_names_serves_and_the_way_back_loads_nothing(world: World) -> None:
    champions = looked(Champions(world.deployment))
    assert champions.of("toy").version == 1
    first = champions.of("toy")
    world.promote(world.register(seed=6))
    assert looked(champions).of("toy").version == 2
    world.registry.rollback("toy", actor="tester", reason="2 was wrong")
    champions.look()
    assert champions.of("toy") is first, "it was still in memory"


def test_a_version_that_differs_from_its_manifest_does_not_serve_and_the_old_one_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion, "AGAIN", timedelta(0))
    champions = looked(Champions(world.deployment))
    files = set(world.settings.state.rglob("model.skops"))
    world.promote(world.register(seed=6))
    [new] = set(world.settings.state.rglob("model.skops")) - files
    kept = new.read_bytes()
    new.write_bytes(kept + b"x")
    for _ in range(3):
        assert looked(champions).of("toy").version == 1
    assert kinds(world.ledger) == ["not_served"]
    [told] = [entry.alert for entry in world.ledger.alerts() if entry.alert.kind == "not_served"]
    assert told.severity == "warning"
    assert "Version 1 goes on answering" in told.text
    assert "model.skops has SHA-256" in told.text
    new.write_bytes(kept)
    assert looked(champions).of("toy").version == 2
    assert kinds(world.ledger) == ["not_served", "recovered"]


def test_the_end_of_trouble_is_told_when_the_ledger_goes_back_to_who_serves(world: World) -> None:
    champions = looked(Champions(world.deployment))
    files = set(world.settings.state.rglob("model.skops"))
    world.promote(world.register(seed=6))
    for file in set(world.settings.state.rglob("model.skops")) - files:
        file.unlink()
    looked(champions)
    world.registry.rollback("toy", actor="tester", reason="2 cannot be loaded")
    looked(champions)
    assert kinds(world.ledger) == ["not_served", "recovered"]


def test_a_champion_that_never_served_is_critical(world: World) -> None:
    for file in world.settings.state.rglob("model.skops"):
        file.unlink()
    champions = looked(Champions(world.deployment))
    with pytest.raises(NotAnswered, match="not loaded yet") as refused:
        champions.of("toy")
    assert (refused.value.status, refused.value.retry_after) == (503, 2)
    assert [entry.alert.severity for entry in world.ledger.alerts() if entry.alert.kind == "not_served"] == ["critical"]


def test_a_version_that_answers_otherwise_than_when_it_was_stored_is_refused(world: World) -> None:
    loaded = world.registry.load("toy", 1)
    answers = np.asarray(loaded.example[ANSWER].to_pylist())
    assert answers.shape == (3, 2)
    assert prepare("toy", loaded).version == 1
    other = loaded.example.drop_columns([ANSWER]).append_column(ANSWER, pa.array((answers + 1e-6).tolist()))
    with pytest.raises(VersionUnusable, match="toy version 1 answers otherwise than when it was stored"):
        prepare("toy", dataclasses.replace(loaded, example=other))


def test_a_version_of_a_release_that_stored_no_answer_serves(world: World) -> None:
    loaded = dataclasses.replace(world.registry.load("toy", 1), example=pa.table({}))
    assert prepare("toy", loaded).exact


def test_without_the_ledger_the_known_champion_goes_on_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    champions = looked(Champions(world.deployment))
    before, degraded = champions.seconds, champions.degraded
    assert not degraded
    monkeypatch.setattr(champion, "DEGRADED", timedelta(0))
    database = Path(world.settings.database_url.removeprefix("sqlite:///"))
    shutil.move(database, database.with_name("away"))
    assert looked(champions).of("toy").version == 1
    assert champions.degraded
    assert before is not None
    assert champions.seconds is not None
    assert champions.seconds > before
    database.unlink()
    shutil.move(database.with_name("away"), database)
    monkeypatch.undo()
    assert not looked(champions).degraded


def test_a_change_of_online_counts_at_the_next_look_for_the_champion_and_the_former_one(world: World) -> None:
    champions = looked(Champions(world.deployment))
    world.promote(world.register(seed=6))
    assert looked(champions).of("toy").online is None
    loaded = champions.of("toy").loaded
    file = world.settings.models / "toy" / "model.yaml"
    kept = file.read_text()
    file.write_text(kept + "online: {missing: last}\n")
    champions.look()
    assert champions.of("toy").online == Online(missing="last")
    assert champions.of("toy").loaded is loaded, "nothing was loaded"
    world.registry.rollback("toy", actor="tester", reason="2 was wrong")
    champions.look()
    assert (champions.of("toy").version, champions.of("toy").online) == (1, Online(missing="last"))
    file.write_text(kept + "online: nonsense\n")
    champions.look()
    assert champions.of("toy").online == Online(missing="last"), "a broken folder changes nothing"
    file.write_text(kept)
    champions.look()
    assert champions.of("toy").key is None


def test_it_is_known_since_when_the_version_is_champion(world: World) -> None:
    champions = looked(Champions(world.deployment))
    [made] = world.ledger.promotions("toy")
    assert made.completed_at is not None
    assert champions.since("toy") == made.completed_at


def test_a_retired_model_is_not_served(world: World) -> None:
    champions = looked(Champions(world.deployment))
    world.registry.retire("toy", actor="tester", reason="done", files={})
    with pytest.raises(NotAnswered, match="no model with a champion is named toy"):
        looked(champions).of("toy")
