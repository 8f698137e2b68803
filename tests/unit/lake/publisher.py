"""Publishes flights as the stages do, for tests of the lake."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from perennial.core.intervals import Interval
from perennial.core.settings import Settings
from perennial.lake.catalog import Catalog
from perennial.lake.publish import Lake, TableWrite
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger

MODEL = "flight_delay"
DAY = Interval.day("2013-04-01")
NEXT_DAY = Interval.day("2013-04-02")
TWO_DAYS = Interval.of("2013-04-01", "2013-04-03")
MOMENT = pa.timestamp("us", tz="UTC")
FLIGHTS = pa.schema([("flight", pa.string()), ("departure", MOMENT), ("source", pa.string()), ("_known_at", MOMENT)])
FLEET = pa.schema([("tailnum", pa.string()), ("source", pa.string())])


def flights(interval: Interval, source: str, per_day: int = 3) -> pa.Table:
    """``per_day`` rows for each day, spread over it, that tell where they come from."""
    moments = [day.start + timedelta(hours=24 * n / per_day) for day in interval.days() for n in range(per_day)]
    names = [f"{moment:%m-%d %H:%M}" for moment in moments]
    columns = [names, moments, [source] * len(names), moments]
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, FLIGHTS, strict=True)], schema=FLIGHTS)


def fleet(source: str) -> pa.Table:
    return pa.table({"tailnum": ["N1", "N2"], "source": [source] * 2}, schema=FLEET)


def write(table: pa.Table, event_time: str | None = "departure") -> TableWrite:
    return TableWrite(table.to_reader, event_time, table.schema)


@dataclass
class Publisher:
    """Publishes as the stages do."""

    settings: Settings
    ledger: Ledger
    lake: Lake
    model: str = MODEL

    def order(self, interval: Interval, run: str) -> int:
        return self.ledger.next_order(self.model, "tables", interval, run)

    def publish(self, interval: Interval, run: str, order: int | None = None, **tables: TableWrite) -> Publication:
        return self.lake.publish(
            model=self.model,
            dataset="tables",
            interval=interval,
            tables=tables or {"flights": write(flights(interval, run)), "fleet": write(fleet(run), None)},
            order=order or self.order(interval, run),
            run_id=run,
            inputs={"run": run},
        )

    def rows(self, table: str = "flights", **choice: Any) -> list[dict[str, Any]]:
        """What a reader reads now, in the order of the first column."""
        published = self.ledger.published(self.model, "tables")
        if published is None or table not in published.snapshots:
            return []
        rows = self.lake.scan(self.model, table, published.snapshots[table], **choice).read_all()
        found: list[dict[str, Any]] = rows.sort_by(rows.schema.names[0]).to_pylist()
        return found

    def sources(self) -> dict[date, set[str]]:
        """Which runs the flights of each day come from; a day whose rows are not all there once fails."""
        found: dict[date, list[str]] = {}
        for row in self.rows():
            found.setdefault(row["departure"].date(), []).append(row["source"])
        assert {len(sources) for sources in found.values()} <= {3}
        return {day: set(sources) for day, sources in found.items()}

    def files(self, table: str = "flights") -> int:
        """How many data files a reader opens."""
        published = self.ledger.published(self.model, "tables")
        assert published is not None
        found = catalog(self.settings).load(self.model, table)
        return len(list(found.scan(snapshot_id=published.snapshots[table]).plan_files()))


def catalog(settings: Settings) -> Catalog:
    return Catalog(settings.catalog_url, settings.warehouse)


def publisher_with(settings: Settings) -> Publisher:
    ledger = Ledger(settings.database_url)
    ledger.migrate()
    return Publisher(settings, ledger, Lake(settings, ledger))


def soon() -> datetime:
    """So late that nothing is young."""
    return datetime.now(UTC) + timedelta(hours=1)
