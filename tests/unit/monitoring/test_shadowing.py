"""Versions in the shadow of the champion: out of sight, never in its way, and heard when labels are mature."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.core.errors import StaleDecision
from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings
from perennial.ledger.records import ShadowComparison
from perennial.monitoring.shadowing import MONITOR, ShadowScored, compare_shadows, score_shadows
from perennial.registry.store import Registry
from perennial.scoring.challengers import resolve_shadows
from tests.unit import synthetic
from tests.unit.monitored import DAY, WEEK, World, make_world

NEXT_WEEK = Interval.of("2013-04-08", "2013-04-15")
LATE = utc("2013-06-01")


def world_with(shadow: str, place: Path, settings: Settings, task: str = "binary_classification") -> World:
    return make_world(place, settings, task, shadow=f"owner: testers => owner: testers\nshadow: {shadow}")


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return world_with("{windows: 2, close: 0.05}", tmp_path, settings)


def turn_around(pipeline: Any) -> None:
    """What was likely is unlikely."""
    pipeline[-1].coef_ = -pipeline[-1].coef_


def two(world: World, spoil: Any = None) -> tuple[int, int]:
    """A champion that took the place of another one."""
    old, new = world.register("2013-03-10"), world.register("2013-03-20", seed=6, spoil=spoil)
    for version in (old, new):
        world.promote(version)
    return old, new


def score_all(world: World, version: int, interval: Interval = WEEK, *more: int) -> ShadowScored | None:
    """The champion scores, then those in its shadow, as the DAG has it."""
    scored = world.score(version, interval)
    versions = [*resolve_shadows(world.folder.spec, world.ledger, interval, champion=version), *more]
    if not versions:
        return None
    run_id = f"score-{interval.key}"
    return score_shadows(
        world.folder, world.deployment, interval, champion=version, versions=versions,
        features_snapshot=scored.features_snapshot, run_id=run_id,
        order=world.ledger.next_order("toy", "shadows", interval, run_id),
    )  # fmt: skip


def shadow_rows(world: World, interval: Interval = WEEK) -> list[dict[str, Any]]:
    published = world.ledger.published("toy", "shadows")
    if published is None:
        return []
    rows = world.lake.scan("toy", "shadows", published.snapshots["shadows"], interval=interval, event_time="moment")
    return sorted(rows.read_all().to_pylist(), key=lambda row: (row["version"], row["visit"]))


def compare(world: World, as_of: datetime = LATE) -> list[ShadowComparison]:
    return compare_shadows(world.folder, world.deployment, as_of=as_of, run_id="monitor")


def told(world: World) -> list[tuple[str, str]]:
    return [
        (entry.alert.kind, entry.alert.severity)
        for entry in world.ledger.alerts()
        if entry.alert.kind not in ("promoted", "rollback")
    ]


# --- who scores ------------------------------------------------------------------------------------------------------


def test_the_champion_before_scores_beside_the_new_one_and_nobody_who_reads_predictions_sees_it(world: World) -> None:
    old, new = two(world)
    world.publish(WEEK)
    for _ in range(2):
        done = score_all(world, new)
        assert done is not None
        assert (done.versions, done.rows, done.failed) == ([old], 420, {})
    rows = shadow_rows(world)
    assert {row["version"] for row in rows} == {old}
    assert len(rows) == len({row["visit"] for row in rows}) == 420
    assert set(rows[0]) == set(world.predictions(WEEK)[0])
    assert {row["version"] for row in world.predictions(WEEK)} == {row["version"] for row in world.sink()} == {new}


def test_its_time_is_over_after_the_windows_of_the_spec(world: World) -> None:
    old, new = two(world)
    spec, ledger = world.folder.spec, world.ledger
    world.publish(DAY)
    score_all(world, new, DAY)
    assert resolve_shadows(spec, ledger, Interval.day("2013-04-14"), champion=new) == [old]
    assert resolve_shadows(spec, ledger, Interval.day("2013-04-15"), champion=new) == []


def refresh(world: World, as_of: str) -> int:
    """The champion with newer rows."""
    version = world.register(as_of, seed=6)
    world.registry.promote(
        "toy", version, expected=world.ledger.champion("toy"), reason="newer rows", actor="tester", run_id=None, evidence={},
        action="refresh",
    )  # fmt: skip
    return version


def test_a_refresh_does_not_end_the_comparison_of_two_recipes(world: World) -> None:
    """The former recipe's champion stays in the shadow, and what each refresh predicted counts for the present recipe."""
    old, new = two(world)
    for day in WEEK.days():
        world.publish(day, seed=day.start.day)
    score_all(world, new, Interval(WEEK.start, WEEK.start + timedelta(days=4)))
    newer = refresh(world, "2013-04-01")
    assert resolve_shadows(world.folder.spec, world.ledger, Interval.day("2013-04-05"), champion=newer) == [old]
    score_all(world, newer, Interval(WEEK.start + timedelta(days=4), WEEK.end))
    [seen] = compare(world)
    assert (seen.version, seen.champion, seen.rows, seen.windows) == (old, newer, 420, 1)


def test_a_refresh_puts_nothing_into_the_shadow(world: World) -> None:
    first = world.register("2013-03-10")
    world.promote(first)
    newer = refresh(world, "2013-03-20")
    assert resolve_shadows(world.folder.spec, world.ledger, DAY, champion=newer) == []


def test_without_a_champion_before_or_after_a_rollback_there_is_no_shadow(world: World) -> None:
    spec, ledger = world.folder.spec, world.ledger
    first = world.register("2013-03-10")
    assert resolve_shadows(spec, ledger, DAY, champion=first) == []
    world.promote(first)
    assert resolve_shadows(spec, ledger, DAY, champion=first) == []
    second = world.register("2013-03-20", seed=6)
    world.promote(second)
    assert resolve_shadows(spec, ledger, DAY, champion=first) == [], "an earlier version scores in place of the champion"
    assert resolve_shadows(spec, ledger, DAY, champion=second) == [first]
    world.registry.rollback("toy", actor="tester", reason="bad")
    assert resolve_shadows(spec, ledger, DAY, champion=first) == []


def test_a_refused_candidate_that_came_close_scores_too(world: World) -> None:
    champion = world.register("2013-03-10")
    world.promote(champion)
    rival = replace(synthetic.evaluation_of(0.7).candidate, role="champion", version=champion)
    for seed, auc in ((6, 0.66), (7, 0.6)):
        version = world.register("2013-03-31", seed=seed)
        evaluation = synthetic.evaluation_of(auc, champion=rival)
        decision = replace(synthetic.judge(evaluation), promote=False)
        assert world.ledger.record_decision("toy", version, evaluation, decision)
    assert resolve_shadows(world.folder.spec, world.ledger, DAY, champion=champion) == [2]


# --- never in the way ------------------------------------------------------------------------------------------------


def spoil_coefficients(pipeline: Any) -> None:
    pipeline[-1].coef_[:] = np.nan


def test_a_version_that_cannot_predict_is_left_out_and_the_others_are_not(world: World) -> None:
    old, new = two(world)
    broken = world.register("2013-03-15", seed=7, spoil=spoil_coefficients)
    world.publish(WEEK)
    done = score_all(world, new, WEEK, broken, 99)
    assert done is not None
    assert (done.versions, done.rows) == ([old], 420)
    assert "NaN or infinite" in done.failed[broken]
    assert "not in the ledger" in done.failed[99]
    assert {row["version"] for row in shadow_rows(world)} == {old}


def test_a_shadow_that_cannot_be_loaded_leaves_the_champions_predictions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = two(world)
    world.publish(WEEK)
    files = list((world.settings.state / "mlflow-artifacts").rglob("model.skops"))
    min(files, key=lambda path: path.stat().st_mtime_ns).unlink()  # the older one
    done = score_all(world, new)
    assert done is not None
    assert done.versions == []
    assert "model.skops is missing" in done.failed[old]
    assert {row["version"] for row in world.predictions(WEEK)} == {new}


# --- what labels say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary_classification", "multiclass_classification", "regression"])
def test_a_champion_that_surely_does_worse_is_told_of_once(tmp_path: Path, settings: Settings, task: str) -> None:
    world = world_with("{windows: 2}", tmp_path, settings, task)
    old, new = two(world, turn_around)
    world.publish(WEEK)
    score_all(world, new)
    [found] = compare(world)
    assert (found.version, found.champion, found.outcome, found.rows, found.windows) == (old, new, "champion_worse", 420, 1)
    assert found.interval == WEEK
    metric = world.folder.spec.primary_metric
    assert found.metrics[str(old)][metric] != found.metrics[str(new)][metric]
    assert found.comparison.confidence == pytest.approx(1 - 0.05 / 3)
    assert compare(world) == []
    assert world.ledger.shadow_comparisons("toy") == [found]
    assert told(world) == [("shadow_better", "critical")]
    assert world.registry.champion("toy") == new, "nothing is done by itself"


def test_two_that_are_as_good_are_told_apart_by_nobody(world: World) -> None:
    _, new = two(world)
    world.publish(WEEK)
    score_all(world, new)
    [found] = compare(world)
    assert found.outcome == "no_difference"
    assert told(world) == []


def test_labels_that_are_not_mature_say_nothing_and_each_window_is_looked_at_once(world: World) -> None:
    _, new = two(world, turn_around)
    for week in (WEEK, NEXT_WEEK):
        world.publish(week, seed=week.start.day)
        score_all(world, new, week)
    assert compare(world, as_of=WEEK.start + timedelta(days=6)) == []
    [first] = compare(world, as_of=WEEK.end + timedelta(hours=2))
    assert (first.windows, first.rows) == (1, 420)
    assert compare(world, as_of=WEEK.end + timedelta(days=3)) == []
    [second] = compare(world)
    assert (second.windows, second.rows, second.interval) == (2, 840, Interval(WEEK.start, NEXT_WEEK.end))
    assert told(world) == [("shadow_better", "critical")]


def test_too_few_blocks_are_unknown_rather_than_good(world: World) -> None:
    _, new = two(world, turn_around)
    world.publish(DAY)
    score_all(world, new, DAY)
    [found] = compare(world)
    assert found.outcome == "unknown"
    assert "blocks" in found.reason


def test_a_champion_that_surely_does_worse_is_rolled_back_where_the_spec_says_so(tmp_path: Path, settings: Settings) -> None:
    world = world_with("{windows: 2, rollback: true}", tmp_path, settings)
    old, new = two(world, turn_around)
    world.publish(WEEK)
    score_all(world, new)
    compare(world)
    made = world.ledger.promotions("toy")[-1]
    assert (made.action, made.version, made.previous, made.actor) == ("rollback", old, new, MONITOR)
    assert made.evidence["rows"] == 420
    assert made.evidence["lower"] > 0
    # A person who knows better has the last word: what was seen before that counts no more.
    world.registry.promote_by_hand(world.folder.spec, new, override="labels were wrong", actor="ann")
    assert compare(world) == []
    assert world.registry.champion("toy") == new


def test_what_was_recorded_by_an_attempt_that_died_is_acted_on_by_the_next(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_with("{windows: 2, rollback: true}", tmp_path, settings)
    old, new = two(world, turn_around)
    world.publish(WEEK)
    score_all(world, new)
    with monkeypatch.context() as patch:

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Registry, "rollback", die)
        with pytest.raises(KeyboardInterrupt):
            compare(world)
    assert compare(world) == []
    assert world.registry.champion("toy") == old


def test_a_champion_that_took_its_place_meanwhile_is_not_rolled_back(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_with("{windows: 2, rollback: true}", tmp_path, settings)
    _, new = two(world, turn_around)
    third = world.register("2013-03-22", seed=8)
    world.publish(WEEK)
    score_all(world, new)
    rollback = Registry.rollback

    def overtaken(self: Registry, *arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(Registry, "rollback", rollback)
        world.promote(third)
        with pytest.raises(StaleDecision):
            rollback(self, *arguments, **named)
        raise StaleDecision("as it was")

    monkeypatch.setattr(Registry, "rollback", overtaken)
    compare(world)
    assert world.registry.champion("toy") == third
