"""The CSV reader finds the same records as Python's csv module, in any blocks, each with its true line."""

from __future__ import annotations

import csv
import io
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core.errors import SourceError
from perennial.ingestion import delimited
from perennial.ingestion.delimited import DelimitedFile

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


@settings(max_examples=300, deadline=None)
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
    for row in rows:
        written = stream.getvalue()
        lines.append(1 + written.count("\n") + written.count("\r") - written.count("\r\n"))
        writer.writerow(row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "CHUNK", chunk)
        found, positions, faults = read(stream.getvalue().encode(), delimiter=delimiter)

    assert found == [list(row) for row in rows]
    assert positions == [f"f:{line}" for line in lines]
    assert faults == [None] * len(rows)


@settings(max_examples=300, deadline=None)
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
