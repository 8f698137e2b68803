"""By key, the stored features are used, and what the client gives replaces them; by entity, features are computed now."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.cli.main import main
from perennial.features.point_in_time import feature_schema
from perennial.serving.online_table import Made, OnlineTable, Part
from perennial.spec.folder import read_model
from tests.unit import synthetic
from tests.unit.monitored import DAY, World, make_world
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
    assert 3600 <= stored["age_seconds"] <= (datetime.now(UTC) - NOW).total_seconds() + 3601
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


# --- by entity ---------------------------------------------------------------------------------------------------------

VISIT = {"visit": "not known yet", "moment": "2013-04-08T12:00:00Z", "x": 0.1, "kind": "a"}


def asked_by_entity(place: Path, **replaced: str) -> World:
    """A model with a champion and published tables."""
    world = make_world(place, synthetic.deployment(place), online="label: => online: {}\nlabel:", **replaced)
    world.promote(world.register())
    world.publish(DAY)
    return world


@pytest.fixture(scope="module")
def by_entity(tmp_path_factory: pytest.TempPathFactory) -> World:
    return asked_by_entity(tmp_path_factory.mktemp("entities"))


def test_the_features_of_an_entity_that_is_in_no_table_are_computed_now(by_entity: World) -> None:
    status, said, _ = ask(by_entity, {"entities": [VISIT, {**VISIT, "visit": "another", "x": 2, "kind": None}]})
    assert status == 200, said
    first, second = said["predictions"]
    assert first["prediction"] == predicted(by_entity)
    assert first["features"] == {"computed": ["x", "kind"], "missing": ["noise"]}
    assert first["as_of"] == "2013-04-08T11:00:00+00:00"
    assert second["prediction"] == predicted(by_entity, x=2.0, kind=None)
    status, said, _ = ask(by_entity, {"entities": [{**VISIT, "x": "0.1"}]})
    assert said["predictions"] == [first], "a text is cast as in a file"
    status, said, _ = ask(by_entity, {"entities": [VISIT], "as_of": "2013-04-08T06:00:00+02:00"})
    assert (status, said["predictions"][0]["as_of"]) == (200, "2013-04-08T04:00:00+00:00")


def test_the_command_asks_by_entity(by_entity: World, capsys: pytest.CaptureFixture[str]) -> None:
    with running(by_entity) as (scorer, _):
        url = f"http://127.0.0.1:{scorer.port}"
        words = ["ask", "toy", "--entity", json.dumps(VISIT), "--as-of", "2013-04-08T04:00:00Z", "--url", url]
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert ended.value.code == 0
    [row] = json.loads(capsys.readouterr().out)["predictions"]
    assert (row["prediction"], row["as_of"]) == (predicted(by_entity), "2013-04-08T04:00:00+00:00")


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"entities": [VISIT, {**VISIT, "visit": "b", "x": "\uff11\uff12"}]}, "x", "is a text in one row"),
        ({"entities": [{**VISIT, "x": [1]}]}, "x", "a list is no value of a column"),
        ({"entities": [{**VISIT, "x": "\uff11\uff12"}]}, "x", "x"),
        ({"entities": [VISIT, VISIT]}, "visit", "a row before has the same key"),
        ({"entities": [{**VISIT, "speed": 1}]}, "speed", "is no column of visits"),
        ({"entities": [{"visit": "a", "x": 1}]}, "moment", "moment: missing"),
        ({"entities": [{**VISIT, "moment": "2013-01-01T00:00:00Z"}]}, "moment", "more than 31 days before the newest data"),
        ({"entities": [VISIT], "keys": [{"visit": "a"}]}, "keys", "ask for one of them"),
        ({"entities": [VISIT], "as_of": "2999-01-01T00:00:00Z"}, "as_of", "is no moment up to now"),
        ({"entities": [VISIT], "as_of": "2013-04-08"}, "as_of", "is no moment up to now"),
        ({"features": [{"x": 1}], "as_of": "2013-04-08T00:00:00Z"}, "as_of", "for entities alone"),
        ({"entities": []}, None, "no row"),
        ({"entities": [7]}, None, "must be an object"),
    ],
)
def test_a_wrong_entity_is_refused_with_its_field(
    by_entity: World, body: dict[str, Any], field: str | None, words: str
) -> None:
    status, said, _ = ask(by_entity, body)
    assert status == 422, said
    assert said.get("field") == field
    assert words in said["error"]


def test_an_entity_is_not_asked_if_its_features_depend_on_the_others(tmp_path: Path) -> None:
    world = asked_by_entity(tmp_path)
    (world.folder.path / "features.sql").write_text(
        "SELECT visit, x, count(*) OVER () AS noise, kind FROM entities -- all of them\n"
    )
    world = World(world.deployment, read_model(world.folder.path))
    world.promote(world.register())
    status, said, _ = ask(world, {"entities": [VISIT]})
    assert status == 422, said
    assert "noise depend on which other entities are asked" in said["error"]


def test_an_entity_is_not_asked_before_tables_are_published(tmp_path: Path) -> None:
    world = make_world(tmp_path, synthetic.deployment(tmp_path), online="label: => online: {}\nlabel:")
    world.promote(world.register())
    status, said, _ = ask(world, {"entities": [VISIT]})
    assert (status, said["error"]) == (503, "the tables that features are computed from are not published yet")


def test_a_model_without_online_is_not_asked_by_entity(world: World) -> None:
    status, said, _ = ask(world, {"entities": [VISIT]})
    assert status == 422
    assert "cannot be asked by entity" in said["error"]
