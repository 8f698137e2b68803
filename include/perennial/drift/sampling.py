"""Sample a stream in bounded memory. The sample does not depend on the order of rows and files."""

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
    """Take at most ``size`` rows of a stream. The same rows are taken in any order and from any files.

    The rows with the smallest hashes of their key are taken. So memory holds a few times the sample and no more. The hash is
    DuckDB's. Another release of DuckDB may take other rows.

    Args:
        reader: the stream, which is read to its end.
        key: columns that identify a row.
        size: the most rows to take.
        seed: another seed takes other rows.

    Returns:
        The sample, and the number of rows of the stream.
    """
    held: list[pa.Table] = []
    count, total, limit = 0, 0, 2**64 - 1
    # One thread, since the reader's threads already work on the next rows.
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
    """A 64-bit hash per row. Another seed gives unrelated hashes."""
    names = ", ".join(quoted(name) for name in key)
    found = database.from_arrow(pa.Table.from_batches([batch.select(list(key))])).project(
        f"hash(xor(hash({names}), hash({seed}))) AS hash"
    )
    hashes: NDArray[np.uint64] = found.fetchnumpy()["hash"]
    return hashes


def _least(parts: list[pa.Table], size: int) -> pa.Table:
    return pa.concat_tables(parts).sort_by(_HASH).slice(0, size).combine_chunks()
