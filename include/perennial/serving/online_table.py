"""The online table: one row of features for each entity that can be asked by key, computed beforehand.

It is in the predictions database: the table ``online_features`` has the rows of all models, and ``online_tables`` says for each
model and definition of its features what the rows were made from. The rows of a definition are replaced all at once: a reader
sees those of one materialization. Rows that were made from an older publication never replace those of a newer one.

A row is stored as JSON, which keeps doubles to the last bit (SQLite's own has no -0.0) and texts character by character. So a
change of the features changes no table, and versions with different features are served side by side.

Neighbours: :mod:`perennial.serving.materialize` makes the rows; :mod:`perennial.scoring.sink` writes predictions in the same
way.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from perennial.core import bulk
from perennial.core.database import Database, as_moment, cause, take_turn
from perennial.core.errors import ServingError
from perennial.core.sql import connect, quoted
from perennial.features.point_in_time import feature_schema
from perennial.lake.schema import MOMENT
from perennial.spec.folder import ModelFolder

#: How many characters of the digest of a definition of features name it here.
_DIGEST_LENGTH = 16
#: Most entities in one query.
_KEYS_AT_ONCE = 500

METADATA = sa.MetaData()
_ROWS = sa.Table(
    "online_features",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("definition", sa.Text, primary_key=True),
    sa.Column("entity", sa.Text, primary_key=True),
    sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
    sa.Column("computed_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("snapshot", sa.BigInteger, nullable=False),
    sa.Column("features", sa.Text, nullable=False),
)
_MADE = sa.Table(
    "online_tables",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("definition", sa.Text, primary_key=True),
    sa.Column("publication", sa.BigInteger, nullable=False),
    sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("proved", sa.BigInteger, nullable=True),
    sa.Column("dependent", sa.Text, nullable=False),
)
_STORED = pa.schema(
    [
        ("model", pa.string()), ("definition", pa.string()), ("entity", pa.string()), ("event_time", MOMENT), ("as_of", MOMENT),
        ("computed_at", MOMENT), ("published_at", MOMENT), ("snapshot", pa.int64()), ("features", pa.string()),
    ]
)  # fmt: skip
_COLUMNS = ", ".join(_STORED.names)


@dataclass(frozen=True)
class Place:
    """Where the rows of a definition of features are. It is made once: to name a definition takes longer than to read a row.

    Attributes:
        model: the model's name.
        definition: see :func:`definition_of`.
        key: the columns of an entity's key, with their types in the lake.
    """

    model: str
    definition: str
    key: pa.Schema


def place_of(folder: ModelFolder) -> Place:
    """Where the rows of a folder's features are."""
    schema = feature_schema(folder.spec)
    key = pa.schema([schema.field(name) for name in folder.spec.entity_table.key])
    return Place(folder.spec.name, definition_of(folder), key)


@dataclass(frozen=True)
class Found:
    """The rows of some entities.

    Attributes:
        features: by row, the values by feature, None where one is missing; each row once.
        places: for each asked key the number of its row, None if there is none.
        event_time: by row, the entity's.
        as_of: by row, the moment that its features are of.
        computed_at: by row, when its features were computed.
        published_at: by row, when the newest rows were published that its features were computed from. ``online.max_age``
            counts from here: features that are computed now from old tables are old.
        snapshot: by row, the snapshot in the lake: of the published features; or, where they were computed since, of the
            entity's table.
    """

    features: list[dict[str, Any]]
    places: list[int | None]
    event_time: list[datetime]
    as_of: list[datetime]
    computed_at: list[datetime]
    published_at: list[datetime]
    snapshot: list[int]


@dataclass(frozen=True)
class Part:
    """Rows that are to be stored, and what :class:`Found` says of each of them.

    Attributes:
        rows: columns of :func:`perennial.features.point_in_time.feature_schema`.
    """

    rows: pa.Table
    computed_at: datetime
    published_at: datetime
    snapshot: int


@dataclass(frozen=True)
class Made:
    """What the rows of a definition were made from.

    Attributes:
        publication: the newest publication that they were made from, of tables or of features.
        made_at: when they were made.
        rows: number of rows.
        proved: the publication of features on whose rows it was tried whether entities can be asked alone; None if it was not.
        dependent: features that depend on which entities are asked, see :mod:`perennial.features.independence`. Only names: an
            example would be data.
    """

    publication: int
    made_at: datetime
    rows: int
    proved: int | None = None
    dependent: list[str] = field(default_factory=list)


class OnlineTable:
    """The online tables of a deployment. Threads may share it.

    Args:
        url: SQLAlchemy URL of the predictions database, ``sqlite:///…`` or ``postgresql+psycopg2://…``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._errors = (sa.exc.DBAPIError, self._database.engine.dialect.loaded_dbapi.Error)
        # One open connection per thread: to open one takes longer than the query.
        self._local = threading.local()

    # --- read --------------------------------------------------------------------------------------------------------

    def read(self, at: Place, keys: pa.Table) -> Found:
        """The rows of some entities.

        Args:
            at: whose features are read. Rows that another definition of features made are not found.
            keys: at least the columns of the entity's key, with the types of the spec.

        Raises:
            ServingError: the database does not answer.
        """
        asked = entity_texts(keys.select(at.key.names).cast(at.key))
        wanted = list(dict.fromkeys(asked))
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(wanted), _KEYS_AT_ONCE):
            found += self._select(at, wanted[start : start + _KEYS_AT_ONCE])
        place = {row[0]: number for number, row in enumerate(found)}
        # No Arrow: for a row or two, that would take longer than the query.
        moments = [[as_moment(value) for value in row[1:5]] for row in found]
        return Found(
            features=[json.loads(row[6]) for row in found],
            places=[place.get(one) for one in asked],
            event_time=[row[0] for row in moments],
            as_of=[row[1] for row in moments],
            computed_at=[row[2] for row in moments],
            published_at=[row[3] for row in moments],
            snapshot=[int(row[5]) for row in found],
        )

    def _select(self, at: Place, entities: Sequence[str]) -> list[tuple[Any, ...]]:
        mark = "?" if self._database.is_sqlite else "%s"
        query = (
            "SELECT entity, event_time, as_of, computed_at, published_at, snapshot, features FROM online_features "
            f"WHERE model = {mark} AND definition = {mark} AND entity IN ({', '.join([mark] * len(entities))})"
        )
        values = (at.model, at.definition, *entities)
        try:
            return self._rows(query, values)
        except self._errors:
            self.close()  # the server may have been restarted since the last query
        try:
            return self._rows(query, values) if self._exists() else []
        except self._errors as error:
            self.close()
            raise ServingError(
                f"{at.model}: the predictions database {self._database.where} does not answer: {cause(error)}. Nothing can be "
                "asked by key until it does"
            ) from error

    def _rows(self, query: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
        cursor = self._connection().cursor()
        try:
            cursor.execute(query, values)
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def _connection(self) -> Any:
        if (connection := getattr(self._local, "connection", None)) is None:
            connection = self._local.connection = self._database.engine.raw_connection()
            if not self._database.is_sqlite:
                driver: Any = connection.driver_connection
                driver.autocommit = True  # nothing stays open between queries
        return connection

    def close(self) -> None:
        """Close this thread's connection; the next read opens another one."""
        connection, self._local.connection = getattr(self._local, "connection", None), None
        if connection is not None:
            connection.invalidate()

    def made(self, folder: ModelFolder) -> Made | None:
        """What the rows of a folder's features were made from; None if there are none."""
        if not self._exists():
            return None
        with self._database.reading() as connection:
            return self._made(connection, folder.spec.name, definition_of(folder))

    def _made(self, connection: sa.Connection, model: str, definition: str) -> Made | None:
        row = connection.execute(
            sa.select(_MADE).where(_MADE.c.model == model, _MADE.c.definition == definition)
        ).mappings().one_or_none()  # fmt: skip
        if row is None:
            return None
        made_at = as_moment(row["made_at"])
        return Made(row["publication"], made_at, row["rows"], row["proved"], json.loads(row["dependent"]))

    # --- write -------------------------------------------------------------------------------------------------------

    def replace(
        self, folder: ModelFolder, parts: Sequence[Part], made: Made, check: Callable[[], object] = lambda: None
    ) -> int | None:
        """Replace the rows of a folder's features, all at once.

        Args:
            folder: the folder that made the features.
            parts: the new rows. No entity is in two of them.
            made: what they were made from; the number of rows is counted.
            check: called when the rows are staged, before they replace others. Its errors are raised here, and nothing is
                changed.

        Returns:
            The number of rows; None if rows are there that were made from a newer publication, or later from the same, so that
            nothing was changed.

        Raises:
            ServingError: the database refused the rows.
        """
        model, definition = folder.spec.name, definition_of(folder)
        count: int = sum(part.rows.num_rows for part in parts)
        with self._telling(model):
            self.create()
            with self._database.engine.connect() as connection:
                with connection.begin():
                    bulk.prepare(self._database, connection)
                    empty = f"SELECT {_COLUMNS} FROM online_features LIMIT 0"
                    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE staged AS {empty}")
                for batch in _encoded(folder, definition, parts):
                    with connection.begin():
                        bulk.send(self._database, connection, "staged", batch)
                check()
                if self._database.is_sqlite:
                    connection = connection.execution_options(writes=True)
                with connection.begin() as transaction:
                    if not self._database.is_sqlite:
                        bulk.limit_locks(connection)
                        take_turn(connection, f"perennial/online/{model}")
                    there = self._made(connection, model, definition)
                    if there is not None and (there.publication, there.made_at) > (made.publication, made.made_at):
                        transaction.rollback()
                        return None
                    self._remove(connection, model, definition)
                    connection.exec_driver_sql(f"INSERT INTO online_features ({_COLUMNS}) SELECT {_COLUMNS} FROM staged")
                    connection.execute(
                        sa.insert(_MADE).values(
                            model=model, definition=definition, publication=made.publication,
                            made_at=self._database.bound(made.made_at), rows=count, proved=made.proved,
                            dependent=json.dumps(made.dependent),
                        )
                    )  # fmt: skip
        return count

    def keep_only(self, model: str, folders: Collection[ModelFolder] = ()) -> int:
        """Remove the rows of all other definitions of a model's features; returns how many rows."""
        if not self._exists():
            return 0
        kept = {definition_of(folder) for folder in folders}
        with self._telling(model), self._database.writing("online", model) as connection:
            there = connection.execute(sa.select(_MADE.c.definition).where(_MADE.c.model == model)).scalars().all()
            return sum(self._remove(connection, model, definition) for definition in there if definition not in kept)

    def _remove(self, connection: sa.Connection, model: str, definition: str) -> int:
        for table in (_MADE, _ROWS):
            gone = connection.execute(sa.delete(table).where(table.c.model == model, table.c.definition == definition)).rowcount
        return int(gone)

    def erase(self, model: str, keys: Collection[Sequence[object]], *, dry_run: bool = False) -> int:
        """Remove the rows of entities. No trace of them is left in the database's files.

        Args:
            model: the model.
            keys: for each entity the values of its key, in the order of the spec.
            dry_run: only count the rows.

        Returns:
            The number of rows.
        """
        entities = sorted(entity_text(key) for key in keys)
        if not entities or not self._exists():
            return 0
        count = 0
        for start in range(0, len(entities), _KEYS_AT_ONCE):
            where = (_ROWS.c.model == model, _ROWS.c.entity.in_(entities[start : start + _KEYS_AT_ONCE]))
            if dry_run:
                with self._database.reading() as connection:
                    count += connection.execute(sa.select(sa.func.count()).select_from(_ROWS).where(*where)).scalar_one()
            else:
                with self._database.writing("online", model) as connection:
                    self._database.leave_nothing(connection)
                    count += connection.execute(sa.delete(_ROWS).where(*where)).rowcount
        if count and not dry_run:
            self._database.free_space("online_features")
        return count

    def remove_before(self, model: str, before: datetime) -> int:
        """Remove the rows of events before a moment; returns how many."""
        if not self._exists():
            return 0
        with self._database.writing("online", model) as connection:
            old = (_ROWS.c.model == model, _ROWS.c.event_time < self._database.bound(before))
            return int(connection.execute(sa.delete(_ROWS).where(*old)).rowcount)

    def newest_publication(self, model: str) -> int | None:
        """The newest publication that rows of a model were made from; None if there are none."""
        if not self._exists():
            return None
        with self._database.reading() as connection:
            newest = sa.select(sa.func.max(_MADE.c.publication)).where(_MADE.c.model == model)
            found: int | None = connection.execute(newest).scalar_one()
        return found

    def forget_newer(self, model: str, publication: int) -> int:
        """Remove the rows of definitions that were made from a publication newer than ``publication``.

        This is for a ledger that was restored from a backup: it does not know these publications.

        Returns:
            The number of definitions.
        """
        if (newest := self.newest_publication(model)) is None or newest <= publication:
            return 0
        with self._database.writing("online", model) as connection:
            newer = sa.select(_MADE.c.definition).where(_MADE.c.model == model, _MADE.c.publication > publication)
            there = connection.execute(newer).scalars().all()
            for definition in there:
                self._remove(connection, model, definition)
        return len(there)

    def create(self) -> None:
        """Create the tables if they are missing."""
        if not self._exists():
            self._database.create(METADATA)

    def _exists(self) -> bool:
        with self._database.reading() as connection:
            return all(sa.inspect(connection).has_table(table.name) for table in (_ROWS, _MADE))

    @contextmanager
    def _telling(self, model: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:  # rows bypass SQLAlchemy
            raise ServingError(
                f"{model}: the predictions database {self._database.where} refused the online table: {cause(error)}. The rows "
                "that were there are still served. Repair the database, then materialize again"
            ) from error


def definition_of(folder: ModelFolder) -> str:
    """What names a folder's definition of features in the online table."""
    return folder.features_digest[:_DIGEST_LENGTH]


# --- how rows are stored -------------------------------------------------------------------------------------------------


def _encoded(folder: ModelFolder, definition: str, parts: Sequence[Part]) -> Iterator[pa.RecordBatch]:
    """The rows in the columns of ``online_features``."""
    packed = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in folder.spec.features.names)
    with connect() as connection:
        for part in parts:
            for batch in part.rows.to_batches(max_chunksize=65_536):
                connection.register("features", pa.Table.from_batches([batch]))
                # DuckDB writes the shortest text that means the same double, as Python does, a hundred times as fast.
                texts = connection.sql(f"SELECT to_json(struct_pack({packed}))::VARCHAR AS json FROM features").to_arrow_table()
                connection.unregister("features")
                count = batch.num_rows
                columns = {
                    "model": pa.repeat(folder.spec.name, count),
                    "definition": pa.repeat(definition, count),
                    "entity": pa.array(entity_texts(batch.select(folder.spec.entity_table.key)), pa.string()),
                    "event_time": batch[folder.spec.event_time],
                    "as_of": batch["as_of"],
                    "computed_at": pa.repeat(pa.scalar(part.computed_at, MOMENT), count),
                    "published_at": pa.repeat(pa.scalar(part.published_at, MOMENT), count),
                    "snapshot": pa.repeat(pa.scalar(part.snapshot, pa.int64()), count),
                    "features": texts["json"].combine_chunks(),
                }
                yield pa.RecordBatch.from_arrays([columns[name] for name in _STORED.names], schema=_STORED)


def entity_texts(keys: pa.Table | pa.RecordBatch) -> list[str]:
    """Keys of entities as they are stored: each as a JSON list of its values."""
    return [entity_text(values) for values in zip(*(column.to_pylist() for column in keys.columns), strict=True)]


def read_entities(folder: ModelFolder, texts: Sequence[str]) -> pa.Table:
    """The inverse of :func:`entity_texts`: the columns of an entity's key, with the types of the spec."""
    schema, key = feature_schema(folder.spec), folder.spec.entity_table.key
    values = [json.loads(text) for text in texts]
    fields = [schema.field(name) for name in key]
    return pa.table(
        [pa.array([_value(one[place], field.type) for one in values], field.type) for place, field in enumerate(fields)],
        schema=pa.schema(fields),
    )


def entity_text(values: Sequence[object]) -> str:
    """A key as a JSON list, the same for the same values: a time in UTC, a float without the sign of a zero."""
    plain = [one.isoformat() if isinstance(one, date) else one + 0.0 if isinstance(one, float) else one for one in values]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _value(stored: Any, kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(stored)
    return date.fromisoformat(stored) if pa.types.is_date(kind) else stored
