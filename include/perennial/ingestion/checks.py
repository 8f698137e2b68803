"""From the landed rows of a table's interval to published rows and quarantined rows.

DuckDB casts the rows (:mod:`perennial.ingestion.casting`). The spec of the table becomes a suite of Great Expectations
(:mod:`perennial.ingestion.suite`). :mod:`perennial.ingestion.quarantine` judges the rows. A row that fails a critical check
goes to quarantine with every reason. A warning is only reported.

This module also judges the interval as a whole: rows per day, freshness, volume against the past, and the share of
quarantined rows. If too many rows are quarantined, or a critical check of the whole fails, the interval is refused: nothing
of it is published.

Neighbours: :mod:`perennial.ingestion.sources` lands the rows. :mod:`perennial.ingestion.data_docs` writes the page of
checks. :mod:`perennial.ingestion.publish` publishes the rows through :mod:`perennial.lake.publish`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.errors import IntervalRefused
from perennial.core.intervals import Interval
from perennial.core.sql import connect, literal, quoted
from perennial.ingestion.casting import ARRIVED, LANDED_EXTRAS, ROW, UNCLEAR, UNTIL, LandedPart, bind, typed_query
from perennial.ingestion.data_docs import write_page
from perennial.ingestion.delimited import FAULT, POSITION, RAW
from perennial.ingestion.files import is_dated
from perennial.ingestion.local_time import add_macros
from perennial.ingestion.pushed import RECEIVED, Pushed, by_texts
from perennial.ingestion.quarantine import BATCH_ROWS, SHOWN, JudgedRows, judge, judge_rows
from perennial.ingestion.sources import Landed
from perennial.ingestion.suite import Check, CheckTally, whole
from perennial.lake.publish import TableWrite
from perennial.lake.schema import KNOWN, MOMENT, published_schema
from perennial.spec.data import Table
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)


QUARANTINE = "quarantine"
QUARANTINE_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("position", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("row", pa.string()),
        ("run_id", pa.string()),
        ("_event_time", MOMENT),
        ("quarantined_at", MOMENT),
    ]
)


@dataclass(frozen=True)
class CheckResult:
    """The outcome for one table's interval.

    Attributes:
        table: name of the table.
        published: Parquet file with at least the spec's columns and ``_known_at``; None if the interval was refused.
        quarantined: Parquet file of :data:`QUARANTINE_SCHEMA`. It is always written.
        rows_in: rows of the interval that the source gave, and late rows. The sum of the next four, unless the interval was
            refused.
        rows_published: 0 if the interval was refused.
        rows_quarantined: rows that failed a critical check.
        rows_late: good rows of earlier days, for a table with ``late``.
        rows_replaced: good rows that a later file repeats or corrects.
        refused: whether nothing of the interval may be published.
        reasons: why the interval was refused, then what was quarantined and why, one line per check.
        warnings: what failed with severity ``warning``, one line per check.
        data_docs: path of the HTML page of all checks.
        files: the files that were read, see :class:`perennial.ingestion.sources.Landed`.
        late: Parquet file of the late rows; None if there are none.
        awaited: keys of the days that the source has no data of yet.
        pushed: what was read of pushed rows: ``through``, the highest number, and whether they came ``alone``; None if the
            table takes none.
        too_late: by day of the event, how many of the quarantined rows came later than the table's ``late`` allows.
    """

    table: str
    published: Path | None
    quarantined: Path
    rows_in: int
    rows_published: int
    rows_quarantined: int
    refused: bool
    reasons: list[str]
    warnings: list[str]
    data_docs: str | None
    files: list[dict[str, Any]] = field(default_factory=list)
    late: Path | None = None
    rows_late: int = 0
    rows_replaced: int = 0
    awaited: list[str] = field(default_factory=list)
    too_late: dict[str, int] = field(default_factory=dict)
    pushed: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        paths = {name: None if (path := getattr(self, name)) is None else str(path) for name in ("published", "late")}
        return {**asdict(self), **paths, "quarantined": str(self.quarantined)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CheckResult:
        paths = {name: None if value.get(name) is None else Path(value[name]) for name in ("published", "late")}
        return cls(**{**value, **paths, "quarantined": Path(value["quarantined"])})


def check(
    folder: ModelFolder,
    landed: Landed,
    interval: Interval,
    directory: Path,
    *,
    past_rows_per_day: float | None,
    docs: Path,
    run_id: str,
    published: pa.Table | None = None,
) -> CheckResult:
    """Cast and judge the landed rows of a table's interval.

    Args:
        folder: the model's folder.
        landed: the raw rows.
        interval: the interval of the rows.
        directory: folder for the resulting Parquet files, which get unique names. It is created if it does not exist.
        past_rows_per_day: mean rows per day of the past that the volume check uses; None if there is no past.
        docs: folder for the Data Docs page, ``<table>/<interval>.html``.
        run_id: kept with the quarantined rows, and shown on the page.
        published: keys that other days have, for a table with ``duplicates: refuse``.

    Raises:
        SourceError: the type of a column cannot become the spec's type.
        SpecError: an expression of the table is wrong.
    """
    table = folder.spec.tables[landed.table]
    directory.mkdir(parents=True, exist_ok=True)
    name = directory / f"{landed.table}-{uuid4().hex}"
    pushed = landed.pushed
    if not landed.paths and (pushed is None or (not pushed.rows and folder.spec.sources[table.source].pushed is None)):
        return replace(_empty(table, landed.table, name), pushed=_read_of(pushed))
    typed, bad, good, quarantined = (name.with_suffix(f".{kind}") for kind in ("typed", "bad", "good", "quarantine"))
    try:
        with connect(directory, *(path.parent for path in _files(landed))) as connection:
            _cast(connection, folder, landed, interval, typed)
            rows = judge_rows(connection, table, typed, good, bad, published=published)
            current, late = _without_late(connection, table, rows.good, interval, name)
            _write_quarantine(connection, landed, bad, quarantined, rows.bad, run_id, interval)
            too_late = _too_late(connection, table, bad) if rows.bad else {}
            awaited = _awaited(connection, folder, landed, interval)
            published_rows = rows.count - rows.bad - rows.replaced - late

            def may_be_empty(day: Interval) -> bool:
                return day in awaited or folder.spec.schedules.is_closed(day)

            whole = _judge_whole(connection, table, rows, interval, past_rows_per_day, published_rows, may_be_empty)
        refusals = [line for tally in whole if tally.check.severity == "critical" for line in tally.reasons()]
        quarantines = [line for tally in rows.tallies if tally.check.severity == "critical" for line in tally.reasons()]
        # A check that could not be judged has not passed, whatever its severity is.
        refusals += [tally.broken for tally in [*whole, *rows.tallies] if tally.broken]
        kept = None if refusals else name.with_suffix(".published.parquet")
        if kept is not None:
            current.replace(kept)
        held = quarantined.replace(name.with_suffix(".quarantined.parquet"))
    finally:
        for file in (typed, bad, good, quarantined):
            file.unlink(missing_ok=True)
    page = write_page(
        docs / landed.table / f"{interval.key}.html",
        title=f"{folder.spec.name} / {landed.table} / {interval.key}",
        run_id=run_id,
        judged=[tally.judged() for tally in [*whole, *rows.tallies]],
    )
    result = CheckResult(
        table=landed.table,
        published=kept,
        quarantined=held,
        rows_in=rows.count,
        rows_published=0 if refusals else published_rows,
        rows_quarantined=rows.bad,
        refused=bool(refusals),
        reasons=[*refusals, *quarantines],
        warnings=landed.absences
        + [line for tally in [*whole, *rows.tallies] if tally.check.severity == "warning" for line in tally.reasons()],
        data_docs=str(page),
        files=landed.files,
        late=name.with_suffix(".late.parquet") if late else None,
        rows_late=late,
        rows_replaced=rows.replaced,
        awaited=[day.key for day in awaited],
        too_late=too_late,
        pushed=_read_of(pushed),
    )
    _log(result)
    return result


def _read_of(pushed: Pushed | None) -> dict[str, Any] | None:
    return None if pushed is None else {"through": pushed.through, "alone": pushed.alone}


def _empty(table: Table, called: str, name: Path) -> CheckResult:
    """The result for closed days of which no file came: nothing to judge, and no rows to publish."""
    published, quarantined = name.with_suffix(".published.parquet"), name.with_suffix(".quarantined.parquet")
    pq.write_table(published_schema(table).empty_table(), published)
    pq.write_table(QUARANTINE_SCHEMA.empty_table(), quarantined)
    return CheckResult(called, published, quarantined, 0, 0, 0, False, [], [], None)


def nothing_yet(folder: ModelFolder, table: str, interval: Interval, directory: Path) -> CheckResult:
    """The result for a table with ``late`` whose source has not delivered anything of the interval yet."""
    directory.mkdir(parents=True, exist_ok=True)
    empty = _empty(folder.spec.tables[table], table, directory / f"{table}-{uuid4().hex}")
    days = [day for day in interval.touched_days() if not folder.spec.schedules.is_closed(day)]
    result = replace(empty, awaited=[day.key for day in days])
    _log(result)
    return result


def _without_late(
    connection: duckdb.DuckDBPyConnection, table: Table, good: Path, interval: Interval, name: Path
) -> tuple[Path, int]:
    """The file of the good rows without those of earlier days, which get a file of their own; and how many those are."""
    if table.event_time is None:
        return good, 0
    rows = f"read_parquet({literal(str(good))})"
    before = f"{quoted(table.event_time)} < TIMESTAMPTZ {literal(interval.start.isoformat())}"
    [(late,)] = connection.execute(f"SELECT count(*) FROM {rows} WHERE {before}").fetchall()
    if not late:
        return good, 0
    columns = ", ".join(map(quoted, published_schema(table).names))
    for which, suffix in ((before, ".late.parquet"), (f"NOT ({before})", ".good")):
        target = name.with_suffix(suffix)
        # DuckDB would read and write one file at once.
        other = target.with_suffix(".part")
        connection.execute(
            f"COPY (SELECT {columns} FROM {rows} WHERE {which}) TO {literal(str(other))} (FORMAT parquet, COMPRESSION lz4)"
        )
        other.replace(target)
    return name.with_suffix(".good"), int(late)


def _awaited(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, landed: Landed, interval: Interval) -> list[Interval]:
    """The days of the interval that a table with ``late`` waits for: without a file, or without a row of a database.

    The entity's table is not waited for: without entities there is nothing to predict.
    """
    table = folder.spec.tables[landed.table]
    if table.late is None or landed.table == folder.spec.entity.table:
        return []
    absent = [Interval.from_key(key) for key in landed.absent]
    days = [day for day in interval.touched_days() if not folder.spec.schedules.is_closed(day)]
    if is_dated(folder.spec.sources[table.source]):
        return [day for day in days if any(day.overlaps(period) for period in absent)]
    if table.checks.rows.min == 0:
        return []
    event = quoted(str(table.event_time))
    found = connection.execute(
        f"SELECT DISTINCT date_trunc('day', {event})::DATE FROM typed WHERE {event} IS NOT NULL"
    ).fetchall()
    there = {day for (day,) in found}
    return [day for day in days if day.start.date() not in there]


def _too_late(connection: duckdb.DuckDBPyConnection, table: Table, bad: Path) -> dict[str, int]:
    """How many rows of each day came later than the table's ``late`` allows, by the file that they came in."""
    if table.late is None:
        return {}
    late = f"INTERVAL {table.late // timedelta(microseconds=1)} MICROSECONDS"
    found = connection.execute(
        f"SELECT date_trunc('day', b.event)::DATE, count(*) FROM read_parquet({literal(str(bad))}) b JOIN typed USING ({ROW}) "
        f"WHERE b.event < {ARRIVED} - {late} GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return {f"{day:%Y-%m-%d}": count for day, count in found}


def _log(result: CheckResult) -> None:
    for line in result.reasons:
        log.log(logging.ERROR if result.refused else logging.WARNING, "%s: %s", result.table, line)
    for line in result.warnings:
        log.warning("%s: %s", result.table, line)
    log.info(
        "checked %s: %d rows in, %d published, %d quarantined, %d late, %d repeated or corrected by a later file",
        result.table,
        result.rows_in,
        result.rows_published,
        result.rows_quarantined,
        result.rows_late,
        result.rows_replaced,
    )
    if result.awaited:
        log.warning(
            "%s: no data of %s have come yet; these days are published without them", result.table, ", ".join(result.awaited)
        )


def ingest_writes(folder: ModelFolder, results: Sequence[CheckResult]) -> dict[str, TableWrite]:
    """What to write to the lake for the interval: each checked table, and one quarantine for all of them.

    Args:
        folder: the model's folder.
        results: one result per table.

    Returns:
        The new rows by table, :data:`QUARANTINE` included.

    Raises:
        IntervalRefused: a table was refused.
    """
    writes = {}
    for result in results:
        if result.published is None:
            raise IntervalRefused(f"{folder.spec.name}: table {result.table}: {'; '.join(result.reasons)}")
        table = folder.spec.tables[result.table]
        writes[result.table] = _write_of([result.published], published_schema(table), table.event_time)
    writes[QUARANTINE] = _write_of([result.quarantined for result in results], QUARANTINE_SCHEMA, "_event_time")
    return writes


def _write_of(files: Sequence[Path], schema: pa.Schema, event_time: str | None) -> TableWrite:
    def batches() -> Iterator[pa.RecordBatch]:
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=schema.names):
                    yield batch.select(schema.names).cast(schema)

    return TableWrite(lambda: pa.RecordBatchReader.from_batches(schema, batches()), event_time, schema)


def _files(landed: Landed) -> list[Path]:
    """The files of landed rows: those of the source, then pushed ones."""
    return [*landed.paths, *([landed.pushed.path] if landed.pushed is not None else [])]


def _cast(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, landed: Landed, interval: Interval, typed: Path) -> None:
    by_schema: dict[pa.Schema, list[Path]] = {}
    for path in landed.paths:
        by_schema.setdefault(pq.read_schema(path), []).append(path)
    place = f"source {folder.spec.tables[landed.table].source}"
    parts = [LandedPart(paths, bind(folder, landed.table, _raw(schema), place)) for schema, paths in by_schema.items()]
    add_macros(connection)
    # common_subexpressions: DuckDB would compute what two expressions share outside of their TRY, and one bad value would
    # fail the query. filter_pushdown: the filter by interval needs the cast event time, so pushing it down would cast twice.
    # That is more than half of the work.
    connection.execute("SET disabled_optimizers = 'common_subexpressions,filter_pushdown'")
    of_source = [typed_query(folder, landed.table, parts, interval)] if parts else []
    if landed.pushed is None or not (landed.pushed.rows or not of_source):
        _copy(connection, of_source[0], typed)
    else:
        own = by_texts(folder, landed.table)
        bound = bind(own, landed.table, _raw(pq.read_schema(landed.pushed.path)), "pushed rows")
        part = LandedPart([landed.pushed.path], bound, period=_WHEN_READ)
        there = [typed.with_suffix(f".{place}") for place in ("source", "pushed")]
        try:
            queries = [*of_source, _received(typed_query(own, landed.table, [part], interval), landed.pushed, interval)]
            for query, target in zip(queries, there[-len(queries) :], strict=True):
                _copy(connection, query, target)
            connection.execute("RESET disabled_optimizers")
            _copy(connection, _together(folder.spec.tables[landed.table], *there[-len(queries) :]), typed)
        finally:
            for file in there:
                file.unlink(missing_ok=True)
    connection.execute("RESET disabled_optimizers")


#: What the day is whose ingest marks a pushed row as too late.
_WHEN_READ = "the first day that was ingested after it was pushed"


def _copy(connection: duckdb.DuckDBPyConnection, query: str, target: Path) -> None:
    connection.execute(f"COPY ({query}) TO {literal(str(target))} (FORMAT parquet, COMPRESSION lz4)")


def _received(query: str, pushed: Pushed, interval: Interval) -> str:
    """The typed pushed rows, each as if it had arrived in a file of its own when it was received."""
    when = f"(SELECT {ROW}, {RECEIVED} FROM read_parquet({literal(str(pushed.path))}))"
    # One that is too late stays marked as such.
    is_too_late = f"{UNTIL} IS NOT DISTINCT FROM TIMESTAMPTZ {literal(interval.end.isoformat())}"
    arrived = f"CASE WHEN {is_too_late} THEN {ARRIVED} ELSE {RECEIVED} END"
    return f"SELECT typed.* REPLACE ({arrived} AS {ARRIVED}) FROM ({query}) AS typed JOIN {when} AS received USING ({ROW})"


def _together(table: Table, *files: Path) -> str:
    """A query of the source's rows, if there are any, and of pushed rows, without exact repeats of pushed ones.

    A pushed row repeats one of the source if all rows of its key, known from one moment on, are equal. If they are not, the one
    received last counts, which :mod:`perennial.ingestion.quarantine` finds.
    """
    *source, pushed = (f"read_parquet({literal(str(file))})" for file in files)
    columns = ", ".join(map(quoted, [*table.columns, KNOWN]))
    state = ", ".join(map(quoted, [*table.key, KNOWN]))
    once = f"SELECT * FROM {pushed} QUALIFY row_number() OVER (PARTITION BY {columns} ORDER BY {ROW} DESC) = 1"
    if not source:
        return f"FROM ({once}) ORDER BY {ROW}"
    return f"""
        WITH once AS ({once}), alike AS (
            SELECT {state} FROM (
                SELECT {state}, hash({columns}) AS _hash, true AS _of_source
                FROM {source[0]} SEMI JOIN once USING ({", ".join(map(quoted, table.key))})
                UNION ALL SELECT {state}, hash({columns}) AS _hash, false AS _of_source FROM once
            ) GROUP BY {state} HAVING min(_hash) = max(_hash) AND bool_or(_of_source)
        )
        FROM {source[0]} UNION ALL BY NAME (FROM once ANTI JOIN alike USING ({state}) ORDER BY {ROW})
    """


def _raw(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in (*LANDED_EXTRAS.names, RECEIVED)])


def _write_quarantine(
    connection: duckdb.DuckDBPyConnection, landed: Landed, bad: Path, target: Path, count: int, run_id: str, interval: Interval
) -> None:
    if not count:
        pq.write_table(QUARANTINE_SCHEMA.empty_table(), target)
        return
    rows = []
    for path in _files(landed):
        packed = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in _raw(pq.read_schema(path)).names)
        rows.append(f"""
            SELECT {ROW}, {POSITION}, CASE WHEN {FAULT} IS NULL THEN to_json(struct_pack({packed}))::VARCHAR
                ELSE to_json(struct_pack({RAW} := {RAW}))::VARCHAR END AS _shown
            FROM read_parquet({literal(str(path))}) SEMI JOIN bad USING ({ROW})
        """)
    start, end = (f"TIMESTAMPTZ {literal(moment.isoformat())}" for moment in (interval.start, interval.end))
    # A row whose event time lies outside the interval is kept at the start of the interval. So it is replaced when the
    # interval is ingested again.
    connection.execute(f"""
        COPY (
            WITH bad AS (SELECT * FROM read_parquet({literal(str(bad))})), landed AS ({" UNION ALL ".join(rows)})
            SELECT {literal(landed.table)} AS "table", l.{POSITION} AS position, b.reasons,
                l._shown AS "row",
                {literal(run_id)} AS run_id,
                CASE WHEN b.event >= {start} AND b.event < {end} THEN b.event ELSE {start} END AS _event_time,
                TIMESTAMPTZ {literal(datetime.now(UTC).isoformat())} AS quarantined_at
            FROM bad b JOIN landed l USING ({ROW})
            ORDER BY b.{ROW}
        ) TO {literal(str(target))} (FORMAT parquet, COMPRESSION zstd)
    """)


# --- the interval as a whole -----------------------------------------------------------------------------------------


def _judge_whole(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    rows: JudgedRows,
    interval: Interval,
    past_rows_per_day: float | None,
    published: int,
    may_be_empty: Callable[[Interval], bool],
) -> list[CheckTally]:
    """Judge rows per day, freshness, volume and tolerance, on a frame with one row per day and one for the interval.

    A day that may be empty, since it is closed or its rows come later, is left out of the mean per day. What ends with one
    need not be fresh.
    """
    frame, checks = _rows_a_day(connection, table, rows, interval, may_be_empty)
    measures: dict[str, float] = {}
    # Clocks that are set back or forward are no fault of the source. Their hours come each year, and would refuse their day.
    [(unclear,)] = connection.execute(f"SELECT count(*) FROM typed WHERE {UNCLEAR}").fetchall()
    bad, count = rows.bad - unclear, rows.count - unclear
    if count:
        measures["share_quarantined"] = bad / count
        checks.append(
            whole(
                "share_quarantined", None, table.tolerance, "critical",
                lambda _: f"{bad:,} of {count:,} rows ({bad / count:.1%}) fail a critical check, "
                f"more than the tolerance of {table.tolerance:.1%}",
            )
        )  # fmt: skip
    days = open_days(interval, may_be_empty)
    if table.checks.freshness is not None and not may_be_empty(interval.touched_days()[-1]):
        within = table.checks.freshness.within
        newest = connection.execute(f"SELECT max({quoted(str(table.event_time))}) FROM typed").fetchall()[0][0]
        age = (interval.end - newest) / timedelta(hours=1) if newest else math.inf
        measures["hours_since_the_newest_event"] = age
        checks.append(
            whole(
                "hours_since_the_newest_event", None, within / timedelta(hours=1), table.checks.freshness.severity,
                lambda _: f"the newest event is of {newest:%Y-%m-%d %H:%M} UTC, more than {within} before the end of {interval}"
                if newest else f"there is no event, so there is none within {within} of the end of {interval}",
            )
        )  # fmt: skip
    volume = table.checks.volume
    if volume is not None and days and past_rows_per_day and math.isfinite(past_rows_per_day):
        daily = published / days
        measures["rows_a_day_to_those_of_the_past"] = daily / past_rows_per_day
        checks.append(
            whole(
                "rows_a_day_to_those_of_the_past", max(0.0, 1 - volume.tolerance), 1 + volume.tolerance, volume.severity,
                lambda _: f"{daily:,.0f} valid rows per day differ by more than {volume.tolerance:.0%} "
                f"from the {past_rows_per_day:,.0f} per day of the past {volume.past.days} days",
            )
        )  # fmt: skip
    frame = pd.concat([frame, pd.DataFrame([measures], index=[interval.key])])
    frame[ROW] = np.arange(len(frame))
    tallies = [CheckTally(check) for check in checks]
    for tally, result, failing in judge(frame, tallies):
        tally.elements, tally.missing = result.get("element_count", len(frame)), result.get("missing_count") or 0
        tally.failures = result.get("unexpected_count") or 0
        tally.count = len(failing)
        for row, value in failing[:SHOWN]:
            tally.examples.append(tally.check.explain((frame.index[row], value)))
            tally.values.append(f"{value:g}")
    return tallies


def open_days(interval: Interval, closed: Callable[[Interval], bool]) -> float:
    """How many days of an interval are open, parts of a day included."""
    within = (
        (max(day.start, interval.start), min(day.end, interval.end)) for day in interval.touched_days() if not closed(day)
    )
    return sum((end - start) / timedelta(days=1) for start, end in within)


def _rows_a_day(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    rows: JudgedRows,
    interval: Interval,
    may_be_empty: Callable[[Interval], bool],
) -> tuple[pd.DataFrame, list[Check]]:
    """The rows of each day, and the checks on them. A part of a day requires only that part of the rows."""
    wanted = table.checks.rows
    if table.event_time is None:
        counts: dict[str | date, tuple[float, int]] = {interval.key: (float(not may_be_empty(interval)), rows.count)}
    else:
        event = quoted(table.event_time)
        found = dict(
            connection.execute(
                f"SELECT date_trunc('day', {event})::DATE, count(*) FROM typed WHERE {event} IS NOT NULL GROUP BY 1"
            ).fetchall()
        )
        counts = {}
        for day in interval.touched_days():
            share = 0.0 if may_be_empty(day) else (min(day.end, interval.end) - max(day.start, interval.start)) / day.length
            counts[day.start.date()] = share, found.get(day.start.date(), 0)
    frame = pd.DataFrame(index=[str(day) for day in counts])
    checks = []
    for share in dict.fromkeys(share for share, _ in counts.values()):
        name = {0.0: "rows_on_a_closed_day", 1.0: "rows_a_day"}.get(share, f"rows_in_{24 * share:g}_hours")
        frame[name] = [float(n) if part == share else math.nan for part, n in counts.values()]
        least = math.floor(wanted.min * share)

        def explain(found: tuple[str, float], least: int = least) -> str:
            day, n = found
            bound = f"at least {least:,}" if n < least else f"at most {wanted.max:,}"
            closed = "" if n else " (schedules.closed in model.yaml names days without data)"
            return f"{day}: {n:,.0f} rows arrived; {bound} are required{closed}"

        checks.append(whole(name, least, wanted.max, wanted.severity, explain))
    return frame, checks
