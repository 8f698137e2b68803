"""By key: the stored features are used, what the client gives replaces them, and the model says what is done without them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.features.point_in_time import feature_schema
from perennial.serving.online_table import Made, OnlineTable, Part
from tests.unit import synthetic
from tests.unit.monitored import World, make_world
from tests.unit.serving.conftest import running

NOW = datetime.now(UTC)


def asked_by_key(place: Path, missing: str = "refuse") -> World:
    """A model with a champion, whose online table has a new row and an old one."""
    online = f"label: => online: {{missing: {missing}, max_age: 2d}}\nlabel:"
    world = make_world(place, synthetic.deployment(place), online=online)
    world.promote(world.register())
    table = OnlineTable(world.settings.predictions_url)
    parts = []
    for visit, age in (("new", timedelta(hours=1)), ("old", timedelta(days=3))):
        row = {"visit": visit, "moment": NOW, "as_of": NOW - age, "x": 0.1, "noise": None, "kind": "a"}
        rows = pa.Table.from_pylist([row], schema=feature_schema(world.folder.spec))
        parts.append(Part(rows, computed_at=NOW, published_at=NOW - age, snapshot=7))
    table.replace(world.folder, parts, Made(1, NOW, 0))
    return world


def ask(world: World, body: dict[str, Any]) -> Any:
    with running(world) as (_, client):
        answer = client.post("/models/toy/predict", json=body)
        return answer.status_code, answer.json(), client.get("/metrics").text


def predicted(world: World, **changed: Any) -> float:
    row = {"x": 0.1, "noise": None, "kind": "a", **changed}
    kinds = {"x": pa.float64(), "noise": pa.float64(), "kind": pa.string()}
    rows = pa.table({name: pa.array([row[name]] * 2, kind) for name, kind in kinds.items()})
    return float(world.registry.load("toy", 1).predict(rows).values[0])


def test_an_entity_is_answered_from_its_stored_features_and_overrides_are_marked(tmp_path: Path) -> None:
    world = asked_by_key(tmp_path)
    keys = [{"visit": "new"}, {"visit": "new"}]
    status, said, _ = ask(world, {"keys": keys, "features": [{}, {"x": 2, "kind": None}]})
    assert status == 200
    stored, replaced = said["predictions"]
    assert stored["prediction"] == predicted(world)
    assert stored["features"] == {"stored": ["x", "kind"], "given": [], "missing": ["noise"]}
    assert stored["as_of"] == (NOW - timedelta(hours=1)).isoformat()
    assert 3600 <= stored["age_seconds"] < 3700
    assert stored["features_snapshot"] == 7
    assert replaced["prediction"] == predicted(world, x=2.0, kind=None)
    assert replaced["features"] == {"stored": [], "given": ["x"], "missing": ["noise", "kind"]}


@pytest.mark.parametrize(
    ("missing", "visit", "status", "fallback"),
    [
        ("refuse", "nobody", 404, None),
        ("refuse", "old", 503, None),
        ("null", "nobody", 200, "null"),
        ("null", "old", 200, "null"),
        ("last", "nobody", 404, None),
        ("last", "old", 200, "last"),
    ],
)
def test_the_model_says_what_is_done_without_a_new_row(
    tmp_path: Path, missing: str, visit: str, status: int, fallback: str | None
) -> None:
    world = asked_by_key(tmp_path, missing)
    answered, said, metrics = ask(world, {"keys": [{"visit": visit}]})
    assert answered == status
    if status != 200:
        assert said["row"] == 0
        return
    [row] = said["predictions"]
    assert row["fallback"] == fallback
    assert row["prediction"] == (predicted(world) if fallback == "last" else predicted(world, x=None, kind=None))
    assert f'perennial_serve_fallbacks_total{{kind="{fallback}",model="toy"}} 1.0' in metrics


@pytest.mark.parametrize(("missing", "status"), [("refuse", 503), ("null", 200)])
def test_without_the_database_the_model_says_what_is_done_too(tmp_path: Path, missing: str, status: int) -> None:
    world = asked_by_key(tmp_path, missing)
    broken = world.settings.state / "broken.db"
    broken.write_bytes(b"no database" * 1_000)
    settings = world.settings.model_copy(update={"predictions_url": f"sqlite:///{broken}"})
    answered, said, _ = ask(World(type(world.deployment)(settings), world.folder), {"keys": [{"visit": "new"}]})
    assert answered == status, said


def test_a_model_without_online_is_not_asked_by_key(world: World) -> None:
    status, said, _ = ask(world, {"keys": [{"visit": "new"}]})
    assert status == 422
    assert "cannot be asked by key" in said["error"]
