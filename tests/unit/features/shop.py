"""A small model of a shop and its tables, for tests of features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from perennial.core.intervals import Interval
from perennial.features.point_in_time import compute
from perennial.lake.publish import Lake, TableWrite
from perennial.lake.schema import published_schema
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder, read_model

APRIL = datetime(2013, 4, 1, tzinfo=UTC)
FIRST, SECOND = Interval.day("2013-04-01"), Interval.day("2013-04-02")

SPEC: dict[str, Any] = {
    "name": "returns",
    "owner": "tests",
    "description": "Will this order be sent back?",
    "task": "binary_classification",
    "sources": {"shop": {"files": "shop/%Y-%m-%d.csv"}},
    "tables": {
        "orders": {
            "source": "shop",
            "key": ["order_id"],
            "event_time": "placed",
            "known": "placed",
            "columns": {
                "order_id": {"type": "string"},
                "placed": {"type": "timestamp"},
                "customer": {"type": "string"},
                "amount": {"type": "float", "nullable": True},
            },
        },
        "returned": {
            "source": "shop",
            "key": ["order_id"],
            "event_time": "placed",
            "known": "sent_back",
            "columns": {
                "order_id": {"type": "string"},
                "placed": {"type": "timestamp"},
                "sent_back": {"type": "timestamp"},
                "reason": {"type": "integer"},
            },
        },
        "customers": {
            "source": "shop",
            "key": ["customer"],
            "known": "always",
            "columns": {"customer": {"type": "string"}, "city": {"type": "string", "nullable": True}},
        },
    },
    "entity": {"table": "orders", "as_of": "placed"},
    "features": {"numeric": ["amount"], "lookback": "2d"},
    "label": {"table": "returned", "sql": "reason > 0"},
    "candidates": {
        "prior": {"estimator": "prior", "baseline": True},
        "boosting": {"estimator": "gradient_boosting"},
    },
}

HISTORY = """
-- How many orders of the customer were known to have been sent back.
SELECT orders_now.order_id, count(returned.order_id) AS sent_back
FROM entities AS orders_now
LEFT JOIN orders AS earlier ON earlier.customer = orders_now.customer
LEFT JOIN returned ON returned.order_id = earlier.order_id AND returned._known_at <= orders_now.as_of
  AND earlier.placed > orders_now.placed - INTERVAL 2 DAY
GROUP BY 1
"""


def shop(path: Path, sql: str = "SELECT order_id, amount FROM entities", **changes: Any) -> ModelFolder:
    """The model folder of a shop, with other keys of ``model.yaml`` if they are given."""
    folder = path / "models" / "returns"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(json.dumps({**SPEC, **changes}))
    (folder / "features.sql").write_text(sql)
    return read_model(folder)


def history(path: Path, sql: str = HISTORY) -> ModelFolder:
    return shop(path, sql, features={"numeric": ["sent_back"], "lookback": "2d"})


def table(folder: ModelFolder, name: str, rows: list[dict[str, Any]], known: list[datetime]) -> pa.Table:
    schema = published_schema(folder.spec.tables[name])
    filled = [{**dict.fromkeys(schema.names), **row, "_known_at": at} for row, at in zip(rows, known, strict=True)]
    return pa.Table.from_pylist(filled, schema=schema)


def hours(number: float) -> datetime:
    return APRIL + timedelta(hours=number)


def tables_of(folder: ModelFolder, placed: list[float], **other: list[Any]) -> dict[str, pa.Table]:
    """Orders placed at hours of April, customers a and b in turn; every second one is sent back five hours later.

    Args:
        other: columns of ``orders`` that shall hold something else.
    """
    orders: list[dict[str, Any]] = [
        {"order_id": f"o{at:g}", "placed": hours(at), "customer": "ab"[n % 2], "amount": float(at)}
        for n, at in enumerate(placed)
    ]
    orders = [{**row, **{name: values[n] for name, values in other.items()}} for n, row in enumerate(orders)]
    back: list[dict[str, Any]] = [
        {"order_id": row["order_id"], "placed": row["placed"], "sent_back": row["placed"] + timedelta(hours=5), "reason": n % 2}
        for n, row in enumerate(orders)
    ]
    people: list[dict[str, Any]] = [{"customer": "a", "city": "Ålesund"}, {"customer": "b", "city": None}]
    return {
        "orders": table(folder, "orders", orders, [row["placed"] for row in orders]),
        "returned": table(folder, "returned", back, [row["sent_back"] for row in back]),
        "customers": table(folder, "customers", people, [datetime(1900, 1, 1, tzinfo=UTC)] * 2),
    }


def features(folder: ModelFolder, tables: Mapping[str, pa.Table], interval: Interval = FIRST) -> pa.Table:
    with compute(folder, tables, interval) as built:
        return built.reader().read_all()


# --- the lake ----------------------------------------------------------------------------------------------------------


def ingest(
    lake: Lake, ledger: Ledger, folder: ModelFolder, interval: Interval, run_id: str = "ingest", *, amount: float = 1.0
) -> Publication:
    """Publish an interval's tables: four orders a day, each sent back five hours later."""
    days = [(day.start - APRIL) / timedelta(hours=1) for day in interval.days()]
    placed = [start + hour for start in days for hour in (1, 7, 13, 19)]
    return ingest_tables(lake, ledger, folder, interval, tables_of(folder, placed, amount=[amount] * len(placed)), run_id)


def ingest_tables(
    lake: Lake,
    ledger: Ledger,
    folder: ModelFolder,
    interval: Interval,
    tables: Mapping[str, pa.Table],
    run_id: str = "ingest",
) -> Publication:
    return lake.publish(
        model="returns",
        dataset="tables",
        interval=interval,
        tables={
            name: TableWrite(rows.to_reader, folder.spec.tables[name].event_time, rows.schema) for name, rows in tables.items()
        },
        order=ledger.next_order("returns", "tables", interval, run_id),
        run_id=run_id,
        inputs={},
    )


def april(first: int, last: int) -> Interval:
    """The days from one to another of April, both included."""
    return Interval(APRIL + timedelta(days=first - 1), APRIL + timedelta(days=last))
