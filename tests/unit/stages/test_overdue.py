"""What the runs of ingest find overdue, in the order of the days that they ingest."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from perennial.cli import by_hand
from perennial.core.errors import VersionUnusable
from perennial.core.intervals import Interval
from perennial.evidence.verdict import VerdictDetails
from perennial.stages.overdue import Follower, find_overdue
from perennial.stages.run import StageRun
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

WEEK = Interval.of("2013-04-01", "2013-04-08")  # from a Monday
DAYS = WEEK.days()
HOURS = timedelta(hours=4)


@pytest.fixture
def world(tmp_path: Path) -> World:
    schedules = (
        "gates: {min_rows: 50} => gates: {min_rows: 50}\nschedules: {train: week, monitor: week, grace: 2d, catch_up: 20d}"
    )
    return make_world(tmp_path, synthetic.deployment(tmp_path), schedules=schedules)


def publish(world: World, dataset: str, days: Iterable[Interval], *, run_id: str = "r", content: str = "a") -> None:
    ledger = world.ledger
    for day in days:
        order = ledger.next_order("toy", dataset, day, run_id)
        claim = ledger.claim("toy", dataset, day, order=order, run_id=run_id)
        base = ledger.head("toy", dataset)
        hashes = {dataset: content}
        assert ledger.commit(claim, base=base, snapshots={dataset: 1}, hashes=hashes, rows={dataset: 9}, inputs={}) is not None


def find(world: World, follower: Follower, day: str | Interval, *, now: datetime | None = None) -> list[str]:
    run = StageRun(world.folder, world.deployment, "r", "toy.ingest/r")
    moment = now if now is not None else datetime.now(UTC) + HOURS
    found = find_overdue(run, follower, day if isinstance(day, Interval) else Interval.day(day), now=moment)
    return [interval.key for interval in found]


def judge(world: World, window: Interval) -> None:
    world.ledger.record_verdict(
        model="toy", interval=window, version=1, verdict="ok", reasons=[], details=VerdictDetails(), report=None, run_id="m"
    )


FOLLOWERS = pytest.mark.parametrize(("follower", "dataset"), [("train", "features"), ("monitor", "predictions")])


@FOLLOWERS
def test_a_week_with_a_missing_day_is_due_on_the_day_when_its_grace_ends(
    world: World, follower: Follower, dataset: str
) -> None:
    publish(world, dataset, DAYS[:3] + DAYS[4:])

    found = {day.key: find(world, follower, day) for day in Interval.of("2013-04-05", "2013-04-13").days()}

    # The week ends before the 8th. After the 8th and the 9th, its two days of grace are over.
    assert {day: windows for day, windows in found.items() if windows} == {"2013-04-09": [WEEK.key]}


@FOLLOWERS
def test_a_week_that_is_whole_is_left_to_its_publications(world: World, follower: Follower, dataset: str) -> None:
    publish(world, dataset, DAYS)

    assert find(world, follower, "2013-04-09", now=datetime.now(UTC)) == []


@FOLLOWERS
def test_a_week_without_any_day_is_not_due(world: World, follower: Follower, dataset: str) -> None:
    publish(world, dataset, Interval.of("2013-03-25", "2013-04-01").days())

    assert find(world, follower, "2013-04-09") == []


def test_a_week_is_not_judged_while_one_of_its_days_is_about_to_be_scored(world: World) -> None:
    publish(world, "features", DAYS)
    publish(world, "predictions", DAYS[:6])

    assert find(world, "monitor", "2013-04-09", now=datetime.now(UTC)) == []
    assert find(world, "monitor", "2013-04-09") == [WEEK.key]


def test_a_whole_week_that_nobody_judged_is_due_when_its_grace_ends(world: World) -> None:
    publish(world, "predictions", DAYS)
    assert find(world, "monitor", "2013-04-09") == [WEEK.key]

    judge(world, WEEK)
    assert find(world, "monitor", "2013-04-09") == []


# --- looking back, in the run for the newest day ---------------------------------------------------------------------

TODAY = Interval.day(datetime.now(UTC).date())


def ago(*numbers: int) -> list[Interval]:
    return [Interval.day(TODAY.start - timedelta(days=number)) for number in numbers]


def looking_back(world: World, follower: Follower) -> list[str]:
    """What the run for the newest day finds four hours from now."""
    now = datetime.now(UTC) + HOURS
    run = StageRun(world.folder, world.deployment, "r", "toy.ingest/r")
    tick = now.replace(hour=2, minute=0, second=0, microsecond=0)
    newest = Interval.day((tick if tick < now else tick - timedelta(days=1)) - timedelta(days=1, hours=2))
    return [interval.key for interval in find_overdue(run, follower, newest, now=now)]


def test_days_that_were_not_scored_while_scoring_was_off_are_due_as_far_back_as_the_model_catches_up(world: World) -> None:
    world.promote(world.register())
    publish(world, "features", ago(30, 12, 11, 10, 9))
    publish(world, "predictions", ago(11, 9))

    assert looking_back(world, "score") == [day.key for day in ago(12, 10)]
    assert find(world, "score", "2013-04-09") == [], "only the newest day looks back"


def test_days_whose_features_changed_after_they_were_scored_are_due_until_they_are_scored_again(world: World) -> None:
    world.promote(world.register())
    publish(world, "features", ago(5, 4, 3))
    publish(world, "predictions", ago(5, 4, 3))
    publish(world, "features", ago(5), run_id="the same again")
    publish(world, "features", ago(3), run_id="late rows", content="b")
    assert looking_back(world, "score") == [day.key for day in ago(3)]

    publish(world, "predictions", ago(3), run_id="scored again")
    assert looking_back(world, "score") == []


def test_history_that_was_there_before_the_first_champion_is_not_scored(world: World) -> None:
    publish(world, "features", ago(12, 11))
    assert looking_back(world, "score") == []

    world.promote(world.register())
    assert looking_back(world, "score") == []
    # Not even when its features are built again.
    publish(world, "features", ago(12, 11), run_id="again")
    assert looking_back(world, "score") == []


def test_days_that_an_unusable_champion_left_are_scored_by_its_successor_and_no_others(tmp_path: Path) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    *history, scored, left, also_left = ago(7, 6, 4, 3, 2)
    for day in history:
        world.publish(day)
    world.promote(world.register("2013-03-20"))
    for day in (scored, left, also_left):
        world.publish(day)
    by_hand.score(world.settings, "toy", scored)
    before = world.predictions(scored)
    client = MlflowClient(tracking_uri=world.settings.mlflow_url, registry_uri=world.settings.mlflow_url)
    client.delete_model_version("toy", "1")
    with pytest.raises(VersionUnusable):
        by_hand.score(world.settings, "toy", left)

    world.promote(world.register("2013-03-26", seed=6))
    overdue = looking_back(world, "score")
    assert overdue == [left.key, also_left.key]
    for key in overdue:
        by_hand.score(world.settings, "toy", Interval.from_key(key))
    assert looking_back(world, "score") == []
    made_by = {one.interval: one.inputs["version"] for one in world.ledger.publications("toy", "predictions")}
    assert made_by == {scored: 1, left: 2, also_left: 2}
    assert {row["version"] for row in world.predictions(left)} == {2}
    assert world.predictions(scored) == before


def test_a_week_is_judged_again_after_a_day_of_it_came(world: World) -> None:
    monday = TODAY.start - timedelta(days=TODAY.start.weekday() + 7)
    week = Interval(monday - timedelta(days=7), monday)
    publish(world, "predictions", week.days()[:5])
    judge(world, week)
    assert looking_back(world, "monitor") == []

    publish(world, "predictions", week.days()[5:6], run_id="late")
    assert looking_back(world, "monitor") == [week.key]
