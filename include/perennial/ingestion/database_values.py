"""Values of a database as Arrow columns. A value that no column can hold is the fault of its row, never of the whole query.

A NUMERIC becomes a decimal with all its digits, up to 38, since DuckDB holds no more. NaN, infinity and longer numbers are
faults. So are infinite times, and those outside the years 1 to 9999. Drivers would give the last moment that Python knows for
infinity, or fail on it, so PostgreSQL's numbers and times are taken as texts (:func:`take_texts`).
"""

from __future__ import annotations

import decimal
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import SourceError
from perennial.core.text import one_line
from perennial.ingestion.delimited import FAULT, MAX_RAW, POSITION, RAW
from perennial.lake.schema import MOMENT

#: The most digits of a decimal in DuckDB.
MOST_DIGITS = 38
#: The types of PostgreSQL, by number, whose values are taken as texts.
TEXTS: dict[object, pa.DataType] = {
    1082: pa.date32(), 1114: pa.timestamp("us"), 1184: MOMENT, 1700: pa.decimal128(MOST_DIGITS),
}  # fmt: skip

#: The types of PostgreSQL, by number, of columns that may have no value in a batch.
WITHOUT_VALUE: dict[object, pa.DataType] = {
    16: pa.bool_(), 20: pa.int64(), 21: pa.int64(), 23: pa.int64(), 25: pa.string(), 114: pa.string(), 700: pa.float64(),
    701: pa.float64(), 1042: pa.string(), 1043: pa.string(), 2950: pa.string(), 3802: pa.string(),
}  # fmt: skip

_TIME = r"^\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d{1,6})?([+-]\d\d(:?\d\d)?)?)?$"
_NUMBER = r"^[+-]?\d+(\.\d*)?$"


def take_texts(connection: Any) -> None:
    """Let a connection of psycopg2 give PostgreSQL's numbers and times as texts."""
    from psycopg2.extensions import UNICODE, new_type, register_type

    register_type(new_type(tuple(TEXTS), "TEXTS", lambda value, cursor: UNICODE(value, cursor)), connection)


class DatabaseBatches:
    """Turns rows of one query into Arrow batches.

    Args:
        columns: the names of the columns.
        types: for columns whose values come as texts, the type that the texts mean.
        without_value: the types of columns that have no value.
        source: name of the source, for positions.
    """

    def __init__(
        self,
        columns: Sequence[str],
        types: Mapping[str, pa.DataType],
        without_value: Mapping[str, pa.DataType],
        source: str,
    ) -> None:
        self._columns, self._types, self._without_value, self._source = columns, types, without_value, source
        self._scales: dict[str, int] = {}
        self._rows = 0

    @property
    def empty(self) -> pa.Schema:
        """The columns of a result without rows."""
        types = {**self._without_value, **self._types}
        return pa.schema([(column, types.get(column, pa.null())) for column in self._columns])

    def batches(self, rows: Sequence[Sequence[Any]]) -> Iterator[pa.RecordBatch]:
        """The rows with ``_position``, ``_fault`` and ``_raw``. Their order may change where decimals need different scales.

        Args:
            rows: the values of each row, in the order of the columns.

        Raises:
            SourceError: a column has values of several types.
        """
        if not rows:
            return
        given = dict(zip(self._columns, zip(*rows, strict=True), strict=True))
        faults: dict[int, list[str]] = {}
        arrays: dict[str, pa.Array] = {}
        digits: dict[str, _Digits] = {}
        for column, values in given.items():
            kind = self._types.get(column)
            if kind is not None and pa.types.is_decimal(kind):
                digits[column] = _digits(pa.array(values, pa.string()))
            elif kind is not None:
                arrays[column] = _times(column, pa.array(values, pa.string()), kind, faults)
            else:
                array = _array(column, values, faults)
                if isinstance(array, _Digits):
                    digits[column] = array
                elif pa.types.is_null(array.type):
                    arrays[column] = array.cast(self._without_value.get(column, array.type))
                else:
                    arrays[column] = array
        for column, found in digits.items():
            for row in np.flatnonzero(found.faulty).tolist():
                faults.setdefault(row, []).append(_unkept(column, found.texts[row].as_py()))
        positions = [f"{self._source}:{n}" for n in range(self._rows + 1, self._rows + len(rows) + 1)]
        self._rows += len(rows)
        arrays[POSITION] = pa.array(positions, pa.string())
        told = ["; ".join(faults[n]) if n in faults else None for n in range(len(rows))] if faults else [None] * len(rows)
        shown = [_shown(self._columns, rows[n]) if n in faults else None for n in range(len(rows))] if faults else told
        arrays[FAULT], arrays[RAW] = pa.array(told, pa.string()), pa.array(shown, pa.string())
        names = [*self._columns, POSITION, FAULT, RAW]
        for taken in self._fitting(digits, len(rows)):
            decimals = {column: self._decimals(column, found, taken) for column, found in digits.items()}
            every = len(taken) == len(rows)
            kept = {name: array if every else array.take(pa.array(taken)) for name, array in arrays.items()}
            columns = kept | decimals
            yield pa.record_batch([columns[name] for name in names], names=names)

    def _fitting(self, digits: Mapping[str, _Digits], rows: int) -> Iterator[npt.NDArray[np.int64]]:
        """The rows in groups, so that the numbers of a group fit into decimals of one scale per column."""
        left = np.arange(rows)
        while len(left):
            fits = np.ones(len(left), bool)
            for found in digits.values():
                scale = int(found.fraction[left].max())
                fits &= found.whole[left] + scale <= MOST_DIGITS
            if not fits.any():  # a row alone fits: no number has more digits
                fits[0] = True
            yield left[fits]
            left = left[~fits]

    def _decimals(self, column: str, found: _Digits, taken: npt.NDArray[np.int64]) -> pa.Array:
        scale, whole = int(found.fraction[taken].max()), int(found.whole[taken].max())
        # The scale stays what it was, where it can, so that the landed columns rarely change their type.
        least = max(scale, self._scales.get(column, 0))
        if whole + least <= MOST_DIGITS:
            scale = self._scales[column] = least
        texts = pc.if_else(pa.array(found.faulty), pa.scalar(None, pa.string()), found.texts)
        return texts.take(pa.array(taken)).cast(pa.decimal128(MOST_DIGITS, scale))


class _Digits:
    """Numbers as texts, and how many digits each has before and after its point, without zeros that say nothing.

    Attributes:
        texts: the numbers, null for NULL.
        whole, fraction: digits before and after the point; 0 for a null and for what is faulty.
        faulty: numbers that no decimal can hold.
    """

    def __init__(self, texts: pa.Array) -> None:
        plain = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), True)
        bare = pc.if_else(plain, pc.fill_null(texts, ""), "")
        whole = pc.utf8_length(pc.replace_substring_regex(bare, r"^[+-]?0*|\..*$", ""))
        fraction = pc.utf8_length(pc.replace_substring_regex(bare, r"^[^.]*\.?|0+$", ""))
        whole, fraction = (each.to_numpy(zero_copy_only=False).astype(np.int64) for each in (whole, fraction))
        self.faulty = ~plain.to_numpy(zero_copy_only=False) | (whole + fraction > MOST_DIGITS)
        self.whole, self.fraction = np.where(self.faulty, 0, whole), np.where(self.faulty, 0, fraction)
        self.texts = texts
        if pc.any(pc.greater(pc.utf8_length(bare), MOST_DIGITS)).as_py():
            # Arrow counts zeros that say nothing as digits.
            bare = pc.replace_substring_regex(bare, r"^([+-]?)0+(\d)", r"\1\2")
            bare = pc.replace_substring_regex(bare, r"(\.\d*?)0+$", r"\1")
            self.texts = pc.if_else(pa.array(self.faulty), texts, pc.if_else(pc.is_valid(texts), bare, texts))


def _digits(texts: pa.Array) -> _Digits:
    # Python's Decimal writes 1E+45. A number of more digits than three in its exponent is too long in any case.
    exponents = pc.fill_null(pc.match_substring_regex(texts, r"\d[eE][+-]?\d{1,3}$"), False)
    if pc.any(exponents).as_py():
        both = zip(texts.to_pylist(), exponents.to_pylist(), strict=True)
        texts = pa.array([f"{decimal.Decimal(text):f}" if has else text for text, has in both], pa.string())
    return _Digits(texts)


def _unkept(column: str, text: str) -> str:
    if any(digit.isdigit() for digit in text):
        short = text if len(text) <= 60 else f"{text[:59]}…"
        return (
            f"{column}: {short} has more than {MOST_DIGITS} digits; round it in the query, or CAST it to double precision there"
        )
    return f"{column}: {text} is not a finite number; replace it in the query, or by NULL if it stands for no value"


def _times(column: str, texts: pa.Array, kind: pa.DataType, faults: dict[int, list[str]]) -> pa.Array:
    plain = pc.fill_null(pc.match_substring_regex(texts, _TIME), True)
    for row in np.flatnonzero(~plain.to_numpy(zero_copy_only=False)).tolist():
        faults.setdefault(row, []).append(_no_time(column, texts[row].as_py()))
    return pc.if_else(plain, texts, pa.scalar(None, pa.string())).cast(kind)


def _no_time(column: str, text: object) -> str:
    return (
        f"{column}: {text} is no time between the years 1 and 9999; replace it in the query, "
        f"for example with NULLIF({column}, '{text}')"
    )


def _array(column: str, values: Sequence[Any], faults: dict[int, list[str]]) -> pa.Array | _Digits:
    """The values of a column. Structures become JSON texts, UUIDs become texts, and decimals are to be scaled."""
    kinds = {type(value) for value in values if value is not None}
    if decimal.Decimal in kinds and kinds <= {decimal.Decimal, int}:
        return _digits(pa.array([None if value is None else str(value) for value in values], pa.string()))
    if kinds <= {dict, list} and kinds:
        values = [None if value is None else json.dumps(value, default=str) for value in values]
    elif kinds == {int, float}:  # SQLite keeps a type for each value
        values = [None if value is None else float(value) for value in values]
    elif kinds == {UUID}:
        values = [None if value is None else str(value) for value in values]
    elif str in kinds and any(issubclass(kind, date) for kind in kinds):
        # Drivers give the text of a time that is none, such as 0000-00-00 of MySQL.
        for row, value in enumerate(values):
            if isinstance(value, str):
                faults.setdefault(row, []).append(_no_time(column, value))
        values = [None if isinstance(value, str) else value for value in values]
    try:
        array = pa.array(values)
    except OverflowError:
        return _digits(pa.array([None if value is None else str(value) for value in values], pa.string()))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(f"the query's column {column} has values of several types; CAST it: {one_line(error)}") from error
    if pa.types.is_timestamp(array.type) and array.type.tz is not None:
        return array.cast(MOMENT)
    return array


def _shown(columns: Sequence[str], row: Sequence[Any]) -> str:
    values = {column: value if value is None else str(value) for column, value in zip(columns, row, strict=True)}
    return json.dumps(values, ensure_ascii=False)[:MAX_RAW]
