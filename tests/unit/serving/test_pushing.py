"""Rows that clients push are stored before they are confirmed, and only by those who may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from perennial.serving.tokens import make_token
from tests.unit import synthetic
from tests.unit.monitored import World, make_world
from tests.unit.serving.conftest import running

ADDRESS = "/models/toy/tables/outcomes"


def pushable(place: Path) -> World:
    online = "label: => online: {push: [outcomes]}\nlabel:"
    world = make_world(place, synthetic.deployment(place), online=online)
    world.promote(world.register())
    return world


def row(visit: str, y: Any = 1.5) -> dict[str, Any]:
    return {"visit": visit, "moment": "2013-04-01T10:00:00Z", "y": y}


def stored(world: World) -> int:
    with sa.create_engine(world.settings.predictions_url).connect() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM pushed_rows")).scalar_one())


def test_good_rows_are_stored_once_and_bad_ones_are_told_with_their_field(tmp_path: Path) -> None:
    world = pushable(tmp_path)
    with running(world) as (_, client):
        rows = [row("a"), row("b", "x"), {**row("c"), "colour": 1}, row("d", 2), {"visit": "e", "y": 1.0}]
        answer = client.post(ADDRESS, json={"rows": rows})
        said = answer.json()
        assert (answer.status_code, said["accepted"], said["new"]) == (200, 2, 2)
        assert [(one["row"], one["field"]) for one in said["refused"]] == [(1, "y"), (2, "colour"), (4, "moment")]
        assert stored(world) == 2

        again = client.post(ADDRESS, json={"rows": [row("a"), row("d", 2)]}).json()
        assert (again["accepted"], again["new"], again["refused"]) == (2, 0, [])
        assert stored(world) == 2

        refused = client.post(ADDRESS, json={"rows": [row("b", "x")]})
        assert (refused.status_code, refused.json()["row"], refused.json()["field"]) == (422, 0, "y")
        assert client.post("/models/toy/tables/visits", json={"rows": [row("a")]}).status_code == 404
        figures = client.get("/metrics").text
        assert 'perennial_serve_pushed_total{model="toy",outcome="refused",table="outcomes"} 3.0' in figures


def test_only_a_token_that_may_push_pushes(tmp_path: Path) -> None:
    world = pushable(tmp_path)
    tokens = world.settings.state / "tokens.json"
    asks = make_token(tokens, "asks", ("toy",))
    pushes = make_token(tokens, "pushes", ("toy",), push=True)
    other = make_token(tokens, "other", ("other",), push=True)
    with running(world) as (_, client):
        for token, status in ((asks, 403), (other, 403), (pushes, 200)):
            headers = {"Authorization": f"Bearer {token}"}
            assert client.post(ADDRESS, json={"rows": [row("a")]}, headers=headers).status_code == status
    assert stored(world) == 1
