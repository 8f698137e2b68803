"""``sources``, ``tables``, ``entity``, ``features`` and ``label`` in ``model.yaml``."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from perennial.alerts.alert import Severity
from perennial.spec.binds import END, START, binds
from perennial.spec.names import is_unknown, listed
from perennial.spec.sections import Found, Section, check, check_each
from perennial.spec.types import (
    ColumnType,
    ConnectionId,
    Duration,
    Function,
    Identifier,
    Number,
    Positive,
    Share,
    Sql,
    Text,
    TimeZone,
    sets_apart,
)

#: How the address of a file begins that fsspec reads from elsewhere. Others, such as file://, zip:// and git://, read files of
#: this machine, which may be secrets of other models.
STORES = frozenset(
    {
        "abfs", "abfss", "adl", "az", "box", "dbfs", "dropbox", "ftp", "gcs", "gdrive", "gs", "hdfs", "hf", "http",
        "https", "memory", "oci", "oss", "s3", "s3a", "sftp", "smb", "ssh", "tos", "webhdfs",
    }
)  # fmt: skip
#: The ends of the names of files that can be read.
_READ = r"\.((csv|tsv|jsonl|ndjson)(\.gz|\.zst)?|parquet)$"


class Source(Section):
    """Where rows come from: exactly one of ``files``, ``sql``, ``python`` and ``pushed``.

    Attributes:
        files: a pattern below the deployment's data folder, or the address of a store, such as ``s3://…``. ``%Y``, ``%m``,
            ``%d`` and ``%H`` stand for the time of an interval. ``*`` and ``?`` match as in a shell. Ends in .csv, .tsv,
            .jsonl or .ndjson, each also with .gz or .zst after it, or in .parquet. Folders such as ``day=%Y-%m-%d/`` give a
            column ``day``. With these codes each row has a column ``file_time``: the time that they stand for.
        sql: a query that binds ``:start`` and ``:end``, and nothing else: write ``\\:`` for another colon outside of texts.
            Requires ``connection``.
        connection: the database of ``sql``: an Airflow connection id, or the name of an environment variable that holds a
            SQLAlchemy URL.
        python: ``model:function``. It is called with start and end, and returns an Arrow table or record batch reader.
        pushed: true: rows come from clients alone, who push them to the scorer. ``online.push`` names the tables.
        time_zone: the zone of the source's clock, such as America/New_York. Times without an offset are of this zone, and the
            time codes of ``files`` stand for its days and hours. None: UTC.
        null_values: texts of a CSV file that mean a missing value.
        delimiter: the character between the fields of a CSV file. The comma means a tab for .tsv.
        decimal: the character before the fraction of a number in a text.
        thousands: the character between groups of three digits in a text. None: numbers have no groups.
        encoding: the encoding of a CSV file.
    """

    files: Text | None = None
    sql: Sql | None = None
    connection: ConnectionId | None = None
    python: Function | None = None
    pushed: Literal[True] | None = None
    time_zone: TimeZone | None = None
    null_values: list[str] = [""]
    delimiter: Annotated[str, Field(min_length=1, max_length=1), AfterValidator(sets_apart)] = ","
    decimal: Literal[".", ","] = "."
    thousands: Literal[".", ",", " ", "'", "_", "\u00a0", "\u202f"] | None = None
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"

    @check
    def _is_one_kind(self) -> Found:
        if sum(kind is not None for kind in (self.files, self.sql, self.python, self.pushed)) != 1:
            yield (), "give exactly one of files, sql, python and pushed"

    @check
    def _queries_a_database(self) -> Found:
        if (self.sql is None) != (self.connection is None):
            yield (), f"{'sql' if self.connection is None else 'connection'} is given alone; give both sql and connection"

    @check
    def _reads_known_files(self) -> Found:
        if self.files is not None:
            if not re.search(_READ, self.files):
                yield ("files",), "must end in .csv, .tsv, .jsonl or .ndjson, also with .gz or .zst after it, or in .parquet"
            if "://" not in self.files and (self.files.startswith("/") or ".." in Path(self.files).parts):
                yield ("files",), "must stay below the data folder; write no leading / and no .."
            store, address, _ = self.files.partition("://")
            if address and (store not in STORES or "::" in self.files):
                yield (
                    ("files",),
                    f"must stay below the data folder, or begin with the address of a store ({', '.join(sorted(STORES))}); "
                    f"{store}:// can read other files of this machine",
                )

    @check
    def _tells_groups_from_fractions(self) -> Found:
        if self.decimal == self.thousands:
            yield ("thousands",), f"is {self.thousands}, as decimal is; a number would have two meanings"

    @check
    def _reads_one_interval(self) -> Found:
        # Which database it is, and so where its texts end, is not known here.
        if self.sql is not None and not any({START, END} <= set(binds(self.sql, backslashes=each)) for each in (False, True)):
            yield ("sql",), "must bind :start and :end; otherwise every run would read everything"


class Column(Section):
    """One column of a table: its type, where it comes from, and what each of its values must satisfy.

    Attributes:
        type: what the value is cast to. A row with a value that cannot be cast goes to quarantine.
        sql: an expression over the source's columns, which are texts for CSV. Default: the source's column of the same name.
        from: names of the source's column, if it has another name or has changed it. A source has one of them. Excludes sql.
        nullable: whether the value may be missing. It is missing in each row of a file that has no such column.
        min, max: bounds of a number, inclusive.
        values: the only values allowed.
        matches: a regular expression that the beginning of the value must match. End it with ``$`` to match the whole value.
        severity: ``critical`` sends a row that fails these checks to quarantine. ``warning`` only reports it.
    """

    type: ColumnType
    sql: Sql | None = None
    alternatives: Annotated[Annotated[list[Text], Field(min_length=1)] | None, Field(alias="from")] = None
    nullable: bool = False
    min: Number | None = None
    max: Number | None = None
    values: Annotated[list[str], Field(min_length=1)] | None = None
    matches: Text | None = None
    severity: Severity = "critical"

    def sources(self, name: str) -> list[str]:
        """The names that the column, called ``name`` in its table, may have in a source; without ``sql``."""
        return self.alternatives or [name]

    @check
    def _is_read_in_one_way(self) -> Found:
        if self.alternatives is not None and self.sql is not None:
            yield ("from",), "sql is given too; write the choice between columns as sql, or remove sql"

    @check
    def _names_a_source_column_once(self) -> Found:
        folded = [name.casefold() for name in self.alternatives or []]
        if twice := sorted({name for name in folded if folded.count(name) > 1}):
            yield ("from",), f"names a column twice, and upper and lower case do not count: {listed(twice)}"

    @check
    def _bounds_are_for_numbers(self) -> Found:
        if (self.min is not None or self.max is not None) and self.type not in ("integer", "float"):
            yield (), f"min and max are for integer and float columns, the type of this one is {self.type}; remove them"

    @check
    def _patterns_are_for_strings(self) -> Found:
        if (self.values is not None or self.matches is not None) and self.type != "string":
            yield (), f"values and matches are for string columns, the type of this one is {self.type}; remove them"

    @check
    def _bounds_leave_room(self) -> Found:
        if self.min is not None and self.max is not None and self.min > self.max:
            yield (), f"min {self.min:g} is above max {self.max:g}"

    @check
    def _matches_a_regular_expression(self) -> Found:
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                yield ("matches",), f"is not a regular expression: {error}"


class RowCount(Section):
    """How many rows must come in per day, those that go to quarantine included.

    Attributes:
        min, max: rows per day, inclusive. For a part of a day, min is reduced to that part. A table without event time
            counts as one day.
        severity: ``critical`` refuses the interval, ``warning`` only reports it.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] | None = None
    severity: Severity = "critical"

    @check
    def _bounds_leave_room(self) -> Found:
        if self.max is not None and self.min > self.max:
            yield (), f"min {self.min} is above max {self.max}"


class Freshness(Section):
    """How old the newest row may be.

    Attributes:
        within: longest time from the newest event to the interval's end.
        severity: ``critical`` refuses the interval, ``warning`` only reports it.
    """

    within: Duration
    severity: Severity = "critical"


class Volume(Section):
    """By how much the rows per day may differ from the past. Rows in quarantine do not count.

    Attributes:
        past: the time before the interval whose mean is compared with.
        tolerance: largest difference, as a share of that mean.
        severity: ``critical`` refuses the interval, ``warning`` only reports it.
    """

    past: Duration = timedelta(days=28)
    tolerance: Positive = 0.5
    severity: Severity = "warning"


class TableChecks(Section):
    """What the rows of an interval must satisfy together.

    Attributes:
        rows: how many rows must come in per day.
        freshness: how old the newest row may be. None: not checked.
        volume: by how much the rows per day may differ from the past. None: not checked.
    """

    rows: RowCount = RowCount()
    freshness: Freshness | None = None
    volume: Volume | None = None


class Table(Section):
    """A table of the lake, fed by one source.

    Attributes:
        source: the source's name.
        where: SQL over the source's columns. Only rows for which it is true belong to this table.
        key: columns that identify a row. See ``duplicates`` for two rows of one key.
        event_time: the timestamp column that places a row in an interval. A table without one is replaced as a whole.
        known: SQL over the table's columns: the moment from which a row may be used. ``always``: at any time.
        columns: the columns by name.
        checks: what the rows of an interval must satisfy together.
        tolerance: largest share of rows that may go to quarantine. If more do, the interval is refused. Rows of an hour that
            clocks show twice or skip do not count.
        late: how long after the day of its event time a row may arrive. Rows that arrive by then are published into their own
            day. A day without a file of this table, or without a row from its database, is published without it, and
            completed by a later ingest; not so for the entity's table. A database is read again this far back.
        duplicates: what a second row of a key in a later file, or on a later day, is. ``correct``: a newer state of knowledge.
            Of the rows known at a moment, the newest counts. ``refuse``: an error, so the row goes to quarantine. Within one
            file and day, rows that share a key and differ always go to quarantine, unless they have one event time and are
            known from different moments on.
        replaced: what to do about a file that was replaced after it was read. ``tell``: warn. ``read``: also read it again.
    """

    source: Identifier
    where: Sql | None = None
    key: Annotated[list[Identifier], Field(min_length=1)]
    event_time: Identifier | None = None
    known: Sql
    columns: Annotated[dict[Identifier, Column], Field(min_length=1)]
    checks: TableChecks = TableChecks()
    tolerance: Share = 0.05
    late: Duration | None = None
    duplicates: Literal["correct", "refuse"] = "correct"
    replaced: Literal["tell", "read"] = "tell"

    @check_each("key")
    def _key_names_columns(self, _: int, column: str) -> Found:
        if is_unknown(column, self.columns):
            yield (), f"{column} is no column of this table; its columns are {listed(self.columns)}"

    @check
    def _event_time_is_a_column(self) -> Found:
        if self.event_time is not None and is_unknown(self.event_time, self.columns):
            yield ("event_time",), f"{self.event_time} is no column of this table; its columns are {listed(self.columns)}"

    @check
    def _event_time_is_a_timestamp(self) -> Found:
        column = self.columns.get(self.event_time) if self.event_time is not None else None
        if column is not None and (column.type != "timestamp" or column.nullable):
            yield ("event_time",), f"column {self.event_time} must be a timestamp and not nullable"

    @check
    def _late_rows_have_a_day(self) -> Found:
        if self.late is not None and self.event_time is None:
            yield ("late",), "requires an event_time, which says to which day a row belongs"

    @check
    def _checks_over_time_have_an_event_time(self) -> Found:
        if self.event_time is None:
            for name in ("freshness", "volume"):
                if getattr(self.checks, name) is not None:
                    yield ("checks", name), "requires an event_time; name the table's, or remove this check"


class Entity(Section):
    """What is predicted: one prediction for each row of ``table``.

    Attributes:
        table: the table whose key identifies a prediction, and whose event time places it in an interval.
        as_of: SQL over that table's columns: the moment for which the prediction is made. Features use only rows that are
            known by then.
    """

    table: Identifier
    as_of: Sql


class Features(Section):
    """The columns that ``features.sql`` gives for each entity.

    Attributes:
        numeric, categorical: feature names.
        lookback: how far before an interval ``features.sql`` can look. It does not see older rows.
    """

    numeric: list[Identifier] = []
    categorical: list[Identifier] = []
    lookback: Duration = timedelta(days=2)

    @property
    def names(self) -> list[str]:
        return [*self.numeric, *self.categorical]

    @check
    def _are_distinct(self) -> Found:
        if not self.names:
            yield (), "name at least one numeric or categorical feature"
        if twice := {name for name in self.names if name and self.names.count(name) > 1}:
            yield (), f"named more than once: {listed(twice)}"


class Label(Section):
    """What really happened, as soon as it is known.

    Attributes:
        table: a table with the entity's key. The label is known when its row is known.
        sql: SQL over that table's columns: true or false, a class, or a number, depending on the task.
        delay: how long after the entity's event time its label is known as a rule. The holdout of a training ends that long
            before its as-of time, and a window's performance is measured that long after its end. None: training measures it
            from the labels that came.
    """

    table: Identifier
    sql: Sql
    delay: Duration | None = None
