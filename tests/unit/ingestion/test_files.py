"""Every bad file ends in one of: accepted as meant, quarantined with its reason, rejected with a clear error.

The lake's tables are what is asserted: what is published, what is quarantined at which line and why. A file that is
rejected leaves nothing behind.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import SourceError
from perennial.core.intervals import Interval
from perennial.ingestion import casting, files, landing
from perennial.ingestion.files import BOMB_RATIO
from perennial.ingestion.sources import land
from tests.unit.landing import DAY, HEADER, Ingested, ingest, no_connection, row, trips, write

SIX = datetime(2013, 4, 1, 6, tzinfo=UTC)
GOOD = {"id": "a", "begun": SIX, "place": "EWR", "n": 1, "x": 0.5, "_known_at": SIX}
FILE = "trips/2013-04-01.csv"


def parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


# --- accepted as meant -----------------------------------------------------------------------------------------------

ACCEPTED: dict[str, tuple[bytes | str, list[dict[str, Any]]]] = {
    "plain": (HEADER + row(), [{}]),
    "byte order mark": (b"\xef\xbb\xbf" + (HEADER + row()).encode(), [{}]),
    "UTF-16 with its mark": ((HEADER + row(place="Zürich")).encode("utf-16"), [{"place": "Zürich"}]),
    "gzip named .csv": (gzip.compress((HEADER + row()).encode()), [{}]),
    "Windows line ends": ((HEADER + row()).replace("\n", "\r\n"), [{}]),
    "CR line ends": ((HEADER + row() + row("b")).replace("\n", "\r"), [{}, {"id": "b"}]),
    "columns reordered": ("x,n,place,begun,id\n0.5,1,EWR,2013-04-01T06:00:00Z,a\n", [{}]),
    "extra columns": ("more,id,begun,place,n,x,\nM," + row().rstrip() + ",\n", [{}]),
    "header in capitals": (HEADER.upper() + row(), [{}]),
    "spaces around names and numbers": ("id , begun, place,n , x\na,2013-04-01T06:00:00Z,EWR, 1 , 0.5 \n", [{}]),
    "blank lines": ("\n" + HEADER + "\n" + row() + "\n\n", [{}]),
    "newline inside a field": (HEADER + row(place='"New\nark"'), [{"place": "New\nark"}]),
    "delimiter and quotes inside a field": (HEADER + row(place='"a ""b"", c"'), [{"place": 'a "b", c'}]),
    "header again in the middle": (HEADER + row() + HEADER + row("b"), [{}, {"id": "b"}]),
    "last line quoted to its end, without a line end": (HEADER + row(x='"0.5"').rstrip(), [{}]),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_file_whose_meaning_is_plain_is_accepted_as_meant(case: str, tmp_path: Path) -> None:
    content, wanted = ACCEPTED[case]
    write(tmp_path, content)

    done = ingest(trips(tmp_path), tmp_path)

    assert done.published == [{**GOOD, **differences} for differences in wanted]
    assert done.quarantined == []
    assert done.result.reasons == []


@pytest.mark.parametrize(
    ("content", "notice"),
    [
        (HEADER + row() + HEADER, f"{FILE}: the header stands again on line 3; left out"),
        (HEADER.rstrip() + ",\n" + row().rstrip() + ",\n", f"{FILE}:1: 1 columns without a name are left out"),
        ("more," + HEADER + "M," + row(), "columns that no table names are left out: more"),
        (gzip.compress((HEADER + row()).encode()), f"{FILE}: read as gzip, which it is, whatever its name says"),
        ((HEADER + row()).encode("utf-16"), f"{FILE}: read as UTF-16, as its byte order mark says, not as utf-8"),
    ],
    ids=["header again", "unnamed column", "extra column", "gzip named .csv", "utf-16"],
)
def test_what_is_accepted_against_appearances_is_noticed(content: str | bytes, notice: str, tmp_path: Path) -> None:
    write(tmp_path, content)

    done = ingest(trips(tmp_path), tmp_path)

    assert done.landed.notices == [notice]
    assert done.published == [GOOD]


def test_an_hour_that_new_york_skipped_is_an_hour_of_utc(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(begun="2013-03-10T02:30:00"), "trips/2013-03-10.csv")

    done = ingest(trips(tmp_path), tmp_path, Interval.day("2013-03-10"))

    assert done.column("begun") == [datetime(2013, 3, 10, 2, 30, tzinfo=UTC)]


def test_plain_text_named_gzip_is_accepted_with_a_notice(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-04-01.csv.gz")

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv.gz"}), tmp_path)

    assert done.published == [GOOD]
    assert done.landed.notices == ["trips/2013-04-01.csv.gz: read as plain text, which it is, whatever its name says"]


def test_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    content = gzip.compress((HEADER + row()).encode()) + gzip.compress(row("b").encode())
    write(tmp_path, content, "trips/2013-04-01.csv.gz")

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv.gz"}), tmp_path)

    assert done.column("id") == ["a", "b"]


def test_latin_1_is_read_where_the_source_says_so(tmp_path: Path) -> None:
    write(tmp_path, (HEADER + row(place="Zürich")).encode("latin-1"))

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv", "encoding": "latin-1"}), tmp_path)

    assert done.column("place") == ["Zürich"]
    assert done.landed.notices == []


def test_utf_8_read_as_latin_1_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(place="Zürich"))

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv", "encoding": "latin-1"}), tmp_path)

    assert done.landed.notices == [f"{FILE}: read as latin-1, yet it is sound UTF-8; is `encoding: latin-1` right?"]


def test_null_values_stand_for_no_value_only_where_the_source_names_them(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(place="NA", n="NA", x='"NA"'))
    source = {"files": "trips/%Y-%m-%d.csv", "null_values": ["NA"]}

    done = ingest(trips(tmp_path, source=source, columns={"place": {"type": "string", "nullable": True}}), tmp_path)

    assert done.published == [{**GOOD, "place": None, "n": None, "x": None}]


def test_ten_thousand_columns_leave_those_that_are_named(tmp_path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(10_000))
    write(tmp_path, f"{names},{HEADER}{',' * 10_000}{row()}")

    done = ingest(trips(tmp_path), tmp_path)

    assert done.published == [GOOD]
    assert pq.read_schema(done.landed.path).names[:5] == ["id", "begun", "place", "n", "x"]


def test_the_same_name_with_new_content_is_another_file(tmp_path: Path) -> None:
    folder = trips(tmp_path)
    write(tmp_path, HEADER + row())
    first = ingest(folder, tmp_path)
    write(tmp_path, HEADER + row(n="2"))
    second = ingest(folder, tmp_path)

    assert first.column("n") == [1]
    assert second.column("n") == [2]
    assert first.landed.files[0]["name"] == second.landed.files[0]["name"] == FILE
    assert first.landed.files[0]["sha256"] != second.landed.files[0]["sha256"]


def test_the_same_content_under_a_new_name_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/one.csv")
    write(tmp_path, HEADER + row(), "trips/two.csv")
    write(tmp_path, HEADER + row("b"), "trips/three.csv")

    done = ingest(trips(tmp_path, source={"files": "trips/*.csv"}), tmp_path)

    assert sorted(done.column("id")) == ["a", "b"]
    assert done.landed.notices == ["trips/two.csv: has the same content as trips/one.csv; read once"]


def test_yesterdays_content_under_todays_name_is_not_todays_data(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-04-01.csv")
    write(tmp_path, HEADER + row(), "trips/2013-04-02.csv")

    done = ingest(trips(tmp_path), tmp_path, Interval.of("2013-04-01", "2013-04-03"))

    assert done.result.refused
    assert done.faults["trips/2013-04-02.csv:2"][0].endswith("lies outside the period of its file")


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


# --- quarantined with the reason -------------------------------------------------------------------------------------

PLAIN_NUMBER = "is not a plain whole number"
HIDDEN = "holds a character that is invisible, changes the direction of the text, or controls a terminal"
NO_TIME = "is not a time in ISO 8601, such as 2013-04-01T06:00:00Z, that exists"

QUARANTINED: dict[str, tuple[str, str]] = {
    "short row": ("b,2013-04-01T06:00:00Z,EWR\n", "the row has 3 fields where the header has 5"),
    "long row": (row("b", x="0.5,7"), "the row has 6 fields where the header has 5"),
    "last line cut": ("b,2013-04-01T06:0", "the row has 2 fields where the header has 5"),
    "last line cut inside its last value": (
        row("b", x="0.512")[:-3],
        "the last line has no line end, so its last value may be cut; end the file with a line break",
    ),
    "a stray quote": (
        row("b", place='5" x 7"'),
        "a quote stands inside a field that is not quoted, or text after a closing quote",
    ),
    "a NUL inside a number": (row("b", n="1\x002"), f"n: '1\\u00002' {PLAIN_NUMBER}"),
    "a NUL inside a text": (row("b", place="E\0R"), f"place: 'E\\u0000R' {HIDDEN}"),
    "1e400": (row("b", x="1e400"), "x: '1e400' is too large for a 64-bit float"),
    "inf": (row("b", x="inf"), "x: 'inf' is not a plain finite number"),
    "nan": (row("b", x="nan"), "x: 'nan' is not a plain finite number"),
    "an integer above 2^63": (
        row("b", n="9223372036854775808"),
        "n: '9223372036854775808' is too large to be an exact 64-bit integer",
    ),
    "an integer that went through a float": (
        row("b", n="9007199254740994.0"),
        "n: '9007199254740994.0' is too large to be an exact 64-bit integer",
    ),
    "a fraction where an integer is wanted": (row("b", n="1.5"), f"n: '1.5' {PLAIN_NUMBER}"),
    "1,234": (row("b", n='"1,234"'), f"n: '1,234' {PLAIN_NUMBER}"),
    "1_234": (row("b", n="1_234"), f"n: '1_234' {PLAIN_NUMBER}"),
    "a decimal comma": (row("b", x='"0,5"'), "x: '0,5' is not a plain finite number"),
    "30 February": (row("b", begun="2013-02-30"), f"begun: '2013-02-30' {NO_TIME}"),
    "24 o'clock": (row("b", begun="2013-04-01T24:00:00"), f"begun: '2013-04-01T24:00:00' {NO_TIME}"),
    "an American date": (row("b", begun="04/01/2013"), f"begun: '04/01/2013' {NO_TIME}"),
    "a zone by name": (
        row("b", begun="2013-04-01T06:00:00 America/New_York"),
        f"begun: '2013-04-01T06:00:00 America/New_York' {NO_TIME}",
    ),
    "a formula in a number": (row("b", n="=1+1"), f"n: '=1+1' {PLAIN_NUMBER}"),
    "a call in a number": (row("b", n="@SUM(1)"), f"n: '@SUM(1)' {PLAIN_NUMBER}"),
    "a sum in a number": (row("b", n="+1+1"), f"n: '+1+1' {PLAIN_NUMBER}"),
    "a difference in a number": (row("b", n="-1-1"), f"n: '-1-1' {PLAIN_NUMBER}"),
    "ANSI escapes": (row("b", place="\x1b[31mEWR"), f"place: '\\u001b[31mEWR' {HIDDEN}"),
    "a no-break space in a number": (row("b", n="1\u00a0234"), f"n: '1\\u00a0234' {PLAIN_NUMBER}"),
    "a no-break space in a text": (row("b", place="EWR\u00a0"), f"place: 'EWR\\u00a0' {HIDDEN}"),
    "a zero-width space": (row("b", place="E\u200bWR"), f"place: 'E\\u200bWR' {HIDDEN}"),
    "a zero-width joiner between Latin letters": (row("b", place="E\u200dWR"), f"place: 'E\\u200dWR' {HIDDEN}"),
    "a right-to-left override": (row("b", place="\u202eRWE"), f"place: '\\u202eRWE' {HIDDEN}"),
    "a byte order mark inside": (row("b", place="\ufeffEWR"), f"place: '\\ufeffEWR' {HIDDEN}"),
    "a character lost before": (row("b", place="Z\ufffdrich"), f"place: 'Z\ufffdrich' {HIDDEN}"),
    "full-width digits in a number": (row("b", n="１２"), f"n: '１２' {PLAIN_NUMBER}"),  # noqa: RUF001
    "a time in the future": (
        row("b", begun="2099-01-01T00:00:00Z"),
        "begun: 2099-01-01 00:00:00+00 lies outside the period of its file",
    ),
    "a time of 1970": (row("b", begun="1970-01-01"), "begun: 1970-01-01 00:00:00+00 lies outside the period of its file"),
    "a year before Christ": (row("b", begun="0000-01-01"), f"begun: '0000-01-01' {NO_TIME}"),
    "no time at all": (row("b", begun=""), "begun: missing"),
    "no key": (row(""), "id: missing"),
    "sentinel -1": (row("b", n="-1"), "n: -1 is below 0"),
    "sentinel 9999": (row("b", n="9999"), "n: 9999 is above 1000"),
    "units off by 1000": (row("b", x="500"), "x: 500.0 is above 10"),
    "a column of another": (row("b", place="ZZZ"), "place: 'ZZZ' does not match ^(?!ZZZ).*"),
}


#: These are told by where the file ends, so each needs a file of its own.
AT_THE_END = [case for case in QUARANTINED if case.startswith("last line cut")]
CHECKED = {
    "place": {"type": "string", "matches": "^(?!ZZZ).*"},
    "n": {"type": "integer", "nullable": True, "min": 0, "max": 1000},
    "x": {"type": "float", "nullable": True, "max": 10},
}


@pytest.fixture(scope="module")
def ingested_at_once(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """One file in which every second row is a good one, and the others are the cases in order."""
    path = tmp_path_factory.mktemp("rows")
    bad = [content for case, (content, _) in QUARANTINED.items() if case not in AT_THE_END]
    write(path, HEADER + "".join(row(f"good{n}") + content for n, content in enumerate(bad)))
    return ingest(trips(path, columns=CHECKED), path)


@pytest.mark.parametrize("case", [case for case in QUARANTINED if case not in AT_THE_END])
def test_a_rows_fault_sends_that_row_to_quarantine_with_its_reason(case: str, ingested_at_once: Ingested) -> None:
    _, reason = QUARANTINED[case]
    line = 3 + 2 * [other for other in QUARANTINED if other not in AT_THE_END].index(case)

    assert reason in ingested_at_once.faults[f"{FILE}:{line}"]


def test_rows_beside_faulty_ones_are_published_as_they_are(ingested_at_once: Ingested) -> None:
    bad = len(QUARANTINED) - len(AT_THE_END)

    assert ingested_at_once.published == [{**GOOD, "id": f"good{n}"} for n in range(bad)]
    assert len(ingested_at_once.quarantined) == bad


def test_a_quarantined_row_is_kept_as_it_came(ingested_at_once: Ingested) -> None:
    by_position = {kept["position"]: kept for kept in ingested_at_once.quarantined}
    short, number = (by_position[f"{FILE}:{line}"] for line in (3, 9))

    assert json.loads(short["row"]) == {"_raw": "b,2013-04-01T06:00:00Z,EWR"}
    assert json.loads(number["row"]) == {"id": "b", "begun": "2013-04-01T06:00:00Z", "place": "EWR", "n": "1\0002", "x": "0.5"}
    for kept in ingested_at_once.quarantined:
        assert (kept["table"], kept["run_id"]) == ("trips", "a run")
        assert DAY.start <= kept["_event_time"] < DAY.end


@pytest.mark.parametrize("case", AT_THE_END)
def test_a_cut_last_line_goes_to_quarantine_alone(case: str, tmp_path: Path) -> None:
    cut, reason = QUARANTINED[case]
    write(tmp_path, HEADER + row(place='"New\nark"') + cut)

    done = ingest(trips(tmp_path), tmp_path)

    assert done.published == [{**GOOD, "place": "New\nark"}]
    # The line of the file, though a field of the row before holds a line break.
    assert done.faults == {f"{FILE}:4": [reason]}
    assert done.result.reasons == [f"{FILE}:4: {reason}"]


def test_a_row_is_quarantined_with_every_reason(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row() + row("", place="lga", n="x", x="1e999"))
    columns = {"place": {"type": "string", "matches": "^[A-Z]{3}$", "values": ["EWR", "LGA"]}}

    done = ingest(trips(tmp_path, columns=columns), tmp_path)

    assert done.faults == {
        f"{FILE}:3": [
            "id: missing",
            "place: 'lga' is none of EWR, LGA",
            "place: 'lga' does not match ^[A-Z]{3}$",
            f"n: 'x' {PLAIN_NUMBER}",
            "x: '1e999' is too large for a 64-bit float",
        ]
    }


def test_every_key_duplicated_is_refused(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row() + row("b") + row(n="2") + row("b", n="2"))

    done = ingest(trips(tmp_path, table={"tolerance": 0.2}), tmp_path)

    assert done.result.refused
    assert done.result.reasons[0] == "4 of 4 rows (100.0%) fail a critical check, more than the tolerance of 20.0%"
    assert done.faults[f"{FILE}:3"] == ["key: 2 rows are b, and they differ"]


def test_two_columns_swapped_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "id,begun,n,place,x\n" + "".join(row(str(n)) for n in range(20)))

    done = ingest(trips(tmp_path, table={"tolerance": 0.2}), tmp_path)

    assert done.result.refused
    assert done.published == []
    assert any("20 times, first trips/2013-04-01.csv:2: n: 'EWR' is not a plain whole number" in r for r in done.result.reasons)


def test_a_decimal_comma_after_semicolons_is_refused_rather_than_shifted(tmp_path: Path) -> None:
    write(tmp_path, "id;begun;place;n;x\n" + "".join(f"{n};2013-04-01T06:00:00Z;EWR;1;0,5\n" for n in range(20)))
    source = {"files": "trips/%Y-%m-%d.csv", "delimiter": ";"}

    refused = ingest(trips(tmp_path, source=source, table={"tolerance": 0.2}), tmp_path)
    columns = {"x": {"type": "float", "sql": "replace(x, ',', '.')"}}
    meant = ingest(trips(tmp_path, source=source, columns=columns), tmp_path)

    assert refused.result.refused
    assert meant.column("x") == [0.5] * 20


def test_a_day_of_nothing_but_a_header_is_refused_unless_the_spec_allows_it(tmp_path: Path) -> None:
    write(tmp_path, HEADER)

    refused = ingest(trips(tmp_path), tmp_path)
    allowed = ingest(trips(tmp_path, table={"checks": {"rows": {"min": 0}}}), tmp_path)

    assert refused.result.refused
    assert refused.result.reasons == ["2013-04-01: 0 rows came in where at least 1 are wanted"]
    assert not allowed.result.refused
    assert allowed.published == []


# --- rejected with a clear error -------------------------------------------------------------------------------------

REJECTED: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", f"{FILE}: empty, not even a header"),
    "blank lines alone": ("\n\r\n\n", f"{FILE}: empty, not even a header"),
    "no header": (row() + row("b"), f"{FILE}:1: there is no column id; there are: 'a, 2013-04-01T06:00:00Z, EWR, 1, 0.5'"),
    "an HTML error page": ("<!doctype html><h1>502</h1>", f"{FILE}: not CSV but a page of markup, perhaps an error page"),
    "a JSON error": ('{"error": "no"}', f"{FILE}: not CSV but JSON, perhaps an error message"),
    "Parquet named .csv": (parquet(pa.table({"id": ["a"]})), f"{FILE}: not CSV but a Parquet file; name it .parquet"),
    "an Excel workbook": (b"PK\x03\x04rest", f"{FILE}: not CSV but a zip archive or an Excel workbook; export it as CSV"),
    "all rows long": (
        HEADER + (row().rstrip() + ",\n") * 9,
        f"{FILE}:1: every row has 6 fields where the header has 5",
    ),
    "duplicate header": ("id,begun,place,n,n\n", f"{FILE}:1: the header names 'n' twice"),
    "headers that differ in case alone": ("id,begun,place,n,x,N\n", f"{FILE}:1: 'n' and 'N' differ in case alone"),
    "a column renamed": (
        HEADER.replace("place", "placed") + row(),
        "there is no column place; there are: 'id, begun, placed, n, x'; is it now called placed?",
    ),
    "a column missing": ("id,begun,n,x\n", f"{FILE}:1: there is no column place; there are: 'id, begun, n, x'"),
    "another delimiter": ((HEADER + row()).replace(",", ";"), "are the fields set apart by ';'? Then write `delimiter`"),
    "Latin-1 as UTF-8": ((HEADER + row(place="Zürich")).encode("latin-1"), f"{FILE}:2: not utf-8 (byte 0xfc)"),
    "UTF-16 without a mark": ((HEADER + row()).encode("utf-16-le"), f"{FILE}:1: there is no column id"),
    "an unterminated quote": (HEADER + row(place='"EWR') + row("b"), f"{FILE}:2: a quote that is opened in the row"),
    "an unterminated quote before a quoted field": (
        HEADER + row() + row("b", place='"EWR') + row("c") + row("d", place='"LGA"'),
        f"{FILE}:3: a quote that is opened in the row of this line is never closed",
    ),
    "stray quotes in two rows": (
        HEADER + row() + row("b", place='5" wide') + row("c") + row("d", place='7" wide'),
        f"{FILE}:3: a quote stands inside a field that is not quoted, or is never closed",
    ),
    "a field longer than a row may be": (HEADER + row(place="E" * (9 << 20)), f"{FILE}:2: the row that begins here is longer"),
    "gzip cut": (gzip.compress((HEADER + row() * 99).encode())[:-9], f"{FILE}: cut: its gzip ends early; deliver it again"),
    "gzip damaged": (gzip.compress((HEADER + row()).encode())[:-8] + b"12345678", f"{FILE}: damaged: CRC check failed"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_a_files_fault_rejects_it_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    content, message = REJECTED[case]
    write(tmp_path, content)

    rejects(tmp_path, message)


def rejects(path: Path, message: str, **model: Any) -> None:
    with pytest.raises(SourceError) as raised:
        land(trips(path, **model), "trips", DAY, path / "staging", data=path / "data", connect=no_connection)
    assert message in str(raised.value)
    assert str(raised.value).startswith("trips, 2013-04-01, source files: ")
    assert list((path / "staging").iterdir()) == []


def test_a_missing_file_is_named_with_the_pattern_that_wants_it(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-03-31.csv")

    rejects(tmp_path, f"trips/2013-04-01.csv: there is no such file below {tmp_path / 'data'}, as `files: trips/%Y-%m-%d.csv`")


def test_utf_16_that_is_announced_needs_its_mark(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())

    rejects(
        tmp_path,
        f"{FILE}: encoding is utf-16, but the file has no byte order mark; is it utf-8?",
        source={"files": "trips/%Y-%m-%d.csv", "encoding": "utf-16"},
    )


def test_csv_named_parquet_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/2013-04-01.parquet")

    rejects(tmp_path, "not Parquet, whatever its name says", source={"files": "trips/%Y-%m-%d.parquet"})


def test_parquet_cut_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, parquet(pa.table({"id": ["a"]}))[:-20], "trips/2013-04-01.parquet")

    rejects(tmp_path, "trips/2013-04-01.parquet: damaged Parquet", source={"files": "trips/%Y-%m-%d.parquet"})


def test_parquet_with_a_damaged_page_is_rejected(tmp_path: Path) -> None:
    content = bytearray(
        parquet(pa.table({name: [f"{name}{n}" for n in range(5000)] for name in ("id", "begun", "place", "n", "x")}))
    )
    content[1000:9000] = bytes(8000)
    write(tmp_path, bytes(content), "trips/2013-04-01.parquet")

    rejects(tmp_path, "trips/2013-04-01.parquet: damaged Parquet", source={"files": "trips/%Y-%m-%d.parquet"})


def test_a_file_name_that_cannot_be_shown_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/\x1b[2Jgone.csv")

    rejects(tmp_path, "'trips/\\x1b[2Jgone.csv': a file name with characters", source={"files": "trips/*.csv"})


def test_a_zip_bomb_is_rejected_before_it_has_gone_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BOMB_FROM", 1 << 20)
    write(tmp_path, gzip.compress((HEADER + row() * 200_000).encode()))

    rejects(tmp_path, f"{FILE}: holds more than {BOMB_RATIO} times its size, like a bomb")


def test_a_field_of_a_gigabyte_is_rejected_after_its_first_megabytes(tmp_path: Path) -> None:
    file = write(tmp_path, HEADER + "b,")
    os.truncate(file, 1 << 30)  # sparse: a gigabyte of NULs that takes no room

    rejects(tmp_path, f"{FILE}:2: the row that begins here is longer than 8 MiB")


def test_a_symbolic_link_out_of_the_data_folder_is_rejected(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text(HEADER + row())
    (tmp_path / "data" / "trips").mkdir(parents=True)
    (tmp_path / "data" / FILE).symlink_to(secret)

    rejects(tmp_path, f"{FILE}: leads out of the data folder")


def test_a_folder_that_is_a_link_out_of_the_data_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2013-04-01.csv").write_text(HEADER + row())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trips").symlink_to(tmp_path / "elsewhere")

    rejects(tmp_path, f"{FILE}: leads out of the data folder")


def test_a_symbolic_link_within_the_data_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(), "trips/delivered")
    (tmp_path / "data" / FILE).symlink_to("delivered")

    assert ingest(trips(tmp_path), tmp_path).published == [GOOD]


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "FIFO"), (os.mkdir, "folder")],
    ids=["FIFO", "folder"],
)
def test_what_is_no_regular_file_is_rejected_without_waiting(make: Callable[[Path], None], kind: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "trips").mkdir(parents=True)
    make(tmp_path / "data" / FILE)

    rejects(tmp_path, f"{FILE}: not a regular file but a {kind}")


def test_a_device_is_rejected(tmp_path: Path) -> None:
    device = tmp_path / "endless.csv"
    device.symlink_to("/dev/zero")

    rejects(tmp_path, "endless.csv: not a regular file but a device", source={"files": f"file://{device}"})


def test_a_file_that_changes_while_it_is_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, HEADER + row())
    bind = casting.bind

    def append_and_bind(*arguments: Any) -> Any:
        with file.open("a") as stream:
            stream.write(row("b"))
        return bind(*arguments)

    monkeypatch.setattr(landing, "bind", append_and_bind)

    rejects(tmp_path, f"{FILE}: changed while it was read; write it under another name and rename it when it is complete")
