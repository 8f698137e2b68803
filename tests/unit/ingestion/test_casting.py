"""A value becomes the spec's type where its meaning is plain, and a fault where it is not."""

from __future__ import annotations

import decimal
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.core.errors import SourceError, SpecError
from perennial.core.intervals import Interval
from tests.unit.landing import (
    GOOD,
    HEADER,
    PARQUET,
    Ingested,
    ingest,
    rejects,
    row,
    trips,
    typed,
    write,
    write_parquet,
)

# --- values that have a type already ---------------------------------------------------------------------------------
TYPED: dict[str, tuple[dict[str, Any], str, list[Any], list[str]]] = {
    "integers": ({"n": pa.array([1, None], pa.int32())}, "n", [1, None], []),
    "unsigned beyond 63 bit": (
        {"n": pa.array([1, 2**63], pa.uint64())}, "n", [1],
        ["n: 9223372036854775808 is too large to be an exact 64-bit integer"],
    ),
    "integers as floats, for nulls": ({"n": pa.array([1.0, None, np.nan])}, "n", [1, None, None], []),
    "floats as integers": (
        {"n": [1.5, 2.0**53, 2.0**53 + 2, np.inf, 3.0, 2.0**53 - 1]}, "n", [3, 2**53 - 1],
        [
            "n: 1.5 is not a plain whole number",
            "n: 9007199254740992.0 is too large to be an exact 64-bit integer",
            "n: 9007199254740994.0 is too large to be an exact 64-bit integer",
            "n: inf is too large to be an exact 64-bit integer",
        ],
    ),
    "floats": ({"x": [1.0, np.nan, np.inf]}, "x", [1.0, None], ["x: inf is not a plain finite number"]),
    "decimals": ({"x": [decimal.Decimal("1.25")], "n": [decimal.Decimal("7.00")]}, "x", [1.25], []),
    "decimals of more than 38 digits": (
        {"x": pa.array([decimal.Decimal("1" * 46), None], pa.decimal256(60, 2))}, "x", [float("1" * 46), None], [],
    ),
    "short decimals": ({"x": pa.array([decimal.Decimal("1.25")], pa.decimal32(5, 2))}, "x", [1.25], []),
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
        ({"place": [1.0]}, "place has the type DOUBLE, which cannot become string without a decision; write it as `sql` at"),
        ({"n": [[1]]}, "n has the type BIGINT[], which cannot become integer"),
        ({"begun": [1364796000]}, "begun has the type BIGINT, which cannot become timestamp"),
        ({"place": [b"\xff"]}, "place has the type BLOB, which cannot become string"),
    ],
    ids=["float as text", "list", "seconds since 1970", "bytes"],
)
def test_a_type_that_could_be_read_in_several_ways_is_rejected(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_parquet(tmp_path, typed(**columns))

    rejects(tmp_path, message, source=PARQUET)


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
        "trips/2013-04-01.csv:5": ["where: n::INT > 0 cannot be computed for this row"],
        "trips/2013-04-01.csv:6": ["the row has 2 fields, but the header has 5"],
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
        (SpecError, "tables.trips.columns.m.sql: this expression cannot be used here: Binder Error",
         {"columns": {"m": {"type": "integer", "sql": "n + INTERVAL 1 DAY"}}}),
        (SpecError, "tables.trips.columns.m.sql: this expression cannot be used here: Parser Error",
         {"columns": {"m": {"type": "integer", "sql": "n +"}}}),
        (SpecError, "tables.trips.columns.m.sql: this expression cannot be used here: Binder Error: TRY",
         {"columns": {"m": {"type": "float", "sql": "random()"}}}),
        (SpecError, "tables.trips.columns.m.sql: the result has the type INTEGER[], which cannot become integer",
         {"columns": {"m": {"type": "integer", "sql": "[1]"}}}),
        (SpecError, "tables.trips.where: this expression cannot be used here", {"table": {"where": "nothing(n)"}}),
        (SpecError, "tables.trips.known: no column later; there are id, begun, place, n, x", {"table": {"known": "later"}}),
        (SpecError, "tables.trips.columns.m.sql: this expression cannot be used here",
         {"columns": {"m": {"type": "string", "sql": "(SELECT content FROM read_text('/etc/hostname'))"}}}),
    ],
    ids=["no such column", "types", "syntax", "volatile", "a list", "where", "known", "another file"],
)  # fmt: skip
def test_a_wrong_expression_is_told_with_its_place(error: type[Exception], message: str, model: Any, tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())

    rejects(tmp_path, message, error=error, **model)


def test_an_hour_that_new_york_skipped_is_an_hour_of_utc(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(begun="2013-03-10T02:30:00"), "trips/2013-03-10.csv")

    done = ingest(trips(tmp_path), tmp_path, Interval.day("2013-03-10"))

    assert done.column("begun") == [datetime(2013, 3, 10, 2, 30, tzinfo=UTC)]


VALUES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "NA meaning a country": ({"place": "NA"}, {"place": "NA"}),
    "an integer with all its digits": ({"n": "9007199254740993"}, {"n": 9007199254740993}),
    "a missing value beside it": ({"n": ""}, {"n": None}),
    "the largest 64-bit integer": ({"n": "9223372036854775807"}, {"n": 2**63 - 1}),
    "an integer written as a float": ({"n": "12.0"}, {"n": 12}),
    "a sign": ({"n": "+12", "x": "-.5"}, {"n": 12, "x": -0.5}),
    "an exponent": ({"x": "-1.5e-3"}, {"x": -0.0015}),
    "a formula in a text": ({"place": "=1+1"}, {"place": "=1+1"}),
    "a mention in a text": ({"place": "@b"}, {"place": "@b"}),
    "a dash in a text": ({"place": "-"}, {"place": "-"}),
    "leading zeros in a text": ({"place": "007"}, {"place": "007"}),
    "full-width digits in a text": ({"place": "１２"}, {"place": "１２"}),  # noqa: RUF001
    "joiners in a Persian word": ({"place": "می‌خواهم"}, {"place": "می‌خواهم"}),
    "a zone to the east": ({"begun": "2013-04-01T08:00:00+02:00"}, {}),
    "a zone to the west": ({"begun": "2013-03-31 22:00:00.000-0800"}, {}),
    "a time without a zone is UTC": ({"begun": "2013-04-01 06:00"}, {}),
    "a label that all rows may share": ({"n": "99"}, {"n": 99}),
}


@pytest.fixture(scope="module")
def values_at_once(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    path = tmp_path_factory.mktemp("values")
    write(path, HEADER + "".join(row(f"0{n}", **given) for n, (given, _) in enumerate(VALUES.values())))
    return ingest(trips(path), path)


@pytest.mark.parametrize("case", VALUES)
def test_a_value_whose_meaning_is_plain_is_taken_as_meant(case: str, values_at_once: Ingested) -> None:
    n = list(VALUES).index(case)

    assert values_at_once.published[n] == {**GOOD, "id": f"0{n}", **VALUES[case][1]}
    assert values_at_once.quarantined == []


# --- numbers in another notation -------------------------------------------------------------------------------------

NOTATIONS: dict[str, tuple[dict[str, str], dict[str, float | None]]] = {
    "a decimal comma": ({"decimal": ","}, {"1,5": 1.5, "-,5": -0.5, "2": 2.0, "1.5": None, "1,5e3": 1500.0}),
    "a decimal comma and points": (
        {"decimal": ",", "thousands": "."},
        {
            "1.234,5": 1234.5,
            "1.234.567": 1234567.0,
            "1234,5": 1234.5,
            "1.23": None,
            "1.2345": None,
            "12.34,5": None,
            ".5": None,
        },
    ),
    "commas between thousands": ({"thousands": ","}, {"1,234.5": 1234.5, "1,23": None, "1234": 1234.0, "0,234": None}),
    "spaces between thousands": ({"decimal": ",", "thousands": " "}, {"1 234,5": 1234.5, "1  234": None}),
    "narrow spaces": ({"decimal": ",", "thousands": "\u202f"}, {"1\u202f234,5": 1234.5, "1 234": None}),
    "apostrophes": ({"thousands": "'"}, {"1'234.5": 1234.5, "1'23": None}),
}


@pytest.mark.parametrize("case", NOTATIONS)
def test_numbers_are_read_as_the_source_writes_them(case: str, tmp_path: Path) -> None:
    notation, values = NOTATIONS[case]
    rows = [row(f"{n}", n="1", x=f'"{text}"') for n, text in enumerate(values)]
    write(tmp_path, HEADER + "".join(rows))

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv", **notation}, table={"tolerance": 1.0}), tmp_path)

    assert done.column("x") == [value for value in values.values() if value is not None]
    for [reason], text in zip(done.faults.values(), [text for text, value in values.items() if value is None], strict=True):
        assert reason.startswith(f"x: '{text}' is not a plain finite number, written with the decimal ")


def test_groups_of_an_integer_and_texts_of_an_expression(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(n='"1.234"', x='"0,5"'))
    columns = {"m": {"type": "string", "sql": "x"}, "y": {"type": "float", "sql": "replace(x, ',', '.')"}}

    done = ingest(
        trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv", "decimal": ",", "thousands": "."}, columns=columns), tmp_path
    )

    assert [(kept["n"], kept["x"], kept["m"], kept["y"]) for kept in done.published] == [(1234, 0.5, "0,5", 0.5)]
