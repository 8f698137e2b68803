"""The champion's recipe gets newer rows each week, under a net; rows that the net doubts are held back until somebody releases
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from perennial.cli import by_hand
from perennial.core.errors import NothingToRefresh, StaleDecision
from perennial.core.intervals import Interval
from perennial.ledger.records import VersionRecord
from perennial.registry.folders import FOLDER
from perennial.registry.runs import Runs
from perennial.spec.folder import read_model
from perennial.stages.refresh import decide_refresh, fit_refresh, promote_refresh, release
from perennial.stages.run import StageRun
from tests.unit import synthetic
from tests.unit.monitored import World, make_world

HISTORY = Interval(synthetic.START, synthetic.START + timedelta(days=25))
WEEKS = [Interval(HISTORY.end + timedelta(weeks=n), HISTORY.end + timedelta(weeks=n + 1)) for n in range(8)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Boosters on a few rows; with more threads than free cores they would wait for each other most of the time."""
    with threadpool_limits(1):
        yield


def trained(place: Path, **changes: str) -> World:
    """A world with a champion that was trained on three weeks; ``changes`` are those of ``model.yaml``."""
    with threadpool_limits(1):
        world = make_world(place, synthetic.deployment(place), **changes)
        synthetic.publish_tables(world.lake, world.ledger, synthetic.make_rows(25), HISTORY)
        by_hand.train(world.settings, "toy", HISTORY.end)
        assert world.ledger.champion("toy") == 1
        return world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A good week, one with inverted labels, a good one, a training; what was held back is released; a good week."""
    world = trained(tmp_path_factory.mktemp("refreshed"))
    with threadpool_limits(1):
        known = len(world.ledger.alerts())
        live(world, WEEKS[0])
        assert len(world.ledger.alerts()) == known  # a refresh is everyday work, and no news for anybody
        live(world, WEEKS[1], change=inverted)
        assert world.ledger.champion("toy") == 2
        assert world.ledger.withheld("toy") == [WEEKS[1]]
        live(world, WEEKS[2])
        by_hand.train(world.settings, "toy", WEEKS[2].end)
        by_hand.release(world.settings, "toy", WEEKS[1], refreshes=False, reason="the labels were right")
        live(world, WEEKS[3])
        return world


def live(world: World, week: Interval, *, change: Callable[[pd.DataFrame], Any] | None = None) -> str:
    """A week comes, and the champion is refreshed."""
    deliver(world, week, change=change)
    return by_hand.refresh(world.settings, "toy", week.end)


def deliver(world: World, week: Interval, *, change: Callable[[pd.DataFrame], Any] | None = None) -> None:
    rows = synthetic.make_rows(7, seed=week.start.toordinal(), start=week.start)
    if change is not None:
        change(rows)
    synthetic.publish_tables(world.lake, world.ledger, rows, week, run_id=f"ingest-{week.key}")


def inverted(rows: pd.DataFrame) -> None:
    rows["y"] = 1 - rows["y"]


def record_of(world: World, version: int) -> VersionRecord:
    record = world.ledger.version("toy", version)
    assert record is not None
    return record


def run_of(world: World, name: str = "refresh-1") -> StageRun:
    return StageRun(world.folder, world.deployment, name, f"toy.refresh/{name}")


def test_a_refreshed_version_serves_the_same_recipe_with_newer_rows(world: World) -> None:
    before, after = record_of(world, 1), record_of(world, 2)
    assert after.is_refresh
    assert after.training.recipe == before.training.recipe != ""
    assert after.learned_from.endswith(f"{WEEKS[0].end:%Y-%m-%d}")
    assert after.served != before.served
    assert world.registry.load("toy", 2).trained_on == after.learned_from
    assert [(made.version, made.action) for made in world.ledger.promotions("toy")][:3] == [
        (1, "promote"), (2, "refresh"), (4, "refresh"),
    ]  # fmt: skip


def test_its_figures_are_those_of_the_model_before_it_on_rows_that_this_had_not_learned_from(world: World) -> None:
    record = record_of(world, 2)
    assert record.judged == record_of(world, 1).served
    assert record.evaluation.interval == WEEKS[0].key
    assert record.evaluation.candidate.trained_on == record_of(world, 1).learned_from
    assert record.evaluation.candidate.metrics["roc_auc"] > 0.8
    assert record.evaluation.refit is not None
    assert record.evaluation.refit.agreement is not None
    assert record.evaluation.refit.agreement > 0.9
    described = world.registry._client.get_model_version("toy", "2").description
    assert "The metrics are those of version 1, the model before it" in (described or "")


def test_rows_that_turn_the_model_round_are_withheld_and_the_champion_stays(world: World) -> None:
    assert "refresh.skill" in record_of(world, 3).decision.refused_by
    [alert] = [entry.alert for entry in world.ledger.alerts() if entry.alert.kind == "refresh_refused"]
    assert f"perennial data release toy {WEEKS[1].start:%Y-%m-%d} {WEEKS[1].end:%Y-%m-%d}" in alert.text
    assert "Version 2 stays champion" in alert.text


def test_nothing_learns_from_withheld_rows_until_they_are_released(world: World) -> None:
    assert record_of(world, 4).training.withheld == [WEEKS[1].key]
    assert record_of(world, 5).training.withheld == [WEEKS[1].key]
    assert record_of(world, 6).training.withheld == []
    assert "released" in by_hand.held(world.settings, "toy")
    assert "the labels were right" in by_hand.held(world.settings, "toy")


def test_a_bad_week_does_not_cost_the_week_after_it(world: World) -> None:
    """The refused refresh has learned from bad rows; the champion is better on the good ones, so it is what must agree."""
    found = record_of(world, 4).evaluation.refresh
    assert found is not None
    assert (found.champion, found.reference) == (2, 2)
    assert record_of(world, 4).decision.promote


def test_a_champion_that_has_learned_from_the_newest_rows_is_not_refreshed(world: World) -> None:
    with pytest.raises(NothingToRefresh, match="has learned from the rows up to"):
        by_hand.refresh(world.settings, "toy", WEEKS[3].end)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("features.sql", " x,", " 7 * x AS x,", id="features"),
        pytest.param("model.yaml", "min_rows: 100", "min_rows: 90", id="nothing that features are made of"),
    ],
)
def test_the_files_of_a_folder_that_has_changed_are_fetched_once_in_a_refresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str
) -> None:
    world = trained(tmp_path)
    changed = world.folder.path / file
    assert old in changed.read_text()
    changed.write_text(changed.read_text().replace(old, new))
    deliver(world, WEEKS[0])
    fetched: list[str] = []
    fetch = Runs.files_of_run

    def counted(self: Runs, mlflow_run_id: str, path: str) -> dict[str, bytes]:
        fetched.append(path)
        return fetch(self, mlflow_run_id, path)

    monkeypatch.setattr(Runs, "files_of_run", counted)
    run = replace(run_of(world), folder=read_model(world.folder.path))
    refreshed = fit_refresh(run, as_of=WEEKS[0].end)

    assert fetched == [FOLDER]
    assert refreshed.training_set.folder_digest == record_of(world, 1).spec_digest


def test_a_model_without_champion_is_not_refreshed(tmp_path: Path) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path))
    with pytest.raises(NothingToRefresh, match=r"has no champion to refresh: run toy\.train first"):
        by_hand.refresh(world.settings, "toy", HISTORY.end)


def ask_a_person(world: World, week: Interval) -> None:
    """With ``approval: {refreshes: ask}``, a refresh waits until a person has approved it."""
    spec = world.folder.spec
    asks = spec.model_copy(
        update={"promotion": "approval", "approval": spec.approval.model_copy(update={"refreshes": "ask"})}
    )  # fmt: skip
    run = replace(run_of(world, "asked"), folder=world.folder.model_copy(update={"spec": asks}))
    deliver(world, week)
    decided = decide_refresh(run, fit_refresh(run, as_of=week.end))
    assert promote_refresh(run, decided, cause="test", actor="tester").became == "waiting"
    assert world.ledger.champion("toy") == 1
    answer = {"answer": "approved", "approver": "airflow:ann", "words": "as every week", "answered_at": "2013-04-02T08:00:00Z"}
    assert promote_refresh(run, decided, cause="test", actor="tester", answer=answer).became == "champion"
    made = world.ledger.promotions("toy")[-1]
    assert (made.action, made.actor, made.version) == ("refresh", "airflow:ann", 2)
    assert "as every week" in made.reason


def test_refreshes_that_did_harm_are_undone_and_stop_until_they_are_released(tmp_path: Path) -> None:
    world = trained(tmp_path, most="min_rows: 100 => min_rows: 100, max_rows: 1000")
    ask_a_person(world, WEEKS[0])
    learned = record_of(world, 2).training
    assert learned.rows["window"] + learned.rows["holdout"] == 1_000
    assert learned.label_coverage("window") == 1, "rows that max_rows cuts have labels all the same"
    live(world, WEEKS[1])
    deliver(world, WEEKS[2])
    run = run_of(world)
    refreshed, again = (fit_refresh(run, as_of=WEEKS[2].end) for _ in range(2))
    assert refreshed.fitted == again.fitted  # a retry fits nothing
    found = refreshed.evaluation.refresh
    assert found is not None
    assert found.rolling is not None
    assert found.rolling.anchor == 1
    assert list(found.rolling.versions.values()) == [2, 3]
    # How strong the evidence is, is tested where it is computed. Here it is taken as strong.
    harmful = replace(found, rolling=replace(found.rolling, evidence=1e6))
    decided = decide_refresh(run, replace(refreshed, evaluation=replace(refreshed.evaluation, refresh=harmful)))
    told = [promote_refresh(run, decided, cause="test", actor="tester").words for _ in range(2)]
    assert "version 1 is champion again, and refreshes have stopped" in told[0]
    assert world.ledger.champion("toy") == 1
    assert [entry.alert.severity for entry in world.ledger.alerts() if entry.alert.kind == "refreshes_stopped"] == ["critical"]
    deliver(world, WEEKS[3])
    with pytest.raises(NothingToRefresh, match="perennial data release toy --refreshes"):
        by_hand.refresh(world.settings, "toy", WEEKS[3].end)
    assert release(run_of(world, "release"), "refreshes", None, reason="repaired", actor="tester")
    late = run_of(world, "refresh-2")
    decided = decide_refresh(late, fit_refresh(late, as_of=WEEKS[3].end))
    other = world.register(as_of="2013-03-25")
    world.registry.promote_by_hand(world.folder.spec, other, override="test", actor="tester")
    with pytest.raises(StaleDecision):  # the champion was replaced meanwhile
        promote_refresh(late, decided, cause="test", actor="tester")
    assert world.ledger.champion("toy") == other
