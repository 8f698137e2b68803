"""A value of a database becomes an Arrow value, or the fault of its row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.pool import NullPool

from perennial.core.errors import SourceError
from perennial.ingestion.database_values import DatabaseBatches
from tests.unit.landing import SIX, Ingested, ingest, trips

LONG = "1" + "0" * 45


def batches(values: Sequence[Any], kind: pa.DataType | None = None) -> list[pa.RecordBatch]:
    types = {} if kind is None else {"x": kind}
    return list(DatabaseBatches(["x"], types, {}, "files").batches([[value] for value in values]))


def told(values: Sequence[Any], kind: pa.DataType | None = None) -> list[Any]:
    """Each value as it was kept, or its fault."""
    rows = [row for batch in batches(values, kind) for row in batch.to_pylist()]
    rows.sort(key=lambda row: int(row["_position"].partition(":")[2]))
    return [row["_fault"] or row["x"] for row in rows]


NUMBERS: dict[str, tuple[list[Any], list[Any]]] = {
    "digits": ([Decimal("0.10"), None, 7], [Decimal("0.1"), None, 7]),
    "38 digits": ([Decimal("1" * 38)], [Decimal("1" * 38)]),
    "38 digits after the point": ([Decimal("0." + "1" * 38)], [Decimal("0." + "1" * 38)]),
    "an exponent": ([Decimal("1E+3"), Decimal("-2.5E-3")], [1000, Decimal("-0.0025")]),
    "zeros that say nothing": ([Decimal("1." + "0" * 45), Decimal("0" * 45 + "7")], [1, 7]),
    "long and fine beside each other": (
        [Decimal("9" * 30), Decimal("0." + "9" * 30), Decimal("1.5")],
        [Decimal("9" * 30), Decimal("0." + "9" * 30), Decimal("1.5")],
    ),
    "46 digits": (
        [Decimal("1E+45"), Decimal(2)],
        [f"x: {LONG} has more than 38 digits; round it in the query, or CAST it to double precision there", 2],
    ),
    "no number": (
        [Decimal("NaN"), Decimal("-Infinity"), Decimal(2)],
        [
            "x: NaN is not a finite number; replace it in the query, or by NULL if it stands for no value",
            "x: -Infinity is not a finite number; replace it in the query, or by NULL if it stands for no value",
            2,
        ],
    ),
    "integers beyond 64 bits": ([2**70, 1], [2**70, 1]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_keeps_its_digits_or_is_its_rows_fault(case: str) -> None:
    values, kept = NUMBERS[case]

    assert told(values) == kept


LARGE_OR_SMALL = st.decimals(allow_nan=False, allow_infinity=False, places=12) | st.decimals(min_value=-9, max_value=9)


@given(st.lists(LARGE_OR_SMALL, max_size=9))
def test_numbers_of_any_digits_are_kept_exactly_or_told(values: list[Decimal]) -> None:
    for value, kept in zip(values, told(values, None), strict=True):
        assert kept == value or (isinstance(kept, str) and kept.startswith("x: "))


TIMES: dict[str, tuple[pa.DataType, list[Any], list[Any]]] = {
    "moments": (pa.timestamp("us", "UTC"), ["2013-04-01 06:00:00+00", "2013-04-01 08:00:00.5+02"],
                [SIX, SIX.replace(microsecond=500_000)]),
    "times without a zone": (pa.timestamp("us"), ["2013-04-01 06:00:00"], [datetime(2013, 4, 1, 6)]),  # noqa: DTZ001
    "days": (pa.date32(), ["2013-04-01", None], [date(2013, 4, 1), None]),
}  # fmt: skip


@pytest.mark.parametrize("case", TIMES)
def test_a_time_is_read_from_its_text(case: str) -> None:
    kind, texts, kept = TIMES[case]

    assert told(texts, kind) == kept


@pytest.mark.parametrize("text", ["infinity", "-infinity", "10000-01-01 00:00:00+00", "0044-03-15 BC"])
@pytest.mark.parametrize("kind", [pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.date32()], ids=str)
def test_a_time_that_no_moment_can_hold_is_its_rows_fault(kind: pa.DataType, text: str) -> None:
    assert told([text, None], kind) == [
        f"x: {text} is no time between the years 1 and 9999; replace it in the query, for example with NULLIF(x, '{text}')",
        None,
    ]


def test_a_text_among_times_is_its_rows_fault() -> None:
    assert told(["0000-00-00 00:00:00", SIX])[0].startswith("x: 0000-00-00 00:00:00 is no time between the years 1 and 9999")


def test_values_of_several_types_are_rejected() -> None:
    with pytest.raises(SourceError, match="the query's column x has values of several types; CAST it"):
        batches([1, "one"])


def test_the_scale_of_a_column_stays_where_it_can() -> None:
    values = DatabaseBatches(["x"], {}, {}, "files")

    pieces = [piece for text in ("1.25", "1", "2.125", "7") for piece in values.batches([[Decimal(text)]])]
    kinds = [piece.schema.field("x").type for piece in pieces]

    assert kinds == [pa.decimal128(38, 2), pa.decimal128(38, 2), pa.decimal128(38, 3), pa.decimal128(38, 3)]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------

QUERY = {"sql": "SELECT * FROM trips WHERE :start < :end ORDER BY id", "connection": "shop"}


@pytest.fixture
def from_postgresql(postgres: str, tmp_path: Path) -> Callable[..., Ingested]:
    engine = sa.create_engine(postgres, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE trips (id text, begun timestamptz, place text, n numeric, x numeric, day date, local timestamp);"
            "INSERT INTO trips SELECT 'r' || g, '2013-04-01 06:00Z', 'EWR', g, g / 4.0, '2013-04-01', '2013-04-01' "
            "FROM generate_series(0, 9) g"
        )

    def read(change: str, **columns: Any) -> Ingested:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE trips SET {change} WHERE id = 'r4'")
        return ingest(trips(tmp_path, source=QUERY, columns=columns), tmp_path, connect={"shop": engine}.__getitem__)

    return read


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("x = 'NaN'", "x: NaN is not a finite number"),
        ("x = 'Infinity'", "x: Infinity is not a finite number"),
        ("x = '-Infinity'", "x: -Infinity is not a finite number"),
        ("x = '1e45'", f"x: {LONG} has more than 38 digits"),
        ("n = 'NaN'", "n: NaN is not a finite number"),
        ("x = '0.' || repeat('7', 42)", "x: 0.7777777777"),
        ("begun = 'infinity'", "begun: infinity is no time between the years 1 and 9999"),
        ("begun = '-infinity'", "begun: -infinity is no time between the years 1 and 9999"),
        ("begun = '20000-01-01 00:00Z'", "begun: 20000-01-01 00:00:00+00 is no time between the years 1 and 9999"),
        ("day = 'infinity'", "day: infinity is no time between the years 1 and 9999"),
        ("day = '0044-03-15 BC'", "day: 0044-03-15 BC is no time between the years 1 and 9999"),
        ("local = 'infinity'", "local: infinity is no time between the years 1 and 9999"),
    ],
)
def test_one_value_of_postgresql_is_its_rows_trouble(
    change: str, reason: str, from_postgresql: Callable[..., Ingested]
) -> None:
    change = change.replace("'0.' || repeat('7', 42)", "('0.' || repeat('7', 42))::numeric")

    done = from_postgresql(change, day={"type": "date"}, local={"type": "timestamp"})

    assert done.column("id") == [f"r{n}" for n in range(10) if n != 4]
    assert done.column("x") == [n / 4 for n in range(10) if n != 4]
    [(position, [why])] = done.faults.items()
    assert position == "files:5"
    assert why.startswith(reason)
    assert '"id": "r4"' in done.quarantined[0]["row"].replace("\\", "")


def test_many_digits_and_many_decimals_of_postgresql_are_kept_together(from_postgresql: Callable[..., Ingested]) -> None:
    done = from_postgresql("n = 12345678901234567, x = 0.1234567890123456789012345678901234567")

    assert 12345678901234567 in done.column("n")
    assert 0.12345678901234568 in done.column("x")
    assert done.quarantined == []
    assert done.column("begun") == [datetime(2013, 4, 1, 6, tzinfo=UTC)] * 10
