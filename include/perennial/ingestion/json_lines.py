"""A strict reader of JSON lines with bounded memory: one object per line. Each row carries its line.

Values become texts, as those of a CSV file (``docs/decisions/0003-csv-values-are-text.md``): numbers as they are written,
objects and lists as JSON. ``null`` and an absent key are missing values. A line that is no object, or names a key twice, is the
fault of its row. So is a number that a text column would get in another spelling, since JSON readers keep 64 bits of it.

DuckDB reads the JSON of a block of lines at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa

from perennial.core.errors import SourceError
from perennial.core.sql import connect, literal
from perennial.ingestion.delimited import CHUNK, FAULT, MAX_COLUMNS, MAX_RAW, MAX_RECORD, POSITION, RAW

_IS_OBJECT = "json_valid(line) AND json_type(line) = 'OBJECT'"


class JsonLines:
    """A file of JSON lines, which is read once from its beginning to its end.

    Args:
        read: takes a number, and gives at most so many of the next decompressed bytes; none at the end.
        name: name of the file, for messages and positions.
        decimal: the character before the fraction of a number in a text. A number of JSON becomes such a text too.

    Attributes:
        blank: whether the file has no line so far that is not blank.
    """

    def __init__(self, read: Callable[[int], bytes], *, name: str, decimal: str = ".") -> None:
        self.name = name
        self.blank = True
        self._decimal = decimal
        self._read = read
        self._connection = connect()

    def batches(self, choose: Callable[[list[str]], tuple[list[str], list[str]]]) -> Iterator[pa.RecordBatch]:
        """The rows: chosen keys as strings, ``_position`` (``name:line``), ``_fault`` and ``_raw``.

        Args:
            choose: takes the keys of a block of lines. Gives the columns of its batch, which may be other names too, and
                those of them that stay texts.

        Raises:
            SourceError: the file is not UTF-8, a line is too long, or lines have too many keys.
        """
        for lines, numbers in self._blocks():
            self._connection.register("lines", pa.table({"line": lines, "number": numbers}))
            try:
                keys = self._connection.execute(
                    f"SELECT DISTINCT unnest(json_keys(line)) AS key FROM lines WHERE {_IS_OBJECT} ORDER BY key"
                ).fetchall()
                if len(keys) > MAX_COLUMNS:
                    raise SourceError(
                        f"{self.name}:{numbers[0]}: the lines from here on have {len(keys):,} different keys; at most "
                        f"{MAX_COLUMNS:,} are read"
                    )
                columns, texts = choose([str(key) for (key,) in keys])
                batch = self._batch(columns, texts)
            except duckdb.OutOfMemoryException as error:
                raise SourceError(
                    f"{self.name}:{numbers[0]}: the lines from here on need more memory than there is; they are nested too "
                    "deeply, or have too many keys"
                ) from error
            yield batch
            self._connection.unregister("lines")

    def _batch(self, columns: Sequence[str], texts: Sequence[str]) -> pa.RecordBatch:
        paths = {column: literal('$."' + column.replace("\\", "\\\\").replace('"', '\\"') + '"') for column in columns}
        values = [f"CASE WHEN fault IS NULL THEN {self._text(path)} END" for path in paths.values()]
        changed = "".join(
            f" WHEN json_type(line, {paths[column]}) = 'DOUBLE' THEN "
            + literal(f"{column}: a number with a fraction, or beyond 64 bits, has no single spelling; deliver it as a text")
            for column in texts
        )
        rows = self._connection.sql(f"""
            WITH told AS (
                SELECT line, number, CASE
                    WHEN NOT json_valid(line) THEN 'this line is not valid JSON'
                    WHEN json_type(line) <> 'OBJECT' THEN 'this line is JSON, but not an object'
                    WHEN len(json_keys(line)) <> len(list_distinct(json_keys(line))) THEN 'the object names a key twice'
                    {changed} END AS fault
                FROM lines
            )
            SELECT {"".join(f"{value}, " for value in values)}
                {literal(self.name + ":")} || number, fault, CASE WHEN fault IS NOT NULL THEN left(line, {MAX_RAW}) END
            FROM told ORDER BY number
        """).to_arrow_table()
        names = [*columns, POSITION, FAULT, RAW]
        [batch] = rows.rename_columns([str(n) for n in range(len(names))]).combine_chunks().to_batches()
        return pa.record_batch(batch.columns, names=names)

    def _text(self, path: str) -> str:
        if self._decimal == ".":
            return f"line ->> {path}"
        number = f"replace(line ->> {path}, '.', {literal(self._decimal)})"
        return f"CASE WHEN json_type(line, {path}) = 'DOUBLE' THEN {number} ELSE line ->> {path} END"

    def _blocks(self) -> Iterator[tuple[pa.Array, pa.Array]]:
        """Lines that are not blank, with their numbers, from 1."""
        number, rest, last = 1, b"", False
        while not last:
            piece = self._read(CHUNK)
            last = not piece
            if number == 1 and not rest:
                piece = piece.removeprefix(codecs.BOM_UTF8)
            whole, separator, rest = (rest + piece).rpartition(b"\n")
            if last and rest:
                whole, rest = whole + separator + rest, b""
            lines = whole.split(b"\n") if whole or separator else []
            if any(len(line) > MAX_RECORD for line in [*lines, rest]):
                raise SourceError(f"{self.name}:{number}: a line from here on is longer than {MAX_RECORD >> 20} MiB")
            filled = np.array([bool(line.strip()) for line in lines], bool)
            if filled.any():
                self.blank = False
                numbers = pa.array(np.flatnonzero(filled) + number)
                yield self._decoded([line for line in lines if line.strip()], numbers), numbers
            number += len(lines)

    def _decoded(self, lines: Sequence[bytes], numbers: pa.Array) -> pa.Array:
        try:
            return pa.array(lines, pa.binary()).cast(pa.string())
        except pa.ArrowException:
            for line, number in zip(lines, numbers.to_pylist(), strict=True):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    raise SourceError(f"{self.name}:{number}: not utf-8; JSON lines are always in utf-8") from error
            raise
