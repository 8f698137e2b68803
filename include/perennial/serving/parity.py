"""Measures whether what was served online is what the batch gives: a sample of recorded rows is computed again.

The features of recorded rows that were stored or computed are computed from the tables that are published now, by the folder
of the champion, as of the moment that was served. They are compared to the last bit. Features that the client gave are not.

A row can be compared once the day of its ``as_of`` is published, and its entity. So each published day is measured by itself.
The usual cause of a difference is a row that was published later than it says it was known: training sees it, and the scorer
could not.

Entities are asked together, except one that was asked before it was known in the tables: it is asked alone, as it was, since
others could not know of it. Features that depend on which entities are asked are left out.

Neighbours: :mod:`perennial.serving.recorded` has the rows; :mod:`perennial.evaluation.gates` refuses candidates by the result.

References:
    Chronon, online/offline consistency: see :mod:`perennial.evidence.parity`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perennial.alerts import of_models
from perennial.alerts.alert import Alert
from perennial.core.errors import NoChampion
from perennial.core.intervals import Interval, window_start
from perennial.core.sql import connect, literal, quoted
from perennial.deployment import Deployment
from perennial.evidence.parity import Consistency, Parity
from perennial.features.history import gaps_of_features, refuse_gaps
from perennial.features.point_in_time import (
    feature_schema,
    hold,
    instant,
    offer,
    offer_given,
    open_database,
    select_checked,
    with_as_of,
)
from perennial.features.publish import find_dependences, visible_to
from perennial.features.published import TABLES, published_tables, scan
from perennial.lake.publish import Lake
from perennial.lake.schema import KNOWN
from perennial.ledger.records import Publication
from perennial.registry.folders import OwnFolder, computable, own_folder
from perennial.serving.online_table import entity_texts, read_entities
from perennial.serving.recorded import DATASET, PUBLISHED, read_published
from perennial.serving.requests import GIVEN
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)

_DAY = timedelta(days=1)
#: How many of the newest published days are measured each time: late rows change the days before the newest.
DAYS = 3
#: Requests that were asked longer ago than this are not looked at.
_ASKED_WITHIN = timedelta(days=14)
#: Most rows of a day, and most of them that are asked alone.
MOST_ROWS, MOST_ALONE = 500, 50
#: DuckDB's names of the types of key columns.
SQL_TYPES = {
    "string": "VARCHAR", "integer": "BIGINT", "float": "DOUBLE", "boolean": "BOOLEAN", "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
}  # fmt: skip


def measure_parity(folder: ModelFolder, deployment: Deployment, *, run_id: str) -> list[Parity]:
    """Measure the parity of the newest published days, and record it. An alert begins or ends with the newest of them.

    Args:
        folder: the model's folder as it is now.
        deployment: ledger, lake, and the registry with the champion's own folder.
        run_id: the run.

    Returns:
        What was measured, oldest day first; days without a comparable row are left out.

    Raises:
        NoChampion: the model has no champion, so nothing is served.
        SnapshotMissing, SpecError: the features cannot be computed; scoring fails in the same way.
    """
    spec, lake, ledger = folder.spec, deployment.lake, deployment.ledger
    assert spec.online is not None  # the caller has looked
    champion = ledger.champion(spec.name)
    if champion is None:
        raise NoChampion(f"{spec.name} has no champion, so nothing is served online; train it first")
    own = own_folder(deployment.registry, champion, folder)
    tables = published_tables(folder, ledger)
    end = window_start(max(one.interval.end for one in ledger.publications(spec.name, TABLES)), _DAY)
    days = Interval(end - DAYS * _DAY, end).days()
    sampled = _sample(lake, spec.name, own.folder.features_digests, days)
    if not sampled.num_rows:
        return []
    dependent = [one.feature for one in find_dependences(own.folder, lake, Interval(end - 2 * _DAY, end))]
    found = []
    for day in days:
        rows = sampled.filter(pc.equal(sampled["day"], pa.scalar(day.start, sampled.schema.field("day").type)))
        measured = _measure(own, lake, tables, day, rows, spec.online.parity, dependent)
        if measured.rows:
            found.append(measured)
    for measured in found:
        newest = measured is found[-1]
        ledger.record_parity(
            model=spec.name,
            definition=own.folder.features_digest,
            interval=Interval.from_key(measured.interval),
            measured=measured,
            run_id=run_id,
            alert=_alert(spec.name, measured) if newest and measured.is_below else None,
            well=_well(measured) if newest and measured.is_judged and not measured.is_below else None,
        )
    return found


def _alert(model: str, measured: Parity) -> Alert:
    return of_models.online_differs(
        model,
        day=measured.interval,
        compared=measured.rows,
        share=measured.share,
        bound=measured.bound,
        worst=measured.worst,
    )


def _well(measured: Parity) -> str:
    return f"Of {measured.rows:,} rows with features of {measured.interval}, {measured.share:.1%} are equal."


# --- the sample ----------------------------------------------------------------------------------------------------------


def _sample(lake: Lake, model: str, definitions: frozenset[str], days: Sequence[Interval]) -> pa.Table:
    """Recorded rows whose features are of some days, at most :data:`MOST_ROWS` of each, one of each entity.

    Which ones is decided by a hash, so the same rows are drawn each time. Only so many are ever in memory.
    """
    schema = PUBLISHED.append(pa.field("day", pa.timestamp("us", "UTC")))
    kept = schema.empty_table()
    made = lake.ledger.publications(model, DATASET)
    if not made:
        return kept
    last = max(one.interval.end for one in made)
    known = ", ".join(literal(one) for one in sorted(definitions))
    with connect() as connection:
        for batch in read_published(lake, model, Interval(last - _ASKED_WITHIN, last)):
            connection.register("kept", kept)
            connection.register("more", pa.Table.from_batches([batch]))
            kept = (
                connection.sql(f"""
                WITH rows AS (
                    SELECT *, date_trunc('day', as_of) AS day FROM more
                    WHERE role = 'champion' AND definition IN ({known}) AND entity IS NOT NULL AND event_time IS NOT NULL
                      AND as_of >= {instant(days[0].start)} AND as_of < {instant(days[-1].end)}
                    UNION ALL BY NAME FROM kept
                ), once AS (
                    SELECT *, md5(chunk || '/' || place) AS drawn FROM rows
                    QUALIFY row_number() OVER (PARTITION BY day, entity ORDER BY drawn) = 1
                )
                SELECT * EXCLUDE (drawn) FROM once
                QUALIFY row_number() OVER (PARTITION BY day ORDER BY drawn) <= {MOST_ROWS} ORDER BY drawn
            """)
                .to_arrow_table()
                .cast(schema)
            )
            connection.unregister("kept")
            connection.unregister("more")
    return kept


# --- the comparison ------------------------------------------------------------------------------------------------------


def _measure(
    own: OwnFolder,
    lake: Lake,
    tables: Publication,
    day: Interval,
    rows: pa.Table,
    bound: float,
    dependent: Sequence[str],
) -> Parity:
    """The parity of the rows of one day."""
    spec = own.folder.spec
    served: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    moments = rows["event_time"]
    for start in sorted(set(pc.floor_temporal(moments, unit="day").to_pylist())):
        of_day = rows.filter(pc.equal(pc.floor_temporal(moments, unit="day"), pa.scalar(start, moments.type)))
        found = _recompute(own, lake, tables, Interval(start, start + _DAY), of_day)
        its = dict(zip(entity_texts(found.select(spec.entity_table.key)), found.to_pylist(), strict=True))
        for row in of_day.to_pylist():
            if (truth := its.get(row["entity"])) is not None:
                served.append(row)
                again.append(truth)
    return compare(spec.features.numeric, spec.features.categorical, served, again, day=day, bound=bound, left_out=dependent)


def compare(
    numeric: Sequence[str],
    categorical: Sequence[str],
    served: Sequence[dict[str, Any]],
    again: Sequence[dict[str, Any]],
    *,
    day: Interval,
    bound: float,
    left_out: Sequence[str] = (),
) -> Parity:
    """Compare rows as they were served with rows that were computed again.

    Args:
        numeric, categorical: names of the features.
        served: recorded rows, with ``features`` and ``came`` as JSON.
        again: by row, the features that were computed again.
        day: the day of the features.
        bound: see :class:`~perennial.evidence.parity.Parity`.
        left_out: features that are not compared.
    """
    values = [json.loads(row["features"]) for row in served]
    given = [set(json.loads(row["came"]).get(GIVEN, ())) for row in served]
    compared = np.zeros(len(served), dtype=bool)
    equal = np.ones(len(served), dtype=bool)
    features: dict[str, Consistency] = {}
    for name in (*numeric, *categorical):
        # A version of another release may not have recorded it.
        its = np.array([name in row and name not in how for row, how in zip(values, given, strict=True)], dtype=bool)
        if name in left_out or not its.any():
            continue
        kind = pa.float64() if name in numeric else pa.string()
        ours = pa.array([row.get(name) for row in values], kind)
        theirs = pa.array([row[name] for row in again], kind)
        here, there = (np.asarray(column.is_valid()) for column in (ours, theirs))
        same = _same(ours, theirs)
        features[name] = Consistency(
            equal=int((its & ((here & there & same) | (~here & ~there))).sum()),
            missing=int((its & ~here & there).sum()),
            extra=int((its & here & ~there).sum()),
            different=int((its & here & there & ~same).sum()),
        )
        compared |= its
        equal &= ~its | (here & there & same) | (~here & ~there)
    return Parity(
        bound=bound,
        interval=day.key,
        rows=int(compared.sum()),
        equal=int((compared & equal).sum()),
        features=features,
        unchecked=[name for name in left_out if name in (*numeric, *categorical)],
    )


def _same(ours: pa.Array, theirs: pa.Array) -> NDArray[np.bool_]:
    """Where values are the same to the last bit; anything where one is missing."""
    if ours.type == pa.float64():
        bits = [np.asarray(pc.fill_null(column, 0.0), dtype=np.float64).view(np.int64) for column in (ours, theirs)]
        return np.equal(bits[0], bits[1])
    return np.asarray(pc.fill_null(pc.equal(ours, theirs), False), dtype=np.bool_)


def _recompute(own: OwnFolder, lake: Lake, tables: Publication, day: Interval, rows: pa.Table) -> pa.Table:
    """The features of a day's entities as of the moments that were served; of those that are published."""
    folder = own.folder if own.is_current else computable(own, lake, day)
    given = tables.snapshots
    refuse_gaps(folder, gaps_of_features(folder, lake, given, day))
    visible = visible_to(folder, day)
    held = {name: scan(folder, lake, name, given, within=visible).read_all() for name in folder.feature_tables}
    parts = [feature_schema(folder.spec).empty_table()]
    with closing(open_database(threads=1)) as known, closing(open_database(threads=1)) as given_then:
        corrected: frozenset[str] | None = None
        for entities, are_known in _groups(known, folder, held[folder.spec.entity.table], rows, day):
            asked = with_as_of(folder, _as_of(folder, entities))
            if are_known:
                connection = known
                offer(connection, asked, held, day)
            else:
                connection = given_then
                corrected = hold(connection, folder, held) if corrected is None else corrected
                offer_given(connection, asked, corrected, day, entities.drop_columns(["_as_of"]))
            connection.execute("DELETE FROM perennial.asked WHERE as_of IS NULL")  # those of the day that nobody asked for
            select_checked(connection, asked, day)
            parts.append(connection.sql("FROM perennial.features").to_arrow_table().cast(feature_schema(asked.spec)))
    return pa.concat_tables(parts)


def _groups(
    connection: duckdb.DuckDBPyConnection, folder: ModelFolder, published: pa.Table, rows: pa.Table, day: Interval
) -> Iterator[tuple[pa.Table, bool]]:
    """The published rows of the entities, with ``_as_of``, in groups that are asked together; and whether they were known then.

    An entity is what was known of it when it was asked. If it was not known by then, it is what was known of it first, and
    counts as known when it was asked, as it did.
    """
    spec = folder.spec
    key = spec.entity_table.key
    asked = read_entities(folder, rows["entity"].to_pylist()).append_column("_as_of", rows["as_of"].combine_chunks())
    connection.register("_published", published)
    connection.register("_asked", asked)
    event, same = quoted(spec.event_time), " AND ".join(f"p.{quoted(name)} = a.{quoted(name)}" for name in key)
    names, by = ", ".join(f"p.{quoted(name)}" for name in key), f"p.{KNOWN}"
    newest = f"{by} <= a._as_of DESC, CASE WHEN {by} <= a._as_of THEN {by} END DESC NULLS LAST, {by}, p.{event} DESC"
    found = connection.sql(f"""
        SELECT p.*, a._as_of FROM _published p JOIN _asked a ON {same}
        WHERE p.{event} >= {instant(day.start)} AND p.{event} < {instant(day.end)}
        QUALIFY row_number() OVER (PARTITION BY {names} ORDER BY {newest}) = 1
        ORDER BY {names}
    """).to_arrow_table()
    connection.unregister("_published")
    connection.unregister("_asked")
    early = pc.greater(found[KNOWN], found["_as_of"])
    known, alone = found.filter(pc.invert(early)), found.filter(early).slice(0, MOST_ALONE)
    place = alone.schema.get_field_index(KNOWN)
    alone = alone.set_column(place, alone.schema.field(KNOWN), alone["_as_of"].cast(alone.schema.field(KNOWN).type))
    if known.num_rows:
        yield known, True
    for row in range(alone.num_rows):
        yield alone.slice(row, 1), False


def _as_of(folder: ModelFolder, entities: pa.Table) -> str:
    """SQL that gives each entity the moment that it was asked for."""
    table = folder.spec.entity_table
    columns = [(f"{quoted(name)} = ", SQL_TYPES[table.columns[name].type], entities[name].to_pylist()) for name in table.key]
    moments: list[datetime] = entities["_as_of"].to_pylist()
    cases = [
        f"WHEN {' AND '.join(f'{name}{literal(str(values[row]))}::{kind}' for name, kind, values in columns)} "
        f"THEN {instant(moment)}"
        for row, moment in enumerate(moments)
    ]
    return f"CASE {' '.join(cases)} END"
