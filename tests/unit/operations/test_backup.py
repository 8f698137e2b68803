"""A deployment on one machine is backed up while it works, lost, restored, and goes on as if nothing had been."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from perennial.alerts import of_models
from perennial.core.errors import BackupError
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.lake.removal import held_until
from perennial.operations import backup
from perennial.operations.agreement import settle, verify
from perennial.operations.backup import make_backup, restore_backup
from perennial.operations.maintenance import tidy_lake
from tests.unit import synthetic
from tests.unit.monitored import DAY, World, make_world, open_world

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two versions of a model, the first of them champion; a day published and scored."""
    place = tmp_path_factory.mktemp("backup")
    settings = synthetic.deployment(place / "var")
    world = make_world(place, settings.model_copy(update={"predictions_url": f"sqlite:///{settings.state / 'predictions.db'}"}))
    world.publish(DAY)
    for version, as_of in ((1, "2013-03-26"), (2, "2013-03-27")):
        assert world.register(as_of, seed=version) == version
        world.lake.pin(world.model, world.ledger.head(world.model, "features").snapshots, f"training-{as_of}-{version}")
    world.promote(1)
    world.score(1)
    shutil.copytree(world.settings.state, place / "pristine")
    return world


@pytest.fixture
def world(made: World) -> World:
    """The same, as it was made, whatever became of it since: files of a lake name each other by their whole address."""
    state = made.settings.state
    lose(made)
    shutil.copytree(state.with_name("pristine"), state)
    return open_world(state.parent, made.settings)


def deployment(world: World) -> Deployment:
    return Deployment(world.settings.model_copy(update={"models": world.folder.path.parent}))


def problems(world: World) -> list[str]:
    return verify(deployment(world)).problems


def predicted(world: World, interval: Interval = DAY) -> list[tuple[str, float, int]]:
    return [(row["visit"], row["prediction"], row["version"]) for row in world.predictions(interval)]


def lose(world: World) -> None:
    shutil.rmtree(world.settings.state, ignore_errors=True)
    # As in a new process: MLflow keeps connections to files that are gone. It warns of itself when it is imported first.
    from mlflow.store.model_registry import sqlalchemy_store as model_registry
    from mlflow.store.tracking import sqlalchemy_store as tracking

    for store in (tracking.SqlAlchemyStore, model_registry.SqlAlchemyStore):
        for engine in store._engine_map.values():
            engine.dispose()


# --- the drill -------------------------------------------------------------------------------------------------------


def test_what_is_restored_agrees_and_goes_on_although_work_went_on_while_it_was_copied(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the worst moments: after each database, and before the files."""
    world.ledger.record_alert(of_models.promoted("toy", version=1, previous=None, reason="it waits", actor="tester"), "waiting")
    before, days = predicted(world), iter(Interval.of("2013-04-02", "2013-04-30").days())
    copy = backup._copy_database

    def copy_and_work_on(source: Path, target: Path) -> str:
        digest = copy(source, target)
        day = next(days)
        world.publish(day, seed=day.start.day)
        world.score(world.ledger.champion("toy") or 1, day)
        if source.name == "perennial.db":  # the ledger's copy knows nothing of this
            world.promote(2)
            world.register("2013-03-28", seed=3)
        assert tidy_lake(world.deployment, world.folder.spec, now=NOW + timedelta(days=400)) == {}
        return digest

    monkeypatch.setattr(backup, "_copy_database", copy_and_work_on)
    made = make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    assert held_until(world.settings) is None
    assert list(made["databases"]) == ["predictions", "ledger", "catalog", "mlflow"]
    lose(world)

    restore_backup(world.settings, tmp_path / "backup", {})
    restored = open_world(world.settings.state.parent, world.settings)
    assert restored.registry.alias("toy") == 2, "MLflow's copy is newer than the ledger's"
    assert any("alias" in problem for problem in problems(restored))
    changes = settle(deployment(restored), NOW)
    assert [change for change in changes if "alias champion was moved from version 2 to version 1" in change]
    assert [change for change in changes if "not sent" in change and "toy" in change]
    assert not [entry for entry in restored.ledger.alerts() if entry.waits]
    assert problems(restored) == []
    assert settle(deployment(restored), NOW) == []

    assert predicted(restored) == before
    restored.score(1, run_id="once more")
    assert predicted(restored) == before, "identical to the last bit"
    for day in Interval.of("2013-04-02", "2013-04-06").days():
        restored.publish(day, seed=day.start.day)
        restored.score(1, day)
        assert len(predicted(restored, day)) == 60, "an interval that came too late is done again"
    assert problems(restored) == []


def test_a_readable_copy_of_secrets_is_left_to_nobody(world: World, tmp_path: Path) -> None:
    secrets = world.settings.state / "secrets.json"
    secrets.touch(mode=0o600)
    secrets.write_text("{}")
    make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "backup" / "secrets.json").stat().st_mode & 0o777 == 0o600
    lose(world)
    restore_backup(world.settings, tmp_path / "backup", {})
    assert secrets.read_text() == "{}"
    assert secrets.stat().st_mode & 0o777 == 0o600


# --- backups that are none -------------------------------------------------------------------------------------------


def _remove(place: Path) -> str:
    file = next(place.glob("lake/**/*.parquet"))
    file.unlink()
    return f"{file.relative_to(place)} is missing"


def _cut(place: Path) -> str:
    file = place / "databases" / "ledger.db"
    file.write_bytes(file.read_bytes()[:-100])
    return "databases/ledger.db is truncated or changed"


def _forget_a_file(place: Path) -> str:
    sums = place / "SHA256SUMS"
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[1:]))
    return "SHA256SUMS was changed after the backup"


def _interrupt(place: Path) -> str:
    (place / "backup.json").unlink()
    return "is not a complete backup"


@pytest.mark.parametrize("harm", [_remove, _cut, _forget_a_file, _interrupt])
def test_a_damaged_backup_is_named_and_nothing_of_it_restored(
    world: World, tmp_path: Path, harm: Callable[[Path], str]
) -> None:
    place = tmp_path / "backup"
    make_backup(world.settings, place, {}, now=NOW)
    lose(world)
    said = harm(place)
    with pytest.raises(BackupError, match=said):
        restore_backup(world.settings, place, {})
    assert not world.settings.state.exists()


def test_nothing_is_restored_over_what_is_there(world: World, tmp_path: Path) -> None:
    make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    with pytest.raises(BackupError, match=r"perennial\.db.*Move them away first"):
        restore_backup(world.settings, tmp_path / "backup", {})
    assert problems(world) == []


def test_a_lake_is_restored_to_its_own_address_alone(world: World, tmp_path: Path) -> None:
    make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    elsewhere = world.settings.model_copy(update={"warehouse": str(tmp_path / "other")})
    with pytest.raises(BackupError, match=r"lake was at .*var/lake, but here it is at .*other"):
        restore_backup(elsewhere, tmp_path / "backup", {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"database_url": "postgresql+psycopg2://u:hidden@h/d"}, "ledger: not in SQLite.*scripts/backup.sh"),
        ({"warehouse": "s3://bucket/lake"}, "the lake is at s3://bucket/lake"),
    ],
)
def test_what_is_not_on_this_machine_is_left_to_its_own_tools(
    world: World, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BackupError, match=said) as caught:
        make_backup(world.settings.model_copy(update=changes), tmp_path / "backup", {}, now=NOW)
    assert "hidden" not in str(caught.value)


def test_a_backup_is_not_made_into_what_it_copies_nor_over_another(world: World, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="which is copied"):
        make_backup(world.settings, Path(world.settings.warehouse) / "backup", {}, now=NOW)
    make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    with pytest.raises(BackupError, match="is not empty"):
        make_backup(world.settings, tmp_path / "backup", {}, now=NOW)


def test_a_damaged_database_is_not_called_a_backup(world: World, tmp_path: Path) -> None:
    database = world.settings.state / "catalog.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(database.read_bytes())
    page = int.from_bytes(content[16:18], "big")  # its size, as the file's header has it
    content[page : page + 2000] = b"\x07" * 2000
    database.write_bytes(content)
    with pytest.raises(BackupError, match=r"catalog\.db"):
        make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    assert held_until(world.settings) is None


# --- the chain of decisions ------------------------------------------------------------------------------------------


def newest(world: World) -> str:
    return str(deployment(world).ledger.check_decisions().head)


def test_a_backup_carries_the_newest_decision_and_the_key_so_the_chain_goes_on(world: World, tmp_path: Path) -> None:
    made = make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    head = newest(world)
    for text in (str(tmp_path / "backup"), (tmp_path / "backup" / "backup.json").read_text(), head, f" {head}\n"):
        assert backup.known_head(text) == head
    assert backup.known_head(str(world.settings.state / "judge.head")) == head
    world.promote(2)
    later = newest(world)
    lose(world)
    restored = restore_backup(world.settings, tmp_path / "backup", {})
    assert restored == made
    assert not any("chain" in done for done in settle(deployment(world), NOW))
    backup.note_decisions(world.settings, restored)
    assert newest(world) == head
    assert verify(deployment(world), noted=[head]).problems == problems(world)
    [told] = [problem for problem in verify(deployment(world), noted=[later]).problems if "chain" in problem]
    assert "known from elsewhere" in told
    assert "After a restore, run perennial verify --settle" in told

    world = open_world(world.settings.state.parent, world.settings)
    world.promote(2)
    assert not [problem for problem in problems(world) if "chain" in problem]


def test_a_restore_of_an_older_backup_where_a_newer_decision_is_known_is_told(world: World, tmp_path: Path) -> None:
    make_backup(world.settings, tmp_path / "backup", {}, now=NOW)
    world.promote(2)
    known = (world.settings.state / "judge.head").read_text()
    lose(world)
    world.settings.state.mkdir()
    (world.settings.state / "judge.head").write_text(known)
    restore_backup(world.settings, tmp_path / "backup", {})
    assert any("is known from elsewhere" in problem for problem in problems(world))
    assert settle(deployment(world), NOW, actor="ann")[0].startswith("the chain of decisions goes on after entry")
    found = verify(deployment(world), noted=[backup.known_head(known)])
    assert not [problem for problem in found.problems if "chain" in problem]
    assert "by ann: an older backup of the ledger was restored" in found.found[0]


@pytest.mark.parametrize("text", ["", "7", "7:abc", "[]", '{"format": 1, "sums": ""}', "/nowhere/backup"])
def test_what_names_no_decision_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        backup.known_head(text)


# --- what does not agree is named ------------------------------------------------------------------------------------


def test_a_file_that_is_missing_or_cut_is_named(world: World) -> None:
    one, other = sorted((Path(world.settings.warehouse) / "toy" / "features" / "data").glob("*.parquet"))[:1] * 2
    other.write_bytes(other.read_bytes()[:-10])
    assert any("features, published as features at snapshot" in said and "bytes)" in said for said in problems(world))
    one.unlink()
    assert any(f"has lost file://{one}: restore the lake" in said for said in problems(world))


def test_a_list_of_files_that_is_missing_is_named(world: World) -> None:
    for file in (Path(world.settings.warehouse) / "toy" / "visits" / "metadata").glob("snap-*.avro"):
        file.unlink()
    assert any("visits" in said and "the list of its files" in said for said in problems(world))


def test_an_alias_that_differs_is_named(world: World) -> None:
    world.registry._client.set_registered_model_alias("toy", "champion", "2")
    assert problems(world) == [
        "toy: the ledger's champion is version 1, but MLflow's alias points to version 2: after a restore, run perennial "
        "verify --settle; otherwise the judge makes version 2 champion, since somebody moved the alias there"
    ]
    world.registry._client.delete_registered_model_alias("toy", "champion")
    assert problems(world)[0].endswith("otherwise the judge puts it right")


def test_an_mlflow_that_does_not_answer_is_a_problem_and_the_rest_is_compared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("API request to http://mlflow failed: Connection refused")

    for asked in ("get_registered_model", "get_model_version"):
        monkeypatch.setattr(MlflowClient, asked, refuse)
    [told] = problems(world)
    assert told.startswith("toy: whether version 1, the champion, can be used is unknown, since MLflow does not answer")


def test_a_model_that_was_changed_is_named(world: World) -> None:
    for file in world.settings.state.glob("mlflow-artifacts/**/model.skops"):
        file.write_bytes(file.read_bytes() + b"x")
    assert any("toy version 1" in said and "restore MLflow's artifacts" in said for said in problems(world))


def test_rows_that_are_not_those_that_were_published_are_named(world: World) -> None:
    world.publish(DAY, seed=77)
    with sqlite3.connect(world.settings.state / "perennial.db") as connection:
        connection.execute("UPDATE perennial_publications SET hashes = replace(hashes, substr(hashes, 20, 6), 'ffffff')")
    assert any("holds other rows for" in said and "2013-04-01" in said for said in problems(world))


def test_predictions_that_are_newer_than_the_ledger_are_named_and_can_be_scored_again(world: World) -> None:
    with sqlite3.connect(world.settings.state / "predictions.db") as connection:
        connection.execute("UPDATE toy_scored SET publication = 9999")
    assert any("written from publication 9999" in said for said in problems(world))
    assert any("score them again" in said for said in settle(deployment(world), NOW))
    assert problems(world) == []
    world.score(1, run_id="again")
    assert len(world.sink()) == 60
