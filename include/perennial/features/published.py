"""Published tables, as the functions that scan them in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import pyarrow as pa

from perennial.core.errors import SnapshotMissing
from perennial.core.intervals import Interval
from perennial.lake.publish import Lake
from perennial.lake.schema import published_schema
from perennial.ledger.records import Publication
from perennial.ledger.store import Ledger
from perennial.spec.folder import ModelFolder

#: The ledger's name for what is published here, and the table's name.
DATASET = "features"
#: The ledger's name for the raw tables, see :mod:`perennial.ingestion.publish`, whose Great Expectations takes seconds to
#: import.
TABLES = "tables"


def published_tables(folder: ModelFolder, ledger: Ledger) -> Publication:
    published = ledger.published(folder.spec.name, TABLES)
    if published is None:
        name = folder.spec.name
        raise SnapshotMissing(f"{name}: no tables are published yet; run {name}.ingest for a range of past days first")
    return published


def scan(
    folder: ModelFolder,
    lake: Lake,
    name: str,
    snapshots: Mapping[str, int],
    *,
    columns: Sequence[str] | None = None,
    within: Interval | None = None,
    known_by: datetime | None = None,
) -> pa.RecordBatchReader:
    model, table = folder.spec.name, folder.spec.tables[name]
    again = f"run {model}.ingest once more for the days in question"
    if name not in snapshots:
        raise SnapshotMissing(f"{model}: table {name} of model.yaml was never published; {again}")
    try:
        return lake.scan(
            model,
            name,
            snapshots[name],
            columns=columns or published_schema(table).names,
            interval=within if table.event_time else None,
            event_time=table.event_time,
            known_by=known_by,
        )
    except ValueError as error:
        raise SnapshotMissing(f"{error}, though model.yaml names it; {again}") from error
