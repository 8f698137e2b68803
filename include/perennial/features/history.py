"""Whether published rows have what the spec says of them today.

The lake keeps rows as they were published. A column that was renamed in ``model.yaml``, or is new there, has no value in
earlier rows, and would be read as NULL. If it is new and may be missing, NULL is right. Otherwise features would be computed,
and a model trained, without values that the rows have always had. So features and labels are not computed until these days
were ingested again, and the error names them.

Neighbours: :mod:`perennial.features.publish` and :mod:`perennial.features.labels` ask before they read rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from perennial.core.errors import SnapshotMissing
from perennial.core.intervals import Interval, merged
from perennial.lake.publish import Lake
from perennial.spec.data import Table
from perennial.spec.features_digest import mentions
from perennial.spec.folder import ModelFolder


@dataclass(frozen=True)
class Gap:
    """Published rows without a value that the spec requires.

    Attributes:
        table: name of the table.
        column: the column that has no value.
        former: the column of the lake that has the value under an earlier name; None if there is none.
        days: the days of these rows, oldest first; empty for a table without event time.
    """

    table: str
    column: str
    former: str | None
    days: list[Interval]

    def __str__(self) -> str:
        told = f"rows of {self.table}" + (f" of {', '.join(part.key for part in merged(self.days))}" if self.days else "")
        if self.former is not None:
            return f"{told} have {self.former}, and nothing yet in {self.column}, which model.yaml reads from the same"
        return f"{told} have no value of {self.column}, which model.yaml does not let be missing"


def gaps_of_training(folder: ModelFolder, lake: Lake, snapshots: Mapping[str, int], interval: Interval) -> Iterator[Gap]:
    """The gaps in what a training would be made from.

    Args:
        folder: the model's folder.
        lake: holds the tables.
        snapshots: the snapshot to read, by table.
        interval: window and holdout.
    """
    features = list(gaps_of_features(folder, lake, snapshots, interval))
    yield from features
    told = {(gap.table, gap.column) for gap in features}
    yield from (gap for gap in gaps_of_labels(folder, lake, snapshots, interval) if (gap.table, gap.column) not in told)


def gaps_of_labels(folder: ModelFolder, lake: Lake, snapshots: Mapping[str, int], interval: Interval) -> Iterator[Gap]:
    """The gaps in what the labels of an interval's entities are computed from.

    Of a label table whose event time is not that of the entity table, all rows are looked at, since all are read.
    """
    spec = folder.spec
    columns = [name for name in spec.label_table.columns if name in spec.entity_table.key or mentions(spec.label.sql, name)]
    within = interval if spec.label_table.event_time == spec.event_time else None
    yield from gaps_of_table(folder, lake, spec.label.table, snapshots, columns=columns, within=within)


def gaps_of_features(folder: ModelFolder, lake: Lake, snapshots: Mapping[str, int], interval: Interval) -> Iterator[Gap]:
    """The gaps in what the features of an interval are computed from.

    Args:
        folder: the model's folder.
        lake: holds the tables.
        snapshots: the snapshot to read, by table.
        interval: the interval of the entities' event times.
    """
    spec = folder.spec
    visible = Interval(interval.start - spec.features.lookback, interval.end)
    # A feature may have the name of a column that the query reads by a star.
    read = "\n".join([folder.features_sql, spec.entity.as_of, *spec.features.names])
    for name in folder.feature_tables:
        table = spec.tables[name]
        columns = [column for column in table.columns if column in _placing(table) or mentions(read, column)]
        # Unless the query names the entity table, it sees no more of it than the entities.
        seen = interval if name == spec.entity.table and not mentions(folder.features_sql, name) else visible
        yield from gaps_of_table(folder, lake, name, snapshots, columns=columns, within=seen)


def gaps_of_table(
    folder: ModelFolder,
    lake: Lake,
    name: str,
    snapshots: Mapping[str, int],
    *,
    columns: Sequence[str],
    within: Interval | None,
) -> Iterator[Gap]:
    """The gaps in some columns of a table.

    Args:
        folder: the model's folder.
        lake: holds the table.
        name: name of the table. A table that was never published has no gaps; reading it says so.
        snapshots: the snapshot to read, by table.
        columns: the columns that are read.
        within: only rows whose event time lies in it. It is ignored for a table without event time.
    """
    model, table = folder.spec.name, folder.spec.tables[name]
    if name not in snapshots:
        return
    present = lake.columns(model, name, snapshots[name])
    former = {column: _former_name(table, column, present) for column in columns}
    wanted = {column: former[column] for column in columns if former[column] is not None or _is_required(table, column)}
    found = lake.without_values(
        model,
        name,
        snapshots[name],
        wanted,
        interval=within if table.event_time else None,
        event_time=table.event_time,
    )
    for column, days in found.items():
        yield Gap(name, column, former[column], days)


def refuse_gaps(folder: ModelFolder, gaps: Iterator[Gap]) -> None:
    """Refuse to read rows that lack what the spec requires.

    Raises:
        SnapshotMissing: there are such rows; the message names the days and the command that ingests them again.
    """
    found = list(gaps)
    if not found:
        return
    model = folder.spec.name
    days = sorted({day for gap in found for day in gap.days})
    commands = "; ".join(f"perennial ingest {model} {part.start:%Y-%m-%d} {part.end:%Y-%m-%d}" for part in merged(days))
    again = f"ingest them again: {commands} (in Airflow: {model}.load)" if days else f"run {model}.ingest again"
    optional = sorted({gap.column for gap in found if gap.former is None} - _all_placing(folder))
    otherwise = f"; where a value may be missing, write nullable: true at {', '.join(optional)}" if optional else ""
    raise SnapshotMissing(f"{model}: {'; '.join(map(str, found))}: {again}{otherwise}")


def _is_required(table: Table, column: str) -> bool:
    """Whether no published row may lack a value of a column. A check with the severity ``warning`` lets such rows pass."""
    spec = table.columns[column]
    return column in _placing(table) or (not spec.nullable and spec.severity == "critical")


def _placing(table: Table) -> set[str]:
    return {*table.key, *([table.event_time] if table.event_time else [])}


def _all_placing(folder: ModelFolder) -> set[str]:
    return {column for table in folder.spec.tables.values() for column in _placing(table)}


def _former_name(table: Table, column: str, present: Sequence[str]) -> str | None:
    """The column of the lake that the values of a column were published in before it was renamed in ``model.yaml``.

    It is one that the spec no longer names, and whose name is all that the column is read from.
    """
    spec = table.columns[column]
    sources = spec.sources(column) if spec.sql is None else [spec.sql.strip().strip('"')]
    names = (name.casefold() for name in sources)
    return next((name for name in names if name in present and name not in table.columns), None)
