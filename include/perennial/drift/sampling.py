"""A sample of a stream: bounded memory, and the same rows whatever the order and the files they come in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perennial.core.sql import quoted

_HASH = "__sample_hash"


def take_sample(reader: pa.RecordBatchReader, key: Sequence[str], *, size: int, seed: int) -> tuple[pa.Table, int]:
    """At most ``size`` rows of a stream, the same ones in whatever order and files they come, and how many there were.

    The rows with the least hashes of their key are taken, so memory holds a few times the sample and no more. The hash is
    DuckDB's, another release of which may take other rows.
    """
    held: list[pa.Table] = []
    count, total, limit = 0, 0, 2**64 - 1
    # On one thread, since the reader's own are at work on the next rows.
    with closing(duckdb.connect(config={"threads": 1})) as database:
        for batch in reader:
            total += batch.num_rows
            hashes = _hashes(database, batch, key, seed)
            kept = pa.array(hashes <= np.uint64(limit))
            rows = pa.Table.from_batches([batch]).append_column(_HASH, pa.array(hashes, pa.uint64())).filter(kept)
            held.append(rows)
            count += rows.num_rows
            if count > 4 * size:
                held = [_least(held, size)]
                count, limit = size, held[0].column(_HASH)[-1].as_py()
    if not held:
        return reader.schema.empty_table(), 0
    return _least(held, size).drop_columns([_HASH]), total


def _hashes(database: duckdb.DuckDBPyConnection, batch: pa.RecordBatch, key: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """A number of 64 bits for each row, which another seed changes to one that has nothing to do with it."""
    names = ", ".join(quoted(name) for name in key)
    found = database.from_arrow(pa.Table.from_batches([batch.select(list(key))])).project(
        f"hash(xor(hash({names}), hash({seed}))) AS hash"
    )
    hashes: NDArray[np.uint64] = found.fetchnumpy()["hash"]
    return hashes


def _least(parts: list[pa.Table], size: int) -> pa.Table:
    return pa.concat_tables(parts).sort_by(_HASH).slice(0, size).combine_chunks()
