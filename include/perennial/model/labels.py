"""Labels of rows: the column they are in, how they are read for each task, and how many there are of each class."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.spec.model import ModelSpec

LABEL = "label"


def labels_of(rows: pa.Table) -> NDArray[Any]:
    """The column ``label``: booleans, texts or numbers, as :func:`perennial.evaluation.metrics.evaluate` wants them."""
    column = rows.column(LABEL).combine_chunks()
    labels: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return labels


def count_classes(spec: ModelSpec, rows: pa.Table) -> dict[str, int]:
    """Rows a class, by name; empty for regression."""
    if spec.task == "regression":
        return {}
    counted = pc.value_counts(pc.cast(rows.column(LABEL), pa.string())).to_pylist()
    return {str(entry["values"]): int(entry["counts"]) for entry in sorted(counted, key=lambda entry: str(entry["values"]))}
