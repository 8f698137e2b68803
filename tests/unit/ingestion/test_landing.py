"""Batches of any schema become one landed file, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.intervals import Interval
from tests.unit.landing import (
    HEADER,
    ingest,
    rejects,
    row,
    trips,
    typed,
    write,
    write_parquet,
)


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

    assert "passenger" not in pq.read_schema(done.landed.path).names
    assert "Lovelace" not in done.quarantined[0]["row"]


def test_a_large_file_goes_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.ingestion.delimited.CHUNK", 4096)
    monkeypatch.setattr("perennial.ingestion.landing.GROUP_BYTES", 4096)
    write(tmp_path, HEADER + "".join(row(str(n)) for n in range(2000)))

    done = ingest(trips(tmp_path), tmp_path)

    assert done.column("id") == [str(n) for n in range(2000)]
    assert pq.ParquetFile(done.landed.path).num_row_groups > 10


def test_small_files_are_landed_together(tmp_path: Path) -> None:
    for day in range(1, 8):
        write(tmp_path, HEADER + row(str(day), begun=f"2013-04-0{day}T06:00:00Z"), f"trips/2013-04-0{day}.csv")

    done = ingest(trips(tmp_path), tmp_path, Interval.of("2013-04-01", "2013-04-08"))

    assert done.column("id") == [str(day) for day in range(1, 8)]
    assert pq.ParquetFile(done.landed.path).num_row_groups == 1


def test_files_whose_types_differ_are_read_as_the_wider(tmp_path: Path) -> None:
    write_parquet(tmp_path, typed(n=pa.array([1], pa.int32()), x=pa.nulls(1)), "trips/1.parquet")
    write_parquet(tmp_path, typed(id=["b"], n=pa.array([2**40], pa.int64()), x=pa.array([0.25])), "trips/2.parquet")

    done = ingest(trips(tmp_path, source={"files": "trips/*.parquet"}), tmp_path)

    assert done.column("n") == [1, 2**40]
    assert done.column("x") == [None, 0.25]


def test_files_whose_types_contradict_are_rejected(tmp_path: Path) -> None:
    write_parquet(tmp_path, typed(n=["1"]), "trips/1.parquet")
    write_parquet(tmp_path, typed(id=["b"], n=[2]), "trips/2.parquet")

    rejects(
        tmp_path, "trips/2.parquet: a column has one type in some rows and another in others",
        source={"files": "trips/*.parquet"},
    )  # fmt: skip
