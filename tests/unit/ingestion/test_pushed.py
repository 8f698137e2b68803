"""Rows that were pushed are published with their day, as if its source had brought them."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.core.intervals import Interval, utc
from perennial.ingestion.pushed import PushedRows, digest_of
from tests.unit.shop import Shop

FIRST, SECOND = Interval.day("2024-01-01"), Interval.day("2024-01-02")
NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)


def pushing(path: Path) -> tuple[Shop, PushedRows]:
    shop = Shop(path)
    file = shop.settings.models / "shop" / "model.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), "online": {"push": ["orders"]}}))
    shop.deliver("outcomes", "1", "o 1T10 1T11 1")
    return shop, PushedRows(shop.settings.predictions_url)


def row(key: str, amount: Any, hour: int = 10, told: int = 11) -> dict[str, Any]:
    return {"id": key, "placed": f"2024-01-01T{hour}:00:00Z", "told": f"2024-01-01T{told}:00:00Z", "amount": amount}


def push(pushed: PushedRows, *rows: dict[str, Any], at: datetime = NOW) -> int:
    return pushed.keep("shop", "orders", rows, [utc(one["placed"]) for one in rows], at)


def test_pushed_rows_are_published_beside_those_of_the_source(tmp_path: Path) -> None:
    shop, pushed = pushing(tmp_path)
    shop.deliver("orders", "1", "a 1T10 1T11 5")
    assert push(pushed, row("a", 5.0), row("b", "6"), row("c", 7)) == 3

    shop.ingest(FIRST)

    assert shop.rows() == shop.rows("features") == [("a", 5), ("b", 6), ("c", 7)]
    assert shop.quarantine() == []


def test_a_row_that_is_delivered_twice_is_kept_once(tmp_path: Path) -> None:
    _, pushed = pushing(tmp_path)
    assert push(pushed, row("a", 5.0), row("b", 6.0)) == 2
    assert push(pushed, row("b", 6.0), dict(reversed(row("a", 5.0).items())), at=NOW + timedelta(hours=1)) == 0


def test_of_two_rows_of_a_key_the_one_received_last_counts(tmp_path: Path) -> None:
    shop, pushed = pushing(tmp_path)
    shop.deliver("orders", "1", "a 1T10 1T11 5", "b 1T10 1T11 5")
    push(pushed, row("a", 6.0))
    push(pushed, row("a", 7.0), at=NOW + timedelta(seconds=1))

    shop.ingest(FIRST)

    assert shop.rows() == [("a", 7), ("b", 5)]
    assert shop.quarantine() == []


def test_a_row_pushed_after_its_day_was_published_comes_late(tmp_path: Path) -> None:
    shop, pushed = pushing(tmp_path)
    for day in "12":
        shop.deliver("orders", day, f"a{day} {day}T10 {day}T11 5")
    shop.deliver("outcomes", "2", "p 2T10 2T11 1")
    shop.ingest(FIRST)
    push(pushed, row("b", 6.0))

    assert "late rows published into 2024-01-01: orders 1" in shop.ingest(SECOND)
    assert shop.rows(day=FIRST) == [("a1", 5), ("b", 6)]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_published_depends_on_no_order_and_no_double_of_deliveries(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    shop, pushed = pushing(tmp_path)
    keys = {key: draw.randint(1, 9) for key in "abcdefgh"}
    by_file = [key for key in keys if draw.random() < 0.5]
    by_push = [key for key in keys if key not in by_file or draw.random() < 0.5]
    shop.deliver("orders", "1", *(f"{key} 1T10 1T11 {keys[key]}" for key in draw.sample(by_file, len(by_file))))
    for key in draw.sample(by_push * 2, len(by_push) * 2):
        push(pushed, row(key, keys[key]), at=NOW + timedelta(seconds=draw.randint(0, 99)))

    shop.ingest(FIRST)
    shop.ingest(FIRST)

    assert shop.rows() == sorted(keys.items())
    assert shop.quarantine() == []


def test_a_row_is_the_same_in_whatever_order_its_columns_are_written() -> None:
    assert digest_of({"a": 1, "b": None, "c": "x"}) == digest_of({"c": "x", "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
