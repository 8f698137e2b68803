"""Convert predicted probabilities to the JSON that the lake keeps, and back."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from perennial.model.artifacts import Prediction


def read_probabilities(rows: pa.Table) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """The column ``probabilities`` as a matrix of n rows by classes, and the classes of its columns.

    Returns:
        None and no classes if there is no such column.
    """
    if "probabilities" not in rows.column_names:
        return None, ()
    lines = "\n".join(rows.column("probabilities").to_pylist())
    table = pa.json.read_json(io.BytesIO(lines.encode()))
    # The sums differ slightly from 1, since the text of a number loses digits.
    matrix = np.column_stack([column.to_numpy().astype(np.float64) for column in table.columns])
    return matrix / matrix.sum(axis=1, keepdims=True), tuple(table.column_names)


def probabilities_as_json(prediction: Prediction) -> pa.Array:
    """``{"class": probability, …}`` per row, for multiclass predictions."""
    assert prediction.probabilities is not None  # multiclass
    parts: list[Any] = []
    for number, name in enumerate(prediction.classes):
        opening = pa.scalar(("{" if number == 0 else ",") + json.dumps(name) + ":")
        parts += [opening, pc.cast(pa.array(prediction.probabilities[:, number]), pa.string())]
    return pc.binary_join_element_wise(*parts, pa.scalar("}"), "")
