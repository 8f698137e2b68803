"""Rows that were pushed are published with their day, as if its source had brought them."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from perennial.core.errors import IntervalRefused, SourceMissing
from perennial.core.intervals import Interval
from perennial.deployment import Deployment
from perennial.ingestion.pushed import PushedRow, PushedRows
from perennial.serving.pushing import Pushing
from tests.unit.shop import Shop

FIRST, SECOND, THIRD, FOURTH = (Interval.day(f"2024-01-0{day}") for day in range(1, 5))
NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)
#: What makes a shop whose orders come from pushes alone.
ALONE: dict[str, Any] = {"sources": {"orders": {"pushed": True}}}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Of the predictions database; None: SQLite."""
    return None if request.param == "sqlite" else str(request.getfixturevalue("postgres"))


class Pushed:
    """A shop whose orders are pushed."""

    def __init__(self, path: Path, url: str | None = None, *, push: tuple[str, ...] = ("orders",), **shop: Any) -> None:
        self.shop = Shop(path, **shop)
        if url is not None:
            self.shop.settings = self.shop.settings.model_copy(update={"predictions_url": url})
            self.shop.deployment = Deployment(self.shop.settings)
        self.change(online={"push": list(push)})
        self.shop.deliver("outcomes", "1", "o 1T10 1T11 1")
        self.now = NOW
        self._pushing = Pushing(self.shop.deployment, lambda: self.now)

    def change(self, **keys: Any) -> None:
        file = self.shop.settings.models / "shop" / "model.yaml"
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))

    def push(self, *rows: dict[str, Any], table: str = "orders", at: datetime | None = None) -> int:
        self.now = at or self.now + timedelta(minutes=1)
        return self._pushing.take("shop", table, rows).new

    def published(self, day: Interval, table: str = "orders") -> list[tuple[str, float]]:
        return self.shop.rows(table, day)


def row(key: str, amount: Any, hour: int = 10, told: int = 11, day: int = 1) -> dict[str, Any]:
    return {"id": key, "placed": f"2024-01-0{day}T{hour}:00:00Z", "told": f"2024-01-0{day}T{told}:00:00Z", "amount": amount}


def test_pushed_rows_are_published_beside_those_of_the_source(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url)
    shop = pushed.shop
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    assert pushed.push(row("a", 5.0), row("b", "6"), row("c", 7)) == 3

    shop.ingest(FIRST)

    assert shop.rows() == shop.rows("features") == [("a", 5), ("b", 6), ("c", 7)]
    assert shop.quarantine() == []


def test_a_row_that_is_delivered_twice_counts_once_however_it_is_written(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url, **ALONE)
    assert pushed.push(row("a", 5.0), row("b", 6.0)) == 2
    zoned = {**row("a", "5.0"), "placed": "2024-01-01T11:00:00+01:00"}
    assert pushed.push(row("b", 6), dict(reversed(row("a", 5).items())), zoned, row("b", "6")) == 0
    assert pushed.push(row("c", 1), row("c", 1)) == 1

    pushed.shop.ingest(FIRST)

    assert pushed.shop.rows() == [("a", 5), ("b", 6), ("c", 1)]
    read = pushed.shop.deployment.ledger.publications("shop", "tables")[-1].inputs["rows"]["orders"]
    assert (read["read"], read["published"]) == (3, 3)


def test_of_several_rows_of_a_key_the_one_received_last_counts(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url)
    pushed.shop.deliver("orders", "1", "a 1T10 1T11 5", "b 1T10 1T11 5", "c 1T10 1T11 5")
    pushed.push(row("a", 6.0), row("b", 6.0))
    pushed.push(row("a", 7.0), row("d", 1), row("d", 2), row("d", 1))
    # What is sent once more after something else was is the newest again.
    assert pushed.push(row("a", 6.0), row("b", 5.0)) == 2

    pushed.shop.ingest(FIRST)

    assert pushed.shop.rows() == [("a", 6), ("b", 5), ("c", 5), ("d", 1)]
    assert pushed.shop.quarantine() == []


def test_clocks_that_differ_do_not_change_which_row_counts(tmp_path: Path) -> None:
    pushed = Pushed(tmp_path, **ALONE)
    pushed.push(row("a", 1), at=NOW)
    pushed.push(row("a", 2), at=NOW - timedelta(hours=1))

    pushed.shop.ingest(FIRST)

    assert pushed.shop.rows() == [("a", 2)]


def test_states_of_a_key_that_are_known_from_different_moments_on_are_all_kept(tmp_path: Path) -> None:
    pushed = Pushed(tmp_path, **ALONE)
    states = row("a", 1), row("a", 2, told=12)
    assert pushed.push(*states) == 2
    assert pushed.push(*states) == 0

    pushed.shop.ingest(FIRST)

    assert pushed.shop.rows() == [("a", 1), ("a", 2)]


def test_a_row_pushed_after_its_day_was_published_comes_late_and_once(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url)
    shop = pushed.shop
    for day in "123":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
        shop.deliver("outcomes", day, f"p{day} {day}T10 {day}T11 1")
    shop.ingest(FIRST)
    pushed.push(row("b", 6.0))

    assert "late rows published into 2024-01-01: orders 1" in shop.ingest(SECOND)
    assert shop.rows(day=FIRST) == [("a1", 5), ("b", 6)]
    assert "late rows published" not in shop.ingest(THIRD)
    assert shop.rows(day=FIRST) == [("a1", 5), ("b", 6)]


def test_a_file_that_corrects_a_pushed_row_later_is_not_corrected_back(tmp_path: Path) -> None:
    late = {"late": "3d"}
    pushed = Pushed(tmp_path, orders=late, outcomes=late)
    shop = pushed.shop
    shop.deliver("orders", "1", "x 1T10 1T11 5")
    pushed.push(row("a", 6.0))
    shop.ingest(FIRST)
    # The file of the next day corrects it.
    shop.deliver("orders", "2", "a 1T10 1T11 9", "y 2T10 2T11 5")
    shop.ingest(SECOND)
    assert shop.rows(day=FIRST) == [("a", 9), ("x", 5)]

    shop.deliver("orders", "3", "z 3T10 3T11 5")
    shop.ingest(THIRD)

    assert shop.rows(day=FIRST) == [("a", 9), ("x", 5)]


READ = """
from datetime import UTC, datetime

import pyarrow as pa


def read(start: datetime, end: datetime) -> pa.Table:
    placed = {"a": datetime(2024, 1, 1, 10, tzinfo=UTC), "x": datetime(2024, 1, 1, 10, tzinfo=UTC)}
    placed["y"] = datetime(2024, 1, 2, 10, tzinfo=UTC)
    rows = [{"id": key, "placed": at, "told": at.replace(hour=11), "amount": 5.0} for key, at in placed.items()]
    return pa.Table.from_pylist([row for row in rows if start <= row["placed"] < end])
"""


def test_a_source_that_brings_earlier_days_each_time_does_not_correct_pushed_rows_back(tmp_path: Path) -> None:
    late = {"late": "2d"}
    pushed = Pushed(tmp_path, sources={"orders": {"python": "model:read"}}, orders=late, outcomes=late)
    shop = pushed.shop
    (shop.settings.models / "shop" / "model.py").write_text(READ)
    pushed.push(row("a", 6.0))
    shop.ingest(FIRST)
    assert shop.rows(day=FIRST) == [("a", 6), ("x", 5)]

    shop.ingest(SECOND)

    assert shop.rows(day=FIRST) == [("a", 6), ("x", 5)]
    assert shop.rows(day=SECOND) == [("y", 5)]


def test_a_row_that_comes_too_late_is_quarantined_once_with_its_reason(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url, orders={"tolerance": 1})
    shop = pushed.shop
    for day in "1234":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
        shop.deliver("outcomes", day, f"p{day} {day}T10 {day}T11 1")
    shop.ingest(FIRST)
    shop.ingest(SECOND)
    pushed.push(row("b", 6.0), row("c", 6.0, day=2))

    shop.ingest(THIRD)

    assert shop.rows(day=SECOND) == [("a2", 5), ("c", 6)]
    [reason] = shop.quarantine()
    assert reason.startswith(
        "placed: 2024-01-01 10:00:00+00 lies more than 1 days (late) before the first day that was ingested"
    )
    assert shop.too_late(THIRD) == {"orders": {"2024-01-01": 1}}
    shop.ingest(FOURTH)
    assert len(shop.quarantine()) == 1
    # Its own day takes it, when it is ingested once more.
    shop.ingest(FIRST)
    assert shop.rows(day=FIRST) == [("a1", 5), ("b", 6)]


def test_rows_of_days_to_come_wait_for_their_day(tmp_path: Path) -> None:
    pushed = Pushed(tmp_path)
    shop = pushed.shop
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    pushed.push(row("b", 6.0, day=2))
    shop.ingest(FIRST)
    assert shop.rows() == [("a", 5)]

    shop.deliver("orders", "2", "c 2T10 2T11 5")
    shop.deliver("outcomes", "2", "p 2T10 2T11 1")
    shop.ingest(SECOND)

    assert shop.rows(day=SECOND) == [("b", 6), ("c", 5)]


def test_a_row_that_no_longer_passes_is_quarantined_with_its_reason(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url, orders={"tolerance": 1})
    shop = pushed.shop
    pushed.push(row("a", 5.0), row("b", 60.0))
    shop.deliver("orders", "1", "c 1T10 1T11 5")
    file = json.loads((shop.settings.models / "shop" / "model.yaml").read_text())
    file["tables"]["orders"]["columns"]["amount"]["max"] = 50
    pushed.change(tables=file["tables"])

    shop.ingest(FIRST)

    assert shop.rows() == [("a", 5), ("c", 5)]
    assert shop.quarantine() == ["amount: 60.0 is above 50"]
    published = shop.deployment.ledger.published("shop", "tables")
    assert published is not None
    [held] = shop.deployment.lake.scan("shop", "quarantine", published.snapshots["quarantine"]).read_all().to_pylist()
    assert (held["position"], json.loads(held["row"])["id"]) == ("pushed row 2", "b")


def test_a_missing_file_holds_the_entities_up_and_loses_no_pushed_row(tmp_path: Path) -> None:
    pushed = Pushed(tmp_path, push=("orders", "outcomes"))
    shop = pushed.shop
    pushed.push(row("a", 5.0))
    with pytest.raises(SourceMissing):
        shop.ingest(FIRST)

    shop.deliver("orders", "1", "b 1T10 1T11 5")
    shop.ingest(FIRST)

    assert shop.rows() == [("a", 5), ("b", 5)]


def test_another_table_is_published_from_pushed_rows_and_completed_when_its_file_comes(tmp_path: Path) -> None:
    pushed = Pushed(tmp_path, push=("outcomes",))
    shop = pushed.shop
    (shop.settings.data / "outcomes" / "2024-01-01.csv").unlink()
    for day in "12":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
    pushed.push(row("a", 1.0), row("b", 2.0), table="outcomes")
    for _ in range(2):
        shop.ingest(FIRST)
        assert pushed.published(FIRST, "outcomes") == [("a", 1), ("b", 2)]
    assert shop.deployment.ledger.publications("shop", "tables")[-1].inputs["awaited"] == {"outcomes": ["2024-01-01"]}

    # The file is of the day itself, so it counts as older than what was pushed during the day.
    shop.deliver("outcomes", "1", "a 1T10 1T11 9", "c 1T10 1T11 3")
    shop.deliver("outcomes", "2", "d 2T10 2T11 4")
    shop.ingest(SECOND)

    assert pushed.published(FIRST, "outcomes") == [("a", 1), ("b", 2), ("c", 3)]


def test_a_table_may_be_fed_by_pushes_alone(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url, **ALONE)
    shop = pushed.shop
    with pytest.raises(IntervalRefused, match="0 rows arrived"):
        shop.ingest(FIRST)
    pushed.push(row("a", 5.0), row("b", 6.0, day=2))
    shop.deliver("outcomes", "2", "p 2T10 2T11 1")

    shop.ingest(FIRST)
    shop.ingest(SECOND)

    assert shop.rows(day=FIRST) == [("a", 5)]
    assert shop.rows(day=SECOND) == [("b", 6)]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_published_depends_on_no_order_and_no_double_of_deliveries(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pushed = Pushed(tmp_path)
    keys = {key: draw.randint(1, 9) for key in "abcdefgh"}
    by_file = [key for key in keys if draw.random() < 0.5]
    by_push = [key for key in keys if key not in by_file or draw.random() < 0.5]
    pushed.shop.deliver("orders", "1", *(f"{key} 1T10 1T11 {keys[key]}" for key in draw.sample(by_file, len(by_file))))
    for key in draw.sample(by_push * 2, len(by_push) * 2):
        pushed.push(row(key, keys[key]), at=NOW + timedelta(seconds=draw.randint(0, 99)))

    pushed.shop.ingest(FIRST)
    pushed.shop.ingest(FIRST)

    assert pushed.shop.rows() == sorted(keys.items())
    assert pushed.shop.quarantine() == []


def test_what_no_scorer_would_write_is_quarantined_and_holds_nothing_up(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url, **ALONE, orders={"tolerance": 1})
    pushed.push(row("a", 1))
    rows = PushedRows(pushed.shop.settings.predictions_url)
    event = FIRST.start + timedelta(hours=3)
    forged = ("{", "[]", '{"id": {"a": 1}, "placed": "now"}', '{"id": "b", "placed": "infinity", "amount": "1"}')
    rows.keep("shop", "orders", [PushedRow(event, text, text, text) for text in forged], NOW)

    pushed.shop.ingest(FIRST)

    assert pushed.shop.rows() == [("a", 1)]
    assert len(pushed.shop.quarantine()) >= len(forged)


def test_numbers_are_never_used_again(tmp_path: Path, url: str | None) -> None:
    pushed = Pushed(tmp_path, url)
    rows = PushedRows(pushed.shop.settings.predictions_url)

    def last() -> int:
        return rows.newest("shop", ["orders"])["orders"]

    pushed.push(row("a", 1))
    before = last()
    assert rows.remove_before("shop") == 1
    pushed.push(row("b", 1))
    assert last() > before


def test_a_broken_database_is_told_and_nothing_is_confirmed(tmp_path: Path) -> None:
    pushed = Pushed(tmp_path)
    pushed.push(row("a", 1))
    with sa.create_engine(pushed.shop.settings.predictions_url).begin() as connection:
        connection.execute(sa.text("ALTER TABLE pushed_rows RENAME TO elsewhere"))

    with pytest.raises(Exception, match="none of them is confirmed; send them again"):
        pushed.push(row("b", 1))
