"""A feature that depends on which other entities are asked is found, and others are not blamed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from perennial.features import independence
from perennial.features.publish import find_dependences
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder
from tests.unit.features.shop import HISTORY, april, history, ingest, shop, tables_of


def sampled(folder: ModelFolder) -> dict[str, pa.Table]:
    """Orders every two hours of four days."""
    return tables_of(folder, list(range(-48, 48, 2)))


def test_a_query_that_looks_at_tables_only_has_no_dependence(tmp_path: Path) -> None:
    folder = history(tmp_path)

    assert independence.find(folder, sampled(folder), april(1, 2)) == []


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ("rank() OVER (ORDER BY amount)", "only half of the entities are"),
        ("amount - avg(amount) OVER (PARTITION BY customer)", "only half of the entities are"),
        ("(SELECT epoch(max(sent_back)) FROM returned WHERE _known_at <= (SELECT max(as_of) FROM entities))", None),
        # Each day alone is as all together; it shows for half of a day only.
        ("rank() OVER (PARTITION BY date_trunc('day', placed) ORDER BY amount)", "only half of the entities are"),
    ],
)
def test_a_feature_that_depends_on_the_other_entities_is_named_with_an_example(
    tmp_path: Path, value: str, asked: str | None
) -> None:
    sql = f"SELECT order_id, amount, {value} AS told FROM entities"
    folder = shop(tmp_path, sql, features={"numeric": ["amount", "told"]})

    [found] = independence.find(folder, sampled(folder), april(1, 2))

    assert found.feature == "told"
    assert asked in (None, found.asked)
    assert found.entities > 0
    assert f"for example {found.example} at 2013-04-0" in str(found)
    assert found.example.startswith("order_id o")


def test_a_feature_of_the_number_of_days_asked_is_found(tmp_path: Path) -> None:
    sql = "SELECT order_id, (SELECT count(DISTINCT date_trunc('day', placed)) FROM entities) AS amount FROM entities"
    folder = shop(tmp_path, sql)

    [found] = independence.find(folder, sampled(folder), april(1, 2))

    assert found.feature == "amount"


def test_without_entities_nothing_is_found(tmp_path: Path) -> None:
    folder = shop(tmp_path)

    assert independence.find(folder, sampled(folder), april(20, 21)) == []


def test_an_entity_that_was_corrected_is_the_same_alone(tmp_path: Path) -> None:
    folder = history(tmp_path)
    tables = sampled(folder)
    # A correction of each order, known an hour after it: others see it, the order itself does not.
    orders = tables["orders"].to_pylist()
    corrected = [{**row, "amount": -1.0, "_known_at": row["_known_at"].replace(minute=59)} for row in orders]
    tables["orders"] = pa.Table.from_pylist([*orders, *corrected], schema=tables["orders"].schema)
    sql = HISTORY.replace("count(returned.order_id)", "sum(earlier.amount)").replace(
        "earlier.customer = orders_now.customer",
        "earlier.customer = orders_now.customer AND earlier._known_at <= orders_now.as_of "
        "AND earlier.placed > orders_now.placed - INTERVAL 2 DAY",
    )

    assert independence.find(history(tmp_path / "sums", sql), tables, april(1, 2)) == []


def test_dependences_are_looked_for_in_published_tables(tmp_path: Path, lake: Lake, ledger: Ledger) -> None:
    folder = shop(tmp_path, "SELECT order_id, count(*) OVER () AS amount FROM entities")
    ingest(lake, ledger, folder, april(1, 5))

    assert [one.feature for one in find_dependences(folder, lake, april(4, 5))] == ["amount"]
    assert find_dependences(history(tmp_path / "other"), lake, april(4, 5)) == []
