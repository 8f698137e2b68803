"""Judge the rows of a table: Great Expectations judges each distinct value once, DuckDB finds the rows that have it.

The verdicts are the same as for each row, for a fraction of the work. Values are judged in frames of at most
:data:`BATCH_ROWS` values, so memory stays bounded. Keys are counted over each file and day. Of rows that are equal in all
columns, one is kept and the others are quarantined as repeats. Rows that share a key and differ are all quarantined, since
it is unknown which of them is right. A second row of a key in a later file, on a later day, or of the same event and known
from another moment on, is a correction and is kept.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import great_expectations as gx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig
from great_expectations.expectations.core.expect_column_values_to_be_null import ExpectColumnValuesToBeNull
from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull

from perennial.core.sql import literal, quoted
from perennial.core.streams import ahead
from perennial.core.text import visible
from perennial.ingestion.casting import ARRIVED, KNOWN_FAULT, ROW, ROW_FAULT
from perennial.ingestion.delimited import POSITION
from perennial.ingestion.suite import BROKEN, COPIES, UNTOLD, Check, CheckTally, row_checks, unreadable
from perennial.lake.schema import KNOWN, MOMENT, published_schema
from perennial.spec.data import Table

#: Number of values per column that Great Expectations judges at a time, and of rows that are written at a time.
BATCH_ROWS = 100_000
#: Number of examples that a message gives.
SHOWN = 5


# --- the judge -------------------------------------------------------------------------------------------------------


def judge(
    frame: pd.DataFrame, tallies: Sequence[CheckTally]
) -> Iterator[tuple[CheckTally, Mapping[str, Any], list[tuple[int, Any]]]]:
    """Let Great Expectations judge a frame.

    Args:
        frame: what the checks look at, and ``_row``.
        tallies: of the checks. One that could not be judged gets its ``broken``.

    Yields:
        Per check its tally, Great Expectations' result, and the ``_row`` and the value of each failure.
    """
    # One context per frame, since a context keeps every frame that it is given.
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
    """A configuration without analytics, progress bars and documentation site."""
    return DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )


def _identity(configuration: Any) -> tuple[str, str]:
    return configuration.type, str(configuration.kwargs.get("column"))


def _name(check: Check) -> str:
    return f"{check.expectation.configuration.type} of {check.looks_at or 'the table'}"


def _raised(info: Mapping[str, Any]) -> str:
    each = [info] if "raised_exception" in info else list(info.values())
    return "; ".join(str(one.get("exception_message")) for one in each if one.get("raised_exception")) or "it does not hold"


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedRows:
    """The rows of an interval after they were judged.

    Attributes:
        count: number of rows.
        bad: number of rows that fail a critical check.
        replaced: number of good rows that a later file repeats or corrects.
        tallies: what each check found.
        good: Parquet file of the other rows.
    """

    count: int
    bad: int
    replaced: int
    tallies: list[CheckTally]
    good: Path


def _of_one_delivery(table: Table) -> str:
    """SQL that is the same for rows of one key of which none corrects another.

    They are of one file and day, and became known together or are of different events.
    """
    if table.event_time is None or table.duplicates == "refuse":
        return "true"
    event, day = quoted(table.event_time), f"date_trunc('day', {quoted(table.event_time)})"
    of_a_key = f"OVER (PARTITION BY {', '.join(map(quoted, table.key))}, {ARRIVED}, {day})"
    return f"({ARRIVED}, {day}, CASE WHEN min({event}) {of_a_key} = max({event}) {of_a_key} THEN {KNOWN} END)"


def _share_keys(connection: duckdb.DuckDBPyConnection, table: Table, published: pa.Table | None) -> None:
    """Make the table ``shared``, the rows that must not have their key, and the view ``counted``, all rows with their counts.

    Keys are counted over each file and day. A batch of rows alone would not show a repeated key.
    """
    keys = ", ".join(map(quoted, table.key))
    delivery = _of_one_delivery(table)
    given = " AND ".join(f"{quoted(key)} IS NOT NULL" for key in table.key)
    text = "concat_ws(', ', " + ", ".join(f"left({quoted(key)}::VARCHAR, 60)" for key in table.key) + ")"
    # Hashes are compared first. They take a tenth of the memory of all keys, and leave only few rows to look at.
    connection.execute(f"""
        CREATE TEMP TABLE shared AS
        WITH suspected AS (
            SELECT hash({keys}) AS _hash FROM typed WHERE {given} GROUP BY _hash HAVING count(*) > 1
        ), suspects AS (
            SELECT *, {delivery} AS _delivery FROM typed SEMI JOIN suspected ON hash({keys}) = _hash WHERE {given}
        ), counted AS (
            SELECT {keys}, _delivery AS _shared, count(*) AS _n,
                min({ROW}) AS _first, arg_min({POSITION}, {ROW}) AS _first_position,
                min(hash({", ".join(map(quoted, table.columns))})) = max(hash({", ".join(map(quoted, table.columns))})) AS _same
            FROM suspects GROUP BY {keys}, _shared HAVING count(*) > 1
        )
        SELECT {ROW}, _n, CASE WHEN _same THEN 'key: the row repeats ' || _first_position
            ELSE 'key: ' || _n || ' rows are ' || {text} || ', and they differ' END AS _why
        FROM suspects JOIN counted USING ({keys})
        WHERE _delivery IS NOT DISTINCT FROM _shared AND NOT (_same AND {ROW} = _first)
    """)
    if published is not None:
        connection.register("published", published)
        connection.execute(f"""
            INSERT INTO shared
            SELECT {ROW}, 2, 'key: ' || {text} || ' was published already (duplicates: refuse)' FROM typed
            SEMI JOIN published USING ({keys}) ANTI JOIN shared USING ({ROW})
        """)
    connection.execute(
        f"CREATE VIEW counted AS SELECT {ROW}, coalesce(_n, 1) AS _n, _why FROM typed LEFT JOIN shared USING ({ROW})"
    )


def judge_rows(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    typed: Path,
    good: Path,
    bad: Path,
    *,
    published: pa.Table | None = None,
) -> JudgedRows:
    """Split the rows into those to publish and those to quarantine.

    Args:
        connection: a database in which ``typed`` and other tables may be created.
        table: the table's spec.
        typed: Parquet file of the cast rows.
        good: Parquet file to write the rows to publish to. It is not written if all rows are good.
        bad: Parquet file to write the numbers and reasons of the other rows to.
        published: keys that other days have and no row may have; None where a second row of a key is a correction.
    """
    tallies = [CheckTally(check) for check in row_checks(table)]
    connection.execute(f"CREATE VIEW typed AS SELECT * FROM read_parquet({literal(str(typed))})")
    connection.execute(f"CREATE TEMP TABLE failed ({ROW} BIGINT, number INTEGER, shown VARCHAR, reason VARCHAR)")
    _share_keys(connection, table, published)
    _judge_values(connection, table, tallies)
    [(count,)] = connection.execute("SELECT count(*) FROM typed").fetchall()
    bad_rows = _write_bad(connection, table, tallies, bad)
    replaced = _replaced(connection, table, bad_rows)
    dropped = np.union1d(bad_rows, replaced)
    if not len(dropped):
        return JudgedRows(count, 0, 0, tallies, typed)
    schema = published_schema(table)
    with (
        pq.ParquetFile(typed) as file,
        pq.ParquetWriter(good, schema, compression="lz4") as writer,
        closing(ahead(file.iter_batches(BATCH_ROWS, columns=[ROW, *schema.names]))) as batches,
    ):
        for batch in batches:
            is_dropped = np.isin(batch.column(ROW).to_numpy(), dropped, assume_unique=True)
            kept = batch.filter(pa.array(~is_dropped)) if is_dropped.any() else batch
            writer.write_batch(kept.select(schema.names).cast(schema))
    return JudgedRows(count, len(bad_rows), len(replaced), tallies, good)


def _replaced(connection: duckdb.DuckDBPyConnection, table: Table, bad_rows: Any) -> Any:
    """Numbers of the good rows that a later file repeats or corrects for the same day and the same moment of knowing.

    No moment is left at which they would be the newest. A pushed row is as a file of its own; what comes from a database, which
    does not say when, counts as older.
    """
    if table.event_time is None or table.duplicates == "refuse":
        return np.empty(0, np.int64)
    keys = ", ".join(map(quoted, table.key))
    connection.register("bad_rows", pa.table({ROW: pa.array(bad_rows, pa.int64())}))
    found = connection.sql(f"""
        WITH several AS (
            SELECT hash({keys}) AS _hash FROM typed GROUP BY _hash
            HAVING count(DISTINCT {ARRIVED}) + count_if({ARRIVED} IS NULL) > 1
        )
        SELECT {ROW} FROM typed SEMI JOIN several ON hash({keys}) = _hash ANTI JOIN bad_rows USING ({ROW})
        QUALIFY row_number() OVER (
            PARTITION BY {keys}, {KNOWN}, date_trunc('day', {quoted(table.event_time)}) ORDER BY {ARRIVED} DESC NULLS LAST
        ) > 1
    """).to_arrow_table()
    return found.column(ROW).to_numpy()


@dataclass(frozen=True)
class _Looked:
    """Values that some checks look at.

    Attributes:
        relation: the table that holds them and ``_row``.
        column: their column in it, as SQL.
        numbers: the checks' numbers in the order of the suite.
        null_alone: whether the checks only ask whether a value is present.
    """

    relation: str
    column: str
    numbers: list[int]
    null_alone: bool

    def group(self, value: str) -> str:
        """SQL to group rows by, so that all rows of a group get the same verdict."""
        return f"({value} IS NULL)" if self.null_alone else value


def _looked(table: Table, tallies: Sequence[CheckTally]) -> dict[str, _Looked]:
    """What the checks look at, by its column name in Great Expectations."""
    columns = {BROKEN: ROW_FAULT, UNTOLD: KNOWN_FAULT, COPIES: "_n"}
    columns |= {unreadable(name): f"_fault_{name}" for name in table.columns}
    found = {}
    # All columns are included, since one check asks whether they exist.
    for name in dict.fromkeys([*table.columns, *(tally.check.looks_at for tally in tallies if tally.check.looks_at)]):
        numbers = [number for number, tally in enumerate(tallies) if tally.check.looks_at == name]
        null_alone = all(isinstance(tallies[number].check.expectation, ExpectColumnValuesToNotBeNull) for number in numbers)
        column = quoted(columns.get(name, name))
        found[name] = _Looked("counted" if name == COPIES else "typed", column, numbers, null_alone)
    return found


def _judge_values(connection: duckdb.DuckDBPyConnection, table: Table, tallies: Sequence[CheckTally]) -> None:
    """Fill the table ``failed``: each row with the numbers of the checks that it fails.

    The verdict of a row check depends on one value only. So each distinct value is judged once, and a join finds its rows.
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
            if offset:  # Great Expectations leaves large objects in reference cycles
                gc.collect()
        # A column that gave fewer values has no more.
        left = {name: left[name] for name, chunk in chunks.items() if len(chunk) == BATCH_ROWS}
        offset, first = offset + BATCH_ROWS, []


def _judge_chunks(
    connection: duckdb.DuckDBPyConnection,
    tallies: Sequence[CheckTally],
    chunks: Mapping[str, pa.Table],
    looked: Mapping[str, _Looked],
    others: Sequence[int],
) -> None:
    """Judge values of several columns in one frame.

    Args:
        connection: has the table ``failed``.
        tallies: of all checks.
        chunks: by column, values and the number of rows that have each.
        looked: by column, the checks that look at it.
        others: numbers of checks that look at no column, to be judged in the same frame.
    """
    longest = max(map(len, chunks.values()))
    # A column that has fewer values repeats its last one.
    padded = {name: chunk["value"].take(np.minimum(np.arange(longest), len(chunk) - 1)) for name, chunk in chunks.items()}
    # Nullable integers: as floats, large identifiers would change.
    frame = pa.table(padded).to_pandas(
        types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get, date_as_object=True
    )
    frame[ROW] = np.arange(longest)
    numbers = sorted([*others, *(number for one in looked.values() for number in one.numbers)])
    for number, (tally, result, failing) in zip(numbers, judge(frame, [tallies[n] for n in numbers]), strict=True):
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
    tally: CheckTally,
    chunk: pa.Table,
    failing: Sequence[tuple[int, Any]],
) -> None:
    """Insert every row that has one of the failing values into ``failed``."""
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


def _write_bad(connection: duckdb.DuckDBPyConnection, table: Table, tallies: Sequence[CheckTally], bad: Path) -> Any:
    """Write the rows that fail a critical check, each with all its reasons, and return their numbers.

    The tallies get the counts and examples.
    """
    schema = pa.schema([(ROW, pa.int64()), ("reasons", pa.list_(pa.string())), ("event", MOMENT)])
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


def _reasons(tallies: Sequence[CheckTally], position: str, failed: Sequence[tuple[int, str, str]]) -> list[str]:
    """Every critical reason of a row. The tallies get its counts and examples.

    Args:
        tallies: of all checks.
        position: of the row.
        failed: the checks that the row fails, in the order of the suite: number, value, and what is wrong with the value.
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
