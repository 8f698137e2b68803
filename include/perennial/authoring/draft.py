"""Writes the folder of a model from what :mod:`perennial.authoring.profile` saw, as plain text for a person to go on with.

Two kinds of data are told apart. A *series* sees the same things again and again: each row is predicted before it is measured,
from earlier rows of the same thing. *Events* are another thing in each row: a row's own columns are known when it happens, and
what came of it is known later. Each guess has a comment that says what it was taken from, and what only a person can know is
marked ``TODO``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from perennial.authoring.profile import CATEGORIES, LABELS, QUANTITY, Column, Profile
from perennial.core.errors import SpecError
from perennial.spec.names import listed

#: Rows that a decision takes, and that a verdict on drift takes; the defaults of ``gates.min_rows`` and ``drift.min_rows``.
_DECIDE, _VERDICT, _FEWEST = 200, 200, 50
#: Columns of numbers that get features of their past; more would make a query that nobody reads.
_PASTS = 12
_DAY = timedelta(days=1)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class Draft:
    """A model's folder as texts.

    Attributes:
        spec: ``model.yaml``.
        query: ``features.sql``.
        todos: what a person has to decide, a line each.
        first, last: the days to load, the last one exclusive, as the command line takes them.
    """

    spec: str
    query: str
    todos: tuple[str, ...]
    first: str
    last: str


@dataclass(frozen=True)
class Query:
    """How a source reads a table of a database.

    Attributes:
        connection: an Airflow connection, or the variable that holds the address.
        sql: the query.
        is_whole: whether all rows of the table were looked at.
    """

    connection: str
    sql: str
    is_whole: bool = True


def choose_label(profile: Profile, label: str | None) -> Column:
    """The column to predict: the one that is named, or the one with a usual name.

    Raises:
        SpecError: there is none, or it cannot be predicted; the message says what to do.
    """
    columns = profile.columns
    if label is not None:
        found = next((one for one in columns.values() if label in (one.source, one.name)), None)
        if found is None:
            raise SpecError(f"{profile.file}: the label cannot be {label}, which says when a row happened")
    else:
        found = next((columns[name] for name in LABELS if name in columns), None)
        if found is None:
            raise SpecError(
                f"{profile.file}: name the column to predict by --label; its columns are "
                f"{listed([one.source for one in columns.values()])}"
            )
    if found.name in profile.key:
        raise SpecError(
            f"{profile.file}: {found.source} is part of the key, so it cannot be the label: name another --key or --label"
        )
    if found.kind in ("constant", "empty"):
        raise SpecError(
            f"{profile.file}: {found.source} has one value only, so there is nothing to predict: name another --label"
        )
    if found.kind in ("timestamp", "string"):
        raise SpecError(
            f"{profile.file}: {found.source} is no number and no class ({found.distinct:,} different values"
            + (f"; {found.note}" if found.note else "") + "): name another --label"
        )  # fmt: skip
    return found


def task_of(label: Column) -> str:
    """What kind of a prediction a column asks for."""
    if label.kind == "boolean" or label.distinct == 2:
        return "binary_classification"
    if label.kind == "category" or (
        label.kind == "integer" and label.values and label.distinct < QUANTITY and label.minimum == 0
    ):
        return "multiclass_classification"
    return "regression"


def draft(
    name: str, profile: Profile, label: Column, *, source: str | Query, time_zone: str | None, owner: str | None = None
) -> Draft:
    """Draft a model's folder.

    Args:
        name: the model's name.
        profile: what the file holds.
        label: the column to predict.
        source: the file below the deployment's data folder, or the query of a database.
        time_zone: the zone of the file's clock; None if it is not known.
        owner: who answers for the model; None if that is not known.

    Raises:
        SpecError: there is too little history for a training.
    """
    writer = _Writer(name, profile, label, source, time_zone, owner)
    lengths = _Lengths.of(profile)
    features = list(writer.features())
    spec = "\n".join([*writer.head(), *writer.tables(), *writer.rest(features, lengths)]) + "\n"
    return Draft(
        spec, writer.query(features), tuple(re.findall(r"TODO: (.*)", spec)), f"{profile.first:%Y-%m-%d}",
        f"{profile.last + _DAY:%Y-%m-%d}",
    )  # fmt: skip


@dataclass(frozen=True)
class _Feature:
    name: str
    sql: str
    is_number: bool = True
    join: str | None = None


@dataclass(frozen=True)
class _Lengths:
    """How many days to train on, to hold out and to validate on, so that each has the rows that it takes."""

    window: int
    holdout: int
    validation: int

    @classmethod
    def of(cls, profile: Profile) -> _Lengths:
        days = profile.span
        a_day = profile.rows / days
        holdout = min(max(7, math.ceil(1.25 * _DECIDE / a_day)), max(1, days // 4))
        # The lookback of the first row, and a day for the last label.
        left = days - holdout - 9
        window = min(365, left)
        validation = min(max(holdout, 7), window // 3)
        if validation < 1 or window < 3 or a_day * holdout < _FEWEST / 2:
            raise SpecError(
                f"{profile.file}: {profile.rows:,} rows of {days} days are too few to train on, and to hold rows out for "
                "a decision: bring a longer history"
            )
        return cls(window, holdout, validation)


class _Writer:
    """The parts of ``model.yaml`` and ``features.sql``."""

    def __init__(
        self,
        name: str,
        profile: Profile,
        label: Column,
        source: str | Query,
        time_zone: str | None,
        owner: str | None,
    ) -> None:
        self.name, self.profile, self.label = name, profile, label
        self.source, self.time_zone, self.owner = source, time_zone, owner
        self.time = profile.time.name
        self.task = task_of(label)
        self.things = [column for column in profile.key if column != self.time]
        self.step = _sql_interval(profile.step or _DAY)
        # A running number, what never changes and what is empty tell nothing.
        self.usable = {
            name: column
            for name, column in profile.columns.items()
            if column.kind not in ("constant", "empty", "timestamp")
            and not (column.distinct == profile.rows and column.kind != "float" and name not in profile.key)
        }
        self.left_out = [
            column for column in profile.columns.values() if column.name not in self.usable and column.name not in profile.key
        ]
        self.known = [column for column in self.usable.values() if column.name != label.name and column.name not in profile.key]

    # --- model.yaml ---

    def head(self) -> Iterator[str]:
        profile = self.profile
        yield "# yaml-language-server: $schema=../model.schema.json"
        yield f"# Drafted from {profile.rows:,} rows of {profile.file.name}; a comment says what each guess was taken from."
        yield f"name: {self.name}"
        yield f"owner: {_quoted(self.owner)}" if self.owner else "owner: unknown  # TODO: name who answers for this model"
        yield f"description: What is {self.label.source}?"
        yield f"task: {self.task}" + self._why_task()
        yield "sources:"
        yield f"  {_SOURCE}:"
        if isinstance(self.source, Query):
            if not self.source.is_whole:
                yield "    # Not all rows of the table were looked at."
            yield f"    connection: {self.source.connection}  # an Airflow connection, or a variable with the address"
            yield f"    sql: {_quoted(self.source.sql)}"
        else:
            yield f"    files: {_quoted(self.source)}"
        if not profile.has_offset:
            if self.time_zone:
                yield f"    time_zone: {self.time_zone}"
            else:
                yield f"    # {profile.time.source} names no zone."
                yield "    # TODO: write time_zone, such as America/New_York, if it is not UTC"
        dialect = profile.dialect
        if isinstance(self.source, Query):
            if dialect.null_values != ("",):
                told = listed([one for one in dialect.null_values if one])
                yield f"    # TODO: {told} may mean a missing value; if so, write NULLIF(column, value) in the query"
            if dialect.decimal != ".":
                yield f"    decimal: {_quoted(dialect.decimal)}"
            return
        if dialect.delimiter not in (",", "\t") or (dialect.delimiter == "\t") != (".tsv" in profile.file.name):
            yield f"    delimiter: {json.dumps(dialect.delimiter)}"
        if dialect.encoding != "utf-8":
            yield f"    encoding: {dialect.encoding}"
        if dialect.decimal != ".":
            yield f"    decimal: {_quoted(dialect.decimal)}"
        if dialect.thousands:
            yield f"    thousands: {_quoted(dialect.thousands)}"
        if dialect.null_values != ("",):
            yield f"    null_values: {json.dumps(list(dialect.null_values), ensure_ascii=False)}"

    def _why_task(self) -> str:
        label = self.label
        if self.task == "regression":
            return ""
        return f"  # {label.source} has {label.distinct} values: {listed([str(one) for one in label.values[:6]])}"

    def tables(self) -> Iterator[str]:
        profile = self.profile
        yield "tables:"
        if profile.is_series:
            yield f"  # What is predicted. Which {self._things()} there are is taken to be known a day before, like a calendar."
            yield from self._table(_ENTITIES, f"{self.time} - INTERVAL 1 DAY", [])
            yield f"  # What was measured. A row comes every {self.step}, and is taken to be known that much later."
            yield from self._table(_MEASURED, f"{self.time} + INTERVAL {self.step}", [*self.known, self.label])
        else:
            yield "  # What is known of a row when it happens."
            yield from self._table(_ENTITIES, self.time, self.known)
            yield f"  # What came of it.  TODO: say when {self.label.source} is known; a day later is a guess"
            yield from self._table(_MEASURED, f"{self.time} + INTERVAL 1 DAY", [self.label])
        if self.left_out:
            why = {"constant": "the same in every row", "empty": "empty", "timestamp": "a time"}
            told = [f"{one.source} ({why.get(one.kind, 'another value in each row')})" for one in self.left_out]
            yield f"  # Left out: {', '.join(told)}."

    def _table(self, table: str, known: str, columns: Sequence[Column]) -> Iterator[str]:
        profile = self.profile
        yield f"  {table}:"
        yield f"    source: {_SOURCE}"
        yield f"    key: [{', '.join(profile.key)}]"
        yield f"    event_time: {self.time}"
        yield f"    known: {known}"
        yield "    columns:"
        note = f"  # {profile.time.note}" if profile.time.note else ""
        yield f"      {self.time}: {{type: timestamp{self._from(profile.time)}}}{note}"
        for name in profile.key:
            if name != self.time:
                yield self._column(profile.columns[name], bounds=False)
        for column in columns:
            yield self._column(column)
        if table == _ENTITIES:
            least = profile.fewest // 2
            if least > 1:
                yield "    checks:"
                yield f"      rows: {{min: {least}}}  # whole days had {profile.fewest:,} to {profile.most:,} rows"

    def _column(self, column: Column, *, bounds: bool = True) -> str:
        kind = {"category": "string", "boolean": "string"}.get(column.kind, column.kind)
        parts = [f"type: {kind}"]
        if column.missing:
            parts.append("nullable: true")
        if bounds and column.is_number and column.minimum is not None and column.minimum >= 0:
            parts.append("min: 0, severity: warning")
        text = f"      {column.name}: {{{', '.join(parts)}{self._from(column)}}}"
        notes = [note for note in (column.note, f"{column.missing:,} are missing" if column.missing else "") if note]
        return text + (f"  # {'; '.join(notes)}" if notes else "")

    def _from(self, column: Column) -> str:
        if column.sql is not None:
            return f", sql: {_quoted(column.sql)}"
        return "" if column.source.lower() == column.name else f", from: [{_quoted(column.source)}]"

    def _things(self) -> str:
        return f"{listed(self.things)} and {self.profile.time.source}" if self.things else self.profile.time.source

    def rest(self, features: Sequence[_Feature], lengths: _Lengths) -> Iterator[str]:
        profile = self.profile
        yield f"entity: {{table: {_ENTITIES}, as_of: {self.time}}}" + ("  # asked when it begins" if profile.is_series else "")
        yield "features:"
        for kind, wanted in (("numeric", True), ("categorical", False)):
            names = [feature.name for feature in features if feature.is_number is wanted]
            if names:
                yield f"  {kind}: [{', '.join(names)}]"
        yield "  lookback: 8d"
        yield f"label: {{table: {_MEASURED}, sql: {self._label_sql()}}}"
        yield "candidates:"
        yield "  prior: {estimator: prior, baseline: true}"
        yield "  boosting: {estimator: gradient_boosting}"
        days = profile.span
        held = lengths.holdout * profile.rows / days
        yield f"# {days:,} days of {profile.rows / days:,.0f} rows: the holdout has some {held:,.0f}."
        yield f"training: {{window: {lengths.window}d, holdout: {lengths.holdout}d, validation: {lengths.validation}d}}"
        gates = [f"min_rows: {max(int(held * 0.6), 10)}"] if held < 1.25 * _DECIDE else []
        if profile.is_series:
            yield "# A forecast leans on the newest value, more than the default allows any one feature to matter."
            gates.append("robustness: {noise_drop: 0.3, missing_drop: 0.7}")
        if gates:
            yield f"gates: {{{', '.join(gates)}}}"
        week = 7 * profile.rows / days
        if week < 1.25 * _VERDICT:
            yield f"drift: {{min_rows: {max(int(week * 0.6), _FEWEST)}}}  # a week has some {week:,.0f} rows"
        if week * 0.6 < _FEWEST:
            yield "# A week has too few rows for a verdict on drift, so there will be none."
        if profile.missing_days:
            closed = ", ".join(_WEEKDAYS[day - 1] for day in profile.missing_days)
            yield f"schedules: {{closed: [{closed}]}}  # no row is of such a day"

    def _label_sql(self) -> str:
        label = self.label
        if self.task == "regression":
            return label.name
        if self.task == "multiclass_classification":
            return label.name if label.kind == "category" else _quoted(f"{label.name}::VARCHAR")
        yes = next((one for one in label.values if one.lower() in ("1", "true", "yes", "t", "y")), None)
        if yes is None:
            yes = label.values[-1] if label.values else str(label.maximum)
        return _quoted(f"{label.name} = {yes}" if label.is_number else f"{label.name} = '{yes.replace(chr(39), chr(39) * 2)}'")

    # --- features.sql ---

    def features(self) -> Iterator[_Feature]:
        """The features, in their order."""
        profile = self.profile
        clock = f"entities.{self.time}"
        if self.time_zone and not profile.has_offset:
            clock = f"(entities.{self.time} AT TIME ZONE '{self.time_zone}')"
        if (profile.step or timedelta(0)) < _DAY:
            yield _Feature("at_hour", f"extract(hour FROM {clock})")
        yield _Feature("at_weekday", f"isodow({clock})")
        if (profile.last - profile.first).days > 300:
            yield _Feature("at_month", f"month({clock})")
        for name in self.things if profile.is_series else []:
            column = profile.columns[name]
            if column.distinct <= CATEGORIES * 4:
                yield _Feature(f"which_{name}", f"entities.{name}::VARCHAR", is_number=False)
        if not profile.is_series:
            for column in self.known:
                if column.is_number:
                    yield _Feature(f"its_{column.name}", f"entities.{column.name}")
                elif column.kind in ("category", "boolean"):
                    yield _Feature(f"its_{column.name}", f"entities.{column.name}", is_number=False)
            return
        numbers = [column for column in [self.label, *self.known] if column.is_number][:_PASTS]
        for column in numbers:
            yield _Feature(f"{column.name}_last", f"newest.{column.name}", join="newest")
        if self.label.is_number:
            for before in ("day_before", "week_before"):
                yield _Feature(f"{self.label.name}_{before}", f"{before}.{self.label.name}", join=before)
        # A code of a few values has no mean.
        for column in [one for one in numbers if not one.values]:
            yield _Feature(f"{column.name}_mean_1d", f"past.{column.name}_mean_1d", join="past")
            yield _Feature(f"{column.name}_mean_7d", f"past.{column.name}_mean_7d", join="past")
        for column in [one for one in [*self.known, self.label] if one.kind in ("category", "boolean")]:
            yield _Feature(f"{column.name}_last", f"newest.{column.name}", is_number=False, join="newest")

    def query(self, features: Sequence[_Feature]) -> str:
        """``features.sql``."""
        joins = {feature.join for feature in features}
        key = [f"    entities.{name}," for name in self.profile.key]
        lines = ["-- One row for each entity, from what was known at its as_of."]
        if "past" in joins:
            lines.append(
                "-- Means are taken in order: a sum of floats depends on it, and a feature must be the same to the last bit."
            )
            means = [feature.name.removesuffix("_mean_7d") for feature in features if feature.name.endswith("_mean_7d")]
            lines += ["WITH past AS (", "    SELECT", *[f"    {line}" for line in key]]
            for name in means:
                mean = f"avg({_MEASURED}.{name} ORDER BY {_MEASURED}.{self.time})"
                recent = f"{_MEASURED}.{self.time} >= entities.{self.time} - INTERVAL 1 DAY"
                lines += [f"        {mean} FILTER ({recent}) AS {name}_mean_1d,", f"        {mean} AS {name}_mean_7d,"]
            lines += [
                "    FROM entities",
                f"    JOIN {_MEASURED}",
                f"        ON {self._same(_MEASURED)}{_MEASURED}.{self.time} >= entities.{self.time} - INTERVAL 7 DAY",
                f"        AND {_MEASURED}._known_at <= entities.as_of",
                "    GROUP BY ALL",
                ")",
            ]
        lines += ["SELECT", *key]
        lines += [f"    {feature.sql} AS {feature.name}," for feature in features]
        lines.append("FROM entities")
        if "newest" in joins:
            same = self._same("newest")
            lines += [
                f"ASOF LEFT JOIN {_MEASURED} AS newest",
                f"    ON {same}newest._known_at <= entities.as_of",
            ]
        for name, before in (("day_before", "1 DAY"), ("week_before", "7 DAY")):
            if name in joins:
                lines += [
                    f"LEFT JOIN {_MEASURED} AS {name}",
                    f"    ON {self._same(name)}{name}.{self.time} = entities.{self.time} - INTERVAL {before}",
                    f"    AND {name}._known_at <= entities.as_of",
                ]
        if "past" in joins:
            lines += ["LEFT JOIN past", f"    ON {self._same('past')}past.{self.time} = entities.{self.time}"]
        return "\n".join(lines) + "\n"

    def _same(self, table: str) -> str:
        return "".join(f"{table}.{name} = entities.{name} AND " for name in self.things)


_SOURCE, _ENTITIES, _MEASURED = "rows", "wanted", "measured"


def write(folder: Path, made: Draft) -> None:
    """Write a model's folder.

    Raises:
        SpecError: it exists already.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise SpecError(f"{folder} exists already: choose another name, or remove it") from None
    (folder / "model.yaml").write_text(made.spec, encoding="utf-8")
    (folder / "features.sql").write_text(made.query, encoding="utf-8")


def _sql_interval(step: timedelta) -> str:
    for unit, length in (("DAY", _DAY), ("HOUR", timedelta(hours=1)), ("MINUTE", timedelta(minutes=1))):
        if step >= length and step % length == timedelta(0):
            return f"{step // length} {unit}"
    return f"{max(math.ceil(step.total_seconds()), 1)} SECOND"


def _quoted(text: str) -> str:
    """A text as a scalar of YAML."""
    return "'" + text.replace("'", "''") + "'"
