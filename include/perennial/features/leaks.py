"""Features that know too much, found by changing what they may not know.

``features.sql`` is trusted to look at nothing later than each entity's ``as_of`` (:mod:`perennial.features.point_in_time`).
Here the trust is tested: every row that was not known by some moment is removed, or changed, with invented rows beside it,
and what was asked for until that moment must come out byte for byte the same.
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

#: By how much the sample is widened on both sides, to see whether features depend on where an interval is cut.
MARGIN = timedelta(days=1)

_INVENTED = 5_000
_A_DAY = pa.scalar(timedelta(days=1))
_CAUSES: list[Cause] = ["the run", "later rows", "the interval"]


@dataclass(frozen=True)
class Leak:
    """A feature that depends on what it must not depend on.

    Attributes:
        feature: its name.
        cause: ``later rows``: rows that were not known when it was asked for. ``the interval``: where the interval is cut,
            as when it looks further back than ``lookback``, or at events after its own. ``the run``: the clock, chance, or
            the order of rows.
        tables: whose rows they were; empty unless the cause is ``later rows``.
        entities: how many entities it changed for.
        example: the key of one of them.
        as_of: of that one.
    """

    feature: str
    cause: Cause
    entities: int
    example: str
    as_of: datetime
    tables: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = {
            "later rows": f"uses rows of {', '.join(self.tables)} that were not known then: compare _known_at with as_of",
            "the interval": "is another when the interval is cut elsewhere: let it look no further back than lookback, and "
            "at no event after its own",
            "the run": "differs from run to run: leave out the clock and chance, and order what is aggregated",
        }[self.cause]
        return f"{self.feature} {what} ({self.entities:,} entities, such as {self.example} at {self.as_of:%Y-%m-%d %H:%M})"


def find(folder: ModelFolder, tables: Mapping[str, pa.Table], interval: Interval, *, moments: int = 8) -> list[Leak]:
    """Compute the features of a sample again and again, each time with other rows where nobody could have known them.

    Args:
        folder: the model's.
        tables: rows of the tables that ``features.sql`` names, as :func:`perennial.features.point_in_time.compute`
            takes them, from ``lookback`` and :data:`MARGIN` before the interval to :data:`MARGIN` after it.
        interval: the sample.
        moments: at how many of the sample's as-of times, evenly chosen, everything later is changed. An entity that asks
            just then is where a feature that looks only minutes ahead gives itself away.

    Returns:
        At most one leak a feature, in the order of the spec: of several causes the one that explains the others.

    Raises:
        SpecError: ``features.sql`` cannot be run, or not on other values than the real ones.
    """
    spec = folder.spec
    with closing(open_database(threads=1)) as connection:
        true = _features(connection, folder, tables, interval)
        found = list(_differences(spec, true, _features(connection, folder, tables, interval), "the run"))
        wide = Interval(interval.start - MARGIN, interval.end + MARGIN)
        found += _differences(spec, true, _features(connection, folder, tables, wide), "the interval")
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
    """What changes in features asked for by ``moment`` when what was known later changes.

    Args:
        blamed: features whose tables are known already; those of others are looked for, and added.
    """
    spec = folder.spec
    asked = true.filter(pc.less_equal(true["as_of"], pa.scalar(moment, true.schema.field("as_of").type)))

    def differences(given: Mapping[str, pa.Table]) -> list[Leak]:
        try:
            # Entities that are removed or invented move the latest as_of, and with it what is offered.
            got = _features(connection, folder, given, interval, known_by=pc.max(true["as_of"]).as_py())
        except SpecError as error:
            raise SpecError(f"{error} (in other values of rows that were not known at {moment}; TRY_CAST may help)") from error
        return list(_differences(spec, asked, got, "later rows"))

    for altered in (
        {name: _without_later(rows, moment) for name, rows in tables.items()},
        {name: _with_other_later(connection, folder, name, rows, moment) for name, rows in tables.items()},
    ):
        leaks = differences(altered)
        if not {leak.feature for leak in leaks} <= blamed:
            alone = {name: differences({**tables, name: altered[name]}) for name in tables}
            blame = {name: {leak.feature for leak in found} for name, found in alone.items()}
            leaks = [replace(leak, tables=[name for name in tables if leak.feature in blame[name]]) for leak in leaks]
            blamed.update(leak.feature for leak in leaks)
        yield from leaks


def _features(
    connection: duckdb.DuckDBPyConnection,
    folder: ModelFolder,
    tables: Mapping[str, pa.Table],
    interval: Interval,
    *,
    known_by: datetime | None = None,
) -> pa.Table:
    offer(connection, folder, tables, interval, known_by=known_by)
    select(connection, folder)
    gather(connection, folder.spec)
    features: pa.Table = connection.sql("FROM perennial.features").to_arrow_table()
    return features


def _moments(features: pa.Table, count: int) -> list[datetime]:
    """As-of times that occur, evenly chosen from all but the last, after which nothing is offered anyhow."""
    occurring = sorted(pc.unique(features["as_of"]).to_pylist())[:-1]
    chosen = {int((n + 0.5) * len(occurring) / count) for n in range(count)} if occurring else set()
    return [occurring[index] for index in sorted(chosen)]


def _differences(spec: ModelSpec, true: pa.Table, got: pa.Table, cause: Cause) -> Iterator[Leak]:
    """The features in which entities of ``true`` differ in ``got``, which may have more entities."""
    key = spec.entity_table.key
    places: dict[tuple[object, ...], int | None] = {}
    for place, values in enumerate(_keys(got, key)):
        places[values] = None if values in places else place
    where = [places.get(values) for values in _keys(true, key)]
    # An entity whose row is gone, or there twice, has no feature that is what it was.
    lost = {row for row, place in enumerate(where) if place is None}
    got = got.take(pa.array(where, pa.int64()))
    for name in spec.features.names:
        if not lost and true[name].equals(got[name]):
            continue
        pairs = zip(true[name].to_pylist(), got[name].to_pylist(), strict=True)
        if rows := [row for row, (own, other) in enumerate(pairs) if row in lost or own != other]:
            first = true.slice(rows[0], 1).to_pylist()[0]
            example = ", ".join(f"{column} {first[column]}" for column in key)
            yield Leak(feature=name, cause=cause, entities=len(rows), example=example, as_of=first["as_of"])


def _keys(features: pa.Table, key: Sequence[str]) -> Iterator[tuple[object, ...]]:
    return zip(*(features[column].to_pylist() for column in key), strict=True)


def _merge(leaks: Sequence[Leak]) -> list[Leak]:
    """One leak a feature, of its first cause in :data:`_CAUSES`: with all tables, and the most entities of one change."""
    merged: dict[str, Leak] = {}
    for leak in sorted(leaks, key=lambda one: _CAUSES.index(one.cause)):
        other = merged.setdefault(leak.feature, leak)
        if leak.cause == other.cause:
            tables = sorted({*other.tables, *leak.tables})
            merged[leak.feature] = replace(max(other, leak, key=lambda one: one.entities), tables=tables)
    return list(merged.values())


# --- other rows ----------------------------------------------------------------------------------------------------------


def _without_later(rows: pa.Table, moment: datetime) -> pa.Table:
    """Only the rows known by ``moment``."""
    return rows.filter(_known(rows, moment))


def _with_other_later(
    connection: duckdb.DuckDBPyConnection, folder: ModelFolder, name: str, rows: pa.Table, moment: datetime
) -> pa.Table:
    """Rows known by ``moment`` as they are, later ones with other values, and invented ones known later still.

    An invented row is one of the known ones moved to a later time, under a key of its own and with other numbers. When the
    changed and the invented become known follows from their columns, as it does for real ones.
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
    # Of the newest, since those are what a query looks at.
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
        # By whole days, the last one begun.
        return pc.cast(pc.add(pc.add(values.cast(pa.timestamp("us")), wait), _A_DAY), pa.date32(), safe=False)
    return pc.add(values, wait) if _is_time(values) else values


def _known(rows: pa.Table, moment: datetime) -> pa.ChunkedArray:
    return pc.less_equal(rows[KNOWN], pa.scalar(moment, rows.schema.field(KNOWN).type))


def _others(values: pa.ChunkedArray, pool: pa.ChunkedArray) -> pa.ChunkedArray:
    """For each value another one, out of those that occur if there are several, so that a query can work with it."""
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
