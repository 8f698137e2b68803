"""Takes rows of tables as they happen: casts and checks each as ingestion does, and stores the good ones before it answers.

The model's present folder says what a good row is, since that is the folder which ingests it. No champion is needed: a model
that learns from pushed rows has none at first.

Neighbours: :mod:`perennial.ingestion.given` casts and checks, :mod:`perennial.ingestion.pushed` stores;
:mod:`perennial.serving.app` asks who may push.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from perennial.core.errors import NotAnswered, PerennialError
from perennial.core.text import visible
from perennial.deployment import Deployment
from perennial.ingestion.given import Fault, GivenTable, unknown_column
from perennial.ingestion.pushed import FIRST, LAST, PushedRows, pushed_rows
from perennial.lake.schema import KNOWN
from perennial.spec.data import Table
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)

#: By type of a column, the JSON values that ingestion can cast to it.
_TAKEN: dict[str, tuple[type, ...]] = {
    "string": (str, int, bool), "integer": (str, int, float, bool), "float": (str, int, float, bool),
    "boolean": (str, int, bool), "timestamp": (str,), "date": (str,),
}  # fmt: skip
_JSON = {str: "a text", int: "a whole number", float: "a number with a fraction", bool: "true or false"}
#: Most ways in which the rows of a request may mix types within columns. Each is cast by itself.
_MOST_SHAPES = 16
#: Largest integers that float64 holds exactly.
_EXACT = 1 << 53
_SHOWN = 60


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
        deployment: its model folders, ledger and predictions database.
        clock: the time.
    """

    def __init__(self, deployment: Deployment, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._deployment, self._clock = deployment, clock
        self._rows = PushedRows(deployment.settings.predictions_url)
        self._folders: dict[str, tuple[object, ModelFolder]] = {}
        self._tables: dict[str, tuple[ModelFolder, GivenTable]] = {}
        self._lock = threading.Lock()

    def take(self, model: str, table: str, rows: Sequence[Mapping[str, Any]]) -> Taken:
        """Check rows of a table, and store the good ones.

        Of rows with one key that are known from one moment on, the last one counts.

        Args:
            model: the model.
            table: one of its ``online.push``.
            rows: by column of the table, a text, a number, true, false or None.

        Raises:
            NotAnswered: nothing can be pushed there, or the database does not answer, and nothing is stored.
        """
        folder = self._folder(model)
        spec = folder.spec.tables.get(table)
        if folder.spec.retired:
            raise NotAnswered(f"{model} is retired", status=404)
        if spec is None or folder.spec.online is None or table not in folder.spec.online.push:
            raise NotAnswered("no rows can be pushed here: online.push of model.yaml does not name this table", status=404)
        typed, faults = self._check(folder, table, spec, rows)
        refused = [faults[place] for place in sorted(faults)]
        if len(refused) == len(rows):
            return Taken(0, 0, refused)
        good = typed.filter(pa.array([place not in faults for place in range(len(rows))]))
        try:
            new = self._rows.keep(model, table, pushed_rows(spec, good), self._clock())
        except sa.exc.SQLAlchemyError as error:
            # Its text may quote an address or a value.
            log.warning("%s: pushed rows cannot be stored (%s)", model, type(error).__name__)
            raise NotAnswered(
                "the rows cannot be stored now, and none of them is confirmed; send them again", status=503, retry_after=5
            ) from error
        return Taken(good.num_rows, new, refused)

    def tables(self, model: str) -> list[str]:
        """The tables of which rows may be pushed, as far as the model's present folder can be read."""
        try:
            online = self._folder(model).spec.online
        except NotAnswered:
            return []
        return [] if online is None else online.push

    def _check(
        self, folder: ModelFolder, table: str, spec: Table, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[pa.Table, dict[int, Fault]]:
        """The rows with the types of the spec, in their order, and what is wrong in which of them."""
        faults = {place: fault for place, row in enumerate(rows) if (fault := _misfit(spec, table, place, row)) is not None}
        values = {
            name: [None if place in faults else _plain(column.type, row.get(name)) for place, row in enumerate(rows)]
            for name, column in spec.columns.items()
        }
        mixed = [name for name, column in values.items() if len({type(one) for one in column if one is not None}) > 1]
        shapes: dict[tuple[type, ...], list[int]] = {}
        for place in range(len(rows)):
            shapes.setdefault(tuple(type(values[name][place]) for name in mixed), []).append(place)
        if len(shapes) > _MOST_SHAPES:
            raise NotAnswered(
                f"the rows mix types within columns in {len(shapes):,} ways; send at most {_MOST_SHAPES} ways at once, or the "
                "values of a column as one type"
            )
        given = self._given(folder, table)
        parts, order = [], []
        for places in shapes.values():
            columns = {name: pa.array([column[place] for place in places]) for name, column in values.items()}
            raw = pa.table({name: column for name, column in columns.items() if not pa.types.is_null(column.type)} or columns)
            if all(pa.types.is_null(kind) for kind in raw.schema.types):
                raw = raw.cast(pa.schema([pa.field(name, pa.string()) for name in raw.column_names]))
            typed, found = given.check(raw)
            for one in found:
                faults.setdefault(places[one.row], Fault(places[one.row], one.field, one.reason))
            for place, moment in zip(places, typed[str(spec.event_time)].to_pylist(), strict=True):
                if moment is not None and not FIRST <= moment < LAST:
                    words = f"{spec.event_time}: lies before {FIRST:%Y} or not before {LAST:%Y}"
                    faults.setdefault(place, Fault(place, str(spec.event_time), words))
            untold = "known: it cannot be computed for this row from when on it may be used"
            for place, known in zip(places, typed[KNOWN].to_pylist(), strict=True):
                if known is None:
                    faults.setdefault(place, Fault(place, "known", untold))
            parts.append(typed)
            order += places
        together = pa.concat_tables(parts)
        return together.take(pa.array(sorted(range(len(order)), key=order.__getitem__), pa.int64())), faults

    def _folder(self, model: str) -> ModelFolder:
        """The model's present folder; the one before, while that cannot be read.

        Raises:
            NotAnswered: there is none, or it has not been readable yet.
        """
        path = self._deployment.settings.models / model
        seen: object = None
        try:
            if path.parent == self._deployment.settings.models:
                file = (path / "model.yaml").stat()
                seen = (file.st_ino, file.st_size, file.st_mtime_ns)
        except (OSError, ValueError):  # it is away, or is being replaced; or it is no name of a file
            pass
        with self._lock:
            known = self._folders.get(model)
            if seen is None:
                self._folders.pop(model, None)
                raise NotAnswered(f"no model is named {visible(model[:_SHOWN])}", status=404)
            if known is not None and known[0] == seen:
                return known[1]
            try:
                folder = self._deployment.model(model)
            except (PerennialError, OSError) as error:
                if known is not None:
                    return known[1]
                log.warning("%s: its folder cannot be read (%s), so nothing can be pushed", model, type(error).__name__)
                raise NotAnswered("the model's folder cannot be read now", status=503, retry_after=10) from error
            self._folders[model] = (seen, folder)
            return folder

    def _given(self, folder: ModelFolder, table: str) -> GivenTable:
        name = f"{folder.spec.name}/{table}"
        with self._lock:
            known = self._tables.get(name)
            if known is None or known[0] is not folder:
                known = self._tables[name] = (folder, GivenTable(folder, table))
            return known[1]


def _misfit(spec: Table, table: str, place: int, row: Mapping[str, Any]) -> Fault | None:
    """What is wrong in a row before its values are cast."""
    for name, value in row.items():
        column = spec.columns.get(name)
        if column is None:
            return Fault(place, name[:_SHOWN], unknown_column(spec, table, name))
        if value is not None and type(value) not in _TAKEN[column.type]:
            words = f"{name}: {_JSON[type(value)]} cannot become {column.type} without a decision; write a text"
            return Fault(place, name, words)
    return None


def _plain(kind: str, value: Any) -> Any:
    """A value as others of its column are: numbers of a float column are floats, whole numbers of an integer column ints."""
    if kind == "float" and type(value) is int:
        return float(value)
    if kind == "integer" and type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value
