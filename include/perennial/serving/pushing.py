"""Takes rows of tables as they happen: casts and checks each as ingestion does, and stores the good ones before it answers.

Neighbours: :mod:`perennial.ingestion.given` casts and checks, :mod:`perennial.ingestion.pushed` stores;
:mod:`perennial.serving.app` asks who may push.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from perennial.core.errors import NotAnswered
from perennial.ingestion.given import Fault, GivenTable
from perennial.ingestion.pushed import PushedRows
from perennial.spec.folder import ModelFolder


@dataclass(frozen=True)
class Taken:
    """What became of the rows of a request.

    Attributes:
        accepted: number of good rows. They are stored, and outlive any crash from now on.
        new: how many of them were not there already.
        refused: what is wrong in the others.
    """

    accepted: int
    new: int
    refused: list[Fault]


class Pushing:
    """Takes rows. Threads may share it.

    Args:
        rows: stores them.
        clock: the time.
    """

    def __init__(self, rows: PushedRows, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._rows, self._clock = rows, clock
        self._tables: dict[tuple[str, str, str], GivenTable] = {}
        self._lock = threading.Lock()

    def take(self, folder: ModelFolder, table: str, rows: Sequence[Mapping[str, Any]]) -> Taken:
        """Check rows of a table, and store the good ones.

        Args:
            folder: the model's folder.
            table: one of ``online.push``.
            rows: by column of the table, a text, a number, true, false or None.

        Raises:
            NotAnswered: all rows are bad, with the first one's fault; or the database does not answer, and nothing is stored.
        """
        spec = folder.spec.tables[table]
        event = str(spec.event_time)
        given = self._given(folder, table)
        faults: dict[int, Fault] = {}
        good: dict[int, datetime] = {}
        alike: dict[tuple[tuple[str, type], ...], list[int]] = {}
        for place, row in enumerate(rows):
            kinds = tuple(sorted((name, type(value)) for name, value in row.items() if value is not None))
            alike.setdefault(kinds, []).append(place)
        for kinds, places in alike.items():
            columns = {name: pa.array([rows[place][name] for place in places]) for name, _ in kinds}
            raw = pa.table(columns or {"": pa.nulls(len(places))})
            try:
                typed, found = given.check(raw)
            except NotAnswered as error:  # its columns are at fault, so each of these rows is
                faults |= {place: Fault(place, error.field or "", str(error)) for place in places}
                continue
            faults |= {places[one.row]: Fault(places[one.row], one.field, one.reason) for one in found}
            moments = typed[event].to_pylist()
            good |= {place: moments[n] for n, place in enumerate(places) if place not in faults}
        refused = [faults[place] for place in sorted(faults)]
        if not good:
            raise NotAnswered(refused[0].reason, row=refused[0].row, field=refused[0].field)
        kept = sorted(good)
        try:
            new = self._rows.keep(
                folder.spec.name, table, [rows[place] for place in kept], [good[place] for place in kept], self._clock()
            )
        except sa.exc.DBAPIError as error:
            raise NotAnswered(
                "the rows cannot be stored now, and none of them is; try again", status=503, retry_after=5
            ) from error
        return Taken(len(kept), new, refused)

    def _given(self, folder: ModelFolder, table: str) -> GivenTable:
        name = (folder.spec.name, folder.spec.digest, table)
        with self._lock:
            if name not in self._tables:
                self._tables[name] = GivenTable(folder, table)
            return self._tables[name]
