"""A sample of a stream: bounded memory, and the same rows whatever the order and the files they come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

_HASH = "__sample_hash"


def take_sample(reader: pa.RecordBatchReader, key: Sequence[str], *, size: int, seed: int) -> tuple[pa.Table, int]:
    """At most ``size`` rows of a stream, the same ones in whatever order and files they come, and how many there were.

    The rows with the least hashes of their key are taken, so memory holds a few times the sample and no more.
    """
    held: list[pa.Table] = []
    count, total, limit = 0, 0, 2**64 - 1
    for batch in reader:
        total += batch.num_rows
        frame = pa.Table.from_batches([batch.select(list(key))]).to_pandas()
        hashes = pd.util.hash_pandas_object(frame, index=False, hash_key=f"{seed:016d}", categorize=False).to_numpy()
        kept = hashes <= np.uint64(limit)
        rows = pa.Table.from_batches([batch]).filter(pa.array(kept)).append_column(_HASH, pa.array(hashes[kept], pa.uint64()))
        held.append(rows)
        count += rows.num_rows
        if count > 4 * size:
            held = [_least(held, size)]
            count, limit = size, held[0].column(_HASH)[-1].as_py()
    if not held:
        return reader.schema.empty_table(), 0
    return _least(held, size).drop_columns([_HASH]), total


def _least(parts: list[pa.Table], size: int) -> pa.Table:
    return pa.concat_tables(parts).sort_by(_HASH).slice(0, size).combine_chunks()
