"""Sources give an interval's raw rows: the right files, the right rows, with their positions, or a clear error."""

from __future__ import annotations

import decimal
import hashlib
import io
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.errors import SourceError, SpecError
from perennial.core.intervals import Interval
from perennial.ingestion import casting, landing, queries
from perennial.ingestion.sources import land
from perennial.spec.code import folder_function
from tests.unit.landing import COLUMNS, DAY, HEADER, ingest, no_connection, row, sqlite, trips, write

WEEK = Interval.of("2013-04-01", "2013-04-08")


def at(hour: int, day: int = 1) -> str:
    return f"2013-04-{day:02}T{hour:02}:00:00Z"


def rejects(
    path: Path, error: type[Exception], message: str, interval: Interval = DAY, *, connect: Any = no_connection, **model: Any
) -> None:
    with pytest.raises(error) as raised:
        land(trips(path, **model), "trips", DAY, path / "staging", data=path / "data", connect=connect)
    assert message in str(raised.value)
    assert list((path / "staging").iterdir()) == []


# --- which files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "interval", "names"),
    [
        ("%Y.csv", Interval.of("2012-12-31", "2013-01-02"), ["2012.csv", "2013.csv"]),
        ("%Y/%m.csv", Interval.of("2012-12-15", "2013-02-01"), ["2012/12.csv", "2013/01.csv"]),
        ("%Y-%m-%d.csv", Interval.of("2013-02-28", "2013-03-02"), ["2013-02-28.csv", "2013-03-01.csv"]),
        ("%d-%H.csv", Interval.of("2013-04-01T22:30:00Z", "2013-04-02T00:00:01Z"), ["01-22.csv", "01-23.csv", "02-00.csv"]),
        ("%Y/%m/%d/part-?.csv", Interval.day("2013-04-01"), ["2013/04/01/part-1.csv", "2013/04/01/part-2.csv"]),
        ("100%25 [a].csv", Interval.day("2013-04-01"), ["100%25 [a].csv"]),
    ],
    ids=["years", "months", "days", "hours", "several a day", "no codes"],
)  # fmt: skip
def test_a_pattern_means_a_file_for_each_step_of_its_smallest_code(
    pattern: str, interval: Interval, names: list[str], tmp_path: Path
) -> None:
    for n, name in enumerate(names):
        write(tmp_path, HEADER + row(str(n)), name)
    write(tmp_path, HEADER + row("x"), "1999-01-01.csv")

    folder = trips(tmp_path, source={"files": pattern})
    landed = land(folder, "trips", interval, tmp_path / "out", data=tmp_path / "data", connect=no_connection)

    assert [file["name"] for file in landed.files] == names
    assert landed.rows == len(names)


def test_what_was_read_is_recorded_as_it_is_stored(tmp_path: Path) -> None:
    content = (HEADER + row()).encode()
    write(tmp_path, content)

    landed = ingest(trips(tmp_path), tmp_path).landed

    digest = hashlib.sha256(content).hexdigest()
    assert landed.files == [{"name": "trips/2013-04-01.csv", "bytes": len(content), "sha256": digest, "period": "2013-04-01"}]


def test_days_of_a_week_hold_the_same_rows_one_by_one_or_at_once(tmp_path: Path) -> None:
    folder = trips(tmp_path)
    for day in range(1, 8):
        # The last row of each file is of the day after.
        content = row(f"{day}a", at(0, day)) + row(f"{day}b", at(23, day)) + row(f"{day}c", at(0, day + 1))
        write(tmp_path, HEADER + content, f"trips/2013-04-0{day}.csv")

    at_once = ingest(folder, tmp_path, WEEK)
    one_by_one = [ingest(folder, tmp_path, day) for day in WEEK.days()]

    assert at_once.published == [kept for day in one_by_one for kept in day.published]
    assert at_once.faults == {position: why for day in one_by_one for position, why in day.faults.items()}
    assert len(at_once.published) == 14
    assert len(at_once.quarantined) == 7


def test_a_part_of_a_files_period_takes_its_own_rows_alone(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", at(5)) + row("b", at(6)) + row("c", at(11)) + row("d", at(12)) + row("e", ""))

    done = ingest(
        trips(tmp_path), tmp_path, Interval.of(datetime(2013, 4, 1, 6, tzinfo=UTC), datetime(2013, 4, 1, 12, tzinfo=UTC))
    )

    assert done.column("id") == ["b", "c"]
    # It may be of this part as well as of any other.
    assert done.faults == {"trips/2013-04-01.csv:6": ["begun: missing"]}


def test_a_pattern_without_dates_gives_the_rows_of_the_interval(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", at(0, 1)) + row("b", at(0, 2)) + row("c", at(0, 3)), "trips/all.csv")
    write(tmp_path, HEADER + row("d", at(23, 2)) + row("e", "soon"), "trips/more.csv")

    done = ingest(trips(tmp_path, source={"files": "trips/*.csv"}), tmp_path, Interval.day("2013-04-02"))

    assert done.column("id") == ["b", "d"]
    assert list(done.faults) == ["trips/more.csv:3"]
    assert done.result.rows_in == 3


def test_files_may_order_and_case_their_columns_each_in_its_way(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a"), "trips/1.csv")
    write(tmp_path, "X,N,PLACE,MORE,BEGUN,ID\n0.5,2,LGA,?,2013-04-01T06:00:00Z,b\n", "trips/2.csv")

    done = ingest(trips(tmp_path, source={"files": "trips/*.csv"}), tmp_path)

    assert [(kept["id"], kept["place"], kept["n"]) for kept in done.published] == [("a", "EWR", 1), ("b", "LGA", 2)]


def test_a_file_that_lacks_a_column_is_named_among_several(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a"), "trips/1.csv")
    write(tmp_path, "id,begun,n,x\nb,2013-04-01T06:00:00Z,1,1\n", "trips/2.csv")

    rejects(tmp_path, SourceError, "trips/2.csv:1: there is no column place", source={"files": "trips/*.csv"})


def test_only_columns_that_the_table_names_are_kept(tmp_path: Path) -> None:
    write(tmp_path, "passenger," + HEADER + "Ada Lovelace," + row(n="no"))

    done = ingest(trips(tmp_path, table={"tolerance": 1.0}), tmp_path)

    assert "passenger" not in pq.read_schema(done.landed.path).names
    assert "Lovelace" not in done.quarantined[0]["row"]


def test_an_attempt_leaves_what_others_landed(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())
    folder = trips(tmp_path)

    first = ingest(folder, tmp_path).landed
    second = ingest(folder, tmp_path).landed

    assert first.path != second.path
    assert first.path.exists()
    assert {path.name for path in (tmp_path / "staging").glob("*.landed.parquet")} == {first.path.name, second.path.name}


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


# --- other file systems ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_any_fsspec_address_is_read(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/bucket/2013-04-01.csv", (HEADER + row()).encode())
    memory.pipe("/bucket/2013-04-02.csv", (HEADER + row("b", at(6, 2))).encode())

    done = ingest(
        trips(tmp_path, source={"files": "memory://bucket/%Y-%m-%d.csv"}), tmp_path, Interval.of("2013-04-01", "2013-04-03")
    )

    assert done.column("id") == ["a", "b"]
    assert [file["name"] for file in done.landed.files] == [
        "memory:///bucket/2013-04-01.csv", "memory:///bucket/2013-04-02.csv",
    ]  # fmt: skip


def test_remote_parquet_and_patterns_are_read(tmp_path: Path, memory: Any) -> None:
    stream = io.BytesIO()
    pq.write_table(typed(), stream)
    memory.pipe("/bucket/one.parquet", stream.getvalue())

    done = ingest(trips(tmp_path, source={"files": "memory://bucket/*.parquet"}), tmp_path)

    assert done.column("begun") == [datetime(2013, 4, 1, 6, tzinfo=UTC)]
    assert done.landed.files[0]["sha256"] == hashlib.sha256(stream.getvalue()).hexdigest()


def test_a_remote_file_that_is_missing_is_rejected(tmp_path: Path, memory: Any) -> None:
    rejects(
        tmp_path, SourceError, "memory://bucket/2013-04-01.csv: there is no such file, as `files: memory://bucket/%Y-%m-%d.csv`",
        source={"files": "memory://bucket/%Y-%m-%d.csv"},
    )  # fmt: skip


def test_a_remote_file_that_changes_while_it_is_read_is_rejected(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/bucket/all.csv", (HEADER + row()).encode())
    bind = casting.bind

    def replace_and_bind(*arguments: Any) -> Any:
        memory.pipe("/bucket/all.csv", (HEADER + row() + row("b")).encode())
        return bind(*arguments)

    monkeypatch.setattr(landing, "bind", replace_and_bind)

    rejects(tmp_path, SourceError, "changed while it was read", source={"files": "memory://bucket/all.csv"})


def test_an_address_without_its_file_system_is_rejected_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as raised:
        ingest(trips(tmp_path, source={"files": "nosuch://user:secret@host/%Y.csv"}), tmp_path)

    assert "nosuch://***@host/2013.csv: no file system for this address" in str(raised.value)
    assert "secret" not in str(raised.value)


# --- Parquet ---------------------------------------------------------------------------------------------------------


def typed(**columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values()))) if columns else 1
    given = {
        "id": [f"r{n}" for n in range(rows)],
        "begun": pa.array([datetime(2013, 4, 1, 6, tzinfo=UTC)] * rows, pa.timestamp("us", "UTC")),
        "place": ["EWR"] * rows,
        "n": pa.array([1] * rows, pa.int64()),
        "x": [0.5] * rows,
    }
    return pa.table({**given, **columns})


PARQUET = {"files": "trips/%Y-%m-%d.parquet"}


def write_parquet(path: Path, table: pa.Table, name: str = "trips/2013-04-01.parquet") -> None:
    (path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path / "data" / name)


TYPED: dict[str, tuple[dict[str, Any], str, list[Any], list[str]]] = {
    "integers": ({"n": pa.array([1, None], pa.int32())}, "n", [1, None], []),
    "unsigned beyond 63 bit": (
        {"n": pa.array([1, 2**63], pa.uint64())}, "n", [1],
        ["n: 9223372036854775808 is too large to be an exact 64-bit integer"],
    ),
    "integers as floats, for nulls": ({"n": pa.array([1.0, None, np.nan])}, "n", [1, None, None], []),
    "floats as integers": (
        {"n": [1.5, 2.0**53 + 2, np.inf, 3.0]}, "n", [3],
        [
            "n: 1.5 is not a plain whole number",
            "n: 9007199254740994.0 is too large to be an exact 64-bit integer",
            "n: inf is too large to be an exact 64-bit integer",
        ],
    ),
    "floats": ({"x": [1.0, np.nan, np.inf]}, "x", [1.0, None], ["x: inf is not a plain finite number"]),
    "decimals": ({"x": [decimal.Decimal("1.25")], "n": [decimal.Decimal("7.00")]}, "x", [1.25], []),
    "a dictionary": ({"place": pa.array(["EWR", "EWR"]).dictionary_encode()}, "place", ["EWR", "EWR"], []),
    "large texts": ({"place": pa.array(["EWR"], pa.large_string())}, "place", ["EWR"], []),
    "nanoseconds": (
        {"begun": pa.array([1364796000_123456789], pa.timestamp("ns", "America/New_York"))}, "begun",
        [datetime(2013, 4, 1, 6, 0, 0, 123456, tzinfo=UTC)], [],
    ),
    "a time without a zone": (
        {"begun": pa.array([datetime(2013, 4, 1, 6)], pa.timestamp("ms"))}, "begun", [datetime(2013, 4, 1, 6, tzinfo=UTC)], [],  # noqa: DTZ001
    ),
    "days": ({"begun": [date(2013, 4, 1)]}, "begun", [datetime(2013, 4, 1, tzinfo=UTC)], []),
    "whole numbers as texts": ({"place": pa.array([7], pa.int64())}, "place", ["7"], []),
    "nothing": ({"n": pa.nulls(1)}, "n", [None], []),
}  # fmt: skip


@pytest.mark.parametrize("case", TYPED)
def test_typed_values_become_the_specs_types_where_nothing_is_lost(case: str, tmp_path: Path) -> None:
    columns, name, wanted, reasons = TYPED[case]
    write_parquet(tmp_path, typed(**columns))

    done = ingest(trips(tmp_path, source=PARQUET), tmp_path)

    assert done.column(name) == wanted
    assert [why for kept in done.quarantined for why in kept["reasons"]] == reasons


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"place": [1.0]}, "place is a DOUBLE cannot become the type string without a decision; write it as `sql` at"),
        ({"n": [[1]]}, "n is a BIGINT[] cannot become the type integer"),
        ({"begun": [1364796000]}, "begun is a BIGINT cannot become the type timestamp"),
        ({"place": [b"\xff"]}, "place is a BLOB cannot become the type string"),
    ],
    ids=["float as text", "list", "seconds since 1970", "bytes"],
)
def test_a_type_that_could_be_read_in_several_ways_is_rejected(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_parquet(tmp_path, typed(**columns))

    rejects(tmp_path, SourceError, message, source=PARQUET)


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
        tmp_path, SourceError, "trips/2.parquet: a column has one type in some rows and another in others",
        source={"files": "trips/*.parquet"},
    )  # fmt: skip


# --- expressions of the spec -----------------------------------------------------------------------------------------


def test_an_expression_that_fails_on_a_row_sends_that_row_to_quarantine(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", n="1") + row("b", n="one") + row("c", n=""))
    columns = {"n": {"type": "integer", "nullable": True, "sql": "n::INT * 60 -- minutes"}}

    done = ingest(trips(tmp_path, columns=columns), tmp_path)

    assert done.column("n") == [60, None]
    assert done.faults == {"trips/2013-04-01.csv:3": ["n: n::INT * 60 -- minutes cannot be computed for this row"]}


def test_what_two_expressions_share_fails_a_row_and_not_the_interval(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a", n="1") + row("b", n="one"))
    columns = {"n": {"type": "integer", "sql": "n::INT * 60"}, "m": {"type": "integer", "sql": "n::INT + 1"}}

    done = ingest(trips(tmp_path, columns=columns), tmp_path)

    assert [(kept["n"], kept["m"]) for kept in done.published] == [(60, 2)]
    assert done.faults == {
        "trips/2013-04-01.csv:3": [f"{name}: {sql} cannot be computed for this row" for name, sql in
                                   (("n", "n::INT * 60"), ("m", "n::INT + 1"))]
    }  # fmt: skip


def test_where_leaves_rows_out_before_they_are_counted(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row("a") + row("b", n="") + row("c", n="", x="bad") + row("d", n="x") + "e,short\n")

    done = ingest(trips(tmp_path, table={"where": "n::INT > 0"}), tmp_path)

    assert done.column("id") == ["a"]
    assert done.faults == {
        "trips/2013-04-01.csv:5": ["where: n::INT > 0 cannot be told for this row"],
        "trips/2013-04-01.csv:6": ["the row has 2 fields where the header has 5"],
    }
    assert done.result.rows_in == 3


def test_an_expression_sees_the_file_and_not_the_columns_made_of_it(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(n="7"))
    columns = {"n": {"type": "integer", "sql": "n::INT + 1"}, "m": {"type": "integer", "sql": "n::INT"}}

    assert (
        ingest(trips(tmp_path, columns=columns), tmp_path).published[0] | {"n": 8, "m": 7}
        == ingest(trips(tmp_path, columns=columns), tmp_path).published[0]
    )


@pytest.mark.parametrize(
    ("error", "message", "model"),
    [
        (SourceError, "there is no column plaza; there are: 'id, begun, place, n, x'; is it now called place?",
         {"columns": {"place": {"type": "string", "sql": "upper(plaza)"}}}),
        (SpecError, "tables.trips.columns.m.sql: not an expression that can be used here: Binder Error",
         {"columns": {"m": {"type": "integer", "sql": "n + INTERVAL 1 DAY"}}}),
        (SpecError, "tables.trips.columns.m.sql: not an expression that can be used here: Parser Error",
         {"columns": {"m": {"type": "integer", "sql": "n +"}}}),
        (SpecError, "tables.trips.columns.m.sql: not an expression that can be used here: Binder Error: TRY",
         {"columns": {"m": {"type": "float", "sql": "random()"}}}),
        (SpecError, "tables.trips.columns.m.sql: gives a INTEGER[] cannot become the type integer",
         {"columns": {"m": {"type": "integer", "sql": "[1]"}}}),
        (SpecError, "tables.trips.where: not an expression that can be used here", {"table": {"where": "nothing(n)"}}),
        (SpecError, "tables.trips.known: no column later; there are id, begun, place, n, x", {"table": {"known": "later"}}),
        (SpecError, "tables.trips.columns.m.sql: not an expression that can be used here",
         {"columns": {"m": {"type": "string", "sql": "(SELECT content FROM read_text('/etc/hostname'))"}}}),
    ],
    ids=["no such column", "types", "syntax", "volatile", "a list", "where", "known", "another file"],
)  # fmt: skip
def test_a_wrong_expression_is_told_with_its_place(error: type[Exception], message: str, model: Any, tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())

    rejects(tmp_path, error, message, **model)


# --- SQL -------------------------------------------------------------------------------------------------------------

QUERY = {"sql": "SELECT * FROM trips WHERE begun >= :start AND begun < :end ORDER BY id", "connection": "shop"}


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    if request.param == "sqlite":
        return sqlite(tmp_path)
    return sa.create_engine(request.getfixturevalue("postgres"), poolclass=NullPool)


def fill(engine: sa.Engine, rows: list[dict[str, Any]], **types: Any) -> None:
    table = sa.Table(
        "trips", sa.MetaData(), sa.Column("id", sa.Text), sa.Column("begun", types.get("begun", sa.DateTime(timezone=True))),
        sa.Column("place", sa.Text), sa.Column("n", sa.BigInteger), sa.Column("x", types.get("x", sa.Float)),
    )  # fmt: skip
    with engine.begin() as connection:
        table.create(connection)
        if rows:
            connection.execute(table.insert(), rows)


def record(id: str, begun: datetime, **values: Any) -> dict[str, Any]:  # noqa: A002
    return {"id": id, "begun": begun, "place": "EWR", "n": 1, "x": 0.5, **values}


def moment(hour: int, day: int = 1) -> datetime:
    return datetime(2013, 4, day, hour, tzinfo=UTC)


def test_sql_reads_the_interval_with_its_types(engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, [record("a", moment(0)), record("b", moment(23), n=2**53 + 1, x=None), record("c", moment(0, 2))])

    done = ingest(trips(tmp_path, source=QUERY), tmp_path, connect={"shop": engine}.__getitem__)

    assert [(kept["id"], kept["begun"], kept["n"], kept["x"]) for kept in done.published] == [
        ("a", moment(0), 1, 0.5),
        ("b", moment(23), 2**53 + 1, None),
    ]
    assert done.landed.files == []


def test_sql_is_read_in_pieces_whose_types_may_widen(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "SQL_ROWS", 2)
    fill(engine, [record(f"{n}", moment(n), n=None if n < 4 else n, place=None if n < 2 else "EWR") for n in range(7)])

    folder = trips(tmp_path, source=QUERY, columns={"place": {"type": "string", "nullable": True}})
    done = ingest(folder, tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("n") == [None, None, None, None, 4, 5, 6]
    assert done.column("place") == [None, None, "EWR", "EWR", "EWR", "EWR", "EWR"]


def test_positions_of_sql_rows_count_the_result(engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, [record("a", moment(1)), record("b", moment(2), n=-1)])

    folder = trips(tmp_path, source=QUERY, columns={"n": {"type": "integer", "min": 0}})
    done = ingest(folder, tmp_path, connect={"shop": engine}.__getitem__)

    assert done.faults == {"files:2": ["n: -1 is below 0"]}


def test_sql_without_rows_is_an_empty_interval(engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, [])

    done = ingest(
        trips(tmp_path, source=QUERY, table={"checks": {"rows": {"min": 0}}}), tmp_path, connect={"shop": engine}.__getitem__
    )

    assert done.published == []
    assert not done.result.refused


def test_decimals_and_times_without_a_zone_of_postgresql_are_exact(postgres: str, tmp_path: Path) -> None:
    engine = sa.create_engine(postgres, poolclass=NullPool)
    early, late = (moment(hour).replace(tzinfo=None) for hour in (0, 23))
    rows = [record("a", early, x=decimal.Decimal("0.1")), record("b", late, x=decimal.Decimal("12345.678"))]
    fill(engine, rows, begun=sa.DateTime(timezone=False), x=sa.Numeric())
    with engine.begin() as connection:  # a server that does not keep its time in UTC
        connection.execute(sa.text("ALTER ROLE perennial SET TimeZone = 'America/New_York'"))

    done = ingest(trips(tmp_path, source=QUERY), tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("begun") == [moment(0), moment(23)]
    assert done.column("x") == [0.1, 12345.678]


def test_a_query_cannot_write_to_postgresql(postgres: str, tmp_path: Path) -> None:
    engine = sa.create_engine(postgres, poolclass=NullPool)
    fill(engine, [record("a", moment(1))])
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM trips; SELECT 1'"))
    query = {"sql": "SELECT id, begun, place, x, wipe() AS n FROM trips WHERE :start < :end", "connection": "shop"}

    rejects(tmp_path, SourceError, "in a read-only transaction", source=query, connect={"shop": engine}.__getitem__)

    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM trips")).scalar() == 1


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM nowhere WHERE :start < :end", "source files: the query failed: "),
        ("SELECT id, n, begun, place, x, n FROM trips WHERE :start < :end", "the query gives the column n twice; name it"),
        ("SELECT id, begun, n, x FROM trips WHERE :start < :end", "the query: there is no column place"),
    ],
    ids=["no table", "a column twice", "a column missing"],
)  # fmt: skip
def test_a_failing_query_is_told(sql: str, message: str, engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, [record("a", moment(1))])

    rejects(
        tmp_path, SourceError, message, source={"sql": sql, "connection": "shop"}, connect={"shop": engine}.__getitem__
    )  # fmt: skip


def test_a_database_column_of_mixed_types_is_rejected(tmp_path: Path) -> None:
    engine = sqlite(tmp_path)
    fill(engine, [record("a", moment(1))])
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO trips SELECT 'b', begun, place, 'many', x FROM trips"))

    message = "the query's column n is of no one type; CAST it"
    rejects(tmp_path, SourceError, message, source=QUERY, connect={"shop": engine}.__getitem__)


# --- Python ----------------------------------------------------------------------------------------------------------

CODE = """
import pyarrow as pa
from datetime import timedelta

SCHEMA = pa.schema(
    [("id", pa.string()), ("begun", pa.timestamp("us", "UTC")), ("place", pa.string()), ("n", pa.int64()), ("x", pa.float64())]
)

def rows(start, end):
    moments = [start - timedelta(hours=1), start, end - timedelta(seconds=1), end]
    return pa.table([["a", "b", "c", "d"], moments, ["EWR"] * 4, [1] * 4, [0.5] * 4], schema=SCHEMA)

def reader(start, end):
    return pa.RecordBatchReader.from_batches(SCHEMA, (batch for batch in rows(start, end).to_batches(max_chunksize=1)))

def torn(start, end):
    def batches():
        yield from rows(start, end).to_batches()
        raise ConnectionError("the meter hung up")
    return pa.RecordBatchReader.from_batches(SCHEMA, batches())

def raising(start, end):
    raise KeyError("token")

def frame(start, end):
    return [{"id": "a"}]

def twice(start, end):
    return pa.table([["a"], ["b"]], names=["id", "id"])
"""


@pytest.mark.parametrize("function", ["rows", "reader"])
def test_a_python_function_gives_the_intervals_rows(function: str, tmp_path: Path) -> None:
    done = ingest(trips(tmp_path, source={"python": f"model:{function}"}, code=CODE), tmp_path)

    assert done.column("id") == ["b", "c"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("torn", "model:torn raised "),
        ("raising", "model:raising raised KeyError: 'token'"),
        ("frame", "model:frame gives a list; an Arrow table or record batch reader is wanted"),
        ("twice", "model:twice gives the column id twice"),
    ],
)
def test_a_python_function_that_fails_leaves_nothing(function: str, message: str, tmp_path: Path) -> None:
    rejects(tmp_path, SourceError, message, source={"python": f"model:{function}"}, code=CODE)


def test_a_folders_code_is_imported_once_until_it_changes(tmp_path: Path) -> None:
    counting = "calls = []\ndef count():\n    calls.append(1)\n    return len(calls)\n"
    first = trips(tmp_path / "one", code=counting)

    assert [folder_function(first, "model:count")() for _ in range(3)] == [1, 2, 3]
    edited = trips(tmp_path / "one", code=counting + "# edited\n")
    assert folder_function(edited, "model:count")() == 1
    assert folder_function(first, "model:count").__module__ == "_perennial_model_trips"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "model.py: importing it raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "model.py: importing it raised SystemExit: 3"),
        ("make = 3", "model.py: defines no function make, which model.yaml names as model:make"),
    ],
)
def test_code_that_cannot_be_used_is_told(code: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        folder_function(trips(tmp_path, code=code), "model:make")

    assert message in str(raised.value)


def test_the_columns_of_the_tests_are_those_of_the_file() -> None:
    assert ",".join(COLUMNS) + "\n" == HEADER
