"""The labels of an interval's entities, as they were known at a moment.

A second row of a key of the label table is a newer state of knowledge: a correction. Of the rows known by the moment, the
newest one counts (:func:`perennial.features.point_in_time.newest_first`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from datetime import datetime

import duckdb
import pyarrow as pa

from perennial.core.errors import SpecError
from perennial.core.intervals import Interval
from perennial.core.sql import quoted
from perennial.features.history import gaps_of_labels, refuse_gaps
from perennial.features.point_in_time import WHOLE_TYPES, blaming, newest_first, open_database
from perennial.features.published import scan
from perennial.lake.publish import Lake
from perennial.lake.schema import KNOWN, published_schema
from perennial.spec.features_digest import mentions
from perennial.spec.folder import ModelFolder


def read_labels(
    folder: ModelFolder,
    lake: Lake,
    snapshots: Mapping[str, int],
    interval: Interval,
    *,
    as_of: datetime,
    entities: pa.Table | None = None,
) -> pa.Table:
    """The labels of an interval's entities that were known at a moment.

    If the event time of the label table has the same name as that of the entity table, both mean the same moment. Then only
    the interval of the label table is read. Otherwise the whole table is read.

    Args:
        folder: the model's folder.
        lake: holds the tables.
        snapshots: snapshots of the entity table and the label table, by table.
        interval: the interval of the entities' event times.
        as_of: only rows known by this moment are used.
        entities: the entities of the interval if they are already read: key and event time, and other columns to keep
            beside the labels.

    Returns:
        Entity key, event time and the other columns of ``entities``, ``label`` (boolean, text or double, by the task; never
        null), ``label_known_at``. Ordered by event time and key, with at most one row per entity.

    Raises:
        SnapshotMissing: a table was not published, or rows lack a value that the spec requires.
        SpecError: ``label.sql`` cannot be computed or gives a type that the task does not allow, or an entity has several
            labels.
    """
    spec = folder.spec
    key, identity = spec.entity_table.key, list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))
    with closing(open_database()) as connection:
        if entities is None:
            entities = scan(folder, lake, spec.entity.table, snapshots, columns=identity, within=interval).read_all()
        connection.register("_entities", entities)
        same_time = spec.label_table.event_time == spec.event_time
        placed = {*key, *spec.label_table.key, spec.label_table.event_time}
        columns = [name for name in spec.label_table.columns if name in placed or mentions(spec.label.sql, name)]
        when = interval if same_time else None
        refuse_gaps(folder, gaps_of_labels(folder, lake, snapshots, interval))
        rows = scan(
            folder, lake, spec.label.table, snapshots,
            columns=[*columns, KNOWN], within=when, known_by=as_of,
        )  # fmt: skip
        connection.register("_rows", rows)
        own, names = (", ".join(quoted(name) for name in names) for names in (spec.label_table.key, key))
        # A correction has the same entity only where the entity's key is a part of the table's.
        asked = f"SEMI JOIN _entities USING ({names}) " if set(key) <= set(spec.label_table.key) else ""
        connection.execute(
            f"CREATE TEMP TABLE _labels AS FROM _rows {asked}"
            f"QUALIFY row_number() OVER (PARTITION BY {own} ORDER BY {newest_first(spec.label_table)}) = 1"
        )
        _select_labels(connection, folder)
        order = ", ".join(quoted(name) for name in dict.fromkeys([spec.event_time, *key]))
        found: pa.Table = connection.sql(
            f"SELECT _entities.*, label, label_known_at FROM _entities JOIN perennial.labels USING ({names}) ORDER BY {order}"
        ).to_arrow_table()
        connection.register("_found", found)
        entity = ", ".join(quoted(name) for name in identity)
        [(distinct,)] = connection.execute(f"SELECT count(DISTINCT ({entity})) FROM _found").fetchall()
    if distinct != found.num_rows:
        raise SpecError(
            f"{folder.path / 'model.yaml'}: label.table: {found.num_rows - distinct:,} rows of {spec.label.table} in "
            f"{interval} repeat a label; the table must have one row for each {', '.join(key)}"
        )
    return found


def bind_label(folder: ModelFolder) -> None:
    """Try ``label.sql`` on a table without rows.

    Raises:
        SpecError: it cannot be computed, or gives a type that the task does not allow.
    """
    with closing(open_database(threads=1)) as connection:
        connection.register("_labels", published_schema(folder.spec.label_table).empty_table())
        _select_labels(connection, folder)


_LABEL_TYPES = {
    "binary_classification": ("BOOLEAN", {"BOOLEAN"} | WHOLE_TYPES, "true or false"),
    "multiclass_classification": ("VARCHAR", {"VARCHAR", "BOOLEAN", "ENUM"} | WHOLE_TYPES, "a class as text"),
    "regression": ("DOUBLE", {"FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN"} | WHOLE_TYPES, "a number"),
}


def _select_labels(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> None:
    """Make the view ``perennial.labels`` from ``_labels``: entity key, ``label``, ``label_known_at``."""
    spec, place = folder.spec, f"{folder.path / 'model.yaml'}: label.sql"
    wanted, allowed, words = _LABEL_TYPES[spec.task]
    selected = f"(SELECT *, (\n{spec.label.sql}\n) AS _label FROM _labels)"
    with blaming(place):
        kind = connection.sql(f"SELECT _label FROM {selected}").types[0]
        if str(kind).partition("(")[0] not in allowed:
            raise SpecError(f"{place}: gives {kind}, but {spec.task} requires {words}")
        names = ", ".join(quoted(name) for name in spec.entity_table.key)
        connection.execute(
            f"CREATE TABLE perennial.found AS SELECT {names}, _label, {KNOWN} AS label_known_at FROM {selected} "
            "WHERE _label IS NOT NULL"
        )
    if wanted == "BOOLEAN" and str(kind) != "BOOLEAN":
        odd = connection.execute("SELECT any_value(_label) FROM perennial.found WHERE _label NOT IN (0, 1)").fetchone()
        if odd and odd[0] is not None:
            raise SpecError(f"{place}: gives {odd[0]}, but {spec.task} requires {words}; write a comparison, such as x > 0")
    connection.execute(
        f"CREATE VIEW perennial.labels AS SELECT {names}, _label::{wanted} AS label, label_known_at FROM perennial.found"
    )
