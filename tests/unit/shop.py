"""A shop whose orders and outcomes come as daily files, and may come late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perennial.cli import by_hand
from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.deployment import Deployment
from tests.unit import synthetic

TABLE: dict[str, Any] = {
    "key": ["id"],
    "event_time": "placed",
    "known": "told",
    "columns": {
        "id": {"type": "string"},
        "placed": {"type": "timestamp"},
        "told": {"type": "timestamp"},
        "amount": {"type": "float"},
    },
    "late": "1d",
}


class Shop:
    """A model whose sources are folders of daily files."""

    def __init__(
        self,
        state: Path,
        *,
        sources: dict[str, Any] | None = None,
        schedules: dict[str, Any] | None = None,
        **tables: dict[str, Any],
    ) -> None:
        self.settings: Settings = synthetic.deployment(state)
        spec = {
            "name": "shop",
            "owner": "tests",
            "description": "What will an order bring?",
            "task": "regression",
            "sources": {name: {"files": f"{name}/%Y-%m-%d.csv"} for name in ("orders", "outcomes")} | (sources or {}),
            "tables": {name: {**TABLE, "source": name, **tables.get(name, {})} for name in ("orders", "outcomes")},
            "entity": {"table": "orders", "as_of": "placed + INTERVAL 1 DAY"},
            "features": {"numeric": ["amount"]},
            "label": {"table": "outcomes", "sql": "amount"},
            "candidates": {"mean": {"estimator": "prior", "baseline": True}, "line": {"estimator": "linear_regression"}},
            "schedules": schedules or {},
        }
        folder = self.settings.models / "shop"
        folder.mkdir(parents=True)
        (folder / "model.yaml").write_text(json.dumps(spec))
        (folder / "features.sql").write_text("SELECT id, amount FROM entities")
        self.deployment = Deployment(self.settings)

    def deliver(self, table: str, day: str, *rows: str) -> Path:
        """Write a file; a row is ``id day+hour told-day+hour amount``, such as ``a 1T10 1T11 5``."""
        file = self.settings.data / table / f"2024-01-0{day}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for row in rows:
            key, placed, told, amount = row.split()
            lines.append(",".join([key, *(f"2024-01-0{moment}:00:00Z" for moment in (placed, told)), amount]))
        file.write_text("\n".join(["id,placed,told,amount", *lines]) + "\n")
        return file

    def ingest(self, interval: Interval) -> str:
        return by_hand.ingest(self.settings, "shop", interval)

    def rows(self, table: str = "orders", day: Interval | None = None) -> list[tuple[str, float]]:
        published = self.deployment.ledger.published("shop", "features" if table == "features" else "tables")
        assert published is not None
        found = self.deployment.lake.scan("shop", table, published.snapshots[table], interval=day).read_all()
        return sorted((row["id"], row["amount"]) for row in found.to_pylist())

    def unfinished(self) -> list[str]:
        """What `perennial history` says of published days, without since when."""
        return [line.partition(":")[0] for line in by_hand.unfinished(self.settings, "shop")]

    def too_late(self, day: Interval) -> dict[str, dict[str, int]]:
        """What the newest publication of a day says about rows that came too late."""
        found: dict[str, dict[str, int]] = self.deployment.ledger.publications("shop", "tables", day)[-1].inputs["too_late"]
        return found

    def quarantine(self) -> list[str]:
        published = self.deployment.ledger.published("shop", "tables")
        assert published is not None
        found = self.deployment.lake.scan("shop", "quarantine", published.snapshots["quarantine"]).read_all()
        return [reason for row in found.to_pylist() for reason in row["reasons"]]
