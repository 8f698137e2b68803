"""The predictions database: replaced whole, never by older rows, whoever wakes up when."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from perennial.core.errors import ScoringError
from perennial.core.intervals import Interval
from perennial.scoring.sink import PredictionSink

MOMENT = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    [
        pa.field("order", pa.string(), nullable=False),  # a reserved word of SQL
        pa.field("store", pa.int64()),
        pa.field("due", pa.date32()),
        pa.field("urgent", pa.bool_()),
        pa.field("at", MOMENT, nullable=False),
        pa.field("prediction", pa.float64(), nullable=False),
    ]
)
DAY = Interval.day("2013-04-01")
NASTY = ["a,b", 'say "x"', "two\nlines", "", "\\N", "'; DROP TABLE orders; --", "ü漢", "=1+1", "\\."]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    return str(request.getfixturevalue("postgres"))


def rows(day: Interval, names: list[str], prediction: float = 0.5, *, batches: int = 1) -> pa.RecordBatchReader:
    table = pa.table(
        {
            "order": pa.array(names, pa.string()),
            "store": pa.array([None if n % 3 == 0 else n for n in range(len(names))], pa.int64()),
            "due": pa.array([date(2013, 4, 1)] * len(names), pa.date32()),
            "urgent": pa.array([n % 2 == 0 for n in range(len(names))], pa.bool_()),
            "at": pa.array([day.start + timedelta(seconds=n, microseconds=7) for n in range(len(names))], MOMENT),
            "prediction": pa.array([prediction] * len(names), pa.float64()),
        },
        schema=SCHEMA,
    )
    size = max(1, -(-len(names) // batches))
    return pa.RecordBatchReader.from_batches(SCHEMA, table.to_batches(max_chunksize=size))


def sink(url: str, schema: pa.Schema = SCHEMA) -> PredictionSink:
    return PredictionSink(url, "orders", schema, "at")


def read(url: str, query: str = 'SELECT * FROM orders_predictions ORDER BY "at"') -> list[dict[str, Any]]:
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def predictions(url: str) -> list[tuple[str, float]]:
    return [(row["order"], row["prediction"]) for row in read(url)]


def moment(found: datetime | str) -> datetime:
    """A moment as a database tells it: SQLite as a text in UTC, PostgreSQL in whatever zone its server is in."""
    return datetime.fromisoformat(found).replace(tzinfo=UTC) if isinstance(found, str) else found


def test_values_arrive_as_they_were(url: str) -> None:
    assert sink(url).write(DAY, 1, rows(DAY, NASTY, batches=3)) == len(NASTY)
    found = read(url)
    assert [row["order"] for row in found] == NASTY
    assert [row["store"] for row in found] == [None if n % 3 == 0 else n for n in range(len(NASTY))]
    assert [bool(row["urgent"]) for row in found] == [n % 2 == 0 for n in range(len(NASTY))]
    assert {str(row["due"]) for row in found} == {"2013-04-01"}
    assert moment(found[1]["at"]) == DAY.start + timedelta(seconds=1, microseconds=7)


def test_values_that_rows_share_arrive_with_each_row(url: str) -> None:
    schema = (
        SCHEMA.append(pa.field("version", pa.int64())).append(pa.field("run", pa.string())).append(pa.field("made", MOMENT))
    )
    said = {
        1: ("a", 1, "first", DAY.start),
        2: ("b", 2, None, DAY.start),
        3: ("c", 1, "first", DAY.end),
        4: ("d", None, "x", None),
    }
    told = [said[1 + n % 4] for n in range(8)]
    table = pa.table(
        [*rows(DAY, [name for name, *_ in told]).read_all().columns, *([one[n] for one in told] for n in (1, 2, 3))],
        schema=schema,
    )
    shared = PredictionSink(url, "orders", schema, "at", shared=["version", "run", "made"])
    for size in (8, 3, 1):
        assert shared.write(DAY, 1, pa.RecordBatchReader.from_batches(schema, table.to_batches(max_chunksize=size))) == 8
        found = read(url)
        assert [(row["order"], row["version"], row["run"]) for row in found] == [one[:3] for one in told]
        assert [row["made"] and moment(row["made"]) for row in found] == [one[3] for one in told]


@pytest.mark.parametrize("count", [49, 50, 51, 100, 123])
def test_however_many_rows_are_sent_at_once_each_arrives_once(url: str, count: int) -> None:
    names = [f"{n:03}" for n in range(count)]
    assert sink(url).write(DAY, 1, rows(DAY, names)) == count
    assert [name for name, _ in predictions(url)] == names


def test_written_twice_the_rows_are_there_once(url: str) -> None:
    for _ in range(2):
        assert sink(url).write(DAY, 1, rows(DAY, ["a", "b"])) == 2
    assert predictions(url) == [("a", 0.5), ("b", 0.5)]


def test_only_the_interval_is_replaced(url: str) -> None:
    before, after = Interval.day("2013-03-31"), Interval.day("2013-04-02")
    for number, day in enumerate((before, DAY, after), start=1):
        sink(url).write(day, number, rows(day, [day.key]))
    sink(url).write(DAY, 4, rows(DAY, ["new"], 0.9))
    assert predictions(url) == [(before.key, 0.5), ("new", 0.9), (after.key, 0.5)]


def test_an_interval_without_rows_empties_it(url: str) -> None:
    sink(url).write(DAY, 1, rows(DAY, ["a"]))
    assert sink(url).write(DAY, 2, rows(DAY, [])) == 0
    assert predictions(url) == []


def test_rows_of_an_older_publication_do_not_replace_newer_ones(url: str) -> None:
    sink(url).write(DAY, 5, rows(DAY, ["new"]))
    assert sink(url).write(DAY, 4, rows(DAY, ["old"])) is None
    week = Interval.of("2013-04-01", "2013-04-08")
    assert sink(url).write(week, 4, rows(DAY, ["old"])) is None
    assert predictions(url) == [("new", 0.5)]
    assert sink(url).write(week, 6, rows(DAY, ["newest"])) == 1
    assert sink(url).write(DAY, 5, rows(DAY, ["old"])) is None
    assert predictions(url) == [("newest", 0.5)]


def test_rows_that_come_too_late_leave_nothing_behind(url: str) -> None:
    sink(url).write(DAY, 5, rows(DAY, ["new"]))
    other = Interval.day("2013-04-02")
    sink(url).write(other, 6, rows(other, ["other"]))
    week = Interval.of("2013-04-01", "2013-04-08")
    assert sink(url).write(week, 4, rows(DAY, ["old"] * 9)) is None
    assert sink(url).write(DAY, 7, rows(DAY, ["newest"])) == 1
    assert predictions(url) == [("newest", 0.5), ("other", 0.5)]


def test_a_newer_publication_without_rows_is_not_undone_either(url: str) -> None:
    sink(url).write(DAY, 5, rows(DAY, []))
    assert sink(url).write(DAY, 4, rows(DAY, ["old"])) is None
    assert predictions(url) == []


def test_the_table_says_what_each_interval_was_copied_from(url: str) -> None:
    week = Interval.of("2013-04-01", "2013-04-08")
    sink(url).write(DAY, 1, rows(DAY, ["a"]))
    sink(url).write(week, 2, rows(DAY, ["a", "b"]))
    (scored,) = read(url, "SELECT * FROM orders_scored")
    assert (scored["publication"], scored["rows"]) == (2, 2)


def test_rows_are_found_by_time_through_an_index(url: str) -> None:
    sink(url).write(DAY, 1, rows(DAY, ["a"]))
    engine = sa.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        assert [index["column_names"] for index in sa.inspect(connection).get_indexes("orders_predictions")] == [["at"]]


def test_rows_are_staged_before_it_is_asked_which_publication_they_are_of(url: str) -> None:
    sink(url).write(DAY, 1, rows(DAY, ["a"]))

    def published() -> int:
        assert given.read_all().num_rows == 0
        assert predictions(url) == [("a", 0.5)]
        # Nobody has to wait meanwhile.
        assert sink(url).write(DAY, 2, rows(DAY, ["b"])) == 1
        return 3

    given = rows(DAY, ["c", "d"], batches=2)
    assert sink(url).write(DAY, published, given) == 2
    assert predictions(url) == [("c", 0.5), ("d", 0.5)]


def test_rows_that_were_staged_and_are_not_published_leave_nothing_behind(url: str) -> None:
    def failed() -> int:
        raise OSError("the lake went away")

    with pytest.raises(OSError, match="the lake went away"):
        sink(url).write(DAY, failed, rows(DAY, ["a"]))
    with sa.create_engine(url, poolclass=NullPool).connect() as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_an_error_while_rows_are_read_changes_nothing(url: str) -> None:
    sink(url).write(DAY, 1, rows(DAY, ["a"]))

    def broken() -> Any:
        yield from rows(DAY, ["b"])
        raise OSError("the lake went away")

    with pytest.raises(OSError, match="the lake went away"):
        sink(url).write(DAY, 2, pa.RecordBatchReader.from_batches(SCHEMA, broken()))
    assert predictions(url) == [("a", 0.5)]


def test_a_table_of_other_columns_is_refused_with_what_to_do(url: str) -> None:
    sink(url).write(DAY, 1, rows(DAY, ["a"]))
    wider = SCHEMA.append(pa.field("extra", pa.int64()))
    with pytest.raises(ScoringError, match="rename or drop it and score again"):
        sink(url, wider).write(DAY, 2, pa.RecordBatchReader.from_batches(wider, []))


def test_a_text_that_the_database_cannot_hold_is_refused_without_quoting_it(postgres: str) -> None:
    with pytest.raises(ScoringError, match=r"orders_predictions, 2013-04-01: .* refused") as caught:
        sink(postgres).write(DAY, 1, rows(DAY, ["sec\x00ret"]))
    assert "ret" not in str(caught.value).replace("interpreted", "")
    password = sa.make_url(postgres).password
    assert password is not None
    assert password not in str(caught.value)


def test_many_that_write_for_the_first_time_at_once_all_succeed(url: str) -> None:
    days = [Interval.day(date(2013, 5, 1) + timedelta(days=n)) for n in range(6)]
    results: list[int | None] = []
    threads = [
        threading.Thread(target=lambda day=day, n=n: results.append(sink(url).write(day, n, rows(day, ["x", "y"]))))
        for n, day in enumerate(days, start=1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [2] * len(days)
    assert len(predictions(url)) == 2 * len(days)


def test_a_reader_sees_the_old_or_the_new_rows_and_nothing_between(url: str) -> None:
    sink(url).write(DAY, 1, rows(DAY, ["old"] * 50))
    seen: set[tuple[str, ...]] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(tuple({name for name, _ in predictions(url)}))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for number in range(2, 8):
            sink(url).write(DAY, number, rows(DAY, [f"p{number}"] * 50, batches=10))
    finally:
        done.set()
        watcher.join()
    assert all(len(names) == 1 for names in seen)
