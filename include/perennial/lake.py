"""Iceberg tables: an interval is published as a whole or not at all, and read at a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from perennial.ledger import Ledger
from perennial.settings import Settings


@dataclass(frozen=True)
class TableWrite:
    """What an interval of a table shall hold from now on.

    Attributes:
        data: gives the rows; called again when a conflict makes a rewrite necessary.
        event_time: the timestamp column that places a row in an interval; None when the whole table is replaced.
        schema: the schema of the rows.
    """

    data: Callable[[], pa.RecordBatchReader]
    event_time: str | None
    schema: pa.Schema


class Lake:
    """The tables of all models."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
