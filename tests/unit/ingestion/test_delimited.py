"""The CSV reader finds the same records as Python's csv module, in any blocks, each with its true line."""

from __future__ import annotations

import csv
import gzip
import io
import os
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import SourceError
from perennial.ingestion import delimited
from perennial.ingestion.delimited import DelimitedFile
from tests.unit.landing import (
    FILE,
    GOOD,
    HEADER,
    ingest,
    parquet,
    rejects,
    row,
    trips,
    write,
)

# What is dangerous in CSV, often: quotes, delimiters, line ends, spaces, nothing, and characters of several bytes.
FIELDS = st.text(st.sampled_from(list('ab",;\n\r é𝄞1')), max_size=6)


def read(content: bytes, *, delimiter: str = ",") -> tuple[list[list[str | None]], list[str], list[str | None]]:
    """Rows, positions and faults."""
    file = DelimitedFile(io.BytesIO(content).read, name="f", delimiter=delimiter, null_values=())
    rows: list[list[str | None]] = []
    positions: list[str] = []
    faults: list[str | None] = []
    for batch in file.batches(file.header):
        columns = [batch.column(n).to_pylist() for n in range(batch.num_columns)]
        rows += [list(values) for values in zip(*columns[:-3], strict=True)]
        positions += columns[-3]
        faults += columns[-2]
    return rows, positions, faults


@settings(max_examples=300)
@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=8),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    delimiter=st.sampled_from([",", ";"]),
    chunk=st.integers(1, 40),
)
def test_whatever_is_written_soundly_is_read_back_in_any_blocks(
    rows: list[tuple[str, str, str]], line_end: str, delimiter: str, chunk: int
) -> None:
    stream = io.StringIO(newline="")
    # With other line ends than the usual, Python's writer leaves lone carriage returns unquoted.
    quoting: Literal[0, 1] = csv.QUOTE_MINIMAL if line_end == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerow(["x", "y", "z"])
    lines = []
    for values in rows:
        written = stream.getvalue()
        lines.append(1 + written.count("\n") + written.count("\r") - written.count("\r\n"))
        writer.writerow(values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "CHUNK", chunk)
        found, positions, faults = read(stream.getvalue().encode(), delimiter=delimiter)

    assert found == [list(values) for values in rows]
    assert positions == [f"f:{line}" for line in lines]
    assert faults == [None] * len(rows)


@settings(max_examples=300)
@given(content=st.text(st.sampled_from(list('ab",\n\r')), max_size=60), chunk=st.integers(1, 40))
def test_any_text_is_split_the_same_in_any_blocks_or_refused(content: str, chunk: int) -> None:
    def outcome() -> object:
        try:
            return read(b"x,y\n" + content.encode())
        except SourceError as error:
            return type(error)

    whole = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "CHUNK", chunk)
        in_blocks = outcome()

    if isinstance(whole, tuple) and isinstance(in_blocks, tuple):
        # Within a block broken rows come last.
        assert sorted(zip(*whole, strict=True), key=str) == sorted(zip(*in_blocks, strict=True), key=str)
    else:
        assert whole == in_blocks


def test_columns_come_in_the_order_they_are_asked_for() -> None:
    file = DelimitedFile(io.BytesIO(b"x,y,z\n1,2,3\n").read, name="f")

    [batch] = file.batches(["z", "x"])

    assert [batch.column(n).to_pylist() for n in (0, 1)] == [["3"], ["1"]]


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
        (HEADER + row() + HEADER, f"{FILE}: the header is repeated on line 3; left out"),
        (HEADER.rstrip() + ",\n" + row().rstrip() + ",\n", f"{FILE}:1: 1 columns without a name are left out"),
        ("more," + HEADER + "M," + row(), "columns that no table mentions are left out: more"),
        (gzip.compress((HEADER + row()).encode()), f"{FILE}: read as gzip: the content says so, although the name does not"),
        ((HEADER + row()).encode("utf-16"), f"{FILE}: read as UTF-16, as its byte order mark says, not as utf-8"),
    ],
    ids=["header again", "unnamed column", "extra column", "gzip named .csv", "utf-16"],
)
def test_what_is_accepted_against_appearances_is_noticed(content: str | bytes, notice: str, tmp_path: Path) -> None:
    write(tmp_path, content)

    done = ingest(trips(tmp_path), tmp_path)

    assert done.landed.notices == [notice]
    assert done.published == [GOOD]


def test_latin_1_is_read_where_the_source_says_so(tmp_path: Path) -> None:
    write(tmp_path, (HEADER + row(place="Zürich")).encode("latin-1"))

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv", "encoding": "latin-1"}), tmp_path)

    assert done.column("place") == ["Zürich"]
    assert done.landed.notices == []


def test_utf_8_read_as_latin_1_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row(place="Zürich"))

    done = ingest(trips(tmp_path, source={"files": "trips/%Y-%m-%d.csv", "encoding": "latin-1"}), tmp_path)

    assert done.landed.notices == [f"{FILE}: read as latin-1, but it is valid UTF-8; is `encoding: latin-1` right?"]


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
    assert pq.read_schema(done.landed.paths[0]).names[:5] == ["id", "begun", "place", "n", "x"]


# --- rejected with a clear error -------------------------------------------------------------------------------------


REJECTED: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", f"{FILE}: empty, without a header"),
    "blank lines alone": ("\n\r\n\n", f"{FILE}: empty, without a header"),
    "no header": (row() + row("b"), f"{FILE}:1: there is no column id; there are: 'a, 2013-04-01T06:00:00Z, EWR, 1, 0.5'"),
    "an HTML error page": ("<!doctype html><h1>502</h1>", f"{FILE}: not CSV but a page of markup, perhaps an error page"),
    "a JSON error": ('{"error": "no"}', f"{FILE}: not CSV but JSON, perhaps an error message"),
    "Parquet named .csv": (parquet(pa.table({"id": ["a"]})), f"{FILE}: not CSV but a Parquet file; name it .parquet"),
    "an Excel workbook": (b"PK\x03\x04rest", f"{FILE}: not CSV but a zip archive or an Excel workbook; export it as CSV"),
    "all rows long": (
        HEADER + (row().rstrip() + ",\n") * 9,
        f"{FILE}:1: every row has 6 fields, but the header has 5",
    ),
    "duplicate header": ("id,begun,place,n,n\n", f"{FILE}:1: the header names 'n' twice"),
    "headers that differ only in case": ("id,begun,place,n,x,N\n", f"{FILE}:1: 'n' and 'N' differ only in case"),
    "a column renamed": (
        HEADER.replace("place", "placed") + row(),
        "there is no column place; there are: 'id, begun, placed, n, x'; is it now called placed?",
    ),
    "a column missing": ("id,begun,n,x\n", f"{FILE}:1: there is no column place; there are: 'id, begun, n, x'"),
    "another delimiter": ((HEADER + row()).replace(",", ";"), "are the fields separated by ';'? Then set `delimiter`"),
    "Latin-1 as UTF-8": ((HEADER + row(place="Zürich")).encode("latin-1"), f"{FILE}:2: not utf-8 (byte 0xfc)"),
    "UTF-16 without a mark": ((HEADER + row()).encode("utf-16-le"), f"{FILE}:1: there is no column id"),
    "an unterminated quote": (HEADER + row(place='"EWR') + row("b"), f"{FILE}:2: a quote that opens in this row"),
    "an unterminated quote before a quoted field": (
        HEADER + row() + row("b", place='"EWR') + row("c") + row("d", place='"LGA"'),
        f"{FILE}:3: a quote that opens in this row is never closed",
    ),
    "stray quotes in two rows": (
        HEADER + row() + row("b", place='5" wide') + row("c") + row("d", place='7" wide'),
        f"{FILE}:3: a quote inside an unquoted field, or a quote that is never closed",
    ),
    "a field longer than a row may be": (HEADER + row(place="E" * (9 << 20)), f"{FILE}:2: the row that begins here is longer"),
    "gzip cut": (gzip.compress((HEADER + row() * 99).encode())[:-9], f"{FILE}: truncated: its gzip ends early"),
    "gzip damaged": (gzip.compress((HEADER + row()).encode())[:-8] + b"12345678", f"{FILE}: damaged: CRC check failed"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_a_files_fault_rejects_it_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    content, message = REJECTED[case]
    write(tmp_path, content)

    rejects(tmp_path, message)


def test_utf_16_that_is_announced_needs_its_mark(tmp_path: Path) -> None:
    write(tmp_path, HEADER + row())

    rejects(
        tmp_path,
        f"{FILE}: encoding is utf-16, but the file has no byte order mark; is it utf-8?",
        source={"files": "trips/%Y-%m-%d.csv", "encoding": "utf-16"},
    )


def test_a_field_of_a_gigabyte_is_rejected_after_its_first_megabytes(tmp_path: Path) -> None:
    file = write(tmp_path, HEADER + "b,")
    os.truncate(file, 1 << 30)  # sparse: a gigabyte of NULs that takes no room

    rejects(tmp_path, f"{FILE}:2: the row that begins here is longer than 8 MiB")
