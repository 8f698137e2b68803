"""``features.sql`` over a model's tables, as they were known: the same query for training, for batches and for one row.

DuckDB runs it in a database of its own that holds nothing but what the query may see, cannot open a file or attach another
database, and moves to disk what does not fit in memory. Each row of ``entities`` asks at its ``as_of``; to look no further
than that is the query's own duty (``ASOF JOIN … ON as_of >= _known_at``), and :mod:`perennial.features.leaks` finds where
it does not. Neighbour: :mod:`perennial.features.publish` brings the tables and publishes the result.
"""

from __future__ import annotations

import re
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa

from perennial.core.errors import SpecError
from perennial.core.intervals import Interval
from perennial.core.sql import literal, quoted
from perennial.lake.schema import KNOWN, published_schema
from perennial.spec.folder import ModelFolder
from perennial.spec.model import ModelSpec

Rows: TypeAlias = pa.Table | pa.RecordBatchReader

#: Rows of a batch of features.
_BATCH_ROWS = 65_536
#: Beyond it DuckDB goes to disk; several tasks share a worker.
_MEMORY = "2GB"

#: DuckDB's names of integers.
WHOLE_TYPES = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)
# The type of a column that is NULL in every row and was given none.
_UNTYPED = {'"NULL"'}
_NUMERIC = WHOLE_TYPES | _UNTYPED | {"FLOAT", "DOUBLE", "BOOLEAN", "DECIMAL"}
_CATEGORICAL = WHOLE_TYPES | _UNTYPED | {"VARCHAR", "BOOLEAN", "ENUM", "UUID", "DATE"}


class BuiltFeatures:
    """The features of an interval, one row an entity: its key, its event time, ``as_of``, the features.

    Rows are ordered by event time and key. Numeric features are doubles, NaN being NULL; categorical ones are texts.

    Attributes:
        schema: of what :meth:`reader` gives.
        rows: how many entities there are.
        snapshots: by table, the snapshot of the lake they were made from; empty if they were made from other tables.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, spec: ModelSpec, snapshots: Mapping[str, int]) -> None:
        self.schema = feature_schema(spec)
        self.snapshots = dict(snapshots)
        self.rows: int = _row(connection, "SELECT count(*) FROM perennial.features")[0]
        self._connection = connection
        self._finalizer = weakref.finalize(self, connection.close)

    def reader(self) -> pa.RecordBatchReader:
        """The rows as a stream; each call begins anew. Not to be used after :meth:`close`."""
        stream = self._connection.cursor().sql("FROM perennial.features").to_arrow_reader(_BATCH_ROWS)
        return pa.RecordBatchReader.from_batches(self.schema, (batch.cast(self.schema) for batch in stream))

    def close(self) -> None:
        """Let go of memory and disk."""
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
            ("as_of", pa.timestamp("us", "UTC")),
            *((name, pa.float64()) for name in spec.features.numeric),
            *((name, pa.string()) for name in spec.features.categorical),
        ]
    )


def compute(
    folder: ModelFolder, tables: Mapping[str, Rows], interval: Interval, *, snapshots: Mapping[str, int] | None = None
) -> BuiltFeatures:
    """Run ``features.sql`` for the entities of an interval.

    The query sees ``entities``: the rows of the entity table whose event time lies in the interval, with their ``as_of``;
    and each table by its name, with its columns and ``_known_at``: rows known by the latest ``as_of`` whose event time is
    neither further back than ``lookback`` before the interval nor after it. It gives the entity's key and the features.

    Args:
        folder: the model's.
        tables: by name, rows with the spec's columns and ``_known_at``; those named by :func:`needed_tables`. Rows beyond
            what the query may see are left out here. A reader is used up.
        interval: whose event times lie in it is an entity.
        snapshots: where the tables come from, handed on.

    Raises:
        SpecError: the query cannot be run, names other columns than the spec, gives not exactly one row an entity, or
            gives infinity; or ``entity.as_of`` gives no time, or one before the entity itself is known.
    """
    connection = open_database()
    try:
        offer(connection, folder, tables, interval)
        check_entities(connection, folder, interval)
        select(connection, folder)
        check_selected(connection, folder, interval)
        gather(connection, folder.spec)
        connection.execute("DROP VIEW entities")
        for name in [*map(quoted, needed_tables(folder)), "perennial.asked", "perennial.selected"]:
            connection.execute(f"DROP TABLE {name}")
        return BuiltFeatures(connection, folder.spec, snapshots or {})
    except BaseException:
        connection.close()
        raise


def needed_tables(folder: ModelFolder) -> list[str]:
    """The entity table, and every table whose name occurs in ``features.sql``."""
    spec = folder.spec
    return [name for name in spec.tables if name == spec.entity.table or mentions(folder.features_sql, name)]


def mentions(sql: str, name: str) -> bool:
    """Whether a name occurs in a query, if only in a comment."""
    return re.search(rf"\b{re.escape(name)}\b", sql, re.IGNORECASE) is not None


def open_database(*, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An empty database in memory, for SQL that a team wrote: no files, no other databases, no variables of Python.

    Args:
        threads: by default one a core.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "memory_limit": _MEMORY,
        # DuckDB makes it when it is needed and removes it when the connection closes.
        "temp_directory": str(Path(tempfile.gettempdir()) / f"perennial-{uuid.uuid4().hex}"),
    }
    if threads is not None:
        config["threads"] = threads
    connection = duckdb.connect(config=config)
    # Global: a stream is read through a cursor, which is a session of its own.
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
    """Make ``entities`` and the tables that the query may see, in place of those that were there.

    Args:
        known_by: offer rows known by then, instead of those known by the latest ``as_of``.
    """
    spec = folder.spec
    since = interval.start - spec.features.lookback
    names = needed_tables(folder)
    names.sort(key=lambda name: name != spec.entity.table)
    latest = instant(known_by) if known_by else "(SELECT coalesce(max(as_of), '-infinity') FROM entities)"
    for name in names:
        table = spec.tables[name]
        conditions = []
        if table.event_time is not None:
            event = quoted(table.event_time)
            conditions.append(f"{event} >= {instant(since)} AND {event} < {instant(interval.end)}")
        if name != spec.entity.table:
            conditions.append(f"{KNOWN} <= {latest}")
        columns = ", ".join(quoted(column) for column in published_schema(table).names)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        connection.register("_offered", tables[name])
        connection.execute(f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT {columns} FROM _offered {where}")
        connection.unregister("_offered")
        if name == spec.entity.table:
            _make_entities(connection, folder, interval)
            connection.execute(f"DELETE FROM {quoted(name)} WHERE {KNOWN} > {latest}")


def _make_entities(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, interval: Interval) -> None:
    spec = folder.spec
    event = quoted(spec.event_time)
    columns = [quoted(column) for column in spec.entity_table.columns if column != "as_of"]
    within = f"{event} >= {instant(interval.start)} AND {event} < {instant(interval.end)}"
    rows = f"SELECT {{}} FROM {quoted(spec.entity.table)} WHERE {within}"
    as_of = f"(\n{spec.entity.as_of}\n)::TIMESTAMPTZ AS as_of"
    with blaming(f"{folder.path / 'model.yaml'}: entity.as_of"):
        connection.execute(f"CREATE OR REPLACE TABLE perennial.asked AS {rows.format(', '.join([*columns, KNOWN, as_of]))}")
    connection.execute(f"CREATE OR REPLACE VIEW entities AS SELECT * EXCLUDE ({KNOWN}) FROM perennial.asked")


def check_entities(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, interval: Interval) -> None:
    """Every entity has a key of its own and an as-of time at which it is known.

    Raises:
        SpecError: one has not.
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
        raise SpecError(f"{where} entity.as_of gives no time for {timeless:,}; let it give one for every row")
    if early:
        raise SpecError(
            f"{where} {early:,} are known only after their entity.as_of, when a prediction was asked for already; make "
            f"tables.{spec.entity.table}.known earlier or entity.as_of later, whichever is wrong"
        )
    if rows != distinct:
        raise SpecError(
            f"{where} {rows - distinct:,} repeat the key {', '.join(spec.entity_table.key)} of another; a prediction is named "
            f"by its key, so add what tells them apart to tables.{spec.entity.table}.key"
        )


def select(connection: duckdb.DuckDBPyConnection, folder: ModelFolder) -> None:
    """Run the query, and keep what it gave.

    Raises:
        SpecError: it is not one SELECT, it cannot be run, or its columns are not those of the spec.
    """
    file, sql = folder.path / "features.sql", folder.features_sql
    with blaming(file, lines_before=0):
        statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise SpecError(f"{file}: exactly one SELECT is wanted, with no other statement before or after it")
    query = statements[0].query
    # On the query's own first line, so that DuckDB counts its lines.
    with blaming(file, lines_before=sql[: max(0, sql.find(query))].count("\n")):
        connection.execute(f"CREATE OR REPLACE TABLE perennial.selected AS {query}")
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
        raise SpecError(
            f"{file}: it must give {', '.join(key)} and the features of model.yaml, no more and no less: {'; '.join(problems)}"
        )
    own = {name: kind for name, kind, *_ in connection.execute("DESCRIBE entities").fetchall()}
    for name in wanted:
        kind = types[name]
        plain = kind.partition("(")[0]
        if name in key and kind != own[name]:
            raise SpecError(f"{file}: {name} is {kind}, but the entity's is {own[name]}; give it as it is in entities")
        if name in spec.features.numeric and plain not in _NUMERIC:
            raise SpecError(f"{file}: {name} is a numeric feature in model.yaml, but {kind} here; cast it to DOUBLE")
        if name in spec.features.categorical and plain not in _CATEGORICAL:
            raise SpecError(f"{file}: {name} is a categorical feature in model.yaml, but {kind} here; cast it to VARCHAR")


def check_selected(connection: duckdb.DuckDBPyConnection, folder: ModelFolder, interval: Interval) -> None:
    """The query gave exactly one row an entity, and no infinity.

    Raises:
        SpecError: it did not; the message says how many keys are at fault and names one.
    """
    spec = folder.spec
    where = f"{folder.path / 'features.sql'}: {interval}"
    key, names = _list(spec.entity_table.key), spec.entity_table.key
    entities, selected, matched = _row(
        connection,
        f"""SELECT (SELECT count(*) FROM entities), (SELECT count(*) FROM perennial.selected),
        (SELECT count(*) FROM (SELECT {key} FROM entities) SEMI JOIN perennial.selected USING ({key}))""",
    )
    # As many rows as entities, whose keys are their own, and none without a row: then each has one.
    if not entities == selected == matched:
        problems = _describe_keys(connection, key, names)
        raise SpecError(f"{where}: exactly one row for each of {entities:,} entities is wanted: {'; '.join(problems)}")
    if spec.features.numeric:
        checks = ", ".join(f"count(*) FILTER (isinf({quoted(name)}::DOUBLE))" for name in spec.features.numeric)
        counts = _row(connection, f"SELECT {checks} FROM perennial.selected")
        infinite = [f"{name} ({count:,})" for name, count in zip(spec.features.numeric, counts, strict=True) if count]
        if infinite:
            raise SpecError(f"{where}: infinite values in {', '.join(infinite)}; give NULL, as by dividing by nullif(…, 0)")


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
            problems.append(f"{count:,} keys {what}, such as {example}")
    return problems


def gather(connection: duckdb.DuckDBPyConnection, spec: ModelSpec) -> None:
    """Put the features beside their entities' event time and as-of time, typed and in order."""
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


def instant(value: datetime) -> str:
    """A time as a SQL literal."""
    return f"TIMESTAMPTZ {literal(str(value))}"


def _identity(spec: ModelSpec) -> list[str]:
    """The entity's key and event time."""
    return list(dict.fromkeys([*spec.entity_table.key, spec.event_time]))


def _list(names: list[str]) -> str:
    return ", ".join(quoted(name) for name in names)


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None  # an aggregate's, or one that was counted before
    return row


@contextmanager
def blaming(place: Path | str, *, lines_before: int | None = None) -> Iterator[None]:
    """Errors of SQL that a team wrote are errors of its folder.

    Args:
        place: where the SQL stands.
        lines_before: how many lines of that file come before the SQL that runs, if DuckDB's line numbers mean anything.

    Raises:
        SpecError: naming the place, and the line if DuckDB tells.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InternalException, duckdb.InterruptException, duckdb.FatalException):
        # No fault of the query.
        raise
    except duckdb.Error as error:
        line = re.search(r"^LINE (\d+):", str(error), re.MULTILINE) if lines_before is not None else None
        where = f"{place}:{int(line[1]) + (lines_before or 0)}" if line else f"{place}"
        raise SpecError(f"{where}: {str(error).splitlines()[0]}") from error
