"""A small file that asks for a huge memory is read within a flat one, or refused with a sentence. No process is killed.

Each file is landed as a source's file is, in a process of its own whose memory is measured and whose address space is limited.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.settings import PROJECT
from tests.unit.landing import HEADER, at, row, typed, write

pytestmark = pytest.mark.slow

#: Memory in bytes that a file may take beyond what the process has when it begins. Batches, their copies and a row group that
#: is written take some of it, whatever the file says.
FLAT = 700 << 20
ROWS = 64_000

#: Lands files one after the other, and tells what came of each and how much memory was taken so far.
LAND = """
import json, resource, sys, time
from pathlib import Path
from perennial.core.errors import SourceError
from perennial.ingestion.sources import land
from tests.unit.landing import DAY, no_connection, trips
before = None
for kind, place, pattern, sql in json.load(sys.stdin):
    place, began = Path(place), time.perf_counter()
    folder = trips(place, source={"files": pattern}, columns={"extra": {"type": "string", "nullable": True, "sql": sql}})
    before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        said = land(folder, "trips", DAY, place / "staging", data=place / "data", connect=no_connection).rows
    except SourceError as error:
        said = str(error)
    took = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"kind": kind, "said": said, "took": took, "seconds": round(time.perf_counter() - began, 1)}), flush=True)
"""


def land_all(place: Path, files: Mapping[str, tuple[str, Callable[[], bytes], str]]) -> dict[str, dict[str, Any]]:
    """Land files by kind: the end of its name, what makes it, and an expression over its columns. What came of each."""
    tasks = []
    for number, (kind, (suffix, made, sql)) in enumerate(files.items()):
        write(place / str(number), made(), f"trips/2013-04-01.{suffix}")
        tasks.append((kind, str(place / str(number)), f"trips/%Y-%m-%d.{suffix}", sql))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    done = subprocess.run(
        [sys.executable, "-c", LAND], cwd=PROJECT, input=json.dumps(tasks), capture_output=True, text=True, timeout=500,
        check=False, preexec_fn=limit,
    )  # fmt: skip
    found = {line["kind"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, (done.returncode, list(found), done.stderr[-2000:])
    assert list(place.rglob("*.part")) == []
    return found


def repeated(value: Any, rows: int = ROWS) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


def packed(rows: int = ROWS, **columns: Any) -> bytes:
    """A Parquet file of trips whose every column repeats one value."""
    first = typed()
    given = {name: repeated(first[name][0].as_py(), rows) for name in first.column_names} | columns
    stream = io.BytesIO()
    pq.write_table(pa.table(given), stream, compression="zstd", store_schema=False)
    return stream.getvalue()


def lists(values: pa.Array, ends: Any) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def many_row_groups() -> bytes:
    stream = io.BytesIO()
    one = typed()
    table = pa.table(
        {**{name: repeated(one[name][0].as_py(), 200) for name in one.column_names}, "more": repeated("x" * 500_000, 200)}
    )
    with pq.ParquetWriter(stream, table.schema, compression="zstd") as writer:
        for _ in range(300):
            writer.write_table(table)
    return stream.getvalue()


def varint(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    number, written = number << 1, bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def lying(rows: int, told: int) -> bytes:
    """A Parquet file whose footer tells another number of rows, everywhere that it does."""
    content = packed(rows)
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    assert footer.count(varint(rows)) > 1
    footer = footer.replace(varint(rows), varint(told))
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


EXPANDS = r"its values expand to more than 1,000 times its size; if that is right, deliver smaller files$"
PARQUET: dict[str, tuple[Callable[[], bytes], str, Any]] = {
    "64 GB of one text": (lambda: packed(more=repeated("x" * 1_000_000)), "more", EXPANDS),
    "one text of 50 kB": (lambda: packed(1_000, more=repeated("x" * 50_000, 1_000)), "more", 1_000),
    "a text longer than a row may be": (lambda: packed(10, more=repeated("x" * 9_000_000, 10)), "more", r"longer than 8 MiB$"),
    "lists of one text": (lambda: packed(more=lists(repeated("x" * 1_000_000), range(ROWS + 1))), "more[1]", EXPANDS),
    "a list of twenty million": (
        lambda: packed(1, more=lists(pa.array(np.zeros(20_000_000, np.int8)), [0, 20_000_000])), "len(more)", 1,
    ),
    "a struct of one text": (
        lambda: packed(more=pa.StructArray.from_arrays([repeated("x" * 1_000_000)], ["inner"])), "more.inner", EXPANDS,
    ),
    "many row groups": (many_row_groups, "more", EXPANDS),
    "eight million rows": (lambda: packed(8_000_000), "place", EXPANDS),
    "a footer that claims more rows": (lambda: lying(5_000, 2_000_000_000), "place", 5_000),  # what its pages have
    "a footer that claims fewer rows": (lambda: lying(500_000, 3), "place", None),
}  # fmt: skip


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return land_all(
        tmp_path_factory.mktemp("parquet"), {kind: ("parquet", made, sql) for kind, (made, sql, _) in PARQUET.items()}
    )


@pytest.mark.parametrize("kind", PARQUET)
def test_a_parquet_file_takes_a_flat_memory_or_is_refused(kind: str, parquet: dict[str, dict[str, Any]]) -> None:
    found, expected = parquet[kind], PARQUET[kind][2]
    assert found["took"] < FLAT, found
    if isinstance(expected, str):
        assert re.search(expected, str(found["said"])), found
        assert "trips/2013-04-01.parquet" in str(found["said"])
    elif expected is not None:
        assert found["said"] == expected


def zipped(text: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trips.csv", text)
    return stream.getvalue()


def line() -> bytes:
    return json.dumps({"id": "a", "begun": at(6), "place": "EWR", "n": 1, "x": 0.5}).encode() + b"\n"


MANY = (HEADER + row() * 1_000_000).encode()
TEXTS: dict[str, tuple[str, Callable[[], bytes], Any]] = {
    "zip": ("csv", lambda: zipped(HEADER), r"a zip archive or an Excel workbook; export it as CSV"),
    "xz": ("csv", lambda: lzma.compress(MANY[:10_000]), r"compressed by xz; compress it by gzip"),
    "bzip2": ("csv", lambda: bz2.compress(MANY[:10_000]), r"compressed by bzip2; compress it by gzip"),
    "gzip of zeros": ("csv.gz", lambda: gzip.compress(bytes(1 << 28), 1), r"longer than 8 MiB|not CSV|not text|expands"),
    "zstd of rows": (
        "csv.zst", lambda: pa.compress(MANY + MANY[len(HEADER) :] * 9, "zstd", asbytes=True), r"expands to more than 250 times",
    ),
    "a field of 9 MiB": ("csv", lambda: (HEADER + row(place="x" * (9 << 20))).encode(), r"longer than 8 MiB"),
    "a quoted field without an end": ("csv", lambda: (HEADER + 'a,"' + "x\n" * (10 << 20)).encode(), r"longer than 8 MiB"),
    "a header of a million columns": (
        "csv", lambda: (HEADER.strip() + "," + ",".join(map(str, range(900_000))) + "\n" + row()).encode(),
        r"the header names 900,005 columns; at most 20,000 are read",
    ),
    "a row of four million fields": ("csv", lambda: (HEADER + "," * (4 << 20) + "\n" + row()).encode(), 2),
    "a JSON line of 9 MiB": ("jsonl", lambda: json.dumps({"id": "x" * (9 << 20)}).encode() + b"\n", r"longer than 8 MiB"),
    "JSON that is nested a million deep": (
        "jsonl", lambda: b'{"id": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}\n" + line(), None,
    ),
    "300,000 keys in a line": (
        "jsonl", lambda: json.dumps({f"k{n}": 1 for n in range(300_000)}).encode() + b"\n" + line(),
        r"different keys; at most 20,000 are read",
    ),
    "another key in each of 50,000 lines": (
        "jsonl", lambda: b"".join(line()[:-2] + f', "k{n}": 1}}\n'.encode() for n in range(50_000)),
        r"different keys; at most 20,000 are read",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return land_all(
        tmp_path_factory.mktemp("texts"), {kind: (suffix, made, "place") for kind, (suffix, made, _) in TEXTS.items()}
    )


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_of_texts_takes_a_flat_memory_or_is_refused(kind: str, texts: dict[str, dict[str, Any]]) -> None:
    found, (suffix, _, expected) = texts[kind], TEXTS[kind]
    assert found["took"] < FLAT, found
    if isinstance(expected, str):
        assert re.search(expected, str(found["said"])), found
        assert f"trips/2013-04-01.{suffix}" in str(found["said"])
    elif expected is not None:
        assert found["said"] == expected
