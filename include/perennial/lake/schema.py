"""The Arrow schema of a published table in the lake."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from perennial.spec.data import Table
from perennial.spec.types import ColumnType

#: The column that says when a row was known. Every table has it beside the spec's columns.
KNOWN = "_known_at"

#: A moment, in UTC.
MOMENT: Final = pa.timestamp("us", "UTC")

#: The Arrow type of each type that ``model.yaml`` can give a column.
ARROW: Final[dict[ColumnType, pa.DataType]] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": MOMENT,
    "date": pa.date32(),
}


def published_schema(table: Table) -> pa.Schema:
    """The schema of a table in the lake: the spec's columns and ``_known_at``."""
    columns = [(name, ARROW[column.type]) for name, column in table.columns.items()]
    return pa.schema([*columns, (KNOWN, MOMENT)])
