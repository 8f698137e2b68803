"""Publishes recorded requests as the dataset ``requests`` of the lake, each row exactly once.

Rows are published by the hour in which they were asked. A publication of an hour has the rows that were published for it
before, and those of the chunks that have come since. After that the chunks are removed from the predictions database. If a run
dies in between, the next one finds the chunks in both places, publishes nothing new, and removes them. Runs at the same time do
not harm each other: who has read before another one published is superseded, and its chunks stay.

Neighbours: :mod:`perennial.serving.request_table` has the rows until then; :mod:`perennial.serving.parity` reads what is
published.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.intervals import Interval
from perennial.lake.publish import Lake, TableWrite
from perennial.serving.request_table import SCHEMA, RequestTable

log = logging.getLogger(__name__)

#: The ledger's name of the dataset; the table's name, which no table of a model may have; and the column that says when.
DATASET, TABLE, ASKED_AT = "requests", "online_requests", "asked_at"
#: The columns in the lake, where a model has a table of its own.
PUBLISHED = pa.schema([field for field in SCHEMA if field.name != "model"])


@dataclass(frozen=True)
class Published:
    """Recorded requests that were published.

    Attributes:
        rows: rows that are new in the lake.
        hours: the hours in which they were asked, as keys of intervals.
        lost: rows that were answered by processes that were killed before they could record them, as far as that is kept.
    """

    model: str
    rows: int
    hours: list[str]
    lost: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def publish_requests(lake: Lake, table: RequestTable, model: str, *, run_id: str) -> Published:
    """Publish what is recorded of a model, and remove it from the predictions database.

    Args:
        lake: where it is published.
        table: where it is recorded.
        model: the model.
        run_id: the run.

    Raises:
        Superseded: another run has published the same hour meanwhile, or an entity was erased; start a new run.
        ServingError: the predictions database does not answer.
    """
    rows, hours = 0, []
    for hour in table.hours(model):
        order = lake.ledger.next_order(model, DATASET, hour, run_id)
        new = _publish(lake, table, model, hour, order, run_id)
        rows += new
        hours += [hour.key] if new else []
    done = Published(model, rows, hours, table.lost(model))
    log.info("%s", done.to_json())
    return done


def _publish(lake: Lake, table: RequestTable, model: str, hour: Interval, order: int, run_id: str) -> int:
    """Publish an hour; returns how many rows are new."""
    made = lake.ledger.publications(model, DATASET, hour)
    head = lake.ledger.head(model, DATASET).snapshots.get(TABLE)
    since = made[-1].id if made else 0
    here, there = table.chunks(model, hour), set[str]()
    if made and head is not None:
        with lake.scan(model, TABLE, head, columns=["chunk"], interval=hour, event_time=ASKED_AT) as published:
            for batch in published:
                there.update(pc.unique(batch["chunk"]).to_pylist())
    new = [chunk for chunk in here if chunk not in there]
    count = 0

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal count
        if there and head is not None:
            yield from lake.scan(model, TABLE, head, columns=PUBLISHED.names, interval=hour, event_time=ASKED_AT)
        for batch in table.read(model, hour, new):
            count += batch.num_rows
            yield batch.select(PUBLISHED.names)

    def reader() -> pa.RecordBatchReader:
        nonlocal count
        count = 0
        return pa.RecordBatchReader.from_batches(PUBLISHED, (batch.cast(PUBLISHED) for batch in rows()))

    if new:
        lake.publish(
            model=model,
            dataset=DATASET,
            interval=hour,
            tables={TABLE: TableWrite(reader, ASKED_AT, PUBLISHED)},
            order=order,
            run_id=run_id,
            inputs={"chunks": len(new)},
            since=since,
        )
    # Only chunks that were read whole: what was stored meanwhile is of other chunks.
    table.remove(model, hour, here)
    return count


def read_published(lake: Lake, model: str, within: Interval | None = None) -> Iterator[pa.RecordBatch]:
    """The published requests of a model, asked in an interval, in columns of :data:`PUBLISHED`; none if none are."""
    head = lake.ledger.head(model, DATASET).snapshots.get(TABLE)
    if head is not None:
        yield from lake.scan(model, TABLE, head, columns=PUBLISHED.names, interval=within, event_time=ASKED_AT)
