"""Run ``features.sql`` over a model's tables as they were known at the time.

The same query serves training, batches and single rows. DuckDB runs it in a database that holds only what the query may see.
The database cannot open a file or attach another database. It moves to disk what does not fit in memory.

Each row of ``entities`` has a moment ``as_of``. The query itself must look at nothing later (``ASOF JOIN … ON as_of >=
_known_at``). :mod:`perennial.features.leaks` finds queries that do.

Neighbour: :mod:`perennial.features.publish` brings the tables and publishes the features.
"""

from __future__ import annotations

import re
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from perennial.core.errors import SpecError
from perennial.core.intervals import Interval
from perennial.core.sql import literal, quoted
from perennial.lake.schema import KNOWN, MOMENT, published_schema
from perennial.spec.data import Table
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

Rows: TypeAlias = pa.Table | pa.RecordBatchReader

#: Number of rows per batch of features.
_BATCH_ROWS = 65_536
#: An interval for tables without rows.
_ANY = Interval.day("2000-01-01")
#: Beyond this, DuckDB uses the disk: several tasks share a worker.
_MEMORY = "2GB"

#: DuckDB's names of integers.
WHOLE_TYPES = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)
# DuckDB's type of a column that is NULL in every row.
_UNTYPED = {'"NULL"'}
_NUMERIC = WHOLE_TYPES | _UNTYPED | {"FLOAT", "DOUBLE", "BOOLEAN", "DECIMAL"}
_CATEGORICAL = WHOLE_TYPES | _UNTYPED | {"VARCHAR", "BOOLEAN", "ENUM", "UUID", "DATE"}


class BuiltFeatures:
    """The features of an interval, one row per entity: its key, its event time, ``as_of``, and the features.

    Rows are ordered by event time and key. Numeric features are doubles, with NULL for NaN. Categorical features are texts.

    Attributes:
        schema: the schema of :meth:`reader`.
        rows: number of entities.
        snapshots: by table, the snapshot of the lake that was read; empty if the tables are not from the lake.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, spec: ModelSpec, snapshots: Mapping[str, int]) -> None:
        self.schema = feature_schema(spec)
        self.snapshots = dict(snapshots)
        self.rows: int = _row(connection, "SELECT count(*) FROM perennial.features")[0]
        self._connection = connection
        self._finalizer = weakref.finalize(self, connection.close)

    def reader(self) -> pa.RecordBatchReader:
        """The rows as a stream. Each call starts again from the first row. Do not call it after :meth:`close`."""
        stream = self._connection.cursor().sql("FROM perennial.features").to_arrow_reader(_BATCH_ROWS)
        return pa.RecordBatchReader.from_batches(self.schema, (batch.cast(self.schema) for batch in stream))

    def close(self) -> None:
        """Free memory and disk."""
        self._finalizer()

    def __enter__(self) -> BuiltFeatures:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def feature_schema(spec: ModelSpec) -> pa.Schema:
    """The columns of the table ``features``: entity key, event time, ``as_of``, features."""
    published = published_schema(spec.entity_table)
    return pa.schema(
        [
            *(published.field(name) for name in _identity(spec)),
            ("as_of", MOMENT),
            *((name, pa.float64()) for name in spec.features.numeric),
            *((name, pa.string()) for name in spec.features.categorical),
        ]
    )


def compute(
    folder: ModelFolder, tables: Mapping[str, Rows], interval: Interval, *, snapshots: Mapping[str, int] | None = None
) -> BuiltFeatures:
    """Run ``features.sql`` for the entities of an interval.

    The query sees ``entities``: the rows of the entity table whose event time lies in the interval, with their ``as_of``. It
    also sees each table by its name, with its columns and ``_known_at``. Of a table it sees the rows that were known by the
    latest ``as_of``, with event times from ``lookback`` before the interval to the interval's end. Of two rows of one key it
    sees the newest that was known by the entity's ``as_of`` (:func:`newest_first`); for that it runs once for each time
    between two corrections. It gives the entity's key and the features.

    Args:
        folder: the model's folder.
        tables: by name, rows with the spec's columns and ``_known_at``, for all of the folder's ``feature_tables``. Rows
            that the query must not see are left out here. A reader is read to its end.
        interval: the interval of the entities' event times.
        snapshots: by table, the snapshots that the rows are from; kept in the result.

    Raises:
        SpecError: the query cannot be run, gives other columns than the spec names, does not give exactly one row per
            entity, or gives infinity. Or ``entity.as_of`` gives no time, or a time before the entity itself is known.
    """
    connection = open_database()
    try:
        offer(connection, folder, tables, interval)
        select_checked(connection, folder, interval)
        connection.execute("DROP VIEW entities")
        versions = [f"perennial.{quoted(_VERSIONS + name)}" for name in folder.feature_tables]
        for name in [*map(quoted, folder.feature_tables), *versions, "perennial.asked", "perennial.selected"]:
            connection.execute(f"DROP TABLE IF EXISTS {name}")
        return BuiltFeatures(connection, folder.spec, snapshots or {})
    except BaseException:
        connection.close()
        raise


def faults_without_rows(folder: ModelFolder) -> list[SpecError]:
    """What is wrong in ``entity.as_of`` and ``features.sql`` for any rows, at most one error for each."""
    tables: dict[str, Rows] = {name: published_schema(folder.spec.tables[name]).empty_table() for name in folder.feature_tables}
    found: list[SpecError] = []
    with closing(open_database(threads=1)) as connection:
        try:
            offer(connection, folder, tables, _ANY)
            _check_as_of(connection, folder)
        except SpecError as error:
            found.append(error)
            offer(connection, with_as_of(folder, quoted(folder.spec.event_time)), tables, _ANY)
        try:
            select(connection, folder)
        except SpecError as error:
            found.append(error)
    return found


def _check_as_of(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> None:
    entity, place = folder.spec.entity, f"{folder.path / 'model.yaml'}: entity.as_of"
    with blaming(place):
        [(_, kind, *_)] = connection.execute(f"DESCRIBE SELECT (\n{entity.as_of}\n) FROM {quoted(entity.table)}").fetchall()
    if not kind.startswith("TIMESTAMP") and kind not in {"DATE", "VARCHAR", '"NULL"'}:
        raise SpecError(f"{place}: gives {kind}; it must give the moment for which a prediction is made")


def with_as_of(folder: ModelFolder, sql: str) -> ModelFolder:
    """The folder with another ``entity.as_of``."""
    entity = folder.spec.entity.model_copy(update={"as_of": sql})
    return folder.model_copy(update={"spec": folder.spec.model_copy(update={"entity": entity})})


def open_database(*, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An empty database in memory for SQL of a model folder, without access to files, other databases and Python variables.

    Args:
        threads: number of threads; by default one per core.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "memory_limit": _MEMORY,
        # DuckDB creates it if it is needed, and removes it when the connection closes.
        "temp_directory": str(Path(tempfile.gettempdir()) / f"perennial-{uuid.uuid4().hex}"),
    }
    if threads is not None:
        config["threads"] = threads
    connection = duckdb.connect(config=config)
    # Global, because a stream is read through a cursor, which has its own session.
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute("SET GLOBAL lock_configuration = true")
    connection.execute("CREATE SCHEMA perennial")
    return connection


# --- the steps of compute ----------------------------------------------------------------------------------------------


def offer(
    connection: duckdb.DuckDBPyConnection,
    folder: ModelFolder,
    tables: Mapping[str, Rows],
    interval: Interval,
    *,
    known_by: datetime | None = None,
) -> None:
    """Create ``entities`` and the tables that the query may see. Existing ones are replaced.

    Args:
        connection: from :func:`open_database`.
        folder: the model's folder.
        tables: see :func:`compute`.
        interval: the interval of the entities' event times.
        known_by: show the rows known by this moment, instead of those known by the latest ``as_of``.
    """
    spec = folder.spec
    names = sorted(folder.feature_tables, key=lambda name: name != spec.entity.table)
    latest = instant(known_by) if known_by else "(SELECT coalesce(max(as_of), '-infinity') FROM entities)"
    for name in names:
        conditions = _in_lookback(folder, name, interval)
        if name != spec.entity.table:
            conditions.append(f"{KNOWN} <= {latest}")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        connection.register("_offered", tables[name])
        connection.execute(f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT {_columns(folder, name)} FROM _offered {where}")
        connection.unregister("_offered")
        if name == spec.entity.table:
            _make_entities(connection, folder, interval, quoted(name))
            connection.execute(f"DELETE FROM {quoted(name)} WHERE {KNOWN} > {latest}")
    for name in names:
        _keep_versions(connection, name, spec.tables[name])


def _in_lookback(folder: ModelFolder, name: str, interval: Interval) -> list[str]:
    """SQL for whether the event of a row lies where an interval's entities may look."""
    table = folder.spec.tables[name]
    if table.event_time is None:
        return []
    event, since = quoted(table.event_time), interval.start - folder.spec.features.lookback
    return [f"{event} >= {instant(since)}", f"{event} < {instant(interval.end)}"]


def _columns(folder: ModelFolder, name: str) -> str:
    return _list(published_schema(folder.spec.tables[name]).names)


# --- tables that many single entities are asked of ----------------------------------------------------------------------


def hold(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, tables: Mapping[str, Rows]) -> frozenset[str]:
    """Keep tables in a database, so that :func:`offer_given` need not copy them for each request.

    Args:
        connection: from :func:`open_database`, used for nothing else.
        folder: the model's folder.
        tables: see :func:`compute`.

    Returns:
        The tables that have several rows for a key, which :func:`offer_given` is to be told.
    """
    for schema in ("published", "pushed", "held"):
        connection.execute(f"CREATE SCHEMA {schema}")
    corrected = set()
    for name in folder.feature_tables:
        table, rows = folder.spec.tables[name], f"published.{quoted(name)}"
        connection.register("_offered", tables[name])
        connection.execute(f"CREATE TABLE {rows} AS SELECT {_columns(folder, name)} FROM _offered")
        connection.unregister("_offered")
        connection.execute(f"CREATE VIEW held.{quoted(name)} AS FROM {rows}")
        if table.event_time is not None and table.duplicates != "refuse" and _has_versions(connection, rows, table):
            corrected.add(name)
    return frozenset(corrected)


def hold_pushed(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, name: str, pushed: pa.Table) -> bool:
    """Show rows of a held table that are not published yet, as their publication will add or correct them.

    Args:
        connection: has the tables of :func:`hold`.
        folder: the model's folder.
        name: the table, which has an event time.
        pushed: the rows, in the order in which they came. They replace those of an earlier call.

    Returns:
        Whether one of their keys has several rows now.
    """
    table, key = folder.spec.tables[name], _list(folder.spec.tables[name].key)
    columns, day = _columns(folder, name), f"date_trunc('day', {{}}{quoted(str(table.event_time))})"
    place, rows, held = (f"{schema}.{quoted(name)}" for schema in ("published", "pushed", "held"))
    connection.register("_offered", pushed.append_column("_place", pa.array(range(pushed.num_rows), pa.int64())))
    # As perennial.ingestion.quarantine and perennial.ingestion.late do it: the one received last counts.
    connection.execute(f"""
        CREATE OR REPLACE TABLE {rows} AS SELECT {columns} FROM (
            FROM _offered
            QUALIFY row_number() OVER (PARTITION BY {key}, {KNOWN}, {day.format("")} ORDER BY _place DESC) = 1
        ) ORDER BY _place
    """)
    connection.unregister("_offered")
    same = " AND ".join(f"its.{quoted(column)} = there.{quoted(column)}" for column in [*table.key, KNOWN])
    same += f" AND {day.format('its.')} = {day.format('there.')}"
    connection.execute(f"""
        CREATE OR REPLACE VIEW {held} AS
        SELECT {columns} FROM {place} AS there WHERE NOT EXISTS (FROM {rows} AS its WHERE {same})
        UNION ALL SELECT {columns} FROM {rows}
    """)
    # What the query is shown may be a view of it, or a copy for the last request's moment; it is made anew.
    connection.execute(f"DROP TABLE IF EXISTS perennial.{quoted(_VERSIONS + name)}")
    shown = "SELECT table_type FROM information_schema.tables WHERE table_schema = 'main' AND table_name = ?"
    for (kind,) in connection.execute(shown, [name]).fetchall():
        connection.execute(f"DROP {'VIEW' if kind == 'VIEW' else 'TABLE'} {quoted(name)}")
    several = f"SELECT {key} FROM {held} SEMI JOIN {rows} USING ({key}) GROUP BY ALL HAVING count(*) > 1"
    return bool(_row(connection, f"SELECT count(*) FROM ({several})")[0])


def offer_given(
    connection: duckdb.DuckDBPyConnection, folder: ModelFolder, corrected: frozenset[str], interval: Interval, given: pa.Table
) -> None:
    """Create ``entities`` of given rows alone, and show the query what it may see of the held tables.

    It sees what it would see of a copy (:func:`offer`): only tables with several rows for a key are copied, since which of
    them counts depends on the moment.

    Args:
        connection: has the tables of :func:`hold`.
        folder: the model's folder.
        corrected: what :func:`hold` gave.
        interval: the interval of the entities' event times.
        given: rows of the entity table, with event times in the interval. They are the only entities, and stand in the place of
            held rows with their keys.
    """
    spec = folder.spec
    connection.register("_offered", given)
    connection.execute("CREATE OR REPLACE TABLE perennial.given AS FROM _offered")
    connection.unregister("_offered")
    _make_entities(connection, folder, interval, "perennial.given")
    latest = (
        f"TIMESTAMPTZ {literal(str(_row(connection, 'SELECT max(as_of)::VARCHAR FROM perennial.asked')[0] or '-infinity'))}"
    )
    for name in folder.feature_tables:
        columns, rows = _columns(folder, name), f"held.{quoted(name)}"
        conditions = [*_in_lookback(folder, name, interval), f"{KNOWN} <= {latest}"]
        query = f"SELECT {columns} FROM {rows} AS held WHERE {' AND '.join(conditions)}"
        if name == spec.entity.table:
            same = " AND ".join(f"given.{quoted(key)} = held.{quoted(key)}" for key in spec.entity_table.key)
            query += f" AND NOT EXISTS (FROM perennial.given AS given WHERE {same})"
            query += f" UNION ALL SELECT {columns} FROM perennial.given WHERE {KNOWN} <= {latest}"
        if name in corrected:
            connection.execute(f"CREATE OR REPLACE TABLE {quoted(name)} AS {query}")
            _keep_versions(connection, name, spec.tables[name])
        else:
            connection.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS {query}")


# --- rows that were corrected ---------------------------------------------------------------------------------------------


#: How the name of a table begins that has the rows of another one, and until when each is the newest of its key.
_VERSIONS = "versions of "
_UNTIL = "_until"


def _keep_versions(connection: duckdb.DuckDBPyConnection, name: str, table: Table) -> None:
    """Remove the rows that were corrected before the first as-of time, and keep until when each other row is the newest."""
    versions = f"perennial.{quoted(_VERSIONS + name)}"
    connection.execute(f"DROP TABLE IF EXISTS {versions}")
    if table.event_time is None or table.duplicates == "refuse":
        return
    key, rows = _list(table.key), quoted(name)
    if not _has_versions(connection, rows, table):
        return
    oldest_first = f"{KNOWN}, {quoted(table.event_time)}"
    connection.execute(f"""
        CREATE TABLE {versions} AS SELECT * FROM (
            SELECT *, coalesce(lead({KNOWN}) OVER (PARTITION BY {key} ORDER BY {oldest_first}), 'infinity') AS {_UNTIL}
            FROM {rows}
        ) WHERE {_UNTIL} > (SELECT coalesce(min(as_of), '-infinity') FROM entities)
    """)
    connection.execute(f"CREATE OR REPLACE TABLE {rows} AS SELECT * EXCLUDE ({_UNTIL}) FROM {versions}")


def _has_versions(connection: duckdb.DuckDBPyConnection, rows: str, table: Table) -> bool:
    """Whether a key has several rows.

    Hashes are compared first, since they take a tenth of the memory of all keys. Different keys often share one.
    """
    key = _list(table.key)
    count, hashes = _row(connection, f"SELECT count(*), count(DISTINCT hash({key})) FROM {rows}")
    if count == hashes:
        return False
    alike = f"(SELECT hash({key}) AS _hash FROM {rows} GROUP BY _hash HAVING count(*) > 1)"
    suspects = f"(SELECT {key} FROM {rows} SEMI JOIN {alike} ON hash({key}) = _hash)"
    return bool(_row(connection, f"SELECT count(*) FROM (SELECT {key} FROM {suspects} GROUP BY ALL HAVING count(*) > 1)")[0])


def _select_as_corrected(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Run the query once for each time between two corrections, so that each entity sees the newest row of a key."""
    found = connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'perennial' AND starts_with(table_name, ?)", [_VERSIONS]
    ).fetchall()
    versions = {name.removeprefix(_VERSIONS): f"perennial.{quoted(name)}" for (name,) in found}
    corrected = (
        " UNION ".join(f"SELECT {_UNTIL} FROM {rows}" for rows in versions.values()) or f"SELECT NULL AS {_UNTIL} LIMIT 0"
    )
    moments = connection.execute(
        f"SELECT {_UNTIL}::VARCHAR FROM ({corrected}) "
        f"WHERE {_UNTIL} <= (SELECT max(as_of) FROM perennial.asked) ORDER BY {_UNTIL}"
    ).fetchall()
    if not moments:
        connection.execute(f"CREATE OR REPLACE TABLE perennial.selected AS {query}")
        return
    borders = ["'-infinity'", *(literal(moment) for (moment,) in moments), "'infinity'"]
    entities = f"CREATE OR REPLACE VIEW entities AS SELECT * EXCLUDE ({KNOWN}) FROM perennial.asked"
    begun = False
    for start, end in pairwise(f"TIMESTAMPTZ {border}" for border in borders):
        connection.execute(f"{entities} WHERE as_of >= {start} AND as_of < {end}")
        if _row(connection, "SELECT count(*) FROM entities")[0] == 0:
            continue
        for name, rows in versions.items():
            shown = f"SELECT * EXCLUDE ({_UNTIL}) FROM {rows} WHERE {_UNTIL} > {start}"
            connection.execute(f"CREATE OR REPLACE TABLE {quoted(name)} AS {shown}")
        connection.execute(
            f"{'INSERT INTO' if begun else 'CREATE OR REPLACE TABLE'} perennial.selected {'' if begun else 'AS '}{query}"
        )
        begun = True
    connection.execute(entities)


def _make_entities(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, interval: Interval, relation: str) -> None:
    spec = folder.spec
    event = quoted(spec.event_time)
    columns = [quoted(column) for column in spec.entity_table.columns if column != "as_of"]
    within = f"{event} >= {instant(interval.start)} AND {event} < {instant(interval.end)}"
    rows = f"SELECT {{}} FROM {relation} AS {quoted(spec.entity.table)} WHERE {within}"
    as_of = f"(\n{spec.entity.as_of}\n)::TIMESTAMPTZ AS as_of"
    # An entity is what was known of it when the prediction was made.
    newest = (
        f"QUALIFY row_number() OVER (PARTITION BY {_list(spec.entity_table.key)} "
        f"ORDER BY {KNOWN} <= as_of DESC, {newest_first(spec.entity_table)}) = 1"
    )
    with blaming(f"{folder.path / 'model.yaml'}: entity.as_of"):
        asked = f"CREATE OR REPLACE TABLE perennial.asked AS {rows.format(', '.join([*columns, KNOWN, as_of]))}"
        connection.execute(f"{asked} {newest if spec.entity_table.duplicates == 'correct' else ''}")
    connection.execute(f"CREATE OR REPLACE VIEW entities AS SELECT * EXCLUDE ({KNOWN}) FROM perennial.asked")


def select_checked(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, interval: Interval) -> None:
    """Run the query for the entities that are offered; the features are in ``perennial.features``.

    Raises:
        SpecError: see :func:`compute`.
    """
    check_entities(connection, folder, interval)
    select(connection, folder)
    check_selected(connection, folder, interval)
    gather(connection, folder.spec)


def check_entities(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, interval: Interval) -> None:
    """Check that every entity has a unique key, and an as-of time at which it is known.

    Raises:
        SpecError: an entity has a repeated key, no as-of time, or one before it is known.
    """
    spec = folder.spec
    key = _list(spec.entity_table.key)
    rows, distinct, timeless, early = _row(
        connection,
        f"""SELECT count(*), (SELECT count(*) FROM (SELECT DISTINCT {key} FROM perennial.asked)),
        count(*) FILTER (as_of IS NULL), count(*) FILTER ({KNOWN} > as_of) FROM perennial.asked""",
    )
    where = f"{folder.path / 'model.yaml'}: of {rows:,} rows of {spec.entity.table} in {interval},"
    if timeless:
        raise SpecError(f"{where} entity.as_of gives no time for {timeless:,}; it must give a time for every row")
    if early:
        raise SpecError(
            f"{where} {early:,} are known only after their entity.as_of, which is when the prediction is made; correct "
            f"tables.{spec.entity.table}.known or entity.as_of"
        )
    if rows != distinct:
        raise SpecError(
            f"{where} {rows - distinct:,} repeat the key {', '.join(spec.entity_table.key)} of another; a prediction needs a "
            f"unique key, so add a column that tells them apart to tables.{spec.entity.table}.key"
        )


def select(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> None:
    """Run the query and keep its result.

    Raises:
        SpecError: it is not exactly one SELECT, it cannot be run, or its columns are not those of the spec.
    """
    file, sql = folder.path / "features.sql", folder.features_sql
    with blaming(file, lines_before=0):
        statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise SpecError(f"{file}: it must be exactly one SELECT, without other statements")
    query = statements[0].query
    # The query begins on the same line as the statement, so DuckDB's line numbers are those of the query.
    with blaming(file, lines_before=sql[: max(0, sql.find(query))].count("\n")):
        _select_as_corrected(connection, query)
    _check_columns(connection, folder)


def _check_columns(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> None:
    spec, file = folder.spec, folder.path / "features.sql"
    key = spec.entity_table.key
    types = {name: kind for name, kind, *_ in connection.execute("DESCRIBE perennial.selected").fetchall()}
    wanted = [*key, *spec.features.names]
    problems = []
    if missing := [name for name in wanted if name not in types]:
        problems.append(f"{', '.join(missing)} missing")
    if extra := [name for name in types if name not in wanted]:
        problems.append(f"{', '.join(extra)} not in model.yaml")
    if problems:
        raise SpecError(f"{file}: it must give exactly {', '.join(key)} and the features of model.yaml: {'; '.join(problems)}")
    own = {name: kind for name, kind, *_ in connection.execute("DESCRIBE entities").fetchall()}
    for name in wanted:
        kind = types[name]
        plain = kind.partition("(")[0]
        if name in key and kind != own[name]:
            raise SpecError(f"{file}: {name} is {kind}, but in entities it is {own[name]}; select it unchanged from entities")
        if name in spec.features.numeric and plain not in _NUMERIC:
            raise SpecError(f"{file}: {name} is a numeric feature in model.yaml, but it is {kind} here; cast it to DOUBLE")
        if name in spec.features.categorical and plain not in _CATEGORICAL:
            raise SpecError(f"{file}: {name} is a categorical feature in model.yaml, but it is {kind} here; cast it to VARCHAR")


def check_selected(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, interval: Interval) -> None:
    """Check that the query gave exactly one row per entity, and no infinity.

    Raises:
        SpecError: it did not. The message counts the wrong keys and names one.
    """
    spec = folder.spec
    where = f"{folder.path / 'features.sql'}: {interval}"
    key, names = _list(spec.entity_table.key), spec.entity_table.key
    entities, selected, matched = _row(
        connection,
        f"""SELECT (SELECT count(*) FROM entities), (SELECT count(*) FROM perennial.selected),
        (SELECT count(*) FROM (SELECT {key} FROM entities) SEMI JOIN perennial.selected USING ({key}))""",
    )
    # Keys of entities are unique. If there are as many rows as entities, and no entity is without a row, each has one.
    if not entities == selected == matched:
        problems = _describe_keys(connection, key, names)
        raise SpecError(f"{where}: it must give exactly one row for each of {entities:,} entities: {'; '.join(problems)}")
    if spec.features.numeric:
        checks = ", ".join(f"count(*) FILTER (isinf({quoted(name)}::DOUBLE))" for name in spec.features.numeric)
        counts = _row(connection, f"SELECT {checks} FROM perennial.selected")
        infinite = [f"{name} ({count:,})" for name, count in zip(spec.features.numeric, counts, strict=True) if count]
        if infinite:
            raise SpecError(
                f"{where}: infinite values in {', '.join(infinite)}; give NULL instead, for example by dividing by nullif(…, 0)"
            )


def _describe_keys(connection: duckdb.DuckDBPyConnection, key: str, names: list[str]) -> list[str]:
    counted = f"(SELECT {key}, count(*) AS n FROM perennial.selected GROUP BY ALL)"
    without = f"(SELECT {key} FROM entities) ANTI JOIN {counted} USING ({key})"
    several = f"(SELECT {key} FROM entities) SEMI JOIN (FROM {counted} WHERE n > 1) USING ({key})"
    foreign = f"{counted} ANTI JOIN entities USING ({key})"
    problems = []
    for rows, what in ((without, "have no row"), (several, "have several rows"), (foreign, "are not in entities")):
        count = _row(connection, f"SELECT count(*) FROM {rows}")[0]
        if count:
            values = _row(connection, f"SELECT {key} FROM {rows} ORDER BY ALL LIMIT 1")
            example = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
            problems.append(f"{count:,} keys {what}, for example {example}")
    return problems


def gather(connection: duckdb.DuckDBPyConnection, spec: ModelSpec) -> None:
    """Join the features with their entities' event time and as-of time, cast them, and order them."""
    key = spec.entity_table.key
    columns = [f"e.{quoted(name)}" for name in [*_identity(spec), "as_of"]]
    columns += [
        f"CASE WHEN NOT isnan(s.{quoted(n)}::DOUBLE) THEN s.{quoted(n)}::DOUBLE END AS {quoted(n)}"
        for n in spec.features.numeric
    ]
    columns += [f"s.{quoted(name)}::VARCHAR AS {quoted(name)}" for name in spec.features.categorical]
    joined = f"FROM entities e JOIN perennial.selected s ON {' AND '.join(f'e.{quoted(n)} = s.{quoted(n)}' for n in key)}"
    order = ", ".join(f"e.{quoted(name)}" for name in [spec.event_time, *key])
    connection.execute(f"CREATE OR REPLACE TABLE perennial.features AS SELECT {', '.join(columns)} {joined} ORDER BY {order}")


# --- SQL ---------------------------------------------------------------------------------------------------------------


def newest_first(table: Table) -> str:
    """SQL that orders rows of one key: first the one that became known last, of several the one of the latest event."""
    event = f", {quoted(table.event_time)} DESC" if table.event_time is not None else ""
    return f"{KNOWN} DESC{event}"


def instant(value: datetime) -> str:
    """A time as a SQL literal."""
    return f"TIMESTAMPTZ {literal(str(value))}"


def _identity(spec: ModelSpec) -> list[str]:
    """The entity's key and event time."""
    return list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))


def _list(names: list[str]) -> str:
    return ", ".join(quoted(name) for name in names)


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    # An aggregate always gives a row, and other queries run only if rows were counted. All are fetched: a result that is not
    # read to its end would block the connection.
    return tuple(connection.execute(query).fetchall()[0])


@contextmanager
def blaming(place: Path | str, *, lines_before: int | None = None) -> Iterator[None]:
    """Turn errors of SQL from a model folder into errors of that folder.

    Args:
        place: the file, or the file and the key, that has the SQL.
        lines_before: number of lines of the file before the SQL; None if DuckDB's line numbers mean nothing.

    Raises:
        SpecError: with the place, and the line if DuckDB gives it.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InternalException, duckdb.InterruptException, duckdb.FatalException):
        # These are not the fault of the query.
        raise
    except duckdb.Error as error:
        line = re.search(r"^LINE (\d+):", str(error), re.MULTILINE) if lines_before is not None else None
        where = f"{place}:{int(line[1]) + (lines_before or 0)}" if line else f"{place}"
        raise SpecError(f"{where}: {str(error).splitlines()[0]}") from error
