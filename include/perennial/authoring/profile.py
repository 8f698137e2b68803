"""What a file of rows holds: its dialect, what each column is, which time and key its rows have.

All of it is a guess from the values, with a note of what it was taken from. DuckDB reads the file, every value as the text that
it is. Neighbour: :mod:`perennial.authoring.draft` makes a model's folder of it.
"""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import duckdb

from perennial.core.errors import SpecError
from perennial.core.sql import connect, literal, quoted
from perennial.spec.names import listed

Kind = Literal["timestamp", "integer", "float", "boolean", "category", "string", "constant", "empty"]

#: Texts that often mean a missing value, in lower case.
MISSING = ("na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "--", "?", ".", "missing", "unknown")
#: Numbers that often mean a missing value.
SENTINELS = (-200, -99, -999, -9999, -99999, 999, 9999, 99999)
#: Ways to write a day, and a time of day after it, besides ISO 8601.
DAYS = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d-%m-%Y", "%m/%d/%y", "%d.%m.%y", "%d/%m/%y")
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H.%M.%S", " %I:%M %p", "T%H:%M:%S")
#: Names of a column with the hour of the day, beside a column with the day.
HOURS = frozenset({"h", "hr", "hour", "hours", "hour_of_day", "stunde", "heure", "hora"})
#: Names that a label often has.
LABELS = (
    "label",
    "target",
    "y",
    "outcome",
    "class",
    "cnt",
    "count",
    "demand",
    "load",
    "churn",
    "converted",
    "is_fraud",
    "default",
)
#: Most values of a category.
CATEGORIES = 50
#: From this many values on, an integer is a quantity and not a class.
QUANTITY = 12
_ISO = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[+-]\d{2}(:?\d{2})?)?$"
_OFFSET = r"\d(Z|[+-]\d{2}(:?\d{2})?)$"
_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+$"
_POINT = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True)
class Dialect:
    """How a file writes its values, in the words of a source in ``model.yaml``.

    Attributes:
        delimiter, encoding, decimal, thousands: as in :class:`perennial.spec.data.Source`.
        null_values: texts that mean a missing value.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    decimal: str = "."
    thousands: str | None = None
    null_values: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Column:
    """A column of the file.

    Attributes:
        source: its name in the file.
        name: an identifier made of it, unique in the file.
        kind: what its values are.
        distinct: how many different values it has.
        missing: how many rows have none.
        minimum, maximum: of a number.
        values: of a category or boolean, in order; at most :data:`CATEGORIES`.
        sql: how a timestamp is made of the file's texts; None if the text is ISO 8601.
        note: what was seen that a person may want to know.
    """

    source: str
    name: str
    kind: Kind
    distinct: int
    missing: int
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()
    sql: str | None = None
    note: str = ""

    @property
    def is_number(self) -> bool:
        return self.kind in ("integer", "float")


@dataclass(frozen=True)
class Profile:
    """What a file holds.

    Attributes:
        file: the file.
        dialect: how it writes values.
        columns: its columns, by :attr:`Column.name`, without what became part of ``time``.
        rows: how many rows it has.
        time: the column that says when a row happened.
        has_offset: whether its times name their zone.
        key: the columns that identify a row, ``time`` among them if the same things are seen again and again.
        first, last: of ``time``, as the file has it.
        days: how many days have a row.
        step: the time from a row of a thing to its next one, if most are that far apart; None if each row is another event.
        fewest, most: rows of the poorest and the richest whole day.
        missing_days: weekdays, 1 (Monday) to 7, that have no row at all.
    """

    file: Path
    dialect: Dialect
    columns: Mapping[str, Column]
    rows: int
    time: Column
    has_offset: bool
    key: tuple[str, ...]
    first: datetime
    last: datetime
    days: int
    step: timedelta | None
    fewest: int
    most: int
    missing_days: tuple[int, ...] = field(default=())

    @property
    def is_series(self) -> bool:
        """Whether the same things are seen again and again, rather than a new one in each row."""
        return self.step is not None

    @property
    def span(self) -> int:
        """Days from the first row's to the last row's, both included, also those without a row."""
        return (self.last.date() - self.first.date()).days + 1


def look(file: Path, *, time: str | None = None, key: Sequence[str] | None = None, label: str | None = None) -> Profile:
    """Look at all rows of a file.

    Args:
        file: ends in .csv or .tsv, also with .gz after it, or in .parquet.
        time: the column that says when a row happened; None: the one column of times that there is.
        key: the columns that identify a row; None: the fewest that do.
        label: is never taken for part of the key.

    Raises:
        SpecError: the file cannot be read, has no time or no key; the message says which option helps.
    """
    if not file.is_file():
        raise SpecError(f"{file} is no file: give the path of a .csv, .tsv or .parquet file")
    with TemporaryDirectory() as scratch, connect(Path(scratch), file.absolute().parent) as connection:
        try:
            return _look(connection, file, time, key, label)
        except duckdb.Error as error:
            raise SpecError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _look(
    connection: duckdb.DuckDBPyConnection, file: Path, time: str | None, key: Sequence[str] | None, label: str | None
) -> Profile:
    dialect = _open(connection, file)
    names = [str(name) for (name, *_) in connection.execute("DESCRIBE rows").fetchall()]
    (rows,) = _one(connection, "SELECT count(*) FROM rows")
    if not rows:
        raise SpecError(f"{file} has no rows below its header")
    dialect, columns = _judge(connection, names, dialect, rows)
    chosen = {name: _named(name, columns, file) for name in [*(key or ()), time, label] if name}
    moment, columns = _choose_time(connection, columns, chosen[time] if time else None, file)
    return _arrange(
        connection, file, dialect, columns, moment, rows,
        tuple(chosen[name].name for name in key) if key else None, chosen[label].name if label else None,
    )  # fmt: skip


# --- the file --------------------------------------------------------------------------------------------------------


def _open(connection: duckdb.DuckDBPyConnection, file: Path) -> Dialect:
    """Read the file into the table ``rows``, each value as a text."""
    path = literal(str(file.absolute()))
    if file.suffix == ".parquet":
        described = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({path})").fetchall()
        casts = ", ".join(f"{quoted(str(name))}::VARCHAR AS {quoted(str(name))}" for (name, *_) in described)
        connection.execute(f"CREATE TABLE rows AS SELECT {casts} FROM read_parquet({path})")
        return Dialect()
    if not re.search(r"\.(csv|tsv)(\.gz)?$", file.name):
        raise SpecError(f"{file} is not read: give a .csv, .tsv or .parquet file; the first two may end in .gz")
    encoding = _encoding(file)
    (delimiter,) = _one(
        connection, f"SELECT Delimiter FROM sniff_csv({path}, header = true, all_varchar = true, encoding = '{encoding}')"
    )
    connection.execute(
        f"CREATE TABLE rows AS SELECT * FROM read_csv({path}, header = true, all_varchar = true, encoding = '{encoding}', "
        f"delim = {literal(delimiter)}, sample_size = -1)"
    )
    return Dialect(delimiter=delimiter, encoding=encoding)


def _encoding(file: Path) -> str:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        begin = opened.read(1 << 20)
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begin)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


# --- the columns -----------------------------------------------------------------------------------------------------


def _judge(
    connection: duckdb.DuckDBPyConnection, names: Sequence[str], dialect: Dialect, rows: int
) -> tuple[Dialect, dict[str, Column]]:
    """What each column is, and what the file means by a missing value."""
    texts = {name: _missing_texts(connection, name) for name in names}
    nulls = sorted({text for found in texts.values() for text in found})
    commas = [name for name in names if _share(connection, name, f"regexp_matches(value, '{_COMMA}')", nulls) > 0.5]
    if commas:
        grouped = any(_share(connection, name, r"regexp_matches(value, '\d\.\d{3},')", nulls) > 0 for name in commas)
        dialect = replace(dialect, decimal=",", thousands="." if grouped else None)
    columns: dict[str, Column] = {}
    sentinels: set[str] = set()
    for name in names:
        column, found = _judge_column(connection, name, _identifier(name, columns), nulls, dialect, rows)
        columns[column.name] = column
        sentinels |= found
    return replace(dialect, null_values=("", *nulls, *sorted(sentinels))), columns


def _missing_texts(connection: duckdb.DuckDBPyConnection, name: str) -> list[str]:
    """The texts of a column of numbers or times that stand for a missing value."""
    known = ", ".join(literal(text) for text in MISSING)
    found = connection.execute(
        f"SELECT DISTINCT {quoted(name)} FROM rows WHERE lower(trim({quoted(name)})) IN ({known}) LIMIT 10"
    ).fetchall()
    if (
        not found
        or _share(connection, name, r"regexp_matches(value, '^[+-]?[\d.,:/ T-]*\d[\d.,:/ T-]*$')", [t for (t,) in found]) < 1
    ):
        return []
    return [text for (text,) in found]


def _judge_column(
    connection: duckdb.DuckDBPyConnection, source: str, name: str, nulls: Sequence[str], dialect: Dialect, rows: int
) -> tuple[Column, set[str]]:
    """A column, and the texts of numbers that mean a missing value in it."""
    number = "replace(replace(value, '.', ''), ',', '.')" if dialect.decimal == "," else "value"
    values = _values(source, nulls)
    present, distinct, integers, floats, zeros, booleans, isos = _one(
        connection,
        "SELECT count(*), count(DISTINCT value), count(*) FILTER (regexp_matches(value, '^[+-]?[0-9]+$')), "
        f"count(TRY_CAST({number} AS DOUBLE)) FILTER (regexp_matches({number}, '{_POINT}')), "
        r"count(*) FILTER (regexp_matches(value, '^0\d+$')), "
        "count(*) FILTER (lower(value) IN ('true', 'false', 'yes', 'no', 't', 'f', 'y', 'n')), "
        f"count(TRY_CAST(value AS TIMESTAMPTZ)) FILTER (regexp_matches(value, '{_ISO}')) FROM ({values})",
    )
    column = Column(source, name, "string", distinct, rows - present)
    if not present:
        return replace(column, kind="empty"), set()
    if distinct == 1:
        (only,) = _one(connection, f"SELECT any_value(value) FROM ({values})")
        return replace(column, kind="constant", note=f"the same in every row: {only}"), set()
    if isos == present:
        return replace(column, kind="timestamp"), set()
    if (written := _format_of(connection, values, present)) is not None and (integers < present or len(written[0]) > 4):
        form, others = written
        note = f"read as {form}" + (f"; {listed(others)} would fit, too" if others else "")
        return replace(column, kind="timestamp", sql=f"strptime({{source}}, '{form}')", note=note), set()
    if booleans == present and distinct == 2:
        return replace(column, kind="boolean", values=_most_frequent(connection, values)), set()
    if floats == present and not zeros:
        lowest, highest = _one(connection, f"SELECT min(v), max(v) FROM (SELECT {number}::DOUBLE AS v FROM ({values}))")
        found, lowest, highest = _sentinels(connection, values, number, lowest, highest)
        whole = integers == present
        note = f"{listed(sorted(found))} taken for missing" if found else ""
        missing = column.missing + sum(count for _, count in found.items())
        column = replace(
            column, kind="integer" if whole else "float", minimum=lowest, maximum=highest, note=note, missing=missing,
            values=_most_frequent(connection, values) if whole and distinct <= QUANTITY else (),
        )  # fmt: skip
        return column, set(found)
    note = f"{zeros:,} values have leading zeros, so it is a text" if zeros else ""
    if 0 < floats < present and floats / present > 0.9:
        (odd,) = _one(connection, f"SELECT any_value(value) FROM ({values}) WHERE NOT regexp_matches({number}, '{_POINT}')")
        note = f"{present - floats:,} values are no numbers, such as {odd!r}"
    if distinct <= CATEGORIES and distinct <= present / 2:
        return replace(column, kind="category", values=_most_frequent(connection, values), note=note), set()
    return replace(column, note=note), set()


def _format_of(connection: duckdb.DuckDBPyConnection, values: str, present: int) -> tuple[str, list[str]] | None:
    """The format in which all values are times, and others that fit them too."""
    (like,) = _one(connection, rf"SELECT count(*) FROM ({values}) WHERE regexp_matches(value, '^\d{{1,8}}([./-]\d|$| )')")
    if like < present:
        return None
    forms = [day + clock for day in DAYS for clock in CLOCKS]
    # Years of two digits would be taken for the first century where four were meant.
    tried = ", ".join(f"count(*) FILTER (year(try_strptime(value, {literal(form)})) BETWEEN 1900 AND 2200)" for form in forms)
    counts = _one(connection, f"SELECT {tried} FROM ({values})")
    fitting = [form for form, count in zip(forms, counts, strict=True) if count == present]
    return (fitting[0], fitting[1:]) if fitting else None


def _sentinels(
    connection: duckdb.DuckDBPyConnection, values: str, number: str, lowest: float, highest: float
) -> tuple[dict[str, int], float, float]:
    """Extreme numbers that stand for a missing value, as written and how often; and the range without them."""
    found: dict[str, int] = {}
    for extreme in (lowest, highest):
        if extreme not in SENTINELS:
            continue
        texts, count, low, high = _one(
            connection,
            f"SELECT list(DISTINCT value) FILTER (v = {extreme}), count(*) FILTER (v = {extreme}), "
            f"min(v) FILTER (v <> {extreme}), max(v) FILTER (v <> {extreme}) "
            f"FROM (SELECT value, {number}::DOUBLE AS v FROM ({values}))",
        )
        if low is None or count < 3 or min(abs(extreme - low), abs(extreme - high)) <= high - low:
            continue
        found |= dict.fromkeys(texts, 0) | {texts[0]: count}
        lowest, highest = low, high
    return found, lowest, highest


def _most_frequent(connection: duckdb.DuckDBPyConnection, values: str) -> tuple[str, ...]:
    found = connection.execute(f"SELECT DISTINCT value FROM ({values}) ORDER BY value LIMIT {CATEGORIES}").fetchall()
    return tuple(value for (value,) in found)


# --- time and key ----------------------------------------------------------------------------------------------------


def _choose_time(
    connection: duckdb.DuckDBPyConnection, columns: dict[str, Column], chosen: Column | None, file: Path
) -> tuple[Column, dict[str, Column]]:
    """The time of a row, and the other columns. A day with an hour beside it becomes one."""
    times = [column for column in columns.values() if column.kind == "timestamp"]
    if chosen is None:
        if not times:
            raise SpecError(
                f"{file}: no column holds times, so nothing says when a row happened: name one by --time. Its columns are "
                f"{listed([column.source for column in columns.values()])}"
            )
        chosen = next((one for one in times if one.distinct == max(other.distinct for other in times)), times[0])
        if len(times) > 1:
            others = listed([one.source for one in times if one is not chosen])
            chosen = replace(
                chosen, note="; ".join(filter(None, [chosen.note, f"{others} could be meant, too: --time says which"]))
            )
    elif chosen.kind != "timestamp":
        raise SpecError(
            f"{file}: column {chosen.source} holds no times that can be read, such as 2013-06-24 17:00; it is a {chosen.kind}"
        )
    rest = {name: column for name, column in columns.items() if name != chosen.name}
    moment = replace(chosen, sql=(chosen.sql or "{source}").format(source=quoted(chosen.source)))
    if chosen.sql is None:
        moment = replace(moment, sql=None)
    (midnight,) = _one(connection, f"SELECT bool_and({_time(moment)} = date_trunc('day', {_time(moment)})) FROM rows")
    hour = next(
        (
            one
            for one in rest.values()
            if one.kind == "integer" and one.name in HOURS and one.minimum == 0 and one.maximum == 23
        ),
        None,
    )
    if midnight and hour is not None:
        sql = f"{_time(moment)} + to_hours({quoted(hour.source)}::INT)"
        note = "; ".join(filter(None, [moment.note, f"the hour is that of {hour.source}"]))
        moment = replace(moment, sql=sql, note=note)
        del rest[hour.name]
    return moment, rest


def _arrange(
    connection: duckdb.DuckDBPyConnection,
    file: Path,
    dialect: Dialect,
    columns: dict[str, Column],
    time: Column,
    rows: int,
    key: tuple[str, ...] | None,
    label: str | None,
) -> Profile:
    by_source = {**{name: quoted(column.source) for name, column in columns.items()}, time.name: _time(time)}
    found = key or _find_key(connection, columns, time, rows, label, by_source)
    if found is None:
        raise SpecError(
            f"{file}: no column, with or without {time.source}, tells all rows apart: name those that do by --key, "
            "or remove rows that are there twice"
        )
    if key and (twice := rows - _distinct(connection, [by_source[name] for name in found])):
        raise SpecError(
            f"{file}: {twice:,} rows have the {listed(found)} of another row, so they are no key: name more columns by --key"
        )
    text = quoted(time.source)
    offsets = f"regexp_matches({text}, '{_OFFSET}') AND length({text}) > 10"
    (has_offset,) = _one(connection, f"SELECT coalesce(bool_and({offsets}), false) FROM rows")
    first, last, days, fewest, most = _one(
        connection,
        f"WITH a AS (SELECT date_trunc('day', {_time(time)}) AS day, count(*) AS n, min({_time(time)}) AS first, "
        f"max({_time(time)}) AS last FROM rows GROUP BY 1) SELECT min(first), max(last), count(*), "
        # The first and the last day may be parts of one.
        "min(n) FILTER (day > (SELECT min(day) FROM a) AND day < (SELECT max(day) FROM a)), max(n) FROM a",
    )
    weekdays = connection.execute(f"SELECT DISTINCT isodow({_time(time)}) FROM rows").fetchall()
    missing = tuple(sorted(set(range(1, 8)) - {int(day) for (day,) in weekdays})) if days >= 14 else ()
    step = None
    if time.name in found:
        others = ", ".join(by_source[name] for name in found if name != time.name)
        over = f"PARTITION BY {others} ORDER BY" if others else "ORDER BY"
        seconds, regular = _one(
            connection,
            f"WITH gaps AS (SELECT epoch({_time(time)} - lag({_time(time)}) OVER ({over} {_time(time)})) AS gap FROM rows) "
            "SELECT mode(gap), avg((gap = (SELECT mode(gap) FROM gaps))::INT) FROM gaps WHERE gap > 0",
        )
        if seconds and regular > 0.5:
            step = timedelta(seconds=seconds)
    return Profile(
        file, dialect, columns, rows, time, bool(has_offset), found, first, last, days, step, fewest or most, most, missing
    )  # fmt: skip


def _find_key(
    connection: duckdb.DuckDBPyConnection,
    columns: Mapping[str, Column],
    time: Column,
    rows: int,
    label: str | None,
    by_source: Mapping[str, str],
) -> tuple[str, ...] | None:
    """The fewest columns that tell all rows apart: a name, the time, things at a time, or else a running number."""
    named = [name for name, column in columns.items() if name != label and column.kind == "string" and not column.missing]
    for name in named:
        if columns[name].distinct == rows:
            return (name,)
    if _distinct(connection, [by_source[time.name]]) == rows:
        return (time.name,)
    able = [
        name
        for name, column in columns.items()
        if name != label and column.kind in ("string", "category", "integer", "boolean") and not column.missing
    ]
    # A column of things that are seen again comes before a running number.
    for size in (1, 2):
        for names in combinations([name for name in able if columns[name].distinct < rows], size):
            possible = 1.0
            for name in names:
                possible *= columns[name].distinct
            if (
                possible * time.distinct * 24 >= rows
                and _distinct(connection, [*(by_source[n] for n in names), by_source[time.name]]) == rows
            ):
                return (*names, time.name)
    return next(((name,) for name in able if columns[name].distinct == rows), None)


def _distinct(connection: duckdb.DuckDBPyConnection, expressions: Sequence[str]) -> int:
    (count,) = _one(connection, f"SELECT count(*) FROM (SELECT DISTINCT {', '.join(expressions)} FROM rows)")
    return int(count)


# --- SQL -------------------------------------------------------------------------------------------------------------


def _time(column: Column) -> str:
    """The expression of a time; without a zone, as the file's clock shows it."""
    return f"({column.sql})" if column.sql else f"{quoted(column.source)}::TIMESTAMP"


def _values(name: str, nulls: Sequence[str]) -> str:
    known = ", ".join(literal(text) for text in ["", *nulls])
    return (
        f"SELECT trim({quoted(name)}) AS value FROM rows WHERE {quoted(name)} IS NOT NULL AND {quoted(name)} NOT IN ({known})"
    )


def _share(connection: duckdb.DuckDBPyConnection, name: str, condition: str, nulls: Sequence[str]) -> float:
    (share,) = _one(connection, f"SELECT coalesce(avg(({condition})::INT), 0) FROM ({_values(name, nulls)})")
    return float(share)


def _named(name: str, columns: Mapping[str, Column], file: Path) -> Column:
    """The column that somebody means, by its name in the file or its identifier."""
    for column in columns.values():
        if name in (column.source, column.name):
            return column
    raise SpecError(f"{file} has no column {name}; its columns are {listed([column.source for column in columns.values()])}")


def _identifier(source: str, taken: Mapping[str, Any]) -> str:
    plain = re.sub(r"[^0-9a-z]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", source).lower()).strip("_") or "column"
    plain = f"c_{plain}" if plain[0].isdigit() else plain
    return next(name for name in _numbered(plain) if name not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    found = connection.execute(query).fetchone()
    assert found is not None
    return found
