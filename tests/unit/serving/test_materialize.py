"""What can be asked by key is what was published, and for entities to come what is known now."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.cli import by_hand
from perennial.core.errors import SnapshotMissing, SpecError
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from perennial.features.point_in_time import compute, with_as_of
from perennial.features.publish import publish_features
from perennial.serving.materialize import Materialized, materialize
from perennial.serving.online_table import Found, OnlineTable, place_of
from perennial.spec.folder import ModelFolder, read_model
from tests.unit.features.shop import SPEC, april, hours, ingest_tables, shop, tables_of
from tests.unit.monitored import DAY, make_world

#: An order can be known three days before it is placed.
EARLY = {**SPEC["tables"], "orders": {**SPEC["tables"]["orders"], "known": "placed - INTERVAL 3 DAY"}}
#: How long ago the customer's last known return was, and how many there were.
SQL = """
SELECT e.order_id, e.customer, count(r.order_id) AS sent_back,
  date_diff('minute', max(r._known_at), any_value(e.as_of)) AS since
FROM entities e LEFT JOIN orders o ON o.customer = e.customer
LEFT JOIN returned r ON r.order_id = o.order_id AND r._known_at <= e.as_of AND r.placed > e.placed - INTERVAL 2 DAY
GROUP BY e.order_id, e.customer
"""
FEATURES = {"numeric": ["since", "sent_back"], "categorical": ["customer"], "lookback": "2d"}
#: In the middle of the newest but one of five days.
NOW = hours(3 * 24 + 12)


@pytest.fixture
def deployment(settings_on_each_database: Settings, tmp_path: Path) -> Deployment:
    parts = Deployment(settings_on_each_database.model_copy(update={"models": tmp_path / "models"}))
    parts.ledger.migrate()
    return parts


def orders(path: Path, sql: str = SQL, **online: Any) -> ModelFolder:
    return shop(path, sql, tables=EARLY, features=FEATURES, online=online)


def tables(folder: ModelFolder) -> dict[str, pa.Table]:
    """Four orders on each of five days, known three days before."""
    found = tables_of(folder, [24 * day + hour for day in range(5) for hour in (1, 7, 13, 19)])
    placed = found["orders"]["placed"].to_pylist()
    known = pa.array([one - timedelta(days=3) for one in placed], found["orders"].schema.field("_known_at").type)
    place = found["orders"].schema.get_field_index("_known_at")
    return {**found, "orders": found["orders"].set_column(place, found["orders"].schema.field("_known_at"), known)}


def publish(parts: Deployment, folder: ModelFolder) -> None:
    days = april(1, 5)
    ingest_tables(parts.lake, parts.ledger, folder, days, tables(folder))
    order = parts.ledger.next_order("returns", "features", days, "features")
    publish_features(folder, parts.lake, days, order=order, run_id="features")


def fill(parts: Deployment, folder: ModelFolder, now: datetime = NOW) -> Materialized:
    return materialize(folder, parts, versions=[], now=now, run_id=f"run-{now}")


def ask(parts: Deployment, folder: ModelFolder, *names: str) -> Found:
    return OnlineTable(parts.settings.predictions_url).read(
        place_of(folder), pa.table({"order_id": pa.array(names, pa.string())})
    )


def rows(found: Found) -> list[dict[str, Any]]:
    """Features, event time and moment of what was asked, in this order."""
    places = [place for place in found.places if place is not None]
    return [{**found.features[place], "placed": found.event_time[place], "as_of": found.as_of[place]} for place in places]


def without_key(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "order_id"} for row in rows]


def published(parts: Deployment) -> dict[str, dict[str, Any]]:
    newest = parts.ledger.published("returns", "features")
    assert newest is not None
    rows = parts.lake.scan("returns", "features", newest.snapshots["features"], interval=april(5, 5), event_time="placed")
    return {row["order_id"]: row for row in rows.read_all().to_pylist()}


def test_entities_of_the_newest_day_have_the_features_that_were_published(tmp_path: Path, deployment: Deployment) -> None:
    folder = orders(tmp_path, horizon=None)
    publish(deployment, folder)

    done = fill(deployment, folder)

    wanted = published(deployment)
    found = ask(deployment, folder, *wanted, "o1")
    assert (done.day, done.rows, done.soon) == (april(5, 5), {"features": 4}, {"features": 0})
    assert found.places[-1] is None
    assert rows(found) == without_key(wanted.values())
    newest = deployment.ledger.published("returns", "features")
    made_from = deployment.ledger.published("returns", "tables")
    assert newest is not None
    assert made_from is not None
    assert set(found.snapshot) == {newest.snapshots["features"]}
    assert set(found.computed_at) == {newest.published_at}
    assert set(found.published_at) == {made_from.published_at}


def test_entities_to_come_have_the_features_that_a_batch_would_make_now(tmp_path: Path, deployment: Deployment) -> None:
    folder = orders(tmp_path)
    publish(deployment, folder)

    done = fill(deployment, folder)

    # Four within a day from now; two of them are of the newest day too.
    soon = ["o85", "o91", "o97", "o103"]
    assert (done.rows, done.soon) == ({"features": 6}, {"features": 4})
    found = ask(deployment, folder, *soon)
    assert set(found.as_of) == {NOW}
    assert set(found.computed_at) == {NOW}
    batch = with_as_of(folder, f"least(placed, TIMESTAMPTZ '{NOW}')")
    with compute(batch, tables(folder), april(4, 5)) as built:
        wanted = {row["order_id"]: row for row in built.reader().read_all().to_pylist()}
    assert rows(found) == without_key(wanted[name] for name in soon)


def test_an_entity_whose_own_as_of_is_past_has_the_features_of_that_moment(tmp_path: Path, deployment: Deployment) -> None:
    folder = shop(
        tmp_path,
        SQL,
        tables=EARLY,
        features=FEATURES,
        online={},
        entity={"table": "orders", "as_of": "placed - INTERVAL 2 DAY"},
    )
    publish(deployment, folder)
    fill(deployment, folder)

    found = ask(deployment, folder, "o97", "o103")

    assert [found.as_of[place] for place in found.places if place is not None] == [hours(97 - 48), hours(103 - 48)]
    assert rows(found) == without_key(published(deployment)[name] for name in ("o97", "o103"))


def test_an_entity_that_is_not_known_yet_has_no_row(tmp_path: Path, deployment: Deployment) -> None:
    folder = orders(tmp_path, horizon="9d")
    publish(deployment, folder)

    done = fill(deployment, folder, hours(2))

    # Known by then, three days before: the orders up to the hour 74.
    assert done.soon == {"features": 12}
    assert ask(deployment, folder, "o73", "o79").places == [0, None]


def test_a_feature_that_depends_on_other_entities_is_given_as_published_only(tmp_path: Path, deployment: Deployment) -> None:
    ranked = SQL.replace("count(r.order_id) AS sent_back", "rank() OVER (ORDER BY min(e.placed)) AS sent_back")
    folder = orders(tmp_path, ranked)
    publish(deployment, folder)

    done = fill(deployment, folder)

    assert (done.rows, done.soon, done.dependent) == ({"features": 4}, {"features": 0}, ["sent_back"])
    assert ask(deployment, folder, "o85").places == [None]
    made = OnlineTable(deployment.settings.predictions_url).made(folder)
    assert made is not None
    assert made.dependent == ["sent_back"]
    # It is tried once for each publication of features.
    assert fill(deployment, folder, NOW + timedelta(minutes=5)).dependent == ["sent_back"]


def test_done_again_the_rows_are_the_same_and_an_earlier_run_changes_nothing(tmp_path: Path, deployment: Deployment) -> None:
    folder = orders(tmp_path)
    publish(deployment, folder)
    later = NOW + timedelta(hours=2)
    for _ in range(2):
        assert fill(deployment, folder, later).rows == {"features": 5}

    assert fill(deployment, folder, NOW).rows == {"features": None}

    assert ask(deployment, folder, "o97").as_of == [later]


def test_rows_of_the_newest_publication_are_made_once(tmp_path: Path, deployment: Deployment) -> None:
    folder = orders(tmp_path, horizon=None)
    publish(deployment, folder)
    assert fill(deployment, folder).rows == {"features": 4}
    made = OnlineTable(deployment.settings.predictions_url).made(folder)

    assert fill(deployment, folder, NOW + timedelta(minutes=5)).rows == {"features": None}
    assert OnlineTable(deployment.settings.predictions_url).made(folder) == made

    publish(deployment, folder)
    assert fill(deployment, folder, NOW + timedelta(minutes=10)).rows == {"features": 4}


def test_rows_are_made_again_while_entities_are_to_come_and_when_none_is_any_more(
    tmp_path: Path, deployment: Deployment
) -> None:
    folder = orders(tmp_path)
    publish(deployment, folder)
    assert fill(deployment, folder, NOW).rows == {"features": 6}
    assert fill(deployment, folder, NOW + timedelta(hours=2)).rows == {"features": 5}
    later = NOW + timedelta(days=30)
    assert fill(deployment, folder, later).rows == {"features": 4}
    assert fill(deployment, folder, later + timedelta(hours=1)).rows == {"features": None}


def test_what_cannot_be_asked_is_said(tmp_path: Path, deployment: Deployment) -> None:
    with pytest.raises(SpecError, match="there is no section online"):
        fill(deployment, shop(tmp_path / "without"))
    with pytest.raises(SnapshotMissing, match=r"returns: no features are published yet; run returns\.ingest"):
        fill(deployment, orders(tmp_path))


def test_a_champion_with_a_folder_of_its_own_is_asked_through_it(tmp_path: Path, settings: Settings) -> None:
    world = make_world(tmp_path, settings.model_copy(update={"models": tmp_path / "models"}))
    rows = world.publish(DAY)
    world.promote(world.register())
    folder = world.folder.path
    (folder / "model.yaml").write_text((folder / "model.yaml").read_text() + "\nonline: {}\n")
    (folder / "features.sql").write_text("SELECT visit, 2 * x AS x, noise, kind FROM entities\n")
    present = read_model(folder)

    told = by_hand.materialize(world.settings, "toy")

    assert len(told.splitlines()) == 2
    assert told.startswith(f"toy: {len(rows)} rows of features can be asked by key, of {DAY}")
    online = OnlineTable(settings.predictions_url)
    key = pa.table({"visit": pa.array([rows["visit"][0]], pa.string())})
    before, now = ([row["x"] for row in online.read(place_of(one), key).features] for one in (world.folder, present))
    assert before == [rows["x"][0]]
    assert now == [2 * rows["x"][0]]
