"""From raw rows to published rows and quarantined rows, judged by Great Expectations.

The spec of a table becomes a suite: every column readable as its type, present, within its range, among its values, of its
pattern; every row whole, of a key of its own, known at some moment; and of the interval as a whole: rows a day, freshness,
volume against the past, the share quarantined. DuckDB casts (:mod:`perennial.ingestion.casting`), counts how many rows
share a key, and hands each value of a column to Great Expectations once, however many rows have it, in frames of
:data:`BATCH_ROWS`, so that memory stays bounded; the rows of the values that fail are found by a join. A row goes to
quarantine with every reason that a critical check gives; a warning only tells. When too many do, or a critical check of the
whole fails, the interval is refused: nothing of it is published.

Of rows that are the same to the last column one is kept, and the others are quarantined as repeats. Rows that share a key
and differ are all quarantined, since which is right cannot be known.

Data Docs: one HTML page for a table and interval, whole over all batches. Great Expectations does not escape the values it
quotes there, so they are escaped here.

Neighbours: :mod:`perennial.ingestion.sources` landed the rows; :mod:`perennial.ingestion.publish` publishes them through
:mod:`perennial.lake.publish`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from perennial.ingestion.casting import LANDED_EXTRAS, ROW, bind, typed_query
from perennial.ingestion.data_docs import write_page
from perennial.ingestion.delimited import FAULT, POSITION, RAW
from perennial.ingestion.judge import BATCH_ROWS, SHOWN, JudgedRows, judge, judge_rows
from perennial.ingestion.sources import Landed
from perennial.ingestion.suite import Check, CheckTally, whole
from perennial.lake.publish import TableWrite
from perennial.lake.schema import published_schema
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
        ("_event_time", pa.timestamp("us", "UTC")),
        ("quarantined_at", pa.timestamp("us", "UTC")),
    ]
)


@dataclass(frozen=True)
class CheckResult:
    """What became of one table's interval.

    Attributes:
        table: its name.
        published: Parquet file whose columns the spec's and ``_known_at`` are among; None when refused.
        quarantined: Parquet file of :data:`QUARANTINE_SCHEMA`, written in any case.
        rows_in: rows of the interval that the source brought; the sum of the other two, unless refused.
        rows_published: 0 when refused.
        rows_quarantined: rows that a critical check failed.
        refused: whether nothing of the interval may be published.
        reasons: why it was refused, else what was quarantined and why, one line a check.
        warnings: what failed with severity ``warning``.
        data_docs: HTML page of all checks.
        files: what the rows were read from, see :class:`perennial.ingestion.sources.Landed`.
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

    def to_json(self) -> dict[str, Any]:
        published = None if self.published is None else str(self.published)
        return {**asdict(self), "published": published, "quarantined": str(self.quarantined)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CheckResult:
        published = None if value["published"] is None else Path(value["published"])
        return cls(**{**value, "published": published, "quarantined": Path(value["quarantined"])})


def check(
    folder: ModelFolder,
    landed: Landed,
    interval: Interval,
    directory: Path,
    *,
    past_rows_per_day: float | None,
    docs: Path,
    run_id: str,
) -> CheckResult:
    """Cast and judge the landed rows of a table's interval.

    Args:
        directory: where the resulting Parquet files are put, under names of their own; made if need be.
        past_rows_per_day: mean rows a day of the past that the volume check looks at; None if there is none.
        docs: folder for the Data Docs page, ``<table>/<interval>.html``.
        run_id: kept with quarantined rows and on the page.

    Raises:
        SourceError: a column's type cannot become the spec's.
        SpecError: an expression of the table is wrong.
    """
    table = folder.spec.tables[landed.table]
    directory.mkdir(parents=True, exist_ok=True)
    name = directory / f"{landed.table}-{uuid4().hex}"
    typed, bad, good, quarantined = (name.with_suffix(f".{kind}") for kind in ("typed", "bad", "good", "quarantine"))
    try:
        with connect(directory, landed.path.parent) as connection:
            _cast(connection, folder, landed, interval, typed)
            rows = judge_rows(connection, table, typed, good, bad)
            _write_quarantine(connection, landed, bad, quarantined, rows.bad, run_id, interval)
            whole = _judge_whole(connection, table, rows, interval, past_rows_per_day)
        refusals = [line for tally in whole if tally.check.severity == "critical" for line in tally.reasons()]
        quarantines = [line for tally in rows.tallies if tally.check.severity == "critical" for line in tally.reasons()]
        # A check that could not be judged at all, whatever its severity, is not one that passed.
        refusals += [tally.broken for tally in [*whole, *rows.tallies] if tally.broken]
        kept = None if refusals else name.with_suffix(".published.parquet")
        if kept is not None:
            rows.good.replace(kept)
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
        rows_published=0 if refusals else rows.count - rows.bad,
        rows_quarantined=rows.bad,
        refused=bool(refusals),
        reasons=[*refusals, *quarantines],
        warnings=[line for tally in [*whole, *rows.tallies] if tally.check.severity == "warning" for line in tally.reasons()],
        data_docs=str(page),
        files=landed.files,
    )
    for line in result.reasons:
        log.log(logging.ERROR if result.refused else logging.WARNING, "%s: %s", landed.table, line)
    for line in result.warnings:
        log.warning("%s: %s", landed.table, line)
    log.info("checked %s: %d rows in, %d published, %d quarantined", *_counts(result))
    return result


def _counts(result: CheckResult) -> tuple[str, int, int, int]:
    return result.table, result.rows_in, result.rows_published, result.rows_quarantined


def ingest_writes(folder: ModelFolder, results: Sequence[CheckResult]) -> dict[str, TableWrite]:
    """What the lake shall hold for the interval: each checked table, and the quarantine of all of them.

    Raises:
        IntervalRefused: one of the results is a refusal.
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


def _cast(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, landed: Landed, interval: Interval, typed: Path) -> None:
    raw = pa.schema([field for field in pq.read_schema(landed.path) if field.name not in LANDED_EXTRAS.names])
    types = bind(folder, landed.table, raw, f"source {folder.spec.tables[landed.table].source}")
    query = typed_query(folder, landed.table, types, landed.path, interval)
    # What two expressions have in common, DuckDB would compute outside of the TRY of either, and one bad value would fail all.
    # Which rows are of the interval can be told only once they are cast: pushed down, that filter brings a copy of the casting
    # that it needs, which is more than half of the work.
    connection.execute("SET disabled_optimizers = 'common_subexpressions,filter_pushdown'")
    connection.execute(f"COPY ({query}) TO {literal(str(typed))} (FORMAT parquet, COMPRESSION lz4)")
    connection.execute("RESET disabled_optimizers")


def _write_quarantine(
    connection: duckdb.DuckDBPyConnection, landed: Landed, bad: Path, target: Path, count: int, run_id: str, interval: Interval
) -> None:
    if not count:
        pq.write_table(QUARANTINE_SCHEMA.empty_table(), target)
        return
    raw = [name for name in pq.read_schema(landed.path).names if name not in LANDED_EXTRAS.names]
    packed = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in raw)
    start, end = (f"TIMESTAMPTZ {literal(moment.isoformat())}" for moment in (interval.start, interval.end))
    # An event time outside the interval is a fault, and its row must be replaced with the interval's others all the same.
    connection.execute(f"""
        COPY (
            SELECT {literal(landed.table)} AS "table", l.{POSITION} AS position, b.reasons,
                CASE WHEN l.{FAULT} IS NULL THEN to_json(struct_pack({packed}))::VARCHAR
                    ELSE to_json(struct_pack({RAW} := l.{RAW}))::VARCHAR END AS "row",
                {literal(run_id)} AS run_id,
                CASE WHEN b.event >= {start} AND b.event < {end} THEN b.event ELSE {start} END AS _event_time,
                TIMESTAMPTZ {literal(datetime.now(UTC).isoformat())} AS quarantined_at
            FROM read_parquet({literal(str(bad))}) b
            JOIN read_parquet({literal(str(landed.path))}, file_row_number = true) l ON l.file_row_number = b.{ROW}
            ORDER BY b.{ROW}
        ) TO {literal(str(target))} (FORMAT parquet, COMPRESSION zstd)
    """)


# --- the interval as a whole -----------------------------------------------------------------------------------------


def _judge_whole(
    connection: duckdb.DuckDBPyConnection, table: Table, rows: JudgedRows, interval: Interval, past_rows_per_day: float | None
) -> list[CheckTally]:
    """Rows a day, freshness, volume and tolerance, judged on a frame with a line a day and one for the interval."""
    frame, checks = _rows_a_day(connection, table, rows, interval)
    measures: dict[str, float] = {}
    if rows.count:
        measures["share_quarantined"] = rows.bad / rows.count
        checks.append(
            whole(
                "share_quarantined", None, table.tolerance, "critical",
                lambda _: f"{rows.bad:,} of {rows.count:,} rows ({rows.bad / rows.count:.1%}) fail a critical check, "
                f"more than the tolerance of {table.tolerance:.1%}",
            )
        )  # fmt: skip
    if table.checks.freshness is not None:
        within = table.checks.freshness.within
        newest = connection.execute(f"SELECT max({quoted(str(table.event_time))}) FROM typed").fetchall()[0][0]
        age = (interval.end - newest) / timedelta(hours=1) if newest else math.inf
        measures["hours_since_the_newest_event"] = age
        checks.append(
            whole(
                "hours_since_the_newest_event", None, within / timedelta(hours=1), table.checks.freshness.severity,
                lambda _: f"the newest event is of {newest:%Y-%m-%d %H:%M} UTC, more than {within} before the end of {interval}"
                if newest else f"there is no event at all, so none within {within} of the end of {interval}",
            )
        )  # fmt: skip
    volume = table.checks.volume
    if volume is not None and past_rows_per_day and math.isfinite(past_rows_per_day):
        daily = (rows.count - rows.bad) / (interval.length / timedelta(days=1))
        measures["rows_a_day_to_those_of_the_past"] = daily / past_rows_per_day
        checks.append(
            whole(
                "rows_a_day_to_those_of_the_past", max(0.0, 1 - volume.tolerance), 1 + volume.tolerance, volume.severity,
                lambda _: f"{daily:,.0f} sound rows a day differ by more than {volume.tolerance:.0%} "
                f"from the {past_rows_per_day:,.0f} of the past {volume.past.days} days",
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


def _rows_a_day(
    connection: duckdb.DuckDBPyConnection, table: Table, rows: JudgedRows, interval: Interval
) -> tuple[pd.DataFrame, list[Check]]:
    """Rows that came in on each day, and what they must be; of a day's part no more than that part is wanted."""
    wanted = table.checks.rows
    if table.event_time is None:
        counts: dict[str | date, tuple[float, int]] = {interval.key: (1.0, rows.count)}
    else:
        event = quoted(table.event_time)
        found = dict(
            connection.execute(
                f"SELECT date_trunc('day', {event})::DATE, count(*) FROM typed WHERE {event} IS NOT NULL GROUP BY 1"
            ).fetchall()
        )
        counts = {day: (share, found.get(day, 0)) for day, share in _days(interval)}
    frame = pd.DataFrame(index=[str(day) for day in counts])
    checks = []
    for share in dict.fromkeys(share for share, _ in counts.values()):
        name = "rows_a_day" if share == 1 else f"rows_in_{24 * share:g}_hours"
        frame[name] = [float(n) if part == share else math.nan for part, n in counts.values()]
        least = math.floor(wanted.min * share)

        def explain(found: tuple[str, float], least: int = least) -> str:
            day, n = found
            bound = f"at least {least:,}" if n < least else f"at most {wanted.max:,}"
            return f"{day}: {n:,.0f} rows came in where {bound} are wanted"

        checks.append(whole(name, least, wanted.max, wanted.severity, explain))
    return frame, checks


def _days(interval: Interval) -> Iterator[tuple[date, float]]:
    """The UTC days that the interval touches, and the share of each that lies in it."""
    start = interval.start
    while start < interval.end:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        end = min(midnight, interval.end)
        yield start.date(), (end - start) / timedelta(days=1)
        start = end
