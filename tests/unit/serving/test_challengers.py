"""Who answers beside the champion: those that the ledger says, some of the keys, and nobody once the ledger says so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.pool import NullPool

from perennial.evidence.evaluation import GainOverChampion
from perennial.features.point_in_time import feature_schema
from perennial.ledger.records import ShadowComparison
from perennial.serving import challengers
from perennial.serving.challengers import Challengers, are_drawn, in_share
from perennial.serving.champion import Champions, Served
from perennial.serving.online_table import Made, OnlineTable, Part
from perennial.serving.service import Scorer
from tests.unit import synthetic
from tests.unit.monitored import WEEK, World, make_world
from tests.unit.serving.conftest import running

VISITS = [f"v{number}" for number in range(60)]


def world_with(place: Path, online: str = "canary: 50%", shadow: str = "{windows: 2}", **models: Any) -> World:
    """A model with two champions, the second one in place of the first, and rows of features for some entities."""
    world = make_world(
        place, synthetic.deployment(place), online=f"label: => online: {{{online}}}\nlabel:",
        shadow=f"owner: testers => owner: testers\nshadow: {shadow}",
    )  # fmt: skip
    for as_of, seed in (("2013-03-10", 5), ("2013-03-20", 6)):
        world.promote(world.register(as_of, seed=seed, **(models if seed == 5 else {})))
    world.publish()
    store(world, VISITS)
    return world


def store(world: World, visits: list[str]) -> None:
    now = datetime.now(UTC)
    rows = [
        {"visit": visit, "moment": now, "as_of": now - timedelta(hours=1), "x": number / 10, "noise": None, "kind": "a"}
        for number, visit in enumerate(visits)
    ]
    part = Part(pa.Table.from_pylist(rows, schema=feature_schema(world.folder.spec)), now, now, snapshot=7)
    OnlineTable(world.settings.predictions_url).replace(world.folder, [part], Made(1, now, 0))


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def asked(world: World) -> Iterator[tuple[Scorer, httpx.Client]]:
    """A scorer that knows who is beside the champion."""
    with running(world) as (scorer, client):
        until(lambda: scorer.challengers.others(scorer.champions.of("toy")))
        yield scorer, client


def ask(client: httpx.Client, *visits: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/models/toy/predict", json={"keys": [{"visit": visit} for visit in visits], **more})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    assert answer.headers["x-model-version"] == str(said["version"])
    return said


def by_role(client: httpx.Client, visits: list[str] = VISITS) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"champion": [], "challenger": []}
    for visit in visits:
        found[ask(client, visit)["role"]].append(visit)
    return found


def looked(world: World, champions: Champions) -> Challengers:
    beside = Challengers(world.deployment, champions)
    beside.look()
    return beside


def in_memory(world: World) -> Champions:
    champions = Champions(world.deployment)
    champions.look()
    champions.wait()
    return champions


def compare(world: World, outcome: str) -> None:
    """Record a comparison of the two, as monitoring does."""
    gain = GainOverChampion(
        gain=0.0, low=None, high=None, lower=None, upper=None, identical=0, blocks=7, block="day",
        resamples=1000, seed=1, confidence=0.99,
    )  # fmt: skip
    reign = world.ledger.promotions("toy")[-1]
    world.ledger.record_shadow_comparison(
        ShadowComparison("toy", reign.id, 1, 1, 2, WEEK, outcome, "", 420, {}, gain, WEEK.end, "monitor")
    )


# --- which keys --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(worlds: dict[str, World]) -> Served:
    champions = in_memory(worlds["binary_classification"])
    return champions.of("toy")


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_has_all_of_a_smaller_one(text: str, one: float, other: float) -> None:
    text = text.encode("utf-8", "replace").decode()
    small, large = sorted((one, other))
    assert in_share(large, text) or not in_share(small, text)
    assert in_share(1, text)
    assert not in_share(0, text)


def drawn(served: Served, keys: range, share: float = 0.05) -> set[int]:
    return {key for key in keys if are_drawn(share, served, pa.table({"id": [key]}))}


@given(st.integers(0, 2**40), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_about_the_share_of_the_keys_is_drawn(start: int, share: float) -> None:
    count = 4_000
    found = sum(in_share(share, f"toy\n2\n[{key}]") for key in range(start, start + count))
    # Six standard deviations.
    assert abs(found - share * count) <= 6 * (share * (1 - share) * count) ** 0.5


def test_which_keys_are_drawn_is_written_down(served: Served) -> None:
    """The same in each process, on each machine and in each release."""
    assert sorted(drawn(served, range(100))) == [26, 29, 32, 42, 69, 70, 92, 96]


def test_other_keys_are_drawn_for_another_model_and_for_another_challenger(served: Served) -> None:
    keys, second = range(2_000), replace(served, loaded=replace(served.loaded, version=2))
    assert len({frozenset(drawn(one, keys)) for one in (served, replace(served, model="other"), second)}) == 3


def test_a_request_of_several_entities_is_drawn_only_if_all_of_them_are(served: Served) -> None:
    some = sorted(drawn(served, range(1_000)))
    assert are_drawn(0.05, served, pa.table({"id": some}))
    other = next(key for key in range(1_000) if key not in some)
    assert not are_drawn(0.05, served, pa.table({"id": [*some, other]}))


# --- who answers -------------------------------------------------------------------------------------------------------


def test_a_share_of_the_keys_is_answered_by_the_former_champion_the_same_ones_each_time(tmp_path: Path) -> None:
    world = world_with(tmp_path)
    with asked(world) as (_, client):
        found = by_role(client)
        assert len(found["challenger"]) > 10
        assert len(found["champion"]) > 10
        assert by_role(client) == found
        before, now = (ask(client, found[role][0]) for role in ("challenger", "champion"))
        assert (before["version"], now["version"]) == (1, 2)
        both = ask(client, found["challenger"][0], found["champion"][0])
        assert (both["version"], both["role"]) == (2, "champion"), "one version answers a request"
        by_features = client.post("/models/toy/predict", json={"features": [{"x": 1}]}).json()
        assert (by_features["version"], by_features["role"]) == (2, "champion"), "nothing says which entity it is"
        [told] = client.get("/models").json()["models"]
        assert told["challenger"] == {"version": 1, "share": 0.5}
        metrics = client.get("/metrics").text
    assert (
        f'perennial_serve_answered_rows_total{{model="toy",role="challenger"}} {2 * len(found["challenger"]) + 1}.0' in metrics
    )
    with asked(world) as (_, client):
        assert by_role(client) == found, "after a restart"


def test_the_challengers_answer_is_its_own_prediction(tmp_path: Path) -> None:
    world = world_with(tmp_path)
    with asked(world) as (_, client):
        visit = by_role(client)["challenger"][0]
        [said] = ask(client, visit)["predictions"]
    x = VISITS.index(visit) / 10
    kinds = {"x": pa.float64(), "noise": pa.float64(), "kind": pa.string()}
    rows = pa.table({name: pa.array([value] * 2, kinds[name]) for name, value in (("x", x), ("noise", None), ("kind", "a"))})
    assert said["prediction"] == world.registry.load("toy", 1).predict(rows).values[0]


def test_without_a_share_the_champion_answers_all_and_the_shadow_is_recorded(tmp_path: Path) -> None:
    world = world_with(tmp_path, online="missing: refuse")
    with asked(world) as (_, client):
        assert by_role(client)["challenger"] == []
        [told] = client.get("/models").json()["models"]
        assert told["challenger"] is None


# --- the end of it -----------------------------------------------------------------------------------------------------


def test_a_comparison_that_finds_it_worse_takes_it_back(tmp_path: Path) -> None:
    world = world_with(tmp_path)
    with asked(world) as (_, client):
        visit = by_role(client)["challenger"][0]
        compare(world, "challenger_worse")
        until(lambda: ask(client, visit)["role"] == "champion")
        assert by_role(client)["challenger"] == []


def test_a_comparison_that_does_not_find_it_worse_leaves_it(tmp_path: Path) -> None:
    world = world_with(tmp_path)
    champions = in_memory(world)
    compare(world, "no_difference")
    assert looked(world, champions).of(champions.of("toy")) is not None


@pytest.mark.parametrize("change", ["rollback", "promotion"])
def test_a_change_of_the_champion_ends_it_at_once(tmp_path: Path, change: str) -> None:
    world = world_with(tmp_path)
    champions = in_memory(world)
    beside = looked(world, champions)
    if change == "rollback":
        world.registry.rollback("toy", actor="tester", reason="2 was wrong")
    else:
        world.promote(world.register("2013-03-25", seed=7))
    champions.look()
    champions.wait()
    now = champions.of("toy")
    assert beside.of(now) is None, "before the ledger is asked who is beside the new champion"
    assert beside.others(now) == []
    beside.look()
    found = beside.of(now)
    assert (None if found is None else found.version) == (None if change == "rollback" else 2)


def test_nobody_whom_the_gates_refused_answers_clients(tmp_path: Path) -> None:
    world = make_world(
        tmp_path, synthetic.deployment(tmp_path), online="label: => online: {canary: 50%}\nlabel:",
        shadow="owner: testers => owner: testers\nshadow: {windows: 2, close: 0.05}",
    )  # fmt: skip
    world.promote(world.register("2013-03-10"))
    rival = replace(synthetic.evaluation_of(0.7).candidate, role="champion", version=1)
    version, evaluation = world.register("2013-03-31", seed=6), synthetic.evaluation_of(0.66, champion=rival)
    world.ledger.record_decision("toy", version, evaluation, replace(synthetic.judge(evaluation), promote=False))
    world.publish()
    champions = in_memory(world)
    beside = looked(world, champions)
    assert [one.version for one in beside.others(champions.of("toy"))] == [2]
    assert beside.of(champions.of("toy")) is None


def test_without_the_ledger_it_goes_on_for_a_while_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(tmp_path)
    champions = in_memory(world)
    beside, champion = looked(world, champions), champions.of("toy")
    database = Path(world.settings.database_url.removeprefix("sqlite:///"))
    shutil.move(database, database.with_name("away"))
    beside.look()
    assert beside.of(champion) is not None
    monkeypatch.setattr(challengers, "UNHEARD", timedelta(0))
    beside.look()
    assert beside.of(champion) is None
    monkeypatch.undo()
    database.unlink()
    shutil.move(database.with_name("away"), database)
    beside.look()
    assert beside.of(champion) is not None


def test_a_version_that_cannot_be_loaded_leaves_the_champion_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = world_with(tmp_path)
    oldest = min(world.settings.state.rglob("model.skops"), key=lambda path: path.stat().st_mtime_ns)
    kept = oldest.read_bytes()
    oldest.unlink()
    monkeypatch.setattr(challengers, "AGAIN", timedelta(0))
    champions = in_memory(world)
    beside = looked(world, champions)
    beside.look()
    assert beside.of(champions.of("toy")) is None
    assert beside.others(champions.of("toy")) == []
    assert caplog.text.count("version 1 does not answer beside the champion") == 1
    oldest.write_bytes(kept)
    beside.look()
    assert beside.of(champions.of("toy")) is not None


def test_what_the_challenger_cannot_answer_the_champion_does(tmp_path: Path) -> None:
    def spoil(pipeline: Any) -> None:
        pipeline[-1].coef_[:] = float("nan")

    world = world_with(tmp_path, spoil=spoil)
    with asked(world) as (_, client):
        assert by_role(client)["challenger"] == []
        metrics = client.get("/metrics").text
    assert 'perennial_serve_left_out_total{model="toy",role="challenger",why="failed"}' in metrics


# --- in the shadow -----------------------------------------------------------------------------------------------------


def recorded(world: World) -> list[dict[str, Any]]:
    engine = sa.create_engine(world.settings.predictions_url, poolclass=NullPool)
    with engine.connect() as connection:
        query = (
            "SELECT request_id, row, version, role, features, prediction, asked_at FROM online_requests ORDER BY row, version"
        )
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def test_each_answer_has_one_in_the_shadow_on_the_same_features(tmp_path: Path) -> None:
    world = world_with(tmp_path)
    with asked(world) as (_, client):
        found = by_role(client)
        client.post("/models/toy/predict", json={"features": [{"x": 1}, {"kind": "b"}]})
    rows = recorded(world)
    assert len(rows) == 2 * (len(VISITS) + 2)
    pairs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["request_id"], row["row"]), []).append(row)
    roles = []
    for first, second in pairs.values():
        assert (first["version"], second["version"]) == (1, 2)
        assert first["features"] == second["features"]
        assert first["asked_at"] == second["asked_at"]
        roles.append((first["role"], second["role"]))
    assert roles.count(("challenger", "shadow")) == len(found["challenger"])
    assert roles.count(("shadow", "champion")) == len(found["champion"]) + 2


def test_what_is_too_much_for_the_shadow_is_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perennial.serving import shadowing

    monkeypatch.setattr(shadowing, "MOST_ROWS", 3)
    monkeypatch.setattr(shadowing, "EVERY", 3600)
    world = world_with(tmp_path, online="record: true")
    with asked(world) as (_, client):
        for _ in range(5):
            client.post("/models/toy/predict", json={"features": [{"x": 1}]}).raise_for_status()
        metrics = client.get("/metrics").text
    assert 'perennial_serve_left_out_total{model="toy",role="shadow",why="full"} 2.0' in metrics
    assert [row["role"] for row in recorded(world)].count("shadow") == 3, "those in the queue are answered at the end"


def test_a_version_that_fails_in_the_shadow_costs_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(pipeline: Any) -> None:
        pipeline[-1].coef_[:] = float("nan")

    world = world_with(tmp_path, online="record: true", spoil=spoil)
    with asked(world) as (_, client):
        for visit in VISITS[:5]:
            assert ask(client, visit)["version"] == 2
        until(lambda: 'role="shadow",why="failed"} 5.0' in client.get("/metrics").text)
    assert {row["role"] for row in recorded(world)} == {"champion"}


def test_no_request_fails_while_versions_come_and_go(tmp_path: Path) -> None:
    world = world_with(tmp_path)
    with asked(world) as (_, client):
        stop = False

        def load() -> tuple[int, set[tuple[int, str]]]:
            count, seen = 0, set()
            while not stop:
                said = ask(client, VISITS[count % len(VISITS)])
                seen.add((said["version"], said["role"]))
                count += 1
            return count, seen

        with ThreadPoolExecutor(4) as threads:
            running_ones = [threads.submit(load) for _ in range(4)]
            try:
                world.registry.rollback("toy", actor="tester", reason="2 was wrong")
                until(lambda: ask(client, VISITS[0])["version"] == 1)
                world.promote(world.register("2013-03-22", seed=8))
                until(lambda: 3 in {ask(client, visit)["version"] for visit in VISITS[:10]})
            finally:
                stop = True
            done = [one.result() for one in running_ones]
    assert all(count for count, _ in done)
    assert {version for _, seen in done for version, _ in seen} >= {1, 3}
