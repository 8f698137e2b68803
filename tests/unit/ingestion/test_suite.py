"""Each check of the spec judges as it says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.landing import (
    FILE,
    checked,
    row,
)


def test_a_warning_tells_and_publishes(tmp_path: Path) -> None:
    columns = {"n": {"type": "integer", "min": 5, "severity": "warning"}, "x": {"type": "float", "severity": "warning"}}

    done = checked(tmp_path, row("a", n="1"), row("b", n="2", x=""), row("c", n="", x="1"), columns=columns)

    assert [(kept["n"], kept["x"]) for kept in done.published] == [(1, 0.5), (2, None), (None, 1.0)]
    assert done.quarantined == []
    assert done.result.warnings == [
        f"{FILE}:4: n: missing",
        f"2 times, first {FILE}:2: n: 1 is below 5",
        f"{FILE}:3: x: missing",
    ]


def test_a_value_that_cannot_be_cast_is_critical_whatever_the_severity(tmp_path: Path) -> None:
    columns = {"n": {"type": "integer", "nullable": True, "severity": "warning"}}

    done = checked(tmp_path, row("a"), row("b", n="?"), columns=columns)

    assert done.faults == {f"{FILE}:3": ["n: '?' is not a plain whole number"]}


def test_a_row_without_key_or_time_is_not_published_whatever_the_severity(tmp_path: Path) -> None:
    columns = {"id": {"type": "string", "nullable": True, "severity": "warning"}}

    done = checked(tmp_path, row("a"), row(""), columns=columns)

    assert done.faults == {f"{FILE}:3": ["id: missing"]}


def test_a_row_that_is_known_at_no_moment_is_quarantined(tmp_path: Path) -> None:
    known = "begun + to_minutes(n)"

    done = checked(tmp_path, row("a", n="30"), row("b", n=""), row("c", n="9223372036854775807"), table={"known": known})

    assert done.column("_known_at") == [datetime(2013, 4, 1, 6, 30, tzinfo=UTC)]
    assert done.faults == {
        f"{FILE}:3": ["known: begun + to_minutes(n) gives no moment for this row"],
        f"{FILE}:4": ["known: begun + to_minutes(n) cannot be computed for this row"],
    }


def test_a_row_known_at_no_moment_is_quarantined_though_what_is_missing_is_but_a_warning(tmp_path: Path) -> None:
    columns = {"n": {"type": "integer", "severity": "warning"}}

    done = checked(tmp_path, row("a"), row("b", n=""), table={"known": "begun + to_minutes(n)"}, columns=columns)

    assert done.faults == {f"{FILE}:3": ["known: begun + to_minutes(n) gives no moment for this row"]}


def test_always_known_rows_may_be_used_at_any_time(tmp_path: Path) -> None:
    done = checked(tmp_path, row(), table={"known": "always"})

    assert done.column("_known_at") == [datetime(1900, 1, 1, tzinfo=UTC)]


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["line feed", "carriage return"])
def test_a_pattern_does_not_overlook_a_line_break_at_the_end(ending: str, tmp_path: Path) -> None:
    columns = {"place": {"type": "string", "matches": "^[A-Z]{3}$"}}

    done = checked(tmp_path, row("a"), row("b", place=f'"LGA{ending}"'), columns=columns)

    assert done.column("id") == ["a"]
    assert list(done.faults) == [f"{FILE}:3"]


def test_a_pattern_holds_from_the_beginning(tmp_path: Path) -> None:
    done = checked(
        tmp_path, row("a", place="EWR2"), row("b", place="xEWR"), columns={"place": {"type": "string", "matches": "EWR|LGA"}}
    )

    assert done.column("id") == ["a"]


def test_bounds_are_inclusive(tmp_path: Path) -> None:
    rows = [row(str(n), n=str(n)) for n in range(5)]

    done = checked(tmp_path, *rows, columns={"n": {"type": "integer", "min": 1, "max": 3}})

    assert done.column("n") == [1, 2, 3]
