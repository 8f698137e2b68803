"""What is cleaned up, and what is left alone however old it is."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from perennial.core.errors import BackupError, SnapshotMissing
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake import removal
from perennial.lake.publish import TableWrite
from perennial.lake.removal import hold, let_go, removing
from perennial.operations.maintenance import (
    close_abandoned_runs,
    forget_quarantine,
    maintain,
    remove_reports,
    remove_scratch,
    remove_staging,
    tidy_lake,
    tidy_tables,
    unpin_old_versions,
)
from tests.unit.monitored import DAY, WEEK, World, make_world
from tests.unit.synthetic import MOMENT, make_rows

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=400)


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return make_world(tmp_path, settings)


def write(path: Path, age: timedelta) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("content")
    for touched in (path, path.parent):
        os.utime(touched, ((NOW - age).timestamp(),) * 2)
    return path


def test_staging_of_past_runs_is_removed_and_of_others_kept(settings: Settings) -> None:
    place = settings.staging / "toy"
    past = write(place / "past" / "flights.parquet", timedelta(days=2))
    # A long run: its folder is old, a file in it is not.
    long = write(place / "long" / "flights.parquet", timedelta(days=2))
    write(place / "long" / "deep" / "weather.parquet", timedelta(hours=1))
    other = write(settings.staging / "other" / "past" / "flights.parquet", timedelta(days=2))
    os.utime(place / "long", ((NOW - timedelta(days=3)).timestamp(),) * 2)
    assert remove_staging(settings, "toy", now=NOW) == {"runs": 1, "bytes": 7}
    assert not past.parent.exists()
    assert long.exists()
    assert other.exists()
    assert remove_staging(settings, "toy", now=NOW) == {"runs": 0, "bytes": 0}


def test_temporary_files_of_killed_tasks_are_removed_and_of_others_kept(tmp_path: Path) -> None:
    spilled = write(tmp_path / "perennial-1f" / "duckdb_temp_storage-0.tmp", timedelta(days=2))
    current = write(tmp_path / "perennial-2e" / "duckdb_temp_storage-0.tmp", timedelta(hours=1))
    foreign = write(tmp_path / "somebodys" / "file", timedelta(days=2))
    assert remove_scratch(tmp_path) == {"files": 1, "bytes": 7}
    assert [path.exists() for path in (spilled.parent, current, foreign)] == [False, True, True]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user's")
def test_temporary_files_of_another_user_are_left(tmp_path: Path) -> None:
    theirs = write(tmp_path / "perennial-1f" / "duckdb_temp_storage-0.tmp", timedelta(days=2))
    os.chown(theirs.parent, 12345, 12345)
    assert remove_scratch(tmp_path) == {"files": 0, "bytes": 0}
    assert theirs.exists()


def test_a_link_in_staging_is_removed_and_what_it_leads_to_is_not(settings: Settings, tmp_path: Path) -> None:
    precious = write(tmp_path / "precious" / "data.csv", timedelta(days=9))
    place = settings.staging / "toy" / "run"
    write(place / "own.parquet", timedelta(days=9))
    (place / "link").symlink_to(precious.parent)
    (settings.staging / "toy" / "folder").symlink_to(precious.parent)
    assert remove_staging(settings, "toy", now=LATER)["runs"] == 2
    assert precious.exists()


def test_reports_are_kept_for_the_time_that_the_spec_gives(world: World) -> None:
    place = world.settings.reports / "toy"
    old = write(place / "drift" / "2012-04-01" / "report.html", timedelta(days=366))
    page = write(place / "checks" / "flights" / "2012-04-01.html", timedelta(days=366))
    new = write(place / "drift" / "2013-04-01" / "report.html", timedelta(days=364))
    other = write(world.settings.reports / "other" / "drift" / "x" / "report.html", timedelta(days=999))
    assert remove_reports(world.settings, world.folder.spec, now=NOW) == {"files": 2, "bytes": 14}
    assert not old.exists()
    assert not page.exists()
    assert new.exists()
    assert other.exists()
    remove_reports(world.settings, world.folder.spec, now=NOW + timedelta(days=2))
    assert not old.parent.exists()


def test_there_is_nothing_to_do_in_a_new_deployment(world: World) -> None:
    done = maintain(world.deployment, world.folder.spec, now=LATER)
    assert {value for part in done.values() for value in part.values()} == {0}


def quarantine(world: World, interval: Interval) -> None:
    table = pa.table({"row": [interval.key], "_event_time": pa.array([interval.start], MOMENT)})
    world.lake.publish(
        model="toy",
        dataset="tables",
        interval=interval,
        tables={"quarantine": TableWrite(data=table.to_reader, event_time="_event_time", schema=table.schema)},
        order=world.ledger.next_order("toy", "tables", interval, interval.key),
        run_id=interval.key,
        inputs={},
    )


def test_quarantined_rows_are_forgotten_when_their_time_is_over(world: World) -> None:
    old, new = Interval.day("2012-01-01"), Interval.day("2013-01-01")
    quarantine(world, old)
    quarantine(world, new)
    now = new.start + timedelta(days=300)
    assert forget_quarantine(world.lake, world.ledger, world.folder.spec, now=now) == {"files": 1}
    published = world.ledger.published("toy", "tables")
    assert published is not None
    rows = world.lake.scan("toy", "quarantine", published.snapshots["quarantine"]).read_all()
    assert rows.column("row").to_pylist() == [new.key]
    assert forget_quarantine(world.lake, world.ledger, world.folder.spec, now=now) == {"files": 0}


def pin(world: World, name: str) -> dict[str, int]:
    published = world.ledger.published("toy", "features")
    assert published is not None
    world.lake.pin("toy", published.snapshots, name)
    return published.snapshots


def test_training_snapshots_are_kept_for_the_newest_versions_and_the_champion(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings, retention="gates: {min_rows: 50} => gates: {min_rows: 50}\nretention: {versions: 2}")
    world.publish()
    days = ["2013-03-10", "2013-03-11", "2013-03-12", "2013-03-13"]
    versions = [world.register(day) for day in days]
    world.promote(versions[0])
    for day in days:
        pin(world, f"training-{day}-5")
    done = unpin_old_versions(world.lake, world.ledger, world.folder.spec, now=LATER)
    assert done == {"pins": 1, "kept": 3}
    assert set(world.lake.pins("toy")) == {f"training-{day}-5" for day in (days[0], days[2], days[3])}


def test_a_training_that_may_be_at_work_keeps_its_snapshots(world: World) -> None:
    rows = world.publish()
    pinned = pin(world, "training-at-work")
    world.publish_features(rows, DAY, run_id="again")
    spec = world.folder.spec
    assert unpin_old_versions(world.lake, world.ledger, spec, now=NOW + timedelta(days=29)) == {"pins": 0, "kept": 1}
    tidy_tables(world.lake, spec, now=LATER)
    assert world.lake.scan("toy", "features", pinned["features"]).read_all().num_rows == 60
    assert unpin_old_versions(world.lake, world.ledger, spec, now=LATER) == {"pins": 1, "kept": 0}
    tidy_tables(world.lake, spec, now=LATER)
    with pytest.raises(SnapshotMissing):
        world.lake.scan("toy", "features", pinned["features"])


def test_old_snapshots_go_and_readers_notice_nothing(world: World) -> None:
    rows = world.publish()
    for number in range(3):
        world.publish_features(rows, DAY, run_id=f"again-{number}")
    done = tidy_tables(world.lake, world.folder.spec, now=LATER)
    assert done["snapshots"] >= 3
    assert done["orphans"] >= 3
    assert world.score(world.register(), DAY).rows == 60
    again = tidy_tables(world.lake, world.folder.spec, now=NOW + timedelta(minutes=1))
    assert again == {"joined": 0, "snapshots": 0, "orphans": 0}


def test_many_small_files_are_joined(world: World) -> None:
    for day in Interval.of("2013-04-01", "2013-04-17").days():
        world.publish_features(make_rows(1, 5, start=day.start), day, run_id=day.key)
    assert tidy_tables(world.lake, world.folder.spec, now=NOW)["joined"] >= 16
    published = world.ledger.published("toy", "features")
    assert published is not None
    kept = world.lake.scan("toy", "features", published.snapshots["features"], interval=WEEK, event_time="moment").read_all()
    assert kept.num_rows == 35


def test_runs_that_their_process_left_open_are_closed_once_they_are_old(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world.folder.spec
    left = world.registry.open_run("toy", "boosting", {})
    run = left.__enter__()  # its process dies before it leaves
    assert close_abandoned_runs(world.registry, spec) == {"runs": 0}
    monkeypatch.setattr("perennial.operations.maintenance.ABANDONED_FIT", timedelta(seconds=-5))
    assert close_abandoned_runs(world.registry, spec) == {"runs": 1}
    assert close_abandoned_runs(world.registry, spec) == {"runs": 0}
    assert run.id


# --- while a backup is made ------------------------------------------------------------------------------------------


def test_nothing_is_removed_from_the_lake_while_a_backup_is_made(world: World) -> None:
    world.publish(DAY)
    hold(world.settings, NOW + timedelta(hours=1))
    assert tidy_lake(world.deployment, world.folder.spec, now=LATER) == {}
    let_go(world.settings)
    assert "tidy_tables" in tidy_lake(world.deployment, world.folder.spec, now=LATER)


def test_a_backup_that_died_holds_no_longer_than_it_said(world: World) -> None:
    hold(world.settings, NOW - timedelta(seconds=1))
    assert "tidy_tables" in tidy_lake(world.deployment, world.folder.spec, now=LATER)


def test_a_backup_waits_for_a_removal_that_is_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "PATIENCE", timedelta(0))
    with removing(world.settings) as held:
        assert held is None
        with pytest.raises(BackupError, match="has been running for"):
            hold(world.settings, NOW + timedelta(hours=1))
    with removing(world.settings) as held:
        assert held is None, "nor does it hold anything then"
    hold(world.settings, NOW + timedelta(hours=1))


def test_commits_remove_no_file_that_an_earlier_catalog_names(world: World) -> None:
    world.publish(DAY)
    named = world.lake._catalog.load("toy", "features").metadata_location
    for commit in range(25):
        world.lake.pin("toy", {"features": world.ledger.head("toy", "features").snapshots["features"]}, f"pin-{commit}")
    assert Path(named.removeprefix("file://")).exists()
    tidy_tables(world.lake, world.folder.spec, now=LATER)
    assert not Path(named.removeprefix("file://")).exists()
