"""What is computed on demand is what the batch computes, and a bad value is refused with its field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from perennial.core.errors import NotAnswered, ServingError
from perennial.features.point_in_time import feature_schema
from perennial.features.publish import publish_features
from perennial.ingestion.pushed import PushedRows
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.serving.on_demand import OnDemand
from perennial.serving.pushing import Pushing
from perennial.spec.folder import ModelFolder
from tests.unit.features.shop import APRIL, HISTORY, SPEC, april, hours, ingest, ingest_tables, shop, tables_of
from tests.unit.ingestion.test_pushed import ALONE, FIRST, SECOND, Pushed, row, url
from tests.unit.serving.test_materialize import FEATURES, SQL

__all__ = ["url"]

NOW = hours(5 * 24 + 2)


def orders(path: Path, sql: str = SQL, **changes: Any) -> ModelFolder:
    return shop(path, sql, features=FEATURES, **changes)


def publish(lake: Lake, ledger: Ledger, folder: ModelFolder, first: int = 1, last: int = 5) -> pa.Table:
    """Orders of some days, every second of them sent back, and their features."""
    days = april(first, last)
    placed: list[float] = [24 * (day - 1) + hour for day in range(first, last + 1) for hour in (1, 7, 13, 19)]
    ingest_tables(lake, ledger, folder, days, tables_of(folder, placed), f"tables-{first}")
    order = ledger.next_order("returns", "features", days, f"features-{first}")
    made = publish_features(folder, lake, days, order=order, run_id=f"features-{first}")
    rows = lake.scan("returns", "features", made.snapshots["features"], interval=days, event_time="placed").read_all()
    return rows.select(feature_schema(folder.spec).names).cast(feature_schema(folder.spec)).sort_by("placed")


def given(lake: Lake, ledger: Ledger, days: Any) -> pa.Table:
    """The published orders of some days, without when they were known."""
    newest = ledger.published("returns", "tables")
    assert newest is not None
    rows = lake.scan("returns", "orders", newest.snapshots["orders"], interval=days, event_time="placed").read_all()
    return rows.select(["order_id", "placed", "customer", "amount"]).sort_by("placed")


def entity(**columns: Any) -> pa.Table:
    texts = {"order_id": "new", "placed": "2013-04-06T01:00:00Z", "customer": "a", "amount": "3.5", **columns}
    return pa.table({name: pa.array([value], pa.string()) for name, value in texts.items() if value is not ...})


def on_demand(lake: Lake) -> OnDemand:
    return OnDemand(lake, clock=lambda: NOW)


def test_published_entities_get_what_was_published_for_them_together_and_alone(
    tmp_path: Path, lake: Lake, ledger: Ledger
) -> None:
    folder = orders(tmp_path)
    wanted = publish(lake, ledger, folder).filter(pa.array([False] * 8 + [True] * 12))
    asked = on_demand(lake)
    rows = given(lake, ledger, april(3, 5))
    assert rows.num_rows == 12

    assert asked.features(folder, rows).equals(wanted)
    for place in range(0, 12, 5):
        assert asked.features(folder, rows.slice(place, 1)).equals(wanted.slice(place, 1))
    backwards = pa.array(range(11, -1, -1))
    assert asked.features(folder, rows.take(backwards)).equals(wanted.take(backwards))


def test_requests_together_get_what_each_gets_alone_and_none_fails_with_another(
    tmp_path: Path, lake: Lake, ledger: Ledger
) -> None:
    folder = orders(tmp_path)
    wanted = publish(lake, ledger, folder).filter(pa.array([False] * 8 + [True] * 12))
    asked = on_demand(lake)
    rows = given(lake, ledger, april(3, 5))
    requests = [rows.slice(0, 5), entity(amount="x"), rows.slice(5, 1), entity(), entity(amount="4"), rows.slice(6, 6)]

    first, faulty, second, new, other, last = asked.features_together(folder, requests)

    assert isinstance(faulty, NotAnswered)
    assert (faulty.row, faulty.field) == (0, "amount")
    found = [one for one in (first, second, last) if isinstance(one, pa.Table)]
    assert pa.concat_tables(found).equals(wanted)
    # They have one key, so they are asked one after another.
    assert asked.features(folder, entity()).equals(new)
    assert asked.features(folder, entity(amount="4")).equals(other)


def test_a_corrected_table_is_seen_as_it_was_known(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    sql = HISTORY.replace("count(returned.order_id)", "sum(earlier.amount)").replace(
        "earlier.customer = orders_now.customer",
        "earlier.customer = orders_now.customer AND earlier._known_at <= orders_now.as_of "
        "AND earlier.placed > orders_now.placed - INTERVAL 2 DAY",
    )
    folder = shop(tmp_path, sql, features={"numeric": ["sent_back"], "lookback": "2d"})
    days = april(1, 5)
    tables = tables_of(folder, [24 * day + hour for day in range(5) for hour in (1, 7, 13, 19)])
    rows = tables["orders"].to_pylist()
    corrected = [{**row, "amount": -1.0, "_known_at": row["_known_at"] + timedelta(hours=9)} for row in rows]
    tables["orders"] = pa.Table.from_pylist([*rows, *corrected], schema=tables["orders"].schema)
    ingest_tables(lake, ledger, folder, days, tables)
    made = publish_features(folder, lake, days, order=ledger.next_order("returns", "features", days, "f"), run_id="f")
    last = april(5, 5)
    wanted = lake.scan("returns", "features", made.snapshots["features"], interval=last, event_time="placed").read_all()

    first = pa.Table.from_pylist(rows[16:], schema=tables["orders"].schema).drop_columns("_known_at")

    for place, one in enumerate(sorted(wanted.to_pylist(), key=lambda found: found["placed"])):
        assert on_demand(lake).features(folder, first.slice(place, 1)).to_pylist() == [one]


def test_a_new_entity_sees_what_is_known_now(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = orders(tmp_path)
    publish(lake, ledger, folder)

    [row] = on_demand(lake).features(folder, entity()).to_pylist()
    [before] = on_demand(lake).features(folder, entity(), hours(4 * 24)).to_pylist()

    # Placed an hour ago, customer a: orders of the hours 73 to 109, of which those up to 109 were sent back by then.
    assert (row["as_of"], row["customer"]) == (datetime.fromisoformat("2013-04-06T01:00:00Z"), "a")
    assert row["since"] == (121 - 114) * 60
    assert before["as_of"] == hours(96)
    assert before["sent_back"] < row["sent_back"]


def test_an_entity_to_come_is_asked_as_of_now(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = orders(tmp_path)
    publish(lake, ledger, folder)

    [row] = on_demand(lake).features(folder, entity(placed="2013-04-07T09:00:00Z")).to_pylist()

    assert row["as_of"] == NOW


@pytest.mark.parametrize(
    ("columns", "field", "words"),
    [
        ({"amount": "12x"}, "amount", "amount: '12x' is not a plain finite number"),
        ({"amount": "\uff11\uff12"}, "amount", "is not a plain finite number"),
        ({"placed": "yesterday"}, "placed", "placed: 'yesterday' is not an existing time in ISO 8601"),
        ({"customer": None}, "customer", "customer: missing"),
        ({"customer": "a\u200b"}, "customer", "holds a character that is invisible"),
        ({"amount": "-3"}, "amount", "amount: -3.0 is below 0"),
        ({"customer": "z"}, "customer", "customer: 'z' is not one of a, b"),
        ({"order_id": "new\n"}, "order_id", "does not match ^[a-z0-9]+$"),
        ({"colour": "red"}, "colour", "colour is no column of orders; there are order_id, placed, customer, amount"),
        ({"customer": ...}, "customer", "customer: missing"),
    ],
)
def test_a_bad_value_is_refused_with_its_field_and_reason(
    tmp_path: Path, lake: Lake, columns: dict[str, Any], field: str | None, words: str
) -> None:
    checks: dict[str, dict[str, Any]] = {
        "amount": {"min": 0, "max": 1000},
        "customer": {"values": ["a", "b"]},
        "order_id": {"matches": "^[a-z0-9]+$"},
    }
    its = {name: {**column, **checks.get(name, {})} for name, column in SPEC["tables"]["orders"]["columns"].items()}
    # An expression over columns of the source does not count here.
    its["amount"]["sql"] = "cents::DOUBLE / 100"
    tables = {**SPEC["tables"], "orders": {**SPEC["tables"]["orders"], "columns": its}}
    folder = orders(tmp_path, tables=tables)

    with pytest.raises(NotAnswered) as refused:
        on_demand(lake).features(folder, entity(**columns))

    assert words in str(refused.value)
    assert refused.value.field == field


def test_the_row_with_the_bad_value_is_named_and_no_key_is_given_twice(tmp_path: Path, lake: Lake) -> None:
    folder = orders(tmp_path)
    with pytest.raises(NotAnswered, match="amount") as refused:
        on_demand(lake).features(folder, pa.concat_tables([entity(), entity(order_id="other", amount="x")]))
    assert (refused.value.row, refused.value.field) == (1, "amount")

    with pytest.raises(NotAnswered, match="a row before has the same key") as refused:
        on_demand(lake).features(folder, pa.concat_tables([entity(), entity()]))
    assert (refused.value.row, refused.value.field) == (1, "order_id")


def test_a_column_that_may_be_missing_need_not_be_given(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path)
    ingest(lake, ledger, folder, april(1, 2))

    found = OnDemand(lake).features(folder, entity(amount=..., placed="2013-04-03T01:00:00Z"))

    assert found["amount"].to_pylist() == [None]


def test_what_depends_on_other_entities_is_not_asked_on_demand(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path, "SELECT order_id, rank() OVER (ORDER BY placed) AS amount FROM entities")
    ingest(lake, ledger, folder, april(1, 2))

    with pytest.raises(ServingError, match=r"returns: amount depend on which other entities are asked.*by key only"):
        on_demand(lake).features(folder, entity(placed="2013-04-03T01:00:00Z"))


def test_what_was_published_since_is_seen_after_keeping_up(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = orders(tmp_path)
    publish(lake, ledger, folder, 1, 4)
    asked = on_demand(lake)
    before = asked.features(folder, entity()).to_pylist()
    publish(lake, ledger, folder, 5, 5)
    assert asked.features(folder, entity()).to_pylist() == before

    asked.keep_up()

    assert asked.features(folder, entity()).equals(on_demand(lake).features(folder, entity()))
    assert asked.features(folder, entity()).to_pylist() != before


def test_an_event_of_long_ago_is_refused(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = orders(tmp_path)
    publish(lake, ledger, folder)
    placed = (APRIL - timedelta(days=40)).isoformat()

    with pytest.raises(NotAnswered, match="more than 31 days before the newest data") as refused:
        on_demand(lake).features(folder, entity(placed=placed))
    assert refused.value.field == "placed"


# --- what is pushed ------------------------------------------------------------------------------------------------------

#: After all that is asked.
LATER = datetime(2024, 1, 4, tzinfo=UTC)
#: Sums of fractions, whose last bits tell whether the same rows are added.
SUMS = """
SELECT orders_now.id,
    (SELECT sum(earlier.amount) FROM orders AS earlier
     WHERE earlier.placed < orders_now.placed AND earlier.placed > orders_now.placed - INTERVAL 2 DAY
       AND earlier._known_at <= orders_now.as_of) AS amount,
    (SELECT count(*) FROM orders AS earlier
     WHERE earlier.placed < orders_now.placed AND earlier._known_at <= orders_now.as_of) AS others,
    (SELECT max(came.amount) FROM outcomes AS came WHERE came._known_at <= orders_now.as_of) AS most
FROM entities AS orders_now
"""


def shop_of(path: Path, url: str | None = None) -> Pushed:
    pushed = Pushed(path, url, push=("orders", "outcomes"), **ALONE)
    folder = pushed.shop.settings.models / "shop"
    pushed.change(features={"numeric": ["amount", "others", "most"], "lookback": "3d"})
    (folder / "features.sql").write_text(SUMS)
    return pushed


def scorer(pushed: Pushed) -> OnDemand:
    shop = pushed.shop
    taken = Pushing(shop.deployment).tables
    return OnDemand(shop.deployment.lake, PushedRows(shop.settings.predictions_url), taken, lambda: LATER)


def described(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{name: str(value) for name, value in one.items()} for one in rows])


def test_features_of_pushed_rows_are_those_of_their_publication(tmp_path: Path, url: str | None) -> None:
    pushed = shop_of(tmp_path, url)
    shop = pushed.shop
    pushed.push(row("a", 0.1), row("b", 0.2, hour=11, told=12), row("c", 0.7, hour=12, told=13))
    shop.ingest(FIRST)
    features = scorer(pushed)
    folder = shop.deployment.model("shop")
    two = [row("p", 0.3, day=2), row("q", 0.6, hour=14, told=15, day=2)]
    before = features.features(folder, described(*two)).to_pylist()
    # A late row, a correction, a newer state of a key, one that is corrected twice, and the day's own.
    pushed.push(row("late", 0.11), row("b", 0.9, hour=11, told=12), row("c", 0.77, hour=12, told=20))
    pushed.push(row("a", 0.4), row("a", 0.5), row("a", 0.4), *two)
    pushed.push(row("o", 3.3), table="outcomes")
    assert features.features(folder, described(*two)).to_pylist() == before

    features.show_pushed()
    together = features.features(folder, described(*two)).to_pylist()
    alone = [features.features(folder, described(one)).to_pylist()[0] for one in two]
    # Another scorer, which is asked for the first time.
    other = scorer(pushed).features(folder, described(*two)).to_pylist()

    assert together == alone == other != before
    shop.deliver("outcomes", "2", "x 2T10 2T11 1")
    shop.ingest(SECOND)
    published = shop.deployment.ledger.published("shop", "features")
    assert published is not None
    wanted = shop.deployment.lake.scan("shop", "features", published.snapshots["features"], interval=SECOND).read_all()
    assert sorted(together, key=lambda one: one["id"]) == sorted(wanted.to_pylist(), key=lambda one: one["id"])
    features.keep_up()
    assert features.features(folder, described(*two)).to_pylist() == together
    # Nothing of them is shown beside what is published any more.
    [maker] = features._makers.values()
    assert maker._hot is not None
    assert {name: its.read for name, its in maker._hot.pushed.items()} == {"orders": 0, "outcomes": 0}


def test_what_is_too_late_for_its_day_is_not_shown(tmp_path: Path) -> None:
    pushed = shop_of(tmp_path)
    shop = pushed.shop
    pushed.push(row("a", 0.1), row("b", 0.2, day=2))
    shop.deliver("outcomes", "2", "x 2T10 2T11 1")
    shop.ingest(FIRST)
    shop.ingest(SECOND)
    features, folder = scorer(pushed), shop.deployment.model("shop")
    before = features.features(folder, described(row("p", 0.3, day=3))).to_pylist()

    pushed.push(row("late", 0.11))
    features.show_pushed()

    assert features.features(folder, described(row("p", 0.3, day=3))).to_pylist() == before


def test_removed_rows_are_no_longer_shown_and_more_than_are_held_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("perennial.serving.on_demand.MOST_PUSHED", 2)
    pushed = shop_of(tmp_path)
    shop = pushed.shop
    pushed.push(row("a", 0.1))
    shop.ingest(FIRST)
    features, folder = scorer(pushed), shop.deployment.model("shop")

    def others() -> float:
        [found] = features.features(folder, described(row("p", 0.3, day=3))).to_pylist()
        return float(found["others"])

    assert others() == 1
    pushed.push(*(row(f"b{number}", 0.2, day=2) for number in range(3)))
    features.show_pushed()
    assert others() == 3
    assert "2 pushed rows of orders wait for ingest; features see no more of them" in caplog.text

    PushedRows(shop.settings.predictions_url).remove_before("shop")
    features.keep_up()

    assert others() == 1


def test_a_database_that_is_made_anew_shows_what_was_pushed(tmp_path: Path) -> None:
    pushed = shop_of(tmp_path)
    shop = pushed.shop
    pushed.push(row("a", 0.1))
    shop.ingest(FIRST)
    features, folder = scorer(pushed), shop.deployment.model("shop")
    pushed.push(row("b", 0.2, day=2))
    before = features.features(folder, described(row("p", 0.3, day=3))).to_pylist()
    [maker] = features._makers.values()
    assert maker._hot is not None
    maker._hot.database.close()

    with pytest.raises(duckdb.Error):
        features.features(folder, described(row("p", 0.3, day=3)))

    assert features.features(folder, described(row("p", 0.3, day=3))).to_pylist() == before
