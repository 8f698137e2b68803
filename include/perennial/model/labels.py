"""The labels of rows: their column, how they are read, and their number per class."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.spec.model import ModelSpec

LABEL = "label"


def labels_of(rows: pa.Table) -> NDArray[Any]:
    """The column ``label``: n booleans, texts or numbers, as :func:`perennial.evaluation.metrics.evaluate` takes them."""
    column = rows.column(LABEL).combine_chunks()
    labels: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return labels


def count_classes(spec: ModelSpec, rows: pa.Table) -> dict[str, int]:
    """The number of rows per class; empty for regression."""
    if spec.task == "regression":
        return {}
    counted = pc.value_counts(pc.cast(rows.column(LABEL), pa.string())).to_pylist()
    return {str(entry["values"]): int(entry["counts"]) for entry in sorted(counted, key=lambda entry: str(entry["values"]))}
