"""A SQL query and a Python function give the rows of the interval, or a clear error."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.errors import SpecError
from perennial.ingestion import queries
from perennial.spec.code import folder_function
from tests.unit.landing import (
    ingest,
    rejects,
    sqlite,
    trips,
)

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


def record(id: str, begun: datetime | str, **values: Any) -> dict[str, Any]:  # noqa: A002  # the column's name
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

    rejects(tmp_path, "in a read-only transaction", source=query, connect={"shop": engine}.__getitem__)

    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM trips")).scalar() == 1


def test_a_colon_in_a_text_is_no_parameter(engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, [record("a", moment(1), n=None)])
    sql = """SELECT id, begun, n, x, '{"at":1, "b": ":noon"}' AS place -- not :later
        FROM trips WHERE begun >= :start AND begun < :end"""

    done = ingest(trips(tmp_path, source={"sql": sql, "connection": "shop"}), tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("place") == ['{"at":1, "b": ":noon"}']


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM trips WHERE :start < :end AND id = :noon",
         "the query binds :noon, but only :start and :end have a value; write \\:noon for text"),
        ("SELECT * FROM nowhere WHERE :start < :end", "source files: the query failed: "),
        ("SELECT id, n, begun, place, x, n FROM trips WHERE :start < :end", "the query gives the column n twice; rename"),
        ("SELECT id, begun, n, x FROM trips WHERE :start < :end", "the query: there is no column place"),
    ],
    ids=["another parameter", "no table", "a column twice", "a column missing"],
)  # fmt: skip
def test_a_failing_query_is_told(sql: str, message: str, engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, [record("a", moment(1))])

    rejects(
        tmp_path, message, source={"sql": sql, "connection": "shop"}, connect={"shop": engine}.__getitem__
    )  # fmt: skip


def test_a_database_column_of_mixed_types_is_rejected(tmp_path: Path) -> None:
    engine = sqlite(tmp_path)
    fill(engine, [record("a", moment(1))])
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO trips SELECT 'b', begun, place, 'many', x FROM trips"))

    message = "the query's column n has values of several types; CAST it"
    rejects(tmp_path, message, source=QUERY, connect={"shop": engine}.__getitem__)


@pytest.mark.parametrize("zone", [None, "America/New_York"])
@pytest.mark.parametrize("code", ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f"])
def test_sqlite_gives_the_first_moment_of_a_day_however_it_is_written(code: str, zone: str | None, tmp_path: Path) -> None:
    engine = sqlite(tmp_path)
    moments = [moment(0), moment(23), moment(0, 2)]
    texts = [f"{each.astimezone(ZoneInfo(zone or 'UTC')):{code}}" for each in moments]
    fill(engine, [record(f"{n}", text) for n, text in enumerate(texts)], begun=sa.Text)

    done = ingest(trips(tmp_path, source={**QUERY, "time_zone": zone}), tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("begun") == moments[:2]


def test_sqlite_gives_dates_of_their_day(tmp_path: Path) -> None:
    engine = sqlite(tmp_path)
    fill(engine, [record("a", "2013-04-01"), record("b", "2013-04-02")], begun=sa.Text)

    done = ingest(trips(tmp_path, source=QUERY), tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("begun") == [moment(0)]


def test_sqlite_may_mix_whole_numbers_and_fractions(tmp_path: Path) -> None:
    engine = sqlite(tmp_path)
    fill(engine, [record("a", moment(1)), record("b", moment(2), x=0.25)])
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE typeless (id, begun, place, n, x)"))
        connection.execute(sa.text("INSERT INTO typeless SELECT id, begun, place, n, x FROM trips"))
        connection.execute(sa.text("UPDATE typeless SET x = 9007199254740993, n = 2.0 WHERE id = 'a'"))
    query = QUERY["sql"].replace("trips", "typeless")

    done = ingest(trips(tmp_path, source={**QUERY, "sql": query}), tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("n") == [2, 1]
    assert done.column("x") == [9007199254740992.0, 0.25]


def test_columns_of_a_query_that_differ_only_in_case_are_rejected(engine: sa.Engine, tmp_path: Path) -> None:
    fill(engine, [record("a", moment(1))])
    sql = 'SELECT id, begun, place, n, x, 9 AS "N" FROM trips WHERE begun >= :start AND begun < :end'

    message = "the query: 'n' and 'N' differ only in case; rename one of them"
    rejects(tmp_path, message, source={"sql": sql, "connection": "shop"}, connect={"shop": engine}.__getitem__)


def test_a_bound_may_be_cast(postgres: str, tmp_path: Path) -> None:
    engine = sa.create_engine(postgres, poolclass=NullPool)
    fill(engine, [record("a", moment(1)), record("b", moment(1, 2))])
    sql = "SELECT * FROM trips WHERE begun >= :start::timestamptz AND begun < :end::timestamptz"

    done = ingest(trips(tmp_path, source={**QUERY, "sql": sql}), tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("id") == ["a"]


# --- MariaDB ---------------------------------------------------------------------------------------------------------

MARIADB = """CREATE TABLE trips (id varchar(9), begun datetime(6), place varchar(9), n bigint unsigned, x decimal(65,30),
    stamped timestamp(6) NULL, day date, flag tinyint(1), made json)"""


@pytest.fixture
def from_mariadb(mariadb: str, tmp_path: Path) -> Callable[..., Any]:
    engine = sa.create_engine(mariadb, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET time_zone = '+00:00'")
        connection.exec_driver_sql("SET SESSION sql_mode = ''")
        connection.exec_driver_sql(MARIADB)
        for hour in range(10):
            connection.exec_driver_sql(
                f"INSERT INTO trips VALUES ('r{hour}', '2013-04-01 0{hour}:00:00', 'EWR', {hour}, {hour} / 4, "
                f"'2013-04-01 0{hour}:30:00', '2013-04-01', {hour % 2}, '{{\"at\": {hour}}}')"
            )

    def read(change: str = "", source: dict[str, Any] | None = None, **columns: Any) -> Any:
        if change:
            with engine.begin() as connection:
                connection.exec_driver_sql("SET SESSION sql_mode = ''")
                connection.exec_driver_sql(f"UPDATE trips SET {change} WHERE id = 'r4'")
        folder = trips(tmp_path, source={**QUERY, **(source or {})}, columns=columns)
        return ingest(folder, tmp_path, connect={"shop": engine}.__getitem__)

    return read


def test_mariadb_gives_the_interval_with_its_types(from_mariadb: Callable[..., Any]) -> None:
    columns = {
        "stamped": {"type": "timestamp"}, "day": {"type": "date"}, "flag": {"type": "boolean"},
        "made": {"type": "integer", "sql": "json_extract(made, '$.at')::INTEGER"},
    }  # fmt: skip

    done = from_mariadb(**columns)

    assert [(kept["id"], kept["begun"], kept["n"], kept["x"]) for kept in done.published] == [
        (f"r{hour}", moment(hour), hour, hour / 4) for hour in range(10)
    ]
    assert done.column("stamped") == [moment(hour).replace(minute=30) for hour in range(10)]
    assert done.column("flag") == [bool(hour % 2) for hour in range(10)]
    assert done.column("made") == list(range(10))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (f"x = {'1' * 20}.{'1' * 30}", f"x: {'1' * 20}.{'1' * 30} has more than 38 digits"),
        ("begun = '0000-00-00'", "begun: 0000-00-00 00:00:00.000000 is no time between the years 1 and 9999"),
        ("day = '0000-00-00'", "day: 0000-00-00 is no time between the years 1 and 9999"),
        ("n = 18446744073709551615", "n: 18446744073709551615 is too large to be an exact 64-bit integer"),
    ],
)
def test_one_value_of_mariadb_is_its_rows_trouble(change: str, reason: str, from_mariadb: Callable[..., Any]) -> None:
    done = from_mariadb(change, {"sql": QUERY["sql"].replace("begun >= :start", "('' = :start OR true)")}, day={"type": "date"})

    assert done.column("id") == [f"r{n}" for n in range(10) if n != 4]
    [[why]] = done.faults.values()
    assert why.startswith(reason)


def test_local_times_of_mariadb_are_of_the_sources_zone(from_mariadb: Callable[..., Any]) -> None:
    done = from_mariadb(source={"time_zone": "America/New_York"})

    assert done.column("begun") == [moment(hour + 4) for hour in range(10)]


def test_a_colon_after_an_escaped_quote_of_mariadb_is_no_parameter(from_mariadb: Callable[..., Any]) -> None:
    sql = r"SELECT id, begun, 'it\'s :noon' AS place, n, x FROM trips WHERE begun >= :start AND begun < :end ORDER BY id"

    done = from_mariadb(source={"sql": sql})

    assert set(done.column("place")) == {"it's :noon"}


def test_a_query_cannot_write_to_mariadb(mariadb: str, tmp_path: Path) -> None:
    engine = sa.create_engine(mariadb, poolclass=NullPool)
    fill(engine, [record("a", moment(1).replace(tzinfo=None))])
    query = {"sql": "DELETE FROM trips WHERE begun >= :start AND begun < :end RETURNING *", "connection": "shop"}

    rejects(tmp_path, "Cannot execute statement in a READ ONLY transaction", source=query, connect={"shop": engine}.__getitem__)


# --- DuckDB ----------------------------------------------------------------------------------------------------------


def test_a_huge_integer_of_duckdb_is_its_rows_trouble(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute("CREATE TABLE trips (id TEXT, begun TIMESTAMPTZ, place TEXT, n BIGNUM, x DOUBLE)")
        connection.execute("INSERT INTO trips VALUES ('a', '2013-04-01 06:00Z', 'EWR', 7, 1)")
        connection.execute(f"INSERT INTO trips VALUES ('b', '2013-04-01 06:00Z', 'EWR', '{'1' * 46}'::BIGNUM, 1)")
    engine = sa.create_engine(f"duckdb:///{tmp_path / 'shop.duckdb'}", poolclass=NullPool)

    done = ingest(trips(tmp_path, source=QUERY), tmp_path, connect={"shop": engine}.__getitem__)

    assert done.column("n") == [7]
    assert list(done.faults.values()) == [[f"n: '{'1' * 46}' is too large to be an exact 64-bit integer"]]


def test_a_file_of_duckdb_gives_the_interval_and_tells_infinite_times(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE trips (id text, begun timestamptz, place text, n hugeint, x decimal(38,2), seen timestamp)"
        )
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            "INSERT INTO trips SELECT 'r' || g, TIMESTAMPTZ '2013-04-01 00:00Z' + to_hours(g), 'EWR', g, g / 4, '2013-04-01' "
            "FROM range(10) t(g)"
        )
        connection.execute("UPDATE trips SET seen = 'infinity' WHERE id = 'r4'")
    engine = sa.create_engine(f"duckdb:///{tmp_path / 'shop.duckdb'}", poolclass=NullPool)
    folder = trips(tmp_path, source=QUERY, columns={"seen": {"type": "timestamp"}})

    done = ingest(folder, tmp_path, connect={"shop": engine}.__getitem__)

    assert [(kept["id"], kept["begun"], kept["n"]) for kept in done.published] == [
        (f"r{hour}", moment(hour), hour) for hour in range(10) if hour != 4
    ]
    assert done.faults == {"files:5": ["seen: infinity is not an existing time in ISO 8601, such as 2013-04-01T06:00:00Z"]}


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
        ("frame", "model:frame gives a list; it must give an Arrow table or record batch reader"),
        ("twice", "model:twice gives the column id twice"),
    ],
)
def test_a_python_function_that_fails_leaves_nothing(function: str, message: str, tmp_path: Path) -> None:
    rejects(tmp_path, message, source={"python": f"model:{function}"}, code=CODE)


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
