"""Rows that were published before a column was renamed, or was there, are not read as if they had no value in it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.core.errors import SnapshotMissing
from perennial.core.intervals import Interval
from perennial.features.history import gaps_of_training, refuse_gaps
from perennial.features.labels import read_labels
from perennial.features.publish import build_features, ensure_features
from perennial.lake.publish import Lake
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder
from tests.unit.features.shop import FIRST, SPEC, april, ingest, ingest_tables, shop, tables_of

ENTITIES = "SELECT order_id, {} AS amount FROM entities"
LOOKBACK = "SELECT order_id, (SELECT max({}) FROM orders) AS amount FROM entities"


def changed(
    path: Path, column: str, *, sql: str | None = None, query: str = ENTITIES, table: str = "orders", **fields: Any
) -> ModelFolder:
    """The shop with another column in place of ``amount``, or of ``reason`` in the table of labels."""
    tables = copy.deepcopy(SPEC["tables"])
    tables[table]["columns"].pop("amount" if table == "orders" else "reason")
    tables[table]["columns"][column] = {"type": "float", **fields, **({"sql": sql} if sql else {})}
    label = {"table": "returned", "sql": f"{column} > 0"} if table == "returned" else SPEC["label"]
    return shop(path, query.format(column if table == "orders" else "1"), tables=tables, label=label)


def ingest_changed(lake: Lake, ledger: Ledger, folder: ModelFolder, interval: Interval, column: str) -> None:
    """The same rows as :func:`tests.unit.features.shop.ingest`, by the changed folder."""
    placed = [24.0 * (day.start.day - 1) + hour for day in interval.days() for hour in (1, 7, 13, 19)]
    tables = tables_of(folder, placed, **({column: [2.0] * len(placed)} if column != "customer" else {}))
    ingest_tables(lake, ledger, folder, interval, {"orders": tables["orders"]}, "again")


def features(folder: ModelFolder, lake: Lake, interval: Interval) -> pa.Table:
    with build_features(folder, lake, interval) as built:
        return built.reader().read_all()


@pytest.fixture
def before(tmp_path: Path, lake: Lake, ledger: Ledger) -> Interval:
    """Three days that were published when the column was named amount."""
    for day in april(1, 3).days():
        ingest(lake, ledger, shop(tmp_path), day)
    return april(1, 3)


@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize("sql", ["amount", '"amount"', " AMOUNT "])
def test_a_renamed_column_is_not_read_as_missing(
    tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval, nullable: bool, sql: str
) -> None:
    folder = changed(tmp_path, "price", sql=sql, nullable=nullable)
    ingest_changed(lake, ledger, folder, april(4, 4), "price")

    with pytest.raises(SnapshotMissing) as raised:
        ensure_features(folder, lake, april(1, 4), run_id="train")

    assert str(raised.value) == (
        "returns: rows of orders of 2013-04-01--2013-04-04 have amount, and nothing yet in price, which model.yaml reads from "
        "the same: ingest them again: perennial ingest returns 2013-04-01 2013-04-04 (in Airflow: returns.load)"
    )
    assert ledger.published("returns", "features") is None
    ingest_changed(lake, ledger, folder, before, "price")
    ensure_features(folder, lake, april(1, 4), run_id="train")
    assert features(folder, lake, april(1, 4)).column("amount").to_pylist() == [2.0] * 16


def test_a_new_column_that_must_have_a_value_is_not_read_as_missing(
    tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval
) -> None:
    folder = changed(tmp_path, "weight")
    ingest_changed(lake, ledger, folder, april(4, 4), "weight")

    with pytest.raises(SnapshotMissing) as raised:
        features(folder, lake, april(1, 4))

    assert "rows of orders of 2013-04-01--2013-04-04 have no value of weight, which model.yaml does not let be" in str(
        raised.value
    )
    assert "where a value may be missing, write nullable: true at weight" in str(raised.value)
    assert features(folder, lake, april(4, 4)).num_rows == 4


@pytest.mark.parametrize("fields", [{"nullable": True}, {"severity": "warning"}])
def test_a_new_column_that_may_miss_its_value_is_null_before(
    tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval, fields: dict[str, Any]
) -> None:
    folder = changed(tmp_path, "weight", **fields)
    ingest_changed(lake, ledger, folder, april(4, 4), "weight")

    assert features(folder, lake, april(3, 4)).column("amount").to_pylist() == [None] * 4 + [2.0] * 4


def test_a_column_that_no_feature_reads_stops_nothing(tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval) -> None:
    folder = changed(tmp_path, "weight", query="SELECT order_id, 1 AS amount FROM entities")
    ingest_changed(lake, ledger, folder, april(4, 4), "weight")

    assert features(folder, lake, april(1, 4)).num_rows == 16


def test_days_of_the_lookback_count_where_the_query_sees_them(
    tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval
) -> None:
    folder = changed(tmp_path, "price", sql="amount", query=LOOKBACK)
    ingest_changed(lake, ledger, folder, april(4, 5), "price")

    with pytest.raises(SnapshotMissing, match="perennial ingest returns 2013-04-02 2013-04-04 "):
        features(folder, lake, april(4, 5))


def test_days_that_do_not_follow_each_other_have_a_command_each(
    tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval
) -> None:
    folder = changed(tmp_path, "price", sql="amount")
    ingest_changed(lake, ledger, folder, april(2, 2), "price")

    with pytest.raises(SnapshotMissing) as raised:
        features(folder, lake, april(1, 3))

    command = "perennial ingest returns 2013-04-01 2013-04-02; perennial ingest returns 2013-04-03 2013-04-04 ("
    assert command in str(raised.value)


def test_joined_files_hide_no_renamed_column(tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval) -> None:
    folder = changed(tmp_path, "price", sql="amount", nullable=True)
    ingest_changed(lake, ledger, folder, april(4, 4), "price")
    assert lake.compact("returns", many=2)["orders"] == 4

    with pytest.raises(SnapshotMissing, match=r"rows of orders of 2013-04-01--2013-04-04 have amount"):
        features(folder, lake, april(1, 4))


def test_labels_are_not_computed_from_a_column_that_was_renamed(
    tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval
) -> None:
    folder = changed(tmp_path, "cause", sql="reason", table="returned")
    tables = tables_of(
        folder,
        [73.0],
    )
    returned = tables["returned"].set_column(tables["returned"].schema.get_field_index("cause"), "cause", pa.array([1.0]))
    published = ingest_tables(lake, ledger, folder, april(4, 4), {"orders": tables["orders"], "returned": returned})

    with pytest.raises(SnapshotMissing, match="rows of returned of 2013-04-01 have reason, and nothing yet in cause"):
        read_labels(folder, lake, published.snapshots, FIRST, as_of=april(9, 9).end)
    assert read_labels(folder, lake, published.snapshots, april(4, 4), as_of=april(9, 9).end).num_rows == 1
    with pytest.raises(SnapshotMissing, match="perennial ingest returns 2013-04-01 2013-04-04 "):
        refuse_gaps(folder, gaps_of_training(folder, lake, published.snapshots, april(1, 4)))


def test_a_table_without_event_time_is_to_be_ingested_again_as_a_whole(
    tmp_path: Path, lake: Lake, ledger: Ledger, before: Interval
) -> None:
    query = "SELECT order_id, town::INTEGER AS amount FROM entities JOIN customers USING (customer)"
    tables = copy.deepcopy(SPEC["tables"])
    tables["customers"]["columns"] = {"customer": {"type": "string"}, "town": {"type": "string", "sql": "city"}}
    folder = shop(tmp_path, query, tables=tables)
    ingest(lake, ledger, shop(tmp_path / "as before"), april(4, 4))
    published = ingest_tables(lake, ledger, folder, april(4, 4), {"orders": tables_of(folder, [73.0])["orders"]}, "later")
    assert "customers" in published.snapshots

    with pytest.raises(
        SnapshotMissing, match=r"rows of customers have city, and nothing yet in town.*: run returns.ingest again"
    ):
        features(folder, lake, april(4, 4))
