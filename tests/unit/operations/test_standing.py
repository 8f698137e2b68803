"""What ``check``, ``verify`` and ``maintain`` say of a champion is what will happen to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.operations.agreement import verify
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

DAYS = Interval.of("2013-03-22", "2013-03-24")
WITHOUT_NOISE = "numeric: [x, noise] => numeric: [x]"
NO_NOISE = "\n      noise: {type: float, nullable: true} => "


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Version 1 is champion, and takes x, noise and kind."""
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    world.promote(world.register("2013-03-22"))
    return world


def change(world: World, sql: str = "SELECT visit, x, kind FROM entities\n", **replaced: str) -> None:
    folder = synthetic.write_folder(world.folder.path.parent, **replaced)
    (folder.path / "features.sql").write_text(sql)


def checked(world: World) -> list[str]:
    return by_hand.inspect(world.settings, "toy")[0].splitlines()


def maintained(world: World) -> list[str]:
    return by_hand.tidy(world.settings, "toy").splitlines()


def problems(world: World) -> list[str]:
    return [problem for problem in verify(world.deployment).problems if "pinned" not in problem]


def alerts(world: World) -> list[str]:
    return [entry.alert.kind for entry in world.ledger.alerts() if entry.alert.kind != "promoted"]


def test_check_says_beforehand_that_a_champion_goes_on_by_its_own_folder(world: World) -> None:
    assert "version 1, the champion, has the features of this folder" in checked(world)
    change(world, feature=WITHOUT_NOISE)
    told = (
        "version 1, the champion, needs the feature noise, which this folder no longer computes: it is scored and measured by "
        "its own kept folder until a new version is promoted"
    )
    assert told in checked(world)
    assert maintained(world)[-1] == told
    assert problems(world) == []


def test_check_says_beforehand_that_a_champion_becomes_unusable(world: World) -> None:
    change(world, feature=WITHOUT_NOISE, column=NO_NOISE)
    [told] = [line for line in checked(world) if "champion" in line]
    assert told.startswith(
        "version 1, the champion, is unusable: toy version 1 needs what the tables of model.yaml no longer have "
        "(visits.noise): "
    )
    assert told.endswith("promotes a candidate, which must pass all gates that need no champion")
    assert alerts(world) == []
    assert maintained(world)[-1] == told
    assert alerts(world) == ["champion_unusable"]
    assert problems(world) == [f"toy: {told}; or restore MLflow's artifacts from a backup, if they are gone, or roll back"]


def test_another_label_is_told_beforehand(world: World) -> None:
    change(world, "SELECT visit, x, noise, kind FROM entities\n", label='sql: "y > 0.5" => sql: "y > 1"')
    [told] = [line for line in checked(world) if "champion" in line]
    assert told.endswith(
        "version 1 was trained for the label y > 0.5 of outcomes; all are measured by the present label, y > 1 of outcomes"
    )


def test_a_deleted_champion_is_told_with_what_will_happen(world: World) -> None:
    MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url).delete_model_version("toy", "1")
    told = maintained(world)[-1]
    assert told.startswith("version 1, the champion, is unusable: toy version 1 was deleted from MLflow; ")
    assert problems(world) == [
        f"toy: {told}. Restore MLflow from a backup, roll back, or train; maintain leaves MLflow as it is"
    ]
    assert alerts(world) == ["champion_unusable"]


def test_a_renamed_model_is_told_and_no_alert_says_that_its_champion_is_gone(world: World) -> None:
    client = MlflowClient(world.settings.mlflow_url, world.settings.mlflow_url)
    client.rename_registered_model("toy", "shop")
    assert "cannot be used now: toy: the registered model was renamed to shop in MLflow" in maintained(world)[-1]
    assert problems(world) == [
        "toy: the registered model was renamed to shop in MLflow: rename it back to toy. Until then nothing is scored or "
        "trained, and maintain leaves MLflow as it is"
    ]
    assert alerts(world) == []
    client.rename_registered_model("shop", "toy")
    assert problems(world) == []


def test_a_store_that_does_not_answer_is_told_as_such(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = world.settings.model_copy(update={"mlflow_url": "http://127.0.0.1:9"})
    [told] = [line for line in by_hand.inspect(away, "toy")[0].splitlines() if "champion" in line]
    assert told.startswith("whether version 1, the champion, can be used is unknown, since MLflow does not answer: ")


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_model_whose_folder_is_gone_is_still_told_of_by_name(world: World, how: str) -> None:
    change(world, "SELECT visit, x, noise, kind FROM entities\n")
    rows = synthetic.make_rows(2, start=DAYS.start)
    synthetic.publish_tables(world.lake, world.ledger, rows, DAYS)
    scored = world.score(1, DAYS)
    folder = world.folder.path
    if how == "renamed":
        folder.rename(folder.with_name("other"))
        text = (folder.with_name("other") / "model.yaml").read_text()
        (folder.with_name("other") / "model.yaml").write_text(text.replace("name: toy", "name: other"))
    else:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert [change["version"] for change in by_hand.history(world.settings, "toy")] == [1]
    assert by_hand.explain(world.settings, "toy", 1)["status"] == "champion"
    forward = by_hand.lineage(world.settings, "toy", prediction=None, at=None, interval=DAYS)
    assert scored.publication in [node.facts["publication"] for node in forward.find("prediction")]
    assert maintained(world)[-1] == "version 1, the champion, can predict"
    assert problems(world) == []
