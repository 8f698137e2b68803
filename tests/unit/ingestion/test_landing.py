"""Batches of any schema become one landed file, in bounded memory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.intervals import Interval
from tests.unit.landing import (
    HEADER,
    PARQUET,
    ingest,
    rejects,
    row,
    trips,
    typed,
    write,
    write_parquet,
)

WEEK = Interval.of("2013-04-01", "2013-04-08")


def test_files_may_order_and_case_their_columns_each_in_its_way(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a"), "trips/1.csv")
    write(tmp_path, "X,N,PLACE,MORE,BEGUN,ID\n0.5,2,LGA,?,2013-04-01T06:00:00Z,b\n", "trips/2.csv")

    done = ingest(trips(tmp_path, source={"files": "trips/*.csv"}), tmp_path)

    assert [(kept["id"], kept["place"], kept["n"]) for kept in done.published] == [("a", "EWR", 1), ("b", "LGA", 2)]


def test_a_file_that_lacks_a_column_is_named_among_several(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a"), "trips/1.csv")
    write(tmp_path, "id,begun,n,x\nb,2013-04-01T06:00:00Z,1,1\n", "trips/2.csv")

    rejects(tmp_path, "trips/2.csv:1: there is no column place", source={"files": "trips/*.csv"})


def test_only_columns_that_the_table_names_are_kept(tmp_path: Path) -> None:
    write(tmp_path, "passenger," + HEADER + "Ada Lovelace," + row(n="no"))

    done = ingest(trips(tmp_path, table={"tolerance": 1.0}), tmp_path)

    assert "passenger" not in pq.read_schema(done.landed.paths[0]).names
    assert "Lovelace" not in done.quarantined[0]["row"]


def test_a_large_file_goes_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.ingestion.delimited.CHUNK", 4096)
    monkeypatch.setattr("perennial.ingestion.landing.GROUP_BYTES", 4096)
    write(tmp_path, HEADER + "".join(row(str(n)) for n in range(2000)))

    done = ingest(trips(tmp_path), tmp_path)

    assert done.column("id") == [str(n) for n in range(2000)]
    assert pq.ParquetFile(done.landed.paths[0]).num_row_groups > 10


def test_small_files_are_landed_together(tmp_path: Path) -> None:
    for day in range(1, 8):
        write(tmp_path, HEADER + row(str(day), begun=f"2013-04-0{day}T06:00:00Z"), f"trips/2013-04-0{day}.csv")

    done = ingest(trips(tmp_path), tmp_path, Interval.of("2013-04-01", "2013-04-08"))

    assert done.column("id") == [str(day) for day in range(1, 8)]
    assert pq.ParquetFile(done.landed.paths[0]).num_row_groups == 1


def test_files_whose_types_differ_are_read_as_the_wider(tmp_path: Path) -> None:
    write_parquet(tmp_path, typed(n=pa.array([1], pa.int32()), x=pa.nulls(1)), "trips/1.parquet")
    write_parquet(tmp_path, typed(id=["b"], n=pa.array([2**40], pa.int64()), x=pa.array([0.25])), "trips/2.parquet")

    done = ingest(trips(tmp_path, source={"files": "trips/*.parquet"}), tmp_path)

    assert done.column("n") == [1, 2**40]
    assert done.column("x") == [None, 0.25]


def test_files_of_a_range_are_each_cast_by_their_own_types(tmp_path: Path) -> None:
    shapes = [
        typed(n=["1"]),
        typed(n=pa.array([2**53 + 1], pa.int64())),
        typed(n=[3.0]),
        typed(n=[True]),
        typed(n=pa.nulls(1)),
        typed(n=pa.array([2**53 + 3], pa.int64())),
        typed(n=["no"]),
    ]
    for day, shape in enumerate(shapes, start=1):
        begun = pa.array([datetime(2013, 4, day, 6, tzinfo=UTC)], pa.timestamp("us", "UTC"))
        shape = shape.set_column(0, "id", [[f"r{day}"]]).set_column(1, "begun", begun)
        write_parquet(tmp_path, shape, f"trips/2013-04-0{day}.parquet")
    folder = trips(tmp_path, source=PARQUET)

    at_once = ingest(folder, tmp_path, WEEK)
    one_by_one = [ingest(folder, tmp_path, day) for day in WEEK.days()]

    n = {row["id"]: row["n"] for row in at_once.published}
    assert n == {"r1": 1, "r2": 2**53 + 1, "r3": 3, "r4": 1, "r5": None, "r6": 2**53 + 3}
    assert n == {row["id"]: row["n"] for day in one_by_one for row in day.published}
    assert at_once.faults == {"trips/2013-04-07.parquet:1": ["n: 'no' is not a plain whole number"]}
    assert '"n":"no"' in at_once.quarantined[0]["row"]


# --- columns that a file lacks ---------------------------------------------------------------------------------------


def test_a_nullable_column_that_older_files_lack_is_null_there(tmp_path: Path) -> None:
    write(tmp_path, "id,begun,place\na,2013-04-01T06:00:00Z,EWR\n", "trips/2013-04-01.csv")
    write(tmp_path, HEADER + row("b", begun="2013-04-02T06:00:00Z", n="7"), "trips/2013-04-02.csv")

    done = ingest(trips(tmp_path), tmp_path, Interval.of("2013-04-01", "2013-04-03"))

    assert [(kept["id"], kept["n"], kept["x"]) for kept in done.published] == [("a", None, None), ("b", 7, 0.5)]
    assert done.result.warnings == [
        "trips/2013-04-01.csv:1: there is no column n, so it is NULL there",
        "trips/2013-04-01.csv:1: there is no column x, so it is NULL there",
    ]


def test_many_files_that_lack_a_column_are_told_in_one_line(tmp_path: Path) -> None:
    for day in range(1, 8):
        write(tmp_path, f"id,begun,place,channels\n{day},2013-04-0{day}T06:00:00Z,EWR,1\n", f"trips/2013-04-0{day}.csv")

    done = ingest(trips(tmp_path, columns={"channel": {"type": "string", "nullable": True}}), tmp_path, WEEK)

    assert done.result.warnings[2:] == [
        "trips/2013-04-01.csv:1 and 6 more: there is no column channel, so it is NULL there; is it now called channels?"
    ]


def test_an_expression_of_a_nullable_column_sees_null_where_the_file_lacks_a_column(tmp_path: Path) -> None:
    write(tmp_path, "id,begun,place\na,2013-04-01T06:00:00Z,EWR\n")
    columns = {"n": {"type": "integer", "nullable": True, "sql": "coalesce(n::INT, -1) * 2"}}

    done = ingest(trips(tmp_path, columns=columns), tmp_path)

    assert done.column("n") == [-2]
    assert "there is no column n, so it is NULL there" in done.result.warnings[1]


@pytest.mark.parametrize("column", ["id", "begun", "place"])
def test_a_column_that_each_row_needs_may_not_be_lacking(column: str, tmp_path: Path) -> None:
    names = [name for name in ("id", "begun", "place", "n", "x") if name != column]
    write(tmp_path, ",".join(names) + "\n" + "1,1,1,1\n")
    nullable = {"id": {"type": "string", "nullable": True}} if column == "id" else {}

    rejects(tmp_path, f"trips/2013-04-01.csv:1: there is no column {column}; there are: ", columns=nullable)


# --- columns with several names --------------------------------------------------------------------------------------

RENAMED = {"n": {"type": "integer", "from": ["quantity", "n"]}}


def test_a_column_is_read_under_each_of_its_names(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", n="1"), "trips/2013-04-01.csv")
    second = row("b", begun="2013-04-02T06:00:00Z", n="2")
    write(tmp_path, HEADER.replace("n,x", "Quantity,x") + second, "trips/2013-04-02.csv")

    done = ingest(trips(tmp_path, columns=RENAMED), tmp_path, Interval.of("2013-04-01", "2013-04-03"))

    assert done.column("n") == [1, 2]
    assert done.result.warnings == []


def test_two_columns_for_one_are_rejected(tmp_path: Path) -> None:
    write(tmp_path, "id,begun,place,n,x,quantity\na,2013-04-01T06:00:00Z,EWR,1,1,2\n")

    rejects(tmp_path, "has the columns quantity and n, but n is read from one of them (`from: [quantity, n]`)", columns=RENAMED)


def test_columns_that_differ_only_in_case_are_rejected(tmp_path: Path) -> None:
    write_parquet(tmp_path, typed().append_column("N", pa.array([9])))

    message = "trips/2013-04-01.parquet: its columns: 'n' and 'N' differ only in case; rename one of them"
    rejects(tmp_path, message, source=PARQUET)


def test_none_of_a_columns_names_is_rejected_or_null_as_the_column_says(tmp_path: Path) -> None:
    write(tmp_path, "id,begun,place,x\na,2013-04-01T06:00:00Z,EWR,1\n")

    rejects(tmp_path, "there is no column quantity or n; there are: ", columns=RENAMED)
    done = ingest(trips(tmp_path, columns={"n": {**RENAMED["n"], "nullable": True}}), tmp_path)
    assert done.column("n") == [None]


def test_coalesce_takes_what_the_file_has(tmp_path: Path) -> None:
    columns = {"n": {"type": "integer", "sql": "coalesce(quantity, n)"}}
    write(tmp_path, HEADER + row("a", n="1"), "trips/2013-04-01.csv")
    write(tmp_path, HEADER.replace(",n,", ",quantity,") + row("b", begun="2013-04-02T06:00:00Z", n="2"), "trips/2013-04-02.csv")

    done = ingest(trips(tmp_path, columns=columns), tmp_path, Interval.of("2013-04-01", "2013-04-03"))

    assert done.column("n") == [1, 2]
    assert done.result.warnings == []


@pytest.mark.parametrize("sql", ["coalesce(quantity, units)", "coalesce(quantity, '0')", "coalesce(quantity, n) || quantity"])
def test_coalesce_makes_up_nothing_that_the_file_does_not_have(sql: str, tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())

    rejects(tmp_path, "there is no column quantity; there are: ", columns={"n": {"type": "integer", "sql": sql}})


# --- columns without values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["string", "boolean", "timestamp", "date", "integer", "float"])
@pytest.mark.parametrize("empty", ["DOUBLE of NaN", "a list"])
def test_a_nullable_column_without_a_value_fits_any_type(kind: str, empty: str, tmp_path: Path) -> None:
    values = pa.array([np.nan, None]) if empty == "DOUBLE of NaN" else pa.nulls(2, pa.list_(pa.int64()))
    write_parquet(tmp_path, typed(begun=[datetime(2013, 4, 1, 6, tzinfo=UTC)] * 2, m=values))

    done = ingest(trips(tmp_path, source=PARQUET, columns={"m": {"type": kind, "nullable": True}}), tmp_path)

    assert done.column("m") == [None, None]


def test_values_of_an_unfit_type_are_rejected_wherever_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.ingestion.files.ARROW_ROWS", 2)
    write_parquet(tmp_path, typed(m=[np.nan, np.nan, np.nan, 1.0]))

    rejects(
        tmp_path, "m has the type DOUBLE, which cannot become string without a decision; write it as `sql` at",
        source=PARQUET, columns={"m": {"type": "string", "nullable": True}},
    )  # fmt: skip


@pytest.mark.parametrize("sql", ["m::VARCHAR", "upper(m)", "concat(m)", "nullif(m || '', '')"])
def test_nan_never_becomes_a_text(sql: str, tmp_path: Path) -> None:
    write_parquet(tmp_path, typed(m=[np.nan, None]))

    done = ingest(trips(tmp_path, source=PARQUET, columns={"m": {"type": "string", "nullable": True, "sql": sql}}), tmp_path)

    assert {value or None for value in done.column("m")} == {None}
