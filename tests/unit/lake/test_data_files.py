"""Data files keep every value, have one hash in any order, and are on the disk before they are named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.settings import Settings
from perennial.lake import data_files
from perennial.lake.data_files import digest
from perennial.lake.publish import TableWrite
from tests.unit.lake.publisher import DAY, FLIGHTS, MODEL, MOMENT, NEXT_DAY, Publisher, flights, write


def test_every_type_of_the_lake_comes_back_as_it_was(publisher: Publisher) -> None:
    table = pa.table(
        {
            "moment": pa.array([DAY.start, DAY.start], MOMENT),
            "text": pa.array(["", None]),
            "whole": pa.array([2**62, None], pa.int64()),
            "number": pa.array([float("-inf"), None]),
            "flag": pa.array([True, None]),
            "date": pa.array([date(1, 1, 1), None]),
            "reasons": pa.array([["a", None], []], pa.list_(pa.string())),
        }
    )
    publication = publisher.publish(DAY, "a", flights=write(table, "moment"))
    read = publisher.lake.scan(MODEL, "flights", publication.snapshots["flights"]).read_all()
    assert read.schema.equals(table.schema)
    assert read.equals(table)


def test_other_types_are_cast_or_refused(publisher: Publisher) -> None:
    near = pa.table(
        {
            "moment": pa.array([DAY.start], pa.timestamp("ms", tz="Europe/Berlin")),
            "text": pa.array(["a"], pa.string_view()),
            "code": pa.array(["x"]).dictionary_encode(),
            "whole": pa.array([3], pa.int16()),
            "number": pa.array([0.5], pa.float32()),
        }
    )
    publisher.publish(DAY, "a", near=write(near, "moment"))
    assert publisher.rows("near") == [{"moment": DAY.start, "text": "a", "code": "x", "whole": 3, "number": 0.5}]
    far = pa.table({"moment": pa.array([datetime(2013, 4, 1)], pa.timestamp("us"))})  # noqa: DTZ001
    with pytest.raises(ValueError, match="timestamp must have a time zone"):
        publisher.publish(DAY, "b", far=write(far, "moment"))


def test_hash_of_an_interval_does_not_depend_on_order_batches_or_neighbours(publisher: Publisher) -> None:
    rows = flights(DAY, "same", per_day=50)
    batches = rows.slice(20).to_batches(max_chunksize=7) + rows.slice(0, 20).to_batches()
    shuffled = TableWrite(lambda: pa.RecordBatchReader.from_batches(FLIGHTS, iter(batches)), "departure", FLIGHTS)
    first = publisher.publish(DAY, "a", flights=write(rows))
    publisher.publish(NEXT_DAY, "b")
    second = publisher.publish(DAY, "c", flights=shuffled)
    assert second.hashes["flights"] == first.hashes["flights"]


@pytest.mark.parametrize(
    "other",
    [
        [("a", 1.0), ("a", 1.0)],
        [("a", 1.0), ("b", 2.0), ("b", 2.0)],
        [("a", 1.0), ("b", float("nan"))],
        [("a", 1.0), ("b", None)],
        [("a", 1.0), (None, 2.0)],
        [("a", 1.0), ("", 2.0)],
        [("a", 1.0), ("b|", 2.0)],
        [("a", 2.0), ("b", 1.0)],
    ],
)
def test_hash_tells_other_rows_apart(other: Sequence[tuple[str | None, float | None]], publisher: Publisher) -> None:
    def digest(rows: Sequence[tuple[str | None, float | None]], run: str) -> str:
        table = pa.table({"t": pa.array([DAY.start] * len(rows), MOMENT), "x": [r[0] for r in rows], "y": [r[1] for r in rows]})
        return publisher.publish(DAY, run, t=write(table, "t")).hashes["t"]

    assert digest(other, "a") != digest([("a", 1.0), ("b", 2.0)], "b")


def test_hashes_that_ledgers_hold_already_stay_comparable() -> None:
    rows = pa.table(
        {
            "text": ["a", "", None, "ü|漢"],
            "number": pa.array([1.5, -0.0, np.nan, None]),
            "count": pa.array([1, None, -7, 2**62]),
            "yes": [True, False, None, True],
            "day": [date(2013, 4, 1), None, date(1969, 1, 1), date(2013, 4, 1)],
            "at": pa.array([DAY.start, None, datetime(1969, 1, 1, tzinfo=UTC), DAY.end], MOMENT),
        }
    )
    assert digest(rows.to_batches(), rows.column_names) == "459f62f74b5f47fd97c18482756789a443e88c8ea00e752666519acd3a41a6f4"


def test_memory_stays_flat_while_rows_are_written_and_read(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.lake.catalog.FILE_BYTES", 4 * 1024**2)
    monkeypatch.setattr(data_files, "_READ_BYTES", 4 * 1024**2)
    # How far reading is ahead, and how many files go into one group, varies: a share of all rows is what never may be held.
    rows_a_batch, batches = 131_072, 120
    schema = pa.schema([("departure", MOMENT), ("number", pa.int64())])
    a_quarter = rows_a_batch * batches * 16 // 4
    before = pa.total_allocated_bytes()
    held: list[int] = []

    def source() -> pa.RecordBatchReader:
        def generate() -> Iterator[pa.RecordBatch]:
            for n in range(batches):
                held.append(pa.total_allocated_bytes())
                numbers = np.arange(n * rows_a_batch, (n + 1) * rows_a_batch)
                moments = pa.array(np.full(rows_a_batch, int(DAY.start.timestamp() * 1e6)), MOMENT)
                yield pa.record_batch([moments, pa.array(numbers)], schema=schema)

        return pa.RecordBatchReader.from_batches(schema, generate())

    publication = publisher.publish(DAY, "a", big=TableWrite(source, "departure", schema))
    assert publication.rows["big"] == batches * rows_a_batch
    assert publisher.files("big") > 8
    assert len(held) == batches
    assert max(held) - before < a_quarter
    rows, held = 0, []
    for batch in publisher.lake.scan(MODEL, "big", publication.snapshots["big"]):
        rows += batch.num_rows
        held.append(pa.total_allocated_bytes())
    assert rows == batches * rows_a_batch
    assert max(held) - before < a_quarter


def test_files_are_on_the_disk_before_the_catalog_names_them(
    publisher: Publisher, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    publisher.publish(DAY, "a")
    files = [path for path in Path(settings.warehouse).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".parquet", ".avro", ".json"}
    assert {path.stat().st_ino for path in files} <= synced


def test_files_hold_columns_by_the_ids_that_other_engines_go_by(publisher: Publisher, settings: Settings) -> None:
    publisher.publish(DAY, "a")
    (file,) = Path(settings.warehouse).rglob("*/flights/data/*.parquet")
    assert [f.metadata[b"PARQUET:field_id"] for f in pq.read_schema(file)] == [b"1", b"2", b"3", b"4"]
