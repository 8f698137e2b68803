"""Erases rows from the lake: from the current snapshot, from every older snapshot, and from every file.

A table is cleaned in four steps. After a process was killed, each step can be repeated:

1. files that hold such a row are rewritten without it, and the ledger points readers to a snapshot with the new files;
2. snapshots that still name the old files are expired at any age, also pinned ones, with their branches and tags;
3. the old files are removed, and so are the manifests that record the bounds of their values;
4. Parquet files that no snapshot names, which a killed process can leave, are searched and removed.

Neighbours: :mod:`perennial.lake.publish` publishes; :mod:`perennial.operations.forget` says which rows, and keeps runs from
publishing such rows again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, EqualTo, In, Or, Reference
from pyiceberg.expressions.literals import literal
from pyiceberg.manifest import DataFile
from pyiceberg.table import FileScanTask, Table, Transaction
from pyiceberg.table.update.snapshot import ManageSnapshots

from perennial.core.errors import StaleDecision
from perennial.core.settings import Settings
from perennial.lake.catalog import Catalog, Holding, columns_of, point_main
from perennial.lake.data_files import plain_schema
from perennial.ledger.store import Ledger

log = logging.getLogger(__name__)

#: How often the switch of readers is tried when other runs publish meanwhile.
_TRIALS = 20


class Finder(Protocol):
    """Finds the rows to erase."""

    def finds(self, rows: pa.Table) -> pa.BooleanArray | pa.ChunkedArray:
        """A mask of the rows to erase, without nulls. The rows have the table's columns, or fewer if their file is old."""

    @property
    def where(self) -> BooleanExpression:
        """A condition that holds for every row to erase. It may hold for others. Files where it cannot hold are not read."""


@dataclass(frozen=True)
class Equal:
    """Finds rows whose columns have one of several tuples of values.

    Attributes:
        columns: their names.
        tuples: each has one value per column, of the column's type.
    """

    columns: tuple[str, ...]
    tuples: frozenset[tuple[object, ...]]

    def finds(self, rows: pa.Table) -> pa.Array:
        nothing = pa.repeat(False, rows.num_rows)
        if not self.tuples or any(name not in rows.column_names for name in self.columns):
            return nothing
        if len(self.columns) == 1:
            column = rows[self.columns[0]].combine_chunks()
            wanted = pa.array([value for (value,) in self.tuples], column.type)
            return pc.is_in(column, value_set=wanted)
        found = nothing
        firsts = rows[self.columns[0]].combine_chunks()
        likely = pc.is_in(firsts, value_set=pa.array({one[0] for one in self.tuples}, firsts.type))
        if pc.any(likely).as_py():
            values = [rows[name].to_pylist() for name in self.columns]
            found = pa.array([one in self.tuples for one in zip(*values, strict=True)], pa.bool_())
        return found

    @property
    def where(self) -> BooleanExpression:
        if not self.tuples or len(self.tuples) > 200:
            return AlwaysTrue()
        each: list[BooleanExpression] = [
            In(term=Reference(name), values={literal(one[place]) for one in self.tuples})
            if len({one[place] for one in self.tuples}) > 1
            else EqualTo(term=Reference(name), value=literal(next(iter(self.tuples))[place]))
            for place, name in enumerate(self.columns)
        ]
        return reduce(lambda one, other: And(one, other), each)


@dataclass(frozen=True)
class AnyOf:
    """Finds the rows that at least one of several finders finds."""

    finders: tuple[Finder, ...]

    def finds(self, rows: pa.Table) -> pa.Array:
        found = pa.repeat(False, rows.num_rows)
        for finder in self.finders:
            found = pc.or_(found, finder.finds(rows))
        return found

    @property
    def where(self) -> BooleanExpression:
        return reduce(lambda one, other: Or(one, other), [finder.where for finder in self.finders])


@dataclass(frozen=True)
class Findings:
    """What a table holds of the rows to erase.

    Attributes:
        found: the distinct rows of all snapshots.
        files: data files that hold such a row, by path.
        tainted: the snapshots that name such a file.
        pins: by the pin's name, those of these snapshots that are pinned.
        unnamed: files that hold such a row and that no snapshot names.
    """

    found: pa.Table
    files: dict[str, DataFile] = field(default_factory=dict)
    tainted: list[Holding] = field(default_factory=list)
    pins: dict[str, int] = field(default_factory=dict)
    unnamed: list[str] = field(default_factory=list)


class Eraser:
    """Erases rows from tables of the lake.

    Args:
        settings: the location of the lake.
        ledger: names the snapshots that readers use.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._catalog = Catalog(settings.catalog_url, settings.warehouse)

    def tables(self, model: str) -> dict[str, pa.Schema]:
        """The schema of each of a model's tables."""
        return {name: plain_schema(self._catalog.load(model, name).schema()) for name in self._catalog.tables(model)}

    def look(self, model: str, name: str, finder: Finder, *, older_than: datetime) -> Findings:
        """Find the rows in all snapshots of a table, and in its files that no snapshot names.

        Args:
            model: the model.
            name: the table.
            finder: finds the rows.
            older_than: unnamed files that are younger are not searched: a running task may be writing them.
        """
        table = self._catalog.load(model, name)
        holdings = self._catalog.holdings(table)
        every = {path: file for holding in holdings for path, file in holding.files.items()}
        schema = plain_schema(table.schema())
        found: list[pa.Table] = []
        files: dict[str, DataFile] = {}
        for task in self._catalog.some(table, every.values(), finder.where):
            path = task.file.file_path
            if not table.io.new_input(path).exists():
                # It was removed, but an older snapshot still names it.
                continue
            rows = self._found_in(table, task, finder)
            if rows.num_rows:
                files[path] = task.file
                found.append(rows)
        unnamed = [
            path
            for path in self._catalog.unnamed(table, older_than)
            if any(pc.any(finder.finds(part)).as_py() for part in self._catalog.read_file(table, path))
        ]
        tainted = [holding for holding in holdings if holding.files.keys() & files.keys()]
        ids = {holding.snapshot for holding in tainted}
        pins = {
            ref.removeprefix("pin-"): target.snapshot_id
            for ref, target in table.metadata.refs.items()
            if ref.startswith("pin-") and target.snapshot_id in ids
        }
        rows = pa.concat_tables(found) if found else schema.empty_table()
        return Findings(_distinct(rows), files, tainted, pins, unnamed)

    def rewrite(self, model: str, name: str, finder: Finder, *, older_than: datetime) -> Findings:
        """Point readers to a snapshot without the rows.

        Returns:
            What is left: snapshots for :meth:`let_go` and files for :meth:`remove`.

        Raises:
            StaleDecision: in every try, another run published in between.
        """
        dataset = self._dataset(model, name)
        for _ in range(_TRIALS):
            findings = self.look(model, name, finder, older_than=older_than)
            if dataset is None:
                return findings
            head = self._ledger.head(model, dataset)
            base = head.snapshots[name]
            table = self._catalog.load(model, name)
            there = {task.file.file_path: task for task in self._catalog.files(table, base, AlwaysTrue())}
            holders = [there[path] for path in findings.files if path in there]
            names_removed = any(holding.snapshot == base for holding in findings.tainted)
            if not holders and not names_removed:
                return findings
            branch = f"attempt-erase-{uuid.uuid4()}"
            self._catalog.stage(
                model,
                name,
                base=base,
                branch=branch,
                removed=[task.file for task in holders],
                added=[file for task in holders for file in self._without(table, task, finder)],
                summary={"perennial.purpose": "erase"},
            )
            snapshot = self._catalog.settle(model, name, base=base, branch=branch)
            moved = self._ledger.move(model, dataset, base=head, snapshots={**head.snapshots, name: snapshot})
            self._leave(model, dataset, name, branch)
            if moved:
                return self.look(model, name, finder, older_than=older_than)
        raise StaleDecision(f"{model}: {name} kept being published while rows were erased from it; try again")

    def doomed(self, model: str, name: str, findings: Findings) -> list[str]:
        """The files to remove: those that only the tainted snapshots name, and the unnamed ones that hold such rows."""
        ids = {holding.snapshot for holding in findings.tainted}
        stay = [one for one in self._catalog.holdings(self._catalog.load(model, name)) if one.snapshot not in ids]
        kept = {path for holding in stay for path in (*holding.files, *holding.lists)}
        gone = {path for holding in findings.tainted for path in (*holding.files, *holding.lists)}
        return sorted((gone - kept) | set(findings.unnamed))

    def let_go(self, model: str, name: str, findings: Findings) -> None:
        """Expire the snapshots that name files with such rows."""
        if findings.tainted:
            self._catalog.expire(model, name, [holding.snapshot for holding in findings.tainted])

    def remove(self, model: str, name: str, paths: Sequence[str]) -> int:
        """Remove the files that no snapshot names; returns how many of them existed."""
        table = self._catalog.load(model, name)
        named = {path for one in self._catalog.holdings(table) for path in (*one.files, *one.lists)}
        return self._catalog.delete(table, [path for path in paths if path not in named])

    def drop(self, model: str) -> list[str]:
        """Remove all tables of a model with their files; returns the tables' names."""
        names = self._catalog.tables(model)
        for name in names:
            self._catalog.drop(model, name)
        return names

    def _dataset(self, model: str, name: str) -> str | None:
        for dataset in self._ledger.datasets(model):
            if name in self._ledger.head(model, dataset).snapshots:
                return dataset
        return None

    def _found_in(self, table: Table, task: FileScanTask, finder: Finder) -> pa.Table:
        columns = columns_of(table.schema(), earlier=True)
        parts = []
        with self._catalog.read(table, [task], columns=columns, where=AlwaysTrue()) as rows:
            for batch in rows:
                part = pa.Table.from_batches([batch])
                parts.append(part.filter(finder.finds(part)))
        return pa.concat_tables(parts) if parts else plain_schema(table.schema()).empty_table()

    def _without(self, table: Table, task: FileScanTask, finder: Finder) -> list[DataFile]:
        columns = columns_of(table.schema(), earlier=True)
        with self._catalog.read(table, [task], columns=columns, where=AlwaysTrue()) as rows:
            parts = (pa.Table.from_batches([batch]) for batch in rows)
            rest = (batch for part in parts for batch in part.filter(pc.invert(finder.finds(part))).to_batches())
            return self._catalog.write(table, rest).files

    def _leave(self, model: str, dataset: str, name: str, branch: str) -> None:
        """Set the branch ``main`` to the ledger's snapshot, and remove the attempt's branch."""

        def change(_: Table, transaction: Transaction) -> None:
            point_main(transaction, self._ledger.head(model, dataset).snapshots[name])
            ManageSnapshots(transaction).remove_branch(branch).commit()

        self._catalog.commit(model, name, change)


def _distinct(rows: pa.Table) -> pa.Table:
    """Each row once. A file that was compacted or rewritten holds rows that older files hold, too."""
    if not rows.num_rows:
        return rows
    seen, places = set(), []
    for place, row in enumerate(rows.to_pylist()):
        text = repr(row)
        if text not in seen:
            seen.add(text)
            places.append(place)
    return rows.take(pa.array(places, pa.int64()))
