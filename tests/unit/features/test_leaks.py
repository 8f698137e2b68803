"""A feature that uses what was not known is found."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from perennial.features import leaks
from perennial.features.publish import find_leaks
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder
from tests.unit.features.shop import FIRST, HISTORY, april, history, ingest, shop, tables_of


def sampled(folder: ModelFolder) -> dict[str, pa.Table]:
    """Orders every two hours from four days before until a day after the sample."""
    return tables_of(folder, list(range(-96, 48, 2)))


def test_a_query_that_looks_at_nothing_later_has_no_leak(tmp_path: Path) -> None:
    folder = history(tmp_path)

    assert leaks.find(folder, sampled(folder), FIRST) == []


@pytest.mark.parametrize(
    ("honest", "leaky", "tables"),
    [
        # Known when the order was placed, though it was sent back later.
        ("returned._known_at <= orders_now.as_of", "returned.placed <= orders_now.as_of", ["returned"]),
        # Minutes ahead suffice.
        ("returned._known_at <= orders_now.as_of", "returned._known_at <= orders_now.as_of + INTERVAL 2 HOUR", ["returned"]),
        # Orders that are still to come.
        ("count(returned.order_id)", "count(DISTINCT earlier.order_id)", ["orders"]),
    ],
)
def test_a_feature_that_knows_too_much_is_found_with_the_table(
    tmp_path: Path, honest: str, leaky: str, tables: list[str]
) -> None:
    folder = history(tmp_path, HISTORY.replace(honest, leaky))

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.cause, leak.tables) == ("sent_back", "later rows", tables)
    assert "were not known yet" in str(leak)


def test_only_the_feature_that_leaks_is_named(tmp_path: Path) -> None:
    sql = """
    SELECT order_id, amount, (SELECT max(reason) FROM returned WHERE returned.order_id = entities.order_id) AS told
    FROM entities
    """
    folder = shop(tmp_path, sql, features={"numeric": ["amount", "told"]})

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.tables) == ("told", ["returned"])
    assert leak.entities > 0
    assert leak.example.startswith("order_id o")


@pytest.mark.parametrize("value", ["random()", "epoch(now())"])
def test_a_feature_of_chance_or_the_clock_is_found(tmp_path: Path, value: str) -> None:
    folder = shop(tmp_path, f"SELECT order_id, {value} AS amount FROM entities")

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.cause) == ("amount", "the run")


@pytest.mark.parametrize(
    "sql",
    [
        # Further back than the lookback of two days, as far as the rows reach.
        "SELECT e.order_id, count(*) AS amount FROM entities e JOIN orders o ON o.placed <= e.placed GROUP BY 1",
        # The interval's own length.
        "SELECT order_id, date_diff('hour', (SELECT min(placed) FROM entities), placed) AS amount FROM entities",
    ],
)
def test_a_feature_that_depends_on_where_the_interval_is_cut_is_found(tmp_path: Path, sql: str) -> None:
    folder = shop(tmp_path, sql)

    (leak,) = leaks.find(folder, sampled(folder), FIRST)

    assert (leak.feature, leak.cause) == ("amount", "the interval")


def test_leaks_are_looked_for_in_published_tables(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = history(tmp_path)
    ingest(lake, ledger, folder, april(1, 5))
    leaky = history(tmp_path, HISTORY.replace("returned._known_at", "returned.placed"))

    assert find_leaks(folder, lake, april(4, 4), moments=3) == []
    assert [leak.feature for leak in find_leaks(leaky, lake, april(4, 4), moments=3)] == ["sent_back"]
