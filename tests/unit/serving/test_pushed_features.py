"""What is pushed counts on demand as it will when its day is published, to the last bit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from perennial.ingestion.pushed import PushedRows
from perennial.serving import on_demand
from perennial.serving.on_demand import OnDemand
from perennial.serving.pushing import Pushing
from tests.unit.ingestion.test_pushed import ALONE, FIRST, SECOND, Pushed, row, url

__all__ = ["url"]

NOW = datetime(2024, 1, 4, tzinfo=UTC)
#: Sums of fractions, whose last bits tell whether the same rows are added.
SQL = """
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
    (folder / "features.sql").write_text(SQL)
    return pushed


def asked(pushed: Pushed) -> OnDemand:
    shop = pushed.shop
    taken = Pushing(shop.deployment).tables
    return OnDemand(shop.deployment.lake, PushedRows(shop.settings.predictions_url), taken, lambda: NOW)


def entities(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{name: str(value) for name, value in one.items()} for one in rows])


def test_features_of_pushed_rows_are_those_of_their_publication(tmp_path: Path, url: str | None) -> None:
    pushed = shop_of(tmp_path, url)
    shop = pushed.shop
    pushed.push(row("a", 0.1), row("b", 0.2, hour=11, told=12), row("c", 0.7, hour=12, told=13))
    shop.ingest(FIRST)
    features = asked(pushed)
    folder = shop.deployment.model("shop")
    two = [row("p", 0.3, day=2), row("q", 0.6, hour=14, told=15, day=2)]
    before = features.features(folder, entities(*two)).to_pylist()
    # A late row, a correction, a newer state of a key, one that is corrected twice, and the day's own.
    pushed.push(row("late", 0.11), row("b", 0.9, hour=11, told=12), row("c", 0.77, hour=12, told=20))
    pushed.push(row("a", 0.4), row("a", 0.5), row("a", 0.4), *two)
    pushed.push(row("o", 3.3), table="outcomes")
    assert features.features(folder, entities(*two)).to_pylist() == before

    features.show_pushed()
    together = features.features(folder, entities(*two)).to_pylist()
    alone = [features.features(folder, entities(one)).to_pylist()[0] for one in two]
    # Another scorer, which is asked for the first time.
    other = asked(pushed).features(folder, entities(*two)).to_pylist()

    assert together == alone == other != before
    shop.deliver("outcomes", "2", "x 2T10 2T11 1")
    shop.ingest(SECOND)
    published = shop.deployment.ledger.published("shop", "features")
    assert published is not None
    wanted = shop.deployment.lake.scan("shop", "features", published.snapshots["features"], interval=SECOND).read_all()
    assert sorted(together, key=lambda one: one["id"]) == sorted(wanted.to_pylist(), key=lambda one: one["id"])
    features.keep_up()
    assert features.features(folder, entities(*two)).to_pylist() == together
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
    features, folder = asked(pushed), shop.deployment.model("shop")
    before = features.features(folder, entities(row("p", 0.3, day=3))).to_pylist()

    pushed.push(row("late", 0.11))
    features.show_pushed()

    assert features.features(folder, entities(row("p", 0.3, day=3))).to_pylist() == before


def test_removed_rows_are_no_longer_shown_and_more_than_are_held_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(on_demand, "MOST_PUSHED", 2)
    pushed = shop_of(tmp_path)
    shop = pushed.shop
    pushed.push(row("a", 0.1))
    shop.ingest(FIRST)
    features, folder = asked(pushed), shop.deployment.model("shop")

    def others() -> float:
        [found] = features.features(folder, entities(row("p", 0.3, day=3))).to_pylist()
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
    features, folder = asked(pushed), shop.deployment.model("shop")
    pushed.push(row("b", 0.2, day=2))
    before = features.features(folder, entities(row("p", 0.3, day=3))).to_pylist()
    [maker] = features._makers.values()
    assert maker._hot is not None
    maker._hot.database.close()

    with pytest.raises(duckdb.Error):
        features.features(folder, entities(row("p", 0.3, day=3)))

    assert features.features(folder, entities(row("p", 0.3, day=3))).to_pylist() == before
