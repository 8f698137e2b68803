"""What cannot come of the rows there are, computed before it is too late.

Each ``min_rows`` of ``model.yaml`` is compared with the rows that a window or holdout will have; the time that labels take with
``label.delay``; and columns of one value, or a label of one class, are named. The rows are those that are published, or a
sample file, which is read as ingestion reads it, casts and checks included. Nothing is published.

Defaults do not follow the data, or the same folder would mean another thing each day: what is to be written is told instead.

Neighbours: :mod:`perennial.operations.inspection` finds what is wrong without data.
"""

from __future__ import annotations

import fnmatch
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from perennial.core.errors import SourceError, SpecError
from perennial.core.intervals import Interval
from perennial.core.sql import connect, literal, quoted
from perennial.features.point_in_time import open_database
from perennial.features.published import scan
from perennial.ingestion.casting import LANDED_EXTRAS, LandedPart, bind, typed_query
from perennial.ingestion.checks import CheckResult, check
from perennial.ingestion.local_time import add_macros
from perennial.ingestion.sources import Landed, land
from perennial.lake.publish import Lake
from perennial.lake.schema import KNOWN
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec
from perennial.spec.monitoring import MIN_VALUES
from perennial.spec.names import listed
from perennial.spec.problems import Problem, write_problems
from perennial.spec.strict_yaml import parse_yaml

#: How much of what is published is looked at, back from the newest day.
_LOOKED_AT = timedelta(days=90)
_DAY = timedelta(days=1)
_EVER = Interval.of("0001-01-02", "9999-12-30")


@dataclass(frozen=True)
class Seen:
    """What rows tell of a model.

    Attributes:
        rows, days: of the entity table: how many rows, and over how many days from the first to the last.
        constant: by table, the columns that have one value in all rows; only of tables with at least a week.
        label_rows: rows of the label table that have a label.
        classes: how many different labels there are, counted up to 2; 0 if there is no label.
        label_takes: how long after the event the share ``gates.label_coverage`` of labels is known; None if the label table
            has no event time.
    """

    rows: int
    days: float
    constant: Mapping[str, Sequence[str]] = field(default_factory=dict)
    label_rows: int = 0
    classes: int = 0
    label_takes: timedelta | None = None

    @property
    def rows_a_day(self) -> float:
        return self.rows / self.days if self.days else 0.0


def find_prospects(folder: ModelFolder, seen: Seen) -> list[str]:
    """What cannot work with such rows, each with file, line, key, and what to write."""
    file = folder.path / "model.yaml"
    return write_problems(file, parse_yaml(file).lines, prospects(folder.spec, seen))


def prospects(spec: ModelSpec, seen: Seen) -> Iterator[Problem]:
    """The same as problems. The decision reads nothing.

    Args:
        spec: of the model.
        seen: what its rows tell.
    """
    if seen.rows:
        yield from _of_windows(spec, seen.rows_a_day)
        yield from _of_training(spec, seen.rows_a_day)
    yield from _of_labels(spec, seen)
    for table, names in seen.constant.items():
        for name in names:
            yield Problem(
                ("tables", table, "columns", name),
                "has one value in all rows, so nothing can be learned from it, and any other value will be drift; leave it "
                "out, or correct how it is read",
            )


def _of_windows(spec: ModelSpec, a_day: float) -> Iterator[Problem]:
    window = spec.schedules.monitor
    rows, least = a_day * (spec.schedules.window / _DAY), max(spec.drift.min_rows, MIN_VALUES)
    if rows >= least:
        return
    told = f"is {spec.drift.min_rows}, but a {window} has some {rows:,.0f} rows, so every verdict on drift is unknown"
    if rows >= MIN_VALUES:
        least = max(MIN_VALUES, _some(rows))
        write = f"write drift: {{min_rows: {least}}}"
    elif window == "day" and a_day * 7 >= MIN_VALUES:
        needed = "" if a_day * 7 >= spec.drift.min_rows else f" and drift: {{min_rows: {max(MIN_VALUES, _some(a_day * 7))}}}"
        write = f"write schedules: {{monitor: week}}{needed}"
    else:
        write = f"drift of such a model cannot be judged, since a distance requires {MIN_VALUES} values"
    yield Problem(("drift", "min_rows"), f"{told}; {write}")


def _of_training(spec: ModelSpec, a_day: float) -> Iterator[Problem]:
    training, gates = spec.training, spec.gates
    held, learned = a_day * (training.holdout / _DAY), a_day * (training.longest / _DAY)

    def longer(rows: int) -> str:
        return f"write training: {{holdout: {math.ceil(1.25 * rows / a_day)}d}}"

    days = training.holdout / _DAY
    if held < gates.min_rows:
        yield Problem(
            ("gates", "min_rows"),
            f"is {gates.min_rows}, but the holdout of {days:g} days has some {held:,.0f} rows, so every candidate is refused; "
            f"{longer(gates.min_rows)}, or gates: {{min_rows: {max(_some(held), 1)}}} if a decision by so few is wanted",
        )
    if learned < training.min_rows:
        yield Problem(
            ("training", "min_rows"),
            f"is {training.min_rows}, but a window of {training.longest / _DAY:g} days has some {learned:,.0f} rows, so every "
            f"training fails; write training: {{window: {math.ceil(1.25 * training.min_rows / a_day)}d}}",
        )
    if gates.slices.columns and held < (least := gates.slices.min_rows):
        yield Problem(
            ("gates", "slices", "min_rows"),
            f"is {least}, but the whole holdout has some {held:,.0f} rows, so no slice is judged; {longer(2 * least)}, or "
            "lower min_rows",
        )


def _of_labels(spec: ModelSpec, seen: Seen) -> Iterator[Problem]:
    if seen.label_rows and seen.classes == 1:
        kind = "one class" if spec.task != "regression" else "one value"
        yield Problem(
            ("label", "sql"),
            f"gives {kind} in all {seen.label_rows:,} rows, so nothing can be learned; correct label.sql, or give data with "
            "others",
        )
    stated, takes = spec.label.delay, seen.label_takes
    if stated is not None and takes is not None and takes > stated:
        share = spec.gates.label_coverage
        yield Problem(
            ("label", "delay"),
            f"is {stated / _DAY:g} days, but {share:.0%} of the labels are known only after {takes / _DAY:.3g} days, so the "
            f"newest rows of a holdout have none and candidates are refused (gates.label_coverage); write label: {{delay: "
            f"{math.ceil(takes / _DAY)}d}}, or correct known of {spec.label.table}",
        )


def _some(rows: float) -> int:
    """A round number well below what is expected, so that a part of it is enough."""
    return int(rows * 0.6) // 10 * 10 or int(rows * 0.6)


# --- what rows tell ----------------------------------------------------------------------------------------------------


def look_at_published(folder: ModelFolder, lake: Lake, snapshots: Mapping[str, int], end: datetime) -> Seen:
    """What the published rows tell: those of the newest days, as a stream.

    Args:
        folder: the model's folder.
        lake: holds the tables.
        snapshots: by table.
        end: end of what is published.
    """
    spec = folder.spec
    found = {}
    with closing(open_database()) as connection:
        for name in spec.tables:
            if name not in snapshots:
                continue
            rows = scan(folder, lake, name, snapshots, within=Interval(end - _LOOKED_AT, end))
            connection.register("_seen", rows)
            found[name] = _look(connection, spec, name, "_seen")
            connection.unregister("_seen")
    return _together(spec, found)


@dataclass(frozen=True)
class Sampled:
    """A sample file, read as ingestion reads it.

    Attributes:
        results: what the checks found, for each table that the file gives.
        seen: what the rows tell.
    """

    results: Sequence[CheckResult]
    seen: Seen

    def words(self, file: Path) -> Iterator[str]:
        """For people, what was read of each table, and what was wrong."""
        for one in self.results:
            held = f", {one.rows_quarantined:,} would go to quarantine" if one.rows_quarantined else ""
            end = "; all of it would be refused" if one.refused else ""
            yield f"{file.name}, table {one.table}: {one.rows_in:,} rows{held}{end}"
            yield from (f"{one.table}: {line}" for line in (*one.reasons, *one.warnings))


def read_sample(folder: ModelFolder, file: Path, scratch: Path) -> Sampled:
    """Read a file as the source that it is for, cast it and check it, as ingestion would.

    Args:
        folder: the model's folder.
        file: any file in the format of one of its sources.
        scratch: an empty folder.

    Raises:
        SpecError: the file is not there, or it is not clear which source it is for.
        SourceError: it cannot be read so, or no row has a time; the message says where, and what to do.
    """
    if not file.is_file():
        raise SpecError(f"{file}: there is no such file")
    spec = folder.spec
    source = _source_of(spec, file)
    # A pattern may have signs that stand for others, and messages name the file.
    copy = scratch / (file.name if re.fullmatch(r"[\w.-]+", file.name) else "sample" + "".join(file.suffixes))
    shutil.copyfile(file, copy)
    changed = spec.sources[source].model_copy(update={"files": copy.name})
    read = folder.model_copy(update={"spec": spec.model_copy(update={"sources": {**spec.sources, source: changed}})})
    results, found = [], {}
    for name, table in spec.tables.items():
        if table.source != source:
            continue
        landed = land(read, name, _EVER, scratch / "landed", data=scratch, connect=_no_connection)
        span = _span(read, landed, scratch)
        result = check(read, landed, span, scratch / "checked", past_rows_per_day=None, docs=scratch / "docs", run_id="sample")
        results.append(result)
        if result.published is not None:
            with connect(scratch, result.published.parent) as connection:
                found[name] = _look(connection, spec, name, f"read_parquet({literal(str(result.published))})")
    return Sampled(results, _together(spec, found))


def _source_of(spec: ModelSpec, file: Path) -> str:
    given = {name: source.files for name, source in spec.sources.items() if source.files is not None}
    fit = [name for name, files in given.items() if fnmatch.fnmatch(file.name, re.sub(r"%\w", "*", files.rpartition("/")[2]))]
    chosen = fit if len(fit) == 1 else list(given) if len(given) == 1 else []
    if not chosen:
        patterns = listed([f"{name} ({files})" for name, files in given.items()]) if given else "no source reads files"
        raise SpecError(f"{file.name}: of which source is it a sample? Name it as the files of one of them: {patterns}")
    return chosen[0]


def _no_connection(name: str) -> Any:
    raise SpecError(f"a sample needs no connection, and {name} is one")


def _span(folder: ModelFolder, landed: Landed, scratch: Path) -> Interval:
    """The days from the first to the last row of a table."""
    table = folder.spec.tables[landed.table]
    if table.event_time is None or not landed.paths:
        return Interval.day("2000-01-01")
    parts = []
    for path in landed.paths:
        raw = pq.read_schema(path)
        for name in LANDED_EXTRAS.names:
            if name in raw.names:
                raw = raw.remove(raw.get_field_index(name))
        parts.append(LandedPart([path], bind(folder, landed.table, raw, f"source {table.source}")))
    with connect(scratch, *{path.parent for path in landed.paths}) as connection:
        add_macros(connection)
        # As in perennial.ingestion.checks: what two expressions share would be computed outside of their TRY.
        connection.execute("SET disabled_optimizers = 'common_subexpressions,filter_pushdown'")
        event, fault = quoted(table.event_time), quoted(f"_fault_{table.event_time}")
        [(first, last, wrong)] = connection.execute(
            f"SELECT min({event}), max({event}), any_value({fault}) "
            f"FROM ({typed_query(folder, landed.table, parts, _EVER)}) WHERE {event} IS NULL OR {fault} IS NULL"
        ).fetchall()
    if first is None:
        raise SourceError(f"no row of the sample has a time for table {landed.table}: {wrong or 'it has no rows'}")
    start = first.replace(hour=0, minute=0, second=0, microsecond=0)
    return Interval(start, last.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY)


@dataclass(frozen=True)
class _Table:
    """What the rows of one table tell, see :class:`Seen`."""

    rows: int
    days: float
    constant: Sequence[str]
    label_rows: int = 0
    classes: int = 0
    label_takes: timedelta | None = None


def _look(connection: duckdb.DuckDBPyConnection, spec: ModelSpec, name: str, rows: str) -> _Table:
    """Look at the typed rows of a table, once and as a stream."""
    table = spec.tables[name]
    event = quoted(table.event_time) if table.event_time is not None else "NULL::TIMESTAMPTZ"
    label = name == spec.label.table
    said = f"(({spec.label.sql}\n))::VARCHAR" if label else "NULL::VARCHAR"
    took = f"quantile_disc({KNOWN} - {event}, {spec.gates.label_coverage})" if label and table.event_time else "NULL"
    columns = list(table.columns)
    ends = ", ".join(f"min({quoted(column)}) IS NOT DISTINCT FROM max({quoted(column)})" for column in columns)
    [found] = connection.execute(
        f"SELECT count(*), min({event}), max({event}), count(_said), min(_said) = max(_said), {took}, {ends} "
        f"FROM (SELECT *, {said} AS _said FROM {rows})"
    ).fetchall()
    count, first, last, labels, one, takes, *same = found
    days = 0.0 if first is None else (last.date() - first.date()).days + 1
    return _Table(
        count,
        days,
        # A sample of a few days has one month, one weekday, one price.
        [name for name, alike in zip(columns, same, strict=True) if alike and (table.event_time is None or days >= 7)],
        labels,
        0 if not labels else 1 if one else 2,
        takes,
    )


def _together(spec: ModelSpec, found: Mapping[str, _Table]) -> Seen:
    entity, label = (found.get(name, _Table(0, 0.0, ())) for name in (spec.entity.table, spec.label.table))
    constant = {name: one.constant for name, one in found.items() if one.constant}
    return Seen(entity.rows, entity.days, constant, label.label_rows, label.classes, label.label_takes)
