"""A strict CSV reader with bounded memory. Each row carries the line on which it begins.

pandas, pyarrow and DuckDB each misread a broken CSV file: they fill up a short row, shift a long one, or take a repeated
header for data. None of them gives the true line of a row once a field contains a line break. So this module finds the
structure itself, vectorised over blocks of bytes, by RFC 4180: where records end, how many fields each has, and whether its
quotes are valid. pyarrow then splits only the valid records into columns.

Accepted: a byte order mark, UTF-16 with a byte order mark, ``\\n``, ``\\r\\n`` and ``\\r`` line ends, quoted line breaks,
blank lines, columns in another order, unnamed columns, and a repeated header (with a notice).

The fault of a row gives a row with ``_fault`` and the text of the row: too few fields, too many fields, a stray quote, or a
last line without a line end if its last value is used (``1400`` cut to ``14`` would pass every other check).

The fault of a file raises :class:`SourceError` with the line: no text, another format, another encoding, a quote that is
never closed, a record longer than :data:`MAX_RECORD`, or a column name given twice.

Every value stays a text. :mod:`perennial.ingestion.casting` converts texts. :mod:`perennial.ingestion.files` opens files.

References:
    Y. Shafranovich, RFC 4180: Common Format and MIME Type for CSV Files, 2005.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from perennial.core.errors import SourceError

#: Number of bytes that are read and scanned at a time.
CHUNK = 4 << 20
#: Most columns of a file. One that has more is something else, and each takes memory.
MAX_COLUMNS = 20_000
#: The longest record, in bytes of UTF-8. It limits the memory that one row may take.
MAX_RECORD = 8 << 20
#: Blocks of more bytes than this are converted by several threads. For a smaller block, starting the threads takes longer.
_THREADED = 1 << 20
#: How much text of a broken row is kept, in characters.
MAX_RAW = 10_000

POSITION, FAULT, RAW = "_position", "_fault", "_raw"

_QUOTE, _LF, _CR = 34, 10, 13
_FORMATS = {
    b"PAR1": "a Parquet file; name it .parquet, in `files` too",
    b"PK\x03\x04": "a zip archive or an Excel workbook; export it as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; export it as CSV",
    b"BZh": "compressed by bzip2; compress it by gzip",
    b"\xfd7zXZ": "compressed by xz; compress it by gzip",
    b"ORC": "an ORC file; deliver CSV or Parquet",
    b"Obj\x01": "an Avro file; deliver CSV or Parquet",
}
_Indices = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Block:
    """The complete records of a block of bytes. Arrays have one element per record.

    Attributes:
        data: UTF-8. It begins with the first record.
        starts, ends, stops: a record's first byte, the byte after its content, and the byte after its line end.
        lines: the line on which each record begins. The first line of the file is 1.
        fields: number of fields.
        stray: whether the record has a quote in a wrong place.
        long: whether the record spans several lines.
    """

    data: bytes
    starts: _Indices
    ends: _Indices
    stops: _Indices
    lines: _Indices
    fields: _Indices
    stray: _Mask
    long: _Mask


class DelimitedFile:
    """A CSV file, which is read once from its beginning to its end.

    Args:
        read: takes a number, and gives at most so many of the next decompressed bytes; none at the end.
        name: name of the file, for messages and positions.
        delimiter: one ASCII character.
        encoding: ``utf-8``, ``latin-1`` or ``utf-16``. A byte order mark takes precedence.
        null_values: texts that mean a missing value, quoted or not.

    Attributes:
        header: the names of the columns in the order of the file, without surrounding spaces. An unnamed column has an
            empty name.
        notices: what was accepted but is unusual. Complete once all rows are read.

    Raises:
        SourceError: on construction, if the file does not begin like a CSV file with a header.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        *,
        name: str,
        delimiter: str = ",",
        encoding: str = "utf-8",
        null_values: Sequence[str] = ("",),
    ) -> None:
        self.name = name
        self.notices: list[str] = []
        self._delimiter = delimiter
        self._null_values = list(null_values)
        self._unterminated = False
        self._blocks = self._scan(_decode(read, encoding, name, self.notices))
        for block in self._blocks:
            filled = np.flatnonzero(block.ends > block.starts)
            if len(filled):
                first = int(filled[0])
                break
        else:
            raise SourceError(f"{name}: empty, without a header; write the header line even if there are no rows")
        if block.stray[first]:
            raise SourceError(f"{name}:{block.lines[first]}: the header has a quote inside a name")
        self.header_line = int(block.lines[first])
        self._header_bytes = block.data[int(block.starts[first]) : int(block.ends[first])]
        self.header = self._read_header()
        self._rest = (block, first + 1)

    def _read_header(self) -> list[str]:
        text = self._header_bytes.decode()
        names = [
            field.strip(" \t")
            for field in next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter, strict=True))
        ]
        place = f"{self.name}:{self.header_line}"
        if len(names) > MAX_COLUMNS:
            raise SourceError(f"{place}: the header names {len(names):,} columns; at most {MAX_COLUMNS:,} are read")
        seen: dict[str, str] = {}
        for column in filter(None, names):
            other = seen.get(column.casefold())
            if other == column:
                raise SourceError(f"{place}: the header names {column!r} twice; rename one of them")
            if other is not None:
                raise SourceError(f"{place}: {other!r} and {column!r} differ only in case; rename one of them")
            seen[column.casefold()] = column
        if unnamed := names.count(""):
            self.notices.append(f"{place}: {unnamed} columns without a name are left out")
        return names

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows: ``columns`` of the header as strings, ``_position`` (``name:line``), ``_fault`` and ``_raw``.

        A row that cannot be split has ``_fault`` and ``_raw`` and null columns.

        Raises:
            SourceError: while reading, if the file turns out not to be CSV.
        """
        schema = pa.schema([(column, pa.string()) for column in [*columns, POSITION, FAULT, RAW]])
        wanted = [self.header.index(column) for column in columns]
        rows = 0
        faulty: dict[int, int] = {}
        repeats: list[int] = []
        block, begin = self._rest
        while True:
            filled = block.ends > block.starts
            filled[:begin] = False
            again = self._repeats_header(block, filled)
            repeats += block.lines[again].tolist()
            filled[again] = False
            whole = filled & (block.fields == len(self.header)) & ~block.stray
            rows += int(filled.sum())
            for count, times in zip(*np.unique(block.fields[filled & ~whole], return_counts=True), strict=True):
                faulty[int(count)] = faulty.get(int(count), 0) + int(times)
            if self._unterminated and self.header[-1] in columns and block.data[-2:] != b'"\n':
                whole[-1] = False
            broken = np.flatnonzero(filled & ~whole)
            if whole.any():
                yield self._split(block, whole, wanted, schema)
            if len(broken):
                yield self._broken(block, broken, schema)
            following = next(self._blocks, None)
            if following is None:
                break
            block, begin = following, 0
        if len(faulty) == 1 and (fields := next(iter(faulty))) != len(self.header) and faulty[fields] == rows > 1:
            raise SourceError(
                f"{self.name}:{self.header_line}: every row has {fields} fields, but the header has {len(self.header)}; "
                "a name is missing in the header, or this is not the header of these rows"
            )
        if repeats:
            shown = ", ".join(map(str, repeats[:5])) + (", …" if len(repeats) > 5 else "")
            self.notices.append(f"{self.name}: the header is repeated on line {shown}; left out")
        if self._unterminated:
            self.notices.append(f"{self.name}: the last line has no line end; the file may have been cut")

    def _repeats_header(self, block: _Block, filled: _Mask) -> _Indices:
        """The records whose bytes equal the header's."""
        data = np.frombuffer(block.data, np.uint8)
        same = np.flatnonzero(filled & (block.ends - block.starts == len(self._header_bytes)))
        for offset, byte in enumerate(self._header_bytes):
            if not len(same):
                break
            same = same[data[block.starts[same] + offset] == byte]
        return same

    def _split(self, block: _Block, whole: _Mask, wanted: list[int], schema: pa.Schema) -> pa.RecordBatch:
        first, last = np.flatnonzero(whole)[[0, -1]]
        rows = int(whole.sum())
        if rows == last - first + 1:
            buffer = pa.py_buffer(block.data).slice(int(block.starts[first]), int(block.stops[last] - block.starts[first]))
        else:
            edges = np.flatnonzero(np.diff(np.concatenate(([False], whole, [False])).astype(np.int8)))
            buffer = pa.py_buffer(
                b"".join(
                    block.data[int(block.starts[a]) : int(block.stops[b - 1])]
                    for a, b in zip(edges[::2], edges[1::2], strict=True)
                )
            )
        # A header may leave columns unnamed, so the columns are numbered here.
        numbers = [str(n) for n in range(len(self.header))]
        included = [numbers[n] for n in wanted] or numbers[:1]
        table = pacsv.read_csv(
            pa.BufferReader(buffer),
            pacsv.ReadOptions(column_names=numbers, block_size=max(buffer.size, 1), use_threads=buffer.size > _THREADED),
            pacsv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            pacsv.ConvertOptions(
                column_types=dict.fromkeys(included, pa.string()),
                include_columns=included,
                null_values=self._null_values,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                check_utf8=False,  # _decode has done it
            ),
        )
        if table.num_rows != rows:  # both readings must agree, or rows would get wrong positions
            raise SourceError(f"{self.name}:{block.lines[first]}: quotes and line ends are ambiguous from here on")
        nothing = pa.nulls(rows, pa.string())
        arrays = [table.column(n).combine_chunks() for n in range(len(wanted))]
        return pa.record_batch([*arrays, self._positions(block.lines[whole]), nothing, nothing], schema=schema)

    def _broken(self, block: _Block, broken: _Indices, schema: pa.Schema) -> pa.RecordBatch:
        expected = len(self.header)
        faults = [
            "a quote inside an unquoted field, or text after a closing quote"
            if stray
            else f"the row has {fields} fields, but the header has {expected}"
            if fields != expected
            else "the last line has no line end, so its last value may be cut; end the file with a line break"
            for stray, fields in zip(block.stray[broken].tolist(), block.fields[broken].tolist(), strict=True)
        ]
        texts = [
            block.data[start : min(end, start + 4 * MAX_RAW)].decode(errors="replace")[:MAX_RAW]
            for start, end in zip(block.starts[broken].tolist(), block.ends[broken].tolist(), strict=True)
        ]
        nothing = pa.nulls(len(broken), pa.string())
        positions = self._positions(block.lines[broken])
        columns = [*[nothing] * (len(schema) - 3), positions, pa.array(faults, pa.string()), pa.array(texts, pa.string())]
        return pa.record_batch(columns, schema=schema)

    def _positions(self, lines: _Indices) -> pa.Array:
        return pc.binary_join_element_wise(self.name, pc.cast(pa.array(lines), pa.string()), ":")

    def _scan(self, texts: Iterator[bytes]) -> Iterator[_Block]:
        """The records of the text, block by block. Each block begins with the first byte of a record."""
        line = 1
        rest = b""
        last = False
        while not last:
            text = next(texts, None)
            last = text is None
            data = rest + (text or b"")
            if last:
                if not data:
                    return
                if data[-1] not in (_LF, _CR):
                    data += b"\n"
                    self._unterminated = True
            block, used, passed = _records(data, ord(self._delimiter), line, last)
            if block is not None:
                self._judge(block)
                yield block
            line += passed
            rest = data[used:]
            if last and rest:
                raise SourceError(f"{self.name}:{line}: a quote that opens in this row is never closed")
            if len(rest) > MAX_RECORD:
                raise self._too_long(line)

    def _judge(self, block: _Block) -> None:
        if len(over := np.flatnonzero(block.ends - block.starts > MAX_RECORD)):
            raise self._too_long(int(block.lines[over[0]]))
        # After a stray quote it is unknown which line ends lie inside a field, so the rows after it cannot be trusted.
        if len(torn := np.flatnonzero(block.stray & block.long)):
            raise SourceError(
                f"{self.name}:{block.lines[torn[0]]}: a quote inside an unquoted field, or a quote that is never closed; "
                "quote the field and double the quotes inside it"
            )

    def _too_long(self, line: int) -> SourceError:
        return SourceError(
            f"{self.name}:{line}: the row that begins here is longer than {MAX_RECORD >> 20} MiB; "
            "a quote may be missing, or this is not CSV"
        )


def _records(data: bytes, delimiter: int, line: int, last: bool) -> tuple[_Block | None, int, int]:
    """The complete records of ``data``, how many bytes they take, and how many line ends those bytes contain."""
    a = np.frombuffer(data, np.uint8)
    line_ends = a == _LF
    if b"\r" in data:
        returns = a == _CR
        returns[:-1] &= ~line_ends[1:]
        if not last:
            returns[-1] = False  # a line feed may follow in the next block
        line_ends |= returns
    splits = a == delimiter
    quotes = np.flatnonzero(a == _QUOTE) if b'"' in data else np.empty(0, np.int64)
    record_ends = line_ends
    if len(quotes):
        inside = np.zeros(len(a), np.uint8)
        inside[quotes] = 1
        np.cumsum(inside, dtype=np.uint8, out=inside)
        outside = (inside & 1) == 0
        record_ends = line_ends & outside
        splits &= outside
    marks = np.flatnonzero(record_ends)
    if not len(marks):
        return None, 0, 0
    used = int(marks[-1]) + 1
    stops = marks + 1
    starts = np.concatenate(([0], stops[:-1]))
    ends = marks - ((a[marks] == _LF) & (marks > starts) & (a[marks - 1] == _CR))
    fields = np.add.reduceat(splits[:used], starts, dtype=np.int64) + 1
    stray = np.zeros(len(marks), bool)
    if len(quotes):
        line_marks = np.flatnonzero(line_ends[:used])
        lines = line + np.searchsorted(line_marks, starts)
        passed = len(line_marks)
        long = np.diff(np.concatenate((lines, [line + passed]))) > 1
        quotes = quotes[quotes < used]
        opening = ~outside[quotes]
        neighbour = np.where(opening, a[np.maximum(quotes - 1, 0)], a[quotes + 1])
        sound = np.isin(neighbour, np.array([delimiter, _LF, _CR, _QUOTE], np.uint8)) | (quotes == 0)
        stray[np.searchsorted(marks, quotes[~sound])] = True
    else:
        passed = len(marks)
        lines = line + np.arange(passed)
        long = np.zeros(passed, bool)
    return _Block(data, starts, ends, stops, lines, fields, stray, long), used, passed


def _decode(read: Callable[[int], bytes], encoding: str, name: str, notices: list[str]) -> Iterator[bytes]:
    """The text as UTF-8, in pieces, without its byte order mark.

    Raises:
        SourceError: the bytes belong to another format, or are not in the encoding.
    """
    first = read(CHUNK)
    while len(first) < 8 and (more := read(CHUNK)):  # enough to recognise a format
        first += more
    for magic, meaning in _FORMATS.items():
        if first.startswith(magic):
            raise SourceError(f"{name}: not CSV but {meaning}")
    if first.startswith(codecs.BOM_UTF8):
        if encoding != "utf-8":
            notices.append(f"{name}: read as UTF-8, as its byte order mark says, not as {encoding}")
        encoding, first = "utf-8", first[3:]
    elif first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        if encoding != "utf-16":
            notices.append(f"{name}: read as UTF-16, as its byte order mark says, not as {encoding}")
        encoding = "utf-16"
    elif encoding == "utf-16" and first:
        raise SourceError(f"{name}: encoding is utf-16, but the file has no byte order mark; is it utf-8?")
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    # Only latin-1 accepts any bytes, so only then UTF-8 could be read in the wrong encoding.
    doubt = codecs.getincrementaldecoder("utf-8")("strict") if encoding == "latin-1" else None
    foreign = False
    line = 1
    chunk, begun = first, False
    while True:
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += _count_lines(error.object[: error.start])
            raise SourceError(
                f"{name}:{line}: not {encoding} (byte 0x{error.object[error.start]:02x}); if the file has another "
                "encoding, set `encoding: latin-1` or `encoding: utf-16` at its source"
            ) from error
        if doubt is not None:
            foreign = foreign or not chunk.isascii()
            try:
                doubt.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                doubt = None
        line += _count_lines(text)
        if not begun and (start := text.lstrip()[:60]):
            begun = True
            if start[0] == "<":
                raise SourceError(f"{name}: not CSV but a page of markup, perhaps an error page: {start!r}")
            if start[0] in "{[":
                raise SourceError(f"{name}: not CSV but JSON, perhaps an error message: {start!r}")
        if piece := chunk if encoding == "utf-8" else text.encode():
            yield piece
        if not chunk:
            break
        chunk = read(CHUNK)
    if doubt is not None and foreign:
        notices.append(f"{name}: read as latin-1, but it is valid UTF-8; is `encoding: latin-1` right?")


def _count_lines(text: str | bytes) -> int:
    if isinstance(text, bytes):
        return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")
    return text.count("\n") + text.count("\r") - text.count("\r\n")
