"""A sample is the same in any order and files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from perennial.drift.sampling import take_sample

# Evidently, once :mod:`perennial.drift.compare` has imported it without its warnings.


def reader(table: pa.Table, chunk: int) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=chunk))


def test_the_sample_is_the_same_in_whatever_order_and_files_the_rows_come() -> None:
    rows = pa.table({"id": [f"flight {number}" for number in range(5_000)], "value": np.arange(5_000)})
    shuffled = rows.take(np.random.default_rng(0).permutation(5_000))
    first, total = take_sample(reader(rows, 700), ["id"], size=300, seed=1)
    again, _ = take_sample(reader(shuffled, 13), ["id"], size=300, seed=1)
    other, _ = take_sample(reader(rows, 700), ["id"], size=300, seed=2)
    assert total == 5_000
    assert first.num_rows == 300
    assert first.equals(again)
    assert not first.equals(other)
    assert first.column_names == ["id", "value"]


def test_the_sample_is_spread_over_all_rows() -> None:
    rows = pa.table({"id": np.arange(50_000), "value": np.arange(50_000.0)})
    sample, _ = take_sample(reader(rows, 4_000), ["id"], size=2_000, seed=1)
    assert np.mean(sample.column("value").to_numpy()) == pytest.approx(25_000, rel=0.05)


def test_a_sample_of_nothing_is_empty() -> None:
    empty = pa.table({"id": pa.array([], pa.string())})
    sample, total = take_sample(reader(empty, 10), ["id"], size=10, seed=1)
    assert (sample.num_rows, total) == (0, 0)
