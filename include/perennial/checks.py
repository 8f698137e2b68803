"""From raw rows to published rows and quarantined rows, judged by Great Expectations.

The spec of a table becomes a suite: every column readable as its type, present, within its range, among its values, of its
pattern; every row whole, of a key of its own, known at some moment; and of the interval as a whole: rows a day, freshness,
volume against the past, the share quarantined. DuckDB casts (:mod:`perennial.casting`), counts how many rows share a key,
and hands each value of a column to Great Expectations once, however many rows have it, in frames of :data:`BATCH_ROWS`, so
that memory stays bounded; the rows of the values that fail are found by a join. A row goes to quarantine with every reason that
a critical check gives; a warning only tells. When too many do, or a critical check of the whole fails, the interval is refused:
nothing of it is published.

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
from contextlib import closing
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
from perennial.overlap import ahead
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

#: Values of each column that Great Expectations judges at a time, and rows that are written at a time.
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
        published: Parquet file whose columns the spec's and ``_known_at`` are among; None when refused.
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
    typed, bad, good, quarantined = (name.with_suffix(f".{kind}") for kind in ("typed", "bad", "good", "quarantine"))
    try:
        with connect(directory, landed.path.parent) as connection:
            _cast(connection, folder, landed, interval, typed)
            rows = _judge_rows(connection, table, typed, good, bad)
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


def _judge(frame: pd.DataFrame, tallies: Sequence[_Tally]) -> Iterator[tuple[_Tally, Mapping[str, Any], list[tuple[int, Any]]]]:
    """Let Great Expectations judge a frame; gives for each check its result, and the ``_row`` and value of all that fail."""
    # A context a frame, since it keeps every frame that it was ever given.
    context = gx.get_context(mode="ephemeral", project_config=_in_memory())
    asset = context.data_sources.add_pandas("perennial").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(name="perennial", expectations=[tally.check.expectation for tally in tallies])
    results = batch.validate(suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]}).results
    found = {_identity(result.expectation_config): result for result in results}
    for tally in tallies:
        result = found[_identity(tally.check.expectation.configuration)]
        failing = result.result.get("unexpected_index_list") or []
        if not result.success and not failing:
            tally.broken = f"{_name(tally.check)} could not be judged: {_raised(result.exception_info)}"
        yield tally, result.result, [(int(item[ROW]), item.get(tally.check.looks_at)) for item in failing]


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
    """What came of the rows of an interval: how many there were and are bad, what each check found, where the good ones are."""

    count: int
    bad: int
    tallies: list[_Tally]
    good: Path


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


def _share_keys(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    """Make the table ``shared`` of the rows that may not have their key, and why, and ``counted``, all rows with their number.

    A key is counted over the whole interval, which no batch of rows could show.
    """
    keys = ", ".join(map(quoted, table.key))
    given = " AND ".join(f"{quoted(key)} IS NOT NULL" for key in table.key)
    text = "concat_ws(', ', " + ", ".join(f"left({quoted(key)}::VARCHAR, 60)" for key in table.key) + ")"
    # By hashes first: they take a tenth of the memory of all keys, and hardly a row is left to be looked at.
    connection.execute(f"""
        CREATE TEMP TABLE shared AS
        WITH suspected AS (
            SELECT hash({keys}) AS _hash FROM typed WHERE {given} GROUP BY _hash HAVING count(*) > 1
        ), counted AS (
            SELECT {keys}, count(*) AS _n, min({ROW}) AS _first, arg_min({POSITION}, {ROW}) AS _first_position,
                min(hash({", ".join(map(quoted, table.columns))})) = max(hash({", ".join(map(quoted, table.columns))})) AS _same
            FROM typed SEMI JOIN suspected ON hash({keys}) = _hash WHERE {given} GROUP BY {keys} HAVING count(*) > 1
        )
        SELECT {ROW}, _n, CASE WHEN _same THEN 'key: the row repeats ' || _first_position
            ELSE 'key: ' || _n || ' rows are ' || {text} || ', and they differ' END AS _why
        FROM typed JOIN counted USING ({keys})
        WHERE NOT (_same AND {ROW} = _first)
    """)
    connection.execute(
        f"CREATE VIEW counted AS SELECT {ROW}, coalesce(_n, 1) AS _n, _why FROM typed LEFT JOIN shared USING ({ROW})"
    )


def _judge_rows(connection: duckdb.DuckDBPyConnection, table: Table, typed: Path, good: Path, bad: Path) -> _Rows:
    """Part the rows into those to be published and the numbers and reasons of those that are not.

    Args:
        good: where the former are written, unless they are all that there are.
        bad: where the latter are written.
    """
    tallies = [_Tally(check) for check in _row_checks(table)]
    connection.execute(f"CREATE VIEW typed AS SELECT * FROM read_parquet({literal(str(typed))})")
    connection.execute(f"CREATE TEMP TABLE failed ({ROW} BIGINT, number INTEGER, shown VARCHAR, reason VARCHAR)")
    _share_keys(connection, table)
    _judge_values(connection, table, tallies)
    [(count,)] = connection.execute("SELECT count(*) FROM typed").fetchall()
    bad_rows = _write_bad(connection, table, tallies, bad)
    if not len(bad_rows):
        return _Rows(count, 0, tallies, typed)
    schema = published_schema(table)
    with (
        pq.ParquetFile(typed) as file,
        pq.ParquetWriter(good, schema, compression="lz4") as writer,
        closing(ahead(file.iter_batches(BATCH_ROWS, columns=[ROW, *schema.names]))) as batches,
    ):
        for batch in batches:
            is_bad = np.isin(batch.column(ROW).to_numpy(), bad_rows, assume_unique=True)
            kept = batch.filter(pa.array(~is_bad)) if is_bad.any() else batch
            writer.write_batch(kept.select(schema.names).cast(schema))
    return _Rows(count, len(bad_rows), tallies, good)


@dataclass(frozen=True)
class _Looked:
    """Values that some checks look at.

    Attributes:
        relation: where they are, besides ``_row``.
        column: their column there, as SQL.
        numbers: of the checks, in the order of the suite.
        null_alone: whether all that the checks ask is whether a value is there.
    """

    relation: str
    column: str
    numbers: list[int]
    null_alone: bool

    def group(self, value: str) -> str:
        """SQL for what rows have in common that are judged alike."""
        return f"({value} IS NULL)" if self.null_alone else value


def _looked(table: Table, tallies: Sequence[_Tally]) -> dict[str, _Looked]:
    """What the checks look at, by the name that it has for Great Expectations."""
    columns = {_BROKEN: ROW_FAULT, _UNTOLD: KNOWN_FAULT, _COPIES: "_n"}
    columns |= {_unreadable(name): f"_fault_{name}" for name in table.columns}
    found = {}
    # All columns, since one check asks whether they are there.
    for name in dict.fromkeys([*table.columns, *(tally.check.looks_at for tally in tallies if tally.check.looks_at)]):
        numbers = [number for number, tally in enumerate(tallies) if tally.check.looks_at == name]
        null_alone = all(isinstance(tallies[number].check.expectation, ExpectColumnValuesToNotBeNull) for number in numbers)
        column = quoted(columns.get(name, name))
        found[name] = _Looked("counted" if name == _COPIES else "typed", column, numbers, null_alone)
    return found


def _judge_values(connection: duckdb.DuckDBPyConnection, table: Table, tallies: Sequence[_Tally]) -> None:
    """Fill the table ``failed`` with every row and the numbers of the checks that it fails.

    What a check of a row says depends on one value alone. So Great Expectations judges each value once, however many rows
    have it, and a join finds the rows whose values fail: the same verdicts for a fraction of the work.
    """
    left = _looked(table, tallies)
    places = {name: f"values_{place}" for place, name in enumerate(left)}
    for name, looked in left.items():
        column = f"t.{looked.column}"
        connection.execute(f"""
            CREATE TEMP TABLE {places[name]} AS
            SELECT {f"any_value({column})" if looked.null_alone else column} AS value, count(*) AS rows
            FROM {looked.relation} t GROUP BY {looked.group(column)}
        """)
    first = [number for number, tally in enumerate(tallies) if not tally.check.looks_at]
    offset = 0
    while left:
        chunks = {
            name: connection.sql(f"SELECT value, rows FROM {places[name]} LIMIT {BATCH_ROWS} OFFSET {offset}").to_arrow_table()
            for name in left
        }
        chunks = {name: chunk for name, chunk in chunks.items() if len(chunk)}
        if chunks:
            _judge_chunks(connection, tallies, chunks, {name: left[name] for name in chunks}, first)
            if offset:  # what a judgement leaves behind is in cycles, and large where there is more than one
                gc.collect()
        # Whoever gave fewer has no more.
        left = {name: left[name] for name, chunk in chunks.items() if len(chunk) == BATCH_ROWS}
        offset, first = offset + BATCH_ROWS, []


def _judge_chunks(
    connection: duckdb.DuckDBPyConnection,
    tallies: Sequence[_Tally],
    chunks: Mapping[str, pa.Table],
    looked: Mapping[str, _Looked],
    others: Sequence[int],
) -> None:
    """Judge some values of each of some columns in one frame.

    Args:
        chunks: by column, some values and how many rows have each.
        others: numbers of checks that look at no column, to be judged with these.
    """
    longest = max(map(len, chunks.values()))
    # Columns that have fewer values repeat their last one.
    padded = {name: chunk["value"].take(np.minimum(np.arange(longest), len(chunk) - 1)) for name, chunk in chunks.items()}
    # Nullable integers: through floats, large identifiers would become others.
    frame = pa.table(padded).to_pandas(
        types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get, date_as_object=True
    )
    frame[ROW] = np.arange(longest)
    numbers = sorted([*others, *(number for one in looked.values() for number in one.numbers)])
    for number, (tally, result, failing) in zip(numbers, _judge(frame, [tallies[n] for n in numbers]), strict=True):
        name = tally.check.looks_at
        if not name:
            continue
        chunk = chunks[name]
        rows = chunk["rows"].to_numpy()
        failing = [(place, value) for place, value in failing if place < len(chunk)]
        tally.elements += int(rows.sum())
        tally.missing += int(rows[chunk["value"].is_null().to_numpy()].sum()) if "missing_count" in result else 0
        tally.failures += int(rows[[place for place, _ in failing]].sum())
        if failing:
            _note_failed(connection, looked[name], number, tally, chunk, failing)


def _note_failed(
    connection: duckdb.DuckDBPyConnection,
    looked: _Looked,
    number: int,
    tally: _Tally,
    chunk: pa.Table,
    failing: Sequence[tuple[int, Any]],
) -> None:
    """Enter every row that has one of the values into ``failed``."""
    bad = pa.table(
        {
            "value": chunk["value"].take(pa.array([place for place, _ in failing], pa.int64())),
            "shown": pa.array([str(value) for _, value in failing], pa.string()),
            "reason": pa.array([tally.check.explain(value) for _, value in failing], pa.string()),
        }
    )
    connection.register("bad", bad)
    reason = "t._why" if looked.relation == "counted" else "b.reason"
    same = f"{looked.group(f't.{looked.column}')} IS NOT DISTINCT FROM {looked.group('b.value')}"
    connection.execute(
        f"INSERT INTO failed SELECT t.{ROW}, {number}, b.shown, {reason} FROM {looked.relation} t JOIN bad b ON {same}"
    )
    connection.unregister("bad")


def _write_bad(connection: duckdb.DuckDBPyConnection, table: Table, tallies: Sequence[_Tally], bad: Path) -> Any:
    """Write the rows that fail a critical check, each with every reason, and tell the tallies; gives the rows' numbers."""
    schema = pa.schema([(ROW, pa.int64()), ("reasons", pa.list_(pa.string())), ("event", pa.timestamp("us", "UTC"))])
    event = f"t.{quoted(table.event_time)}" if table.event_time else "NULL::TIMESTAMPTZ"
    found = connection.sql(f"""
        SELECT f.{ROW}, list(f.number ORDER BY f.number) AS numbers, list(f.shown ORDER BY f.number) AS shown,
            list(f.reason ORDER BY f.number) AS reasons, any_value(t.{POSITION}) AS position, any_value({event}) AS event
        FROM failed f JOIN typed t USING ({ROW}) GROUP BY f.{ROW} ORDER BY f.{ROW}
    """).to_arrow_reader(BATCH_ROWS)
    numbers = []
    with pq.ParquetWriter(bad, schema) as writer:
        for batch in found:
            told = [
                _reasons(tallies, position, list(zip(*failed, strict=True)))
                for position, *failed in zip(
                    *(batch.column(name).to_pylist() for name in ("position", "numbers", "shown", "reasons")), strict=True
                )
            ]
            kept = pa.array([bool(reasons) for reasons in told])
            row, moment = (batch.column(name).filter(kept) for name in (ROW, "event"))
            reasons = pa.array([reasons for reasons in told if reasons], schema.field("reasons").type)
            writer.write_batch(pa.record_batch([row, reasons, moment.cast(schema.field("event").type)], schema=schema))
            numbers.append(row.to_numpy())
    return np.concatenate([np.empty(0, np.int64), *numbers])


def _reasons(tallies: Sequence[_Tally], position: str, failed: Sequence[tuple[int, str, str]]) -> list[str]:
    """Every critical reason of a row; what is found is added to the tallies.

    Args:
        failed: the checks that it fails, in the order of the suite: number, the value, and what is wrong with it.
    """
    reasons: list[str] = []
    absent: set[str] = set()
    for number, shown, text in failed:
        tally, reason = tallies[number], visible(text)
        if reasons and not absent.isdisjoint(tally.check.follows):
            continue
        if isinstance(tally.check.expectation, ExpectColumnValuesToBeNull | ExpectColumnValuesToNotBeNull):
            absent.add(tally.check.looks_at)
        if tally.check.severity == "critical":
            reasons.append(reason)
        if len(tally.examples) < SHOWN:
            tally.examples.append(f"{position}: {reason}")
            tally.values.append(visible(shown))
        tally.count += 1
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
    for tally, result, failing in _judge(frame, tallies):
        tally.elements, tally.missing = result.get("element_count", len(frame)), result.get("missing_count") or 0
        tally.failures = result.get("unexpected_count") or 0
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
