"""Find features that use what was not known yet.

``features.sql`` itself must look at nothing later than each entity's ``as_of`` (:mod:`perennial.features.point_in_time`). This
module tests it. It chooses a moment. It removes every row that was not known by then, or changes these rows and adds invented
ones. The features of all entities with an earlier ``as_of`` must stay the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import SpecError
from perennial.core.intervals import Interval
from perennial.features.point_in_time import blaming, gather, instant, offer, open_database, select
from perennial.lake.schema import KNOWN
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

Cause = Literal["later rows", "the interval", "the run"]

#: The sample is widened by this on both sides, to see whether features depend on the bounds of the interval.
MARGIN = timedelta(days=1)

_INVENTED = 5_000
_A_DAY = pa.scalar(timedelta(days=1))
_CAUSES: list[Cause] = ["the run", "later rows", "the interval"]


@dataclass(frozen=True)
class Change:
    """A feature with another value for some entities.

    Attributes:
        feature: its name.
        entities: number of entities for which it changed.
        example: the key of one of them.
        as_of: the as-of time of that entity.
    """

    feature: str
    entities: int
    example: str
    as_of: datetime


@dataclass(frozen=True)
class Leak(Change):
    """A feature that depends on what it must not depend on.

    Attributes:
        cause: ``later rows``: it uses rows that were not known at the entity's ``as_of``. ``the interval``: it depends on
            the bounds of the interval; for example, it looks further back than ``lookback``, or at events after its own.
            ``the run``: it depends on the clock, on chance, or on the order of rows.
        tables: the tables of the later rows; empty for other causes.
    """

    cause: Cause
    tables: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = {
            "later rows": f"uses rows of {', '.join(self.tables)} that were not known yet: compare _known_at with as_of",
            "the interval": "changes with the bounds of the interval: look no further back than lookback, and at no event "
            "after the entity's own",
            "the run": "differs from run to run: do not use the clock or random numbers, and order what is aggregated",
        }[self.cause]
        return f"{self.feature} {what} ({self.entities:,} entities, for example {self.example} at {self.as_of:%Y-%m-%d %H:%M})"


def find(folder: ModelFolder, tables: Mapping[str, pa.Table], interval: Interval, *, moments: int = 8) -> list[Leak]:
    """Compute the features of a sample repeatedly, each time with other rows where the rows were not known yet.

    Args:
        folder: the model's folder.
        tables: rows of the tables that ``features.sql`` names, as for :func:`perennial.features.point_in_time.compute`, from
            ``lookback`` and :data:`MARGIN` before the interval to :data:`MARGIN` after it.
        interval: the sample.
        moments: number of moments, evenly chosen from the sample's as-of times, after which all rows are changed. A feature
            that looks only minutes ahead shows for an entity whose as-of time is such a moment.

    Returns:
        At most one leak per feature, in the order of the spec. If a feature has several causes, the one that explains the
        others.

    Raises:
        SpecError: ``features.sql`` cannot be run, or fails on the changed values.
    """
    spec = folder.spec
    with closing(open_database(threads=1)) as connection:
        true = features_of(connection, folder, tables, interval)
        found = list(_differences(spec, true, features_of(connection, folder, tables, interval), "the run"))
        wide = Interval(interval.start - MARGIN, interval.end + MARGIN)
        found += _differences(spec, true, features_of(connection, folder, tables, wide), "the interval")
        blamed: set[str] = set()
        for moment in _moments(true, moments):
            found += _later(connection, folder, tables, interval, true, moment, blamed)
    return sorted(_merge(found), key=lambda leak: spec.features.names.index(leak.feature))


def _later(
    connection: duckdb.DuckDBPyConnection,
    folder: ModelFolder,
    tables: Mapping[str, pa.Table],
    interval: Interval,
    true: pa.Table,
    moment: datetime,
    blamed: set[str],
) -> Iterator[Leak]:
    """The leaks of features with an ``as_of`` up to a moment, found by changing the rows that were known later.

    Args:
        connection: runs the query.
        folder: the model's folder.
        tables: the true rows.
        interval: the sample.
        true: the features from the true rows.
        moment: rows known later are changed.
        blamed: features whose tables are already known. Features that are found here are added.
    """
    spec = folder.spec
    asked = true.filter(pc.less_equal(true["as_of"], pa.scalar(moment, true.schema.field("as_of").type)))

    def differences(given: Mapping[str, pa.Table]) -> list[Leak]:
        try:
            # Removed or invented entities would change the latest as_of, and so the rows that the query sees.
            got = features_of(connection, folder, given, interval, known_by=pc.max(true["as_of"]).as_py())
        except SpecError as error:
            raise SpecError(
                f"{error} (it happened on changed values of rows that were not known at {moment}; TRY_CAST may help)"
            ) from error
        return list(_differences(spec, asked, got, "later rows"))

    for altered in (
        {name: rows.filter(_known(rows, moment)) for name, rows in tables.items()},
        {name: _with_other_later(connection, folder, name, rows, moment) for name, rows in tables.items()},
    ):
        leaks = differences(altered)
        if not {leak.feature for leak in leaks} <= blamed:
            alone = {name: differences({**tables, name: altered[name]}) for name in tables}
            blame = {name: {leak.feature for leak in found} for name, found in alone.items()}
            leaks = [replace(leak, tables=[name for name in tables if leak.feature in blame[name]]) for leak in leaks]
            blamed.update(leak.feature for leak in leaks)
        yield from leaks


def features_of(
    connection: duckdb.DuckDBPyConnection,
    folder: ModelFolder,
    tables: Mapping[str, pa.Table],
    interval: Interval,
    *,
    known_by: datetime | None = None,
) -> pa.Table:
    """The features of an interval's entities.

    Args:
        connection: from :func:`perennial.features.point_in_time.open_database`.
        folder, tables, interval, known_by: see :func:`perennial.features.point_in_time.offer`.
    """
    offer(connection, folder, tables, interval, known_by=known_by)
    return features_of_asked(connection, folder)


def features_of_asked(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> pa.Table:
    """The features of the entities that are offered."""
    select(connection, folder)
    gather(connection, folder.spec)
    features: pa.Table = connection.sql("FROM perennial.features").to_arrow_table()
    return features


def _moments(features: pa.Table, count: int) -> list[datetime]:
    """As-of times evenly chosen from all but the last one. After the last one the query sees no rows in any case."""
    occurring = sorted(pc.unique(features["as_of"]).to_pylist())[:-1]
    chosen = {int((n + 0.5) * len(occurring) / count) for n in range(count)} if occurring else set()
    return [occurring[index] for index in sorted(chosen)]


def _differences(spec: ModelSpec, true: pa.Table, got: pa.Table, cause: Cause) -> Iterator[Leak]:
    for one in changes(spec, true, got):
        yield Leak(feature=one.feature, cause=cause, entities=one.entities, example=one.example, as_of=one.as_of)


def changes(spec: ModelSpec, true: pa.Table, got: pa.Table) -> Iterator[Change]:
    """The features in which the entities of ``true`` differ from ``got``, which may have more entities."""
    key = spec.entity_table.key
    places: dict[tuple[object, ...], int | None] = {}
    for place, values in enumerate(_keys(got, key)):
        places[values] = None if values in places else place
    where = [places.get(values) for values in _keys(true, key)]
    # If the row of an entity is gone or repeated, all its features have changed.
    lost = {row for row, place in enumerate(where) if place is None}
    got = got.take(pa.array(where, pa.int64()))
    for name in spec.features.names:
        if not lost and true[name].equals(got[name]):
            continue
        pairs = zip(true[name].to_pylist(), got[name].to_pylist(), strict=True)
        if rows := [row for row, (own, other) in enumerate(pairs) if row in lost or own != other]:
            first = true.slice(rows[0], 1).to_pylist()[0]
            example = ", ".join(f"{column} {first[column]}" for column in key)
            yield Change(feature=name, entities=len(rows), example=example, as_of=first["as_of"])


def _keys(features: pa.Table, key: Sequence[str]) -> Iterator[tuple[object, ...]]:
    return zip(*(features[column].to_pylist() for column in key), strict=True)


def _merge(leaks: Sequence[Leak]) -> list[Leak]:
    """One leak per feature, with its first cause in :data:`_CAUSES`, all its tables, and the most entities of one change."""
    merged: dict[str, Leak] = {}
    for leak in sorted(leaks, key=lambda one: _CAUSES.index(one.cause)):
        other = merged.setdefault(leak.feature, leak)
        if leak.cause == other.cause:
            tables = sorted({*other.tables, *leak.tables})
            merged[leak.feature] = replace(max(other, leak, key=lambda one: one.entities), tables=tables)
    return list(merged.values())


# --- other rows ----------------------------------------------------------------------------------------------------------


def _with_other_later(
    connection: duckdb.DuckDBPyConnection, folder: ModelFolder, name: str, rows: pa.Table, moment: datetime
) -> pa.Table:
    """Rows known by ``moment`` unchanged, later rows with other values, and invented rows that become known later.

    An invented row is a copy of a known row at a later time, with a new key and other numbers. The moment at which changed
    and invented rows become known follows from their columns, as for real rows.
    """
    table = folder.spec.tables[name]
    if table.known == "always":
        return rows
    known = _known(rows, moment)
    before, after = rows.filter(known), rows.filter(pc.invert(known))
    changed = {
        column: after[column] if column in (*table.key, table.event_time) else _others(after[column], rows[column])
        for column in table.columns
    }
    # Copies of the newest rows, since a query usually looks at these.
    pattern = before.sort_by([(KNOWN, "descending")]).slice(0, _INVENTED)
    wait = pc.subtract(pa.scalar(moment, rows.schema.field(KNOWN).type), pattern[KNOWN])
    wait = pc.add(wait, pa.array([timedelta(seconds=1 + n % 600) for n in range(len(wait))], pa.duration("us")))
    moved = {column: _later_by(pattern[column], wait) for column in table.columns}
    renamed = None if any(_is_time(rows[column]) for column in table.key) else table.key[-1]
    invented = {
        column: _next(values)
        if column == renamed
        else values
        if column in table.key or _is_time(values) or pa.types.is_string(values.type)
        else _others(values, rows[column])
        for column, values in moved.items()
    }
    others = pa.concat_tables([pa.table(changed).cast(_bare(rows)), pa.table(invented).cast(_bare(rows))])
    connection.register("_others", others)
    with blaming(f"{folder.path / 'model.yaml'}: tables.{name}.known"):
        dated: pa.Table = connection.sql(
            f"FROM (SELECT *, TRY((\n{table.known}\n)::TIMESTAMPTZ) AS {KNOWN} FROM _others) WHERE {KNOWN} > {instant(moment)}"
        ).to_arrow_table()
    connection.unregister("_others")
    return pa.concat_tables([before, dated.cast(rows.schema)])


def _bare(rows: pa.Table) -> pa.Schema:
    return pa.schema([field for field in rows.schema if field.name != KNOWN])


def _is_time(values: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_timestamp(values.type) or pa.types.is_date(values.type))


def _later_by(values: pa.ChunkedArray, wait: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_date(values.type):
        # Whole days, rounded up.
        return pc.cast(pc.add(pc.add(values.cast(pa.timestamp("us")), wait), _A_DAY), pa.date32(), safe=False)
    return pc.add(values, wait) if _is_time(values) else values


def _known(rows: pa.Table, moment: datetime) -> pa.ChunkedArray:
    return pc.less_equal(rows[KNOWN], pa.scalar(moment, rows.schema.field(KNOWN).type))


def _others(values: pa.ChunkedArray, pool: pa.ChunkedArray) -> pa.ChunkedArray:
    """Another value for each value. It is one that occurs in the column if there are several, so that queries accept it."""
    count = len(pool)
    drawn = pool.take(pa.array([(n * 7919 + 13) % count for n in range(len(values))], pa.int64()))
    both_missing = pc.and_(pc.is_null(values), pc.is_null(drawn))
    same = pc.or_(both_missing, pc.fill_null(pc.equal(values, drawn), False))
    return pc.if_else(same, _next(values), drawn)


def _next(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_boolean(kind):
        return pc.invert(values)
    if pa.types.is_string(kind):
        return pc.binary_join_element_wise(values, "x", "")
    if _is_time(values):
        return pc.cast(pc.add(values, _A_DAY), kind)
    return pc.add(values, pa.scalar(1, kind))
