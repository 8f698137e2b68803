"""Which thresholds judge a version: those made for it, and never those of another one without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.monitoring.calibrated import stale_thresholds
from perennial.monitoring.verdicts import DriftVerdict, judge_drift
from perennial.spec.folder import ModelFolder
from perennial.spec.monitoring import DriftThresholds
from tests.unit.monitored import WEEK, World, make_world

NEXT = Interval.of("2013-04-08", "2013-04-15")


def given(version: int | None) -> DriftThresholds:
    columns = {name: {"distance": 0.5, "missing": 0.1} for name in ("x", "noise", "kind", "prediction")}
    return DriftThresholds.model_validate(
        {
            "computed_at": "2013-04-01T00:00:00Z", "history": "2013-01-01--2013-04-01", "window": "week", "replays": 300,
            "seed": 1, "false_alarms": 1.0, "expected": 0.9, "columns": columns, "version": version,
        }
    )  # fmt: skip


def version(number: int, refreshes: int | None = None) -> Any:
    refresh = None if refreshes is None else SimpleNamespace(champion=refreshes)
    return SimpleNamespace(version=number, evaluation=SimpleNamespace(refresh=refresh))


def test_thresholds_are_stale_for_another_training_and_not_for_refreshes() -> None:
    versions = [version(1), version(2), version(3, refreshes=2), version(4, refreshes=3)]
    for known, judged in ((None, 4), (2, 2), (2, 4), (3, 4)):
        assert stale_thresholds("toy", given(known), judged, versions) == ""
    assert stale_thresholds("toy", None, 4, versions) == ""
    assert stale_thresholds("toy", given(1), 4, versions) == (
        "drift.yaml was calibrated for version 1, and version 4 was trained on other rows, for which other windows may be "
        "usual: run `perennial calibrate toy` and review the diff, or write drift: {calibrate: auto}"
    )


def changed(folder: ModelFolder, *, thresholds: DriftThresholds | None = None, **drift: Any) -> ModelFolder:
    policy = folder.spec.drift.model_copy(update={"min_rows": 50, **drift})
    return folder.model_copy(update={"spec": folder.spec.model_copy(update={"drift": policy}), "thresholds": thresholds})


def judge(world: World, folder: ModelFolder, interval: Interval) -> DriftVerdict:
    return judge_drift(folder, world.deployment, interval, directory=world.settings.reports, run_id="monitor")


def kept(verdict: DriftVerdict) -> Mapping[str, Any]:
    assert verdict.details.thresholds is not None
    return verdict.details.thresholds


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    """Nine weeks before the window, two weeks that are scored by two versions."""
    world = make_world(tmp_path, settings)
    world.publish(Interval.of("2013-02-01", "2013-04-15"), rows_a_day=20)
    for interval, seed in ((WEEK, 5), (NEXT, 6)):
        world.score(world.register(seed=seed), interval)
    return world


def test_monitoring_calibrates_each_training_once_from_what_was_known_then(world: World) -> None:
    auto = changed(world.folder, calibrate="auto")
    assert auto.digest == world.folder.digest, "who calibrates changes no version"
    first = judge(world, auto, WEEK)
    made = kept(first)
    assert (first.verdict, first.version, made["version"]) == ("ok", 1, 1)
    assert made["history"] == "2013-02-01--2013-04-01", "nothing of the window itself"
    assert first.details.calibrated == made["computed_at"]
    assert any(
        reason.startswith("thresholds were calibrated for version 1 from 2013-02-01--2013-04-01") for reason in first.reasons
    )
    found = {column.column: column.threshold for column in first.details.columns}
    assert found["x"] == made["columns"]["x"]["distance"]

    again = judge(world, auto, WEEK)
    assert kept(again) == made, "a window that is judged again is judged by the same thresholds"
    other = judge(world, auto, NEXT)
    assert kept(other)["version"] == 2, "another training, other thresholds"

    # A file that a person has reviewed comes first where it was made for the version.
    reviewed = judge(world, changed(world.folder, thresholds=given(1), calibrate="auto"), WEEK)
    assert (reviewed.details.thresholds, reviewed.details.calibrated) == (None, "2013-04-01T00:00:00Z")
    # By hand, stale thresholds hold, and every verdict says so.
    stale = judge(world, changed(world.folder, thresholds=given(1)), NEXT)
    assert any(reason.startswith("drift.yaml was calibrated for version 1") for reason in stale.reasons)


def test_without_enough_history_the_thresholds_of_the_spec_hold_and_that_is_said(world: World) -> None:
    early = Interval.of("2013-02-11", "2013-02-18")
    world.score(2, early)
    verdict = judge(world, changed(world.folder, calibrate="auto"), early)
    assert (verdict.verdict, verdict.details.thresholds) == ("ok", None)
    assert any("are not calibrated for version 2 yet" in reason and "load more history" in reason for reason in verdict.reasons)
