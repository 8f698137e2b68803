"""How much each row counts in a fit: ``training.weight`` of ``model.yaml``.

A weight is made of what the row itself says: its features, key, event time and label, all known when it may be learned from;
how much older it is than the newest row of the fit; and how frequent its class is among the rows of the fit. So every fit of a
recipe computes the same weights again. No measurement uses them.

Neighbour: :mod:`perennial.model.estimators` fits with them.
"""

from __future__ import annotations

from contextlib import closing

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.core.errors import TrainingError
from perennial.core.sql import connect
from perennial.core.text import one_line
from perennial.model.labels import LABEL
from perennial.spec.model import ModelSpec
from perennial.spec.training import BALANCED, Weight

_DAY = 86_400.0


def weights_of(spec: ModelSpec, rows: pa.Table) -> NDArray[np.float64] | None:
    """The weights of n rows: positive or 0, with the mean 1, so that an estimator's limits mean what they mean without weights.

    Args:
        spec: the spec of the model.
        rows: n rows with key, event time, features and ``label``.

    Returns:
        None if all rows count the same, because ``model.yaml`` has no ``training.weight``.

    Raises:
        TrainingError: the SQL expression cannot be computed, or gives something else than numbers of at least 0, or only 0.
    """
    weight = spec.training.weight
    if weight is None or rows.num_rows == 0:
        return None
    found: NDArray[np.float64] = np.ones(rows.num_rows)
    if weight.sql is not None:
        found *= _stated(spec, weight.sql, rows)
    if weight.half_life is not None:
        seconds = pc.cast(pc.cast(rows.column(spec.event_time), pa.timestamp("us", "UTC")), pa.int64()).to_numpy() / 1e6
        found *= 0.5 ** ((seconds.max() - seconds) / weight.half_life.total_seconds())
    if weight.classes is not None:
        found *= _by_class(weight, rows)
    if not found.mean() > 0:
        raise TrainingError(f"{spec.name}: training.weight gives all {rows.num_rows:,} rows the weight 0")
    found /= found.mean()
    return found


def bind_weight(spec: ModelSpec, schema: pa.Schema) -> None:
    """Try ``training.weight.sql`` on rows without any.

    Args:
        spec: the spec of the model.
        schema: of the features; the label is added.

    Raises:
        TrainingError: it cannot be computed, or gives no number.
    """
    weight = spec.training.weight
    if weight is not None and weight.sql is not None:
        label = {"binary_classification": pa.bool_(), "regression": pa.float64()}.get(spec.task, pa.string())
        _stated(spec, weight.sql, schema.append(pa.field(LABEL, label)).empty_table())


def _stated(spec: ModelSpec, sql: str, rows: pa.Table) -> NDArray[np.float64]:
    place = f"{spec.name}: training.weight.sql"
    with closing(connect()) as connection:
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET lock_configuration = true")
        connection.register("_rows", rows)
        try:
            selected = connection.sql(f"SELECT (\n{sql}\n) AS weight FROM _rows")
            kind = str(selected.types[0])
            if kind.partition("(")[0] not in _NUMBERS:
                raise TrainingError(f"{place}: gives {kind}; a number of at least 0 is required")
            column = connection.sql(f"SELECT (\n{sql}\n)::DOUBLE AS weight FROM _rows").to_arrow_table().column("weight")
        except duckdb.Error as error:
            raise TrainingError(f"{place}: {one_line(error)}") from error
    if len(column) != rows.num_rows:
        raise TrainingError(f"{place}: gives {len(column):,} numbers for {rows.num_rows:,} rows; it must be of one row")
    found = column.to_numpy()
    wrong = int(np.count_nonzero(~(np.isfinite(found) & (found >= 0))))
    if wrong:
        raise TrainingError(
            f"{place}: gives no number of at least 0 for {wrong:,} of {rows.num_rows:,} rows; use coalesce or greatest"
        )
    return np.asarray(found, dtype=np.float64)


_NUMBERS = {
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT", "FLOAT",
    "DOUBLE", "DECIMAL",
}  # fmt: skip


def _by_class(weight: Weight, rows: pa.Table) -> NDArray[np.float64]:
    texts = pc.cast(rows.column(LABEL), pa.string()).combine_chunks().dictionary_encode()
    codes, classes = texts.indices.to_numpy(zero_copy_only=False), texts.dictionary.to_pylist()
    if weight.classes == BALANCED:
        counts = np.bincount(codes, minlength=len(classes))
        of_class = len(codes) / (len(classes) * counts)
    else:
        assert isinstance(weight.classes, dict)  # BALANCED is the one text
        of_class = np.array([weight.classes.get(name, 1.0) for name in classes])
    return np.asarray(of_class[codes], dtype=np.float64)
