"""Features of entities that are in no table yet: ``features.sql`` runs now, for them alone, over hot tables.

The hot tables are the published rows that the query looks back at, held in memory. They are loaded at the first request of a
model and kept up with publications (:meth:`OnDemand.keep_up`), and with rows that clients push and no ingest has read yet
(:meth:`OnDemand.show_pushed`): these are shown as the next ingest will publish them. The query, the casts, the checks and what
a row may see are those of the batch, so an entity that was published gets the features that were published for it, to the last
bit. This holds only if no feature depends on which entities are asked, which is tried first
(:mod:`perennial.features.independence`).

Neighbours: :mod:`perennial.features.point_in_time` runs the query; :mod:`perennial.ingestion.given` casts the entities.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from perennial.core.errors import NotAnswered, ServingError
from perennial.core.intervals import Interval, window_start
from perennial.features.history import gaps_of_features, refuse_gaps
from perennial.features.point_in_time import (
    blaming,
    feature_schema,
    hold,
    hold_pushed,
    instant,
    offer_given,
    open_database,
    select_checked,
    with_as_of,
)
from perennial.features.publish import find_dependences
from perennial.features.published import DATASET, TABLES, published_tables, scan
from perennial.ingestion.given import GivenTable
from perennial.ingestion.pushed import PushedRows, as_columns, by_texts, read_before
from perennial.lake.publish import Lake
from perennial.lake.schema import KNOWN
from perennial.serving.online_table import definition_of
from perennial.spec.folder import ModelFolder

log = logging.getLogger(__name__)

_DAY = timedelta(days=1)
#: The end of the hot rows: whatever is published for later is held too.
_FOREVER = datetime(9999, 12, 31, tzinfo=UTC)
#: How long before the end of what is published an event may lie. More would have to be read for a single request.
OLDEST = timedelta(days=31)
#: Most pushed rows of a table that are held until they are published.
MOST_PUSHED = 200_000


@dataclass(frozen=True)
class _Pushed:
    """Rows of a table that clients have pushed and no ingest has read.

    Attributes:
        newest: the number of the table's newest row when they were read.
        rows: they, in the order in which they came; None if there are none.
        read: how many were read, those included that the table's present rules refuse.
        several: whether one of their keys has several rows.
    """

    newest: int = 0
    rows: pa.Table | None = None
    read: int = 0
    several: bool = False


_NOTHING_PUSHED = _Pushed()


@dataclass(frozen=True)
class _Hot:
    """Rows in memory, of one definition of features.

    Attributes:
        start: rows of events from here on are held.
        end: the end of the newest published interval of the tables.
        publication: of the tables.
        snapshots: by table, the snapshot that the rows are of.
        tables: the rows.
        database: has the rows too, for :func:`perennial.features.point_in_time.offer_given`.
        corrected: the tables that have several rows for a key.
        read: by table, up to which number an ingest has read pushed rows.
        pushed: by table, pushed rows that the database shows beside the others. Only who has the database for itself changes
            it.
        proved: the publication of features on whose rows the independence of entities was tried.
        dependent: features that depend on which entities are asked.
    """

    start: datetime
    end: datetime
    publication: int
    snapshots: dict[str, int]
    tables: dict[str, pa.Table]
    database: duckdb.DuckDBPyConnection
    corrected: frozenset[str]
    read: dict[str, int]
    pushed: dict[str, _Pushed]
    proved: int | None
    dependent: list[str]


class OnDemand:
    """Computes features now. Threads may share it; requests of one definition of features run one after another.

    Args:
        lake: has the published tables; its ledger says which snapshots are published.
        pushed: has the rows that clients push; None: they are not shown.
        takes: by the name of a model, the tables of which rows may be pushed now. Those of others are not ingested.
        clock: the time.
    """

    def __init__(
        self,
        lake: Lake,
        pushed: PushedRows | None = None,
        takes: Callable[[str], Collection[str]] = lambda _: (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lake, self._clock = lake, clock
        self._pushes = None if pushed is None else (pushed, takes)
        self._makers: dict[str, _Maker] = {}
        self._lock = threading.Lock()

    def features(self, folder: ModelFolder, entities: pa.Table, as_of: datetime | None = None) -> pa.Table:
        """The features of entities, in the order in which they are given.

        Args:
            folder: the folder that makes the features.
            entities: columns of the entity's table, as texts or with a type. A given entity stands in the place of a published
                one with its key.
            as_of: the moment that the features are of; by default the entity's own ``as_of``, but not later than now. What is
                given counts as known by then.

        Returns:
            The columns of :func:`perennial.features.point_in_time.feature_schema`.

        Raises:
            NotAnswered: a value is wrong, with its row and field; or an event is too old.
            ServingError: a feature depends on which entities are asked, so nothing can be asked on demand.
            SnapshotMissing: no tables are published yet, or they lack what the features need.
            SpecError: ``features.sql`` fails on these entities.
        """
        [found] = self.features_together(folder, [entities], as_of)
        if isinstance(found, Exception):
            raise found
        return found

    def features_together(
        self, folder: ModelFolder, asked: Sequence[pa.Table], as_of: datetime | None = None
    ) -> list[pa.Table | Exception]:
        """The features of the entities of several requests, for hardly more than one takes.

        Args:
            folder: the folder that makes the features.
            asked: the entities of each request, see :meth:`features`.
            as_of: see :meth:`features`; of all of them.

        Returns:
            For each request what :meth:`features` gives, or the error that it raises. No request fails because of another.
        """
        return self._maker(folder).features(asked, as_of, self._clock())

    def prepare(self, folder: ModelFolder) -> None:
        """Load what the first request of a model would wait for: the hot tables, and whether entities can be asked alone.

        Raises:
            SnapshotMissing, SpecError: see :meth:`features`.
        """
        self._maker(folder).prepare(self._clock())

    def keep_up(self) -> None:
        """Read what was published since, for all models that were asked. Requests go on meanwhile with the rows before.

        Raises:
            SnapshotMissing, SpecError: see :meth:`features`; the rows before are kept.
        """
        for maker in list(self._makers.values()):
            maker.keep_up()

    def show_pushed(self) -> None:
        """Read what was pushed since, for all models that were asked. It takes a statement a model if that is nothing.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer; what is shown stays.
        """
        for maker in list(self._makers.values()):
            maker.show_pushed()

    def _maker(self, folder: ModelFolder) -> _Maker:
        name = f"{folder.spec.name}/{definition_of(folder)}"
        with self._lock:
            if name not in self._makers:
                self._makers[name] = _Maker(folder, self._lake, self._pushes)
            return self._makers[name]


class _Maker:
    """Computes features of one definition."""

    def __init__(
        self, folder: ModelFolder, lake: Lake, pushes: tuple[PushedRows, Callable[[str], Collection[str]]] | None
    ) -> None:
        self._folder, self._lake = folder, lake
        self._pushes = pushes
        spec = folder.spec
        self._pushable = [
            name
            for name in folder.feature_tables
            if spec.tables[name].event_time is not None and spec.tables[name].duplicates == "correct"
        ]
        self._texts: dict[str, GivenTable] = {}
        self._given = GivenTable(folder, folder.spec.entity.table)
        self._hot: _Hot | None = None
        self._computing, self._loading, self._showing = threading.Lock(), threading.Lock(), threading.Lock()

    def features(self, asked: Sequence[pa.Table], as_of: datetime | None, now: datetime) -> list[pa.Table | Exception]:
        """The features of each request's entities, or why it gets none."""
        own = f"least((\n{self._folder.spec.entity.as_of}\n)::TIMESTAMPTZ, {instant(now)})"
        folder = with_as_of(self._folder, own if as_of is None else instant(as_of))
        done: dict[int, pa.Table | Exception] = {}
        left = list(range(len(asked)))
        while left:
            together = self._fitting(asked, left)
            try:
                found = self._of_rows(folder, self._read([asked[place] for place in together]))
                start = 0
                for place in together:
                    done[place] = found.slice(start, asked[place].num_rows)
                    start += asked[place].num_rows
            # Whatever fails for all of them is found again for the one that is at fault.
            except Exception as error:
                for place in together:
                    done[place] = error if len(together) == 1 else self.features([asked[place]], as_of, now)[0]
            left = [place for place in left if place not in done]
        return [done[place] for place in range(len(asked))]

    def _fitting(self, asked: Sequence[pa.Table], left: Sequence[int]) -> list[int]:
        """Requests that can be computed with the first one: with columns of the same types, and other entities."""
        schema, keys = asked[left[0]].schema, self._folder.spec.entity_table.key
        chosen: list[int] = []
        seen: set[tuple[object, ...]] = set()
        for place in left:
            rows = asked[place]
            if rows.schema != schema:
                continue
            own = set(zip(*(rows[name].to_pylist() for name in keys if name in rows.column_names), strict=True))
            if not chosen or not own & seen:
                chosen.append(place)
                seen |= own
        return chosen

    def _read(self, asked: Sequence[pa.Table]) -> pa.Table:
        return self._given.read(pa.concat_tables(asked) if len(asked) > 1 else asked[0])

    def _of_rows(self, asked: ModelFolder, given: pa.Table) -> pa.Table:
        """The features of entities, in their order."""
        spec = self._folder.spec
        if not given.num_rows:
            return feature_schema(spec).empty_table()
        days = pc.floor_temporal(given[spec.event_time], unit="day")
        found = []
        for day in sorted(pc.unique(days).to_pylist()):
            rows = given.filter(pc.equal(days, pa.scalar(day, days.type)))
            found.append(self._of_a_day(asked, rows, Interval.day(day)))
        together = pa.concat_tables(found)
        key = spec.entity_table.key
        places = {one: place for place, one in enumerate(zip(*(together[name].to_pylist() for name in key), strict=True))}
        order = [places[one] for one in zip(*(given[name].to_pylist() for name in key), strict=True)]
        return together.take(pa.array(order, pa.int64()))

    def _of_a_day(self, asked: ModelFolder, given: pa.Table, day: Interval) -> pa.Table:
        hot = self._held(day)
        if hot.dependent:
            name = asked.spec.name
            raise ServingError(
                f"{name}: {', '.join(hot.dependent)} depend on which other entities are asked, so {name} can be asked by key "
                f"only; perennial check {name} says how"
            )
        with self._database(hot) as connection:
            given = _known_when_asked(connection, asked, given)
            corrected = hot.corrected | {name for name, pushed in hot.pushed.items() if pushed.several}
            offer_given(connection, asked, corrected, day, given)
            select_checked(connection, asked, day)
            found: pa.Table = connection.sql("FROM perennial.features").to_arrow_table()
        return found.cast(feature_schema(asked.spec))

    @contextmanager
    def _database(self, hot: _Hot) -> Iterator[duckdb.DuckDBPyConnection]:
        """The database of the hot rows, for one thread at a time. After an error of it, it is made anew."""
        with self._computing:
            try:
                yield hot.database
            except duckdb.Error:
                with self._loading:
                    if self._hot is hot:
                        self._hot = replace(hot, database=_database_of(self._folder, hot.tables, hot.pushed)[0])
                raise

    def _held(self, day: Interval) -> _Hot:
        """Rows that reach back as far as a day's features look."""
        needed = day.start - self._folder.spec.features.lookback

        def reaches(hot: _Hot | None) -> bool:
            return hot is not None and (needed >= hot.start or day.end < hot.end - OLDEST)

        if not reaches(self._hot):
            with self._loading:
                if not reaches(self._hot):
                    self._hot = self._load(needed, self._hot)
        hot = self._hot
        assert hot is not None  # it was loaded
        if day.end < hot.end - OLDEST:
            raise NotAnswered(
                f"the event of an entity is of {day}, more than {OLDEST.days} days before the newest data; ask by key, or read "
                "its prediction",
                field=self._folder.spec.event_time,
            )
        return hot

    def prepare(self, now: datetime) -> None:
        self._held(Interval.day(window_start(now, _DAY)))

    def keep_up(self) -> None:
        hot = self._hot
        if hot is None:
            return
        newest, features = (self._lake.ledger.head(self._folder.spec.name, name).publication_id for name in (TABLES, DATASET))
        if (newest, features) != (hot.publication, hot.proved):
            with self._loading:
                loaded = self._load(hot.start, hot)
                # What came while it was loaded is shown by the rows before already.
                self._show(loaded, shared=False)
                self._hot = loaded
        else:
            self._show(hot, count=True)

    def show_pushed(self) -> None:
        hot = self._hot
        if hot is not None:
            self._show(hot)

    def _show(self, hot: _Hot, *, count: bool = False, shared: bool = True) -> None:
        """Let a database show what was pushed since.

        Args:
            hot: the rows and their database.
            count: also look whether rows were removed.
            shared: whether other threads have it too.
        """
        if self._pushes is None:
            return
        rows, takes = self._pushes
        with self._showing if shared else nullcontext():
            name = self._folder.spec.name
            taken = [table for table in self._pushable if table in takes(name)]
            for table, number in rows.newest(name, taken).items():
                shown = hot.pushed.get(table, _NOTHING_PUSHED)
                removed = count and bool(shown.read) and rows.waiting(*self._unread(hot, table)) < shown.read
                if number == shown.newest and not removed:
                    continue
                its = self._read_pushed(rows, hot, table, number, _NOTHING_PUSHED if removed else shown)
                with self._computing if shared else nullcontext():
                    if shared and self._hot is not hot:
                        return  # it was replaced; the next look shows them in the other one
                    if its.rows is None and shown.rows is not None:  # all of them were removed
                        its = replace(its, rows=shown.rows.slice(0, 0))
                    if its.rows is not shown.rows:
                        its = replace(its, several=hold_pushed(hot.database, self._folder, table, its.rows))
                    hot.pushed[table] = its

    def _unread(self, hot: _Hot, table: str) -> tuple[str, str, int, datetime, datetime]:
        """What :meth:`perennial.ingestion.pushed.PushedRows.read` is asked for: what the next ingest will publish."""
        spec = self._folder.spec
        since = max(hot.start, hot.end - (spec.tables[table].late or timedelta()))
        return spec.name, table, hot.read.get(table, 0), since, hot.end

    def _read_pushed(self, pushed: PushedRows, hot: _Hot, table: str, newest: int, shown: _Pushed) -> _Pushed:
        """What is shown of a table's pushed rows, and those that came since."""
        most = MOST_PUSHED - shown.read
        raw = pushed.read(*self._unread(hot, table), beyond=shown.newest, most=most)
        if raw.num_rows == most > 0:
            name = self._folder.spec.name
            log.warning("%s: %d pushed rows of %s wait for ingest; features see no more of them", name, MOST_PUSHED, table)
        if table not in self._texts:
            self._texts[table] = GivenTable(by_texts(self._folder, table), table)
        typed, faults = self._texts[table].check(as_columns(self._folder.spec.tables[table], raw))
        faulty = {one.row for one in faults}
        good = typed.filter(pa.array([place not in faulty for place in range(typed.num_rows)], pa.bool_()))
        good = good.filter(pc.is_valid(good[KNOWN]))
        rows = shown.rows
        if good.num_rows:
            rows = good if rows is None else pa.concat_tables([rows, good])
        # A row may have become visible since the newest number was read.
        return replace(shown, newest=max([newest, *raw["id"].to_pylist()]), rows=rows, read=shown.read + raw.num_rows)

    def _load(self, start: datetime, before: _Hot | None) -> _Hot:
        """Read the rows of events from ``start`` on that are not held already, but not more than :data:`OLDEST` needs."""
        folder, lake = self._folder, self._lake
        name = folder.spec.name
        tables = published_tables(folder, lake.ledger)
        publications = lake.ledger.publications(name, TABLES)
        end = max(one.interval.end for one in publications)
        start = max(start, window_start(end, _DAY) - OLDEST - folder.spec.features.lookback - _DAY)
        refuse_gaps(folder, gaps_of_features(folder, lake, tables.snapshots, Interval(end - _DAY, end)))
        held: dict[str, pa.Table] = {}
        for table in folder.feature_tables:
            if before is not None and before.start == start and before.snapshots.get(table) == tables.snapshots.get(table):
                held[table] = before.tables[table]
            else:
                held[table] = scan(folder, lake, table, tables.snapshots, within=Interval(start, _FOREVER)).read_all()
        proved, dependent = self._prove(before, end)
        log.info("%s: %d rows in memory from %s on", name, sum(map(len, held.values())), start)
        database, corrected = _database_of(folder, held, {})
        read = {table: read_before(publications, table, end)[0] or 0 for table in self._pushable}
        hot = _Hot(start, end, tables.id, dict(tables.snapshots), held, database, corrected, read, {}, proved, dependent)
        try:
            self._show(hot, shared=False)
        except sa.exc.SQLAlchemyError as error:
            # Features go on with what is published; the next look shows the others.
            log.warning("%s: pushed rows cannot be read (%s)", name, type(error).__name__)
        return hot

    def _prove(self, before: _Hot | None, end: datetime) -> tuple[int, list[str]]:
        newest = self._lake.ledger.head(self._folder.spec.name, DATASET).publication_id
        if before is not None and before.proved == newest:
            return newest, before.dependent
        days = Interval(end - 2 * _DAY, end)
        return newest, [one.feature for one in find_dependences(self._folder, self._lake, days)]


def _database_of(
    folder: ModelFolder, tables: dict[str, pa.Table], pushed: dict[str, _Pushed]
) -> tuple[duckdb.DuckDBPyConnection, frozenset[str]]:
    """A database that holds the rows, and which of its tables have several for a key. It closes when nobody has it any more."""
    database = open_database()
    try:
        corrected = hold(database, folder, tables)
        for name, its in pushed.items():
            if its.rows is not None:
                hold_pushed(database, folder, name, its.rows)
        return database, corrected
    except BaseException:
        database.close()
        raise


def _known_when_asked(connection: duckdb.DuckDBPyConnection, asked: ModelFolder, given: pa.Table) -> pa.Table:
    """The rows as known at their ``as_of`` at the latest: who asks for a row knows it."""
    connection.register("_asked", given)
    try:
        with blaming(f"{asked.path / 'model.yaml'}: entity.as_of"):
            known: pa.Table = connection.sql(
                f"SELECT * REPLACE (least({KNOWN}, ({asked.spec.entity.as_of})) AS {KNOWN}) FROM _asked"
            ).to_arrow_table()
    finally:
        connection.unregister("_asked")
    for row, value in enumerate(known[KNOWN].to_pylist()):
        if value is None:
            raise NotAnswered("entity.as_of gives no moment for this row; give as_of", row=row, field="as_of")
    return known.cast(given.schema)
