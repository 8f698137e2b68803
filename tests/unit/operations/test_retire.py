"""A model ends: its champion goes in ledger and MLflow, nobody watches over it, and what it was is still told by name."""

from __future__ import annotations

import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from perennial.alerts.alert import Alert
from perennial.cli import by_hand
from perennial.core.errors import ErasureError, LineageError, NoChampion, SpecError
from perennial.core.intervals import Interval
from perennial.core.settings import Settings, read_settings
from perennial.deployment import Deployment
from perennial.ledger.store import Ledger
from perennial.operations.agreement import settle, verify
from perennial.operations.remembered import remembered
from perennial.operations.retire import mark_retired, retire
from perennial.registry.server import CHALLENGER
from perennial.registry.store import Registry
from perennial.spec.folder import read_model
from perennial.watchdog.process import _Folders
from tests.faults.signals import processes, trap
from tests.states.unpack import unpack
from tests.unit.monitored import DAY, World, make_world, open_world


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return lived_in(tmp_path, settings)


@pytest.fixture
def world_on_each_database(tmp_path: Path, settings_on_each_database: Settings) -> World:
    return lived_in(tmp_path, settings_on_each_database)


def lived_in(place: Path, settings: Settings) -> World:
    world = make_world(place, settings.model_copy(update={"models": place / "models"}))
    world.publish(DAY)
    version = world.register()
    world.promote(version)
    world.score(version, DAY)
    world.register("2013-03-27")
    return world


@pytest.fixture
def parts(world: World) -> Deployment:
    return Deployment(world.settings)


def end(parts: Deployment, *, drop_lake: bool = False) -> list[str]:
    return retire(parts, "toy", actor="tester", reason="nobody flies any more", drop_lake=drop_lake)


def test_a_model_whose_dags_would_go_on_is_not_retired(parts: Deployment) -> None:
    with pytest.raises(ErasureError, match=r"toy has a folder.*retired: true"):
        end(parts)
    assert parts.ledger.champion("toy") == 1
    with pytest.raises(ErasureError, match="nothing is known of a model nowhere; there are: toy"):
        retire(parts, "nowhere", actor="tester", reason="it never was")


def test_marking_changes_neither_the_model_nor_what_it_learned_by(parts: Deployment) -> None:
    before = parts.model("toy")
    assert mark_retired(parts, "toy")
    after = parts.model("toy")
    assert after.spec.retired
    assert (after.digest, after.features_digest) == (before.digest, before.features_digest)
    assert not mark_retired(parts, "toy")


def test_a_retired_model_has_no_champion_in_ledger_and_mlflow_and_says_since_when(world_on_each_database: World) -> None:
    parts = Deployment(world_on_each_database.settings)
    mark_retired(parts, "toy")
    told = end(parts)
    assert "version 1 is no longer champion" in told[0]
    assert parts.ledger.champion("toy") is None
    assert parts.registry.alias("toy") is None
    assert parts.registry._alias("toy", CHALLENGER) is None
    assert parts.registry.reconcile("toy") is None
    [change] = by_hand.history(parts.settings, "toy")
    assert change["until"] is not None
    assert by_hand.explain(parts.settings, "toy", 1)["status"] == "retired"
    with pytest.raises(NoChampion):
        parts.registry.rollback("toy", actor="tester", reason="none")
    assert end(parts)[0] == told[0], "twice is the same as once"


def test_a_model_that_starts_again_without_its_lake_neither_measures_nor_rolls_back_to_what_was(parts: Deployment) -> None:
    folder = parts.settings.models / "toy"
    shutil.move(folder, kept := folder.parent.parent / "kept")
    end(parts, drop_lake=True)
    shutil.move(kept, folder)
    again = open_world(parts.settings.models.parent, parts.settings)
    again.publish(DAY, seed=12)
    assert "were removed with the lake" in by_hand.monitor(parts.settings, "toy", DAY)
    again.promote(2)
    with pytest.raises(NoChampion, match="has no earlier champion"):
        by_hand.rollback(parts.settings, "toy", None, "it was better")


def test_an_alias_that_somebody_moves_back_is_removed(parts: Deployment) -> None:
    mark_retired(parts, "toy")
    end(parts)
    parts.registry._client.set_registered_model_alias("toy", "champion", "1")
    assert parts.registry.reconcile("toy") is None
    assert parts.registry.alias("toy") is None
    parts.registry._client.set_registered_model_alias("toy", "champion", "1")
    assert settle(parts, datetime.now(UTC))[-1] == "toy: the alias champion was moved from version 1 to none, as in the ledger"
    assert parts.registry.alias("toy") is None
    assert verify(parts).problems == []


def test_nobody_is_told_of_a_retired_model_any_more(parts: Deployment) -> None:
    def alert(model: str) -> Alert:
        return Alert(model, "critical", "silent", f"{model}: silent", "nothing came", subject=f"watch/models/{model}/silent")

    for model in ("toy", "other"):
        parts.ledger.record_alert(alert(model))
    mark_retired(parts, "toy")
    assert "1 open alerts are resolved" in end(parts)
    assert parts.ledger.open_subjects("watch") == ["watch/models/other/silent"]
    assert _Folders(parts.settings.models).read() == ({}, {})
    overview = parts.ledger.overview(windows=1, alerts_since=datetime.now(UTC))
    assert overview.champions == {}


def test_a_promotion_brings_a_model_back(parts: Deployment) -> None:
    mark_retired(parts, "toy")
    end(parts)
    parts.registry.promote("toy", 2, expected=None, reason="it is wanted", actor="tester", run_id=None, evidence={})
    assert (parts.ledger.champion("toy"), parts.registry.alias("toy")) == (2, 2)
    assert parts.registry.reconcile("toy") == 2
    assert parts.ledger.retirement("toy") is None
    first, second = by_hand.history(parts.settings, "toy")
    assert first["until"] <= second["since"]
    assert second["until"] is None
    assert by_hand.explain(parts.settings, "toy", 1)["status"] == "former champion"


def die(place: Path, settings: Settings) -> None:
    trap(Registry, "_alias", "before", signal.SIGKILL)
    retire(Deployment(open_world(place, settings).settings), "toy", actor="tester", reason="killed")


def test_an_end_that_is_killed_between_ledger_and_mlflow_is_gone_on_with(parts: Deployment, tmp_path: Path) -> None:
    mark_retired(parts, "toy")
    child = processes.Process(target=die, args=(tmp_path, parts.settings))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert (parts.ledger.champion("toy"), parts.registry.alias("toy")) == (None, 1)
    assert "killed" in end(parts)[0]
    assert parts.registry.alias("toy") is None


# --- the lake --------------------------------------------------------------------------------------------------------


def test_a_lake_is_kept_unless_it_is_to_go_and_then_nothing_of_it_is_left(world_on_each_database: World) -> None:
    world = world_on_each_database
    parts = Deployment(world.settings)
    mark_retired(parts, "toy")
    end(parts)
    lake = Path(parts.settings.warehouse)
    assert list(lake.rglob("*.parquet"))
    assert "features" in end(parts, drop_lake=True)[-1]
    assert [path for path in lake.rglob("*") if path.is_file()] == []
    assert "its lake was removed" in end(parts, drop_lake=True)[-1]
    assert verify(parts).problems == []
    by_hand.tidy(parts.settings, "toy")
    with pytest.raises(LineageError, match="its lake was removed"):
        by_hand.lineage(parts.settings, "toy", prediction=["v000001-11"], at=None, interval=None)
    # Somebody wants it after all.
    world.publish(DAY, seed=12)
    assert world.score(1, DAY, run_id="again").rows == 60


# --- without a folder ------------------------------------------------------------------------------------------------


def test_a_folder_that_was_removed_is_remembered_by_the_retirement(parts: Deployment) -> None:
    mark_retired(parts, "toy")
    end(parts)
    before = parts.model("toy")
    shutil.rmtree(before.path)
    assert remembered(parts, "toy").spec == before.spec
    with pytest.raises(SpecError, match=r"nowhere has no folder.*known models: toy"):
        remembered(parts, "nowhere")


@pytest.fixture
def without_folder(tmp_path: Path) -> Settings:
    """The model ``shop`` of an earlier release, whose folder was removed one day."""
    unpack("03fd27a", tmp_path / "old")
    state = tmp_path / "old" / "var"
    settings = read_settings(
        {
            "PERENNIAL_STATE": str(state),
            "PERENNIAL_MODELS": str(tmp_path / "old" / "models"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'mlflow.db'}",
        }
    )
    Ledger(settings.database_url).migrate()
    shutil.rmtree(settings.models / "shop")
    return settings


def test_what_a_model_was_is_told_by_its_name_alone(without_folder: Settings) -> None:
    settings = without_folder
    assert [change["version"] for change in by_hand.history(settings, "shop")] == [1, 2, 1, 2]
    assert by_hand.explain(settings, "shop", 2)["status"] == "champion"
    node = by_hand.lineage(settings, "shop", prediction=["0125-05"], at=None, interval=None)
    assert node.find("missing") == []
    assert by_hand.lineage(settings, "shop", prediction=None, at=None, interval=Interval.day("2024-01-25")).find("version")
    assert by_hand.outlook(settings, "shop")[0] == "rmse"
    assert "tidy_tables" in by_hand.tidy(settings, "shop")
    told = retire(Deployment(settings), "shop", actor="tester", reason="the shop is closed")
    assert "version 2 is no longer champion" in told[0]
    retired = Deployment(settings).ledger.retirement("shop")
    assert retired is not None
    assert {"model.yaml", "features.sql"} <= retired.files.keys()
    assert verify(Deployment(settings)).problems == []


def test_a_folder_says_that_it_is_retired_in_one_line(world: World) -> None:
    file = world.folder.path / "model.yaml"
    file.write_text(f"{file.read_text()}\nretired: true\n")
    assert read_model(world.folder.path).spec.retired
