"""From raw rows to published rows and quarantined rows, judged by Great Expectations.

The spec of a table becomes a suite: every column readable as its type, present, within its range, among its values, of its
pattern; every row whole, of a key of its own, known at some moment; and of the interval as a whole: rows a day, freshness,
volume against the past, the share quarantined. DuckDB casts (:mod:`perennial.casting`) and counts what cannot be seen in
a batch of rows (how many rows share a key); Great Expectations judges batches of :data:`BATCH_ROWS` rows, so that memory stays
bounded, and names each row that fails. A row goes to quarantine with every reason that a critical check gives; a warning
only tells. When too many do, or a critical check of the whole fails, the interval is refused: nothing of it is published.

Of rows that are the same to the last column one is kept, and the others are quarantined as repeats. Rows that share a key
and differ are all quarantined, since which is right cannot be known.

Data Docs: one HTML page for a table and interval, whole over all batches. Great Expectations does not escape the values it
quotes there, so they are escaped here.

Neighbours: :mod:`perennial.sources` landed the rows; :mod:`perennial.ingestion` publishes them through
:mod:`perennial.lake`.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from perennial import logs
from perennial.casting import (
    KNOWN,
    KNOWN_FAULT,
    LANDED_EXTRAS,
    ROW,
    ROW_FAULT,
    bind,
    connect,
    literal,
    published_schema,
    quoted,
    typed_query,
)
from perennial.delimited import FAULT, POSITION, RAW
from perennial.errors import IntervalRefused
from perennial.intervals import Interval
from perennial.lake import TableWrite
from perennial.sources import Landed
from perennial.spec import Column, ModelFolder, Severity, Table

# It reports its use to its makers unless told not to.
os.environ["GX_ANALYTICS_ENABLED"] = "false"
with warnings.catch_warnings():
    # It imports a module of Python's that is deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
    from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
    from great_expectations.expectations.core.expect_column_values_to_be_null import ExpectColumnValuesToBeNull
    from great_expectations.expectations.core.expect_column_values_to_match_regex import ExpectColumnValuesToMatchRegex
    from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull
    from great_expectations.expectations.core.expect_table_columns_to_match_set import ExpectTableColumnsToMatchSet
    from great_expectations.expectations.expectation import Expectation
    from great_expectations.expectations.metadata_types import FailureSeverity

    from perennial.data_docs import Judged, write_page

log = logs.get(__name__)
logging.getLogger("great_expectations").setLevel(logging.WARNING)

#: Rows that Great Expectations judges at a time.
BATCH_ROWS = 100_000
#: How many examples and kinds of reasons a message gives.
SHOWN = 5

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

# Names of what is judged besides the spec's columns; people read them in Data Docs.
_BROKEN, _UNTOLD, _COPIES = "row, why it is unreadable", "known, why it is unreadable", "rows with this key"


@dataclass(frozen=True)
class CheckResult:
    """What became of one table's interval.

    Attributes:
        table: its name.
        published: Parquet file with the spec's columns and ``_known_at``; None when refused.
        quarantined: Parquet file of :data:`QUARANTINE_SCHEMA`, written in any case.
        rows_in: rows of the interval that the source brought; the sum of the other two, unless refused.
        rows_published: 0 when refused.
        rows_quarantined: rows that a critical check failed.
        refused: whether nothing of the interval may be published.
        reasons: why it was refused, else what was quarantined and why, one line a check.
        warnings: what failed with severity ``warning``.
        data_docs: HTML page of all checks.
        files: what the rows were read from, see :class:`perennial.sources.Landed`.
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
    typed, bad, published, quarantined = (name.with_suffix(f".{kind}") for kind in ("typed", "bad", "good", "quarantine"))
    try:
        with connect(directory, landed.path.parent) as connection:
            _cast(connection, folder, landed, interval, typed)
            rows = _judge_rows(connection, table, typed, published, bad)
            _write_quarantine(connection, landed, bad, quarantined, rows.bad, run_id, interval)
            whole = _judge_whole(connection, table, rows, interval, past_rows_per_day)
        refusals = [line for tally in whole if tally.check.severity == "critical" for line in tally.reasons()]
        quarantines = [line for tally in rows.tallies if tally.check.severity == "critical" for line in tally.reasons()]
        # A check that could not be judged at all, whatever its severity, is not one that passed.
        refusals += [tally.broken for tally in [*whole, *rows.tallies] if tally.broken]
        kept = None if refusals else name.with_suffix(".published.parquet")
        if kept is not None:
            published.replace(kept)
        held = quarantined.replace(name.with_suffix(".quarantined.parquet"))
    finally:
        for file in (typed, bad, published, quarantined):
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
                for batch in file.iter_batches(BATCH_ROWS):
                    yield batch.select(schema.names).cast(schema)

    return TableWrite(lambda: pa.RecordBatchReader.from_batches(schema, batches()), event_time, schema)


# --- the suite -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """One expectation that the spec makes.

    Attributes:
        expectation: Great Expectations' form of it.
        looks_at: the column it is about, in the frame that is judged.
        severity: of a row or an interval that fails it.
        explain: from a value that fails to what is wrong with it, for people.
        follows: what is looked at by checks whose failing on a row explains that this one fails, too.
    """

    expectation: Expectation
    looks_at: str
    severity: Severity
    explain: Callable[[Any], str]
    follows: tuple[str, ...] = ()


@dataclass
class _Tally:
    """What one check found over all batches."""

    check: _Check
    elements: int = 0
    failures: int = 0
    missing: int = 0
    values: list[Any] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    count: int = 0
    broken: str | None = None

    def reasons(self) -> list[str]:
        """Nothing, or a line for people: how many, and the first of them."""
        if not self.count:
            return []
        return [self.examples[0] if self.count == 1 else f"{self.count:,} times, first {self.examples[0]}"]

    def judged(self) -> Judged:
        return Judged(
            self.check.expectation.configuration, self.elements, self.failures, self.missing, self.values, self.broken is None
        )


def _unreadable(column: str) -> str:
    return f"{column}, why it is unreadable"


def _expect(
    kind: type[Expectation],
    column: str,
    severity: Severity,
    explain: Callable[[Any], str] = str,
    follows: tuple[str, ...] = (),
    **settings: Any,
) -> _Check:
    expectation = kind(column=column, severity=FailureSeverity(severity), **settings)  # type: ignore[call-arg]
    return _Check(expectation, column, severity, explain, follows)


def _row_checks(table: Table) -> list[_Check]:
    """The suite over rows, in the order in which reasons are told."""
    present = ExpectTableColumnsToMatchSet(column_set=list(table.columns), exact_match=False, severity=FailureSeverity.CRITICAL)
    checks = [_Check(present, "", "critical", str), _expect(ExpectColumnValuesToBeNull, _BROKEN, "critical")]
    for name, column in table.columns.items():
        checks += _column_checks(name, column, placed=name in (*table.key, table.event_time))
    unknown = f"known: {table.known} gives no moment for this row"
    parts = [name for name in table.columns if re.search(rf"\b{name}\b", table.known, re.IGNORECASE)]
    return [
        *checks,
        _expect(ExpectColumnValuesToBeBetween, _COPIES, "critical", max_value=1),
        _expect(ExpectColumnValuesToBeNull, _UNTOLD, "critical"),
        _expect(
            ExpectColumnValuesToNotBeNull,
            KNOWN,
            "critical",
            lambda _: unknown,
            (_BROKEN, _UNTOLD, *parts, *map(_unreadable, parts)),
        ),
    ]


def _column_checks(name: str, column: Column, *, placed: bool) -> list[_Check]:
    """The checks of one column.

    Args:
        placed: the column names or places the row: without it there is nothing to publish, whatever the severity.
    """
    severity = column.severity
    checks = [_expect(ExpectColumnValuesToBeNull, _unreadable(name), "critical")]
    if placed or not column.nullable:
        needed: Severity = "critical" if placed else severity
        checks.append(
            _expect(ExpectColumnValuesToNotBeNull, name, needed, lambda _: f"{name}: missing", (_BROKEN, _unreadable(name)))
        )
    if column.min is not None or column.max is not None:
        checks.append(
            _expect(
                ExpectColumnValuesToBeBetween,
                name,
                severity,
                lambda value: f"{name}: {value} is {_beyond(value, column.min, column.max)}",
                min_value=column.min,
                max_value=column.max,
            )
        )
    if column.values is not None:
        allowed = ", ".join(column.values[:10]) + (", …" if len(column.values) > 10 else "")
        checks.append(
            _expect(
                ExpectColumnValuesToBeInSet,
                name,
                severity,
                lambda value: f"{name}: {_quote(value)} is none of {allowed}",
                value_set=column.values,
            )
        )
    if column.matches is not None:
        # Python's $ holds before a last line break as well, which a value cut out of a file may well have.
        checks.append(
            _expect(
                ExpectColumnValuesToMatchRegex,
                name,
                severity,
                lambda value: f"{name}: {_quote(value)} does not match {column.matches}",
                regex=rf"^(?!(?s:.*)\n\Z)(?:{column.matches})",
            )
        )
    return checks


def _beyond(value: float, least: float | None, most: float | None) -> str:
    return f"below {least:.15g}" if least is not None and value < least else f"above {most:.15g}"


def _quote(value: Any) -> str:
    text = str(value)
    return f"'{text if len(text) <= 60 else text[:59] + '…'}'"


def visible(text: str) -> str:
    """The text with what is invisible, or would steer a terminal or a page, written out (``\\u200b``)."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


# --- the judge -------------------------------------------------------------------------------------------------------


def _judge(frame: pd.DataFrame, tallies: Sequence[_Tally]) -> Iterator[tuple[_Tally, list[tuple[int, Any]]]]:
    """Let Great Expectations judge a frame; gives for each check the ``_row`` and the value of every row that fails it."""
    # A context a frame, since it keeps every frame that it was ever given.
    context = gx.get_context(mode="ephemeral", project_config=_in_memory())
    asset = context.data_sources.add_pandas("perennial").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(name="perennial", expectations=[tally.check.expectation for tally in tallies])
    results = batch.validate(suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]}).results
    found = {_identity(result.expectation_config): result for result in results}
    for tally in tallies:
        result = found[_identity(tally.check.expectation.configuration)]
        details = result.result
        failing = details.get("unexpected_index_list") or []
        tally.elements += details.get("element_count", len(frame))
        tally.missing += details.get("missing_count") or 0
        tally.failures += details.get("unexpected_count") or 0
        if not result.success and not failing:
            tally.broken = f"{_name(tally.check)} could not be judged: {_raised(result.exception_info)}"
        yield tally, [(int(item[ROW]), item.get(tally.check.looks_at)) for item in failing]


def _in_memory() -> DataContextConfig:
    """No analytics, no progress bars, and no site of documents of its own."""
    return DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )


def _identity(configuration: Any) -> tuple[str, str]:
    return configuration.type, str(configuration.kwargs.get("column"))


def _name(check: _Check) -> str:
    return f"{check.expectation.configuration.type} of {check.looks_at or 'the table'}"


def _raised(info: Mapping[str, Any]) -> str:
    each = [info] if "raised_exception" in info else list(info.values())
    return "; ".join(str(one.get("exception_message")) for one in each if one.get("raised_exception")) or "it does not hold"


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """What came of the rows of an interval: how many there were, how many of them are bad, and what each check found."""

    count: int
    bad: int
    tallies: list[_Tally]


def _cast(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, landed: Landed, interval: Interval, typed: Path) -> None:
    raw = pa.schema([field for field in pq.read_schema(landed.path) if field.name not in LANDED_EXTRAS.names])
    types = bind(folder, landed.table, raw, f"source {folder.spec.tables[landed.table].source}")
    query = typed_query(folder, landed.table, types, landed.path, interval)
    connection.execute(f"COPY ({query}) TO {literal(str(typed))} (FORMAT parquet, COMPRESSION lz4)")


def _share_keys(connection: duckdb.DuckDBPyConnection, table: Table, typed: Path) -> bool:
    """Make the table ``shared`` of the rows that may not have their key, and why; whether there are any.

    A key is counted over the whole interval, which no batch of rows could show.
    """
    keys = ", ".join(map(quoted, table.key))
    given = " AND ".join(f"{quoted(key)} IS NOT NULL" for key in table.key)
    text = "concat_ws(', ', " + ", ".join(f"left({quoted(key)}::VARCHAR, 60)" for key in table.key) + ")"
    connection.execute(f"CREATE VIEW typed AS SELECT * FROM read_parquet({literal(str(typed))})")
    connection.execute(f"""
        CREATE TEMP TABLE shared AS
        WITH counted AS (
            SELECT {keys}, count(*) AS _n, min({ROW}) AS _first, arg_min({POSITION}, {ROW}) AS _first_position,
                min(hash({", ".join(map(quoted, table.columns))})) = max(hash({", ".join(map(quoted, table.columns))})) AS _same
            FROM typed WHERE {given} GROUP BY {keys} HAVING count(*) > 1
        )
        SELECT {ROW}, _n, CASE WHEN _same THEN 'key: the row repeats ' || _first_position
            ELSE 'key: ' || _n || ' rows are ' || {text} || ', and they differ' END AS _why
        FROM typed JOIN counted USING ({keys})
        WHERE NOT (_same AND {ROW} = _first)
    """)
    return connection.execute("SELECT count(*) > 0 FROM shared").fetchone() == (True,)


def _judge_rows(connection: duckdb.DuckDBPyConnection, table: Table, typed: Path, published: Path, bad: Path) -> _Rows:
    """Part the rows into those to be published and the numbers and reasons of those that are not."""
    tallies = [_Tally(check) for check in _row_checks(table)]
    any_shared = _share_keys(connection, table, typed)
    schema = published_schema(table)
    bad_schema = pa.schema([(ROW, pa.int64()), ("reasons", pa.list_(pa.string())), ("event", pa.timestamp("us", "UTC"))])
    count = bad_count = 0
    with (
        pq.ParquetFile(typed) as file,
        pq.ParquetWriter(published, schema, compression="zstd") as good_writer,
        pq.ParquetWriter(bad, bad_schema) as bad_writer,
    ):
        for batch in file.iter_batches(BATCH_ROWS):
            numbers = batch.column(ROW).to_numpy()
            copies = np.ones(len(batch), np.int64)
            why: dict[int, str] = {}
            if any_shared:
                found = connection.execute(
                    f"SELECT {ROW}, _n, _why FROM shared WHERE {ROW} BETWEEN ? AND ?", [int(numbers[0]), int(numbers[-1])]
                ).fetchall()
                why = {row: text for row, _, text in found}
                copies[np.searchsorted(numbers, [row for row, _, _ in found])] = [n for _, n, _ in found]
            reasons = _reasons(batch, numbers, copies, why, tallies)
            spared = np.ones(len(batch), bool)
            failed = np.searchsorted(numbers, sorted(reasons))
            spared[failed] = False
            good_writer.write_batch(batch.filter(pa.array(spared)).select(schema.names).cast(schema))
            event = batch.column(table.event_time).take(pa.array(failed)) if table.event_time else None
            bad_writer.write_batch(
                pa.record_batch(
                    [
                        pa.array(numbers[failed]),
                        pa.array([reasons[row] for row in sorted(reasons)], bad_schema.field("reasons").type),
                        pa.nulls(len(failed), bad_schema.field("event").type) if event is None else event,
                    ],
                    schema=bad_schema,
                )
            )
            count += len(batch)
            bad_count += len(failed)
            if len(batch) == BATCH_ROWS:  # what a judgement leaves behind is in cycles, and large
                gc.collect()
    return _Rows(count, bad_count, tallies)


def _reasons(
    batch: pa.RecordBatch, numbers: Any, copies: Any, why: Mapping[int, str], tallies: Sequence[_Tally]
) -> dict[int, list[str]]:
    """Every critical reason of each row of a batch that has one; what is found is added to the tallies."""
    # Nullable integers: through floats, large identifiers would become others.
    frame = batch.drop_columns([POSITION]).to_pandas(
        types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get, date_as_object=True
    )
    columns = [name for name in batch.schema.names if f"_fault_{name}" in batch.schema.names]
    names = {ROW_FAULT: _BROKEN, KNOWN_FAULT: _UNTOLD, **{f"_fault_{name}": _unreadable(name) for name in columns}}
    frame = frame.rename(columns=names).assign(**{ROW: numbers, _COPIES: copies})
    reasons: dict[int, list[str]] = {}
    absent: dict[str, set[int]] = {}
    for tally, failing in _judge(frame, tallies):
        check = tally.check
        explained = set().union(*(absent.get(cause, ()) for cause in check.follows))
        failing = [(row, value) for row, value in failing if not (row in explained and row in reasons)]
        if isinstance(check.expectation, ExpectColumnValuesToBeNull | ExpectColumnValuesToNotBeNull):
            absent[check.looks_at] = {row for row, _ in failing}
        for row, value in failing:
            reason = visible(why[row] if check.looks_at == _COPIES else check.explain(value))
            if check.severity == "critical":
                reasons.setdefault(row, []).append(reason)
            if len(tally.examples) < SHOWN:
                place = batch.column(POSITION)[int(np.searchsorted(numbers, row))].as_py()
                tally.examples.append(f"{place}: {reason}")
                tally.values.append(visible(str(value)))
        tally.count += len(failing)
    return reasons


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
    connection: duckdb.DuckDBPyConnection, table: Table, rows: _Rows, interval: Interval, past_rows_per_day: float | None
) -> list[_Tally]:
    """Rows a day, freshness, volume and tolerance, judged on a frame with a line a day and one for the interval."""
    frame, checks = _rows_a_day(connection, table, rows, interval)
    measures: dict[str, float] = {}
    if rows.count:
        measures["share_quarantined"] = rows.bad / rows.count
        checks.append(
            _whole(
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
            _whole(
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
            _whole(
                "rows_a_day_to_those_of_the_past", max(0.0, 1 - volume.tolerance), 1 + volume.tolerance, volume.severity,
                lambda _: f"{daily:,.0f} sound rows a day differ by more than {volume.tolerance:.0%} "
                f"from the {past_rows_per_day:,.0f} of the past {volume.past.days} days",
            )
        )  # fmt: skip
    frame = pd.concat([frame, pd.DataFrame([measures], index=[interval.key])])
    frame[ROW] = np.arange(len(frame))
    tallies = [_Tally(check) for check in checks]
    for tally, failing in _judge(frame, tallies):
        tally.count = len(failing)
        for row, value in failing[:SHOWN]:
            tally.examples.append(tally.check.explain((frame.index[row], value)))
            tally.values.append(f"{value:g}")
    return tallies


def _whole(name: str, least: float | None, most: float | None, severity: Severity, explain: Callable[[Any], str]) -> _Check:
    return _expect(ExpectColumnValuesToBeBetween, name, severity, explain, min_value=least, max_value=most)


def _rows_a_day(
    connection: duckdb.DuckDBPyConnection, table: Table, rows: _Rows, interval: Interval
) -> tuple[pd.DataFrame, list[_Check]]:
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

        checks.append(_whole(name, least, wanted.max, wanted.severity, explain))
    return frame, checks


def _days(interval: Interval) -> Iterator[tuple[date, float]]:
    """The UTC days that the interval touches, and the share of each that lies in it."""
    start = interval.start
    while start < interval.end:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        end = min(midnight, interval.end)
        yield start.date(), (end - start) / timedelta(days=1)
        start = end
