"""Reads what a deployment has published, decided and learned. It cannot write: ledger, lake and registry refuse it.

The commit of everything is a row of the ledger, so each method asks the ledger first, and reads the lake at the snapshots that
it names. Neighbours: :mod:`perennial.client.rows` has what is given; :mod:`perennial.deployment` opens the parts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from perennial.client.rows import Rows, TrainingRows
from perennial.core.errors import NoChampion, NotAnswered, SettingsError, SnapshotMissing, SpecError, TrainingError
from perennial.core.intervals import Interval, utc
from perennial.core.settings import Settings, settings
from perennial.deployment import Deployment
from perennial.ledger.coverage import uncovered

if TYPE_CHECKING:
    import pandas as pd

    from perennial.model.artifacts import LoadedModel

log = logging.getLogger(__name__)

#: A day or a moment: ``2013-06-01``, a date, or a time with its zone, such as ``2013-06-01T12:00Z``.
Moment = str | date | datetime

_FEATURES, _TABLES, _PREDICTIONS, _QUARANTINE = "features", "tables", "predictions", "quarantine"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Version:
    """A version that predicts in this process.

    Its files are the ones that the ledger has in its manifest, and hold trusted types alone; otherwise it is not loaded.

    Attributes:
        model: the model.
        version: its number.
        since: when it became champion; None if it is another version than the champion.
        trained_on: key of the interval that it has learned from.
        loaded: the model itself.
    """

    model: str
    version: int
    since: datetime | None
    trained_on: str
    loaded: LoadedModel

    @property
    def features(self) -> list[str]:
        """The columns that :meth:`predict` takes."""
        return self.loaded.features

    def predict(self, rows: pd.DataFrame | pa.Table | Rows) -> pd.DataFrame:
        """Predictions, a row for each row, in their order.

        Args:
            rows: the features by name, such as :meth:`Client.features` gives. Other columns are ignored.

        Returns:
            ``prediction``: the probability of true, a number, or a class; for classes also ``probability`` of that class, and
            the probability of each class by its name. The index is that of a frame that was given.

        Raises:
            ScoringError: a feature is missing or has a wrong type.
        """
        import pandas as pd

        table, index = self._table(rows)
        said = self.loaded.predict(table)
        found: dict[str, Any] = {"prediction": said.values}
        if self.loaded.task == "multiclass_classification" and said.probabilities is not None:
            found["probability"] = said.probability
            found |= dict(zip(said.classes, said.probabilities.T, strict=True))
        return pd.DataFrame(found, index=index)

    def _table(self, rows: pd.DataFrame | pa.Table | Rows) -> tuple[pa.Table, Any]:
        if isinstance(rows, Rows):
            return rows.arrow(), None
        if isinstance(rows, pa.Table):
            return rows, None
        there = [name for name in self.features if name in rows.columns]
        return pa.Table.from_pandas(rows[there], preserve_index=False), rows.index


class Client:
    """One deployment, to read from.

    Args:
        settings: of the deployment.

    Raises:
        SettingsError: there is no deployment.
        SchemaMismatch: its ledger is of another release.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_copy(update={"read_only": True, "may_promote": False})
        self._parts = Deployment(self._settings)
        for url in (settings.database_url, settings.catalog_url):
            if url.startswith("sqlite:///") and not Path(file := url.removeprefix("sqlite:///")).is_file():
                raise SettingsError(
                    f"there is no deployment yet: {file} does not exist. Start one with `make up`, or set PERENNIAL_STATE (or "
                    "PERENNIAL_DATABASE_URL and PERENNIAL_CATALOG_URL) to where it is"
                )
        self._parts.ledger.models()

    def models(self) -> list[str]:
        """The models that have published anything, also those whose folder is gone."""
        return self._parts.ledger.models()

    # --- published rows ----------------------------------------------------------------------------------------------

    def features(
        self,
        model: str,
        start: Moment,
        end: Moment,
        *,
        columns: Sequence[str] | None = None,
        snapshots: Mapping[str, int] | None = None,
    ) -> Rows:
        """The features of an interval as they are published: each row at its own ``as_of``, from what was known by then.

        Args:
            model: the model.
            start: the first moment of the entities' event times.
            end: the first moment after them.
            columns: the columns to read; by default all.
            snapshots: of rows that were read before, to read the same ones again; by default those that are published now.

        Raises:
            SnapshotMissing: nothing is published, the lake no longer keeps the snapshot, or there is no such column.
            ValueError: ``start`` is not before ``end``.
        """
        return self._rows(model, _FEATURES, _FEATURES, Interval.of(start, end), columns=columns, snapshots=snapshots)

    def predictions(
        self,
        model: str,
        start: Moment,
        end: Moment,
        *,
        columns: Sequence[str] | None = None,
        snapshots: Mapping[str, int] | None = None,
    ) -> Rows:
        """The batch predictions of an interval, with the version that made them; as :meth:`features`."""
        return self._rows(model, _PREDICTIONS, _PREDICTIONS, Interval.of(start, end), columns=columns, snapshots=snapshots)

    def table(
        self,
        model: str,
        table: str,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        known_by: Moment | None = None,
        columns: Sequence[str] | None = None,
        snapshots: Mapping[str, int] | None = None,
    ) -> Rows:
        """A table of ``model.yaml``, as it was checked and published.

        Args:
            model: the model.
            table: its name in ``model.yaml``.
            start, end: the interval of event times; neither: all rows. A table without event time has no intervals.
            known_by: only rows that were known by this moment (``_known_at``), as features see them.
            columns, snapshots: as in :meth:`features`.
        """
        if (start is None) != (end is None):
            raise ValueError("give both ends of the interval, or neither")
        interval = None if start is None or end is None else Interval.of(start, end)
        return self._rows(model, _TABLES, table, interval, columns=columns, snapshots=snapshots, known_by=known_by)

    def quarantine(self, model: str, start: Moment, end: Moment, *, table: str | None = None) -> Rows:
        """The rows of an interval that failed a critical check, with every reason; as :meth:`features`.

        Args:
            model: the model.
            start, end: the interval of event times.
            table: only rows of this table.
        """
        found = self._rows(model, _TABLES, _QUARANTINE, Interval.of(start, end))
        if table is None:
            return found
        scan = partial(_where, found.scan, "table", table)
        return Rows(model, f"{_QUARANTINE} of {table}", found.interval, found.snapshots, scan, missing=found.missing)

    def _rows(
        self,
        model: str,
        dataset: str,
        table: str,
        interval: Interval | None,
        *,
        columns: Sequence[str] | None = None,
        snapshots: Mapping[str, int] | None = None,
        known_by: Moment | None = None,
    ) -> Rows:
        ledger, lake = self._parts.ledger, self._parts.lake
        there = ledger.head(model, dataset).snapshots
        if table not in there:
            known = ", ".join(sorted({name for one in ledger.datasets(model) for name in ledger.head(model, one).snapshots}))
            raise SnapshotMissing(f"{model}: no rows of {table} are published; there are {known or 'no tables of this model'}")
        snapshot = there[table]
        if snapshots is not None:
            if table not in snapshots:
                raise SnapshotMissing(f"{model}: no snapshot of {table} is given, but of {', '.join(snapshots) or 'nothing'}")
            snapshot = snapshots[table]
            if snapshot not in ledger.snapshots_since(model, dataset, _LONG_AGO).get(table, ()):
                raise SnapshotMissing(f"{model}: {table} was never published at snapshot {snapshot}")
        moment = None if known_by is None else utc(known_by)
        missing: tuple[str, ...] = ()
        if interval is not None:
            gaps = uncovered(interval, ledger.publications(model, dataset, interval))
            if missing := tuple(gap.key for gap in gaps):
                log.warning("%s: no %s are published of %s", model, dataset, ", ".join(missing))
        scan = partial(
            lake.scan, model, table, snapshot, columns=list(columns) if columns is not None else None, interval=interval,
            known_by=moment,
        )  # fmt: skip
        _try(scan)
        until = None if moment is None else moment.isoformat()
        return Rows(model, table, interval, {table: snapshot}, scan, known_by=until, missing=missing)

    # --- what models learn from, and how they do ---------------------------------------------------------------------

    def training_set(self, model: str, *, as_of: Moment | None = None, version: int | None = None) -> TrainingRows:
        """The labelled rows that a training as of a moment would learn from, or those that a version was trained on.

        Args:
            model: the model.
            as_of: only labels that were known by then.
            version: the version whose rows are read again, at the snapshots that were pinned for it. Give one of the two.

        Raises:
            TrainingError: nothing is published, features must be built again first, or the version's rows were erased.
            SpecError: the model has no folder.
        """
        if (as_of is None) == (version is None):
            raise ValueError("give as_of or version")
        from perennial.training.training_set import load_rows, read_training_set

        if as_of is not None:
            found, parts = read_training_set(self._parts.model(model), self._parts, as_of=utc(as_of))
        else:
            from dataclasses import replace

            from perennial.registry.folders import open_folder

            record = self._parts.ledger.version(model, version or 0)
            if record is None:
                known = ", ".join(str(one.version) for one in self._parts.ledger.versions(model)) or "none"
                raise TrainingError(f"{model} has no version {version} in the ledger; there are: {known}")
            folder = None
            with suppress(SpecError):
                folder = self._parts.model(model)
            with open_folder(record, folder, self._parts.registry, []) as its:
                found = replace(record.training.training_set, folder_digest=its.digest)
                parts = {part: load_rows(its, self._parts.lake, found, part) for part in ("window", "holdout")}
        missing = tuple(found.missing)
        window, holdout = (
            Rows(model, part, found.interval(part), found.snapshots, rows.to_reader, missing=missing)
            for part, rows in parts.items()
        )
        return TrainingRows(window, holdout, found.as_of, version, dict(found.content))

    def performance(self, model: str) -> Rows:
        """Estimated and realised performance of each window and version, oldest first, with the drift verdict.

        The metric is the model's primary one; the column ``metric`` names it.
        """
        from perennial.monitoring.estimation import beside_realised

        spec, ledger = self._parts.model(model).spec, self._parts.ledger
        windows = beside_realised(
            ledger.verdicts(model, limit=1_000),
            ledger.performances(model),
            spec.primary_metric,
            label_coverage=spec.gates.label_coverage,
        )
        rows = [{**asdict(one), "interval": one.interval} for one in windows]
        table = pa.table({name: pa.array(map(read, rows), kind) for name, kind, read in _performance(spec.primary_metric)})
        return Rows(model, "performance", None, {}, table.to_reader)

    def champion(self, model: str) -> Version:
        """The champion, loaded from its verified files.

        Raises:
            NoChampion: no version was promoted yet.
            ArtifactRejected: its files are not those of the ledger's manifest, hold types that are not trusted, or cannot be
                fetched.
        """
        number = self._parts.ledger.champion(model)
        if number is None:
            raise NoChampion(f"{model} has no champion: no version was promoted yet, or the model was retired")
        return self.version(model, number)

    def version(self, model: str, version: int) -> Version:
        """Any registered version; as :meth:`champion`."""
        spec = None
        with suppress(SpecError):
            spec = self._parts.model(model).spec
        loaded = self._parts.registry.load(model, version, spec=spec)
        made = [one.completed_at for one in self._parts.ledger.promotions(model) if one.completed_at is not None]
        is_champion = self._parts.ledger.champion(model) == version
        return Version(model, version, made[-1] if is_champion else None, loaded.trained_on, loaded)

    def ask(
        self,
        model: str,
        *keys: Mapping[str, Any],
        features: Sequence[Mapping[str, Any]] | None = None,
        entities: Sequence[Mapping[str, Any]] | None = None,
        as_of: str | None = None,
        url: str | None = None,
    ) -> dict[str, Any]:
        """Ask a running scorer, as `perennial ask` does.

        Args:
            model: the model.
            keys: of entities whose features are stored.
            features: of rows; beside keys, those that replace stored ones.
            entities: columns of entities that are in no table yet.
            as_of: with ``entities``: the moment that their features are of.
            url: of the scorer; by default ``PERENNIAL_SERVE_URL``, or this machine. ``PERENNIAL_SERVE_TOKEN`` is the token.

        Returns:
            The scorer's answer, see docs/online.md.

        Raises:
            NotAnswered: no scorer answers, or it says why it answers nothing.
        """
        from perennial.serving import asking
        from perennial.serving.service import read_serve_settings

        given = {"keys": list(keys), "features": features, "entities": entities, "as_of": as_of}
        body = {name: value for name, value in given.items() if value}
        if not body.keys() - {"as_of"}:
            raise NotAnswered("nothing is asked: give keys, features or entities")
        here = f"http://127.0.0.1:{read_serve_settings(os.environ).port}"
        address = url or os.environ.get("PERENNIAL_SERVE_URL") or here
        return asking.ask(address, model, body, token=os.environ.get("PERENNIAL_SERVE_TOKEN"))


def open_deployment(of: Settings | None = None) -> Client:
    """Open a deployment to read from: the one that the environment names (PERENNIAL_STATE), or ``var`` of the project.

    Args:
        of: the settings of another one.

    Raises:
        SettingsError: there is none; the message says what to do.
    """
    found = of or settings()
    if of is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        from perennial.stack.embedded import find_running

        running = find_running(found.state)
        if running is not None and "mlflow" in running:
            found = found.model_copy(update={"mlflow_url": running["mlflow"]})
    return Client(found)


def _try(scan: Callable[[], pa.RecordBatchReader]) -> None:
    """Begin to read, so that what is missing is told where it was asked for."""
    try:
        scan().close()
    except ValueError as error:  # a column, or an interval of a table that has none
        raise SnapshotMissing(str(error)) from error


def _where(scan: Callable[[], pa.RecordBatchReader], column: str, value: str) -> pa.RecordBatchReader:
    rows = scan()
    return pa.RecordBatchReader.from_batches(rows.schema, (part.filter(pc.equal(part[column], value)) for part in rows))


def _performance(metric: str) -> list[tuple[str, pa.DataType, Callable[[dict[str, Any]], Any]]]:
    """The columns of :meth:`Client.performance`: name, type, and how each is read of a window."""

    def value(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda row: row[name]

    moment = pa.timestamp("us", tz="UTC")
    return [
        ("start", moment, lambda row: row["interval"].start),
        ("end", moment, lambda row: row["interval"].end),
        ("version", pa.int64(), value("version")),
        ("metric", pa.string(), lambda _: metric),
        ("estimated", pa.float64(), value("estimated")),
        ("estimated_low", pa.float64(), lambda row: row["band"][0] if row["band"] else None),
        ("estimated_high", pa.float64(), lambda row: row["band"][1] if row["band"] else None),
        ("realised", pa.float64(), value("realised")),
        ("label_coverage", pa.float64(), value("coverage")),
        ("labelled_rows", pa.int64(), value("rows")),
        ("mature", pa.bool_(), value("mature")),
        ("verdict", pa.string(), value("verdict")),
        ("severity", pa.string(), value("severity")),
    ]
